//! The operator's tool, `sagectl`: it asks an aggregator over HTTP, and it runs recordings through both cores.
//!
//! It stands above `node-agent` and `aggregator`, because a replay needs the cores of both. `pipeline` is pure; everything
//! else here is a driver with files, sockets and a terminal.

pub mod cli;
pub mod eval;
pub mod incident_file;
pub mod pipeline;
pub mod replay;
