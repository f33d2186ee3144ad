//! What must hold: at any time, and at the end of a run.

use std::collections::{BTreeMap, BTreeSet};

use sage_aggregator::core::State;
use sage_common::{BootId, Knob, LatencySeries, NodeId, NodeWindow, SeriesKind, Timestamp, WindowKey};

use super::{
    agent::Agent,
    cluster::Cluster,
    log::{LogDisk, lock},
    machine::Machine,
};

/// What agents made and what they were told is safe: the plain model that the aggregator is compared with.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    made: BTreeMap<WindowKey, Made>,
    acknowledged: BTreeSet<WindowKey>,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    start: Timestamp,
    /// Requests that ended in it at the application's entry.
    requests: u64,
}

impl Ledger {
    pub(super) fn produce(&mut self, window: &NodeWindow) {
        let is_entry = |one: &&LatencySeries| one.kind == SeriesKind::Server && one.service.as_str() == "front";
        let of_entry = window.latencies.iter().filter(is_entry);
        let made = Made { start: window.start, requests: of_entry.map(|one| one.calls as u64).sum() };
        assert!(self.made.insert(window.key.clone(), made).is_none(), "{:?} is made twice", window.key);
    }

    pub(super) fn acknowledge(&mut self, node: &NodeId, boot: BootId, sequences: impl IntoIterator<Item = u64>) {
        let key = |seq| WindowKey { node: node.clone(), boot, seq };
        self.acknowledged.extend(sequences.into_iter().map(key));
    }

    /// How many windows were made.
    pub fn made(&self) -> usize {
        self.made.len()
    }

    /// How many windows were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Every acknowledged window is durable.
    fn check_durable(&self, disk: &LogDisk) {
        for key in &self.acknowledged {
            assert!(disk.windows.contains(key), "{key:?} is acknowledged and lost");
        }
        assert!(disk.windows.iter().all(|key| self.made.contains_key(key)), "a window that nobody made");
    }

    /// `state` counts every durable window once.
    fn check_counted(disk: &LogDisk, state: &State) {
        assert_eq!(state.counters().windows, disk.windows.len() as u64, "every durable window counts once");
        let by_node: u64 = state.nodes().values().map(|node| node.windows).sum();
        assert_eq!(by_node, disk.windows.len() as u64, "and for its own node");
    }

    /// No cluster window has a request that its node windows have not, and unless some came too late, it has them all.
    fn check_requests(&self, disk: &LogDisk, state: &State) {
        let mut requests: BTreeMap<Timestamp, u64> = BTreeMap::new();
        for key in &disk.windows {
            let Made { start, requests: own } = self.made[key];
            *requests.entry(start).or_default() += own;
        }
        for window in state.history() {
            let counted: f64 = window.observation.objectives.iter().map(|objective| objective.calls).sum();
            let start = window.observation.start;
            let made = requests.get(&start).copied().unwrap_or_default();
            let is_right =
                if state.counters().late_dropped == 0 { counted as u64 == made } else { counted as u64 <= made };
            let at = start.as_micros();
            assert!(is_right, "{counted} requests in the window at {at} us, of {made}");
        }
    }
}

impl Cluster {
    /// Every knob that is not as it was found has a durable undo record, and a lease where the agent runs.
    pub(super) fn check_knobs(&self) {
        for (agent, machine) in self.agents.iter().zip(&self.machines) {
            for knob in machine.changed() {
                assert!(
                    self.is_covered(agent, machine, &knob),
                    "{knob} on {} is nobody's:{}",
                    machine.node,
                    self.story()
                );
            }
        }
    }

    fn is_covered(&self, agent: &Agent, machine: &Machine, knob: &Knob) -> bool {
        let boot = format!("boot {}", machine.boot);
        let is_recorded = agent.undo.live.values().any(|undo| undo.knob == *knob && undo.machine_boot == boot);
        let is_leased = agent.life.as_ref().is_none_or(|life| {
            let leases: Vec<_> = life.hands.table.leases(self.now).collect();
            leases.iter().any(|lease| lease.knob == *knob)
        });
        is_recorded && is_leased
    }

    /// Every machine is as it was found, and nobody holds anything.
    pub fn assert_as_found(&self) {
        for (agent, machine) in self.agents.iter().zip(&self.machines) {
            assert!(machine.changed().is_empty(), "{} has {:?}:{}", machine.node, machine.changed(), self.story());
            assert_eq!(agent.leases(self.now), 0, "{} holds leases:{}", machine.node, self.story());
        }
    }

    /// What was acknowledged is durable, what is durable is counted once, and nothing else is counted.
    pub fn assert_each_window_counts_once(&self) {
        let disk = lock(&self.log_disk);
        self.ledger.check_durable(&disk);
        let Some(state) = self.state() else { return };
        Ledger::check_counted(&disk, state);
        if self.machines.iter().all(|machine| !machine.has_jumped()) {
            self.ledger.check_requests(&disk, state);
        }
    }

    /// What is on disk gives the state that the aggregator has in memory.
    pub fn assert_the_disk_says_the_same(&self) {
        let from_disk = self.disk().state(self.empty_state());
        let in_memory = self.state().expect("the aggregator is up");
        assert!(
            from_disk == *in_memory,
            "{} and {} entries:{}",
            from_disk.applied(),
            in_memory.applied(),
            self.story()
        );
    }
}
