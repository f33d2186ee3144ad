//! How well latencies add up: every client span and the objective from self times and gaps alone.

use std::collections::BTreeSet;

use sage_common::Slo;

use crate::{
    compose::CurveEngine,
    frame::Frame,
    model::Model,
    observation::{EdgeKey, Observation},
    pool,
    scene::Scene,
};

/// One window, composed and observed.
#[derive(Clone, Debug, PartialEq)]
pub struct Rebuilt {
    /// The objective's percentile, microseconds: observed, composed.
    pub latency_us: (f64, f64),
    /// Client spans of every edge with calls at every percentile of the grid, microseconds: observed, composed.
    pub clients_us: Vec<(f64, f64)>,
}

/// See [`Model::rebuild`].
pub fn rebuild(model: &Model, window: &Observation, slo: &Slo) -> Option<Rebuilt> {
    let learnt: BTreeSet<EdgeKey> = model.edges().collect();
    let observed = pool::latency_us(window, slo)?;
    let graph = pool::graph(&learnt, model.skeletons(), &[window]);
    let frame = Frame::of(&graph, &[window])?;
    let scene = Scene::new(&graph, model.normals(), &frame);
    let (composed, clients) = CurveEngine::new(&scene, model.skeletons(), slo, observed.ln()).rebuilt();
    let us = |log: &f64| log.exp();
    let pairs = clients.iter().flat_map(|(seen, made)| seen.logs().iter().map(us).zip(made.logs().iter().map(us)));
    Some(Rebuilt { latency_us: (observed, composed.exp()), clients_us: pairs.collect() })
}

#[cfg(test)]
mod tests {
    use crate::{
        TrainOptions,
        testing::{Fault, World},
        train,
    };

    #[test]
    fn latencies_add_up_with_and_without_a_fault() {
        let world = World::chain();
        let history = world.windows(3, 0, 40, &[]);
        let (model, _) = train(&history, &[world.slo()], None, &TrainOptions::default()).expect("learnt");
        for faults in [&[][..], &[Fault::Slow(3, 20.0)]] {
            let rebuilt = model.rebuild(&world.observe(3, 100, faults), &world.slo()).expect("calls");
            let (observed, composed) = rebuilt.latency_us;
            assert!((observed / composed).ln().abs() < 0.1, "{observed} {composed}");
            assert!(rebuilt.clients_us.len() >= 5 * 12);
            let far = rebuilt.clients_us.iter().filter(|(seen, made)| (seen / made).ln().abs() > 0.2).count();
            assert!(far * 20 <= rebuilt.clients_us.len(), "{far} of {}", rebuilt.clients_us.len());
        }
    }
}
