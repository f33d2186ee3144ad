//! The bench: applications laid out from topology files as real processes, and the load that drives them.
//!
//! Everything here may use clocks, files and sockets; nothing else in the workspace sees this crate.

pub mod app;
pub mod load;
pub mod topology;
