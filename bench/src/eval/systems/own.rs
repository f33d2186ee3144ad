//! Own time of services: self time and gaps against what is normal at the present load, edge by edge.

use std::collections::BTreeMap;

use sage_causal::observation::EdgeKey;
use sage_common::ServiceId;

use crate::eval::{
    normal::Loaded,
    view::{EdgeView, Tail, View},
};

/// A gap this many deviations off is shifted.
const SHIFTED: f64 = 4.0;

/// Who a gap belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ownership {
    /// Always the callee.
    Callee,
    /// The caller when most of its other calls are shifted as well and the callee's other callers see nothing; else the
    /// callee.
    Witness,
}

/// How far one part of an edge is off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shift {
    /// Above normal, mean of p75 to p99.5, microseconds; never negative.
    pub excess_us: f64,
    /// Deviations of p99 above normal.
    pub z: f64,
}

#[derive(Clone, Copy, Debug)]
struct PartNormal {
    band: Loaded,
    p99: Loaded,
}

type Pick = fn(&EdgeView) -> Option<Tail>;

/// Normals of self time and gap of every edge.
#[derive(Clone, Debug, Default)]
pub struct OwnNormals {
    own: BTreeMap<EdgeKey, PartNormal>,
    gap: BTreeMap<EdgeKey, PartNormal>,
}

/// Both parts of every edge, over some windows.
#[derive(Clone, Debug, Default)]
pub struct Shifts {
    own: BTreeMap<EdgeKey, Shift>,
    gap: BTreeMap<EdgeKey, Shift>,
}

impl OwnNormals {
    /// Learns from the healthy ones of `views`.
    pub fn of(views: &[View]) -> Self {
        let healthy: Vec<&View> = views.iter().filter(|view| view.is_healthy()).collect();
        Self { own: learn(&healthy, own), gap: learn(&healthy, |edge| edge.gap) }
    }

    /// How far off the edges are, on average over `views`.
    pub fn shifts(&self, views: &[View]) -> Shifts {
        Shifts { own: shifts(&self.own, views, own), gap: shifts(&self.gap, views, |edge| edge.gap) }
    }
}

/// Self time; the client span where the callee reports nothing.
fn own(edge: &EdgeView) -> Option<Tail> {
    edge.own.or(if edge.server.is_none() { edge.client } else { None })
}

fn learn(views: &[&View], pick: Pick) -> BTreeMap<EdgeKey, PartNormal> {
    let mut values = BTreeMap::<EdgeKey, Vec<(f64, Tail)>>::new();
    for (key, edge) in views.iter().flat_map(|view| &view.edges) {
        values.entry(key.clone()).or_default().extend(pick(edge).map(|tail| (edge.calls, tail)));
    }
    let normal = |values: &[(f64, Tail)]| {
        let of = |part: fn(&Tail) -> f64| {
            Loaded::of(&values.iter().map(|(calls, tail)| (*calls, part(tail))).collect::<Vec<_>>())
        };
        Some(PartNormal { band: of(|tail| tail.band)?, p99: of(|tail| tail.p99)? })
    };
    values.into_iter().filter_map(|(key, values)| Some((key, normal(&values)?))).collect()
}

fn shifts(normals: &BTreeMap<EdgeKey, PartNormal>, views: &[View], pick: Pick) -> BTreeMap<EdgeKey, Shift> {
    let shift = |(key, normal): (&EdgeKey, &PartNormal)| {
        let seen = views.iter().filter_map(|view| {
            let edge = view.edges.get(key)?;
            Some((edge.calls, pick(edge)?))
        });
        let (mut total, mut count) = (Shift::default(), 0.0);
        for (calls, tail) in seen {
            total.excess_us += (tail.band - normal.band.us(calls)).max(0.0);
            total.z += normal.p99.z(calls, tail.p99);
            count += 1.0;
        }
        let mean = Shift { excess_us: total.excess_us / count, z: total.z / count };
        (count > 0.0).then(|| (key.clone(), mean))
    };
    normals.iter().filter_map(shift).collect()
}

impl Shifts {
    /// What each service has of its own: the shifts of its self times, and of the gaps it owns.
    pub fn by_service(&self, ownership: Ownership) -> BTreeMap<ServiceId, Vec<Shift>> {
        let mut by_service = BTreeMap::<ServiceId, Vec<Shift>>::new();
        for (key, shift) in &self.own {
            by_service.entry(key.callee.clone()).or_default().push(*shift);
        }
        for (key, shift) in &self.gap {
            by_service.entry(self.owner(key, ownership)).or_default().push(*shift);
        }
        by_service
    }

    fn owner(&self, key: &EdgeKey, ownership: Ownership) -> ServiceId {
        let Some(caller) = key.caller.as_ref().filter(|_| ownership == Ownership::Witness) else {
            return key.callee.clone();
        };
        let share = |is_witness: &dyn Fn(&EdgeKey) -> bool| {
            let witnesses: Vec<f64> =
                self.gap.iter().filter(|(other, _)| is_witness(other)).map(|(_, shift)| shift.z).collect();
            let shifted = witnesses.iter().filter(|z| **z > SHIFTED).count();
            (!witnesses.is_empty()).then(|| shifted as f64 / witnesses.len() as f64)
        };
        let other_callers = share(&|other| other.callee == key.callee && other.caller != key.caller);
        let other_callees = share(&|other| other.caller.as_ref() == Some(caller) && other.callee != key.callee);
        let is_callers =
            other_callees.is_some_and(|share| share > 0.5) && other_callers.is_none_or(|share| share < 0.5);
        if is_callers { caller.clone() } else { key.callee.clone() }
    }
}

#[cfg(test)]
mod tests {
    use sage_causal::testing::{Fault, World};

    use super::*;
    use crate::eval::view::views;

    fn excess(world: &World, fault: Fault, tier: usize, ownership: Ownership) -> f64 {
        let slo = world.slo();
        let normals = OwnNormals::of(&views(&world.windows(5, 0, 40, &[]), &slo));
        let shifts = normals.shifts(&views(&world.windows(5, 50, 3, &[fault]), &slo));
        shifts.by_service(ownership)[&world.service(tier)].iter().map(|shift| shift.excess_us).sum()
    }

    #[test]
    fn a_slow_tier_has_the_excess_and_its_caller_none() {
        let world = World::chain();
        assert!(excess(&world, Fault::Slow(2, 15.0), 2, Ownership::Callee) > 10_000.0);
        assert!(excess(&world, Fault::Slow(2, 15.0), 1, Ownership::Callee) < 1_000.0);
    }

    #[test]
    fn a_caller_all_of_whose_calls_are_late_owns_their_gaps_by_witness_alone() {
        let world = World::fanout();
        let slow_link = Fault::Network(0, 15_000.0);
        assert!(excess(&world, slow_link, 0, Ownership::Witness) > 10_000.0);
        assert!(excess(&world, slow_link, 0, Ownership::Callee) < 1_000.0);
        assert!(excess(&world, Fault::Network(3, 15_000.0), 3, Ownership::Witness) > 10_000.0);
    }
}
