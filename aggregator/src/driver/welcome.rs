//! Answers hellos from connection tasks, without asking the owner: what is committed of each agent's life, and our term.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sage_common::{BootId, NodeId, Term};
use sage_protocol::{message::Hello, session::Answer};
use tokio::sync::mpsc;

use crate::core::State;

/// Lives remembered per node, as in the state; forgetting one only makes an agent send what we know already.
const BOOTS_MAX: usize = 8;

/// What hellos are answered from. Clones share it; the owner keeps it up to date.
#[derive(Clone, Debug)]
pub struct Welcome {
    name: Arc<str>,
    known: Arc<Mutex<Known>>,
    /// Terms above ours that agents have obeyed. One is enough; further ones find the queue full.
    higher: mpsc::Sender<Term>,
}

#[derive(Debug, Default)]
struct Known {
    term: Option<Term>,
    acknowledged: HashMap<NodeId, BTreeMap<BootId, u64>>,
}

impl Welcome {
    /// For the aggregator called `name`, which knows `state` and does not lead yet. The receiver is told of terms above
    /// ours.
    pub fn new(name: &str, state: &State) -> (Self, mpsc::Receiver<Term>) {
        let (higher, receiver) = mpsc::channel(1);
        let welcome = Self { name: name.into(), known: Arc::default(), higher };
        for (node, boot, below) in state.acknowledged() {
            welcome.acknowledged(node, boot, below);
        }
        (welcome, receiver)
    }

    /// We lead this term, or none.
    pub fn lead(&self, term: Option<Term>) {
        self.known().term = term;
    }

    /// Every window of this life of this agent below the number is committed.
    pub fn acknowledged(&self, node: &NodeId, boot: BootId, below: u64) {
        let mut known = self.known();
        let boots = known.acknowledged.entry(node.clone()).or_default();
        boots.insert(boot, below);
        if boots.len() > BOOTS_MAX {
            let other = boots.keys().find(|known| **known != boot).copied();
            other.and_then(|other| boots.remove(&other));
        }
    }

    /// The answer to `hello`. An agent that has obeyed a higher term than ours finds no leader until we lead a higher one:
    /// our state was lost, and with it the count of terms.
    pub fn answer(&self, hello: &Hello) -> Answer {
        let known = self.known();
        let Some(term) = known.term else { return Answer::Redirect(None) };
        if hello.term > term {
            // Full means that the owner has been told.
            let _ = self.higher.try_send(hello.term);
            return Answer::Redirect(None);
        }
        let below = known.acknowledged.get(&hello.node).and_then(|boots| boots.get(&hello.boot)).copied();
        Answer::Welcome { term, leader: self.name.as_ref().to_owned(), acknowledged_below: below.unwrap_or(0) }
    }

    /// A panic elsewhere leaves numbers as good as they were.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(boot: u64, term: u64) -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            node: NodeId::sanitized("node-a"),
            boot: BootId(boot),
            program: "test".into(),
            term: Term(term),
            held: Vec::new(),
        }
    }

    #[test]
    fn an_agent_learns_what_is_committed_of_its_own_life_only() {
        let (welcome, _higher) = Welcome::new("a-1", &State::new(10));
        welcome.lead(Some(Term(3)));
        welcome.acknowledged(&NodeId::sanitized("node-a"), BootId(1), 42);
        let below = |boot| match welcome.answer(&hello(boot, 3)) {
            Answer::Welcome { acknowledged_below, .. } => acknowledged_below,
            other => panic!("{other:?}"),
        };
        assert_eq!((below(1), below(2)), (42, 0));
    }

    #[test]
    fn nobody_is_welcomed_before_we_lead_or_below_a_higher_term() {
        let (welcome, mut higher) = Welcome::new("a-1", &State::new(10));
        assert_eq!(welcome.answer(&hello(1, 0)), Answer::Redirect(None));
        welcome.lead(Some(Term(3)));
        assert_eq!(welcome.answer(&hello(1, 9)), Answer::Redirect(None));
        assert_eq!(higher.try_recv(), Ok(Term(9)));
        welcome.lead(Some(Term(10)));
        assert!(matches!(welcome.answer(&hello(1, 9)), Answer::Welcome { term: Term(10), .. }));
    }

    #[test]
    fn a_restart_loop_of_an_agent_leaves_bounded_memory() {
        let (welcome, _higher) = Welcome::new("a-1", &State::new(10));
        for boot in 0..100 {
            welcome.acknowledged(&NodeId::sanitized("node-a"), BootId(boot), 1);
        }
        assert_eq!(welcome.known().acknowledged.values().map(BTreeMap::len).sum::<usize>(), BOOTS_MAX);
    }
}
