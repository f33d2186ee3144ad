//! Entry operations of a recording, and objectives for them while none is given. Pure.

use std::collections::BTreeMap;

use sage_causal::observation::{ObjectiveObservation, Observation};
use sage_common::{Micros, OperationId, ServiceId, Slo};

use crate::pipeline::Fleet;

/// Entry operations that get objectives of their own while none is given, busiest first.
const ENTRIES_MAX: usize = 16;

/// Percentiles at which an entry's latency is kept while no objective is given.
pub const PERCENTILES: [f64; 5] = [50.0, 75.0, 90.0, 95.0, 99.0];

/// Share of an operation's calls that come from outside, from which on it is an entry: where traces are not whole, some
/// calls between services look as if nobody made them.
const OUTSIDE_MIN: f64 = 0.5;

/// Operations that are followed: as many as a large fleet has.
const OPERATIONS_MAX: usize = 65_536;

/// Calls of one operation.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    all: f64,
    outside: f64,
}

impl Calls {
    fn is_entry(self) -> bool {
        self.outside > 0.0 && self.outside >= OUTSIDE_MIN * self.all
    }
}

/// Objectives, given or discovered.
#[derive(Clone, Debug)]
pub struct Entries {
    slos: Vec<Slo>,
    discovers: bool,
    seen: BTreeMap<(ServiceId, OperationId), Calls>,
}

impl Entries {
    /// With `slos`; without any, entries are discovered.
    pub fn new(slos: Vec<Slo>) -> Self {
        Self { discovers: slos.is_empty(), slos, seen: BTreeMap::new() }
    }

    /// The objectives: those given, or those discovered, which have the largest possible target.
    pub fn slos(&self) -> Vec<Slo> {
        self.slos.iter().filter(|slo| !self.discovers || self.is_entry(slo)).cloned().collect()
    }

    /// Services at which requests enter.
    pub fn seen(&self) -> impl Iterator<Item = &ServiceId> {
        self.seen.iter().filter(|(_, calls)| calls.is_entry()).map(|((service, _), _)| service)
    }

    /// Gives objectives to entries that were seen for the first time, and their latency to the windows that show them.
    pub fn complete(&mut self, mut finished: Vec<Observation>, fleet: &mut Fleet) -> Vec<Observation> {
        finished.iter().for_each(|window| self.count(window));
        if !self.discovers {
            return finished;
        }
        let before = self.slos.len();
        for observation in &mut finished {
            self.discover(observation);
            self.measure(observation);
        }
        if self.slos.len() > before {
            fleet.set_slos(self.slos.clone());
        }
        finished
    }

    fn count(&mut self, window: &Observation) {
        for edge in &window.edges {
            let key = (edge.key.callee.clone(), edge.key.operation.clone());
            if self.seen.len() >= OPERATIONS_MAX && !self.seen.contains_key(&key) {
                continue;
            }
            let calls = self.seen.entry(key).or_default();
            calls.all += edge.calls;
            calls.outside += if edge.key.caller.is_none() { edge.calls } else { 0.0 };
        }
    }

    fn is_entry(&self, slo: &Slo) -> bool {
        let Some(operation) = &slo.operation else { return true };
        self.seen.get(&(slo.service.clone(), operation.clone())).is_some_and(|calls| calls.is_entry())
    }

    fn discover(&mut self, observation: &Observation) {
        let edges = &observation.edges;
        let is_entry = |edge: &usize| {
            let key = &edges[*edge].key;
            key.caller.is_none()
                && self.seen.get(&(key.callee.clone(), key.operation.clone())).is_some_and(|calls| calls.is_entry())
        };
        let mut roots: Vec<usize> = (0..edges.len()).filter(is_entry).collect();
        roots.sort_by(|a, b| edges[*b].calls.total_cmp(&edges[*a].calls));
        for root in roots {
            let (service, operation) = (edges[root].key.callee.clone(), edges[root].key.operation.clone());
            let is_known =
                self.slos.iter().any(|slo| slo.service == service && slo.operation.as_ref() == Some(&operation));
            let is_room = self.slos.len() < ENTRIES_MAX * PERCENTILES.len();
            if !is_known && is_room {
                self.slos.extend(PERCENTILES.map(|percentile| Slo {
                    name: format!("{service} {operation} p{percentile}"),
                    service: service.clone(),
                    operation: Some(operation.clone()),
                    percentile,
                    target: Micros::new(u64::MAX),
                }));
            }
        }
    }

    /// Adds the objectives that the fleet did not know yet when it made `observation`.
    fn measure(&self, observation: &mut Observation) {
        for slo in &self.slos {
            if observation.objectives.iter().any(|objective| objective.slo == slo.name) {
                continue;
            }
            let covered = observation.edges.iter().find(|edge| {
                edge.key.caller.is_none() && slo.covers(&edge.key.callee, &edge.key.operation) && edge.server.is_some()
            });
            let Some((edge, server)) = covered.and_then(|edge| Some((edge, edge.server?))) else { continue };
            let latency_us = f64::from(server.at(slo.percentile));
            let objective = ObjectiveObservation { slo: slo.name.clone(), calls: edge.calls, latency_us };
            observation.objectives.push(objective);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pipeline::FleetConfig,
        replay::scenes::{edge, window},
    };

    #[test]
    fn a_call_that_lost_its_caller_makes_no_entry() {
        let mut fleet = Fleet::new(FleetConfig::new(Micros::from_secs(5), Micros::ZERO));
        let mut entries = Entries::new(Vec::new());
        // At first nobody was seen to call the cart, because the beginning of its trace is not there.
        entries.complete(
            vec![window(vec![edge(None, "front", 10.0, 1_099.0), edge(None, "cart", 1.0, 1_099.0)])],
            &mut fleet,
        );
        let edges = vec![edge(None, "front", 10.0, 1_099.0), edge(Some("front"), "cart", 20.0, 1_099.0)];
        let finished = entries.complete(vec![window(edges)], &mut fleet);
        let services: Vec<String> = entries.slos().iter().map(|slo| slo.service.to_string()).collect();
        assert_eq!(services, ["front"; PERCENTILES.len()]);
        assert_eq!(entries.seen().map(ServiceId::as_str).collect::<Vec<_>>(), ["front"]);
        let of_front = finished[0].objectives.iter().filter(|own| own.slo == "front get p99");
        assert_eq!(of_front.map(|own| (own.calls, own.latency_us)).collect::<Vec<_>>(), [(10.0, 1_099.0)]);
    }

    #[test]
    fn objectives_that_are_given_stay_alone() {
        let slo = Slo {
            name: "shop".to_owned(),
            service: ServiceId::sanitized("front"),
            operation: None,
            percentile: 99.0,
            target: Micros::from_millis(50),
        };
        let mut fleet = Fleet::new(FleetConfig::new(Micros::from_secs(5), Micros::ZERO));
        let mut entries = Entries::new(vec![slo.clone()]);
        entries.complete(
            vec![window(vec![edge(None, "front", 10.0, 1_099.0), edge(None, "other", 9.0, 1_099.0)])],
            &mut fleet,
        );
        assert_eq!(entries.slos(), [slo]);
    }
}
