//! The RPC graph: which service calls which, with ageing, and rings of services merged to one metanode.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::{Direction, algo::tarjan_scc, stable_graph::StableDiGraph};
use sage_causal::observation::{EdgeKey, Observation};
use sage_common::{NodeId, ServiceId, Timestamp};
use serde::{Deserialize, Serialize};

/// Windows after which an edge or service that was not seen again vanishes: one hour of ten-second windows.
pub const FORGET_WINDOWS: u64 = 360;
/// Edges kept; more would be an explosion of operation names, and the longest unseen go.
pub const EDGES_MAX: usize = 16_384;

/// What the newest window with calls said about an edge.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EdgeState {
    /// Completed calls per second.
    pub calls_per_s: f64,
    /// Failed calls per second.
    pub errors_per_s: f64,
    /// 99th percentile of client spans, microseconds.
    pub client_p99_us: Option<f32>,
    /// 99th percentile of server spans, microseconds.
    pub server_p99_us: Option<f32>,
    /// Start of that window.
    pub last_seen: Timestamp,
    /// Number of that window.
    pub close: u64,
}

/// What the newest window said about a service.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct ServiceState {
    /// Replicas.
    pub instances: u32,
    /// Nodes they run on.
    pub nodes: BTreeSet<NodeId>,
    /// Number of that window.
    pub close: u64,
}

/// The graph of the whole fleet.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct RpcGraph {
    edges: BTreeMap<EdgeKey, EdgeState>,
    services: BTreeMap<ServiceId, ServiceState>,
}

impl RpcGraph {
    /// Takes over what window number `close` says, and forgets what is old.
    pub fn update(&mut self, observation: &Observation, close: u64) {
        let seconds = observation.length.as_secs_f64().max(f64::EPSILON);
        for edge in &observation.edges {
            let state = EdgeState {
                calls_per_s: edge.calls / seconds,
                errors_per_s: edge.errors / seconds,
                client_p99_us: edge.client.map(|quantiles| quantiles.at(99.0)),
                server_p99_us: edge.server.map(|quantiles| quantiles.at(99.0)),
                last_seen: observation.start,
                close,
            };
            self.edges.insert(edge.key.clone(), state);
        }
        for service in &observation.services {
            let instances = u32::try_from(service.instances.len()).unwrap_or(u32::MAX);
            let nodes = service.instances.iter().map(|instance| instance.node.clone()).collect();
            self.services.insert(service.service.clone(), ServiceState { instances, nodes, close });
        }
        let is_fresh = |seen: u64| seen.saturating_add(FORGET_WINDOWS) >= close;
        self.edges.retain(|_, edge| is_fresh(edge.close));
        self.services.retain(|_, service| is_fresh(service.close));
        self.bound();
    }

    fn bound(&mut self) {
        let Some(excess) = self.edges.len().checked_sub(EDGES_MAX).filter(|excess| *excess > 0) else { return };
        let mut order: Vec<(u64, EdgeKey)> = self.edges.iter().map(|(key, edge)| (edge.close, key.clone())).collect();
        order.sort();
        for (_, key) in order.into_iter().take(excess) {
            self.edges.remove(&key);
        }
    }

    /// Every edge, ordered by key.
    pub fn edges(&self) -> impl Iterator<Item = (&EdgeKey, &EdgeState)> {
        self.edges.iter()
    }

    /// Every service, ordered by name.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceId, &ServiceState)> {
        self.services.iter()
    }

    /// One service.
    pub fn service(&self, service: &ServiceId) -> Option<&ServiceState> {
        self.services.get(service)
    }

    /// Services and the calls between them; the weight of a call is its operations' rate together.
    pub fn digraph(&self) -> StableDiGraph<ServiceId, f64> {
        let mut graph = StableDiGraph::new();
        let mut indices = BTreeMap::new();
        let services = self.services.keys().chain(self.edges.keys().map(|edge| &edge.callee));
        for service in services.chain(self.edges.keys().filter_map(|edge| edge.caller.as_ref())) {
            indices.entry(service).or_insert_with(|| graph.add_node(service.clone()));
        }
        for (key, edge) in &self.edges {
            let Some(caller) = key.caller.as_ref().and_then(|caller| indices.get(caller)) else { continue };
            let callee = indices[&key.callee];
            let rate = graph.find_edge(*caller, callee).and_then(|at| graph.edge_weight(at)).copied().unwrap_or(0.0);
            graph.update_edge(*caller, callee, rate + edge.calls_per_s);
        }
        graph
    }

    /// Groups of services that call each other in a ring (or one service alone), callees before callers.
    pub fn metanodes(&self) -> Vec<Vec<ServiceId>> {
        let graph = self.digraph();
        let mut groups: Vec<Vec<ServiceId>> = tarjan_scc(&graph)
            .into_iter()
            .map(|group| group.into_iter().map(|at| graph[at].clone()).collect())
            .collect();
        for group in &mut groups {
            group.sort();
        }
        groups
    }

    /// Services that nobody in the fleet calls, and those that clients call.
    pub fn entries(&self) -> BTreeSet<ServiceId> {
        let graph = self.digraph();
        let uncalled = graph.externals(Direction::Incoming).map(|at| graph[at].clone());
        let called_by_clients = self.edges.keys().filter(|edge| edge.caller.is_none()).map(|edge| edge.callee.clone());
        uncalled.chain(called_by_clients).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sage_causal::observation::EdgeObservation;
    use sage_common::{Micros, OperationId};

    use super::*;

    fn service(number: u8) -> ServiceId {
        ServiceId::sanitized(&format!("s{number}"))
    }

    fn observation(edges: impl IntoIterator<Item = (Option<u8>, u8)>) -> Observation {
        let edge = |(caller, callee): (Option<u8>, u8)| EdgeObservation {
            key: EdgeKey {
                caller: caller.map(service),
                callee: service(callee),
                operation: OperationId::sanitized("get"),
            },
            calls: 10.0,
            errors: 0.0,
            client: None,
            server: None,
            gap: None,
            self_time: None,
        };
        Observation {
            start: Timestamp::from_micros(0),
            length: Micros::from_secs(1),
            edges: edges.into_iter().map(edge).collect(),
            services: Vec::new(),
            traces: Vec::new(),
            skeletons: Vec::new(),
            objectives: Vec::new(),
            offered_per_s: 0.0,
            completeness: 1.0,
            trace_share: 1.0,
        }
    }

    #[test]
    fn an_edge_that_is_not_seen_again_vanishes() {
        let mut graph = RpcGraph::default();
        graph.update(&observation([(None, 0), (Some(0), 1)]), 1);
        graph.update(&observation([(None, 0)]), 2 + FORGET_WINDOWS);
        assert_eq!(graph.edges().count(), 1);
        assert_eq!(graph.entries(), BTreeSet::from([service(0)]));
    }

    #[test]
    fn a_ring_is_one_metanode_and_callees_come_first() {
        let mut graph = RpcGraph::default();
        graph.update(&observation([(None, 0), (Some(0), 1), (Some(1), 2), (Some(2), 1), (Some(2), 3)]), 1);
        assert_eq!(graph.metanodes(), [vec![service(3)], vec![service(1), service(2)], vec![service(0)]]);
    }

    proptest! {
        #[test]
        fn random_digraphs_condense_to_every_service_once(
            edges in prop::collection::vec((prop::option::of(0_u8..20), 0_u8..20), 0..120),
        ) {
            let mut graph = RpcGraph::default();
            graph.update(&observation(edges), 1);
            let groups = graph.metanodes();
            let all: Vec<ServiceId> = groups.into_iter().flatten().collect();
            let distinct: BTreeSet<&ServiceId> = all.iter().collect();
            prop_assert_eq!(distinct.len(), all.len());
            prop_assert_eq!(all.len(), graph.digraph().node_count());
        }
    }
}
