//! `sagectl eval`: labelled incidents of one recording, answered one by one as they pass.
//!
//! The truth is read for scoring alone, after the last answer. One pass over the recording; memory is bounded by the
//! windows kept for training and those of the incidents that wait for an answer.

pub mod baro;
pub mod baseline;
pub mod collect;
pub mod desk;
pub mod folder;
pub mod run;
pub mod score;
