//! The model alone, pure: observations in, verdicts out.

pub mod observation;
pub mod verdict;
