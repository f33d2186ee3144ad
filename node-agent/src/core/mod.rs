//! Decisions of the agent, free of clocks, files and sockets.

pub mod actuation;
pub mod telemetry;
pub mod usage;
