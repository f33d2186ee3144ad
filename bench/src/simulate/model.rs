//! A topology made ready to run: tiers, replicas and machines with numbers, call trees as flat code.

use std::{collections::BTreeMap, sync::Arc};

use sage_common::{InstanceId, NodeId as MachineId, OperationId, PeerHint, ServiceId};

use super::queue::UNLIMITED;
use crate::topology::{Amount, Concurrency, OwnTime, Plan, Sensitivity, Service, Step, Topology, lognormal};

/// One step of the flat code of a call.
#[derive(Clone, Debug)]
pub enum Instruction {
    /// Spend this share of the own time.
    Work(f64),
    /// Make the call of that number and wait.
    Call(u32),
    /// Go on with `otherwise` unless the visit's draw number `condition` is below `p`.
    If {
        /// How likely.
        p: f64,
        /// Which draw.
        condition: u64,
        /// Where to go on if not.
        otherwise: u32,
    },
    /// Run all branches at once; go on with `join` when all have ended.
    Fork {
        /// Where each branch begins.
        branches: Arc<[u32]>,
        /// Where to go on.
        join: u32,
    },
    /// The end of a branch or a visit.
    Done,
}

/// One call site.
#[derive(Clone, Debug)]
pub struct CallSite {
    /// The tier that is called.
    pub tier: usize,
    /// From whom: the number of the edge; `None` for the root.
    pub edge: Option<usize>,
    /// The operation.
    pub operation: OperationId,
    /// Its own time.
    pub own: Option<OwnTime>,
    /// Items sent.
    pub items: Amount,
    /// Calls one after another.
    pub repeat: Amount,
    /// Whether nobody waits.
    pub is_detached: bool,
    /// Where its code begins.
    pub entry: u32,
}

/// One tier.
#[derive(Clone, Debug)]
pub struct Tier {
    /// Its name.
    pub service: ServiceId,
    /// Its name as a client span gives it.
    pub peer: PeerHint,
    /// Cores at once.
    pub cores: u32,
    /// How fast a core is: below 1 where the limit is not a whole number of cores.
    pub speed: f64,
    /// Requests served at once without a fault.
    pub limit: u32,
    /// How it serves.
    pub concurrency: Concurrency,
    /// CPU per call issued and received, nanoseconds.
    pub issued_ns: f64,
    /// As `issued_ns`, per call received.
    pub received_ns: f64,
    /// What its own time is made of.
    pub shares: Sensitivity,
    /// The number of its first replica.
    pub first: usize,
    /// How many replicas it has.
    pub replicas: usize,
    /// Whether its requests are traced.
    pub is_traced: bool,
}

/// One replica.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its tier.
    pub tier: usize,
    /// Its machine.
    pub machine: usize,
    /// Its name.
    pub instance: InstanceId,
}

/// One caller-callee relation.
#[derive(Clone, Debug)]
pub struct Edge {
    /// The tier that calls.
    pub caller: usize,
    /// The tier that is called.
    pub callee: usize,
    /// Connections of one caller at once.
    pub limit: u32,
    /// What `limit` is shrunk from by a fault where it is none.
    pub limit_base: u32,
    /// Whether one connection carries all calls.
    pub is_multiplexed: bool,
    /// Connections opened at start.
    pub idle_min: u32,
    /// Longest wait for a connection, nanoseconds.
    pub wait_ns: u64,
    /// The number of its first gate, one for each replica of the caller.
    pub first_gate: usize,
}

/// How a topology is laid out for a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Replicas of each tier; tiers that are not named have one.
    pub replicas: BTreeMap<String, u32>,
    /// Instances on one machine.
    pub per_machine: usize,
    /// Tiers that report no spans and pass on no trace context.
    pub untraced: Vec<String>,
}

impl Default for Placement {
    fn default() -> Self {
        Self { replicas: BTreeMap::new(), per_machine: 1, untraced: Vec::new() }
    }
}

/// A topology ready to run. Tiers that the mix does not use are left out.
#[derive(Clone, Debug)]
pub struct Model {
    /// Tiers.
    pub tiers: Vec<Tier>,
    /// Replicas, those of a tier together.
    pub replicas: Vec<Replica>,
    /// Machines.
    pub machines: Vec<MachineId>,
    /// Edges.
    pub edges: Vec<Edge>,
    /// How many gates all edges have.
    pub gates: usize,
    /// Call sites.
    pub sites: Vec<CallSite>,
    /// The first call site of each kind of request.
    pub roots: Vec<u32>,
    /// The code of all call sites.
    pub code: Vec<Instruction>,
    /// `mu` and `sigma` of the log of one hop's microseconds.
    pub hop: (f64, f64),
    /// Mean of one hop, nanoseconds.
    pub hop_mean_ns: f64,
}

/// A wait for a connection without a limit of its own ends with the call.
const WAIT_MAX_NS: u64 = 10_000_000_000;
/// A fault shrinks what has no limit from this many.
const LIMIT_BASE: u32 = 64;

impl Model {
    /// The model of a checked topology.
    pub fn new(topology: &Topology, placement: &Placement) -> Self {
        let plan = Plan::new(topology);
        let used = used(topology, &plan);
        let numbers: BTreeMap<usize, usize> =
            used.iter().enumerate().map(|(number, service)| (*service, number)).collect();
        let mut model = Self {
            tiers: used.iter().map(|index| tier(&topology.services[*index], placement)).collect(),
            replicas: Vec::new(),
            machines: Vec::new(),
            edges: Vec::new(),
            gates: 0,
            sites: Vec::new(),
            roots: plan.roots().iter().map(|root| root.0).collect(),
            code: Vec::new(),
            hop: hop(topology),
            hop_mean_ns: 0.0,
        };
        model.hop_mean_ns = (model.hop.0 + model.hop.1 * model.hop.1 / 2.0).exp() * 1e3;
        model.place(placement);
        model.add_sites(topology, &plan, &numbers);
        model
    }

    /// The number of a tier.
    pub fn tier(&self, service: &str) -> Option<usize> {
        self.tiers.iter().position(|tier| tier.service.as_str() == service)
    }

    /// The number of an edge.
    pub fn edge(&self, caller: usize, callee: usize) -> Option<usize> {
        self.edges.iter().position(|edge| edge.caller == caller && edge.callee == callee)
    }

    /// The tier that users call.
    pub fn entry(&self) -> usize {
        self.roots.first().map_or(0, |root| self.sites[*root as usize].tier)
    }

    fn place(&mut self, placement: &Placement) {
        for (number, tier) in self.tiers.iter_mut().enumerate() {
            tier.first = self.replicas.len();
            for replica in 0..tier.replicas {
                let instance = InstanceId::sanitized(&format!("{}-{replica}", tier.service));
                self.replicas.push(Replica { tier: number, machine: 0, instance });
            }
        }
        let machines = self.replicas.len().div_ceil(placement.per_machine.max(1));
        // Dealt out in turn, so that replicas of one tier are apart.
        for (number, replica) in self.replicas.iter_mut().enumerate() {
            replica.machine = number % machines.max(1);
        }
        self.machines = (0..machines).map(|number| MachineId::sanitized(&format!("machine-{number}"))).collect();
    }

    fn add_sites(&mut self, topology: &Topology, plan: &Plan, numbers: &BTreeMap<usize, usize>) {
        let mut callers: BTreeMap<u32, usize> = BTreeMap::new();
        for (_, node) in plan.nodes() {
            let callees = Plan::callees(&node.steps);
            callers.extend(callees.into_iter().map(|callee| (callee.0, node.service)));
        }
        for (id, node) in plan.nodes() {
            // A call site of a kind that never comes may lead to a tier that is left out: it is never visited.
            let known = numbers.get(&node.service).copied();
            let caller = callers.get(&id.0).and_then(|caller| numbers.get(caller)).copied();
            let edge = caller.zip(known).map(|(caller, callee)| self.add_edge(topology, caller, callee));
            let tier = known.unwrap_or(0);
            let own = topology.services[node.service].ops.get(&*node.op).map(|op| OwnTime::new(op, 1.0));
            let entry = self.code.len() as u32;
            self.add_code(&node.steps);
            self.code.push(Instruction::Done);
            self.sites.push(CallSite {
                tier,
                edge,
                operation: OperationId::sanitized(&node.op),
                own,
                items: node.items,
                repeat: node.repeat,
                is_detached: node.is_detached,
                entry,
            });
        }
    }

    fn add_edge(&mut self, topology: &Topology, caller: usize, callee: usize) -> usize {
        if let Some(known) = self.edge(caller, callee) {
            return known;
        }
        let (from, to) = (&self.tiers[caller], &self.tiers[callee]);
        let pool =
            topology.pools.iter().find(|pool| pool.from == from.service.as_str() && pool.to == to.service.as_str());
        let max = pool.map_or(LIMIT_BASE, |pool| pool.max);
        let is_blocking = pool.is_some_and(|pool| pool.blocking);
        let wait_ns = pool.and_then(|pool| pool.timeout_ms).map_or(WAIT_MAX_NS, |wait| wait.saturating_mul(1_000_000));
        self.edges.push(Edge {
            caller,
            callee,
            limit: if is_blocking { max } else { UNLIMITED },
            limit_base: if is_blocking { max.min(LIMIT_BASE) } else { LIMIT_BASE },
            is_multiplexed: !is_blocking && max == 1,
            idle_min: pool.map_or(0, |pool| pool.min),
            wait_ns,
            first_gate: self.gates,
        });
        self.gates += from.replicas;
        self.edges.len() - 1
    }

    fn add_code(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Work(share) => self.code.push(Instruction::Work(*share)),
                Step::Call(id) => self.code.push(Instruction::Call(id.0)),
                Step::If { p, condition, steps } => {
                    let at = self.code.len();
                    self.code.push(Instruction::Done);
                    self.add_code(steps);
                    let otherwise = self.code.len() as u32;
                    self.code[at] = Instruction::If { p: *p, condition: *condition as u64, otherwise };
                }
                Step::Par(branches) => {
                    let at = self.code.len();
                    self.code.push(Instruction::Done);
                    let mut entries = Vec::with_capacity(branches.len());
                    for branch in branches {
                        entries.push(self.code.len() as u32);
                        self.add_code(branch);
                        self.code.push(Instruction::Done);
                    }
                    let join = self.code.len() as u32;
                    self.code[at] = Instruction::Fork { branches: entries.into(), join };
                }
            }
        }
    }
}

/// Services that the mix reaches, in the order of the file.
fn used(topology: &Topology, plan: &Plan) -> Vec<usize> {
    let facts = crate::topology::Facts::new(topology, plan);
    facts.used.into_iter().collect()
}

fn hop(topology: &Topology) -> (f64, f64) {
    match topology.network.one_way_us {
        crate::topology::Draw::Lognormal { mean, cv } => {
            let variance = (cv * cv).ln_1p();
            // Invalid means are refused when a file is read.
            if lognormal(mean, cv).is_some() { (mean.ln() - variance / 2.0, variance.sqrt()) } else { (0.0, 0.0) }
        }
        crate::topology::Draw::UniformInt { lo, hi, .. } => {
            (f64::midpoint(f64::from(lo), f64::from(hi)).max(1.0).ln(), 0.0)
        }
    }
}

fn tier(service: &Service, placement: &Placement) -> Tier {
    let cores = (service.cpu_cores.ceil() as u32).max(1);
    let limit = match service.concurrency {
        Concurrency::ThreadPool { threads } | Concurrency::SingleThread { threads } => threads,
        _ => UNLIMITED,
    };
    let workers = match service.concurrency {
        Concurrency::EventLoop { workers, .. } => workers.min(cores).max(1),
        _ => cores,
    };
    let id = ServiceId::sanitized(&service.id);
    Tier {
        peer: PeerHint::Service(id.clone()),
        service: id,
        cores: workers,
        speed: (service.cpu_cores / f64::from(cores)).min(1.0),
        limit,
        concurrency: service.concurrency,
        issued_ns: service.rpc_cost_us.client * 1e3,
        received_ns: service.rpc_cost_us.server * 1e3,
        shares: service.sensitivity,
        first: 0,
        replicas: placement.replicas.get(&service.id).copied().unwrap_or(1).max(1) as usize,
        is_traced: !placement.untraced.contains(&service.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::load;

    #[test]
    fn every_tier_of_the_mix_and_every_edge_is_there() {
        let model = Model::new(&load("social_network").expect("built in"), &Placement::default());
        assert_eq!((model.tiers.len(), model.edges.len(), model.machines.len()), (22, 25, 22));
        assert_eq!(model.tiers[model.entry()].service.as_str(), "nginx-thrift");
    }

    #[test]
    fn replicas_of_a_tier_are_on_different_machines() {
        let mut placement = Placement { per_machine: 3, ..Placement::default() };
        placement.replicas.insert("leaf_0".into(), 4);
        let model = Model::new(&load("fanout").expect("built in"), &placement);
        let leaf = &model.tiers[model.tier("leaf_0").expect("there")];
        let machines: std::collections::BTreeSet<usize> =
            model.replicas[leaf.first..leaf.first + leaf.replicas].iter().map(|replica| replica.machine).collect();
        assert_eq!((machines.len(), model.machines.len()), (4, 5));
    }

    #[test]
    fn code_of_parallel_branches_joins_behind_them() {
        let model = Model::new(&load("fanout").expect("built in"), &Placement::default());
        let forks: Vec<(usize, u32)> = model
            .code
            .iter()
            .filter_map(|instruction| match instruction {
                Instruction::Fork { branches, join } => Some((branches.len(), *join)),
                _ => None,
            })
            .collect();
        assert_eq!(forks.len(), 1);
        assert_eq!(forks[0].0, 10);
        assert!(
            matches!(model.code[forks[0].1 as usize], Instruction::Work(_)),
            "the aggregator works on what came back"
        );
    }
}
