//! Decisions of the agent, free of clocks, files and sockets.

pub mod telemetry;
pub mod usage;
