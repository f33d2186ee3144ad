//! One or several observations, pooled and numbered by a graph: what fits and engines read.
//!
//! Whatever is not finite is treated as absent here, and nowhere later.

use std::collections::{BTreeMap, BTreeSet};

use sage_common::{InstanceId, LatencyQuantiles, Metric, NodeId, Timestamp};

use crate::{
    curve::Curve,
    graph::Graph,
    observation::{EdgeObservation, Observation, ServiceObservation},
    usage::{Reading, Total},
};

/// Readings of one replica or of a service, by [`Metric::index`].
pub type Readings = [Option<Reading>; Metric::COUNT];

/// One interval of the application, by number.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Start of the newest pooled window.
    pub time: Timestamp,
    /// Length of one of them, seconds.
    pub window_s: f64,
    /// By edge number.
    pub edges: Vec<EdgeFrame>,
    /// By service number.
    pub services: Vec<ServiceFrame>,
    /// Arrivals at the entries per second, refused ones included.
    pub offered_per_s: Option<f64>,
    /// Completed calls of the entries per second.
    pub completed_per_s: f64,
}

/// One edge of a [`Frame`].
#[derive(Clone, Debug, Default)]
pub struct EdgeFrame {
    /// Completed calls.
    pub calls: f64,
    /// Completed calls per second.
    pub rate: f64,
    /// Client spans.
    pub client: Option<Curve>,
    /// Server spans.
    pub server: Option<Curve>,
    /// Client minus server span.
    pub gap: Option<Curve>,
    /// Self time of the server spans.
    pub self_time: Option<Curve>,
}

/// One service of a [`Frame`].
#[derive(Clone, Debug)]
pub struct ServiceFrame {
    /// Calls into it per second.
    pub rate: f64,
    /// Median over its replicas.
    pub readings: Readings,
    /// Each replica, ordered by name.
    pub instances: Vec<(InstanceId, Readings)>,
    /// Where it runs, when all of it runs on one node.
    pub node: Option<NodeId>,
}

impl Frame {
    /// Pools `observations` (oldest first); `None` when there is none of positive length.
    pub fn of(graph: &Graph, observations: &[&Observation]) -> Option<Self> {
        let total_s: f64 = observations.iter().map(|o| o.length.as_secs_f64()).sum();
        let newest = observations.last()?;
        if total_s <= 0.0 {
            return None;
        }
        let edges = pool_edges(graph, observations, total_s);
        let services = pool_services(graph, observations, &edges);
        let offered: Vec<f64> = observations.iter().map(|o| o.offered_per_s).filter(|v| is_count(*v)).collect();
        let roots = (0..edges.len()).filter(|edge| graph.caller(*edge).is_none());
        Some(Self {
            time: newest.start,
            window_s: total_s / observations.len() as f64,
            completed_per_s: roots.map(|edge| edges[edge].rate).sum(),
            offered_per_s: (!offered.is_empty()).then(|| offered.iter().sum::<f64>() / offered.len() as f64),
            edges,
            services,
        })
    }
}

fn pool_edges(graph: &Graph, observations: &[&Observation], total_s: f64) -> Vec<EdgeFrame> {
    let mut parts: Vec<Vec<&EdgeObservation>> = vec![Vec::new(); graph.edges().len()];
    for edge in observations.iter().flat_map(|o| &o.edges).filter(|edge| is_count(edge.calls) && edge.calls > 0.0) {
        if let Some(number) = graph.edge(&edge.key) {
            parts[number].push(edge);
        }
    }
    parts
        .iter()
        .enumerate()
        .map(|(number, parts)| pool_edge(parts, total_s, graph.children(number).is_empty()))
        .collect()
}

fn pool_edge(parts: &[&EdgeObservation], total_s: f64, is_leaf: bool) -> EdgeFrame {
    let pool = |pick: fn(&EdgeObservation) -> Option<&LatencyQuantiles>| {
        let curves = parts.iter().filter_map(|part| Some((part.calls, Curve::of(pick(part)?)?)));
        Curve::mixture(&curves.collect::<Vec<_>>())
    };
    let (client, server) = (pool(|p| p.client.as_ref()), pool(|p| p.server.as_ref()));
    let calls: f64 = parts.iter().map(|part| part.calls).sum();
    EdgeFrame {
        calls,
        rate: calls / total_s,
        gap: pool(|p| p.gap.as_ref()).or_else(|| Some(client.as_ref()?.minus(server.as_ref()?))),
        self_time: pool(|p| p.self_time.as_ref()).or_else(|| server.filter(|_| is_leaf)),
        client,
        server,
    }
}

fn pool_services(graph: &Graph, observations: &[&Observation], edges: &[EdgeFrame]) -> Vec<ServiceFrame> {
    let mut parts: Vec<Vec<&ServiceObservation>> = vec![Vec::new(); graph.services().len()];
    for service in observations.iter().flat_map(|o| &o.services) {
        if let Some(number) = graph.service(&service.service) {
            parts[number].push(service);
        }
    }
    let rate = |service: usize| graph.ins(service).iter().map(|edge| edges[*edge].rate).sum();
    parts.iter().enumerate().map(|(service, parts)| pool_service(parts, rate(service))).collect()
}

fn pool_service(parts: &[&ServiceObservation], rate: f64) -> ServiceFrame {
    let mut replicas: BTreeMap<&InstanceId, Vec<Total>> = BTreeMap::new();
    let nodes: BTreeSet<&NodeId> = parts.iter().flat_map(|part| &part.instances).map(|i| &i.node).collect();
    let node = nodes.first().filter(|_| nodes.len() == 1).map(|node| (*node).clone());
    for instance in parts.iter().flat_map(|part| &part.instances) {
        let totals = replicas.entry(&instance.instance).or_insert_with(|| vec![Total::default(); Metric::COUNT]);
        for (metric, quantiles) in &instance.metrics {
            Reading::of(quantiles).into_iter().for_each(|reading| totals[metric.index()].add(&reading));
        }
    }
    let mean = |totals: Vec<Total>| std::array::from_fn(|metric| totals[metric].mean());
    let instances: Vec<(InstanceId, Readings)> =
        replicas.into_iter().map(|(instance, readings)| (instance.clone(), mean(readings))).collect();
    let of_all = |metric: usize| instances.iter().filter_map(|(_, readings)| readings[metric]).collect::<Vec<_>>();
    let readings = match &instances[..] {
        [(_, only)] => *only,
        _ => std::array::from_fn(|metric| Reading::median_of(&of_all(metric))),
    };
    ServiceFrame { rate, readings, instances, node }
}

fn is_count(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}
