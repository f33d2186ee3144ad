//! Where everything of a demo runs: tiers on nodes, nodes on addresses. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::topology::{Facts, Topology};

/// More nodes than this gain nothing on a small machine: each costs an agent.
const NODES_MAX: usize = 6;
/// The port that tiers listen on, counted up within a node.
const TIER_PORT: u16 = 9000;
/// A node's size: this many times what its tiers need on average, so that bursts fit.
const HEADROOM: f64 = 4.0;
/// The least size of a node in cores.
const CORES_MIN: f64 = 0.5;

/// One tier in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Tier {
    /// Service id.
    pub service: String,
    /// Address it listens on.
    pub port: u16,
}

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// `node-a`, `node-b`, …
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its size in cores.
    pub cores: f64,
    /// Its tiers.
    pub tiers: Vec<Tier>,
}

/// Address of the hub, where the aggregator and the load generator are.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The whole place.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Requests per second.
    pub rate: f64,
}

impl Layout {
    /// Spreads the used tiers of `topology` over nodes, so that each carries about the same work, at the highest rate up to
    /// the nominal one that keeps the application under `cores_max` cores.
    pub fn new(topology: &Topology, facts: &Facts, cores_max: f64, rate: Option<f64>) -> Self {
        let affordable = cores_max * 1e6 / facts.work_total_us().max(1.0);
        let rate = rate.unwrap_or_else(|| topology.load.nominal_qps.min(affordable).max(1.0));
        let mut tiers: Vec<(usize, f64)> =
            facts.used.iter().map(|service| (*service, facts.work_us[*service] * rate / 1e6)).collect();
        tiers.sort_by(|a, b| b.1.total_cmp(&a.1));
        let count = tiers.len().clamp(1, NODES_MAX);
        let mut placed: Vec<(f64, Vec<usize>)> = vec![(0.0, Vec::new()); count];
        for (service, cores) in tiers {
            let lightest = placed.iter_mut().min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.len().cmp(&b.1.len())));
            if let Some((load, services)) = lightest {
                *load += cores;
                services.push(service);
            }
        }
        let nodes =
            placed.iter().enumerate().map(|(index, (load, services))| node(topology, index, *load, services)).collect();
        Self { nodes, rate }
    }

    /// The node that runs `service`.
    pub fn node_of(&self, service: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.tiers.iter().any(|tier| tier.service == service))
    }

    /// `address:port` of every tier, by service.
    pub fn peers(&self) -> BTreeMap<String, String> {
        let of_node = |node: &Node| {
            let ip = node.ip;
            node.tiers.iter().map(move |tier| (tier.service.clone(), format!("{ip}:{}", tier.port))).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of_node).collect()
    }
}

fn node(topology: &Topology, index: usize, load: f64, services: &[usize]) -> Node {
    let place = u8::try_from(index).unwrap_or(0);
    let tier = |(offset, service): (usize, &usize)| Tier {
        service: topology.services[*service].id.clone(),
        port: TIER_PORT + u16::try_from(offset).unwrap_or(0),
    };
    Node {
        name: format!("node-{}", char::from(b'a' + place)),
        ip: Ipv4Addr::new(10, 77, 0, 11 + place),
        cores: (load * HEADROOM).max(CORES_MIN),
        tiers: services.iter().enumerate().map(tier).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{self, Plan};

    fn layout(name: &str) -> Layout {
        let topology = topology::load(name).expect("built in");
        let plan = Plan::new(&topology);
        Layout::new(&topology, &Facts::new(&topology, &plan), 0.7, None)
    }

    #[test]
    fn every_used_tier_has_one_place_and_one_address() {
        for name in ["demo", "chain", "social_network"] {
            let layout = layout(name);
            let mut addresses: Vec<String> = layout.peers().into_values().collect();
            let tiers: usize = layout.nodes.iter().map(|node| node.tiers.len()).sum();
            addresses.sort();
            addresses.dedup();
            assert_eq!(addresses.len(), tiers, "{name}");
            assert!(layout.nodes.len() <= NODES_MAX);
        }
    }

    #[test]
    fn a_small_application_gets_a_node_a_tier() {
        assert!(layout("demo").nodes.iter().all(|node| node.tiers.len() == 1));
    }

    #[test]
    fn the_rate_is_cut_where_the_machine_could_not_carry_it() {
        let rate = layout("chain").rate;
        assert!(rate > 20.0 && rate < 500.0, "{rate}");
    }
}
