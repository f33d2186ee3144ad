//! What one node says about one interval: the tensors, the sampled stubs, the knobs on offer.

use serde::{Deserialize, Serialize};

use crate::{
    BootId, InstanceId, KnobOffer, LatencyQuantiles, Metric, Micros, NodeId, OperationId, PeerHint, ServiceId, Side,
    SpanId, Timestamp, TraceHash, UsageQuantiles,
};

/// Identity of a window: applying the same key twice changes nothing.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct WindowKey {
    /// The node that measured it.
    pub node: NodeId,
    /// The life of the agent process that measured it.
    pub boot: BootId,
    /// Position among the windows of that life, from 0.
    pub seq: u64,
}

/// One node's telemetry of one aligned interval.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeWindow {
    /// Identity.
    pub key: WindowKey,
    /// Start of the interval by the node's wall clock, aligned to `length`.
    pub start: Timestamp,
    /// Length of the interval.
    pub length: Micros,
    /// Latency percentiles per (service, operation, kind, peer hint).
    pub latencies: Vec<LatencySeries>,
    /// Usage of every instance on the node.
    pub usage: Vec<InstanceUsage>,
    /// Usage of the node itself.
    pub node_usage: Vec<MetricValue>,
    /// The coherent sample of edges: whole traces, once all nodes' stubs are joined.
    pub stubs: Vec<Stub>,
    /// Call structures seen in the sampled server spans.
    pub skeletons: Vec<Skeleton>,
    /// Mergeable histograms of entry operations.
    pub entries: Vec<EntryHistogram>,
    /// Knobs that policy lets the aggregator use or recommend here.
    pub offers: Vec<KnobOffer>,
    /// What the intake took and dropped.
    pub intake: IntakeCounters,
    /// Share of all traces that the stubs hold: 1 when nothing was sampled away.
    pub stub_share: f32,
}

/// Which duration a [`LatencySeries`] holds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SeriesKind {
    /// Server spans.
    Server,
    /// Server spans minus the union of their synchronous child client spans.
    SelfTime,
    /// Client spans.
    Client,
}

/// Percentiles of one duration of one operation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct LatencySeries {
    /// The service that reported the spans.
    pub service: ServiceId,
    /// Its own operation for server kinds; the called operation as the caller names it for client kind.
    pub operation: OperationId,
    /// Which duration.
    pub kind: SeriesKind,
    /// For client kind: whom the caller says it called.
    pub peer: Option<PeerHint>,
    /// Completed calls in the window, weighted by sampling.
    pub calls: f32,
    /// Of those, failed ones.
    pub errors: f32,
    /// The percentiles, in microseconds.
    pub quantiles: LatencyQuantiles,
}

/// Usage percentiles of one instance.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct InstanceUsage {
    /// Which service it is a replica of.
    pub service: ServiceId,
    /// Which replica.
    pub instance: InstanceId,
    /// One entry per metric that this kernel offers; what is absent is absent.
    pub metrics: Vec<MetricValue>,
}

/// One metric over one window.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct MetricValue {
    /// Which metric.
    pub metric: Metric,
    /// Its percentiles over the samples of the window, finite.
    pub quantiles: UsageQuantiles,
}

/// One span of a sampled trace. No times but those of its own machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Stub {
    /// The trace it belongs to.
    pub trace: TraceHash,
    /// Its own id.
    pub id: SpanId,
    /// Its parent's id; zero for a root.
    pub parent: SpanId,
    /// Who reported it.
    pub service: ServiceId,
    /// The operation, as in [`LatencySeries`].
    pub operation: OperationId,
    /// Which side of the call.
    pub side: Side,
    /// For client side: whom the caller says it called.
    pub peer: Option<PeerHint>,
    /// Start minus the start of its parent span, where the parent is of the same process; of a root, minus the start of the
    /// window, zero when it began before. Zero otherwise.
    pub offset: Micros,
    /// Its duration.
    pub duration: Micros,
    /// For server side: duration minus the union of its synchronous child client spans; the duration for others.
    pub self_time: Micros,
    /// Whether its status is an error.
    pub is_error: bool,
}

/// How one server operation arranged its synchronous calls, and how often it did so.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Skeleton {
    /// The calling service.
    pub service: ServiceId,
    /// Its operation.
    pub operation: OperationId,
    /// Serial groups, in order; each group's branches ran at the same time; each branch is a series of calls.
    pub groups: Vec<Vec<Vec<CallShape>>>,
    /// How many sampled server spans looked like this.
    pub count: u32,
}

/// One call inside a [`Skeleton`], named as the caller names it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct CallShape {
    /// The client span's operation.
    pub operation: OperationId,
    /// The client span's peer hint.
    pub peer: Option<PeerHint>,
}

/// The mergeable latency histogram of one entry operation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EntryHistogram {
    /// The entry service.
    pub service: ServiceId,
    /// Its operation.
    pub operation: OperationId,
    /// hdrhistogram V2 bytes of server durations in microseconds, 2 significant digits.
    pub v2: Vec<u8>,
    /// Calls that arrived but were refused or failed.
    pub errors: f32,
}

/// What the intake did in the window.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct IntakeCounters {
    /// Spans decoded and counted.
    pub spans: u64,
    /// Requests that could not be decoded.
    pub rejected_requests: u64,
    /// Spans shed because a bound was reached.
    pub dropped_spans: u64,
    /// Server spans whose children could not all be paired with them in time.
    pub unpaired_spans: u64,
}
