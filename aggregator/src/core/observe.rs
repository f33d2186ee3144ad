//! Makes one [`Observation`] of the node windows of one interval: edges, services, objectives, traces.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::observation::{
    EdgeKey, EdgeObservation, InstanceObservation, ObjectiveObservation, Observation, ResolvedSkeleton,
    ServiceObservation,
};
use sage_common::{
    InstanceId, LatencyQuantiles, LatencySeries, Metric, Micros, NodeId, NodeWindow, OperationId, SeriesKind,
    ServiceId, Skeleton, Slo, Timestamp, UsageQuantiles,
};

use crate::core::{
    histogram::{self, Sum},
    join::{EdgeSamples, Joined},
    learned::{CallName, Learned},
    merge,
};

/// Joined calls from which on their own durations are better than the difference of two quantile functions: the
/// 98th percentile of fewer is one call.
const PAIRS_MIN: usize = 50;

/// What is known besides the windows themselves.
pub struct Scene<'a> {
    /// Start of the interval.
    pub start: Timestamp,
    /// Its length.
    pub length: Micros,
    /// Number of the cluster window.
    pub close: u64,
    /// Share of the known nodes whose windows are here.
    pub completeness: f32,
    /// Objectives.
    pub slos: &'a [Slo],
    /// Whom client spans call.
    pub learned: &'a Learned,
}

/// Builds the observation of one interval from its node windows and their joined stubs.
pub fn observe(windows: &[&NodeWindow], joined: Joined, scene: &Scene<'_>) -> Observation {
    let latencies = Latencies::of(windows, scene);
    let edges = latencies.edges(&joined.samples);
    let objectives = objectives(windows, &latencies, scene.slos);
    let share = windows.iter().filter(|window| !window.stubs.is_empty()).map(|window| window.stub_share);
    Observation {
        start: scene.start,
        length: scene.length,
        services: services(windows, &edges),
        skeletons: skeletons(windows, &latencies.server, scene),
        offered_per_s: offered(windows, &edges, scene),
        edges,
        traces: joined.traces,
        objectives,
        completeness: scene.completeness,
        trace_share: share.fold(1.0, f32::min),
    }
}

/// One duration of one edge or operation, replica by replica.
#[derive(Default)]
struct Parts {
    calls: f64,
    errors: f64,
    quantiles: Vec<(f64, LatencyQuantiles)>,
}

impl Parts {
    fn add(&mut self, series: &LatencySeries, share: f64) {
        let calls = f64::from(series.calls) * share;
        self.calls += calls;
        self.errors += f64::from(series.errors) * share;
        self.quantiles.push((calls, series.quantiles));
    }

    fn merged(&self) -> Option<LatencyQuantiles> {
        merge::mixture(self.quantiles.iter().map(|(weight, quantiles)| (*weight, quantiles)))
    }
}

type Served = (ServiceId, OperationId);
type Groups = Vec<Vec<Vec<EdgeKey>>>;

/// The latency series of all nodes, resolved and grouped.
struct Latencies {
    server: BTreeMap<Served, Parts>,
    self_time: BTreeMap<Served, Parts>,
    client: BTreeMap<EdgeKey, Parts>,
}

impl Latencies {
    fn of(windows: &[&NodeWindow], scene: &Scene<'_>) -> Self {
        let mut out = Self { server: BTreeMap::new(), self_time: BTreeMap::new(), client: BTreeMap::new() };
        let all = || windows.iter().flat_map(|window| &window.latencies);
        for series in all().filter(|series| series.kind != SeriesKind::Client) {
            let key = (series.service.clone(), series.operation.clone());
            let map = if series.kind == SeriesKind::Server { &mut out.server } else { &mut out.self_time };
            map.entry(key).or_default().add(series, 1.0);
        }
        let called = scene.learned.called();
        let serving: BTreeSet<&ServiceId> = out.server.keys().map(|(service, _)| service).collect();
        for series in all().filter(|series| series.kind == SeriesKind::Client) {
            // Who neither serves nor is called is a traced client outside the fleet.
            let is_outside = !serving.contains(&series.service) && !called.contains(&series.service);
            let name = CallName {
                caller: series.service.clone(),
                operation: series.operation.clone(),
                peer: series.peer.clone(),
            };
            for (mut edge, share) in resolve(&name, &out.server, scene) {
                if is_outside {
                    edge.caller = None;
                }
                out.client.entry(edge).or_default().add(series, share);
            }
        }
        out
    }

    /// Every edge that carried calls, ordered by key.
    fn edges(&self, samples: &BTreeMap<EdgeKey, EdgeSamples>) -> Vec<EdgeObservation> {
        let mut calls: BTreeMap<EdgeKey, (f64, f64)> =
            self.client.iter().map(|(edge, parts)| (edge.clone(), (parts.calls, parts.errors))).collect();
        for (served, parts) in &self.server {
            for (edge, share) in self.callers_without_series(served, parts, samples) {
                calls.entry(edge).or_insert((parts.calls * share, parts.errors * share));
            }
        }
        let callers = |edge: &EdgeKey| {
            calls.keys().filter(|other| other.callee == edge.callee && other.operation == edge.operation).count()
        };
        let empty = EdgeSamples::default();
        let carried = calls.iter().filter(|(_, (calls, _))| *calls > 0.0);
        carried
            .map(|(edge, (calls, errors))| {
                let samples = samples.get(edge).unwrap_or(&empty);
                self.edge(edge, (*calls, *errors), samples, callers(edge) == 1)
            })
            .collect()
    }

    /// Edges into `served` whose caller reports no client spans, clients above all, with their share of its calls.
    fn callers_without_series(
        &self,
        served: &Served,
        parts: &Parts,
        samples: &BTreeMap<EdgeKey, EdgeSamples>,
    ) -> Vec<(EdgeKey, f64)> {
        let (callee, operation) = served;
        let reaches = |edge: &EdgeKey| edge.callee == *callee && edge.operation == *operation;
        let seen: Vec<(&EdgeKey, usize)> = samples
            .iter()
            .filter(|(edge, _)| reaches(edge))
            .map(|(edge, samples)| (edge, samples.server.len()))
            .collect();
        let total: usize = seen.iter().map(|(_, count)| count).sum();
        if total > 0 {
            let silent = seen.into_iter().filter(|(edge, count)| *count > 0 && !self.client.contains_key(*edge));
            return silent.map(|(edge, count)| (edge.clone(), count as f64 / total as f64)).collect();
        }
        // No trace tells: what the known callers do not account for comes from clients.
        let known: f64 = self.client.iter().filter(|(edge, _)| reaches(edge)).map(|(_, parts)| parts.calls).sum();
        let rest = if parts.calls > 0.0 { (parts.calls - known) / parts.calls } else { 0.0 };
        // Callers and callees close their windows a little apart, so a small rest is nobody.
        let root = EdgeKey { caller: None, callee: callee.clone(), operation: operation.clone() };
        if rest > 0.2 { vec![(root, rest)] } else { Vec::new() }
    }

    fn edge(
        &self,
        key: &EdgeKey,
        (calls, errors): (f64, f64),
        samples: &EdgeSamples,
        is_only_caller: bool,
    ) -> EdgeObservation {
        let served = (key.callee.clone(), key.operation.clone());
        let of_operation = |map: &BTreeMap<Served, Parts>, own: &[f32]| {
            let own = if is_only_caller { None } else { quantiles_of(own) };
            own.or_else(|| map.get(&served).and_then(Parts::merged))
        };
        let client = self.client.get(key).and_then(Parts::merged);
        let server = of_operation(&self.server, &samples.server);
        let gap = quantiles_of(&samples.gap).or_else(|| Some(merge::difference(client.as_ref()?, server.as_ref()?)));
        EdgeObservation {
            key: key.clone(),
            calls,
            errors,
            self_time: of_operation(&self.self_time, &samples.self_time),
            client,
            server,
            gap,
        }
    }
}

/// The edges that `name` travels, as learnt. In a complete window without those whose callee served nothing: it is gone,
/// or has another name now, and must not live on in the calls of whoever took its place.
fn resolve(name: &CallName, served: &BTreeMap<Served, Parts>, scene: &Scene<'_>) -> Vec<(EdgeKey, f64)> {
    let mut learnt = scene.learned.resolve(name, scene.close);
    let has_served = |edge: &EdgeKey| served.contains_key(&(edge.callee.clone(), edge.operation.clone()));
    let share: f64 = learnt.iter().filter(|(edge, _)| has_served(edge)).map(|(_, share)| share).sum();
    if scene.completeness >= 1.0 && share > 0.0 {
        learnt.retain(|(edge, _)| has_served(edge));
        learnt.iter_mut().for_each(|(_, part)| *part /= share);
    }
    learnt
}

fn quantiles_of(values: &[f32]) -> Option<LatencyQuantiles> {
    if values.len() < PAIRS_MIN {
        return None;
    }
    LatencyQuantiles::of_values(&mut values.to_vec()).filter(LatencyQuantiles::is_valid)
}

fn objectives(windows: &[&NodeWindow], latencies: &Latencies, slos: &[Slo]) -> Vec<ObjectiveObservation> {
    slos.iter().filter_map(|slo| objective(windows, latencies, slo)).collect()
}

/// End-to-end latency from the entry histograms; where no node sent one, from the server percentiles.
fn objective(windows: &[&NodeWindow], latencies: &Latencies, slo: &Slo) -> Option<ObjectiveObservation> {
    let mut sum = Sum::default();
    let entries = windows.iter().flat_map(|window| &window.entries);
    for entry in entries.filter(|entry| slo.covers(&entry.service, &entry.operation)) {
        if let Ok(histogram) = histogram::decode(&entry.v2) {
            sum.add(&histogram);
        }
    }
    if let Some(latency_us) = sum.at(slo.percentile) {
        return Some(ObjectiveObservation { slo: slo.name.clone(), calls: sum.count() as f64, latency_us });
    }
    let covered = || latencies.server.iter().filter(|((service, operation), _)| slo.covers(service, operation));
    let merged = merge::mixture(
        covered().flat_map(|(_, parts)| parts.quantiles.iter().map(|(weight, quantiles)| (*weight, quantiles))),
    )?;
    let calls = covered().map(|(_, parts)| parts.calls).sum();
    Some(ObjectiveObservation { slo: slo.name.clone(), calls, latency_us: f64::from(merged.at(slo.percentile)) })
}

/// Arrivals per second at the services that clients call.
fn offered(windows: &[&NodeWindow], edges: &[EdgeObservation], scene: &Scene<'_>) -> f64 {
    let is_entry = |service: &ServiceId| scene.slos.iter().any(|slo| slo.service == *service);
    // Calls without a caller may be those of a node that is missing: only who is never called by others is an entry too.
    let called = scene.learned.called();
    let is_open = |service: &ServiceId| is_entry(service) || !called.contains(service);
    let roots = edges.iter().filter(|edge| edge.key.caller.is_none() && is_open(&edge.key.callee));
    let from_edges: f64 = roots.map(|edge| edge.calls).sum();
    let mut counted = Sum::default();
    let mut refused = 0.0;
    for entry in windows.iter().flat_map(|window| &window.entries).filter(|entry| is_entry(&entry.service)) {
        if let Ok(histogram) = histogram::decode(&entry.v2) {
            counted.add(&histogram);
        }
        refused += f64::from(entry.errors);
    }
    let from_entries = if counted.count() > 0 { counted.count() as f64 } else { refused };
    let seconds = scene.length.as_secs_f64();
    if seconds > 0.0 { from_edges.max(from_entries) / seconds } else { 0.0 }
}

type Instances = BTreeMap<(NodeId, InstanceId), Vec<(Metric, UsageQuantiles)>>;

fn services(windows: &[&NodeWindow], edges: &[EdgeObservation]) -> Vec<ServiceObservation> {
    let mut services: BTreeMap<ServiceId, Instances> = BTreeMap::new();
    for edge in edges {
        services.entry(edge.key.callee.clone()).or_default();
        if let Some(caller) = &edge.key.caller {
            services.entry(caller.clone()).or_default();
        }
    }
    for window in windows {
        for usage in &window.usage {
            let mut metrics: BTreeMap<Metric, UsageQuantiles> =
                window.node_usage.iter().map(|value| (value.metric, value.quantiles)).collect();
            metrics.extend(usage.metrics.iter().map(|value| (value.metric, value.quantiles)));
            let key = (window.key.node.clone(), usage.instance.clone());
            services.entry(usage.service.clone()).or_default().insert(key, metrics.into_iter().collect());
        }
    }
    services
        .into_iter()
        .map(|(service, instances)| ServiceObservation {
            service,
            instances: instances
                .into_iter()
                .map(|((node, instance), metrics)| InstanceObservation { instance, node, metrics })
                .collect(),
        })
        .collect()
}

/// The agents' call structures with every call resolved to the edge that most of such calls take.
fn skeletons(windows: &[&NodeWindow], served: &BTreeMap<Served, Parts>, scene: &Scene<'_>) -> Vec<ResolvedSkeleton> {
    let mut merged: BTreeMap<(Served, Groups), u32> = BTreeMap::new();
    for skeleton in windows.iter().flat_map(|window| &window.skeletons) {
        let groups = resolve_groups(skeleton, served, scene);
        let count = merged.entry(((skeleton.service.clone(), skeleton.operation.clone()), groups)).or_default();
        *count = count.saturating_add(skeleton.count);
    }
    merged
        .into_iter()
        .map(|(((service, operation), groups), count)| ResolvedSkeleton { service, operation, groups, count })
        .collect()
}

fn resolve_groups(skeleton: &Skeleton, served: &BTreeMap<Served, Parts>, scene: &Scene<'_>) -> Groups {
    let busiest = |operation: &OperationId, peer: &Option<_>| {
        let name = CallName { caller: skeleton.service.clone(), operation: operation.clone(), peer: peer.clone() };
        resolve(&name, served, scene).into_iter().next().map(|(edge, _)| edge)
    };
    let branch = |calls: &Vec<sage_common::CallShape>| -> Vec<EdgeKey> {
        calls.iter().filter_map(|call| busiest(&call.operation, &call.peer)).collect()
    };
    let group = |branches: &Vec<Vec<_>>| -> Vec<Vec<EdgeKey>> {
        branches.iter().map(branch).filter(|calls| !calls.is_empty()).collect()
    };
    skeleton.groups.iter().map(group).filter(|branches| !branches.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use sage_common::{BootId, IntakeCounters, LATENCY_PERCENTILES, PeerHint, WindowKey};

    use super::*;
    use crate::core::{join::join, testing::slo};

    fn uniform(from: f32, to: f32) -> LatencyQuantiles {
        LatencyQuantiles(LATENCY_PERCENTILES.map(|p| from + (to - from) * (p / 100.0) as f32))
    }

    fn series(who: &str, op: &str, kind: SeriesKind, peer: Option<&str>, calls: f32, to: f32) -> LatencySeries {
        LatencySeries {
            service: ServiceId::sanitized(who),
            operation: OperationId::sanitized(op),
            kind,
            peer: peer.map(|peer| PeerHint::Service(ServiceId::sanitized(peer))),
            calls,
            errors: calls / 10.0,
            quantiles: uniform(0.0, to),
        }
    }

    fn window(name: &str, latencies: Vec<LatencySeries>) -> NodeWindow {
        NodeWindow {
            key: WindowKey { node: NodeId::sanitized(name), boot: BootId(1), seq: 0 },
            start: Timestamp::from_micros(0),
            length: Micros::from_secs(10),
            latencies,
            usage: Vec::new(),
            node_usage: Vec::new(),
            stubs: Vec::new(),
            skeletons: Vec::new(),
            entries: Vec::new(),
            offers: Vec::new(),
            intake: IntakeCounters::default(),
            stub_share: 1.0,
        }
    }

    fn observed(windows: &[NodeWindow]) -> Observation {
        observed_with(windows, &Learned::default(), 1.0)
    }

    fn observed_with(windows: &[NodeWindow], learned: &Learned, completeness: f32) -> Observation {
        let windows: Vec<&NodeWindow> = windows.iter().collect();
        let joined = join(&windows, learned, 1, &BTreeSet::from([slo().service]));
        let scene = Scene {
            start: Timestamp::from_micros(0),
            length: Micros::from_secs(10),
            close: 1,
            completeness,
            slos: &[slo()],
            learned,
        };
        observe(&windows, joined, &scene)
    }

    #[test]
    fn calls_whose_callers_node_is_missing_are_no_arrivals() {
        use crate::core::learned::Target;
        let mut learned = Learned::default();
        let name =
            CallName { caller: ServiceId::sanitized("geo"), operation: OperationId::sanitized("GET"), peer: None };
        let target = Target { callee: ServiceId::sanitized("stock"), operation: OperationId::sanitized("Find") };
        learned.learn(&name, &target, 100, 1);
        let windows = [
            window("a", vec![series("front", "GET /", SeriesKind::Server, None, 100.0, 200.0)]),
            window("c", vec![series("stock", "Find", SeriesKind::Server, None, 100.0, 50.0)]),
        ];
        assert_eq!(observed_with(&windows, &learned, 0.6).offered_per_s, 10.0, "geo's window has not come");
    }

    #[test]
    fn who_served_nothing_in_a_complete_window_was_not_called() {
        use crate::core::learned::Target;
        let mut learned = Learned::default();
        let peer = Some(PeerHint::Service(ServiceId::sanitized("search.local")));
        let name = CallName { caller: ServiceId::sanitized("front"), operation: OperationId::sanitized("GET"), peer };
        for (callee, count) in [("search", 900), ("finder", 100)] {
            let target = Target { callee: ServiceId::sanitized(callee), operation: OperationId::sanitized("Find") };
            learned.learn(&name, &target, count, 1);
        }
        let windows = [
            window("a", vec![series("front", "GET", SeriesKind::Client, Some("search.local"), 50.0, 200.0)]),
            window("b", vec![series("finder", "Find", SeriesKind::Server, None, 50.0, 100.0)]),
        ];
        let called = |completeness| -> Vec<(String, f64)> {
            let edges = observed_with(&windows, &learned, completeness).edges;
            edges.into_iter().map(|edge| (edge.key.callee.to_string(), edge.calls.round())).collect()
        };
        assert_eq!(called(1.0), [("finder".to_owned(), 50.0)], "search has a new name");
        let with_search = called(0.5);
        assert!(with_search.contains(&("search".to_owned(), 45.0)), "its node may be missing: {with_search:?}");
    }

    #[test]
    fn without_any_trace_hints_make_the_edges_and_clients_the_rest() {
        let seen = observed(&[
            window(
                "a",
                vec![
                    series("front", "GET /", SeriesKind::Server, None, 100.0, 1_000.0),
                    series("front", "near", SeriesKind::Client, Some("geo"), 200.0, 500.0),
                ],
            ),
            window("b", vec![series("geo", "near", SeriesKind::Server, None, 205.0, 400.0)]),
        ]);
        let edges: Vec<(Option<&str>, &str, f64)> = seen
            .edges
            .iter()
            .map(|edge| (edge.key.caller.as_ref().map(ServiceId::as_str), edge.key.callee.as_str(), edge.calls))
            .collect();
        assert_eq!(edges, [(None, "front", 100.0), (Some("front"), "geo", 200.0)]);
        let gap = seen.edges[1].gap.expect("both sides").at(100.0);
        assert!((gap - 100.0).abs() < 1.0, "{gap}");
        assert_eq!(seen.offered_per_s, 10.0);
    }

    #[test]
    fn replicas_of_a_tier_are_merged_by_their_calls() {
        let seen = observed(&[
            window("a", vec![series("front", "GET /", SeriesKind::Server, None, 90.0, 100.0)]),
            window("b", vec![series("front", "GET /", SeriesKind::Server, None, 10.0, 10_000.0)]),
        ]);
        let edge = &seen.edges[0];
        assert_eq!((edge.calls, edge.errors), (100.0, 10.0));
        let p50 = edge.server.expect("merged").at(50.0);
        assert!(p50 < 70.0, "{p50}");
        assert!(edge.server.expect("merged").at(99.0) > 8_000.0);
    }

    #[test]
    fn without_entry_histograms_the_objective_comes_from_the_percentiles() {
        let seen = observed(&[window("a", vec![series("front", "GET /", SeriesKind::Server, None, 90.0, 100.0)])]);
        assert_eq!((seen.objectives[0].calls, seen.objectives[0].latency_us.round()), (90.0, 99.0));
        assert!(observed(&[window("a", Vec::new())]).objectives.is_empty());
    }

    #[test]
    fn a_damaged_entry_histogram_is_left_out() {
        let mut one = window("a", vec![series("front", "GET /", SeriesKind::Server, None, 90.0, 100.0)]);
        one.entries = vec![sage_common::EntryHistogram {
            service: ServiceId::sanitized("front"),
            operation: OperationId::sanitized("GET /"),
            v2: vec![1, 2, 3],
            errors: 0.0,
        }];
        assert_eq!(observed(&[one]).objectives[0].calls, 90.0);
    }

    #[test]
    fn an_instance_has_its_own_metrics_and_those_of_its_node() {
        let value = |metric, value| sage_common::MetricValue { metric, quantiles: UsageQuantiles([value; 6]) };
        let mut one = window("a", Vec::new());
        one.usage = vec![sage_common::InstanceUsage {
            service: ServiceId::sanitized("geo"),
            instance: InstanceId::sanitized("geo-1"),
            metrics: vec![value(Metric::CpuUsed, 0.5)],
        }];
        one.node_usage = vec![value(Metric::NodeCpuUtilisation, 0.9)];
        let seen = observed(&[one]);
        let metrics: Vec<Metric> = seen.services[0].instances[0].metrics.iter().map(|(metric, _)| *metric).collect();
        assert_eq!(metrics, [Metric::CpuUsed, Metric::NodeCpuUtilisation]);
    }

    #[test]
    fn a_call_structure_names_edges_and_equal_ones_add_up() {
        let call = |op: &str| sage_common::CallShape {
            operation: OperationId::sanitized(op),
            peer: Some(PeerHint::Service(ServiceId::sanitized("geo"))),
        };
        let lost = sage_common::CallShape { operation: OperationId::sanitized("x"), peer: None };
        let mut one = window("a", Vec::new());
        let skeleton = |groups, count| Skeleton {
            service: ServiceId::sanitized("front"),
            operation: OperationId::sanitized("GET /"),
            groups,
            count,
        };
        one.skeletons = vec![
            skeleton(vec![vec![vec![call("near")]]], 3),
            skeleton(vec![vec![vec![call("near")]], vec![vec![lost]]], 4),
        ];
        let seen = observed(&[one]);
        assert_eq!((seen.skeletons.len(), seen.skeletons[0].count), (1, 7), "what cannot be resolved is left out");
        assert_eq!(seen.skeletons[0].groups[0][0][0].callee.as_str(), "geo");
    }
}
