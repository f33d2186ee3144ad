//! `/metrics`: one page of OpenMetrics text, made anew for every scrape from what is known at that moment, so that a
//! series ends with the thing it speaks of.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::AtomicU64,
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use sage_causal::observation::{EdgeKey, Observation};
use sage_common::{LatencyQuantiles, ServiceId};

use crate::{
    core::{ActionState, State, graph::RpcGraph, leader::LeaderCounters},
    replica::Health,
};

/// Media type of the page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Pairs of services with series; an application of 200 services has a tenth of it.
const PAIRS_MAX: usize = 4_096;

/// Caller and callee of a `traces_service_graph_*` series; clients outside the fleet are `user`, as Tempo calls them.
type Pair = (String, String);
type Labels = Vec<(&'static str, String)>;
type Float = Gauge<f64, AtomicU64>;

/// Calls since this process started, by caller and callee.
#[derive(Debug, Default)]
pub struct CallTotals(BTreeMap<Pair, Calls>);

#[derive(Debug, Default)]
struct Calls {
    calls: f64,
    errors: f64,
    client_p99_s: Option<f64>,
    server_p99_s: Option<f64>,
}

impl CallTotals {
    /// Adds one closed window, and forgets pairs that `graph` has forgotten.
    pub fn add(&mut self, observation: &Observation, graph: &RpcGraph) {
        for calls in self.0.values_mut() {
            (calls.client_p99_s, calls.server_p99_s) = (None, None);
        }
        for edge in &observation.edges {
            let key = pair(&edge.key);
            if self.0.len() >= PAIRS_MAX && !self.0.contains_key(&key) {
                continue;
            }
            let calls = self.0.entry(key).or_default();
            calls.calls += edge.calls.max(0.0);
            calls.errors += edge.errors.max(0.0);
            let p99 = |quantiles: Option<LatencyQuantiles>| quantiles.map(|q| f64::from(q.at(99.0)) / 1e6);
            calls.client_p99_s = larger(calls.client_p99_s, p99(edge.client));
            calls.server_p99_s = larger(calls.server_p99_s, p99(edge.server));
        }
        let known: BTreeSet<Pair> = graph.edges().map(|(key, _)| pair(key)).collect();
        self.0.retain(|key, _| known.contains(key));
    }
}

fn pair(key: &EdgeKey) -> Pair {
    let caller = key.caller.as_ref().map_or("user", ServiceId::as_str);
    (caller.to_owned(), key.callee.to_string())
}

fn larger(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

/// What the page is made from.
#[derive(Debug)]
pub struct Readings<'a> {
    /// The replicated state.
    pub state: &'a State,
    /// The durable log.
    pub log: &'a Health,
    /// Calls by pair.
    pub calls: &'a CallTotals,
    /// Nodes with a connection.
    pub connected: usize,
    /// Windows that the transport threw away.
    pub windows_rejected: u64,
    /// Windows not taken because the log was behind.
    pub windows_shed: u64,
    /// Whether a training runs.
    pub is_training: bool,
    /// What the leader has counted.
    pub counters: LeaderCounters,
    /// Time since the start, seconds.
    pub uptime_s: f64,
}

impl Readings<'_> {
    /// The page.
    pub fn page(&self) -> String {
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("sage_aggregator");
        self.log_and_windows(own);
        self.decisions(own);
        self.objectives(own);
        self.service_graph(&mut registry);
        let mut page = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut page, &registry);
        page
    }

    fn log_and_windows(&self, registry: &mut Registry) {
        let counters = self.state.counters();
        gauge(registry, "uptime_seconds", "Time since the start", self.uptime_s);
        gauge(registry, "term", "Leadership period", self.state.term().0 as f64);
        gauge(registry, "nodes_connected", "Agents with a connection", self.connected as f64);
        gauge(registry, "nodes_known", "Nodes that have delivered windows", self.state.nodes().len() as f64);
        counter(registry, "node_windows", "Windows of nodes counted", counters.windows);
        counter(
            registry,
            "node_windows_repeated",
            "Windows of nodes that had been counted before",
            counters.duplicates,
        );
        counter(registry, "node_windows_late", "Windows of nodes that came too late", counters.late_dropped);
        counter(registry, "node_windows_rejected", "Windows of nodes that were not valid", self.windows_rejected);
        counter(registry, "node_windows_refused", "Windows of nodes refused for good", self.counters.refused);
        counter(
            registry,
            "node_windows_shed",
            "Windows of nodes left at the agents, the log being behind",
            self.windows_shed,
        );
        counter(registry, "cluster_windows", "Cluster windows closed", counters.closed);
        counter(
            registry,
            "cluster_windows_complete",
            "Cluster windows with every live node in them",
            counters.complete,
        );
        counter(registry, "log_entries", "Entries of the log", self.log.last);
        counter(registry, "log_commits", "Transactions of the log since the start", self.log.commits);
        gauge(registry, "log_bytes", "Bytes of the log after its snapshot", self.log.log_bytes as f64);
        gauge(registry, "log_snapshot_bytes", "Bytes of the log's snapshot", self.log.snapshot_bytes as f64);
        gauge(registry, "log_waiting", "1 while the log cannot write", f64::from(u8::from(self.log.problem.is_some())));
    }

    fn decisions(&self, registry: &mut Registry) {
        let state = self.state;
        gauge(registry, "frozen", "1 while the brake is on", f64::from(u8::from(state.is_frozen())));
        gauge(registry, "incidents_open", "Objectives missed at present", state.open_incidents().count() as f64);
        let mut by_state: BTreeMap<&'static str, f64> = ACTION_STATES.map(|(_, name)| (name, 0.0)).into();
        for action in state.actions().values() {
            if let Some((_, name)) = ACTION_STATES.iter().find(|(known, _)| *known == action.state) {
                *by_state.entry(name).or_default() += 1.0;
            }
        }
        let actions = Family::<Labels, Float>::default();
        for (name, count) in by_state {
            actions.get_or_create(&vec![("state", name.to_owned())]).set(count);
        }
        registry.register("actions", "Actions kept, by state", actions);
        let generation = state.model().map_or(0, |model| model.meta.generation.0);
        gauge(registry, "model_generation", "Version of the model in use, 0 for none", generation as f64);
        let seconds = state.model().map_or(0.0, |model| model.meta.train_seconds);
        gauge(registry, "model_train_seconds", "Time the training of the model in use took", seconds);
        gauge(registry, "training", "1 while a training runs", f64::from(u8::from(self.is_training)));
        counter(registry, "trainings_failed", "Trainings that failed", self.counters.trainings_failed);
        counter(registry, "models_adopted", "Models put in use since the start", self.counters.models_adopted);
        counter(registry, "models_rejected", "Models found no better since the start", self.counters.models_rejected);
        counter(registry, "commands", "Commands sent to agents since the start", self.counters.commands);
    }

    fn objectives(&self, registry: &mut Registry) {
        let (current, target) = (Family::<Labels, Float>::default(), Family::<Labels, Float>::default());
        let newest = self.state.history().back();
        for slo in self.state.slos() {
            let labels = vec![("slo", slo.name.clone())];
            target.get_or_create(&labels).set(slo.target.as_secs_f64());
            let observed = newest
                .and_then(|window| window.observation.objectives.iter().find(|objective| objective.slo == slo.name));
            if let Some(observed) = observed.filter(|observed| observed.calls > 0.0) {
                current.get_or_create(&labels).set(observed.latency_us / 1e6);
            }
        }
        registry.register("slo_latency_seconds", "Latency at the objective's percentile, newest window", current);
        registry.register("slo_target_seconds", "The objective's target", target);
    }

    /// The names that Grafana's service graph looks for, without our prefix.
    fn service_graph(&self, registry: &mut Registry) {
        let (calls, errors) = (Family::<Labels, Whole>::default(), Family::<Labels, Whole>::default());
        let (client_s, server_s) = (Family::<Labels, Float>::default(), Family::<Labels, Float>::default());
        for ((client, server), totals) in &self.calls.0 {
            let labels = vec![("client", client.clone()), ("server", server.clone())];
            calls.get_or_create(&labels).inc_by(totals.calls);
            errors.get_or_create(&labels).inc_by(totals.errors);
            let quantile: Labels = labels.iter().cloned().chain([("quantile", "0.99".to_owned())]).collect();
            if let Some(seconds) = totals.client_p99_s {
                client_s.get_or_create(&quantile).set(seconds);
            }
            if let Some(seconds) = totals.server_p99_s {
                server_s.get_or_create(&quantile).set(seconds);
            }
        }
        registry.register("traces_service_graph_request", "Calls", calls);
        registry.register("traces_service_graph_request_failed", "Failed calls", errors);
        registry.register("traces_service_graph_request_client_seconds", "Latency at the caller", client_s);
        registry.register("traces_service_graph_request_server_seconds", "Latency at the callee", server_s);
    }
}

type Whole = Counter<f64, AtomicU64>;

const ACTION_STATES: [(ActionState, &str); 9] = [
    (ActionState::Recommended, "recommended"),
    (ActionState::AwaitingApproval, "awaiting_approval"),
    (ActionState::Proposed, "proposed"),
    (ActionState::Applied, "applied"),
    (ActionState::Kept, "kept"),
    (ActionState::Reverted, "reverted"),
    (ActionState::Refused, "refused"),
    (ActionState::Failed, "failed"),
    (ActionState::Drifted, "drifted"),
];

fn gauge(registry: &mut Registry, name: &'static str, help: &'static str, value: f64) {
    let gauge = Float::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

/// The library adds `_total`.
fn counter(registry: &mut Registry, name: &'static str, help: &'static str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}
