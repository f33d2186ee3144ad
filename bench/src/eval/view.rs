//! What simple systems read from a window: per service and edge, a handful of numbers.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::observation::{EdgeKey, EdgeObservation, Observation};
use sage_common::{LatencyQuantiles, Metric, ServiceId, Slo};

/// No latency is taken for shorter, so that its logarithm is finite; microseconds.
const FLOOR_US: f64 = 1.0;

/// Grid points p75 to p99.5, over which an excess is averaged.
const TAIL: std::ops::Range<usize> = 3..11;

/// One window.
#[derive(Clone, Debug)]
pub struct View {
    /// By name.
    pub services: BTreeMap<ServiceId, ServiceView>,
    /// By key.
    pub edges: BTreeMap<EdgeKey, EdgeView>,
    /// Latency of the objective over its target.
    pub overshoot: Option<f64>,
    /// Latency of the objective, microseconds.
    pub latency_us: Option<f64>,
    /// Arrivals per second.
    pub offered_per_s: f64,
}

/// One service.
#[derive(Clone, Debug, Default)]
pub struct ServiceView {
    /// Upper mean of each metric (the median and above), median over replicas.
    pub metrics: [Option<f64>; Metric::COUNT],
    /// p99 of its server spans over its operations, weighted by calls, microseconds.
    pub server_us: Option<f64>,
    /// p99 of the client spans of calls to it, microseconds.
    pub client_us: Option<f64>,
    /// Requests in it or on their way to it at once, by Little's law; known only where it is instrumented.
    pub outstanding: Option<f64>,
    /// Calls completed.
    pub calls: f64,
}

impl ServiceView {
    /// One metric.
    pub fn metric(&self, metric: Metric) -> Option<f64> {
        self.metrics[metric.index()]
    }
}

/// One edge, microseconds.
#[derive(Clone, Copy, Debug)]
pub struct EdgeView {
    /// Calls completed.
    pub calls: f64,
    /// Self time of the callee.
    pub own: Option<Tail>,
    /// Client minus server span.
    pub gap: Option<Tail>,
    /// Server span.
    pub server: Option<Tail>,
    /// Client span.
    pub client: Option<Tail>,
}

/// Two views of one distribution, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tail {
    /// p99.
    pub p99: f64,
    /// Mean of p75 to p99.5.
    pub band: f64,
}

impl Tail {
    fn of(quantiles: &LatencyQuantiles) -> Self {
        let band = &quantiles.0[TAIL];
        let mean = band.iter().map(|us| f64::from(*us)).sum::<f64>() / band.len() as f64;
        Self { p99: f64::from(quantiles.at(99.0)).max(FLOOR_US), band: mean.max(FLOOR_US) }
    }
}

impl View {
    /// The numbers of `window`.
    pub fn of(window: &Observation, slo: &Slo) -> Self {
        let latency_us = latency_us(window, slo);
        let mut services: BTreeMap<ServiceId, ServiceView> =
            window.services.iter().map(|service| (service.service.clone(), usage(&service.instances))).collect();
        for edge in &window.edges {
            services.entry(edge.key.callee.clone()).or_default();
        }
        for (name, service) in &mut services {
            let edges: Vec<&EdgeObservation> = window.edges.iter().filter(|edge| edge.key.callee == *name).collect();
            latencies(service, &edges, window.length.as_secs_f64());
        }
        let tail = |quantiles: &Option<LatencyQuantiles>| quantiles.as_ref().map(Tail::of);
        let view = |edge: &EdgeObservation| EdgeView {
            calls: edge.calls,
            own: tail(&edge.self_time),
            gap: tail(&edge.gap),
            server: tail(&edge.server),
            client: tail(&edge.client),
        };
        Self {
            services,
            edges: window.edges.iter().map(|edge| (edge.key.clone(), view(edge))).collect(),
            overshoot: latency_us.map(|latency| latency / slo.target.get().max(1) as f64),
            latency_us,
            offered_per_s: window.offered_per_s,
        }
    }

    /// Whether the target is known to be met.
    pub fn is_healthy(&self) -> bool {
        self.overshoot.is_some_and(|overshoot| overshoot <= 1.0)
    }
}

/// Views of `windows`, in order.
pub fn views(windows: &[Observation], slo: &Slo) -> Vec<View> {
    windows.iter().map(|window| View::of(window, slo)).collect()
}

/// Latency of `slo` in `window`, microseconds; `None` when nobody called.
pub fn latency_us(window: &Observation, slo: &Slo) -> Option<f64> {
    let of_slo = window.objectives.iter().find(|objective| objective.slo == slo.name);
    of_slo.filter(|objective| objective.calls > 0.0).map(|objective| objective.latency_us)
}

/// Whether `window` broke the target of `slo`.
pub fn is_violated(window: &Observation, slo: &Slo) -> bool {
    latency_us(window, slo).is_some_and(|latency| latency > slo.target.get() as f64)
}

/// The last run of windows of `recent` that broke the target; empty when the newest one met it.
pub fn violation<'a>(recent: &'a [Observation], slo: &Slo) -> &'a [Observation] {
    let from = recent.iter().rposition(|window| !is_violated(window, slo)).map_or(0, |last| last + 1);
    &recent[from..]
}

/// Who calls whom: every edge between services in `views`.
pub fn callees(views: &[View]) -> BTreeMap<ServiceId, BTreeSet<ServiceId>> {
    let mut callees = BTreeMap::<ServiceId, BTreeSet<ServiceId>>::new();
    for key in views.iter().flat_map(|view| view.edges.keys()) {
        if let Some(caller) = &key.caller {
            callees.entry(caller.clone()).or_default().insert(key.callee.clone());
        }
    }
    callees
}

/// Mean of the distribution, by the width of the grid around each of its points.
fn mean(quantiles: &LatencyQuantiles) -> f64 {
    const WIDTHS: [f64; 12] = [0.175, 0.2, 0.25, 0.175, 0.075, 0.05, 0.035, 0.015, 0.01, 0.0075, 0.005, 0.0025];
    quantiles.0.iter().zip(WIDTHS).map(|(us, width)| f64::from(*us) * width).sum()
}

fn usage(instances: &[sage_causal::observation::InstanceObservation]) -> ServiceView {
    let mut service = ServiceView::default();
    for metric in Metric::ALL {
        let of_metric = instances.iter().flat_map(|instance| &instance.metrics).filter(|(own, _)| *own == metric);
        let mut values: Vec<f64> = of_metric.map(|(_, usage)| f64::from(usage.upper_mean())).collect();
        values.retain(|value| value.is_finite());
        values.sort_unstable_by(f64::total_cmp);
        service.metrics[metric.index()] = values.get(values.len() / 2).copied();
    }
    service
}

/// Fills in what the edges into `service` say.
fn latencies(service: &mut ServiceView, edges: &[&EdgeObservation], seconds: f64) {
    let weighted = |pick: &dyn Fn(&EdgeObservation) -> Option<f64>| {
        let known = edges.iter().filter_map(|edge| Some((pick(edge)?.max(FLOOR_US).ln(), edge.calls.max(1.0))));
        let (total, weight) = known.fold((0.0, 0.0), |(t, w), (log, calls)| (t + log * calls, w + calls));
        (weight > 0.0).then(|| (total / weight).exp())
    };
    let p99 = |quantiles: &Option<LatencyQuantiles>| quantiles.as_ref().map(|q| f64::from(q.at(99.0)));
    service.server_us = weighted(&|edge| p99(&edge.server));
    service.client_us = weighted(&|edge| p99(&edge.client));
    service.calls = edges.iter().map(|edge| edge.calls).sum();
    let at_once = edges.iter().filter_map(|edge| {
        let waiting = edge.gap.as_ref().map_or(0.0, mean);
        Some(edge.calls * (mean(edge.server.as_ref()?) + waiting) / 1e6)
    });
    let (total, known) = at_once.fold((0.0, 0_usize), |(total, known), value| (total + value, known + 1));
    service.outstanding = (known > 0 && seconds > 0.0).then(|| total / seconds);
}

#[cfg(test)]
mod tests {
    use sage_causal::testing::{Fault, World};

    use super::*;

    #[test]
    fn the_violation_is_the_last_run_of_broken_windows() {
        let world = World::chain();
        let slo = world.slo();
        let mut recent = world.windows(3, 0, 2, &[Fault::Slow(2, 20.0)]);
        recent.extend(world.windows(3, 2, 2, &[]));
        assert!(violation(&recent, &slo).is_empty());
        recent.extend(world.windows(3, 4, 2, &[Fault::Slow(2, 20.0)]));
        assert_eq!(violation(&recent, &slo).len(), 2);
        assert_eq!(violation(&recent[..2], &slo).len(), 2);
    }

    #[test]
    fn a_view_tells_a_slow_tier_from_those_that_wait_for_it() {
        let world = World::chain();
        let slo = world.slo();
        let calm = View::of(&world.observe(3, 0, &[]), &slo);
        let slow = View::of(&world.observe(3, 0, &[Fault::Slow(2, 20.0)]), &slo);
        let grew = |tier: usize, pick: fn(&View, &ServiceId) -> Option<f64>| {
            let name = world.service(tier);
            pick(&slow, &name).expect("measured") / pick(&calm, &name).expect("measured")
        };
        let own = |view: &View, name: &ServiceId| {
            view.edges.iter().find(|(key, _)| key.callee == *name).and_then(|(_, edge)| Some(edge.own?.p99))
        };
        assert!(grew(2, own) > 10.0 && grew(1, own) < 1.5);
        assert!(grew(1, |view, name| view.services[name].server_us) > 3.0);
        assert!(grew(1, |view, name| view.services[name].outstanding) > 3.0);
        assert!(calm.is_healthy() && !slow.is_healthy());
    }
}
