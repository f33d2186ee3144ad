//! What a diagnosis looks at: every edge and service of one pooled interval, observed against normal.

use std::collections::BTreeMap;

use sage_common::{InstanceId, LATENCY_PERCENTILES, Metric, MetricGroup, NodeId};

use crate::{
    crowding,
    curve::{Curve, FAR_BAND, Q, SHIFT_BAND, TAIL_BAND},
    frame::{EdgeFrame, Frame, Readings},
    graph::Graph,
    normal::ServiceNormal,
    normals::{Expected, ExpectedEdge, Normals},
    ownership, restored,
};

/// A shift below this many microseconds is noise of clocks and schedulers.
const SHIFT_SD_FLOOR_US: f64 = 20.0;

/// The excess of a pure delay differs by less than this share over p10 to p90.
const DELAY_SPREAD_MAX: f64 = 0.35;

/// An exogenous part of an edge's latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// As observed.
    pub observed: Curve,
    /// As expected at this load; as observed when nothing was learnt.
    pub normal: Curve,
    /// Robust standard deviation of each percentile, in logs.
    pub scales: [f64; Q],
    /// Whether there is a normal.
    pub is_learnt: bool,
}

impl Part {
    fn new(observed: Option<Curve>, expected: Option<Expected>) -> Option<Self> {
        let observed = observed?;
        Some(match expected {
            Some(expected) => Self { observed, normal: expected.curve, scales: expected.scales, is_learnt: true },
            None => Self { observed, normal: observed, scales: [1.0; Q], is_learnt: false },
        })
    }

    /// Normal, never worse than observed: what an intervention puts in its place.
    pub fn repaired(&self) -> Curve {
        self.observed.min(&self.normal)
    }

    /// Observed above normal over the tail band, microseconds.
    pub fn excess_us(&self) -> f64 {
        self.observed.band_us(TAIL_BAND) - self.repaired().band_us(TAIL_BAND)
    }

    /// Observed above normal at one point of the grid, microseconds.
    pub fn excess_at_us(&self, q: usize) -> f64 {
        self.observed.logs()[q].exp() - self.repaired().logs()[q].exp()
    }

    /// Whether p10 to p90 are later by the same: a delay on the way, not a queue and not a starved processor.
    pub fn is_pure_delay(&self) -> bool {
        let shifts: Vec<f64> = (0..SHIFT_BAND.start + 4).map(|q| self.excess_at_us(q)).collect();
        let (low, high) = shifts.iter().fold((f64::INFINITY, 0.0_f64), |(l, h), s| (l.min(*s), h.max(*s)));
        high > 0.0 && (high - low) < DELAY_SPREAD_MAX * high
    }

    /// Whether p10 to p90 are later by the same and stray no more than ever: something constant was added to every call.
    pub fn is_constant_delay(&self) -> bool {
        let spread = |curve: &Curve| curve.logs()[SHIFT_BAND.start + 3].exp() - curve.logs()[0].exp();
        let strays = spread(&self.observed) > 2.0 * spread(&self.normal) + SHIFT_SD_FLOOR_US;
        self.is_learnt && !strays && self.is_pure_delay()
    }

    /// Mean shift over p50 to p99.5 and the standard deviation of such a shift, microseconds.
    pub fn shift_us(&self) -> (f64, f64) {
        let sd =
            SHIFT_BAND.map(|q| self.normal.logs()[q].exp() * self.scales[q]).sum::<f64>() / SHIFT_BAND.len() as f64;
        (self.observed.band_us(SHIFT_BAND) - self.normal.band_us(SHIFT_BAND), sd + SHIFT_SD_FLOOR_US)
    }

    /// Mean distance over p50 to p99.5 in robust standard deviations.
    pub fn shift_z(&self) -> f64 {
        self.mean_z(SHIFT_BAND)
    }

    /// The same over p90 to p99.5 alone, where that is more.
    pub fn far_z(&self) -> f64 {
        self.shift_z().max(self.mean_z(FAR_BAND))
    }

    fn mean_z(&self, band: std::ops::Range<usize>) -> f64 {
        band.clone().map(|q| self.z(q)).sum::<f64>() / band.len() as f64
    }

    /// Distance at one point of the grid in robust standard deviations.
    pub fn z(&self, q: usize) -> f64 {
        (self.observed.logs()[q] - self.normal.logs()[q]) / self.scales[q]
    }
}

/// One edge.
#[derive(Clone, Debug)]
pub struct SceneEdge {
    /// What was measured.
    pub seen: EdgeFrame,
    /// Self time of its server spans; its client spans where the callee reports nothing.
    pub own: Option<Part>,
    /// Whether `own` are client spans.
    pub is_own_client: bool,
    /// Client minus server span.
    pub gap: Option<Part>,
    /// P(the callee owns the gap).
    pub p_callee: f64,
    /// Whether the gap looks like the network's: it does not follow the holding time.
    pub is_net_like: bool,
    /// `own` once refused load comes back, when load is being refused.
    pub restored: Option<Curve>,
}

impl SceneEdge {
    /// The client span where there is one, else the server span: what the caller waits for.
    pub fn outer(&self) -> Option<Curve> {
        self.seen.client.or(self.seen.server)
    }

    /// The server span where there is one; the client span where the callee reports nothing.
    pub fn inner(&self) -> Option<Curve> {
        if self.is_own_client { self.seen.client } else { self.seen.server }
    }
}

/// One usage metric of a service against its normal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UsageScore {
    /// Which metric.
    pub metric: Metric,
    /// Signed distance in robust standard deviations.
    pub z: f64,
    /// Normal, in the metric's unit.
    pub normal: f64,
    /// Observed, in the metric's unit.
    pub observed: f64,
}

/// One service.
#[derive(Clone, Debug, Default)]
pub struct SceneService {
    /// Its metrics, by the median replica.
    pub usage: Vec<UsageScore>,
    /// The same for every replica, when there are several.
    pub instances: Vec<(InstanceId, Vec<UsageScore>)>,
    /// Services that share its node and with it the link, itself not counted.
    pub neighbours: Vec<usize>,
    /// The excess of its self time, microseconds per call, when it is but a wait for its own processors that nobody on its
    /// node and no work of its own has caused: then calls come in bursts, and whoever disturbs them is to blame.
    pub crowded_us: Option<f64>,
    /// Its own excess, microseconds per call.
    pub excess_us: f64,
}

impl SceneService {
    /// The score of one metric.
    pub fn score(&self, metric: Metric) -> Option<&UsageScore> {
        self.usage.iter().find(|score| score.metric == metric)
    }
}

/// Whether a metric tells of loss or delay rather than of volume.
pub fn speaks_of_delay(metric: Metric) -> bool {
    let is_volume = matches!(metric, Metric::NodeNetworkReceived | Metric::NodeNetworkSent);
    metric.group() == MetricGroup::Network && !is_volume
}

/// Everything about one pooled interval.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    /// Numbering.
    pub graph: &'a Graph,
    /// By edge number.
    pub edges: Vec<SceneEdge>,
    /// By service number.
    pub services: Vec<SceneService>,
}

impl<'a> Scene<'a> {
    /// Sets `frame` against `normals`.
    pub fn new(graph: &'a Graph, normals: &Normals, frame: &Frame) -> Self {
        let expected = normals.expected(graph, frame);
        let edges = frame.edges.iter().zip(&expected).map(|(seen, expected)| scene_edge(seen, expected)).collect();
        let by_node = by_node(frame);
        let services = (0..graph.services().len()).map(|s| scene_service(graph, normals, frame, s, &by_node)).collect();
        let mut scene = Self { graph, edges, services };
        for edge in 0..scene.edges.len() {
            scene.edges[edge].is_net_like = ownership::is_net_like(&scene, edge);
        }
        for edge in 0..scene.edges.len() {
            scene.edges[edge].p_callee = ownership::p_callee_owns(&scene, frame, edge);
        }
        for service in 0..scene.services.len() {
            scene.services[service].excess_us = scene.own_excess(service).total_us();
            scene.services[service].crowded_us = crowding::crowded_us(&scene, frame, service);
        }
        restored::restore_load(&mut scene, normals, frame);
        scene
    }

    /// Whether the self time of `service` is as ever once `services` are: one of them, or crowded by one further off.
    pub fn is_repaired(&self, service: usize, services: &[usize]) -> bool {
        let is_worse = |excess: f64| services.iter().any(|other| self.services[*other].excess_us > excess);
        services.contains(&service) || self.services[service].crowded_us.is_some_and(is_worse)
    }

    /// Services that [`Scene::is_repaired`] once `services` are, these included.
    pub fn repaired_with(&self, services: &[usize]) -> Vec<usize> {
        (0..self.services.len()).filter(|service| self.is_repaired(*service, services)).collect()
    }

    /// How much of the gap of `edge` an intervention on `services` repairs: all of it for the likelier owner, the odds of
    /// owning it for the other; at a tie, all of it for either.
    pub fn gap_share(&self, edge: usize, services: &[usize]) -> f64 {
        let (p, q) = (self.edges[edge].p_callee, 1.0 - self.edges[edge].p_callee);
        let of_callee = if services.contains(&self.graph.callee(edge)) { (p / q).min(1.0) } else { 0.0 };
        let is_caller = self.graph.caller(edge).is_some_and(|caller| services.contains(&caller));
        let of_caller = if is_caller { (q / p).min(1.0) } else { 0.0 };
        (of_callee + of_caller).min(1.0)
    }

    /// A service's own excess over the tail band, microseconds per call: self time, and its share of the gaps around it.
    pub fn own_excess(&self, service: usize) -> OwnExcess {
        let busiest =
            |edges: &[usize]| edges.iter().map(|e| self.edges[*e].seen.rate).sum::<f64>().max(f64::MIN_POSITIVE);
        let calls_in = busiest(self.graph.ins(service));
        let mut worst = OwnExcess::default();
        for edge in self.graph.ins(service).iter().filter(|edge| self.is_counted(**edge)) {
            let own = self.edges[*edge].own.map_or(0.0, |part| part.excess_us());
            let gap = self.owned_gap_us(*edge, service);
            if own + gap > worst.total_us() {
                worst = OwnExcess { self_us: own, gap_us: gap };
            }
        }
        for edge in self.graph.outs(service).iter().filter(|edge| self.is_counted(**edge)) {
            let per_call = (self.edges[*edge].seen.rate / calls_in).min(1.0);
            worst.gap_us += per_call * self.owned_gap_us(*edge, service);
        }
        worst
    }

    /// Whether an edge has enough calls for its percentiles to mean anything.
    pub fn is_counted(&self, edge: usize) -> bool {
        self.edges[edge].seen.calls >= CALLS_MIN
    }

    fn owned_gap_us(&self, edge: usize, service: usize) -> f64 {
        self.edges[edge].gap.map_or(0.0, |part| part.excess_us() * self.gap_share(edge, &[service]))
    }
}

/// Calls of an edge below which its percentiles are not looked at.
pub const CALLS_MIN: f64 = 8.0;

/// What a service adds by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OwnExcess {
    /// In its self time, microseconds per call.
    pub self_us: f64,
    /// In gaps that it owns, microseconds per call.
    pub gap_us: f64,
}

impl OwnExcess {
    /// Both.
    pub fn total_us(&self) -> f64 {
        self.self_us + self.gap_us
    }

    /// Share of the self time in both; a half when there is no excess.
    pub fn self_share(&self) -> f64 {
        if self.total_us() > 0.0 { self.self_us / self.total_us() } else { 0.5 }
    }
}

/// The point of the grid nearest to `percentile`.
pub fn grid_index(percentile: f64) -> usize {
    let distance = |q: &usize| (LATENCY_PERCENTILES[*q] - percentile).abs();
    (0..Q).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
}

fn scene_edge(seen: &EdgeFrame, expected: &ExpectedEdge) -> SceneEdge {
    let has_server = seen.server.is_some();
    let (own, is_own_client) = match seen.self_time {
        Some(_) if has_server => (Part::new(seen.self_time, expected.self_time), false),
        _ => (Part::new(seen.client, expected.client), true),
    };
    let gap = if is_own_client { None } else { Part::new(seen.gap, expected.gap) };
    SceneEdge { seen: seen.clone(), own, is_own_client, gap, p_callee: 0.5, is_net_like: false, restored: None }
}

fn scene_service(
    graph: &Graph,
    normals: &Normals,
    frame: &Frame,
    service: usize,
    by_node: &BTreeMap<&NodeId, Vec<usize>>,
) -> SceneService {
    let seen = &frame.services[service];
    let normal = normals.services.get(&graph.services()[service]);
    let (Some(normal), Some(regressors)) = (normal, normals.regressors) else { return SceneService::default() };
    let row = regressors.row(seen.rate, frame.time);
    let score = |readings: &Readings| scores(normal, readings, &row);
    let instances = if seen.instances.len() < 2 { &[][..] } else { &seen.instances[..] };
    SceneService {
        usage: score(&seen.readings),
        neighbours: neighbours(frame, service, by_node),
        instances: instances.iter().map(|(instance, readings)| (instance.clone(), score(readings))).collect(),
        ..SceneService::default()
    }
}

/// The services that run wholly on each node.
fn by_node(frame: &Frame) -> BTreeMap<&NodeId, Vec<usize>> {
    let mut by_node = BTreeMap::<&NodeId, Vec<usize>>::new();
    for (number, service) in frame.services.iter().enumerate() {
        if let Some(node) = &service.node {
            by_node.entry(node).or_default().push(number);
        }
    }
    by_node
}

fn neighbours(frame: &Frame, service: usize, by_node: &BTreeMap<&NodeId, Vec<usize>>) -> Vec<usize> {
    let there = frame.services[service].node.as_ref().and_then(|node| by_node.get(node));
    there.into_iter().flatten().copied().filter(|other| *other != service).collect()
}

/// The scores of `readings` of a service with these normals.
pub fn scores(normal: &ServiceNormal, readings: &Readings, row: &crate::robust::Row) -> Vec<UsageScore> {
    let score = |usage: &crate::normal::UsageNormal| {
        let reading = readings[usage.metric.index()]?;
        let (normal, observed) = usage.units(&reading, row);
        Some(UsageScore { metric: usage.metric, z: usage.z(&reading, row), normal, observed })
    };
    normal.usage.iter().filter_map(score).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::graph::tests::key;

    #[test]
    fn a_constant_delay_strays_no_more_than_ever_and_a_full_queue_does() {
        let curve = |us: [f64; 2]| {
            Curve::of_logs(std::array::from_fn(|q| (us[0] + (us[1] - us[0]) * q as f64 / Q as f64).ln()))
                .expect("finite")
        };
        let part = |observed: [f64; 2]| Part {
            observed: curve(observed),
            normal: curve([50.0, 200.0]),
            scales: [0.02; Q],
            is_learnt: true,
        };
        assert!(part([20_050.0, 20_200.0]).is_constant_delay());
        let queue = part([400_000.0, 500_000.0]);
        assert!(queue.is_pure_delay() && !queue.is_constant_delay());
    }

    #[test]
    fn a_crowded_service_is_repaired_with_whoever_is_further_off_and_with_nobody_else() {
        let graph = Graph::new(&[key("", "a"), key("a", "b"), key("a", "c")].into_iter().collect(), &BTreeMap::new());
        let service =
            |excess_us: f64, crowded_us: Option<f64>| SceneService { excess_us, crowded_us, ..SceneService::default() };
        let services = vec![service(9e3, None), service(5e3, Some(5e3)), service(1e3, None)];
        let scene = Scene { graph: &graph, edges: Vec::new(), services };
        assert_eq!(scene.repaired_with(&[0]), [0, 1]);
        assert_eq!(scene.repaired_with(&[2]), [2]);
        assert_eq!(scene.repaired_with(&[1]), [1]);
        assert!(scene.repaired_with(&[]).is_empty());
    }
}
