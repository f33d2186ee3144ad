//! Usage: raw counters of one moment become rates, rates become percentiles of a window.
//!
//! Pure. What a kernel does not say is absent, never zero; a counter that went backwards is skipped; nothing that is
//! not finite passes. Who reads the counters is [`crate::kernel::sample`].

pub mod aligned;
pub mod glob;
mod instance;
mod means;
mod node;
pub mod rates;
pub mod rules;
pub mod sample;
mod values;
pub mod window;

pub use aligned::UsageWindows;
pub use glob::Glob;
pub use rules::{Hint, Origin, Rule, Rules};
pub use sample::{
    CgroupCpu, Connection, CpuTimes, Disk, InstanceSample, Link, NodeSample, Pressure, Qdisc, SliceSample, Sweep,
    TaskTimes, Throttle,
};
pub use values::SAMPLES_MAX;
pub use window::{CgroupUse, LinkUse, UsageTracker, WindowUsage};
