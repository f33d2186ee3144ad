//! Whom a client span calls, learnt from joined traces, so that what was not sampled resolves to edges too.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::observation::EdgeKey;
use sage_common::{OperationId, PeerHint, ServiceId};
use serde::{Deserialize, Serialize};

/// Weight kept from one window to the next: half of it is gone after 34 windows, so a move shows within minutes.
const KEEP: f64 = 0.98;
/// Windows after which a relation that was not seen again is forgotten: two hours of ten-second windows.
pub const FORGET_WINDOWS: u64 = 720;
/// Calls remembered; each agent's cardinality guard allows 2,000 series, so this is a large fleet.
pub const NAMES_MAX: usize = 16_384;
/// Different callees of one client operation; more means that the name says nothing.
const TARGETS_MAX: usize = 16;

/// A call as the caller names it.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct CallName {
    /// Who calls.
    pub caller: ServiceId,
    /// The client span's operation.
    pub operation: OperationId,
    /// The client span's peer hint.
    pub peer: Option<PeerHint>,
}

/// A call as the callee names it.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Target {
    /// Who is called.
    pub callee: ServiceId,
    /// Its operation.
    pub operation: OperationId,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
struct Seen {
    weight: f64,
    at: u64,
}

impl Seen {
    fn add(&mut self, count: f64, close: u64) {
        self.weight = self.weight_at(close) + count;
        self.at = close;
    }

    fn weight_at(self, close: u64) -> f64 {
        self.weight * KEEP.powi(i32::try_from(close.saturating_sub(self.at)).unwrap_or(i32::MAX))
    }
}

/// Everything learnt from joined traces.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Learned {
    calls: BTreeMap<CallName, BTreeMap<Target, Seen>>,
    peers: BTreeMap<PeerHint, BTreeMap<ServiceId, Seen>>,
    called: BTreeMap<ServiceId, u64>,
}

impl Learned {
    /// Counts `count` joined calls in the window numbered `close`.
    pub fn learn(&mut self, name: &CallName, target: &Target, count: u32, close: u64) {
        let count = f64::from(count);
        self.called.insert(target.callee.clone(), close);
        if let Some(peer) = &name.peer {
            bounded(self.peers.entry(peer.clone()).or_default(), &target.callee).add(count, close);
        }
        bounded(self.calls.entry(name.clone()).or_default(), target).add(count, close);
    }

    /// Forgets what has not been seen for [`FORGET_WINDOWS`], and the longest unseen above the bounds.
    pub fn age(&mut self, close: u64) {
        let is_fresh = |at: u64| at.saturating_add(FORGET_WINDOWS) >= close;
        prune(&mut self.calls, is_fresh);
        prune(&mut self.peers, is_fresh);
        self.called.retain(|_, at| is_fresh(*at));
        bound(&mut self.calls);
        bound(&mut self.peers);
    }

    /// Services that somebody in the fleet has been seen to call.
    pub fn called(&self) -> BTreeSet<ServiceId> {
        self.called.keys().cloned().collect()
    }

    /// The edges that `name` travels, with the share of its calls on each, largest first. Falls back to the peer hint;
    /// empty when nothing tells whom it calls.
    pub fn resolve(&self, name: &CallName, close: u64) -> Vec<(EdgeKey, f64)> {
        let edge = |target: &Target| EdgeKey {
            caller: Some(name.caller.clone()),
            callee: target.callee.clone(),
            operation: target.operation.clone(),
        };
        if let Some(targets) = self.calls.get(name) {
            return shares(targets, close).into_iter().map(|(target, share)| (edge(target), share)).collect();
        }
        let Some(peer) = &name.peer else { return Vec::new() };
        let learnt = self.peers.get(peer).and_then(|callees| shares(callees, close).first().map(|(id, _)| *id));
        let (PeerHint::Service(hinted) | PeerHint::Address(hinted)) = peer;
        let callee = learnt.unwrap_or(hinted).clone();
        vec![(edge(&Target { callee, operation: name.operation.clone() }), 1.0)]
    }
}

/// The entry of `key`, in place of the lightest one when the map is full.
fn bounded<'a, K: Clone + Ord>(map: &'a mut BTreeMap<K, Seen>, key: &K) -> &'a mut Seen {
    if map.len() >= TARGETS_MAX && !map.contains_key(key) {
        let lightest = map.iter().min_by(|a, b| a.1.weight.total_cmp(&b.1.weight)).map(|(key, _)| key.clone());
        if let Some(lightest) = lightest {
            map.remove(&lightest);
        }
    }
    map.entry(key.clone()).or_default()
}

fn shares<K: Ord>(map: &BTreeMap<K, Seen>, close: u64) -> Vec<(&K, f64)> {
    let total: f64 = map.values().map(|seen| seen.weight_at(close)).sum();
    if total <= 0.0 {
        // Everything has faded to nothing: the newest is as good as any.
        return map.iter().max_by_key(|(_, seen)| seen.at).map(|(key, _)| vec![(key, 1.0)]).unwrap_or_default();
    }
    let mut list: Vec<(&K, f64)> = map.iter().map(|(key, seen)| (key, seen.weight_at(close) / total)).collect();
    list.sort_by(|a, b| b.1.total_cmp(&a.1));
    list
}

fn prune<K: Ord, T: Ord>(map: &mut BTreeMap<K, BTreeMap<T, Seen>>, is_fresh: impl Fn(u64) -> bool) {
    map.retain(|_, targets| {
        targets.retain(|_, seen| is_fresh(seen.at));
        !targets.is_empty()
    });
}

fn bound<K: Clone + Ord, T: Ord>(map: &mut BTreeMap<K, BTreeMap<T, Seen>>) {
    let Some(excess) = map.len().checked_sub(NAMES_MAX).filter(|excess| *excess > 0) else { return };
    let newest = |targets: &BTreeMap<T, Seen>| targets.values().map(|seen| seen.at).max().unwrap_or(0);
    let mut order: Vec<(u64, K)> = map.iter().map(|(key, targets)| (newest(targets), key.clone())).collect();
    order.sort();
    for (_, key) in order.into_iter().take(excess) {
        map.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(peer: Option<&str>) -> CallName {
        CallName {
            caller: ServiceId::sanitized("front"),
            operation: OperationId::sanitized("GET"),
            peer: peer.map(|peer| PeerHint::Address(ServiceId::sanitized(peer))),
        }
    }

    fn target(callee: &str, operation: &str) -> Target {
        Target { callee: ServiceId::sanitized(callee), operation: OperationId::sanitized(operation) }
    }

    #[test]
    fn a_client_operation_splits_over_its_callees_by_what_was_seen() {
        let mut learned = Learned::default();
        learned.learn(&name(Some("10.0.0.1")), &target("geo", "near"), 30, 1);
        learned.learn(&name(Some("10.0.0.1")), &target("geo", "far"), 10, 1);
        let edges = learned.resolve(&name(Some("10.0.0.1")), 1);
        assert_eq!(edges.len(), 2);
        assert_eq!((edges[0].0.operation.as_str(), edges[0].1), ("near", 0.75));
    }

    #[test]
    fn an_unseen_operation_goes_where_its_address_went_before() {
        let mut learned = Learned::default();
        learned.learn(&name(Some("10.0.0.1")), &target("geo", "near"), 1, 1);
        let other = CallName { operation: OperationId::sanitized("POST"), ..name(Some("10.0.0.1")) };
        assert_eq!(learned.resolve(&other, 1)[0].0.callee.as_str(), "geo");
        assert_eq!(learned.resolve(&name(Some("redis")), 1)[0].0.callee.as_str(), "redis");
        assert!(learned.resolve(&name(None), 1).is_empty());
    }

    #[test]
    fn a_moved_callee_takes_over_and_the_old_one_is_forgotten() {
        let mut learned = Learned::default();
        learned.learn(&name(None), &target("old", "x"), 1_000, 1);
        for close in 2..400 {
            learned.learn(&name(None), &target("new", "x"), 10, close);
        }
        assert_eq!(learned.resolve(&name(None), 400)[0].0.callee.as_str(), "new");
        learned.age(2 + FORGET_WINDOWS);
        assert_eq!(learned.resolve(&name(None), 400).len(), 1);
        learned.age(400 + FORGET_WINDOWS);
        assert!(learned.resolve(&name(None), 400).is_empty());
    }

    #[test]
    fn memory_is_bounded_by_forgetting_the_longest_unseen() {
        let mut learned = Learned::default();
        for number in 0..NAMES_MAX as u64 + 10 {
            let name = CallName { operation: OperationId::sanitized(&format!("op{number}")), ..name(None) };
            learned.learn(&name, &target("geo", "near"), 1, number / 100);
        }
        learned.age(NAMES_MAX as u64 / 100);
        assert_eq!(learned.calls.len(), NAMES_MAX);
        let first = CallName { operation: OperationId::sanitized("op0"), ..name(None) };
        assert!(learned.resolve(&first, 0).is_empty());
    }
}
