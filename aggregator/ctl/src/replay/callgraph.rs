//! Who calls whom, as somebody gives it beside a recording. Pure.
//!
//! A graph of services without operations: `[{"client", "server"}]`, the answer of `sagectl graph --output json`, or lines
//! `CALLER,CALLEE`. It stands in where no spans tell.

use std::collections::{BTreeMap, BTreeSet};

use sage_common::ServiceId;
use serde::Deserialize;

/// Edges of a given graph at most: ten for each of ten thousand services.
pub const EDGES_MAX: usize = 100_000;

/// Callees by caller.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallGraph {
    callees: BTreeMap<ServiceId, BTreeSet<ServiceId>>,
    count: usize,
    names: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Edge {
    #[serde(default, alias = "caller", alias = "source", alias = "from", alias = "parent")]
    client: Option<String>,
    #[serde(alias = "callee", alias = "target", alias = "to", alias = "child")]
    server: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    List(Vec<Edge>),
    Graph { edges: Vec<Edge> },
}

impl CallGraph {
    /// Reads a graph.
    ///
    /// # Errors
    ///
    /// What is wrong, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut graph = Self::default();
        if text.trim_start().starts_with(['[', '{']) {
            let want = "want [{\"client\", \"server\"}], or what sagectl graph --output json gives";
            let edges = match serde_json::from_str(text).map_err(|error| format!("{error}; {want}"))? {
                Written::List(edges) | Written::Graph { edges } => edges,
            };
            edges
                .iter()
                .filter_map(|edge| Some((edge.client.as_ref()?, &edge.server)))
                .for_each(|(a, b)| graph.add(a, b));
        } else {
            for (at, line) in text.lines().enumerate() {
                let line = line.split('#').next().unwrap_or_default().trim();
                match line.split_once([',', ';', '\t']) {
                    Some((caller, callee)) => graph.add(caller.trim(), callee.trim()),
                    None if line.is_empty() => {}
                    None => return Err(format!("line {}: want CALLER,CALLEE", at + 1)),
                }
            }
        }
        if graph.len() > EDGES_MAX {
            return Err(format!("more than {EDGES_MAX} edges"));
        }
        Ok(graph)
    }

    /// Adds one call; a service that calls itself tells nothing.
    pub fn add(&mut self, caller: &str, callee: &str) {
        if caller != callee && !caller.is_empty() && !callee.is_empty() && self.count <= EDGES_MAX {
            self.names.extend([caller.to_owned(), callee.to_owned()]);
            self.link(ServiceId::sanitized(caller), ServiceId::sanitized(callee));
        }
    }

    /// Adds one call between services that are known by their ids; beyond [`EDGES_MAX`] none.
    pub fn link(&mut self, caller: ServiceId, callee: ServiceId) {
        if caller != callee && self.count <= EDGES_MAX {
            self.count += usize::from(self.callees.entry(caller).or_default().insert(callee));
        }
    }

    /// Adds everything of `other`.
    pub fn merge(&mut self, other: Self) {
        self.names.extend(other.names);
        for (caller, callees) in other.callees {
            callees.into_iter().for_each(|callee| self.link(caller.clone(), callee));
        }
    }

    /// How many calls it names.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.callees.is_empty()
    }

    /// Names as they are written.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whom `caller` calls.
    pub fn callees(&self, caller: &ServiceId) -> impl Iterator<Item = &ServiceId> {
        self.callees.get(caller).into_iter().flatten()
    }

    /// Who calls `callee`.
    pub fn callers<'a>(&'a self, callee: &'a ServiceId) -> impl Iterator<Item = &'a ServiceId> {
        self.callees.iter().filter(move |(_, callees)| callees.contains(callee)).map(|(caller, _)| caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_reads_in_each_of_its_forms() {
        let want = CallGraph::parse(r#"[{"client": "front::web", "server": "cart"}]"#).expect("valid");
        let callees: Vec<&str> = want.callees(&ServiceId::sanitized("front::web")).map(ServiceId::as_str).collect();
        assert_eq!(callees, ["cart"]);
        for text in [
            r#"{"services": [], "edges": [{"caller": null, "callee": "front::web"}, {"caller": "front::web", "callee": "cart"}]}"#,
            "# caller,callee\nfront::web,cart\n\nfront::web , cart # again\n",
            r#"[{"source": "front::web", "target": "cart"}, {"source": "cart", "target": "cart"}]"#,
        ] {
            assert_eq!(CallGraph::parse(text).as_ref(), Ok(&want), "{text}");
        }
    }

    #[test]
    fn a_graph_that_is_none_is_refused_with_what_is_wanted() {
        for text in ["{}", "[{\"client\": 3}]", "[1", "front cart", "a,b\nc"] {
            assert!(CallGraph::parse(text).expect_err(text).contains("want"), "{text}");
        }
        assert!(CallGraph::parse("").is_ok_and(|graph| graph.is_empty()));
    }
}
