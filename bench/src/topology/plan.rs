//! The call trees of a topology, flattened: every call node has a number that all processes agree on.
//!
//! Nodes are numbered in the order of the file, so that two processes with the same file number alike. Joins without a
//! parent (`last_of`) are settled here: the default branch keeps its steps, the others have none.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{Amount, CallNode, StepSpec, Topology};

/// The number of a call node.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One call of a tree, as its callee runs it.
#[derive(Clone, Debug)]
pub struct Node {
    /// The callee: its place in `Topology::services`.
    pub service: usize,
    /// Its operation.
    pub op: Arc<str>,
    /// Items the caller sends.
    pub items: Amount,
    /// Calls the caller makes, one after another.
    pub repeat: Amount,
    /// Whether the caller goes on without an answer.
    pub is_detached: bool,
    /// What the callee does; never empty.
    pub steps: Arc<[Step]>,
    /// Draws for conditions that one visit needs.
    pub conditions: usize,
}

/// One step of a node.
#[derive(Clone, Debug)]
pub enum Step {
    /// Spend this share of the node's own time.
    Work(f64),
    /// Call and wait.
    Call(NodeId),
    /// All branches at once.
    Par(Vec<Arc<[Self]>>),
    /// The steps, if the visit's draw number `condition` is below `p`.
    If {
        /// How likely.
        p: f64,
        /// Which draw of the visit decides.
        condition: usize,
        /// What then happens.
        steps: Arc<[Self]>,
    },
}

/// All call trees of a topology.
#[derive(Clone, Debug)]
pub struct Plan {
    nodes: Vec<Node>,
    roots: Vec<NodeId>,
}

impl Plan {
    /// The plan of a checked topology. Calls of services it does not have are left out.
    pub fn new(topology: &Topology) -> Self {
        let mut builder = Builder { topology, nodes: Vec::new() };
        let roots = topology.requests.iter().filter_map(|request| builder.node(&request.root)).collect();
        let nodes = builder.nodes.into_iter().flatten().collect();
        Self { nodes, roots }
    }

    /// The node of that number.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    /// All nodes in order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        (0..).map(NodeId).zip(&self.nodes)
    }

    /// The first node of each kind of request, in the order of `Topology::requests`.
    pub fn roots(&self) -> &[NodeId] {
        &self.roots
    }

    /// The nodes that `steps` call directly, whether or not a draw lets them.
    pub fn callees(steps: &[Step]) -> Vec<NodeId> {
        let mut found = Vec::new();
        for step in steps {
            match step {
                Step::Work(_) => {}
                Step::Call(id) => found.push(*id),
                Step::Par(branches) => found.extend(branches.iter().flat_map(|branch| Self::callees(branch))),
                Step::If { steps, .. } => found.extend(Self::callees(steps)),
            }
        }
        found
    }
}

struct Builder<'a> {
    topology: &'a Topology,
    /// `None` while its steps are still being built.
    nodes: Vec<Option<Node>>,
}

impl Builder<'_> {
    fn node(&mut self, call: &CallNode) -> Option<NodeId> {
        let service = self.topology.services.iter().position(|service| service.id == call.svc)?;
        let index = self.nodes.len();
        self.nodes.push(None);
        let mut conditions = Conditions::default();
        let steps =
            if call.steps.is_empty() { vec![Step::Work(1.0)] } else { self.steps(&call.steps, &mut conditions) };
        self.nodes[index] = Some(Node {
            service,
            op: call.op.as_str().into(),
            items: call.items.unwrap_or(Amount::Fixed(0)),
            repeat: call.repeat.unwrap_or(Amount::Fixed(1)),
            is_detached: call.detached,
            steps: steps.into(),
            conditions: conditions.count,
        });
        u32::try_from(index).ok().map(NodeId)
    }

    fn steps(&mut self, specs: &[StepSpec], conditions: &mut Conditions) -> Vec<Step> {
        let mut steps = Vec::with_capacity(specs.len());
        for spec in specs {
            match spec {
                StepSpec::Work(share) => steps.push(Step::Work(*share)),
                StepSpec::Call(call) => steps.extend(self.node(call).map(Step::Call)),
                StepSpec::Par(branches) => {
                    let branches = branches.iter().map(|branch| self.steps(branch, conditions).into()).collect();
                    steps.push(Step::Par(branches));
                }
                StepSpec::If(spec) => {
                    let condition = conditions.slot(spec.cond.as_deref());
                    let inner = self.steps(&spec.steps, conditions).into();
                    steps.push(Step::If { p: spec.p, condition, steps: inner });
                }
                StepSpec::LastOf(join) if join.default_branch => steps.extend(self.steps(&join.steps, conditions)),
                StepSpec::LastOf(_) => {}
            }
        }
        steps
    }
}

/// The draws of one node: one per distinct text, one for each condition without a text.
#[derive(Default)]
struct Conditions {
    by_text: BTreeMap<String, usize>,
    count: usize,
}

impl Conditions {
    fn slot(&mut self, text: Option<&str>) -> usize {
        let known = text.and_then(|text| self.by_text.get(text).copied());
        known.unwrap_or_else(|| {
            let slot = self.count;
            self.count += 1;
            self.by_text.extend(text.map(|text| (text.to_owned(), slot)));
            slot
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::load;

    fn plan(name: &str) -> Plan {
        Plan::new(&load(name).expect("built in"))
    }

    #[test]
    fn nodes_are_numbered_in_the_order_of_the_file() {
        let plan = plan("chain");
        assert_eq!(plan.roots(), [NodeId(0)]);
        assert_eq!(plan.nodes().count(), 11);
        for (id, node) in plan.nodes().take(10) {
            assert_eq!(Plan::callees(&node.steps), [NodeId(id.0 + 1)]);
        }
        assert!(matches!(*plan.node(NodeId(10)).expect("the leaf").steps, [Step::Work(share)] if share == 1.0));
    }

    #[test]
    fn a_join_runs_in_its_default_branch_only() {
        let topology = load("media_service").expect("built in");
        let plan = Plan::new(&topology);
        let store = topology.services.iter().position(|s| s.id == "review-storage-service").expect("declared");
        let stores = plan.nodes().filter(|(_, node)| node.service == store && &*node.op == "StoreReview").count();
        assert_eq!(stores, 1, "five visits, one of them joins");
    }

    #[test]
    fn equal_condition_texts_of_one_node_share_a_draw() {
        let mut conditions = Conditions::default();
        let slots = [Some("miss"), None, Some("miss"), None, Some("other")].map(|text| conditions.slot(text));
        assert_eq!(slots, [0, 1, 0, 2, 3]);
    }
}
