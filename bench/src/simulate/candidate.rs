//! Which faults make sense where.

use sage_common::Micros;

use super::{
    fault::{FaultKind, FaultPlan, Role},
    model::Model,
};
use crate::topology::{Concurrency, Topology};

/// Faults of one resource. Each is drawn about as often, software twice.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// Cores.
    Cpu,
    /// Memory bandwidth.
    Memory,
    /// Disk.
    Disk,
    /// Delay, loss, bandwidth.
    Network,
    /// Threads, pools, locks, slow code.
    Software,
}

impl Class {
    /// The class that a uniform draw falls on.
    pub fn drawn(draw: f64) -> Self {
        match draw {
            x if x < 0.16 => Self::Cpu,
            x if x < 0.32 => Self::Memory,
            x if x < 0.47 => Self::Disk,
            x if x < 0.64 => Self::Network,
            _ => Self::Software,
        }
    }
}

/// A kind of fault at a place.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// What.
    pub kind: FaultKind,
    /// Where.
    pub service: String,
    /// For a pool: to whom.
    pub callee: Option<String>,
}

impl Candidate {
    /// Its class.
    pub fn class(&self) -> Class {
        match self.kind {
            FaultKind::Cpu => Class::Cpu,
            FaultKind::Mem => Class::Memory,
            FaultKind::Disk => Class::Disk,
            FaultKind::NetDelay | FaultKind::NetLoss | FaultKind::NetBw => Class::Network,
            _ => Class::Software,
        }
    }

    /// The fault itself between two times, with a severity to begin with.
    pub fn plan(&self, start: Micros, end: Micros) -> FaultPlan {
        FaultPlan {
            kind: self.kind,
            service: self.service.clone(),
            callee: self.callee.clone(),
            replica: None,
            start,
            end,
            severity: self.kind.default_severity(),
            role: Role::Real,
        }
    }
}

/// Every fault that can be felt somewhere in the application at all.
///
/// Left out: disk faults where no time is spent on a disk; memory faults where little is spent on memory; too few threads
/// at the entry, whose waiting nobody sees, and at event loops; pools of those who call nobody.
pub fn candidates(model: &Model, topology: &Topology) -> Vec<Candidate> {
    let mut found = Vec::new();
    for (number, tier) in model.tiers.iter().enumerate() {
        let is_entry = number == model.entry();
        let is_loop = matches!(tier.concurrency, Concurrency::EventLoop { .. });
        for kind in FaultKind::FAULTS {
            let fits = match kind {
                FaultKind::Disk => tier.shares.disk > 0.0,
                FaultKind::Mem => tier.shares.mem >= 0.05,
                FaultKind::Cpu => tier.shares.cpu >= 0.05,
                FaultKind::Threads => !is_entry && !is_loop,
                FaultKind::Pool => false,
                _ => true,
            };
            if fits {
                found.push(Candidate { kind, service: tier.service.to_string(), callee: None });
            }
        }
    }
    for edge in &model.edges {
        let (from, to) = (model.tiers[edge.caller].service.to_string(), model.tiers[edge.callee].service.to_string());
        let is_pooled = topology.pools.iter().any(|pool| pool.from == from && pool.to == to);
        if is_pooled {
            found.push(Candidate { kind: FaultKind::Pool, service: from, callee: Some(to) });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{simulate::model::Placement, topology::load};

    #[test]
    fn faults_are_proposed_where_they_can_be_felt() {
        let topology = load("social_network").expect("built in");
        let found = candidates(&Model::new(&topology, &Placement::default()), &topology);
        let has = |kind, service: &str| found.iter().any(|one| one.kind == kind && one.service == service);
        assert!(has(FaultKind::Disk, "user-mongodb") && !has(FaultKind::Disk, "user-service"));
        assert!(has(FaultKind::Threads, "user-service") && !has(FaultKind::Threads, "nginx-thrift"));
        assert!(has(FaultKind::Pool, "text-service") && !has(FaultKind::Pool, "user-mongodb"));
        assert!(found.iter().filter(|one| one.kind == FaultKind::Pool).all(|one| one.callee.is_some()));
    }

    #[test]
    fn a_third_of_the_draws_is_software() {
        let software = (0..1_000).filter(|n| Class::drawn(f64::from(*n) / 1_000.0) == Class::Software).count();
        assert!((300..400).contains(&software));
    }
}
