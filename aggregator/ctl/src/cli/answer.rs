//! What `sagectl` reads of the API's answers. Unknown keys are ignored, so that an older `sagectl` understands a newer
//! aggregator.

use sage_aggregator::core::TrueCause;
use sage_causal::verdict::Verdict;
use serde::{Deserialize, Deserializer};

/// `GET /api/v1/status`.
#[derive(Debug, Deserialize)]
pub struct Status {
    /// The aggregator's name.
    pub name: String,
    /// Its fleet.
    pub fleet: String,
    /// Its program version.
    pub version: String,
    /// Its leadership period.
    pub term: u64,
    /// Who leads.
    pub leader: Option<String>,
    /// Time since it started, seconds.
    pub uptime_s: f64,
    /// Whether the fleet's brake is on.
    pub frozen: bool,
    /// The known nodes.
    pub nodes: Vec<Node>,
    /// Assembly of cluster windows.
    pub windows: Windows,
    /// The model in use.
    pub model: Option<Model>,
    /// Whether a training runs.
    pub training: bool,
    /// The objectives.
    pub slos: Vec<Objective>,
    /// Incidents that are not over.
    pub incidents_open: u64,
    /// `healthy`, `degraded` or `down`.
    pub state: String,
    /// What is wrong, for people.
    pub problems: Vec<String>,
}

/// One node of a [`Status`].
#[derive(Debug, Deserialize)]
pub struct Node {
    /// Its name.
    pub node: String,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Start of its newest window.
    pub last_window_at_ms: Option<u64>,
    /// Windows received.
    pub windows: u64,
    /// Windows that wait at the agent.
    pub spooled: u64,
    /// Settings in force there.
    pub leases: u64,
    /// Whether its brake is on.
    pub frozen: bool,
}

/// Assembly of cluster windows.
#[derive(Debug, Deserialize)]
pub struct Windows {
    /// Cluster windows so far.
    pub assembled: u64,
    /// Mean share of the nodes whose part arrived in time.
    pub complete_ratio: Option<f64>,
}

/// The model in use.
#[derive(Debug, Deserialize)]
pub struct Model {
    /// Its version.
    pub generation: u64,
    /// When it was trained.
    pub trained_at_ms: u64,
    /// On how many windows.
    pub windows_trained: u64,
    /// How long that took.
    pub train_seconds: f64,
}

/// One objective and how it stands.
#[derive(Debug, Deserialize)]
pub struct Objective {
    /// Its name.
    pub name: String,
    /// The service that clients call.
    pub service: String,
    /// One operation of it, or all.
    pub operation: Option<String>,
    /// The percentile.
    pub percentile: f64,
    /// The target.
    pub target_ms: f64,
    /// The newest value.
    pub current_ms: Option<f64>,
    /// `met`, `violated`, `idle` or `unknown`.
    pub state: String,
}

/// `GET /api/v1/incidents/{id}`.
#[derive(Debug, Deserialize)]
pub struct Incident {
    /// Its number.
    #[serde(deserialize_with = "id")]
    pub id: String,
    /// The objective that was broken.
    pub slo: String,
    /// `open` or `resolved`.
    pub state: String,
    /// When the target was first missed.
    pub opened_at_ms: u64,
    /// When a cause was first named.
    pub diagnosed_at_ms: Option<u64>,
    /// When the target was met again.
    pub resolved_at_ms: Option<u64>,
    /// Latency at the objective's percentile.
    pub latency_ms: f64,
    /// The target.
    pub target_ms: f64,
    /// Every diagnosis, oldest first.
    pub verdicts: Vec<DatedVerdict>,
    /// The actions taken.
    #[serde(deserialize_with = "ids")]
    pub actions: Vec<String>,
    /// Why nothing is being done at the moment, when nothing is.
    pub waiting: Option<String>,
    /// What an operator says was really at fault.
    #[serde(default)]
    pub label: Option<Truth>,
}

/// An operator's judgement of an [`Incident`].
#[derive(Debug, Deserialize)]
pub struct Truth {
    /// Every true cause.
    pub causes: Vec<TrueCause>,
    /// When it was said.
    pub at_ms: u64,
}

/// A verdict and when it was reached.
#[derive(Debug, Deserialize)]
pub struct DatedVerdict {
    /// When.
    pub at_ms: u64,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// One entry of `GET /api/v1/actions`.
#[derive(Debug, Deserialize)]
pub struct Action {
    /// Its number.
    #[serde(deserialize_with = "id")]
    pub id: String,
    /// The incident it answers.
    #[serde(deserialize_with = "id")]
    pub incident: String,
    /// Where.
    pub node: String,
    /// The knob's kind.
    pub knob_kind: String,
    /// The knob.
    pub knob: String,
    /// The service it is meant to help.
    pub service: String,
    /// The setting asked for.
    pub setting: String,
    /// The setting before.
    pub before: Option<String>,
    /// How it stands.
    pub state: String,
    /// Why it was chosen.
    pub reason: String,
    /// When it was decided.
    pub requested_at_ms: u64,
    /// When it came into force.
    pub applied_at_ms: Option<u64>,
    /// When the old setting came back.
    pub reverted_at_ms: Option<u64>,
    /// The latency when it was decided.
    pub baseline_ms: Option<f64>,
    /// The latency it was expected to bring.
    pub predicted_ms: Option<f64>,
    /// The latency it brought.
    pub measured_ms: Option<f64>,
    /// How it ended, in words.
    pub outcome: Option<String>,
}

/// One element of `GET /api/v1/models`.
#[derive(Debug, Deserialize)]
pub struct Card {
    /// The service.
    pub service: String,
    /// Age of the newest window that its part of the model has learnt from, seconds.
    pub data_age_s: f64,
    /// Windows learnt from.
    pub windows: u64,
    /// Error on windows that it has not learnt from, in logs.
    pub held_out_error: Option<f64>,
    /// `linear` or `cvae`.
    pub kind: String,
    /// When it was last learnt.
    pub last_retrain_at_ms: u64,
    /// Why.
    pub reason: String,
}

/// `GET /api/v1/graph`.
#[derive(Debug, Deserialize)]
pub struct Graph {
    /// The services.
    pub services: Vec<Service>,
    /// Who calls whom.
    pub edges: Vec<Edge>,
}

/// One service of a [`Graph`].
#[derive(Debug, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// How many replicas.
    pub instances: u64,
    /// Where they run.
    pub nodes: Vec<String>,
}

/// One edge of a [`Graph`].
#[derive(Debug, Deserialize)]
pub struct Edge {
    /// Who calls; absent for clients.
    pub caller: Option<String>,
    /// Who is called.
    pub callee: String,
    /// What is called.
    pub operation: String,
    /// How often.
    pub calls_per_s: f64,
    /// As the caller sees it.
    pub client_p99_ms: Option<f64>,
    /// As the callee sees it.
    pub server_p99_ms: Option<f64>,
}

/// One entry of `GET /api/v1/slo/suggest`.
#[derive(Debug, Deserialize)]
pub struct Suggestion {
    /// A name for it.
    pub name: String,
    /// The entry service.
    pub service: String,
    /// One operation of it.
    pub operation: Option<String>,
    /// The percentile.
    pub percentile: f64,
    /// The proposed target.
    pub target_ms: f64,
    /// Windows it rests on.
    pub windows: u64,
    /// How it was found, in words.
    pub basis: String,
}

/// Any refusal of the API.
#[derive(Debug, Deserialize)]
pub struct Problem {
    /// What is wrong, for people.
    pub error: String,
}

fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Id::deserialize(deserializer).map(|id| id.0)
}

fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Vec::<Id>::deserialize(deserializer)?.into_iter().map(|id| id.0).collect())
}

/// An identity, written as a number or as text.
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::Number(number) => number.to_string(),
            Either::Text(text) => text,
        }))
    }
}
