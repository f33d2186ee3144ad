//! Recorded telemetry through both cores: files in, observations and verdicts out.

pub mod feed;
pub mod input;
pub mod latency;
pub mod merge;
pub mod names;
pub mod points;
pub mod study;
pub mod time;
pub mod watch;
