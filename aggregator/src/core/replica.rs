//! What the core asks of the replicated log. A single member on an embedded store and a Raft group both fit.

use thiserror::Error;

use crate::core::{proposal::Proposal, state::State};

/// Why an entry could not be handed to the log.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// This replica does not lead.
    #[error("not the leader; {} leads", .leader.as_deref().unwrap_or("nobody"))]
    NotLeader {
        /// Who leads, when known.
        leader: Option<String>,
    },
    /// The durable store failed; serving must stop.
    #[error("cannot {attempted} the replicated log")]
    Store {
        /// What was attempted.
        attempted: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What the log has to say, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplicaEvent {
    /// An entry is durable on a majority.
    Committed {
        /// Its position, growing by one.
        index: u64,
        /// The entry.
        proposal: Proposal,
    },
    /// This replica leads from here on.
    Leading(sage_common::Term),
    /// This replica does not lead; with the leader's address, when known.
    Following(Option<String>),
    /// This replica was too far behind for the log: everything before is in this state.
    Snapshot(Box<State>),
}

/// Receives [`ReplicaEvent`]s; called in log order, from any thread of the replica, never after the replica is dropped.
pub type Sink = Box<dyn FnMut(ReplicaEvent) + Send>;

/// The replicated log.
pub trait Replica {
    /// Hands an entry to the log. It comes out as [`ReplicaEvent::Committed`] once it is durable, or never, when
    /// leadership is lost first.
    ///
    /// # Errors
    ///
    /// [`ReplicaError::NotLeader`] when another replica leads, [`ReplicaError::Store`] when nothing can be written.
    fn propose(&mut self, proposal: Proposal) -> Result<(), ReplicaError>;

    /// Sends every event from here on to `sink`. The state to start from was handed out when the replica was opened.
    fn subscribe(&mut self, sink: Sink);

    /// Makes `state`, which has everything up to its [`State::applied`], durable, so that older entries may go.
    ///
    /// # Errors
    ///
    /// [`ReplicaError::Store`] when it cannot be written; the older entries stay.
    fn compact(&mut self, state: &State) -> Result<(), ReplicaError>;
}
