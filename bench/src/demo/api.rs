//! What the demo reads from the aggregator's HTTP API: the same that `sagectl` reads.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, de::DeserializeOwned};

/// One row of `/api/v1/windows`.
#[derive(Clone, Debug, Deserialize)]
pub struct Window {
    /// Start, Unix milliseconds.
    pub start_at_ms: u64,
    /// Length.
    pub length_ms: f64,
    /// Latency of each objective.
    pub objectives: Vec<Objective>,
}

/// Latency of one objective in one window.
#[derive(Clone, Debug, Deserialize)]
pub struct Objective {
    /// Completed calls.
    pub calls: f64,
    /// At the objective's percentile.
    pub latency_ms: f64,
}

/// The parts of `/api/v1/status` that the demo uses.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// Window counts.
    pub windows: WindowCounts,
    /// The model in use.
    pub model: Option<ModelStatus>,
    /// Open incidents.
    pub incidents_open: u64,
}

/// One node.
#[derive(Clone, Debug, Deserialize)]
pub struct NodeStatus {
    /// Whether its agent is connected.
    pub connected: bool,
}

/// Window counts.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct WindowCounts {
    /// Assembled so far.
    pub assembled: u64,
}

/// The model in use.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct ModelStatus {
    /// Its version.
    pub generation: u64,
    /// Windows it learnt from.
    pub windows_trained: u64,
    /// How long that took.
    pub train_seconds: f64,
}

/// One incident.
#[derive(Clone, Debug, Deserialize)]
pub struct Incident {
    /// Its number.
    pub id: u64,
    /// When the target was found broken.
    pub opened_at_ms: u64,
    /// The answers, oldest first.
    pub verdicts: Vec<VerdictRow>,
}

/// One answer: its time and the verdict as the aggregator stores it.
#[derive(Clone, Debug, Deserialize)]
pub struct VerdictRow {
    /// When it was given.
    pub at_ms: u64,
    /// `culprit`, `partial`, `demand` or `unknown`.
    pub kind: String,
    /// Named services.
    pub culprits: Vec<Culprit>,
    /// P(target met) had they been normal.
    pub p_restored: f64,
    /// The percentile had they been normal, microseconds.
    pub counterfactual: f64,
}

/// One named service.
#[derive(Clone, Debug, Deserialize)]
pub struct Culprit {
    /// Its name.
    pub service: String,
    /// `cpu`, `memory`, `disk`, `network` or `software`.
    pub resource: String,
}

/// One action.
#[derive(Clone, Debug, Deserialize)]
pub struct Action {
    /// The incident it answers.
    pub incident: u64,
    /// Where.
    pub node: String,
    /// Kind of knob.
    pub knob_kind: String,
    /// The knob, for people.
    pub knob: String,
    /// Its new setting, for people.
    pub setting: String,
    /// `recommended`, `applied`, `kept`, `reverted`, …
    pub state: String,
    /// When it took effect.
    pub applied_at_ms: Option<u64>,
    /// When it was given back.
    pub reverted_at_ms: Option<u64>,
}

/// One proposal of `/api/v1/slo/suggest`, kept as it is to be sent back.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
pub struct SloProposal {
    /// Its name.
    pub name: String,
    /// Entry service.
    pub service: String,
    /// One operation, or all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// The percentile.
    pub percentile: f64,
    /// The target.
    pub target_ms: f64,
}

/// The aggregator's API at one address.
#[derive(Clone)]
pub struct Api {
    agent: ureq::Agent,
    base: String,
}

impl Api {
    /// Talks to `http://ADDRESS`.
    pub fn new(address: &str) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build();
        Self { agent: config.into(), base: format!("http://{address}") }
    }

    /// `GET path`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let url = format!("{}{path}", self.base);
        let mut response = self.agent.get(&url).call().with_context(|| format!("GET {url}"))?;
        let text = response.body_mut().read_to_string().with_context(|| format!("GET {url}"))?;
        serde_json::from_str(&text).with_context(|| format!("GET {url}: unexpected answer {text:.200}"))
    }

    /// Puts these objectives in force, in place of all others.
    pub fn set_slos(&self, slos: &[SloProposal]) -> Result<()> {
        let url = format!("{}/api/v1/slos", self.base);
        let body = serde_json::to_string(slos)?;
        self.agent.put(&url).content_type("application/json").send(body).with_context(|| format!("PUT {url}"))?;
        Ok(())
    }
}
