//! What follows from a topology: who is used, who calls whom, what a request costs on average.

use std::collections::BTreeSet;

use super::{Amount, Draw, Node, NodeId, OwnTime, Plan, Step, Topology};

/// Expectations over the mix.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Services that requests of the mix reach, as places in `Topology::services`.
    pub used: BTreeSet<usize>,
    /// Caller and callee of every edge, of all requests.
    pub edges: BTreeSet<(usize, usize)>,
    /// Mean own time plus RPC cost per request of the mix, by service, microseconds.
    pub work_us: Vec<f64>,
    /// One entry per kind of request.
    pub requests: Vec<RequestFacts>,
}

/// Expectations of one kind of request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestFacts {
    /// Mean number of calls, the root's own not counted.
    pub calls: f64,
    /// Mean latency with nobody else there (parallel branches by their longest mean), microseconds.
    pub unloaded_us: f64,
}

impl Facts {
    /// The facts of a checked topology.
    pub fn new(topology: &Topology, plan: &Plan) -> Self {
        let mut facts = Self {
            used: BTreeSet::new(),
            edges: BTreeSet::new(),
            work_us: vec![0.0; topology.services.len()],
            requests: Vec::new(),
        };
        for (request, root) in topology.requests.iter().zip(plan.roots()) {
            let mut walk = Walk { topology, plan, facts: &mut facts, mix: request.mix, calls: 0.0 };
            let unloaded_us = walk.node(*root, 1.0, true);
            let calls = walk.calls;
            facts.requests.push(RequestFacts { calls, unloaded_us });
        }
        facts
    }

    /// Mean busy time per request over all services, microseconds.
    pub fn work_total_us(&self) -> f64 {
        self.work_us.iter().sum()
    }
}

struct Walk<'a> {
    topology: &'a Topology,
    plan: &'a Plan,
    facts: &'a mut Facts,
    mix: f64,
    calls: f64,
}

impl Walk<'_> {
    /// Mean latency of a visit that happens `weight` times per request of this kind.
    fn node(&mut self, id: NodeId, weight: f64, is_root: bool) -> f64 {
        let plan = self.plan;
        let Some(node) = plan.node(id) else { return 0.0 };
        let service = &self.topology.services[node.service];
        let own = service.ops.get(&*node.op).map_or(0.0, |op| OwnTime::new(op, 1.0).mean(mean(node.items)));
        let received = if is_root { 0.0 } else { service.rpc_cost_us.server };
        self.facts.work_us[node.service] += self.mix * weight * (own + received);
        if self.mix > 0.0 {
            self.facts.used.insert(node.service);
        }
        self.steps(&node.steps, node, own, weight)
    }

    fn steps(&mut self, steps: &[Step], node: &Node, own: f64, weight: f64) -> f64 {
        let mut latency = 0.0;
        for step in steps {
            latency += match step {
                Step::Work(share) => share * own,
                Step::Call(id) => self.call(*id, node.service, weight),
                Step::Par(branches) => {
                    branches.iter().map(|branch| self.steps(branch, node, own, weight)).fold(0.0, f64::max)
                }
                Step::If { p, steps, .. } => p * self.steps(steps, node, own, weight * p),
            };
        }
        latency
    }

    fn call(&mut self, id: NodeId, caller: usize, weight: f64) -> f64 {
        let Some(node) = self.plan.node(id) else { return 0.0 };
        let (callee, repeat) = (node.service, mean(node.repeat));
        let issued = self.topology.services[caller].rpc_cost_us.client;
        self.facts.edges.insert((caller, callee));
        self.facts.work_us[caller] += self.mix * weight * repeat * issued;
        self.calls += weight * repeat;
        let hops = 2.0 * draw_mean(self.topology.network.one_way_us);
        let latency = self.node(id, weight * repeat, false);
        let received = self.topology.services[callee].rpc_cost_us.server;
        if node.is_detached { 0.0 } else { repeat * (latency + hops + issued + received) }
    }
}

fn mean(amount: Amount) -> f64 {
    match amount {
        Amount::Fixed(count) => f64::from(count),
        Amount::Drawn(draw) => draw_mean(draw),
    }
}

fn draw_mean(draw: Draw) -> f64 {
    match draw {
        Draw::UniformInt { lo, hi, .. } => f64::midpoint(f64::from(lo), f64::from(hi)),
        Draw::Lognormal { mean, .. } => mean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::load;

    fn facts(name: &str) -> Facts {
        let topology = load(name).expect("built in");
        Facts::new(&topology, &Plan::new(&topology))
    }

    #[test]
    fn facts_agree_with_the_reference_checker() {
        // Printed by validate.py: calls per request and unloaded mean latency.
        let expected = [
            ("chain", vec![(10.0, 11.59)]),
            ("fanout", vec![(11.0, 1.86)]),
            ("hotel_reservation", vec![(27.1, 7.38), (5.0, 1.54), (1.0, 0.42), (14.3, 5.11)]),
            ("media_service", vec![(40.0, 3.31), (12.5, 2.54)]),
            ("social_network", vec![(5.0, 5.42), (6.0, 5.62), (19.0, 3.48)]),
        ];
        for (name, requests) in expected {
            for (found, (calls, unloaded_ms)) in facts(name).requests.iter().zip(requests) {
                assert!((found.calls - calls).abs() < 0.051, "{name}: {found:?} against {calls} calls");
                assert!(
                    (found.unloaded_us / 1e3 - unloaded_ms).abs() < 0.006,
                    "{name}: {found:?} against {unloaded_ms} ms"
                );
            }
        }
    }

    #[test]
    fn used_services_and_edges_are_counted_over_the_mix() {
        let social = facts("social_network");
        assert_eq!((social.used.len(), social.edges.len()), (22, 25));
        let hotel = facts("hotel_reservation");
        assert_eq!((hotel.used.len(), hotel.edges.len()), (14, 13));
    }
}
