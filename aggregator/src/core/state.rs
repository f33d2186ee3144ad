//! What the replicated log says: the same entries give the same state on every replica and after every restart.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use sage_causal::{observation::Observation, verdict::Verdict};
use sage_common::{
    ActionId, BootId, CgroupPath, IntakeCounters, KnobOffer, NodeId, NodeWindow, ServiceId, Slo, Term, Timestamp,
    WindowKey,
};
use sage_protocol::{CodecError, codec};
use serde::{Deserialize, Serialize};

use crate::core::{
    action::{Action, ActionChange, ActionState, Ending},
    assembly::{Arrival, Assembly},
    casebook::Casebook,
    graph::RpcGraph,
    incident::{Incident, IncidentChange, IncidentId, Seen, VerdictRecord},
    join::{self, JoinCounters},
    learned::Learned,
    observe,
    proposal::{ModelMeta, Proposal},
    sequences::Sequences,
};

/// Lives of one agent that are remembered; a restart loop leaves no more than this behind.
const BOOTS_MAX: usize = 8;
/// Closed windows without a node after which it no longer counts as missing.
pub const NODE_LIVE_WINDOWS: u64 = 6;
/// Closed windows without a node after which it is forgotten with its sequence numbers: a day of ten-second windows.
const NODE_FORGET_WINDOWS: u64 = 8_640;
/// Incidents kept; the oldest resolved ones go first.
const INCIDENTS_MAX: usize = 512;
/// Actions kept; the oldest finished ones go first.
const ACTIONS_MAX: usize = 2_048;
/// Calls of all kept traces together, about 60 MB. Traces of the oldest windows go first, their percentiles stay.
const TRACE_CALLS_MAX: usize = 400_000;

/// One interval of the whole application.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ClusterWindow {
    /// Its number; grows by one.
    pub close: u64,
    /// When its first node window arrived, by the leader's clock.
    pub arrived: Timestamp,
    /// What was observed.
    pub observation: Arc<Observation>,
    /// Whether an incident was open, or an action in force: not to be learnt from as healthy.
    pub is_disturbed: bool,
}

/// What is known of one node.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NodeState {
    boots: BTreeMap<BootId, BootState>,
    /// When its newest window arrived.
    pub last_window_at: Timestamp,
    /// Start of its newest window.
    pub last_start: Timestamp,
    /// Number of closed windows when it last delivered.
    pub last_close: u64,
    /// Windows counted.
    pub windows: u64,
    /// Knobs on offer in its newest window.
    pub offers: Vec<KnobOffer>,
    /// Number of closed windows when each cgroup on offer was first seen: the youngest is frozen first.
    pub first_offered: BTreeMap<CgroupPath, u64>,
    /// Intake of its newest window.
    pub intake: IntakeCounters,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
struct BootState {
    sequences: Sequences,
    last_index: u64,
}

/// The model in use.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StoredModel {
    /// Its card.
    pub meta: ModelMeta,
    /// Number of closed windows when it was put in use.
    pub close: u64,
    /// The model itself.
    pub bytes: Arc<Vec<u8>>,
}

/// What was counted while applying.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct StateCounters {
    /// Node windows counted.
    pub windows: u64,
    /// Node windows seen before.
    pub duplicates: u64,
    /// Node windows merged into an interval that was closed already.
    pub late_merged: u64,
    /// Node windows that came too late for that.
    pub late_dropped: u64,
    /// Cluster windows closed.
    pub closed: u64,
    /// Of those, with every live node in it.
    pub complete: u64,
    /// What the joins could not join.
    pub join: JoinCounters,
}

/// What one entry did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Whether the entry had been applied before, so that nothing happened.
    pub is_repeated: bool,
    /// Node windows counted now.
    pub counted: Vec<WindowKey>,
    /// Start of the cluster window that it made.
    pub closed: Option<Timestamp>,
}

/// Everything that the fleet must not forget.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct State {
    applied: u64,
    windows_max: usize,
    term: Term,
    leader: String,
    assembly: Assembly,
    nodes: BTreeMap<NodeId, NodeState>,
    learned: Learned,
    graph: RpcGraph,
    history: VecDeque<ClusterWindow>,
    closes: u64,
    slos: Vec<Slo>,
    configured: Option<Vec<Slo>>,
    incidents: BTreeMap<IncidentId, Incident>,
    incidents_opened: u64,
    actions: BTreeMap<ActionId, Action>,
    actions_requested: u64,
    model: Option<StoredModel>,
    is_frozen: bool,
    counters: StateCounters,
    /// The last, so that a snapshot of a release without it ends before it.
    casebook: Casebook,
}

impl State {
    /// An empty log's state, which keeps at most `windows_max` cluster windows.
    pub fn new(windows_max: usize) -> Self {
        Self {
            applied: 0,
            windows_max,
            term: Term(0),
            leader: String::new(),
            assembly: Assembly::default(),
            nodes: BTreeMap::new(),
            learned: Learned::default(),
            graph: RpcGraph::default(),
            history: VecDeque::new(),
            closes: 0,
            slos: Vec::new(),
            configured: None,
            incidents: BTreeMap::new(),
            incidents_opened: 0,
            actions: BTreeMap::new(),
            actions_requested: 0,
            model: None,
            is_frozen: false,
            counters: StateCounters::default(),
            casebook: Casebook::default(),
        }
    }

    /// The state that a snapshot holds: one of this release, or of those that kept no labels and exhibits yet.
    ///
    /// # Errors
    ///
    /// [`CodecError`]: the bytes are neither.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode_snapshot(bytes).or_else(|error| {
            // Fields follow one another without marks, so the older layout and an empty casebook are the present layout.
            let without = [bytes, &codec::encode_snapshot(&Casebook::default())?].concat();
            codec::decode_snapshot(&without).map_err(|_| error)
        })
    }

    /// Keeps at most `windows_max` cluster windows from the next one on, as the configuration says now.
    pub fn keep_windows(&mut self, windows_max: usize) {
        self.windows_max = windows_max;
    }

    /// Applies the entry at `index` (from 1, growing by one). One that was applied before changes nothing.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Applied {
        let mut applied = Applied::default();
        if index <= self.applied {
            applied.is_repeated = true;
            return applied;
        }
        self.applied = index;
        match proposal {
            Proposal::TermStarted { term, leader, at } => self.start_term(*term, leader, *at),
            Proposal::Windows { at, windows } => {
                for window in windows {
                    self.take_window(window, *at, index, &mut applied);
                }
            }
            Proposal::Close { start, arrived, .. } => applied.closed = self.close(*start, *arrived),
            Proposal::SetSlos { slos, is_configured, .. } => {
                self.slos.clone_from(slos);
                if *is_configured {
                    self.configured = Some(slos.clone());
                }
            }
            Proposal::Incident { id, at, change } => self.change_incident(*id, *at, change),
            Proposal::Intent(action) => self.add_action(action),
            Proposal::Action { id, at, change } => self.change_action(*id, *at, change),
            Proposal::Generation { meta, bytes } => self.adopt(meta, bytes),
            Proposal::Freeze { at } => self.freeze(*at),
            Proposal::Thaw { .. } => self.is_frozen = false,
        }
        applied
    }

    fn start_term(&mut self, term: Term, leader: &str, at: Timestamp) {
        self.term = self.term.max(term);
        leader.clone_into(&mut self.leader);
        // A clock set back between two lives must not make every window of the next hour a late one.
        let length = self.history.back().map(|window| window.observation.length).unwrap_or_default();
        if self.assembly.closed_until().is_some_and(|until| until > at + length.saturating_mul(NODE_LIVE_WINDOWS)) {
            self.assembly.restart_time();
        }
    }

    fn take_window(&mut self, window: &NodeWindow, at: Timestamp, index: u64, applied: &mut Applied) {
        let node = self.nodes.entry(window.key.node.clone()).or_default();
        if !node.settle(&window.key, index) {
            self.counters.duplicates += 1;
            return;
        }
        node.take(window, at, self.closes);
        self.counters.windows += 1;
        applied.counted.push(window.key.clone());
        match self.assembly.insert(window.clone()) {
            Arrival::Pending => {}
            Arrival::Merged => {
                self.counters.late_merged += 1;
                self.observe_again(window);
            }
            Arrival::Late => self.counters.late_dropped += 1,
        }
    }

    fn close(&mut self, start: Timestamp, arrived: Timestamp) -> Option<Timestamp> {
        if !self.assembly.close(start) {
            return None;
        }
        self.closes += 1;
        self.counters.closed += 1;
        let observation = self.observe(start, None)?;
        self.counters.complete += u64::from(observation.completeness >= 1.0);
        self.graph.update(&observation, self.closes);
        let is_disturbed = self.open_incidents().next().is_some() || self.actions.values().any(Action::is_in_force);
        let observation = Arc::new(observation);
        self.history.push_back(ClusterWindow { close: self.closes, arrived, observation, is_disturbed });
        self.age();
        Some(start)
    }

    /// The observation of a closed interval that is still kept, and what it teaches of who calls whom: of the services of
    /// the `late` window alone when the rest was learnt from before.
    fn observe(&mut self, start: Timestamp, late: Option<&NodeWindow>) -> Option<Observation> {
        let entries: BTreeSet<ServiceId> = self.slos.iter().map(|slo| slo.service.clone()).collect();
        let windows = self.assembly.closed(start);
        let length = windows.first()?.length;
        let joined = join::join(&windows, &self.learned, self.closes, &entries);
        let fresh: Option<BTreeSet<&ServiceId>> =
            late.map(|window| window.stubs.iter().map(|stub| &stub.service).collect());
        for ((name, target), count) in &joined.names {
            if fresh.as_ref().is_none_or(|of| of.contains(&name.caller) || of.contains(&target.callee)) {
                self.learned.learn(name, target, *count, self.closes);
            }
        }
        if late.is_none() {
            self.counters.join.add(joined.counters);
        }
        let delivered: BTreeSet<&NodeId> = windows.iter().map(|window| &window.key.node).collect();
        let known = self.live_nodes().union(&delivered).count().max(1);
        let scene = observe::Scene {
            start,
            length,
            close: self.closes,
            completeness: delivered.len() as f32 / known as f32,
            slos: &self.slos,
            learned: &self.learned,
        };
        Some(observe::observe(&windows, joined, &scene))
    }

    /// A late window has come. It may be of a node that is late each time, so the graph hears of it as well.
    fn observe_again(&mut self, late: &NodeWindow) {
        let start = late.start;
        let Some(observation) = self.observe(start, Some(late)) else { return };
        let observation = Arc::new(observation);
        if let Some(newest) = self.history.back().filter(|window| window.observation.start == start) {
            self.graph.update(&observation, newest.close);
        }
        if let Some(window) = self.history.iter_mut().rev().find(|window| window.observation.start == start) {
            window.observation = observation;
            self.casebook.revise(window.close, self.applied);
        }
    }

    fn age(&mut self) {
        self.learned.age(self.closes);
        while self.history.len() > self.windows_max {
            self.history.pop_front();
        }
        let closes = self.closes;
        self.nodes.retain(|_, node| node.last_close.saturating_add(NODE_FORGET_WINDOWS) >= closes);
        let mut calls: usize = 0;
        for window in self.history.iter_mut().rev() {
            calls += window.observation.traces.iter().map(|trace| trace.calls.len()).sum::<usize>();
            if calls > TRACE_CALLS_MAX && !window.observation.traces.is_empty() {
                Arc::make_mut(&mut window.observation).traces = Vec::new();
            }
        }
    }

    fn change_incident(&mut self, id: IncidentId, at: Timestamp, change: &IncidentChange) {
        let close = self.closes;
        match (change, self.incidents.get_mut(&id)) {
            (IncidentChange::Opened { slo, latency, target }, None) => {
                let incident = Incident {
                    id,
                    slo: slo.clone(),
                    opened_at: at,
                    opened_close: close,
                    resolved_at: None,
                    latency: *latency,
                    target: *target,
                    verdicts: Vec::new(),
                    actions: Vec::new(),
                    waiting: None,
                    is_planned: true,
                };
                self.incidents.insert(id, incident);
                self.incidents_opened = self.incidents_opened.max(id);
                let is_resolved = |incident: &Incident| !incident.is_open();
                evict(&mut self.incidents, INCIDENTS_MAX, is_resolved);
                self.casebook.retain(|id| self.incidents.contains_key(id));
            }
            (IncidentChange::Diagnosed(verdict) | IncidentChange::Answered { verdict, .. }, Some(incident))
                if incident.is_open() =>
            {
                incident.diagnose(VerdictRecord { at, close, verdict: verdict.as_ref().clone() });
                if let IncidentChange::Answered { seen, .. } = change {
                    self.keep_exhibit(id, verdict, *seen);
                }
            }
            (IncidentChange::Labelled(label), Some(_)) => self.casebook.set_label(id, label.clone()),
            (IncidentChange::Waiting(reason), Some(incident)) => {
                incident.waiting = Some(reason.clone());
                incident.is_planned = true;
            }
            (IncidentChange::Resolved, Some(incident)) => {
                incident.resolved_at.get_or_insert(at);
                incident.waiting = None;
            }
            _ => {}
        }
    }

    /// Keeps what `verdict`, just given, was read from.
    fn keep_exhibit(&mut self, id: IncidentId, verdict: &Verdict, seen: Seen) {
        let slo = self.slos.iter().find(|slo| slo.name == verdict.slo);
        let model = self.model.as_ref().filter(|model| model.meta.generation == verdict.generation);
        if let (Some(slo), Some(model)) = (slo, model) {
            self.casebook.keep((id, self.closes), slo, seen, &self.history, model);
        }
    }

    fn add_action(&mut self, action: &Action) {
        if self.actions.contains_key(&action.id) {
            return;
        }
        if let Some(incident) = self.incidents.get_mut(&action.incident) {
            incident.actions.push(action.id);
            incident.is_planned = true;
            incident.waiting = None;
        }
        self.actions.insert(action.id, Action { changed_close: self.closes, ..action.clone() });
        self.actions_requested = self.actions_requested.max(action.id.0);
        let is_done = |action: &Action| !action.is_in_force() && action.state != ActionState::AwaitingApproval;
        evict(&mut self.actions, ACTIONS_MAX, is_done);
    }

    fn change_action(&mut self, id: ActionId, at: Timestamp, change: &ActionChange) {
        let Some(action) = self.actions.get_mut(&id) else { return };
        let is_taken = action.apply(change, at, self.closes);
        // Nothing was tried, so the verdict still stands and the next candidate is due.
        let was_in_vain = is_taken && matches!(action.state, ActionState::Refused | ActionState::Failed);
        if let Some(incident) = self.incidents.get_mut(&action.incident).filter(|_| was_in_vain) {
            incident.is_planned = false;
        }
    }

    fn adopt(&mut self, meta: &ModelMeta, bytes: &[u8]) {
        if self.model.as_ref().is_none_or(|model| model.meta.generation < meta.generation) {
            let bytes = Arc::new(bytes.to_vec());
            self.model = Some(StoredModel { meta: meta.clone(), close: self.closes, bytes });
        }
    }

    fn freeze(&mut self, at: Timestamp) {
        self.is_frozen = true;
        let ending = ActionChange::Ending { why: Ending::Frozen, measured: None };
        for action in self.actions.values_mut() {
            action.apply(&ending, at, self.closes);
        }
    }
}

/// Removes the first entries that `may_go` until at most `max` are left.
fn evict<K: Copy + Ord, V>(map: &mut BTreeMap<K, V>, max: usize, may_go: impl Fn(&V) -> bool) {
    while map.len() > max {
        let Some(key) = map.iter().find(|(_, value)| may_go(value)).map(|(key, _)| *key) else { return };
        map.remove(&key);
    }
}

impl NodeState {
    fn settle(&mut self, key: &WindowKey, index: u64) -> bool {
        if !self.boots.contains_key(&key.boot) && self.boots.len() >= BOOTS_MAX {
            let oldest = self.boots.iter().min_by_key(|(_, boot)| boot.last_index).map(|(boot, _)| *boot);
            oldest.and_then(|boot| self.boots.remove(&boot));
        }
        let boot = self.boots.entry(key.boot).or_default();
        boot.last_index = index;
        boot.sequences.insert(key.seq)
    }

    fn take(&mut self, window: &NodeWindow, at: Timestamp, close: u64) {
        self.windows += 1;
        self.last_window_at = self.last_window_at.max(at);
        self.last_close = self.last_close.max(close);
        if self.windows == 1 || window.start >= self.last_start {
            self.last_start = window.start;
            self.intake = window.intake;
            let mut first = BTreeMap::new();
            for cgroup in window.offers.iter().filter_map(|offer| offer.knob.cgroup()) {
                first.insert(cgroup.clone(), self.first_offered.get(cgroup).copied().unwrap_or(close));
            }
            self.first_offered = first;
            self.offers.clone_from(&window.offers);
        }
    }
}

/// Reading.
impl State {
    /// Position of the newest entry applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The newest term that began.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Who leads it.
    pub fn leader(&self) -> &str {
        &self.leader
    }

    /// Every window of this life of this agent below the number is settled and need not be sent again.
    pub fn acknowledged_below(&self, node: &NodeId, boot: BootId) -> u64 {
        self.boot(node, boot).map_or(0, |boot| boot.sequences.settled_below())
    }

    /// Every life of every agent that is remembered, with its [`acknowledged_below`](Self::acknowledged_below).
    pub fn acknowledged(&self) -> impl Iterator<Item = (&NodeId, BootId, u64)> {
        self.nodes.iter().flat_map(|(node, known)| {
            known.boots.iter().map(move |(boot, state)| (node, *boot, state.sequences.settled_below()))
        })
    }

    /// Whether this window is counted already.
    pub fn is_settled(&self, key: &WindowKey) -> bool {
        self.boot(&key.node, key.boot).is_some_and(|boot| boot.sequences.contains(key.seq))
    }

    fn boot(&self, node: &NodeId, boot: BootId) -> Option<&BootState> {
        self.nodes.get(node)?.boots.get(&boot)
    }

    /// Intervals that wait, and the last closed ones.
    pub fn assembly(&self) -> &Assembly {
        &self.assembly
    }

    /// Every node that is remembered.
    pub fn nodes(&self) -> &BTreeMap<NodeId, NodeState> {
        &self.nodes
    }

    /// Nodes that delivered within the last [`NODE_LIVE_WINDOWS`] closed windows.
    pub fn live_nodes(&self) -> BTreeSet<&NodeId> {
        let is_live = |node: &NodeState| node.last_close.saturating_add(NODE_LIVE_WINDOWS) >= self.closes;
        self.nodes.iter().filter(|(_, node)| is_live(node)).map(|(id, _)| id).collect()
    }

    /// The RPC graph.
    pub fn graph(&self) -> &RpcGraph {
        &self.graph
    }

    /// Cluster windows, oldest first.
    pub fn history(&self) -> &VecDeque<ClusterWindow> {
        &self.history
    }

    /// How many cluster windows were ever closed.
    pub fn closes(&self) -> u64 {
        self.closes
    }

    /// Objectives in force.
    pub fn slos(&self) -> &[Slo] {
        &self.slos
    }

    /// The objective of this name.
    pub fn slo(&self, name: &str) -> Option<&Slo> {
        self.slos.iter().find(|slo| slo.name == name)
    }

    /// The objectives last taken from a configuration file; `None` when never.
    pub fn configured_slos(&self) -> Option<&[Slo]> {
        self.configured.as_deref()
    }

    /// Incidents by number.
    pub fn incidents(&self) -> &BTreeMap<IncidentId, Incident> {
        &self.incidents
    }

    /// Incidents whose target is still missed.
    pub fn open_incidents(&self) -> impl Iterator<Item = &Incident> {
        self.incidents.values().filter(|incident| incident.is_open())
    }

    /// The number that the next incident gets.
    pub fn next_incident(&self) -> IncidentId {
        self.incidents_opened + 1
    }

    /// Labels and exhibits of incidents.
    pub fn casebook(&self) -> &Casebook {
        &self.casebook
    }

    /// Actions by number.
    pub fn actions(&self) -> &BTreeMap<ActionId, Action> {
        &self.actions
    }

    /// The number that the next action gets.
    pub fn next_action(&self) -> ActionId {
        ActionId(self.actions_requested + 1)
    }

    /// The model in use.
    pub fn model(&self) -> Option<&StoredModel> {
        self.model.as_ref()
    }

    /// Whether the brake is on.
    pub fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// What was counted.
    pub fn counters(&self) -> StateCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Fleet, Script, WINDOW, node, rules};

    /// Every window of both nodes over `count` intervals, ordered by start and node, and the state that took all but
    /// those that `is_held_back` names.
    fn built(count: u32, is_held_back: impl Fn(usize) -> bool) -> (Vec<NodeWindow>, State) {
        let mut fleet = Fleet::<Script>::new(rules());
        fleet.run(count + 1);
        let mut windows: Vec<NodeWindow> = fleet
            .log
            .iter()
            .filter_map(
                |entry| if let Proposal::Windows { windows, .. } = entry { Some(windows.clone()) } else { None },
            )
            .flatten()
            .collect();
        windows.sort_by_key(|window| (window.start, window.key.clone()));
        windows.truncate(count as usize * 2);
        let mut state = State::new(100);
        for (number, pair) in windows.chunks(2).enumerate() {
            let kept = pair.iter().enumerate().filter(|(at, _)| !is_held_back(number * 2 + at));
            apply(
                &mut state,
                &Proposal::Windows { at: fleet.now, windows: kept.map(|(_, window)| window.clone()).collect() },
            );
            apply(&mut state, &Proposal::Close { start: pair[0].start, arrived: fleet.now, at: fleet.now });
        }
        (windows, state)
    }

    fn apply(state: &mut State, proposal: &Proposal) -> Applied {
        state.apply(state.applied() + 1, proposal)
    }

    fn arrive(state: &mut State, window: &NodeWindow) -> Applied {
        apply(state, &Proposal::Windows { at: window.start + WINDOW, windows: vec![window.clone()] })
    }

    #[test]
    fn a_late_window_completes_its_interval_and_one_too_late_is_counted() {
        let (windows, mut state) = built(10, |number| number == 1 || number == 17);
        let completeness = |state: &State| -> Vec<f32> {
            state.history().iter().map(|window| window.observation.completeness).collect()
        };
        assert_eq!(completeness(&state)[8], 0.5);
        arrive(&mut state, &windows[17]);
        assert_eq!(completeness(&state)[8], 1.0);
        let before = state.history().clone();
        arrive(&mut state, &windows[1]);
        assert_eq!(state.history(), &before);
        let counters = state.counters();
        assert_eq!((counters.late_merged, counters.late_dropped), (1, 1));
        assert!(state.is_settled(&windows[1].key), "it is acknowledged all the same");
    }

    #[test]
    fn a_merged_window_gives_the_same_observation_as_one_in_time() {
        let (windows, mut late) = built(6, |number| number == 11);
        let (_, straight) = built(6, |_| false);
        arrive(&mut late, &windows[11]);
        let newest = |state: &State| state.history().back().expect("closed").observation.clone();
        assert_eq!(newest(&late).traces.len(), newest(&straight).traces.len());
        assert_eq!(newest(&late).edges, newest(&straight).edges);
    }

    #[test]
    fn a_node_that_is_late_each_time_is_in_the_graph_and_learnt_from() {
        let (windows, _) = built(5, |_| false);
        let mut state = State::new(100);
        for pair in windows.chunks(2) {
            arrive(&mut state, &pair[0]);
            let at = pair[0].start + WINDOW;
            apply(&mut state, &Proposal::Close { start: pair[0].start, arrived: at, at });
            arrive(&mut state, &pair[1]);
        }
        let geo = state.graph().service(&crate::core::testing::service("geo")).expect("it is called");
        assert!(geo.nodes.contains(&node("b")), "{geo:?}");
        assert!(state.learned.called().contains(&crate::core::testing::service("geo")));
    }

    #[test]
    fn an_agent_in_a_restart_loop_leaves_little_behind() {
        let (windows, mut state) = built(3, |_| false);
        for boot in 100..200 {
            let mut window = windows[5].clone();
            window.key.boot = BootId(boot);
            arrive(&mut state, &window);
        }
        assert_eq!(state.nodes()[&node("b")].boots.len(), BOOTS_MAX);
        assert_eq!(state.acknowledged_below(&node("b"), BootId(199)), 0);
    }

    #[test]
    fn an_older_generation_never_replaces_a_newer_one() {
        let (_, mut state) = built(2, |_| false);
        let meta = |generation| ModelMeta {
            generation: sage_common::Generation(generation),
            trained_at: Timestamp::default(),
            windows_trained: 1,
            newest_window: Timestamp::default(),
            train_seconds: 0.0,
            cards: Vec::new(),
        };
        for (generation, bytes) in [(2, vec![2]), (1, vec![1])] {
            apply(&mut state, &Proposal::Generation { meta: meta(generation), bytes });
        }
        assert_eq!(*state.model().expect("adopted").bytes, [2]);
    }

    #[test]
    fn a_clock_set_back_between_two_lives_does_not_make_everything_late() {
        let (windows, mut state) = built(4, |_| false);
        let hour = sage_common::Micros::from_secs(3_600);
        let at = windows[0].start - hour;
        apply(&mut state, &Proposal::TermStarted { term: Term(9), leader: "one".into(), at });
        let mut window = windows[0].clone();
        (window.start, window.key.seq) = (at, 900);
        arrive(&mut state, &window);
        assert_eq!(apply(&mut state, &Proposal::Close { start: at, arrived: at, at }).closed, Some(at));
    }

    #[test]
    fn the_snapshot_and_the_log_of_the_release_before_are_still_read() {
        let before = include_bytes!("../../golden/state-1.bin");
        let state = State::from_snapshot(before).expect("one layout older");
        assert_eq!((state.incidents().len(), state.actions().len(), state.history().len()), (1, 1, 6));
        assert_eq!(state.casebook(), &Casebook::default());
        let again = codec::encode_snapshot(&state).expect("state has bytes");
        assert_eq!(State::from_snapshot(&again), Ok(state));
        for length in [0, 1, 100, before.len() / 2, before.len() - 1] {
            assert!(State::from_snapshot(&before[..length]).is_err(), "cut to {length}");
        }
        let log: Vec<Proposal> = codec::decode_record(include_bytes!("../../golden/log-1.bin")).expect("appended to");
        let is_verdict =
            |entry: &&Proposal| matches!(entry, Proposal::Incident { change: IncidentChange::Diagnosed(_), .. });
        assert_eq!(log.iter().filter(is_verdict).count(), 1);
        assert_eq!(codec::encode_record(&log).expect("bytes"), include_bytes!("../../golden/log-1.bin"));
    }

    #[test]
    fn resolved_incidents_make_room_for_new_ones() {
        let (_, mut state) = built(2, |_| false);
        for id in 1..=INCIDENTS_MAX as u64 + 5 {
            let at = Timestamp::from_micros(id);
            let opened = IncidentChange::Opened {
                slo: "home".into(),
                latency: sage_common::Micros::ZERO,
                target: sage_common::Micros::ZERO,
            };
            apply(&mut state, &Proposal::Incident { id, at, change: opened });
            apply(&mut state, &Proposal::Incident { id, at, change: IncidentChange::Resolved });
        }
        assert_eq!(state.incidents().len(), INCIDENTS_MAX);
        assert_eq!(state.next_incident(), INCIDENTS_MAX as u64 + 6);
    }
}
