//! What services would look like if refused load came back. While a bottleneck sheds load, everything behind it looks
//! healthier than it is; a but-for world without the bottleneck must bring the load back.

use sage_common::Metric;

use crate::{curve::Curve, frame::Frame, normals::Normals, scene::Scene};
use sage_common::LATENCY_PERCENTILES;

/// Arrivals above completions by this factor mean that load is being shed.
const SHED_MIN: f64 = 1.05;
/// A self time above normal by this factor is taken as a slower server, not as noise.
const SLOWER_MIN: f64 = 1.3;
/// Largest rise of a healthy service by returning load, in logs.
const RISE_MAX: f64 = 0.5;
/// Load comes back by no more than this factor.
const RETURN_MAX: f64 = 4.0;

/// Sets [`crate::scene::SceneEdge::restored`] on every edge whose callee would feel the returning load.
pub fn restore_load(scene: &mut Scene<'_>, normals: &Normals, frame: &Frame) {
    let Some(offered) = frame.offered_per_s.filter(|offered| *offered > SHED_MIN * frame.completed_per_s) else {
        return;
    };
    for service in 0..scene.services.len() {
        let Some(factor) = load_factor(scene, normals, frame, service, offered) else { continue };
        for edge in scene.graph.ins(service).to_vec() {
            scene.edges[edge].restored = restored(scene, normals, frame, service, edge, factor);
        }
    }
}

/// Expected over observed calls of `service`, at least 1.
fn load_factor(scene: &Scene<'_>, normals: &Normals, frame: &Frame, service: usize, offered: f64) -> Option<f64> {
    let graph = scene.graph;
    let normal = normals.services.get(&graph.services()[service])?;
    let expected = |edge: &usize| Some(normal.edge(&graph.edges()[*edge])?.calls_per_arrival? * offered);
    let expected: f64 = graph.ins(service).iter().filter_map(expected).sum();
    let observed = frame.services[service].rate;
    (observed > 0.0).then(|| (expected / observed).clamp(1.0, RETURN_MAX))
}

/// Self time of `edge` at `factor` times the load.
///
/// A slowed service waits as an M/M/1 queue does: its mean wait goes with `u / (1 - u)`, spread exponentially. A healthy
/// one moves along its own normal.
fn restored(
    scene: &Scene<'_>,
    normals: &Normals,
    frame: &Frame,
    service: usize,
    edge: usize,
    factor: f64,
) -> Option<Curve> {
    const P25: usize = 1;
    const P50: usize = 2;
    let own = scene.edges[edge].own.filter(|part| part.is_learnt)?;
    let share = scene.services[service].score(Metric::CpuLimitShare)?;
    let slower = (own.observed.logs()[P25] - own.normal.logs()[P25]).exp();
    let used = if slower > SLOWER_MIN { share.observed.max(slower * share.normal) } else { share.observed };
    let (now, then) = (used.min(0.97), (used * factor).min(0.98));
    if slower > SLOWER_MIN && then > 0.5 {
        let inflation = (0.6 * (then / (1.0 - then) - now / (1.0 - now))).max(0.0);
        let wait = own.observed.logs()[P50].exp() * inflation;
        let spread = |q: usize| -(1.0 - LATENCY_PERCENTILES[q] / 100.0).max(1e-3).ln();
        return Some(own.observed.map(|q, log| (log.exp() + wait * spread(q)).ln()));
    }
    if then <= 0.4 {
        return None;
    }
    let at_more = normals.linear(scene.graph, edge, frame, factor).self_time?.curve;
    let at_present = normals.linear(scene.graph, edge, frame, 1.0).self_time?.curve;
    Some(own.observed.map(|q, log| log + (at_more.logs()[q] - at_present.logs()[q]).clamp(0.0, RISE_MAX)))
}
