//! The order in which decoders feed each other: services that call each other are merged into one metanode, callees stand
//! before callers.

use petgraph::{
    algo::tarjan_scc,
    graph::{DiGraph, NodeIndex},
};

use crate::graph::Graph;

/// Services by number, metanode by metanode, callees first.
pub fn metanodes(graph: &Graph) -> Vec<Vec<usize>> {
    let mut calls = DiGraph::<(), ()>::new();
    graph.services().iter().for_each(|_| {
        calls.add_node(());
    });
    for edge in 0..graph.edges().len() {
        if let Some(caller) = graph.caller(edge) {
            calls.add_edge(NodeIndex::new(caller), NodeIndex::new(graph.callee(edge)), ());
        }
    }
    // Tarjan gives components in reverse topological order: what is called comes before who calls it.
    let numbers = |members: Vec<NodeIndex>| {
        let mut members: Vec<usize> = members.into_iter().map(NodeIndex::index).collect();
        members.sort_unstable();
        members
    };
    tarjan_scc(&calls).into_iter().map(numbers).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::graph::tests::key;

    #[test]
    fn callees_come_first_and_cycles_are_one_node() {
        let edges = [key("", "a"), key("a", "b"), key("b", "c"), key("c", "b"), key("c", "d")];
        let graph = Graph::new(&edges.into_iter().collect(), &BTreeMap::new());
        let names = |members: &Vec<usize>| members.iter().map(|s| graph.services()[*s].as_str()).collect::<String>();
        let order: Vec<String> = metanodes(&graph).iter().map(names).collect();
        assert_eq!(order, ["d", "bc", "a"]);
    }
}
