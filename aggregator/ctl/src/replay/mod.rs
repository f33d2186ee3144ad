//! Recorded telemetry through both cores: files in, observations and verdicts out.

pub mod accounts;
pub mod batch;
pub mod callgraph;
pub mod entries;
pub mod failures;
pub mod feed;
pub mod histograms;
pub mod input;
pub mod kinds;
pub mod latency;
pub mod merge;
pub mod names;
pub mod points;
pub mod rate;
#[cfg(test)]
pub(crate) mod scenes;
pub mod spoken;
pub mod streams;
pub mod study;
pub mod tell;
pub mod time;
pub mod watch;
pub mod whose;
