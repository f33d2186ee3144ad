//! The daemon: clocks, threads, tasks, files and sockets around the pure cores. Decides nothing.

mod actuation;
pub mod assemble;
pub mod board;
pub mod clock;
pub mod control;
pub mod doctor;
mod http;
mod metrics;
mod notify;
mod pipeline;
pub mod recent;
pub mod report;
mod run;
mod sampling;
pub mod spool;
mod uplink;

pub use run::{RunError, run};
