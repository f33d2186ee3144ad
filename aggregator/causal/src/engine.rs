//! Two ways to compute a but-for world behind one interface: from whole traces, or from distributions.

use sage_common::Slo;

use crate::{
    compose::CurveEngine, graph::Graph, observation::Observation, recompose::TraceEngine, scene::Scene,
    skeleton::Skeletons,
};

/// Calls beyond the percentile that a sample of traces must hold for it to be believed.
const TAIL_TRACES_MIN: f64 = 2.0;

/// Whole traces of the objective below which trace-level recomposition is the last resort.
const TRACES_MIN: usize = 50;

/// Computes the objective's percentile in but-for worlds.
pub trait Recomposer {
    /// `ln us` of the objective's percentile had `services` been normal, every other service keeping its own observed self
    /// time and gaps. Without services, as observed.
    fn counterfactual(&mut self, services: &[usize]) -> f64;

    /// What this engine lacked, for people; empty when it had everything.
    fn lacks(&self) -> Vec<String>;
}

/// The better engine for what `observations` hold, anchored at `observed` (`ln us`).
pub fn choose<'a>(
    scene: &'a Scene<'a>,
    skeletons: &Skeletons,
    observations: &[&Observation],
    slo: &Slo,
    observed: f64,
) -> Box<dyn Recomposer + 'a> {
    let traces = TraceEngine::new(scene, observations.iter().flat_map(|o| &o.traces), slo, observed);
    let has_tail = traces.roots() as f64 * (1.0 - slo.percentile / 100.0) >= TAIL_TRACES_MIN;
    if traces.roots() >= TRACES_MIN && has_tail {
        return Box::new(traces);
    }
    let curves = CurveEngine::new(scene, skeletons, slo, observed);
    if curves.has_structure() || traces.roots() == 0 { Box::new(curves) } else { Box::new(traces) }
}

/// Root edges that `slo` covers.
pub fn entries(graph: &Graph, slo: &Slo) -> Vec<usize> {
    let covers = |edge: &usize| {
        let key = &graph.edges()[*edge];
        key.caller.is_none() && slo.covers(&key.callee, &key.operation)
    };
    (0..graph.edges().len()).filter(covers).collect()
}
