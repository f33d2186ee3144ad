//! Cases: what happened, what a system may see of it, and what it must not: the truth.

use std::collections::BTreeSet;

use sage_causal::{observation::Observation, verdict::Resource};
use sage_common::{InstanceId, ServiceId, Slo};

use super::system::Label;

/// A but-for world whose latency is this close to the target counts as met and as broken: both readings are accepted.
pub const BORDERLINE: f64 = 0.05;

/// Injected faults a case may have: the subsets of them are re-run one by one.
pub const FAULTS_MAX: usize = 4;

/// A set of services.
pub type Set = BTreeSet<ServiceId>;

/// One fault injected on purpose.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// Where.
    pub service: ServiceId,
    /// What of it.
    pub resource: Resource,
    /// Its kind, for slices.
    pub kind: String,
    /// The replica that it struck; `None` when it struck all.
    pub instance: Option<InstanceId>,
}

/// What the right answer is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expected {
    /// One of the acceptable sets.
    Culprits,
    /// Demand: load alone broke the target.
    Demand,
    /// The target is met, whatever was injected.
    Nothing,
    /// The fault is gone and its backlog drains: nobody is at fault any more, and whoever was may still be named.
    Recovery,
}

/// What really happened.
#[derive(Clone, Debug)]
pub struct Truth {
    /// Everything injected to break the target; decoys and mild disturbances are not among it.
    pub injected: Vec<Injected>,
    /// Smallest sets of services whose repair alone restores the target.
    pub acceptable: Vec<Set>,
    /// What the right answer is.
    pub expected: Expected,
    /// Observed latency over the target.
    pub severity: f64,
    /// Latency of the objective, microseconds, had these services' faults not been; the world as it was is not among them.
    pub worlds: Vec<(Set, f64)>,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its number in its source.
    pub number: u64,
    /// What the systems see: windows up to the violation, oldest first.
    pub recent: Vec<Observation>,
    /// What they do not.
    pub truth: Truth,
}

/// What the systems learn from.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Windows, oldest first; a part of them under unlabelled faults.
    pub windows: Vec<Observation>,
    /// Which: for supervised systems alone.
    pub labels: Vec<Label>,
}

/// One application under one seed.
pub trait CaseSource: Send + Sync {
    /// The application's name in results.
    fn app(&self) -> &str;
    /// The target.
    fn slo(&self) -> Slo;
    /// `windows` windows to learn from.
    fn history(&self, windows: usize) -> History;
    /// Case number `number`; the same number gives the same case. `None` when it could not be made to break the target.
    fn case(&self, number: u64) -> Option<Case>;
}

/// The smallest sets of `worlds` (services repaired, latency) that meet `target_us`, with both readings of borderline ones.
/// The set of everybody stands in when none meets it.
pub fn acceptable(worlds: &[(Set, f64)], target_us: f64) -> Vec<Set> {
    let meets = |share: f64| -> Vec<&Set> {
        worlds.iter().filter(|(_, latency)| *latency <= target_us * share).map(|(set, _)| set).collect()
    };
    let smallest = |sets: Vec<&Set>| -> Vec<Set> {
        let is_smallest = |set: &&Set| !sets.iter().any(|other| other.len() < set.len() && other.is_subset(set));
        sets.iter().copied().filter(is_smallest).cloned().collect()
    };
    let mut found: Vec<Set> = Vec::new();
    for reading in [1.0 - BORDERLINE, 1.0, 1.0 + BORDERLINE] {
        for set in smallest(meets(reading)) {
            if !set.is_empty() && !found.contains(&set) {
                found.push(set);
            }
        }
    }
    if found.is_empty() {
        found.extend(worlds.iter().map(|(set, _)| set).max_by_key(|set| set.len()).cloned());
    }
    found
}

/// Every subset of `items`, the empty one first; as many as two to the power of their number.
pub fn subsets<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    let items = &items[..items.len().min(FAULTS_MAX)];
    let pick = |mask: usize| items.iter().enumerate().filter(move |(i, _)| mask >> i & 1 == 1).map(|(_, t)| t.clone());
    (0..1_usize << items.len()).map(|mask| pick(mask).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> Set {
        names.iter().map(|name| ServiceId::sanitized(name)).collect()
    }

    #[test]
    fn the_smallest_restoring_sets_are_acceptable() {
        let worlds = [(set(&["a"]), 50.0), (set(&["b"]), 200.0), (set(&["a", "b"]), 40.0)];
        assert_eq!(acceptable(&worlds, 100.0), [set(&["a"])]);
        let both = [(set(&["a"]), 150.0), (set(&["b"]), 200.0), (set(&["a", "b"]), 40.0)];
        assert_eq!(acceptable(&both, 100.0), [set(&["a", "b"])]);
        let either = [(set(&["a"]), 50.0), (set(&["b"]), 60.0), (set(&["a", "b"]), 40.0)];
        assert_eq!(acceptable(&either, 100.0), [set(&["a"]), set(&["b"])]);
    }

    #[test]
    fn a_borderline_world_is_read_both_ways() {
        let worlds = [(set(&["a"]), 98.0), (set(&["b"]), 200.0), (set(&["a", "b"]), 40.0)];
        assert_eq!(acceptable(&worlds, 100.0), [set(&["a", "b"]), set(&["a"])]);
    }

    #[test]
    fn where_nothing_restores_the_target_everybody_is_needed() {
        let worlds = [(set(&["a"]), 300.0), (set(&["a", "b"]), 200.0)];
        assert_eq!(acceptable(&worlds, 100.0), [set(&["a", "b"])]);
    }

    #[test]
    fn subsets_are_all_and_each_once() {
        assert_eq!(subsets(&[1, 2]), [vec![], vec![1], vec![2], vec![1, 2]]);
    }
}
