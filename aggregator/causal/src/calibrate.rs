//! Scores left-out healthy stretches as if they were incidents: the nulls of every score.

use std::collections::BTreeSet;

use sage_common::{MetricGroup, Slo};

use crate::{
    engine,
    frame::Frame,
    normals::Normals,
    null::{GroupNull, Null},
    observation::{EdgeKey, Observation},
    pool,
    resource::group_score,
    scene::Scene,
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

/// The null of one objective.
pub fn null(edges: &BTreeSet<EdgeKey>, skeletons: &Skeletons, folds: &[Fold<'_>], slo: &Slo) -> Null {
    let mut null = Null::default();
    for fold in folds {
        for length in LENGTHS {
            for stretch in stretches(&fold.windows, length) {
                score(&mut null, edges, skeletons, &fold.normals, stretch, slo);
            }
        }
    }
    null
}

/// The null of the resource groups.
pub fn group_null(edges: &BTreeSet<EdgeKey>, skeletons: &Skeletons, folds: &[Fold<'_>]) -> GroupNull {
    const GROUPS: [MetricGroup; 4] = [MetricGroup::Cpu, MetricGroup::Memory, MetricGroup::Disk, MetricGroup::Network];
    let mut null = GroupNull::default();
    for fold in folds {
        for window in fold.windows.iter().step_by(fold.windows.len().div_ceil(LENGTHS.len() * STRETCHES_MAX)) {
            let graph = pool::graph(edges, skeletons, &[]);
            let Some(frame) = Frame::of(&graph, &[window]) else { continue };
            let scene = Scene::new(&graph, &fold.normals, &frame);
            for (service, seen) in graph.services().iter().zip(&scene.services) {
                for group in GROUPS {
                    if let Some(score) = group_score(&seen.usage, group).filter(|score| score.is_finite()) {
                        null.add(service, group, score);
                    }
                }
            }
        }
    }
    null
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
) {
    let graph = pool::graph(edges, skeletons, stretch);
    let (Some(frame), Some(observed)) = (Frame::of(&graph, stretch), pool::observed_log(stretch, slo)) else { return };
    let scene = Scene::new(&graph, normals, &frame);
    let mut engine = engine::choose(&scene, skeletons, stretch, slo, observed);
    let mut excesses: Vec<(usize, f64)> =
        (0..graph.services().len()).map(|service| (service, scene.own_excess(service).total_us())).collect();
    excesses.sort_by(|a, b| b.1.total_cmp(&a.1));
    excesses.truncate(SERVICES_MAX);
    for (service, excess) in &excesses {
        let gain = observed - engine.counterfactual(&[*service]);
        null.add(stretch.len(), &graph.services()[*service], gain, *excess);
    }
    let everybody: Vec<usize> = excesses.iter().map(|(service, _)| *service).collect();
    null.add_error(observed - engine.counterfactual(&everybody));
}
