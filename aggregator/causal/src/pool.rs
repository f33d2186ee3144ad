//! Which windows a diagnosis pools: calls count, not seconds. The newest violated one first, older violated ones as far as
//! the objective and the edges that carry the excess need more calls.

use std::collections::{BTreeMap, BTreeSet};

use sage_common::Slo;

use crate::{
    frame::Frame,
    graph::Graph,
    normals::Normals,
    observation::{EdgeKey, Observation},
    scene::Scene,
    skeleton::{Operation, Skeletons},
};

/// Windows pooled at most: behind a few minutes of violation the beginning is another story.
pub const WINDOWS_MAX: usize = 32;

/// Met windows in a row, going back, that end the incident.
const MET_MAX: usize = 2;

/// Calls beyond the objective's percentile that its estimate needs.
const TAIL_CALLS_MIN: f64 = 3.0;

/// Calls that an edge which carries excess needs.
const CARRIER_CALLS_MIN: f64 = 100.0;

/// Edges looked at as carriers.
const CARRIERS: usize = 3;

/// Standard deviations from which an edge carries excess.
const CARRIER_MIN_Z: f64 = 3.0;

/// The objective's latency of one observation, microseconds; `None` when it has none that is a number.
pub fn latency_us(observation: &Observation, slo: &Slo) -> Option<f64> {
    let objective = observation.objectives.iter().find(|objective| objective.slo == slo.name)?;
    (objective.latency_us.is_finite() && objective.latency_us > 0.0).then_some(objective.latency_us)
}

/// Whether the objective was broken.
pub fn is_violated(observation: &Observation, slo: &Slo) -> bool {
    latency_us(observation, slo).is_some_and(|us| us > slo.target.get() as f64)
}

/// Mean (in logs) of the objective's latency over `observations`, weighted by calls: `ln us`.
pub fn observed_log(observations: &[&Observation], slo: &Slo) -> Option<f64> {
    let weight = |o: &Observation| {
        let calls = o.objectives.iter().find(|objective| objective.slo == slo.name).map_or(0.0, |o| o.calls);
        if calls.is_finite() { calls.max(1.0) } else { 1.0 }
    };
    let logs: Vec<(f64, f64)> =
        observations.iter().filter_map(|o| Some((weight(o), latency_us(o, slo)?.ln()))).collect();
    let total: f64 = logs.iter().map(|(weight, _)| weight).sum();
    (total > 0.0).then(|| logs.iter().map(|(weight, log)| weight * log).sum::<f64>() / total)
}

/// The violated windows of the running incident, newest first.
fn incident<'a>(recent: &'a [Observation], slo: &Slo) -> Vec<&'a Observation> {
    let mut violated = Vec::new();
    let mut met = 0;
    for observation in recent.iter().rev() {
        if is_violated(observation, slo) {
            met = 0;
            violated.push(observation);
        } else if latency_us(observation, slo).is_some() {
            met += 1;
        }
        if violated.len() == WINDOWS_MAX || (met == MET_MAX && !violated.is_empty()) {
            break;
        }
    }
    violated
}

/// The windows to diagnose.
#[derive(Debug)]
pub struct Chosen<'a, 'g> {
    /// Oldest first; empty when none is violated.
    pub windows: Vec<&'a Observation>,
    /// What was made of them while choosing, when it is they, numbered by the graph that the choice was given.
    pub seen: Option<(Frame, Scene<'g>)>,
}

/// The windows to diagnose. `graph` is that of the newest observation.
pub fn choose<'a, 'g>(graph: &'g Graph, normals: &Normals, recent: &'a [Observation], slo: &Slo) -> Chosen<'a, 'g> {
    let incident = incident(recent, slo);
    let mut count = incident.len().min(1);
    let mut seen = None;
    while count < incident.len() {
        let windows = oldest_first(&incident[..count]);
        if has_tail(&windows, slo)
            && let Some(frame) = Frame::of(graph, &windows)
        {
            let scene = Scene::new(graph, normals, &frame);
            if are_carriers_counted(&scene) {
                seen = Some((frame, scene));
                break;
            }
        }
        count = (2 * count).min(incident.len());
    }
    let is_newest = count == 1 && recent.last().is_some_and(|newest| std::ptr::eq(newest, incident[0]));
    Chosen { windows: oldest_first(&incident[..count]), seen: seen.filter(|_| is_newest) }
}

fn oldest_first<'a>(newest_first: &[&'a Observation]) -> Vec<&'a Observation> {
    newest_first.iter().rev().copied().collect()
}

fn calls(observations: &[&Observation], slo: &Slo) -> f64 {
    let objectives = observations.iter().flat_map(|o| &o.objectives).filter(|objective| objective.slo == slo.name);
    objectives.map(|objective| objective.calls).filter(|calls| calls.is_finite()).sum()
}

fn has_tail(observations: &[&Observation], slo: &Slo) -> bool {
    calls(observations, slo) * (1.0 - slo.percentile / 100.0) >= TAIL_CALLS_MIN
}

/// Whether `observations` have calls enough to say that somebody has nothing to do with it, if not who has.
pub fn can_confirm(observations: &[&Observation], slo: &Slo) -> bool {
    calls(observations, slo) >= CARRIER_CALLS_MIN
}

fn are_carriers_counted(scene: &Scene<'_>) -> bool {
    let mut carriers: Vec<(f64, f64)> = scene
        .edges
        .iter()
        .flat_map(|edge| [edge.own, edge.gap].into_iter().flatten().map(move |part| (part, edge.seen.calls)))
        .filter(|(part, _)| part.is_learnt && part.shift_z() > CARRIER_MIN_Z)
        .map(|(part, calls)| (part.excess_us(), calls))
        .collect();
    carriers.sort_by(|a, b| b.0.total_cmp(&a.0));
    carriers.iter().take(CARRIERS).all(|(_, calls)| *calls >= CARRIER_CALLS_MIN)
}

/// The graph of learnt edges and of those in `observations`, nested as the structures and the traces say.
pub fn graph(learnt: &BTreeSet<EdgeKey>, skeletons: &Skeletons, observations: &[&Observation]) -> Graph {
    let mut edges = learnt.clone();
    for edge in observations.iter().flat_map(|o| &o.edges) {
        if !edges.contains(&edge.key) {
            edges.insert(edge.key.clone());
        }
    }
    let mut calls = skeletons.children();
    add_traced(&edges, observations, &mut calls);
    Graph::new(&edges, &calls)
}

/// Adds the calls that sampled traces made, so that every traced child is nested in its parent.
fn add_traced(
    edges: &BTreeSet<EdgeKey>,
    observations: &[&Observation],
    calls: &mut BTreeMap<Operation, BTreeSet<EdgeKey>>,
) {
    let numbered: Vec<&EdgeKey> = edges.iter().collect();
    let mut pairs = BTreeSet::new();
    for trace in observations.iter().flat_map(|o| &o.traces) {
        let numbers: Vec<Option<usize>> =
            trace.calls.iter().map(|call| numbered.binary_search(&&call.edge).ok()).collect();
        for (call, child) in trace.calls.iter().zip(&numbers) {
            let parent = call.parent.and_then(|parent| *numbers.get(parent as usize)?);
            if let (Some(parent), Some(child)) = (parent, child) {
                pairs.insert((parent, *child));
            }
        }
    }
    for (parent, child) in pairs {
        let operation = (numbered[parent].callee.clone(), numbered[parent].operation.clone());
        calls.entry(operation).or_default().insert(numbered[child].clone());
    }
}
