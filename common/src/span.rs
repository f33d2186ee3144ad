//! One side of one RPC, as the agent sees it after decoding whatever the application sent.

use serde::{Deserialize, Serialize};

use crate::{InstanceId, Micros, OperationId, ServiceId, SpanId, Timestamp, TraceHash};

/// Which side of a call a span describes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The callee's view (OpenTelemetry SERVER and CONSUMER).
    Server,
    /// The caller's view (CLIENT).
    Client,
    /// The caller does not wait (PRODUCER, or a client span linked rather than awaited).
    Producer,
    /// Neither: work inside one process.
    Internal,
}

/// Whom a client span says it called, best source first. A hint only: the stub join decides.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerHint {
    /// `service.peer.name` or `peer.service`.
    Service(ServiceId),
    /// `db.system.name`, `messaging.destination.name` or `server.address`, sanitised.
    Address(ServiceId),
}

/// One decoded span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Hash of the whole trace id.
    pub trace: TraceHash,
    /// Its own id.
    pub id: SpanId,
    /// Its parent's id; zero for a root.
    pub parent: SpanId,
    /// The service that reported it.
    pub service: ServiceId,
    /// The replica that reported it, when the resource attributes tell (`container.id`, `process.pid`,
    /// `service.instance.id`).
    pub instance: Option<InstanceId>,
    /// The process that reported it, when `process.pid` tells.
    pub pid: Option<u32>,
    /// rpc.method, else method + route, else destination, else the span's name.
    pub operation: OperationId,
    /// Which side of the call.
    pub side: Side,
    /// Whom it called, for client spans.
    pub peer: Option<PeerHint>,
    /// Start by this node's clock.
    pub start: Timestamp,
    /// End minus start; never negative.
    pub duration: Micros,
    /// Whether its status is an error.
    pub is_error: bool,
    /// How many real spans it stands for: 1 over the sampling probability.
    pub weight: f32,
}

impl Span {
    /// When it ended, by this node's clock.
    pub fn end(&self) -> Timestamp {
        self.start + self.duration
    }
}
