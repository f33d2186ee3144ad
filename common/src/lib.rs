//! The nouns every part of Sage shares: identities, units, spans, windows, metrics, knobs, SLOs.
//!
//! Floor 0: plain values with their checks. No clock, no file, no socket, no randomness.

pub mod config;
pub mod id;
pub mod knob;
pub mod metric;
pub mod quantiles;
pub mod slo;
pub mod span;
pub mod units;
pub mod window;

pub use config::ConfigError;
pub use id::{
    ActionId, BootId, Generation, InstanceId, InvalidName, NodeId, OperationId, ServiceId, SpanId, Term, TraceHash,
};
pub use knob::{CgroupPath, CpuList, Knob, KnobKind, KnobOffer, LinkName, OfferRole, Setting, Trust};
pub use metric::{Metric, MetricGroup};
pub use quantiles::{LATENCY_PERCENTILES, LatencyQuantiles, USAGE_PERCENTILES, UsageQuantiles};
pub use slo::Slo;
pub use span::{PeerHint, Side, Span};
pub use units::{Micros, Timestamp};
pub use window::{
    CallShape, EntryHistogram, InstanceUsage, IntakeCounters, LatencySeries, MetricValue, NodeWindow, SeriesKind,
    Skeleton, Stub, WindowKey,
};
