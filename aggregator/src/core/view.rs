//! What the HTTP API answers, as JSON: times are Unix milliseconds (`_at_ms`), durations `_ms`, absent is null.

use sage_causal::{ModelCard, ModelKind, verdict::Verdict};
use sage_common::{
    ActionId, BootId, Generation, KnobKind, Micros, NodeId, OperationId, ServiceId, Slo, Term, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::core::{
    action::{Action, ActionState},
    incident::{Incident, IncidentId, VerdictRecord},
    label::{Label, TrueCause},
    leader::Leader,
    oracle::Oracle,
    slo::{self, SloState},
    state::{ClusterWindow, State},
};

/// Closed windows that `complete_ratio` speaks of.
const RATIO_WINDOWS: usize = 60;

fn at_ms(at: Timestamp) -> u64 {
    at.as_micros() / 1_000
}

/// What the core does not know of itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// This aggregator's name.
    pub name: String,
    /// The fleet's name.
    pub fleet: String,
    /// Version of the program.
    pub version: String,
    /// Time since it started.
    pub uptime: Micros,
}

/// `GET /api/v1/status`.
#[derive(Clone, Debug, Serialize)]
pub struct StatusView {
    /// This aggregator's name.
    pub name: String,
    /// The fleet's name.
    pub fleet: String,
    /// Version of the program.
    pub version: String,
    /// The newest term.
    pub term: Term,
    /// Who leads it.
    pub leader: String,
    /// Seconds since the start.
    pub uptime_s: f64,
    /// Whether the fleet's brake is on.
    pub frozen: bool,
    /// Every known node.
    pub nodes: Vec<NodeView>,
    /// How the assembly does.
    pub windows: WindowCounts,
    /// The model in use.
    pub model: Option<ModelSummary>,
    /// Whether a training is under way.
    pub training: bool,
    /// Objectives.
    pub slos: Vec<SloView>,
    /// Incidents whose target is missed now.
    pub incidents_open: usize,
    /// `healthy` or `degraded`.
    pub state: &'static str,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// Its name.
    pub node: NodeId,
    /// Whether its agent is connected.
    pub connected: bool,
    /// This life of its agent, when connected.
    pub boot: Option<BootId>,
    /// When its newest window arrived.
    pub last_window_at_ms: Option<u64>,
    /// Windows counted.
    pub windows: u64,
    /// Windows its agent keeps unacknowledged.
    pub spooled: u32,
    /// Leases in force there.
    pub leases: u32,
    /// Whether its own brake is on.
    pub frozen: bool,
}

/// How the assembly does.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WindowCounts {
    /// Cluster windows closed.
    pub assembled: u64,
    /// Share of the newest of them that had every live node.
    pub complete_ratio: Option<f64>,
    /// Intervals that wait.
    pub waiting: usize,
    /// Node windows counted before.
    pub duplicates: u64,
    /// Node windows merged late.
    pub late_merged: u64,
    /// Node windows too late for that.
    pub late_dropped: u64,
    /// Node windows refused for good.
    pub refused: u64,
    /// Healthy windows to learn from.
    pub healthy: usize,
}

/// The model in use.
#[derive(Clone, Debug, Serialize)]
pub struct ModelSummary {
    /// Its number.
    pub generation: Generation,
    /// When it was trained.
    pub trained_at_ms: u64,
    /// Windows it has learnt from.
    pub windows_trained: u64,
    /// Time that took.
    pub train_seconds: f64,
}

/// One objective.
#[derive(Clone, Debug, Serialize)]
pub struct SloView {
    /// Its name.
    pub name: String,
    /// The entry service.
    pub service: ServiceId,
    /// One operation of it.
    pub operation: Option<OperationId>,
    /// The percentile.
    pub percentile: f64,
    /// The target.
    pub target_ms: f64,
    /// The percentile now.
    pub current_ms: Option<f64>,
    /// How it stands.
    pub state: SloState,
}

/// `GET /api/v1/status`.
pub fn status<O: Oracle>(leader: &Leader<O>, identity: &Identity) -> StatusView {
    let state = leader.state();
    let problems = leader.problems();
    let slos: Vec<SloView> = state.slos().iter().map(|slo| slo_view(leader, slo)).collect();
    let incidents_open = state.open_incidents().count();
    StatusView {
        name: identity.name.clone(),
        fleet: identity.fleet.clone(),
        version: identity.version.clone(),
        term: state.term(),
        leader: state.leader().to_owned(),
        uptime_s: identity.uptime.as_secs_f64(),
        frozen: state.is_frozen(),
        nodes: nodes(leader),
        windows: counts(leader),
        model: state.model().map(|model| ModelSummary {
            generation: model.meta.generation,
            trained_at_ms: at_ms(model.meta.trained_at),
            windows_trained: model.meta.windows_trained,
            train_seconds: model.meta.train_seconds,
        }),
        training: leader.is_training(),
        slos,
        incidents_open,
        state: if problems.is_empty() && incidents_open == 0 { "healthy" } else { "degraded" },
        problems,
    }
}

fn nodes<O: Oracle>(leader: &Leader<O>) -> Vec<NodeView> {
    let known = leader.state().nodes();
    let mut names: Vec<&NodeId> = known.keys().chain(leader.agents().keys()).collect();
    names.sort();
    names.dedup();
    let view = |node: &NodeId| {
        let agent = leader.agents().get(node);
        let seen = known.get(node);
        let leases = leader.state().actions().values().filter(|a| a.node == *node && a.is_in_force()).count();
        NodeView {
            node: node.clone(),
            connected: agent.is_some_and(|agent| agent.is_connected),
            boot: agent.filter(|agent| agent.is_connected).map(|agent| agent.boot),
            last_window_at_ms: seen.map(|seen| at_ms(seen.last_window_at)),
            windows: seen.map_or(0, |seen| seen.windows),
            spooled: agent.map_or(0, |agent| agent.status.spooled),
            leases: u32::try_from(leases).unwrap_or(u32::MAX),
            frozen: agent.is_some_and(|agent| agent.status.is_frozen),
        }
    };
    names.into_iter().map(view).collect()
}

fn counts<O: Oracle>(leader: &Leader<O>) -> WindowCounts {
    let state = leader.state();
    let counters = state.counters();
    let newest = || state.history().iter().rev().take(RATIO_WINDOWS);
    let complete = newest().filter(|window| window.observation.completeness >= 1.0).count();
    WindowCounts {
        assembled: counters.closed,
        complete_ratio: (newest().count() > 0).then(|| complete as f64 / newest().count() as f64),
        waiting: state.assembly().pending_len(),
        duplicates: counters.duplicates,
        late_merged: counters.late_merged,
        late_dropped: counters.late_dropped,
        refused: leader.counters().refused,
        healthy: leader.healthy_windows(),
    }
}

fn slo_view<O: Oracle>(leader: &Leader<O>, slo: &Slo) -> SloView {
    let newest = leader.state().history().back();
    let latency = newest.and_then(|window| slo::observed(slo, window)).map(|seen| seen.latency_us / 1e3);
    SloView {
        name: slo.name.clone(),
        service: slo.service.clone(),
        operation: slo.operation.clone(),
        percentile: slo.percentile,
        target_ms: slo.target.as_millis_f64(),
        current_ms: latency.filter(|latency| latency.is_finite()),
        state: newest.map_or(SloState::Unknown, |window| slo::judge(slo, window, leader.rules().calls_min)),
    }
}

/// `GET /api/v1/graph`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct GraphView {
    /// Services.
    pub services: Vec<ServiceView>,
    /// Calls between them.
    pub edges: Vec<EdgeView>,
    /// Groups of two or more services that call each other in a ring.
    pub rings: Vec<Vec<ServiceId>>,
}

/// One service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceId,
    /// Replicas.
    pub instances: u32,
    /// Where they run.
    pub nodes: Vec<NodeId>,
}

/// One caller → callee relation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EdgeView {
    /// Who calls; null for clients.
    pub caller: Option<ServiceId>,
    /// Who is called.
    pub callee: ServiceId,
    /// The callee's operation.
    pub operation: OperationId,
    /// Completed calls per second.
    pub calls_per_s: f64,
    /// Failed calls per second.
    pub errors_per_s: f64,
    /// 99th percentile as the caller sees it.
    pub client_p99_ms: Option<f64>,
    /// 99th percentile as the callee sees it.
    pub server_p99_ms: Option<f64>,
    /// Start of the newest window with calls.
    pub last_seen_at_ms: u64,
}

/// `GET /api/v1/graph`.
pub fn graph(state: &State) -> GraphView {
    let millis = |micros: Option<f32>| micros.map(|micros| f64::from(micros) / 1e3);
    let services = state.graph().services().map(|(name, service)| ServiceView {
        name: name.clone(),
        instances: service.instances,
        nodes: service.nodes.iter().cloned().collect(),
    });
    let edges = state.graph().edges().map(|(key, edge)| EdgeView {
        caller: key.caller.clone(),
        callee: key.callee.clone(),
        operation: key.operation.clone(),
        calls_per_s: edge.calls_per_s,
        errors_per_s: edge.errors_per_s,
        client_p99_ms: millis(edge.client_p99_us),
        server_p99_ms: millis(edge.server_p99_us),
        last_seen_at_ms: at_ms(edge.last_seen),
    });
    let rings = state.graph().metanodes().into_iter().filter(|group| group.len() > 1).collect();
    GraphView { services: services.collect(), edges: edges.collect(), rings }
}

/// One element of `GET /api/v1/windows`.
#[derive(Clone, Debug, Serialize)]
pub struct WindowView {
    /// Start of the interval.
    pub start_at_ms: u64,
    /// Its length.
    pub length_ms: f64,
    /// Share of the live nodes in it.
    pub completeness: f32,
    /// Arrivals per second.
    pub offered_per_s: f64,
    /// What it says about each objective.
    pub objectives: Vec<WindowObjectiveView>,
}

/// What a window says about one objective.
#[derive(Clone, Debug, Serialize)]
pub struct WindowObjectiveView {
    /// The objective.
    pub slo: String,
    /// Calls that it covers.
    pub calls: f64,
    /// The percentile.
    pub latency_ms: f64,
    /// Whether that misses the target.
    pub violated: bool,
}

/// `GET /api/v1/windows?last=N`, oldest first.
pub fn windows<O: Oracle>(leader: &Leader<O>, last: usize) -> Vec<WindowView> {
    let history = leader.state().history();
    history.iter().skip(history.len().saturating_sub(last)).map(|window| window_view(leader, window)).collect()
}

fn window_view<O: Oracle>(leader: &Leader<O>, window: &ClusterWindow) -> WindowView {
    let observation = &window.observation;
    let objective = |slo: &Slo| {
        let seen = slo::observed(slo, window)?;
        Some(WindowObjectiveView {
            slo: slo.name.clone(),
            calls: seen.calls,
            latency_ms: seen.latency_us / 1e3,
            violated: slo::judge(slo, window, leader.rules().calls_min) == SloState::Violated,
        })
    };
    WindowView {
        start_at_ms: at_ms(observation.start),
        length_ms: observation.length.as_millis_f64(),
        completeness: observation.completeness,
        offered_per_s: observation.offered_per_s,
        objectives: leader.state().slos().iter().filter_map(objective).collect(),
    }
}

/// One element of `GET /api/v1/incidents`, and `GET /api/v1/incidents/{id}`.
#[derive(Clone, Debug, Serialize)]
pub struct IncidentView {
    /// Its number.
    pub id: IncidentId,
    /// The objective's name.
    pub slo: String,
    /// `open` or `resolved`.
    pub state: &'static str,
    /// When it was opened.
    pub opened_at_ms: u64,
    /// When the model first answered.
    pub diagnosed_at_ms: Option<u64>,
    /// When the target was met again.
    pub resolved_at_ms: Option<u64>,
    /// The percentile that opened it.
    pub latency_ms: f64,
    /// The target.
    pub target_ms: f64,
    /// What the model said, oldest first.
    pub verdicts: Vec<VerdictView>,
    /// What was done, oldest first.
    pub actions: Vec<ActionId>,
    /// Why nothing is being done, when nothing is.
    pub waiting: Option<String>,
    /// What an operator says was really at fault, when one has.
    pub label: Option<LabelView>,
    /// Whether it can be exported: whether everything that its newest verdicts were read from is still kept.
    pub exportable: bool,
}

/// An operator's judgement of an incident.
#[derive(Clone, Debug, Serialize)]
pub struct LabelView {
    /// Every true cause.
    pub causes: Vec<TrueCause>,
    /// When it was said.
    pub at_ms: u64,
}

/// One verdict with its time.
#[derive(Clone, Debug, Serialize)]
pub struct VerdictView {
    /// When.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// `GET /api/v1/incidents`, newest first.
pub fn incidents(state: &State) -> Vec<IncidentView> {
    state.incidents().values().rev().map(|incident| incident_view(state, incident)).collect()
}

/// `GET /api/v1/incidents/{id}`.
pub fn incident(state: &State, id: IncidentId) -> Option<IncidentView> {
    state.incidents().get(&id).map(|incident| incident_view(state, incident))
}

fn incident_view(state: &State, incident: &Incident) -> IncidentView {
    let label = |label: &Label| LabelView { causes: label.causes.clone(), at_ms: at_ms(label.at) };
    let verdict = |record: &VerdictRecord| VerdictView { at_ms: at_ms(record.at), verdict: record.verdict.clone() };
    IncidentView {
        id: incident.id,
        slo: incident.slo.clone(),
        state: if incident.is_open() { "open" } else { "resolved" },
        opened_at_ms: at_ms(incident.opened_at),
        diagnosed_at_ms: incident.diagnosed_at().map(at_ms),
        resolved_at_ms: incident.resolved_at.map(at_ms),
        latency_ms: incident.latency.as_millis_f64(),
        target_ms: incident.target.as_millis_f64(),
        verdicts: incident.verdicts.iter().map(verdict).collect(),
        actions: incident.actions.clone(),
        waiting: incident.waiting.clone(),
        label: state.casebook().label(incident.id).map(label),
        exportable: state.casebook().has_evidence(incident.id),
    }
}

/// One element of `GET /api/v1/actions`.
#[derive(Clone, Debug, Serialize)]
pub struct ActionView {
    /// Its number.
    pub id: ActionId,
    /// The incident it answers.
    pub incident: IncidentId,
    /// The node.
    pub node: NodeId,
    /// The kind of knob.
    pub knob_kind: KnobKind,
    /// The knob, for people.
    pub knob: String,
    /// The service it is to help.
    pub service: ServiceId,
    /// The setting, for people.
    pub setting: String,
    /// The setting before, for people.
    pub before: Option<String>,
    /// Where it stands.
    pub state: ActionState,
    /// Why, for people.
    pub reason: String,
    /// When it was decided.
    pub requested_at_ms: u64,
    /// When the node had it in force.
    pub applied_at_ms: Option<u64>,
    /// When it was given back.
    pub reverted_at_ms: Option<u64>,
    /// The percentile before it.
    pub baseline_ms: f64,
    /// The percentile that the model promised.
    pub predicted_ms: f64,
    /// The percentile after it.
    pub measured_ms: Option<f64>,
    /// What became of it, for people.
    pub outcome: Option<String>,
}

/// `GET /api/v1/actions`, newest first.
pub fn actions(state: &State) -> Vec<ActionView> {
    state.actions().values().rev().map(action_view).collect()
}

fn action_view(action: &Action) -> ActionView {
    ActionView {
        id: action.id,
        incident: action.incident,
        node: action.node.clone(),
        knob_kind: action.knob.kind(),
        knob: action.knob.to_string(),
        service: action.service.clone(),
        setting: action.setting.to_string(),
        before: action.before.as_ref().map(ToString::to_string),
        state: action.state,
        reason: action.reason.clone(),
        requested_at_ms: at_ms(action.requested_at),
        applied_at_ms: action.applied_at.map(at_ms),
        reverted_at_ms: action.reverted_at.map(at_ms),
        baseline_ms: action.baseline.as_millis_f64(),
        predicted_ms: action.predicted.as_millis_f64(),
        measured_ms: action.measured.map(Micros::as_millis_f64),
        outcome: action.outcome(),
    }
}

/// Everything about one incident, for `sagectl explain`.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainView {
    /// The incident with its verdicts.
    pub incident: IncidentView,
    /// The objective, when it still exists.
    pub slo: Option<SloView>,
    /// What was done and what it did, oldest first.
    pub actions: Vec<ActionView>,
}

/// What broke, what the model said, what was done, and what that did.
pub fn explain<O: Oracle>(leader: &Leader<O>, id: IncidentId) -> Option<ExplainView> {
    let state = leader.state();
    let incident = state.incidents().get(&id)?;
    Some(ExplainView {
        incident: incident_view(state, incident),
        slo: state.slo(&incident.slo).map(|slo| slo_view(leader, slo)),
        actions: incident.actions.iter().filter_map(|id| state.actions().get(id)).map(action_view).collect(),
    })
}

/// One element of `GET /api/v1/models`.
#[derive(Clone, Debug, Serialize)]
pub struct ModelView {
    /// The service.
    pub service: ServiceId,
    /// Age of the newest window that its part of the model has learnt from, seconds.
    pub data_age_s: f64,
    /// Windows learnt from.
    pub windows: usize,
    /// Error on held-out windows.
    pub held_out_error: Option<f64>,
    /// The same of the linear prior.
    pub linear_error: Option<f64>,
    /// Which of the two is in use.
    pub kind: ModelKind,
    /// When it was last trained.
    pub last_retrain_at_ms: u64,
    /// Why.
    pub reason: String,
}

/// `GET /api/v1/models`.
pub fn models(state: &State, now: Timestamp) -> Vec<ModelView> {
    let Some(model) = state.model() else { return Vec::new() };
    let view = |card: &ModelCard| ModelView {
        service: card.service.clone(),
        data_age_s: now.since(card.newest).unwrap_or_default().as_secs_f64(),
        windows: card.windows,
        held_out_error: card.held_out_error.filter(|error| error.is_finite()),
        linear_error: card.linear_error.filter(|error| error.is_finite()),
        kind: card.kind,
        last_retrain_at_ms: at_ms(card.last_retrain),
        reason: card.reason.clone(),
    };
    model.meta.cards.iter().map(view).collect()
}

/// One element of `GET /api/v1/slo/suggest`.
#[derive(Clone, Debug, Serialize)]
pub struct SuggestionView {
    /// A name for it.
    pub name: String,
    /// The entry service.
    pub service: ServiceId,
    /// One operation of it.
    pub operation: Option<OperationId>,
    /// The percentile.
    pub percentile: f64,
    /// The target.
    pub target_ms: f64,
    /// Windows it is based on.
    pub windows: usize,
    /// How it was found, for people.
    pub basis: String,
}

/// `GET /api/v1/slo/suggest?percentile=P`.
pub fn suggestions<O: Oracle>(leader: &Leader<O>, percentile: f64) -> Vec<SuggestionView> {
    let state = leader.state();
    let found = slo::suggest(percentile, state.slos(), state.history().iter(), leader.rules().calls_min);
    found
        .into_iter()
        .map(|suggestion| SuggestionView {
            name: suggestion.name,
            service: suggestion.service,
            operation: suggestion.operation,
            percentile: suggestion.percentile,
            target_ms: suggestion.target.as_millis_f64(),
            windows: suggestion.windows,
            basis: suggestion.basis,
        })
        .collect()
}
