//! What the model learns from and diagnoses: one cluster window, joined and merged. Plain data, no behaviour.

use sage_common::{
    InstanceId, LatencyQuantiles, Metric, Micros, NodeId, OperationId, ServiceId, Timestamp, UsageQuantiles,
};
use serde::{Deserialize, Serialize};

/// One caller → callee relation. A root edge has no caller: its caller is the client.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct EdgeKey {
    /// Who calls; `None` for clients outside the fleet.
    pub caller: Option<ServiceId>,
    /// Who is called.
    pub callee: ServiceId,
    /// The callee's operation.
    pub operation: OperationId,
}

/// One interval of the whole application.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Observation {
    /// Start of the interval.
    pub start: Timestamp,
    /// Its length.
    pub length: Micros,
    /// Every edge that carried calls, ordered by key.
    pub edges: Vec<EdgeObservation>,
    /// Every service seen, ordered by name.
    pub services: Vec<ServiceObservation>,
    /// Sampled traces, whole as far as their parts arrived.
    pub traces: Vec<Trace>,
    /// Call structures of server operations, with the called edges resolved. Empty when none were sampled.
    #[serde(default)]
    pub skeletons: Vec<ResolvedSkeleton>,
    /// End-to-end latency of each objective.
    pub objectives: Vec<ObjectiveObservation>,
    /// Arrivals at the entries, refused ones included, per second.
    pub offered_per_s: f64,
    /// Share of the known nodes whose windows arrived in time.
    pub completeness: f32,
    /// Share of all traces that `traces` holds: 1 when nothing was sampled away.
    pub trace_share: f32,
}

/// How one server operation arranged its synchronous calls, and how often: [`sage_common::Skeleton`] with every call
/// resolved to its edge.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ResolvedSkeleton {
    /// The calling service.
    pub service: ServiceId,
    /// Its operation.
    pub operation: OperationId,
    /// Serial groups, in order; each group's branches ran at the same time; each branch is a series of calls.
    pub groups: Vec<Vec<Vec<EdgeKey>>>,
    /// How many sampled server spans looked like this.
    pub count: u32,
}

/// One edge over one window. Absent is absent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EdgeObservation {
    /// Which edge.
    pub key: EdgeKey,
    /// Completed calls.
    pub calls: f64,
    /// Of those, failed ones.
    pub errors: f64,
    /// Client spans, microseconds.
    pub client: Option<LatencyQuantiles>,
    /// Server spans, microseconds.
    pub server: Option<LatencyQuantiles>,
    /// Client minus server span of the same call, microseconds.
    pub gap: Option<LatencyQuantiles>,
    /// Server span minus the union of its synchronous child client spans, microseconds.
    pub self_time: Option<LatencyQuantiles>,
}

/// One service over one window.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ServiceObservation {
    /// Which service.
    pub service: ServiceId,
    /// Its replicas.
    pub instances: Vec<InstanceObservation>,
}

/// One replica over one window: its own metrics and those of its node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct InstanceObservation {
    /// Which replica.
    pub instance: InstanceId,
    /// Where it runs.
    pub node: NodeId,
    /// Its usage, at most one entry per metric.
    pub metrics: Vec<(Metric, UsageQuantiles)>,
}

/// End-to-end latency of one objective over one window.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ObjectiveObservation {
    /// [`sage_common::Slo::name`].
    pub slo: String,
    /// Completed calls that it covers.
    pub calls: f64,
    /// Latency at the objective's percentile, microseconds, from the merged entry histograms.
    pub latency_us: f64,
}

/// One sampled trace as a forest: parents stand before their children.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Trace {
    /// Its calls; a root comes first.
    pub calls: Vec<TraceCall>,
}

/// One call of a trace: the client span and the server span of the same RPC, as far as they are known.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TraceCall {
    /// Index of the calling entry in [`Trace::calls`]; `None` for a root.
    pub parent: Option<u32>,
    /// Which edge it travelled.
    pub edge: EdgeKey,
    /// Start of the client span after the start of the parent's server span (one machine's clock); of a root, after the
    /// start of the window, zero when it began before.
    pub offset_us: f32,
    /// Client span, when the caller reported one. Roots have none unless clients are traced.
    pub client_us: Option<f32>,
    /// Server span, when the callee reported one.
    pub server_us: Option<f32>,
    /// Server span minus the union of its synchronous child client spans.
    pub self_us: Option<f32>,
    /// Whether the caller waited for it.
    pub is_sync: bool,
    /// Whether either side reported an error.
    pub is_error: bool,
}
