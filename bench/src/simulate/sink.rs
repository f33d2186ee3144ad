//! Where the telemetry of a simulated application goes.

use sage_common::{InstanceId, Metric, NodeId, ServiceId, Span, Timestamp};

/// Takes telemetry in virtual time. Machines are numbered as in [`Model::machines`](super::model::Model::machines).
pub trait Sink {
    /// A span that ends now.
    fn span(&mut self, machine: usize, span: &Span);

    /// The usage of one machine in the second that ends now.
    fn usage(&mut self, usage: &UsageSecond);
}

/// What one machine's samplers read in one second. What a kernel does not offer is not there.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageSecond {
    /// The end of the second.
    pub at: Timestamp,
    /// The number of the machine.
    pub machine: usize,
    /// Its name.
    pub node: NodeId,
    /// Metrics of the machine.
    pub of_node: Vec<(Metric, f32)>,
    /// Metrics of each instance on it.
    pub instances: Vec<InstanceSecond>,
}

/// What was read of one instance.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceSecond {
    /// Its service.
    pub service: ServiceId,
    /// Its name.
    pub instance: InstanceId,
    /// Its metrics.
    pub metrics: Vec<(Metric, f32)>,
}

/// Takes everything and keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Sink for Nowhere {
    fn span(&mut self, _: usize, _: &Span) {}

    fn usage(&mut self, _: &UsageSecond) {}
}
