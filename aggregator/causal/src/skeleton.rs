//! Call structures: how an operation arranges its synchronous calls, and how often it does so which way.
//!
//! Learnt from the skeletons that agents sampled, else from whole traces, by the same rule: children in order of their
//! start; one that starts after the running group ended opens a serial step; one that starts before joins the branch that
//! ended last before it, else runs beside the others.

use std::collections::{BTreeMap, BTreeSet};

use sage_common::{OperationId, ServiceId};
use serde::{Deserialize, Serialize};

use crate::observation::{EdgeKey, Observation, Trace};

/// Structures kept per operation; the rest are rarer than one call in hundreds and fall to the kept ones.
const SHAPES_MAX: usize = 40;

/// Serial groups of parallel branches of serial calls.
pub type Groups<T> = Vec<Vec<Vec<T>>>;

/// A server operation.
pub type Operation = (ServiceId, OperationId);

/// One structure and its weight.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Shape {
    /// The calls.
    pub groups: Groups<EdgeKey>,
    /// How many server spans looked like this.
    pub count: f64,
}

/// The structures of every operation seen.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(from = "Vec<(Operation, Vec<Shape>)>", into = "Vec<(Operation, Vec<Shape>)>")]
pub struct Skeletons(BTreeMap<Operation, Vec<Shape>>);

impl Skeletons {
    /// Adds up the structures of `history`.
    pub fn learn<'a>(history: impl IntoIterator<Item = &'a Observation>) -> Self {
        let mut counts: BTreeMap<Operation, BTreeMap<Groups<EdgeKey>, f64>> = BTreeMap::new();
        let mut add = |operation: Operation, groups: Groups<EdgeKey>, count: f64| {
            *counts.entry(operation).or_default().entry(groups).or_default() += count;
        };
        for observation in history {
            for skeleton in &observation.skeletons {
                let operation = (skeleton.service.clone(), skeleton.operation.clone());
                add(operation, skeleton.groups.clone(), f64::from(skeleton.count));
            }
            if observation.skeletons.is_empty() {
                observation.traces.iter().for_each(|trace| shapes_of(trace, &mut add));
            }
        }
        Self(counts.into_iter().map(|(operation, shapes)| (operation, most_frequent(shapes))).collect())
    }

    /// Takes the structures of the operations of `services` from `newer`.
    pub fn replace(&mut self, newer: Self, services: &BTreeSet<ServiceId>) {
        self.0.retain(|(service, _), _| !services.contains(service));
        self.0.extend(newer.0.into_iter().filter(|((service, _), _)| services.contains(service)));
    }

    /// The structures of `operation`, most frequent first; `None` when it was never sampled.
    pub fn of(&self, operation: &Operation) -> Option<&[Shape]> {
        self.0.get(operation).map(Vec::as_slice)
    }

    /// Every edge that each operation may travel.
    pub fn children(&self) -> BTreeMap<Operation, BTreeSet<EdgeKey>> {
        let edges =
            |shapes: &Vec<Shape>| shapes.iter().flat_map(|s| s.groups.iter().flatten().flatten().cloned()).collect();
        self.0.iter().map(|(operation, shapes)| (operation.clone(), edges(shapes))).collect()
    }
}

impl From<Vec<(Operation, Vec<Shape>)>> for Skeletons {
    fn from(entries: Vec<(Operation, Vec<Shape>)>) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl From<Skeletons> for Vec<(Operation, Vec<Shape>)> {
    fn from(skeletons: Skeletons) -> Self {
        skeletons.0.into_iter().collect()
    }
}

/// One timed call inside its parent: what it is, when it started, how long it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timed<T> {
    /// What it is.
    pub item: T,
    /// Start after the start of the parent.
    pub start: f64,
    /// Its length as the parent saw it.
    pub length: f64,
}

/// Arranges calls into groups and branches.
pub fn arrange<T>(mut calls: Vec<Timed<T>>) -> Groups<Timed<T>> {
    calls.sort_by(|a, b| a.start.total_cmp(&b.start));
    let mut groups: Groups<Timed<T>> = Vec::new();
    let mut group_end = f64::NEG_INFINITY;
    for call in calls {
        let end = call.start + call.length;
        match groups.last_mut().filter(|_| call.start < group_end) {
            None => {
                groups.push(vec![vec![call]]);
                group_end = end;
            }
            Some(group) => {
                group_end = group_end.max(end);
                join(group, call);
            }
        }
    }
    groups
}

/// Adds `call` to the branch of `group` that ended last before it, or as a branch of its own.
fn join<T>(group: &mut Vec<Vec<Timed<T>>>, call: Timed<T>) {
    let end_of = |branch: &Vec<Timed<T>>| branch.last().map_or(0.0, |last| last.start + last.length);
    let free = group.iter_mut().filter(|branch| end_of(branch) <= call.start);
    match free.max_by(|a, b| end_of(a).total_cmp(&end_of(b))) {
        Some(branch) => branch.push(call),
        None => group.push(vec![call]),
    }
}

/// The structure of every server span of one trace.
fn shapes_of(trace: &Trace, add: &mut impl FnMut(Operation, Groups<EdgeKey>, f64)) {
    let mut children: Vec<Vec<Timed<&EdgeKey>>> = vec![Vec::new(); trace.calls.len()];
    for (index, call) in trace.calls.iter().enumerate() {
        let parent = call.parent.map(|parent| parent as usize).filter(|parent| *parent < index);
        if let (Some(parent), Some(client), true) = (parent, call.client_us, call.is_sync) {
            children[parent].push(Timed { item: &call.edge, start: call.offset_us.into(), length: client.into() });
        }
    }
    for (call, calls) in trace.calls.iter().zip(children) {
        if call.server_us.is_some() {
            let groups = arrange(calls);
            let names = groups.iter().map(|g| g.iter().map(|b| b.iter().map(|c| c.item.clone()).collect()).collect());
            add((call.edge.callee.clone(), call.edge.operation.clone()), names.collect(), 1.0);
        }
    }
}

/// The most frequent structures, their order fixed by count and then by content.
fn most_frequent(shapes: BTreeMap<Groups<EdgeKey>, f64>) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = shapes.into_iter().map(|(groups, count)| Shape { groups, count }).collect();
    shapes.sort_by(|a, b| b.count.total_cmp(&a.count)); // stable: ties stay in order of content
    shapes.truncate(SHAPES_MAX);
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(calls: &[(char, f64, f64)]) -> String {
        let timed = calls.iter().map(|(item, start, length)| Timed { item: *item, start: *start, length: *length });
        let groups = arrange(timed.collect());
        let branch = |b: &Vec<Timed<char>>| b.iter().map(|c| c.item).collect::<String>();
        let group = |g: &Vec<Vec<Timed<char>>>| g.iter().map(branch).collect::<Vec<_>>().join("|");
        groups.iter().map(group).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn calls_one_after_the_other_are_serial_groups() {
        assert_eq!(shape(&[('b', 10.0, 5.0), ('a', 0.0, 10.0)]), "a b");
    }

    #[test]
    fn overlapping_calls_are_branches_of_one_group() {
        assert_eq!(shape(&[('a', 0.0, 10.0), ('b', 1.0, 20.0), ('c', 30.0, 1.0)]), "a|b c");
    }

    #[test]
    fn a_call_that_starts_inside_a_group_joins_the_branch_that_ended_last_before_it() {
        assert_eq!(shape(&[('a', 0.0, 5.0), ('b', 0.0, 7.0), ('c', 0.0, 30.0), ('d', 8.0, 3.0)]), "a|bd|c");
    }
}
