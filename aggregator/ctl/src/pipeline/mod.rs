//! A fleet in virtual time: spans and usage in, the observations of finished cluster windows out.
//!
//! ```text
//!  span, sweep, metric ─► agent core of the node ─► node window ─► [Windows, Close] ─► aggregator core ─► Observation
//! ```
//!
//! The agents' core and the aggregator's core are those of the daemons, wired as their drivers wire them; what crosses
//! between them is encoded, checked and decoded as on the wire. No clock, no file, no randomness: the same calls give the
//! same observations. It diagnoses nothing: whoever holds the observations trains and asks.
//!
//! Costs: memory is that of one agent's core per node (bounded as there) and of one cluster window; it does not depend on
//! how long the fleet runs. Every node window is encoded and decoded once.

mod metrics;
mod node;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use sage_aggregator::core::{Proposal, State};
use sage_causal::observation::Observation;
use sage_common::{InstanceId, LatencySeries, Metric, Micros, NodeId, ServiceId, Skeleton, Slo, Span, Timestamp};
use sage_node_agent::core::{
    telemetry::{TelemetryConfig, WINDOWS_OPEN_MAX},
    usage::Sweep,
};

pub use self::metrics::{AHEAD_MAX, SAMPLES_MAX};
use self::node::{Delivery, Node};

/// Nodes of a fleet: what one aggregator is meant for, and far above what a recording holds.
pub const NODES_MAX: usize = 4_096;

/// Windows that [`Fleet::advance`] steps over one by one; a longer pause is a gap in the recording, and is jumped.
const STEPS_MAX: u64 = 64;

/// Cluster windows that the aggregator's core keeps: the one that is handed out.
const CLUSTER_WINDOWS_KEPT: usize = 1;

/// What a fleet has to know.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// Length of a window; at least a millisecond.
    pub window: Micros,
    /// How long after its end a window takes spans and metrics: rounded up to whole windows, at most ten.
    pub lateness: Micros,
    /// The nodes known from the start; [`Fleet::add_node`] adds others.
    pub nodes: Vec<NodeId>,
    /// Traces whose stubs each node keeps per window.
    pub sample_traces: usize,
    /// Latency series per node and window; further operations go to `_OTHER`.
    pub series_max: usize,
    /// Objectives whose end-to-end latency the observations carry.
    pub slos: Vec<Slo>,
}

impl FleetConfig {
    /// The agents' own defaults with windows of `window`.
    pub fn new(window: Micros, lateness: Micros) -> Self {
        let TelemetryConfig { sample_traces, series_max, .. } = TelemetryConfig::default();
        Self { window, lateness, nodes: Vec::new(), sample_traces, series_max, slos: Vec::new() }
    }
}

/// What was taken and what was not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FleetCounters {
    /// Spans counted in some window.
    pub spans: u64,
    /// Spans that came after their window had closed; dropped.
    pub late_spans: u64,
    /// Spans that end more than a window after the time advanced to; dropped.
    pub early_spans: u64,
    /// Spans delivered twice; dropped.
    pub duplicate_spans: u64,
    /// Spans counted without self time, stub or skeleton, for lack of room.
    pub unpaired_spans: u64,
    /// Client spans whose server span never came.
    pub orphan_spans: u64,
    /// Samples counted in some window.
    pub metrics: u64,
    /// Samples whose window had closed or lies too far ahead, or that are not finite; dropped.
    pub dropped_metrics: u64,
    /// Cluster windows made.
    pub windows: u64,
    /// Intervals in which nothing was recorded that has a latency: gaps, for which no window was made.
    pub silent: u64,
    /// Node windows that broke a rule of the wire; dropped.
    pub refused_windows: u64,
}

/// Where a ready-made sample belongs.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Place {
    /// A replica of a service.
    Instance(ServiceId, InstanceId),
    /// The node itself.
    Node,
}

/// Agents and an aggregator without a network between them.
pub struct Fleet {
    config: FleetConfig,
    nodes: Vec<Node>,
    state: State,
    log: u64,
    now: Timestamp,
    counters: FleetCounters,
}

impl Fleet {
    /// A fleet that has seen nothing. Its time begins with the first call of [`advance`](Self::advance): call it with the
    /// time of the first span or sample before handing that over.
    pub fn new(config: FleetConfig) -> Self {
        let window = config.window.max(Micros::from_millis(1));
        let windows = config.lateness.get().div_ceil(window.get()).min(WINDOWS_OPEN_MAX as u64 - 2);
        let lateness = window.saturating_mul(windows);
        let (nodes, slos) = (config.nodes.clone(), config.slos.clone());
        let mut this = Self {
            config: FleetConfig { window, lateness, ..config },
            nodes: Vec::new(),
            state: State::new(CLUSTER_WINDOWS_KEPT),
            log: 0,
            now: Timestamp::default(),
            counters: FleetCounters::default(),
        };
        for node in nodes {
            this.add_node(node);
        }
        this.set_slos(slos);
        this
    }

    /// Adds a node and gives its number; `None` beyond [`NODES_MAX`].
    pub fn add_node(&mut self, id: NodeId) -> Option<usize> {
        (self.nodes.len() < NODES_MAX).then(|| {
            self.nodes.push(Node::new(id, &self.telemetry()));
            self.nodes.len() - 1
        })
    }

    /// The nodes, by number.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeId> {
        self.nodes.iter().map(Node::id)
    }

    /// Replaces the objectives, from the next finished window on.
    pub fn set_slos(&mut self, slos: Vec<Slo>) {
        self.apply(&Proposal::SetSlos { slos, is_configured: false, at: self.now });
    }

    /// Hands `span` to the agent of node number `node`. It must not end more than a window after the time advanced to;
    /// one that ended before the open windows is late. Both are dropped and counted.
    pub fn span(&mut self, node: usize, span: &Span) {
        let FleetConfig { window, lateness, .. } = self.config;
        let end = span.end();
        if end.aligned(window) + window + lateness <= self.now {
            self.counters.late_spans += 1;
        } else if end > self.now + window {
            self.counters.early_spans += 1;
        } else if let Some(node) = self.nodes.get_mut(node) {
            node.span(span, self.now);
        }
    }

    /// Hands one sweep of a node's counters to its agent, made at `at`.
    pub fn usage(&mut self, node: usize, at: Timestamp, sweep: &Sweep) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.sweep(at, sweep, self.now);
        }
    }

    /// Hands over a sample that is a [`Metric`] already, measured at `at` in the metric's own unit. Percentiles are taken
    /// over the samples of a window. It may lie up to [`AHEAD_MAX`] windows ahead.
    pub fn metric(&mut self, node: usize, place: &Place, metric: Metric, at: Timestamp, value: f64) {
        let FleetConfig { window, lateness, .. } = self.config;
        let start = at.aligned(window);
        let is_late = start + window + lateness <= self.now;
        let is_early = start > self.now + window.saturating_mul(AHEAD_MAX as u64);
        let taken = match self.nodes.get_mut(node) {
            Some(node) if !is_late && !is_early => node.metric(place, metric, start, value, self.now),
            _ => false,
        };
        self.counters.metrics += u64::from(taken);
        self.counters.dropped_metrics += u64::from(!taken);
    }

    /// Hands over percentiles of a window that somebody else has measured, at `at`, and how requests call: latency where
    /// there are no spans. Spans of the same service on the same node in the same window win. Bounds as for [`metric`](Self::metric).
    pub fn latency(&mut self, node: usize, at: Timestamp, series: Vec<LatencySeries>, skeletons: Vec<Skeleton>) {
        let FleetConfig { window, lateness, .. } = self.config;
        let start = at.aligned(window);
        let is_open =
            start + window + lateness > self.now && start <= self.now + window.saturating_mul(AHEAD_MAX as u64);
        let taken = match self.nodes.get_mut(node) {
            Some(node) if is_open => node.latency(start, series, skeletons, self.now),
            _ => false,
        };
        self.counters.metrics += u64::from(taken);
        self.counters.dropped_metrics += u64::from(!taken);
    }

    /// Moves time to `to` and finishes the windows that are due. Time never goes back: an earlier `to` changes nothing.
    pub fn advance(&mut self, to: Timestamp) -> Vec<Observation> {
        let mut finished = Vec::new();
        if self.now == Timestamp::default() {
            self.now = to;
        }
        let step = self.config.window;
        if to > self.now + step.saturating_mul(STEPS_MAX) {
            // What is open is finished as if time passed; then nothing is left that the gap could change.
            self.step_to(self.now + step.saturating_mul(STEPS_MAX), &mut finished);
            self.now = to;
        }
        self.step_to(to, &mut finished);
        finished
    }

    /// Finishes everything that is open.
    pub fn finish(&mut self) -> Vec<Observation> {
        let FleetConfig { window, lateness, .. } = self.config;
        let ahead = self.nodes.iter().filter_map(Node::newest).max().unwrap_or(self.now).max(self.now);
        self.advance(ahead.aligned(window) + window + lateness + window)
    }

    /// The time advanced to.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// What was taken and what was not.
    pub fn counters(&self) -> FleetCounters {
        let mut counters = self.counters;
        for totals in self.nodes.iter().map(Node::counters) {
            counters.spans += totals.spans;
            counters.late_spans += totals.late;
            counters.early_spans += totals.clock_skewed;
            counters.duplicate_spans += totals.duplicates;
            counters.unpaired_spans += totals.unpaired_for_room;
            counters.orphan_spans += totals.orphans;
        }
        counters
    }

    /// What the aggregator's core knows: the graph, the learnt names, its counters.
    pub fn state(&self) -> &State {
        &self.state
    }

    fn telemetry(&self) -> TelemetryConfig {
        let FleetConfig { window, lateness, sample_traces, series_max, .. } = self.config;
        TelemetryConfig { window, lateness, sample_traces, series_max }
    }

    fn step_to(&mut self, to: Timestamp, finished: &mut Vec<Observation>) {
        // Ends: `advance` lets no more than `STEPS_MAX` windows lie between, and each step is a window or the rest.
        while self.now < to {
            self.now = (self.now.aligned(self.config.window) + self.config.window).min(to);
            self.close_due(finished);
        }
    }

    /// Takes the node windows that are due and makes cluster windows of them, oldest first.
    fn close_due(&mut self, finished: &mut Vec<Observation>) {
        let mut due: BTreeMap<Timestamp, Vec<Delivery>> = BTreeMap::new();
        for node in &mut self.nodes {
            while let Some(delivery) = node.close_due(self.now) {
                due.entry(delivery.start()).or_default().push(delivery);
            }
        }
        for (start, mut deliveries) in due {
            if deliveries.iter().all(Delivery::is_silent) {
                self.counters.silent += 1;
                continue;
            }
            let windows = deliveries.iter_mut().filter_map(|delivery| {
                let window = delivery.send();
                self.counters.refused_windows += u64::from(window.is_none());
                window
            });
            let windows = windows.collect();
            self.apply(&Proposal::Windows { at: self.now, windows });
            self.apply(&Proposal::Close { start, arrived: self.now, at: self.now });
            if let Some(window) = self.state.history().back().filter(|window| window.observation.start == start) {
                self.counters.windows += 1;
                finished.push(window.observation.as_ref().clone());
            }
        }
    }

    fn apply(&mut self, proposal: &Proposal) {
        self.log += 1;
        self.state.apply(self.log, proposal);
    }
}
