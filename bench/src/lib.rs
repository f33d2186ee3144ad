//! The bench: applications laid out from topology files as real processes, the load that drives them, and the
//! demo that breaks them and lets Sage repair them.
//!
//! Everything here may use clocks, files and sockets; nothing else in the workspace sees this crate.

pub mod app;
pub mod demo;
pub mod eval;
pub mod hog;
pub mod load;
pub mod report;
pub mod simulate;
pub mod topology;
pub mod training;
