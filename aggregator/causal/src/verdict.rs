//! The answer to one violation, with everything needed to explain it to a person.

use sage_common::{Generation, Metric, MetricGroup, Micros, ServiceId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::observation::EdgeKey;

/// What kind of answer it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// Restoring the named services restores the target.
    Culprit,
    /// Restoring the named services helps and does not suffice.
    Partial,
    /// Arrivals are above anything learnt: the named services are bottlenecks, scale them out.
    Demand,
    /// Out of distribution, nothing found, or too many: no action; `missing` says what would help.
    Unknown,
}

/// What of a service is at fault.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Processor time.
    Cpu,
    /// Memory capacity, bandwidth, cache.
    Memory,
    /// Block device.
    Disk,
    /// Link, loss, delay.
    Network,
    /// Threads, connections, locks, a slow code path: not a resource of the machine.
    Software,
}

impl From<MetricGroup> for Resource {
    fn from(group: MetricGroup) -> Self {
        match group {
            MetricGroup::Cpu => Self::Cpu,
            MetricGroup::Memory => Self::Memory,
            MetricGroup::Disk => Self::Disk,
            MetricGroup::Network => Self::Network,
            MetricGroup::Process => Self::Software,
        }
    }
}

/// One answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Verdict {
    /// Which objective was broken.
    pub slo: String,
    /// Start of the window that was diagnosed.
    pub window: Timestamp,
    /// Kind of answer.
    pub kind: VerdictKind,
    /// The named services, the strongest first. Empty for [`VerdictKind::Unknown`].
    pub culprits: Vec<Culprit>,
    /// The objective's percentile as observed.
    pub observed: Micros,
    /// Its target.
    pub target: Micros,
    /// The percentile had the named services been normal.
    pub counterfactual: Micros,
    /// P(target met) had the named services been normal.
    pub p_restored: f64,
    /// Every candidate alone, best first, with what the search looked at.
    pub candidates: Vec<Candidate>,
    /// Edges along which the latency travelled, from the entry to the first culprit.
    pub path: Vec<EdgeKey>,
    /// What kept the answer from being better; for people.
    pub missing: Vec<String>,
    /// Which model answered.
    pub generation: Generation,
    /// Age of the newest window that model has learnt from.
    pub model_age: Micros,
}

/// One named service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Culprit {
    /// The service.
    pub service: ServiceId,
    /// What of it.
    pub resource: Resource,
    /// P(the resource is right), from the spread of the group scores.
    pub p_resource: f64,
    /// When the spans cannot tell which end of a link is at fault: the other end.
    pub link_with: Option<ServiceId>,
    /// The bad replica, when one differs from its siblings.
    pub instance: Option<sage_common::InstanceId>,
    /// Normal against observed, the strongest first.
    pub evidence: Vec<Evidence>,
}

/// One candidate of the search.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Candidate {
    /// The service.
    pub service: ServiceId,
    /// The percentile had this service alone been normal.
    pub counterfactual: Micros,
    /// P(target met) had this service alone been normal.
    pub p_restored: f64,
    /// Its own excess (self and owned gaps) over normal, mean of p75 to p99.5, microseconds per call.
    pub own_excess_us: f64,
    /// The percentile at which healthy stretches of the same length score as high: 1 is far above noise.
    pub null_rank: f64,
}

/// One observed quantity against its normal.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Evidence {
    /// What was measured.
    pub what: EvidenceKind,
    /// Its normal value at the present load.
    pub normal: f64,
    /// What was observed.
    pub observed: f64,
    /// Distance in robust standard deviations.
    pub z: f64,
}

/// What a piece of evidence measures.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EvidenceKind {
    /// Self time of an operation at the objective's percentile, microseconds.
    SelfTime(EdgeKey),
    /// Gap of an edge at the objective's percentile, microseconds.
    Gap(EdgeKey),
    /// A usage metric's median over instances, in its own unit.
    Metric(Metric),
}
