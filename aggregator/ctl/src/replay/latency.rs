//! Latency where there are no spans: recorded percentiles per service, and a call graph given beside them. Pure.
//!
//! A graph names who calls whom and not how often, so a callee's calls are shared among its callers by their own calls, and
//! what a caller waited is taken for the percentiles of its callees one after the other. This is less than spans tell:
//! gaps are zero, and parallel calls count as if they were serial.

use std::collections::{BTreeMap, BTreeSet};

use sage_common::{
    CallShape, LATENCY_PERCENTILES, LatencyQuantiles, LatencySeries, OperationId, PeerHint, SeriesKind, ServiceId,
    Skeleton,
};
use serde::Deserialize;

use super::points::Point;

/// Share of a service's time that is its own at least: the percentiles of its callees may add up to more than all of it.
const SELF_MIN: f64 = 0.02;

/// Edges of a given graph at most.
pub const EDGES_MAX: usize = 100_000;

/// Call structures are told per this many requests: calls that a request makes now and then.
const REQUESTS_TOLD: f64 = 100.0;

/// What a point says of a service's latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Said {
    /// This percentile, microseconds.
    Percentile(f64, f64),
    /// Requests since the point before.
    Requests(f64),
    /// Requests per second.
    Rate(f64),
    /// Share of requests that succeeded.
    Succeeded(f64),
}

/// What `point` says of the latency of its service as a server; `None` when it speaks of something else.
pub fn said(point: &Point) -> Option<Said> {
    let rest = ["rpc.server.", "http.server."].iter().find_map(|prefix| point.name.strip_prefix(prefix))?;
    let value = Some(point.value).filter(|value| *value >= 0.0)?;
    match rest {
        "requests" => Some(Said::Requests(value)),
        "request.rate" => Some(Said::Rate(value)),
        "availability" | "success_ratio" => Some(Said::Succeeded(value.min(1.0))),
        _ => {
            let percentile = rest.strip_prefix("request.").unwrap_or(rest).strip_prefix("duration.p")?;
            let percentile: f64 = percentile.parse().ok().filter(|p| (1.0..=100.0).contains(p))?;
            let factor = match point.unit.as_str() {
                "us" => 1.0,
                "ms" => 1e3,
                _ => 1e6, // the conventions' unit is the second
            };
            Some(Said::Percentile(percentile, value * factor))
        }
    }
}

/// One service over one interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Percentile and microseconds.
    percentiles: Vec<(f64, f64)>,
    requests: Option<f64>,
    rate: Option<f64>,
    succeeded: Option<f64>,
}

impl Summary {
    /// Adds what a point said.
    pub fn add(&mut self, said: Said) {
        match said {
            Said::Percentile(percentile, micros) => self.percentiles.push((percentile, micros)),
            Said::Requests(count) => self.requests = Some(self.requests.unwrap_or(0.0) + count),
            Said::Rate(rate) => self.rate = Some(self.rate.unwrap_or(0.0) + rate),
            Said::Succeeded(share) => self.succeeded = Some(share),
        }
    }

    /// The grid between the percentiles that are known, in logs; flat above the largest and falling slowly below the
    /// smallest. `None` without any.
    fn quantiles(&self) -> Option<LatencyQuantiles> {
        let mut known: Vec<(f64, f64)> = self.percentiles.iter().map(|(p, us)| (*p, us.max(1.0).ln())).collect();
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (first, last) = (*known.first()?, *known.last()?);
        let at = |p: f64| {
            let above = known.iter().position(|(q, _)| *q >= p);
            match above {
                Some(0) => first.1,
                Some(at) => {
                    let (a, b) = (known[at - 1], known[at]);
                    a.1 + (b.1 - a.1) * (p - a.0) / (b.0 - a.0).max(1e-9)
                }
                None => last.1,
            }
        };
        let mut most = 0.0_f32;
        let grid = LATENCY_PERCENTILES.map(|p| {
            most = most.max(at(p).exp() as f32);
            most
        });
        Some(LatencyQuantiles(grid))
    }

    /// Calls within `seconds`; one where nobody counts them.
    fn calls(&self, seconds: f64) -> f64 {
        self.requests.or_else(|| Some(self.rate? * seconds)).unwrap_or(1.0)
    }
}

/// Who calls whom, as given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallGraph {
    callees: BTreeMap<ServiceId, BTreeSet<ServiceId>>,
}

#[derive(Deserialize)]
struct Edge {
    #[serde(alias = "caller", alias = "source")]
    client: String,
    #[serde(alias = "callee", alias = "target")]
    server: String,
}

impl CallGraph {
    /// Reads `[{"client", "server"}]`.
    ///
    /// # Errors
    ///
    /// What is wrong, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let edges: Vec<Edge> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if edges.len() > EDGES_MAX {
            return Err(format!("more than {EDGES_MAX} edges"));
        }
        let mut callees: BTreeMap<ServiceId, BTreeSet<ServiceId>> = BTreeMap::new();
        for edge in edges.iter().filter(|edge| edge.client != edge.server) {
            callees.entry(ServiceId::sanitized(&edge.client)).or_default().insert(ServiceId::sanitized(&edge.server));
        }
        Ok(Self { callees })
    }

    /// Whether it names anybody.
    pub fn is_empty(&self) -> bool {
        self.callees.is_empty()
    }

    fn callers<'a>(&'a self, callee: &'a ServiceId) -> impl Iterator<Item = &'a ServiceId> {
        self.callees.iter().filter(move |(_, callees)| callees.contains(callee)).map(|(caller, _)| caller)
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

/// Everything that `services` say of an interval of `seconds`.
pub fn tell(services: &BTreeMap<ServiceId, Summary>, graph: &CallGraph, seconds: f64) -> Told {
    let known: BTreeMap<&ServiceId, (LatencyQuantiles, f64)> = services
        .iter()
        .filter_map(|(service, summary)| Some((service, (summary.quantiles()?, summary.calls(seconds)))))
        .filter(|(_, (_, calls))| *calls > 0.0)
        .collect();
    let mut told = Told::default();
    for (service, (server, calls)) in &known {
        let errors = services.get(*service).and_then(|own| own.succeeded).map_or(0.0, |share| (1.0 - share) * calls);
        let series = |kind, quantiles, calls: f64, peer| LatencySeries {
            service: (*service).clone(),
            operation: every(),
            kind,
            peer,
            calls: calls as f32,
            errors: if kind == SeriesKind::Server { errors as f32 } else { 0.0 },
            quantiles,
        };
        told.series.push(series(SeriesKind::Server, *server, *calls, None));
        let mut waited = [0.0_f64; LATENCY_PERCENTILES.len()];
        let mut shapes = Vec::new();
        for callee in graph.callees.get(*service).into_iter().flatten() {
            let Some((theirs, all)) = known.get(callee) else { continue };
            let total: f64 = graph.callers(callee).filter_map(|caller| known.get(caller)).map(|(_, calls)| calls).sum();
            let made = all * calls / total.max(1e-9);
            let peer = Some(PeerHint::Service(callee.clone()));
            told.series.push(series(SeriesKind::Client, *theirs, made, peer.clone()));
            let each = (made / calls).min(8.0);
            waited.iter_mut().zip(theirs.0).for_each(|(sum, us)| *sum += each.min(1.0) * f64::from(us));
            shapes.push((each, CallShape { operation: every(), peer }));
        }
        let mut most = 0.0_f32;
        let own = std::array::from_fn(|q| {
            let whole = f64::from(server.0[q]);
            most = most.max((whole - waited[q]).max(SELF_MIN * whole) as f32);
            most
        });
        told.series.push(series(SeriesKind::SelfTime, LatencyQuantiles(own), *calls, None));
        told.skeletons.extend(skeletons(service, &shapes));
    }
    told
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
    use crate::replay::points::Kind;

    fn point(name: &str, value: f64, unit: &str) -> Point {
        let (name, unit) = (name.to_owned(), unit.to_owned());
        Point { name, unit, attributes: Vec::new(), at: sage_common::Timestamp::default(), value, kind: Kind::Gauge }
    }

    fn summary(p50_ms: f64, requests: f64) -> Summary {
        let mut summary = Summary::default();
        summary.add(Said::Percentile(50.0, p50_ms * 1e3));
        summary.add(Said::Percentile(99.0, p50_ms * 2e3));
        summary.add(Said::Requests(requests));
        summary
    }

    #[test]
    fn names_tell_percentiles_counts_and_success() {
        assert_eq!(said(&point("rpc.server.duration.p95", 0.25, "s")), Some(Said::Percentile(95.0, 250_000.0)));
        assert_eq!(said(&point("http.server.request.duration.p50", 3.0, "ms")), Some(Said::Percentile(50.0, 3_000.0)));
        assert_eq!(said(&point("rpc.server.requests", 7.0, "1")), Some(Said::Requests(7.0)));
        assert_eq!(said(&point("rpc.client.duration.p50", 3.0, "s")), None);
        assert_eq!(said(&point("rpc.server.duration.p999", 3.0, "s")), None);
    }

    #[test]
    fn a_callers_own_time_is_what_its_callees_leave() {
        let services = BTreeMap::from([
            ("front".parse().expect("valid"), summary(100.0, 60.0)),
            ("cart".parse().expect("valid"), summary(30.0, 30.0)),
        ]);
        let graph = CallGraph::parse(r#"[{"client": "front", "server": "cart"}]"#).expect("valid");
        let told = tell(&services, &graph, 300.0);
        let found =
            |kind, who: &str| told.series.iter().find(|s| s.kind == kind && s.service.as_str() == who).expect("told");
        assert!(
            (found(SeriesKind::SelfTime, "front").quantiles.at(50.0) - 85_000.0).abs() < 500.0,
            "half of them call"
        );
        assert_eq!(found(SeriesKind::Client, "front").calls, 30.0);
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
    fn a_graph_that_is_none_is_refused() {
        for text in ["", "{}", "[{\"client\": 3}]"] {
            assert!(CallGraph::parse(text).is_err(), "{text}");
        }
    }
}
