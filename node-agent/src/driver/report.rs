//! What the daemon says about itself: the types behind `status`, an interface that scripts rely on. Plain data.

use serde::{Deserialize, Serialize};

use crate::kernel::sample::Capability;

/// Answer to `status`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct StatusReport {
    /// Name of the node.
    pub node: String,
    /// This life of the agent, hexadecimal.
    pub boot: String,
    /// Program version.
    pub version: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// The leading aggregator, while connected.
    pub leader: Option<String>,
    /// Highest term known.
    pub term: u64,
    /// Whether a leader has welcomed us.
    pub connected: bool,
    /// Windows of this life.
    pub windows: WindowCounts,
    /// Spans of this life.
    pub intake: IntakeReport,
    /// Services seen lately, by name.
    pub services: Vec<ServiceReport>,
    /// Settings in force.
    pub leases: Vec<LeaseReport>,
    /// Whether the brake is on.
    pub frozen: bool,
    /// What the agent itself uses.
    #[serde(rename = "self")]
    pub own: SelfReport,
    /// `healthy` or `degraded`.
    pub state: State,
    /// Why it is degraded, and what else a person should know.
    pub problems: Vec<String>,
}

/// `healthy` or `degraded`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Everything works.
    #[default]
    Healthy,
    /// Something does not; [`StatusReport::problems`] says what.
    Degraded,
}

/// Windows of this life.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct WindowCounts {
    /// Handed to a connection, repeats included.
    pub sent: u64,
    /// Committed by the aggregator.
    pub acknowledged: u64,
    /// Kept because no acknowledgement has come.
    pub spooled: u64,
}

/// Spans of this life.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct IntakeReport {
    /// Spans counted.
    pub spans: u64,
    /// Spans per second over the last ten seconds.
    pub spans_per_s: f64,
    /// Requests that could not be decoded.
    pub rejected_requests: u64,
    /// Spans shed because a bound was reached.
    pub dropped_spans: u64,
    /// Share of the last window's spans whose other parts never came.
    pub unpaired_ratio: f64,
}

/// One service on this node.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ServiceReport {
    /// Its name.
    pub name: String,
    /// Its replicas here.
    pub instances: usize,
    /// Calls it served per second in the last window.
    pub calls_per_s: f64,
    /// 99th percentile of its server spans in the last window.
    pub p99_ms: Option<f64>,
}

/// One lease.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct LeaseReport {
    /// The action it came from.
    pub action: u64,
    /// The knob.
    pub knob: String,
    /// Its setting.
    pub setting: String,
    /// What will be given back.
    pub before: String,
    /// Time left.
    pub remaining_ms: u64,
    /// The service it is meant to help.
    pub service: String,
    /// Why.
    pub reason: String,
}

/// What the agent itself uses.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct SelfReport {
    /// Cores, over the last ten seconds.
    pub cpu_cores: f64,
    /// Resident memory.
    pub memory_bytes: u64,
}

/// Answer to `doctor`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct DoctorReport {
    /// Name of the node.
    pub node: String,
    /// Whether the daemon answered; otherwise this command looked itself.
    pub daemon: bool,
    /// Where usage comes from.
    pub sources: Vec<Capability>,
    /// What can be changed.
    pub knobs: Vec<Capability>,
    /// Everything else that must be in place: state, spool, certificates, policy.
    pub surroundings: Vec<Capability>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_has_the_keys_that_scripts_rely_on() {
        let report = StatusReport {
            services: vec![ServiceReport::default()],
            leases: vec![LeaseReport::default()],
            ..StatusReport::default()
        };
        let json = serde_json::to_value(&report).expect("plain data");
        let keys = |value: &serde_json::Value| {
            let mut keys: Vec<String> = value.as_object().expect("object").keys().cloned().collect();
            keys.sort();
            keys.join(" ")
        };
        assert_eq!(
            keys(&json),
            "boot connected frozen intake leader leases node problems self services state term uptime_s version windows"
        );
        assert_eq!(keys(&json["windows"]), "acknowledged sent spooled");
        assert_eq!(keys(&json["intake"]), "dropped_spans rejected_requests spans spans_per_s unpaired_ratio");
        assert_eq!(keys(&json["services"][0]), "calls_per_s instances name p99_ms");
        assert_eq!(keys(&json["leases"][0]), "action before knob reason remaining_ms service setting");
        assert_eq!(keys(&json["self"]), "cpu_cores memory_bytes");
        assert_eq!(json["state"], "healthy");
    }
}
