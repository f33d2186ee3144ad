//! Learning who causes whom from data alone: what CauseInfer and Microscope build on.

mod independence;
mod pc;

pub use independence::{Correlations, pearson};
pub use pc::{Cpdag, learn};
