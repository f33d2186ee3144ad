//! Observations of small applications, for tests.

use sage_causal::observation::{EdgeKey, EdgeObservation, Observation};
use sage_common::{LATENCY_PERCENTILES, LatencyQuantiles, Micros, OperationId, ServiceId, Timestamp};

pub fn id(name: &str) -> ServiceId {
    ServiceId::sanitized(name)
}

/// Calls that all took `us`.
pub fn edge(caller: Option<&str>, callee: &str, calls: f64, us: f64) -> EdgeObservation {
    shaped(caller, callee, calls, |_| us)
}

/// Calls of which each percentile took what `us` says.
pub fn shaped(caller: Option<&str>, callee: &str, calls: f64, us: impl Fn(f64) -> f64) -> EdgeObservation {
    EdgeObservation {
        key: EdgeKey { caller: caller.map(id), callee: id(callee), operation: OperationId::sanitized("get") },
        calls,
        errors: 0.0,
        client: None,
        server: Some(LatencyQuantiles(LATENCY_PERCENTILES.map(|p| us(p) as f32))),
        gap: None,
        self_time: None,
    }
}

/// Calls of which some fail.
pub trait Failing {
    fn failed(self, errors: f64) -> Self;
}

impl Failing for EdgeObservation {
    fn failed(self, errors: f64) -> Self {
        Self { errors, ..self }
    }
}

pub fn window(edges: Vec<EdgeObservation>) -> Observation {
    Observation {
        start: Timestamp::default(),
        length: Micros::from_secs(60),
        edges,
        services: Vec::new(),
        traces: Vec::new(),
        skeletons: Vec::new(),
        objectives: Vec::new(),
        offered_per_s: 1.0,
        completeness: 1.0,
        trace_share: 1.0,
    }
}
