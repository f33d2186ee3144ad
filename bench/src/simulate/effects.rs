//! What the faults in force do to each replica and each pool at one moment.

use sage_common::Micros;

use super::{
    fault::{FaultKind, FaultPlan, Role},
    model::Model,
    queue::UNLIMITED,
};

/// Competition for one resource.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contention {
    /// Time on the resource is multiplied by this.
    pub slowdown: f64,
    /// What the metrics show of it, decoys included: a slowdown that would look like this.
    pub shown: f64,
}

impl Contention {
    const NONE: Self = Self { slowdown: 1.0, shown: 1.0 };

    /// The share of the resource that the competitor takes, as it shows: none at 0, all of it at 1.
    pub fn share_shown(self) -> f64 {
        1.0 - 1.0 / self.shown.max(1.0)
    }

    fn add(&mut self, fault: &FaultPlan) {
        let severity = fault.severity.max(1.0);
        self.shown *= severity;
        if fault.role == Role::Real {
            self.slowdown *= severity;
        }
    }
}

/// Everything that is wrong with one replica.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effects {
    /// Its cores.
    pub cpu: Contention,
    /// Its memory bandwidth.
    pub mem: Contention,
    /// Its disk.
    pub disk: Contention,
    /// Added to whatever leaves its machine, nanoseconds.
    pub delay_ns: f64,
    /// Probability that a message is lost on its link, each way.
    pub loss: f64,
    /// Packets lost and sent again per second that are not its own.
    pub loss_shown: f64,
    /// Nanoseconds that a byte takes to leave, where that matters.
    pub ns_per_byte: Option<f64>,
    /// Requests served at once.
    pub limit: u32,
    /// Every request holds the lock for this many of its own times.
    pub lock: f64,
    /// Every request waits this many of its own times.
    pub slow: f64,
    /// Every request waits this long, nanoseconds.
    pub stall_ns: f64,
}

impl Effects {
    /// Nothing is wrong with a replica that serves `limit` requests at once.
    pub fn none(limit: u32) -> Self {
        Self {
            cpu: Contention::NONE,
            mem: Contention::NONE,
            disk: Contention::NONE,
            delay_ns: 0.0,
            loss: 0.0,
            loss_shown: 0.0,
            ns_per_byte: None,
            limit,
            lock: 0.0,
            slow: 0.0,
            stall_ns: 0.0,
        }
    }

    fn add(&mut self, fault: &FaultPlan) {
        let severity = fault.severity;
        let is_real = fault.role == Role::Real;
        match fault.kind {
            FaultKind::Cpu => self.cpu.add(fault),
            FaultKind::Mem => self.mem.add(fault),
            FaultKind::Disk => self.disk.add(fault),
            FaultKind::NetLoss if is_real => self.loss = 1.0 - (1.0 - self.loss) * (1.0 - (severity / 100.0).min(0.9)),
            // Loss that hits somebody else's packets on the same link.
            FaultKind::NetDelay | FaultKind::NetLoss | FaultKind::NetBw if !is_real => {
                self.loss_shown += DECOY_LOSS_PER_S * severity.max(1.0).ln_1p();
            }
            FaultKind::NetDelay => self.delay_ns += severity * 1e6,
            FaultKind::NetBw => self.ns_per_byte = Some(NS_PER_BYTE * severity.max(self.ns_per_byte.unwrap_or(0.0))),
            _ if !is_real => {}
            FaultKind::Threads => self.limit = self.limit.min(shrunk(self.limit, LIMIT_BASE, severity)),
            FaultKind::Lock => self.lock += severity,
            FaultKind::Slow => self.slow += (severity - 1.0).max(0.0),
            FaultKind::Stall => self.stall_ns += severity * 1e6,
            FaultKind::NetLoss | FaultKind::Pool | FaultKind::Surge => {}
        }
    }
}

/// A byte on a link of 1 Gbit/s, nanoseconds.
const NS_PER_BYTE: f64 = 8.0;
/// Thread limits shrink from this where there is none.
const LIMIT_BASE: u32 = 64;
/// A decoy on a link of severity 1 has about this many packets sent again per second.
const DECOY_LOSS_PER_S: f64 = 4.0;

/// `limit`, or `base` where there is none, divided by `severity`; at least 1.
fn shrunk(limit: u32, base: u32, severity: f64) -> u32 {
    let limit = if limit == UNLIMITED { base } else { limit };
    ((f64::from(limit) / severity.max(1.0)).floor() as u32).max(1)
}

/// The effects on every replica at `at`.
pub fn on_replicas(model: &Model, faults: &[FaultPlan], at: Micros) -> Vec<Effects> {
    let mut effects: Vec<Effects> =
        model.replicas.iter().map(|replica| Effects::none(model.tiers[replica.tier].limit)).collect();
    for fault in faults.iter().filter(|fault| fault.is_active(at)) {
        let Some(tier) = model.tier(&fault.service).map(|tier| &model.tiers[tier]) else { continue };
        for number in 0..tier.replicas {
            if fault.replica.is_none_or(|only| only as usize == number) {
                effects[tier.first + number].add(fault);
            }
        }
    }
    effects
}

/// The limit of every gate at `at`, in the order of their numbers.
pub fn on_gates(model: &Model, faults: &[FaultPlan], at: Micros) -> Vec<u32> {
    let mut limits = vec![UNLIMITED; model.gates];
    for edge in &model.edges {
        for number in 0..model.tiers[edge.caller].replicas {
            limits[edge.first_gate + number] = edge.limit;
        }
    }
    let is_pool = |fault: &&FaultPlan| fault.kind == FaultKind::Pool && fault.role == Role::Real && fault.is_active(at);
    for fault in faults.iter().filter(is_pool) {
        for edge in model.edges.iter().filter(|edge| is_hit(model, edge.caller, edge.callee, fault)) {
            for number in 0..model.tiers[edge.caller].replicas {
                if fault.replica.is_none_or(|only| only as usize == number) {
                    let limit = &mut limits[edge.first_gate + number];
                    *limit = (*limit).min(shrunk(edge.limit_base, edge.limit_base, fault.severity));
                }
            }
        }
    }
    limits
}

fn is_hit(model: &Model, caller: usize, callee: usize, fault: &FaultPlan) -> bool {
    let is_named = |tier: usize, name: &str| model.tiers[tier].service.as_str() == name;
    is_named(caller, &fault.service) && fault.callee.as_ref().is_none_or(|name| is_named(callee, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{simulate::model::Placement, topology::load};

    fn model() -> Model {
        let mut placement = Placement::default();
        placement.replicas.insert("leaf_1".into(), 3);
        Model::new(&load("fanout").expect("built in"), &placement)
    }

    fn faults(texts: &[&str]) -> Vec<FaultPlan> {
        texts.iter().map(|text| text.parse().expect("valid")).collect()
    }

    #[test]
    fn one_bad_replica_leaves_its_siblings_alone() {
        let model = model();
        let effects = on_replicas(&model, &faults(&["cpu:leaf_1#2@0..9x4"]), Micros::from_secs(3));
        let leaf = &model.tiers[model.tier("leaf_1").expect("there")];
        let slowdowns: Vec<f64> = effects[leaf.first..leaf.first + 3].iter().map(|e| e.cpu.slowdown).collect();
        assert_eq!(slowdowns, [1.0, 1.0, 4.0]);
        assert!(effects.iter().filter(|effect| effect.cpu.slowdown > 1.0).count() == 1);
    }

    #[test]
    fn a_decoy_shows_and_slows_nothing() {
        let model = model();
        let effects = on_replicas(&model, &faults(&["cpu:leaf_0@0..9x4!decoy"]), Micros::ZERO);
        let leaf = effects[model.tiers[model.tier("leaf_0").expect("there")].first];
        assert_eq!((leaf.cpu.slowdown, leaf.cpu.shown), (1.0, 4.0));
    }

    #[test]
    fn a_pool_fault_shrinks_the_edges_that_it_names() {
        let model = model();
        let limits = on_gates(&model, &faults(&["pool:aggregator>leaf_3@0..9x16"]), Micros::ZERO);
        assert_eq!(limits.iter().filter(|limit| **limit == 4).count(), 1);
        assert_eq!(limits.iter().filter(|limit| **limit == 512).count(), limits.len() - 1);
        let after = on_gates(&model, &faults(&["pool:aggregator>leaf_3@0..9x16"]), Micros::from_secs(9));
        assert!(after.iter().all(|limit| *limit == 512));
    }
}
