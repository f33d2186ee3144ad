//! The causal Bayesian network of an application, from its RPC graph.
//!
//! ```text
//!  X(callee) ─► self(e) ─► server(e) ─► client(e) ─► server(edges that call e)
//!  Z(callee) ─►   "                       ▲
//!  X(callee), Z(callee), X(caller), Z(caller), server(e) ─► gap(e) ┘
//! ```
//!
//! X are a service's metrics, Z its latent state, Y the latencies of an edge. Edges whose server spans reach each other
//! (cycles, bidirectional streams) are condensed into metanodes.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::{
    algo::{dijkstra, tarjan_scc},
    graph::{DiGraph, NodeIndex},
    visit::{Dfs, EdgeRef},
};
use sage_common::ServiceId;

use crate::{observation::EdgeKey, skeleton::Operation};

/// A vertex of the network.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Variable {
    /// Metrics of a service (X).
    Metrics(usize),
    /// Latent state of a service (Z).
    Latent(usize),
    /// Self time of an edge's callee (Y).
    SelfTime(usize),
    /// Client minus server span of an edge (Y).
    Gap(usize),
    /// Server span of an edge (Y).
    Server(usize),
    /// Client span of an edge (Y).
    Client(usize),
}

/// Edges that are evaluated together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Component {
    /// Edge numbers.
    pub edges: Vec<usize>,
    /// A metanode: its edges reach each other.
    pub is_cycle: bool,
}

/// The network, its services and edges numbered in their order by name.
#[derive(Clone, Debug)]
pub struct Graph {
    services: Vec<ServiceId>,
    edges: Vec<EdgeKey>,
    callers: Vec<Option<usize>>,
    callees: Vec<usize>,
    children: Vec<Vec<usize>>,
    ins: Vec<Vec<usize>>,
    outs: Vec<Vec<usize>>,
    components: Vec<Component>,
    component_of: Vec<usize>,
    variables: DiGraph<Variable, ()>,
}

impl Graph {
    /// The network of `edges`. `calls` says which edges each operation travels; an operation it does not know may travel
    /// every edge of its service.
    pub fn new(edges: &BTreeSet<EdgeKey>, calls: &BTreeMap<Operation, BTreeSet<EdgeKey>>) -> Self {
        let edges: Vec<EdgeKey> = edges.iter().cloned().collect();
        let names: BTreeSet<&ServiceId> = edges.iter().flat_map(|e| e.caller.iter().chain([&e.callee])).collect();
        let services: Vec<ServiceId> = names.into_iter().cloned().collect();
        let number = |name: &ServiceId| services.binary_search(name).unwrap_or_default();
        let callers: Vec<Option<usize>> = edges.iter().map(|e| e.caller.as_ref().map(number)).collect();
        let callees: Vec<usize> = edges.iter().map(|e| number(&e.callee)).collect();
        let mut ins = vec![Vec::new(); services.len()];
        let mut outs = vec![Vec::new(); services.len()];
        for edge in 0..edges.len() {
            ins[callees[edge]].push(edge);
            if let Some(caller) = callers[edge] {
                outs[caller].push(edge);
            }
        }
        let children = (0..edges.len()).map(|e| children_of(&edges, e, &outs[callees[e]], calls)).collect();
        let mut graph = Self {
            services,
            edges,
            callers,
            callees,
            children,
            ins,
            outs,
            components: Vec::new(),
            component_of: Vec::new(),
            variables: DiGraph::new(),
        };
        graph.condense();
        graph.connect();
        graph
    }

    /// Services in order of name.
    pub fn services(&self) -> &[ServiceId] {
        &self.services
    }

    /// Edges in order of key.
    pub fn edges(&self) -> &[EdgeKey] {
        &self.edges
    }

    /// The number of a service.
    pub fn service(&self, name: &ServiceId) -> Option<usize> {
        self.services.binary_search(name).ok()
    }

    /// The number of an edge.
    pub fn edge(&self, key: &EdgeKey) -> Option<usize> {
        self.edges.binary_search(key).ok()
    }

    /// Who travels the edge; `None` for clients.
    pub fn caller(&self, edge: usize) -> Option<usize> {
        self.callers[edge]
    }

    /// Who is called.
    pub fn callee(&self, edge: usize) -> usize {
        self.callees[edge]
    }

    /// Edges that the server spans of `edge` may call.
    pub fn children(&self, edge: usize) -> &[usize] {
        &self.children[edge]
    }

    /// Edges into a service.
    pub fn ins(&self, service: usize) -> &[usize] {
        &self.ins[service]
    }

    /// Edges out of a service.
    pub fn outs(&self, service: usize) -> &[usize] {
        &self.outs[service]
    }

    /// Edges in the order of evaluation, leaves first, cycles condensed.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// The position in [`components`](Self::components) of the one that holds `edge`.
    pub fn component_of(&self, edge: usize) -> usize {
        self.component_of[edge]
    }

    /// Which edges change when `services` are intervened on: those whose server or client span descends from a service's
    /// X or Z.
    pub fn affected_by(&self, services: &[usize]) -> Vec<bool> {
        let mut affected = vec![false; self.edges.len()];
        let mut search = Dfs::empty(&self.variables);
        for service in services {
            for start in [2 * service, 2 * service + 1] {
                search.move_to(NodeIndex::new(start));
                while let Some(vertex) = search.next(&self.variables) {
                    if let Variable::Server(edge) | Variable::Client(edge) = self.variables[vertex] {
                        affected[edge] = true;
                    }
                }
            }
        }
        affected
    }

    /// The cheapest way along the calls from `entry` to `service`, as edges; empty when there is none or both are the same.
    /// `cost` of an edge must be positive.
    pub fn path(&self, entry: usize, service: usize, cost: impl Fn(usize) -> f64) -> Vec<usize> {
        let calls = self.call_graph();
        let reach = dijkstra(&calls, NodeIndex::new(entry), None, |edge| cost(*edge.weight()));
        let mut path = Vec::new();
        let mut here = NodeIndex::new(service);
        // Ends: every step goes to a vertex strictly nearer to the entry.
        while here.index() != entry {
            let Some(total) = reach.get(&here) else { return Vec::new() };
            let nearer = calls
                .edges_directed(here, petgraph::Direction::Incoming)
                .filter(|edge| reach.get(&edge.source()).is_some_and(|before| before < total));
            let by_cost =
                |edge: &petgraph::graph::EdgeReference<'_, usize>| reach[&edge.source()] + cost(*edge.weight());
            let Some(step) = nearer.min_by(|a, b| by_cost(a).total_cmp(&by_cost(b))) else { return Vec::new() };
            path.push(*step.weight());
            here = step.source();
        }
        path.reverse();
        path
    }

    /// Services as vertices, edges as calls.
    fn call_graph(&self) -> DiGraph<(), usize> {
        let mut calls = DiGraph::new();
        self.services.iter().for_each(|_| {
            calls.add_node(());
        });
        for edge in 0..self.edges.len() {
            if let Some(caller) = self.callers[edge] {
                calls.add_edge(NodeIndex::new(caller), NodeIndex::new(self.callees[edge]), edge);
            }
        }
        calls
    }

    fn condense(&mut self) {
        let mut nesting = DiGraph::<(), ()>::new();
        self.edges.iter().for_each(|_| {
            nesting.add_node(());
        });
        for (edge, children) in self.children.iter().enumerate() {
            for child in children {
                nesting.add_edge(NodeIndex::new(edge), NodeIndex::new(*child), ());
            }
        }
        // Tarjan gives components in reverse topological order: what is called comes before who calls it.
        self.components = tarjan_scc(&nesting)
            .into_iter()
            .map(|vertices| {
                let mut edges: Vec<usize> = vertices.into_iter().map(NodeIndex::index).collect();
                edges.sort_unstable();
                let is_cycle = edges.len() > 1 || self.children[edges[0]].contains(&edges[0]);
                Component { edges, is_cycle }
            })
            .collect();
        self.component_of = vec![0; self.edges.len()];
        for (place, component) in self.components.iter().enumerate() {
            component.edges.iter().for_each(|edge| self.component_of[*edge] = place);
        }
    }

    /// Vertices in this order: X and Z of every service, then self, gap, server and client of every edge.
    fn connect(&mut self) {
        let Self { variables, services, edges, .. } = self;
        for service in 0..services.len() {
            variables.add_node(Variable::Metrics(service));
            variables.add_node(Variable::Latent(service));
        }
        for edge in 0..edges.len() {
            for variable in [Variable::SelfTime, Variable::Gap, Variable::Server, Variable::Client] {
                variables.add_node(variable(edge));
            }
        }
        let base = 2 * self.services.len();
        let of_edge = |edge: usize, place: usize| NodeIndex::new(base + 4 * edge + place);
        for edge in 0..self.edges.len() {
            let [own, gap, server, client] = [0, 1, 2, 3].map(|place| of_edge(edge, place));
            let callee = self.callees[edge];
            let mut arrows = vec![(own, server), (server, gap), (server, client), (gap, client)];
            for service in [Some(callee), self.callers[edge]].into_iter().flatten() {
                arrows.extend([2 * service, 2 * service + 1].map(|cause| (NodeIndex::new(cause), gap)));
            }
            arrows.extend([2 * callee, 2 * callee + 1].map(|cause| (NodeIndex::new(cause), own)));
            arrows.extend(self.children[edge].iter().map(|child| (of_edge(*child, 3), server)));
            arrows.into_iter().for_each(|(cause, effect)| {
                self.variables.add_edge(cause, effect, ());
            });
        }
    }
}

fn children_of(
    edges: &[EdgeKey],
    edge: usize,
    outs: &[usize],
    calls: &BTreeMap<Operation, BTreeSet<EdgeKey>>,
) -> Vec<usize> {
    let key = &edges[edge];
    match calls.get(&(key.callee.clone(), key.operation.clone())) {
        Some(known) => outs.iter().copied().filter(|out| known.contains(&edges[*out])).collect(),
        None => outs.to_vec(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn key(caller: &str, callee: &str) -> EdgeKey {
        EdgeKey {
            caller: (!caller.is_empty()).then(|| ServiceId::sanitized(caller)),
            callee: ServiceId::sanitized(callee),
            operation: sage_common::OperationId::sanitized("op"),
        }
    }

    fn graph(edges: &[(&str, &str)]) -> Graph {
        Graph::new(&edges.iter().map(|(a, b)| key(a, b)).collect(), &BTreeMap::new())
    }

    fn affected(graph: &Graph, service: &str) -> Vec<String> {
        let flags = graph.affected_by(&[graph.service(&ServiceId::sanitized(service)).expect("known")]);
        let name = |edge: usize| graph.edges()[edge].callee.to_string();
        flags.iter().enumerate().filter(|(_, flag)| **flag).map(|(edge, _)| name(edge)).collect()
    }

    #[test]
    fn what_is_called_is_evaluated_before_who_calls_it() {
        let graph = graph(&[("", "a"), ("a", "b"), ("b", "c"), ("a", "c")]);
        let order: Vec<usize> = graph.components().iter().flat_map(|c| c.edges.clone()).collect();
        for edge in 0..graph.edges().len() {
            let place = |e: usize| order.iter().position(|o| *o == e);
            assert!(graph.children(edge).iter().all(|child| place(*child) < place(edge)));
        }
        assert!(graph.components().iter().all(|component| !component.is_cycle));
    }

    #[test]
    fn services_that_call_each_other_become_one_metanode() {
        let graph = graph(&[("", "a"), ("a", "b"), ("b", "a"), ("b", "c")]);
        let cycles: Vec<_> = graph.components().iter().filter(|c| c.is_cycle).collect();
        assert_eq!(cycles.len(), 1);
        assert_eq!(cycles[0].edges.len(), 2);
    }

    #[test]
    fn an_intervention_reaches_its_own_edges_and_their_ancestors_only() {
        let graph = graph(&[("", "a"), ("a", "b"), ("b", "d"), ("a", "c")]);
        // b owns the gap towards d as its caller, so that edge's client span may change too.
        assert_eq!(affected(&graph, "b"), ["a", "b", "d"]);
        assert_eq!(affected(&graph, "c"), ["a", "c"]);
    }

    #[test]
    fn the_path_follows_the_calls() {
        let graph = graph(&[("", "a"), ("a", "b"), ("b", "d"), ("a", "c"), ("c", "d")]);
        let number = |name: &str| graph.service(&ServiceId::sanitized(name)).expect("known");
        let path =
            graph.path(number("a"), number("d"), |edge| if graph.callee(edge) == number("b") { 5.0 } else { 1.0 });
        let names: Vec<&str> = path.iter().map(|edge| graph.edges()[*edge].callee.as_str()).collect();
        assert_eq!(names, ["c", "d"]);
        assert!(graph.path(number("d"), number("a"), |_| 1.0).is_empty());
    }
}
