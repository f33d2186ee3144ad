//! Recorded percentiles as an agent would have told them: series and call structures. Pure.
//!
//! A graph names who calls whom and not how often, so a callee's calls are shared among its callers by their own calls.
//! What a caller waited is taken for the percentiles of its callees one after the other. This is less than spans tell:
//! gaps are known only where somebody measured the calling side, and parallel calls count as if they were serial.

use std::collections::BTreeMap;

use sage_common::{
    CallShape, LATENCY_PERCENTILES, LatencyQuantiles, LatencySeries, OperationId, PeerHint, SeriesKind, ServiceId,
    Skeleton,
};

use super::{callgraph::CallGraph, latency::Summary};

/// Share of a service's time that is its own at least: the percentiles of its callees may add up to more than all of it.
const SELF_MIN: f64 = 0.02;

/// Call structures are told per this many requests: calls that a request makes now and then.
const REQUESTS_TOLD: f64 = 100.0;

/// Calls of an interval in which nobody counted them: enough for its percentiles to mean something.
const CALLS_ASSUMED: f64 = 100.0;

/// What one service's metrics say of one interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Of what it answered.
    pub served: Summary,
    /// Of what it asked others.
    pub made: BTreeMap<ServiceId, Summary>,
}

impl Measured {
    /// How much it holds.
    pub fn size(&self) -> usize {
        1 + self.served.size() + self.made.values().map(|made| 1 + made.size()).sum::<usize>()
    }
}

/// What one interval of percentiles says, as an agent would have said it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Server, self and client series.
    pub series: Vec<LatencySeries>,
    /// How requests call.
    pub skeletons: Vec<Skeleton>,
}

/// Everything that `services` say of an interval of `seconds`, calling as `graph` says.
pub fn tell(services: &BTreeMap<ServiceId, Measured>, graph: &CallGraph, seconds: f64) -> Told {
    let served: BTreeMap<&ServiceId, Served<'_>> = services
        .iter()
        .filter_map(|(service, measured)| Some((service, Served::of(measured, seconds)?)))
        .filter(|(_, own)| own.calls > 0.0)
        .collect();
    let mut told = Told::default();
    for (service, own) in &served {
        let calls: Vec<Call<'_>> =
            graph.callees(service).filter_map(|callee| Call::of(own, callee, &served, graph, seconds)).collect();
        told.add(service, own, &calls);
    }
    told
}

/// One service that answered.
struct Served<'a> {
    quantiles: LatencyQuantiles,
    calls: f64,
    measured: &'a Measured,
}

impl<'a> Served<'a> {
    fn of(measured: &'a Measured, seconds: f64) -> Option<Self> {
        let quantiles = measured.served.quantiles()?;
        Some(Self { quantiles, calls: measured.served.calls(seconds).unwrap_or(CALLS_ASSUMED), measured })
    }
}

/// What one service asked another.
struct Call<'a> {
    callee: &'a ServiceId,
    quantiles: LatencyQuantiles,
    calls: f64,
    failed: f64,
}

impl<'a> Call<'a> {
    /// As the caller measured it; else as the callee did, with the caller's part of its calls.
    fn of(
        own: &Served<'_>,
        callee: &'a ServiceId,
        served: &BTreeMap<&ServiceId, Served<'_>>,
        graph: &CallGraph,
        seconds: f64,
    ) -> Option<Self> {
        let theirs = served.get(callee);
        let shared = theirs.map(|theirs| {
            let callers = graph.callers(callee).filter_map(|caller| served.get(caller));
            let total: f64 = callers.map(|caller| caller.calls).sum();
            theirs.calls * own.calls / total.max(1e-9)
        });
        let made = own.measured.made.get(callee);
        let quantiles = made.and_then(Summary::quantiles).or_else(|| Some(theirs?.quantiles))?;
        let calls = made.and_then(|made| made.calls(seconds)).or(shared).unwrap_or(own.calls);
        let failed = made.or_else(|| Some(&theirs?.measured.served)).map_or(0.0, Summary::failed);
        (calls > 0.0).then_some(Self { callee, quantiles, calls, failed })
    }
}

impl Told {
    fn add(&mut self, service: &ServiceId, own: &Served<'_>, calls: &[Call<'_>]) {
        let series = |kind, quantiles, (calls, failed): (f64, f64), peer| LatencySeries {
            service: service.clone(),
            operation: every(),
            kind,
            peer,
            calls: calls as f32,
            errors: (calls * failed) as f32,
            quantiles,
        };
        self.series.push(series(SeriesKind::Server, own.quantiles, (own.calls, own.measured.served.failed()), None));
        self.series.push(series(SeriesKind::SelfTime, self_time(own, calls), (own.calls, 0.0), None));
        let peer = |callee: &ServiceId| Some(PeerHint::Service(callee.clone()));
        self.series.extend(
            calls
                .iter()
                .map(|call| series(SeriesKind::Client, call.quantiles, (call.calls, call.failed), peer(call.callee))),
        );
        let shapes: Vec<(f64, CallShape)> = calls
            .iter()
            .map(|call| (call.calls / own.calls, CallShape { operation: every(), peer: peer(call.callee) }))
            .collect();
        self.skeletons.extend(skeletons(service, &shapes));
    }
}

/// What its callees leave of a service's time.
fn self_time(own: &Served<'_>, calls: &[Call<'_>]) -> LatencyQuantiles {
    let mut waited = [0.0_f64; LATENCY_PERCENTILES.len()];
    for call in calls {
        let each = (call.calls / own.calls).min(1.0);
        waited.iter_mut().zip(call.quantiles.0).for_each(|(sum, us)| *sum += each * f64::from(us));
    }
    let mut most = 0.0_f32;
    LatencyQuantiles(std::array::from_fn(|q| {
        let whole = f64::from(own.quantiles.0[q]);
        most = most.max((whole - waited[q]).max(SELF_MIN * whole) as f32);
        most
    }))
}

/// Serial calls; those that only some requests make are left out of the others, the rarest first.
fn skeletons(service: &ServiceId, shapes: &[(f64, CallShape)]) -> Vec<Skeleton> {
    let mut steps: Vec<f64> = shapes.iter().map(|(each, _)| each.min(1.0)).collect();
    steps.push(1.0);
    steps.sort_by(f64::total_cmp);
    let mut below = 0.0;
    let mut all = Vec::new();
    for step in steps {
        let count = ((step - below) * REQUESTS_TOLD).round() as u32;
        if count > 0 {
            let made = shapes.iter().filter(|(each, _)| each.min(1.0) >= step);
            let groups = made.map(|(_, shape)| vec![vec![shape.clone()]]).collect();
            all.push(Skeleton { service: service.clone(), operation: every(), groups, count });
        }
        below = step;
    }
    all
}

/// A service's percentiles do not say which operation they are of.
fn every() -> OperationId {
    OperationId::sanitized("(all)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::latency::Said;

    fn measured(p50_ms: f64, requests: f64) -> Measured {
        let mut own = Measured::default();
        own.served.add(0, Said::Percentile(50.0, p50_ms * 1e3), false);
        own.served.add(0, Said::Percentile(99.0, p50_ms * 2e3), false);
        own.served.add(0, Said::Requests(requests), false);
        own
    }

    fn services(front: Measured) -> BTreeMap<ServiceId, Measured> {
        BTreeMap::from([(id("front"), front), (id("cart"), measured(30.0, 30.0))])
    }

    fn id(name: &str) -> ServiceId {
        ServiceId::sanitized(name)
    }

    fn graph() -> CallGraph {
        CallGraph::parse("front,cart").expect("valid")
    }

    fn found<'a>(told: &'a Told, kind: SeriesKind, who: &str) -> &'a LatencySeries {
        told.series.iter().find(|series| series.kind == kind && series.service.as_str() == who).expect("told")
    }

    #[test]
    fn a_callers_own_time_is_what_its_callees_leave() {
        let told = tell(&services(measured(100.0, 60.0)), &graph(), 300.0);
        let own = found(&told, SeriesKind::SelfTime, "front").quantiles.at(50.0);
        assert!((own - 85_000.0).abs() < 500.0, "half of them call: {own}");
        assert_eq!(found(&told, SeriesKind::Client, "front").calls, 30.0);
        assert!(told.series.iter().all(|series| series.quantiles.is_valid()));
        let counts: Vec<(usize, u32)> = told
            .skeletons
            .iter()
            .filter(|s| s.service.as_str() == "front")
            .map(|s| (s.groups.len(), s.count))
            .collect();
        assert_eq!(counts, [(1, 50), (0, 50)]);
    }

    #[test]
    fn what_the_caller_measured_of_a_call_comes_before_what_the_callee_did() {
        let mut front = measured(100.0, 60.0);
        let of_cart = front.made.entry(id("cart")).or_default();
        of_cart.add(0, Said::Percentile(50.0, 70_000.0), false);
        of_cart.add(0, Said::Rate(0.2), false);
        let told = tell(&services(front), &graph(), 300.0);
        let call = found(&told, SeriesKind::Client, "front");
        assert_eq!((call.quantiles.at(50.0).round(), call.calls), (70_000.0, 60.0));
    }

    #[test]
    fn who_answered_nothing_is_absent_and_uncounted_calls_are_assumed() {
        let told = tell(&services(measured(100.0, 0.0)), &graph(), 300.0);
        assert!(told.series.iter().all(|series| series.service.as_str() == "cart"));
        let mut uncounted = Measured::default();
        uncounted.served.add(0, Said::Percentile(50.0, 1e3), false);
        let told = tell(&BTreeMap::from([(id("front"), uncounted)]), &graph(), 300.0);
        assert_eq!(found(&told, SeriesKind::Server, "front").calls, CALLS_ASSUMED as f32);
    }
}
