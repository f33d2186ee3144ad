//! Scores left-out healthy stretches as if they were incidents: the nulls of every score.

use std::collections::{BTreeMap, BTreeSet};

use sage_common::{MetricGroup, ServiceId, Slo, Timestamp};

use crate::{
    engine,
    frame::Frame,
    graph::Graph,
    normals::Normals,
    null::{GroupNull, Null, upper},
    observation::{EdgeKey, Observation},
    pool,
    resource::group_score,
    scene::{Scene, UsageScore, scores},
    skeleton::Skeletons,
};

/// Numbers of pooled windows that are scored.
const LENGTHS: [usize; 4] = [1, 2, 4, 8];

/// Stretches of one length per fold: a dozen over four folds.
const STRETCHES_MAX: usize = 3;

/// Services scored per stretch, those with the largest own excess.
const SERVICES_MAX: usize = 32;

/// What is left out, and the normals learnt without it.
pub struct Fold<'a> {
    /// Normals of everything but `windows`.
    pub normals: Normals,
    /// The left-out windows, oldest first.
    pub windows: Vec<&'a Observation>,
}

/// Start of the present normal of services that changed: what they did before says nothing about them.
pub type Since = BTreeMap<ServiceId, Timestamp>;

/// The null of one objective.
pub fn null(edges: &BTreeSet<EdgeKey>, skeletons: &Skeletons, folds: &[Fold<'_>], slo: &Slo, since: &Since) -> Null {
    let mut null = Null::default();
    for fold in folds {
        for length in LENGTHS {
            for stretch in stretches(&fold.windows, length) {
                score(&mut null, edges, skeletons, &fold.normals, stretch, slo, since);
            }
        }
    }
    null
}

/// The null of the resource groups.
pub fn group_null(edges: &BTreeSet<EdgeKey>, skeletons: &Skeletons, folds: &[Fold<'_>]) -> GroupNull {
    let mut scores = GroupScores::new();
    for fold in folds {
        for window in fold.windows.iter().step_by(fold.windows.len().div_ceil(LENGTHS.len() * STRETCHES_MAX)) {
            let graph = pool::graph(edges, skeletons, &[]);
            let Some(frame) = Frame::of(&graph, &[window]) else { continue };
            let scene = Scene::new(&graph, &fold.normals, &frame);
            for (service, seen) in graph.services().iter().zip(&scene.services) {
                add_groups(&mut scores, service, &seen.usage);
            }
        }
    }
    let mut null = GroupNull::default();
    add_upper(&mut null, &scores);
    null
}

/// The scores of every group of a service, one a window.
type GroupScores = BTreeMap<(ServiceId, MetricGroup), Vec<f64>>;

fn add_upper(null: &mut GroupNull, scores: &GroupScores) {
    scores.iter().for_each(|((service, group), scores)| null.add(service, *group, upper(scores)));
}

fn add_groups(scores: &mut GroupScores, service: &ServiceId, usage: &[UsageScore]) {
    const GROUPS: [MetricGroup; 4] = [MetricGroup::Cpu, MetricGroup::Memory, MetricGroup::Disk, MetricGroup::Network];
    for group in GROUPS {
        if let Some(score) = group_score(usage, group).filter(|score| score.is_finite()) {
            scores.entry((service.clone(), group)).or_default().push(score);
        }
    }
}

/// At most [`STRETCHES_MAX`] stretches of `length` windows, evenly placed and not overlapping.
fn stretches<'a, 'b>(windows: &'b [&'a Observation], length: usize) -> impl Iterator<Item = &'b [&'a Observation]> {
    let count = windows.len() / length;
    let step = count.div_ceil(STRETCHES_MAX).max(1);
    windows.chunks_exact(length).step_by(step)
}

fn score(
    null: &mut Null,
    edges: &BTreeSet<EdgeKey>,
    skeletons: &Skeletons,
    normals: &Normals,
    stretch: &[&Observation],
    slo: &Slo,
    since: &Since,
) {
    let graph = pool::graph(edges, skeletons, stretch);
    let (Some(frame), Some(observed)) = (Frame::of(&graph, stretch), pool::observed_log(stretch, slo)) else { return };
    let scene = Scene::new(&graph, normals, &frame);
    let mut engine = engine::choose(&scene, skeletons, stretch, slo, observed);
    let mut excesses: Vec<(usize, f64)> =
        (0..graph.services().len()).map(|service| (service, scene.own_excess(service).total_us())).collect();
    excesses.sort_by(|a, b| b.1.total_cmp(&a.1));
    excesses.truncate(SERVICES_MAX);
    let is_present = |service: &&(usize, f64)| is_since(since, &graph.services()[service.0], stretch);
    for (service, excess) in excesses.iter().filter(is_present) {
        let gain = observed - engine.counterfactual(&[*service]);
        null.add(stretch.len(), &graph.services()[*service], gain, *excess);
    }
    let everybody: Vec<usize> = excesses.iter().map(|(service, _)| *service).collect();
    null.add_error(observed - engine.counterfactual(&everybody));
}

/// Whether all of `stretch` is of the present normal of `service`.
fn is_since(since: &Since, service: &ServiceId, stretch: &[&Observation]) -> bool {
    since.get(service).is_none_or(|since| stretch.iter().all(|window| window.start >= *since))
}

/// Scores of services that changed, on windows that their normals were learnt from: there are no others yet.
#[derive(Debug)]
pub struct Refresh<'a> {
    /// Of the model.
    pub edges: &'a BTreeSet<EdgeKey>,
    /// Of the model.
    pub skeletons: &'a Skeletons,
    /// Of the model.
    pub normals: &'a Normals,
    /// The newest, oldest first.
    pub windows: &'a [&'a Observation],
    /// Since when a service is as it is.
    pub since: &'a Since,
    /// What changed.
    pub services: &'a BTreeSet<ServiceId>,
}

impl Refresh<'_> {
    /// Adds scores to the null of one objective.
    pub fn null(&self, null: &mut Null, slo: &Slo) {
        for length in LENGTHS {
            for stretch in stretches(self.windows, length) {
                self.score(null, stretch, slo);
            }
        }
    }

    fn score(&self, null: &mut Null, stretch: &[&Observation], slo: &Slo) {
        let services: Vec<&ServiceId> =
            self.services.iter().filter(|service| is_since(self.since, service, stretch)).take(SERVICES_MAX).collect();
        if services.is_empty() {
            return;
        }
        let graph = pool::graph(self.edges, self.skeletons, stretch);
        let (Some(frame), Some(observed)) = (Frame::of(&graph, stretch), pool::observed_log(stretch, slo)) else {
            return;
        };
        let scene = Scene::new(&graph, self.normals, &frame);
        let mut engine = engine::choose(&scene, self.skeletons, stretch, slo, observed);
        for (name, service) in services.into_iter().filter_map(|name| Some((name, graph.service(name)?))) {
            let widening = self.widening(name);
            let gain = observed - engine.counterfactual(&[service]);
            null.add(stretch.len(), name, widening * gain, widening * scene.own_excess(service).total_us());
        }
    }

    /// By how much more unseen windows stray from a level than the few that it was taken from:
    /// `sqrt((1 + 1/n) / (1 - 1/n))` of n windows.
    fn widening(&self, service: &ServiceId) -> f64 {
        let is_own = |window: &&&Observation| is_since(self.since, service, &[window]);
        let count = self.windows.iter().filter(is_own).count().max(2) as f64;
        ((count + 1.0) / (count - 1.0)).sqrt()
    }

    /// Adds scores to the null of the resource groups; `frames` are those of the windows, numbered by `graph`.
    pub fn groups(&self, null: &mut GroupNull, graph: &Graph, frames: &[Frame]) {
        let Some(regressors) = self.normals.regressors else { return };
        let mut found = GroupScores::new();
        for name in self.services {
            let (Some(number), Some(normal)) = (graph.service(name), self.normals.services.get(name)) else { continue };
            let since = self.since.get(name).copied().unwrap_or_default();
            for frame in frames.iter().filter(|frame| frame.time >= since) {
                let seen = &frame.services[number];
                let usage = scores(normal, &seen.readings, &regressors.row(seen.rate, frame.time));
                add_groups(&mut found, name, &usage);
            }
        }
        add_upper(null, &found);
    }
}
