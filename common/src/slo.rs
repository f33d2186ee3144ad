//! Service-level objectives on end-to-end latency.

use serde::{Deserialize, Serialize};

use crate::{Micros, OperationId, ServiceId};

/// A target on a percentile of the latency of one entry service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Slo {
    /// How people call it; unique.
    pub name: String,
    /// The service that clients call.
    pub service: ServiceId,
    /// One operation of it; all of them when absent.
    #[serde(default)]
    pub operation: Option<OperationId>,
    /// The percentile the target speaks of, for example 99.
    pub percentile: f64,
    /// The latency that percentile must stay under.
    pub target: Micros,
}

impl Slo {
    /// Whether a call of `operation` on `service` counts towards this objective.
    pub fn covers(&self, service: &ServiceId, operation: &OperationId) -> bool {
        self.service == *service && self.operation.as_ref().is_none_or(|own| own == operation)
    }
}
