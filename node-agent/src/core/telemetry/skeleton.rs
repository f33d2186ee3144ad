//! Skeletons: how server operations arrange their synchronous calls.
//!
//! Calls sorted by start: one that starts after the running group has ended opens the next serial group; any other runs
//! beside something. Beside what? It continues the branch that ended latest before its start, else it is a new branch.

use std::collections::BTreeMap;

use sage_common::{CallShape, Skeleton};

use super::{
    intervals::Interval,
    registry::{CallId, Registry},
};

/// Arrangements kept per operation, the most frequent first: the model draws from them, and rarer ones add nothing.
pub const SIGNATURES_MAX: usize = 40;

/// Arrangements of a whole window, the most frequent first.
pub const SKELETONS_MAX: usize = 1_000;

/// A span with more synchronous calls than this has no skeleton: it would cost more on the wire than it tells.
const CALLS_MAX: usize = 128;

/// Serial groups of parallel branches of serial calls.
type Signature = Vec<Vec<Vec<CallId>>>;

/// The arrangements of one window.
#[derive(Debug, Default)]
pub(super) struct Skeletons(BTreeMap<CallId, BTreeMap<Signature, u32>>);

impl Skeletons {
    /// Adds one server span of `call` with its synchronous calls, sorted by start. Tells whether the arrangement is new.
    pub fn add(&mut self, call: CallId, children: &[(CallId, Interval)]) -> bool {
        if children.len() > CALLS_MAX {
            return false;
        }
        let count = self.0.entry(call).or_default().entry(signature(children)).or_default();
        *count += 1;
        *count == 1
    }

    /// The most frequent arrangements of every operation, ordered by name, then frequency.
    pub fn finish(self, registry: &Registry) -> Vec<Skeleton> {
        let mut all = Vec::new();
        for (call, signatures) in self.0 {
            let Some(server) = registry.get(call) else { continue };
            let mut ranked: Vec<(Signature, u32)> = signatures.into_iter().collect();
            ranked.sort_by_key(|(_, count)| std::cmp::Reverse(*count)); // stable: ties keep the order of the map
            all.extend(ranked.into_iter().take(SIGNATURES_MAX).map(|(signature, count)| Skeleton {
                service: server.service.clone(),
                operation: server.name.operation.clone(),
                groups: shapes(&signature, registry),
                count,
            }));
        }
        all.sort_by_key(|skeleton: &Skeleton| std::cmp::Reverse(skeleton.count));
        all.truncate(SKELETONS_MAX);
        all.sort_by(|a, b| (&a.service, &a.operation).cmp(&(&b.service, &b.operation)));
        all
    }
}

fn signature(children: &[(CallId, Interval)]) -> Signature {
    let mut groups: Signature = Vec::new();
    let mut ends = Vec::new(); // end of each branch of the running group
    for (call, interval) in children {
        let is_over = ends.iter().all(|end| *end <= interval.start);
        if is_over {
            groups.push(Vec::new());
            ends.clear();
        }
        let Some(group) = groups.last_mut() else { continue };
        let before =
            (0..ends.len()).filter(|branch| ends[*branch] <= interval.start).max_by_key(|branch| ends[*branch]);
        if let Some(branch) = before {
            group[branch].push(*call);
            ends[branch] = interval.end;
        } else {
            group.push(vec![*call]);
            ends.push(interval.end);
        }
    }
    for group in &mut groups {
        group.sort(); // branches run at the same time: their order means nothing
    }
    groups
}

fn shapes(signature: &Signature, registry: &Registry) -> Vec<Vec<Vec<CallShape>>> {
    let shape = |call: &CallId| {
        registry
            .get(*call)
            .map(|call| CallShape { operation: call.name.operation.clone(), peer: call.name.peer.clone() })
    };
    let branch = |calls: &Vec<CallId>| calls.iter().filter_map(shape).collect();
    signature.iter().map(|group| group.iter().map(branch).collect()).collect()
}

#[cfg(test)]
mod tests {
    use sage_common::{OperationId, Side, Span, Timestamp};

    use super::super::fixture::span;
    use super::*;

    fn calls(registry: &mut Registry, names: &[&str]) -> Vec<CallId> {
        let client =
            |name: &&str| Span { side: Side::Client, operation: OperationId::sanitized(name), ..span(1, 1, 0) };
        names.iter().map(|name| registry.find(&client(name), 0).expect("room").call).collect()
    }

    fn arrange(times: &[(u64, u64)]) -> Vec<Vec<Vec<String>>> {
        let mut registry = Registry::new(100);
        let names = ["a", "b", "c", "d", "e"];
        let ids = calls(&mut registry, &names);
        let interval =
            |(start, end)| Interval { start: Timestamp::from_micros(start), end: Timestamp::from_micros(end) };
        let children: Vec<_> = ids.into_iter().zip(times.iter().copied().map(interval)).collect();
        shapes(&signature(&children), &registry)
            .into_iter()
            .map(|group| group.into_iter().map(|b| b.into_iter().map(|c| c.operation.to_string()).collect()).collect())
            .collect()
    }

    #[test]
    fn calls_one_after_the_other_are_serial_groups() {
        assert_eq!(arrange(&[(0, 10), (10, 20), (25, 30)]), [[["a"]], [["b"]], [["c"]]]);
    }

    #[test]
    fn calls_at_the_same_time_are_branches_of_one_group() {
        assert_eq!(arrange(&[(0, 10), (1, 20), (5, 8)]), [[["a"], ["b"], ["c"]]]);
    }

    #[test]
    fn a_call_after_another_inside_a_group_continues_its_branch() {
        // a runs throughout; b, then c after b; d after everything.
        assert_eq!(
            arrange(&[(0, 100), (5, 20), (30, 40), (120, 130)]),
            vec![vec![vec!["a"], vec!["b", "c"]], vec![vec!["d"]]]
        );
    }

    #[test]
    fn the_branch_that_ended_latest_is_continued() {
        assert_eq!(arrange(&[(0, 100), (1, 20), (2, 30), (40, 50)]), vec![vec![vec!["a"], vec!["b"], vec!["c", "d"]]]);
    }

    #[test]
    fn only_the_most_frequent_arrangements_are_kept() {
        let mut registry = Registry::new(1000);
        let names: Vec<String> = (0..60).map(|n| format!("op{n:02}")).collect();
        let ids = calls(&mut registry, &names.iter().map(String::as_str).collect::<Vec<_>>());
        let server = registry.find(&span(1, 1, 0), 0).expect("room").call;
        let at = Interval { start: Timestamp::from_micros(0), end: Timestamp::from_micros(1) };
        let mut skeletons = Skeletons::default();
        for (n, id) in ids.iter().enumerate() {
            for _ in 0..=n {
                skeletons.add(server, &[(*id, at)]);
            }
        }
        let kept = skeletons.finish(&registry);
        assert_eq!(kept.len(), SIGNATURES_MAX);
        assert_eq!((kept[0].count, kept[39].count), (60, 21));
    }
}
