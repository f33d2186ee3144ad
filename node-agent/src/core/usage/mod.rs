//! Usage: raw counters of one moment become rates, rates become percentiles of a window.
//!
//! Pure. What a kernel does not say is absent, never zero; a counter that went backwards is skipped; nothing that is
//! not finite passes. Who reads the counters is [`crate::kernel::sample`].

pub mod glob;
pub mod rates;
pub mod rules;
pub mod sample;
pub mod window;

pub use glob::Glob;
pub use rules::{Hint, Origin, Rule, Rules};
pub use sample::{
    Connection, CpuTimes, Disk, InstanceSample, Link, NodeSample, Pressure, Qdisc, SliceSample, Sweep, TaskTimes,
    Throttle,
};
pub use window::{UsageTracker, WindowUsage};
