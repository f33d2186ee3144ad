//! What an operator configured, as the core needs it.

use sage_common::Micros;

/// The numbers behind the leader's decisions.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Length of one window; agents must use the same.
    pub window: Micros,
    /// How long the first node's window of an interval waits for the others.
    pub lateness: Micros,
    /// Healthy windows before the first training.
    pub windows_min: usize,
    /// Cluster windows kept.
    pub windows_max: usize,
    /// Closed windows between two trainings of everything; what changed is learnt as it changes.
    pub retrain_every_windows: u64,
    /// Healthy windows that a service must keep to another level before that is learnt as its normal.
    pub settled_windows: usize,
    /// Violated windows in a row that open an incident, and met ones that resolve it.
    pub violated_windows: u32,
    /// Calls in a window below which its percentile says nothing.
    pub calls_min: f64,
    /// Whether to act at all, or only to recommend.
    pub is_auto: bool,
    /// How long an agent keeps a setting without renewal.
    pub lease: Micros,
    /// Complete windows after which an action is judged.
    pub verify_windows: u32,
    /// Windows a helpful action is kept after the target is met again, before it is given back to probe.
    pub hold_windows: u32,
    /// Most actions that the whole fleet starts within an hour (the agents' policies bound each node as well).
    pub actions_per_hour: usize,
    /// Share of the live nodes that may hold an action which has not yet shown that it helps; at least one node may.
    pub blast_radius: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            window: Micros::from_secs(10),
            lateness: Micros::from_secs(2),
            windows_min: 60,
            windows_max: 2_000,
            retrain_every_windows: 720,
            settled_windows: 60,
            violated_windows: 2,
            calls_min: 50.0,
            is_auto: true,
            lease: Micros::from_secs(60),
            verify_windows: 2,
            hold_windows: 6,
            actions_per_hour: 60,
            blast_radius: 0.25,
        }
    }
}
