//! The end-to-end latency at several percentiles, observed and in a changed world.

use sage_common::{Micros, Slo};
use serde::Serialize;

use super::{Stage, micros};
use crate::{curve::Curve, engine::entries, scene::Scene};

/// Percentiles that are told beside the objective's own.
const PERCENTILES: [f64; 6] = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9];

/// End-to-end latency at one percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentile {
    /// The percentile.
    pub percentile: f64,
    /// As observed, microseconds.
    pub observed_us: Micros,
    /// In the changed world, microseconds.
    pub counterfactual_us: Micros,
}

/// The distribution had `services` of `scene` been normal. The objective's own percentile is what a diagnosis would say;
/// the others come from the percentiles of the entries' server spans, and never cross it.
pub(super) fn of(stage: &Stage<'_>, scene: &Scene<'_>, services: &[usize]) -> Vec<Percentile> {
    let own = stage.slo.percentile;
    let mut percentiles: Vec<f64> = PERCENTILES.into_iter().filter(|other| (other - own).abs() > 1e-9).collect();
    percentiles.push(own);
    percentiles.sort_by(f64::total_cmp);
    let mut logs: Vec<(f64, f64, f64)> = percentiles
        .into_iter()
        .filter_map(|percentile| {
            let is_own = percentile.total_cmp(&own).is_eq();
            let observed = if is_own { stage.observed } else { observed_at(stage, percentile)? };
            let slo = Slo { percentile, ..stage.slo.clone() };
            let changed = stage.engine(scene, &slo, observed).counterfactual(services);
            Some((percentile, observed, changed))
        })
        .collect();
    let at = logs.iter().position(|(percentile, ..)| percentile.total_cmp(&own).is_eq()).unwrap_or(0);
    for place in (0..at).rev() {
        let (_, observed, changed) = logs[place + 1];
        logs[place] = (logs[place].0, logs[place].1.min(observed), logs[place].2.min(changed));
    }
    for place in at + 1..logs.len() {
        let (_, observed, changed) = logs[place - 1];
        logs[place] = (logs[place].0, logs[place].1.max(observed), logs[place].2.max(changed));
    }
    logs.into_iter()
        .map(|(percentile, observed, changed)| Percentile {
            percentile,
            observed_us: micros(observed),
            counterfactual_us: micros(changed),
        })
        .collect()
}

/// `ln us` of a percentile of what the objective's clients see, from the entries' server spans.
fn observed_at(stage: &Stage<'_>, percentile: f64) -> Option<f64> {
    let entries = entries(stage.scene.graph, stage.slo);
    let parts: Vec<(f64, Curve)> = entries
        .into_iter()
        .filter_map(|entry| Some((stage.scene.edges[entry].seen.calls, stage.scene.edges[entry].inner()?)))
        .collect();
    Curve::mixture_at(&parts, percentile / 100.0)
}
