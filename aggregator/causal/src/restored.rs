//! What services would look like if calls came to them as they come to the application. While a bottleneck sheds load,
//! everything behind it looks healthier than it is; while it lets calls through one after the other, a slowed service
//! around it sees no bursts and hardly a queue. A but-for world without the bottleneck must bring both back.

use std::collections::BTreeSet;

use sage_common::{LATENCY_PERCENTILES, Metric};

use crate::{
    curve::Curve,
    frame::Frame,
    normals::Normals,
    scene::{Part, Scene, SceneEdge},
};

/// Arrivals above completions by this factor mean that load is being shed.
const SHED_MIN: f64 = 1.05;
/// A self time above normal by this factor is taken as a slower server, not as noise.
const SLOWER_MIN: f64 = 1.3;
/// Largest rise of a healthy service by returning load, in logs.
const RISE_MAX: f64 = 0.5;
/// Load comes back by no more than this factor.
const RETURN_MAX: f64 = 4.0;
/// Calls that wait between two spans at once from which what they wait for paces whatever is around it.
const PACING_MIN: f64 = 1.0;
/// A server is not thought busier than this: beyond it no queue is ever in balance.
const BUSY_MAX: f64 = 0.99;
/// Below this, a healthy server has no queue that more load would bring.
const BUSY_MIN: f64 = 0.4;

/// Sets [`crate::scene::SceneEdge::restored`] on every edge whose callee would feel the returning calls.
pub fn restore_load(scene: &mut Scene<'_>, normals: &Normals, frame: &Frame) {
    let shed = frame.offered_per_s.filter(|offered| is_shed(scene, normals, frame, *offered));
    if shed.is_none() && !(0..scene.edges.len()).any(|edge| is_pacing(scene, edge)) {
        return;
    }
    for service in 0..scene.services.len() {
        let factor = shed.and_then(|offered| load_factor(scene, normals, frame, service, offered)).unwrap_or(1.0);
        for edge in scene.graph.ins(service).to_vec() {
            scene.edges[edge].restored = match slowed(scene, edge) {
                Some(slower) => queueing(scene, frame, edge, slower, factor),
                None => loaded(scene, normals, frame, edge, factor),
            };
        }
    }
}

/// Whether calls queue between the two spans of `edge`, for a connection or a thread: whoever gets one is followed by the next
/// when he is done, whenever that one came.
fn is_pacing(scene: &Scene<'_>, edge: usize) -> bool {
    let SceneEdge { gap, seen, is_net_like, .. } = &scene.edges[edge];
    let excess = |part: &Part| part.observed.mean_us() - part.repaired().mean_us();
    !is_net_like && gap.as_ref().is_some_and(|gap| gap.is_learnt && seen.rate * excess(gap) / 1e6 > PACING_MIN)
}

/// Whether less is served than arrives: fewer answers than arrivals, or, where refusals are answers too, fewer calls by the
/// entries than so many arrivals make.
fn is_shed(scene: &Scene<'_>, normals: &Normals, frame: &Frame, offered: f64) -> bool {
    let graph = scene.graph;
    let roots = (0..scene.edges.len()).filter(|edge| graph.caller(*edge).is_none());
    let inner: BTreeSet<usize> = roots.flat_map(|root| graph.children(root).iter().copied()).collect();
    let per_arrival = |edge: usize| {
        let service = normals.services.get(&graph.services()[graph.callee(edge)])?;
        service.edge(&graph.edges()[edge])?.calls_per_arrival
    };
    let expected: f64 = inner.iter().filter_map(|edge| Some(per_arrival(*edge)? * offered)).sum();
    let seen: f64 = inner.iter().map(|edge| scene.edges[*edge].seen.rate).sum();
    offered > SHED_MIN * frame.completed_per_s || expected > SHED_MIN * seen
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

/// By how much the callee of `edge` is slower itself, when it is: by its fast calls, which hardly wait.
fn slowed(scene: &Scene<'_>, edge: usize) -> Option<f64> {
    const P25: usize = 1;
    let own = scene.edges[edge].own.filter(|part| part.is_learnt)?;
    let is_crowded = scene.services[scene.graph.callee(edge)].crowded_us.is_some();
    let slower = (own.observed.logs()[P25] - own.normal.logs()[P25]).exp();
    (slower > SLOWER_MIN && !is_crowded).then_some(slower)
}

/// Self time of the slowed callee of `edge` under `factor` times the load, if calls came whenever they liked.
fn queueing(scene: &Scene<'_>, frame: &Frame, edge: usize, slower: f64, factor: f64) -> Option<Curve> {
    const P25: usize = 1;
    let service = scene.graph.callee(edge);
    let own = scene.edges[edge].own?;
    let share = scene.services[service].score(Metric::CpuLimitShare)?;
    let cores = scene.services[service].score(Metric::CpuUsed).map_or(1.0, |used| used.observed / share.observed);
    let busy = (share.observed.max(slower * share.normal) * factor).min(BUSY_MAX);
    let wait_us =
        mean_wait(busy, cores.max(1.0)) * 1e6 / (factor * frame.services[service].rate).max(f64::MIN_POSITIVE);
    let fast = own.observed.logs()[P25].exp();
    let spread = |q: usize| -(1.0 - LATENCY_PERCENTILES[q] / 100.0).max(1e-3).ln();
    Some(own.observed.map(|q, log| log.max((fast + wait_us * spread(q)).ln())))
}

/// Mean wait for one of `cores` servers that are `busy` for that share of the time, in mean times between two arrivals.
///
/// Source: Sakasegawa's approximation of M/M/c, `S u^(sqrt(2(c+1)) - 1) / (c (1 - u))`, with S = u c between arrivals.
fn mean_wait(busy: f64, cores: f64) -> f64 {
    busy.powf((2.0 * (cores + 1.0)).sqrt()) / (1.0 - busy)
}

/// Self time of the healthy callee of `edge` at `factor` times the load: it moves along its own normal.
fn loaded(scene: &Scene<'_>, normals: &Normals, frame: &Frame, edge: usize, factor: f64) -> Option<Curve> {
    let own = scene.edges[edge].own.filter(|part| part.is_learnt)?;
    let share = scene.services[scene.graph.callee(edge)].score(Metric::CpuLimitShare)?;
    if factor <= SHED_MIN || share.observed * factor <= BUSY_MIN {
        return None;
    }
    let at_more = normals.linear(scene.graph, edge, frame, factor).self_time?.curve;
    let at_present = normals.linear(scene.graph, edge, frame, 1.0).self_time?.curve;
    Some(own.observed.map(|q, log| log + (at_more.logs()[q] - at_present.logs()[q]).clamp(0.0, RISE_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_waits_as_theory_has_it() {
        // M/M/1: mean wait S u / (1 - u), with S = u between two arrivals.
        for busy in [0.3_f64, 0.5, 0.9] {
            let by_hand = busy * busy / (1.0 - busy);
            assert!((mean_wait(busy, 1.0) - by_hand).abs() < 1e-12, "{busy}");
        }
    }

    #[test]
    fn more_servers_as_busy_wait_less() {
        assert!(mean_wait(0.8, 4.0) < 0.8 * mean_wait(0.8, 1.0));
        // Within 5 % of Erlang C, by hand: two servers 80 % busy, C = 0.7111, wait 0.7111 / (1 - 0.8) S / 2, S = 1.6.
        assert!((mean_wait(0.8, 2.0) / 2.844 - 1.0).abs() < 0.05, "{}", mean_wait(0.8, 2.0));
    }
}
