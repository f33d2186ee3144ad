//! The fewest services that must be normal for the target to be met: every small set of the likeliest ones is tried, so
//! that no smaller set suffices.

use sage_common::ServiceId;
use serde::Serialize;

use super::{Stage, WhatIf, World};
use crate::{engine::Recomposer, search::MEMBERS_MAX, verdict::Resource};

/// Services of which one or two are tried, those with the largest own excess.
const PAIRED_MAX: usize = 12;
/// Services of which more are tried: 126 sets of three and four.
const GROUPED_MAX: usize = 8;

/// The smallest repair.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MinimumFix {
    /// The probability asked for.
    pub p_wanted: f64,
    /// Whether the parts reach it.
    pub is_enough: bool,
    /// What must be normal, the largest own excess first; empty when nothing needs to be.
    pub parts: Vec<Part>,
    /// What that gives.
    pub outcome: WhatIf,
}

/// One service that must be normal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// The service.
    pub service: ServiceId,
    /// The one resource of it that is enough; `None` when all of it must be normal.
    pub resource: Option<Resource>,
}

/// Searches the smallest repair that meets the target with probability `p`; the best small one when none does.
pub(super) fn search(stage: &Stage<'_>, p: f64) -> MinimumFix {
    let mut engine = stage.engine(&stage.scene, stage.slo, stage.observed);
    let set = smallest(stage, engine.as_mut(), p);
    drop(engine);
    let (world, parts) = narrowed(stage, &set, p);
    let outcome = stage.answer(&world);
    MinimumFix { p_wanted: p, is_enough: outcome.p_met >= p, parts, outcome }
}

/// The smallest sufficient set; of several, the one with the lowest percentile; the lowest of all when none suffices.
fn smallest(stage: &Stage<'_>, engine: &mut dyn Recomposer, p: f64) -> Vec<usize> {
    if stage.question.p_met(stage.observed) >= p {
        return Vec::new();
    }
    let candidates = candidates(stage);
    let mut lowest: (f64, Vec<usize>) = (stage.observed, Vec::new());
    for size in 1..=MEMBERS_MAX {
        let most = if size <= 2 { PAIRED_MAX } else { GROUPED_MAX };
        for set in sets(&candidates[..candidates.len().min(most)], size) {
            let counterfactual = engine.counterfactual(&set);
            if counterfactual < lowest.0 {
                lowest = (counterfactual, set);
            }
        }
        if stage.question.p_met(lowest.0) >= p {
            break;
        }
    }
    lowest.1
}

/// Services with an excess of their own, the largest first.
fn candidates(stage: &Stage<'_>) -> Vec<usize> {
    let excess = |service: usize| (service, stage.scene.own_excess(service).total_us());
    let mut all: Vec<(usize, f64)> =
        (0..stage.scene.services.len()).map(excess).filter(|(_, excess)| *excess > 0.0).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.into_iter().map(|(service, _)| service).collect()
}

/// Every set of `size` of `items`, in order.
fn sets(items: &[usize], size: usize) -> Vec<Vec<usize>> {
    let (Some((first, rest)), true) = (items.split_first(), size > 0) else {
        return if size == 0 { vec![Vec::new()] } else { Vec::new() };
    };
    let with = sets(rest, size - 1).into_iter().map(|tail| [vec![*first], tail].concat());
    with.chain(sets(rest, size)).collect()
}

/// The set with each service narrowed to its resource at fault, as far as the rest still suffices.
fn narrowed(stage: &Stage<'_>, set: &[usize], p: f64) -> (World, Vec<Part>) {
    let name = |service: usize| stage.scene.graph.services()[service].clone();
    let mut world = World::of(set);
    let mut parts: Vec<Part> = set.iter().map(|service| Part { service: name(*service), resource: None }).collect();
    for (place, part) in parts.iter_mut().enumerate() {
        let finding = stage.finding(set[place]);
        let mut narrower = world.clone();
        narrower.repairs[place].1 = finding.p;
        if stage.question.p_met(stage.counterfactual(&narrower)) >= p {
            (world, part.resource) = (narrower, Some(finding.resource));
        }
    }
    let told = |part: &Part| match part.resource {
        Some(resource) => format!("{}: {} normal", part.service, format!("{resource:?}").to_lowercase()),
        None => format!("{}: normal", part.service),
    };
    world.set = parts.iter().map(told).collect();
    (world, parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_a_size_is_tried_once() {
        assert_eq!(sets(&[1, 2, 3], 2), [[1, 2], [1, 3], [2, 3]]);
        assert_eq!(sets(&[1, 2, 3, 4, 5, 6, 7, 8], 4).len(), 70);
        assert_eq!(sets(&[1, 2], 3), Vec::<Vec<usize>>::new());
    }
}
