//! Who speaks when: one state machine for each side of a connection, without a socket, a clock or a task.
//!
//! A driver hands in the time (microseconds of one monotonic clock, its zero anywhere) and what has happened, then takes
//! outputs until there are none, and calls again at [`AgentSession::poll_timeout`]. The real driver is
//! [`quic`](crate::quic); tests drive both sides through a simulated network.
//!
//! Exactly once: windows may be lost, doubled and reordered on the way. An agent keeps each until it is acknowledged and
//! submits it again after every reconnect; the aggregator's store applies by key and acknowledges what is committed.

mod agent;
mod aggregator;
mod backoff;

use std::ops::RangeInclusive;

use sage_common::{Micros, Term};
use thiserror::Error;

pub use agent::{AgentEvent, AgentInput, AgentOutput, AgentSession, AgentSessionConfig, AgentState};
pub use aggregator::{AggregatorInput, AggregatorOutput, AggregatorSession, Answer};

use crate::{identity::IdentityError, message};

/// The protocol versions that this build speaks.
pub const VERSIONS: RangeInclusive<u16> = message::VERSION..=message::VERSION;

/// Windows of one connection sent and not yet acknowledged. Eight cover a commit of 100 ms at 80 windows a second, and
/// hold an agent's memory for them to 8 MiB at the very worst.
pub const WINDOWS_IN_FLIGHT_MAX: usize = 8;

/// Results kept for the next connection. The oldest goes first: the hello says what is in force anyway.
pub const RESULTS_MAX: usize = 256;

/// Leases named in a hello: more than a node has knobs worth changing.
pub const HELD_MAX: usize = 1_000;

/// Windows of one connection that may be rejected before it is closed.
pub const REJECTIONS_MAX: usize = 64;

/// Sequence numbers in one acknowledgement: 10 KiB at most.
pub const ACKNOWLEDGED_PER_MESSAGE_MAX: usize = 1_024;

/// Redirects followed in a row before the configured addresses are tried again: every member of a group of five once.
pub const REDIRECTS_MAX: u32 = 5;

/// How long each side waits for what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    /// Between two heartbeats of one side.
    pub heartbeat: Micros,
    /// Without a word of the peer before the connection is given up.
    pub silence_max: Micros,
    /// From the first packet to the welcome.
    pub greeting_max: Micros,
    /// From sending a window to its acknowledgement, before an agent takes the aggregator for a black hole.
    pub acknowledgement_max: Micros,
    /// Before the second attempt to connect; doubles with each further one.
    pub backoff_first: Micros,
    /// The longest time between two attempts.
    pub backoff_max: Micros,
}

impl Default for Timing {
    /// Eight heartbeats may be missed: a starved machine is not a dead one.
    fn default() -> Self {
        Self {
            heartbeat: Micros::from_secs(1),
            silence_max: Micros::from_secs(8),
            greeting_max: Micros::from_secs(5),
            acknowledgement_max: Micros::from_secs(10),
            backoff_first: Micros::from_millis(100),
            backoff_max: Micros::from_secs(5),
        }
    }
}

/// Why a connection ended, or did not come to be.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Disconnect {
    /// Nobody there, or the handshake failed.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The transport gave up, or the peer closed it.
    #[error("connection lost: {0}")]
    Lost(String),
    /// Not a word for too long.
    #[error("nothing heard for {0}")]
    Silent(Micros),
    /// No welcome, or no hello, in time.
    #[error("no greeting within {0}")]
    NoGreeting(Micros),
    /// Windows are taken but not acknowledged.
    #[error("a window is not acknowledged after {0}")]
    Unacknowledged(Micros),
    /// The aggregator refuses this agent, or this aggregator refuses the agent.
    #[error("refused: {0}")]
    Refused(String),
    /// Somebody else leads.
    #[error("redirected to {}", .0.as_deref().unwrap_or("nobody: no leader yet"))]
    Redirected(Option<String>),
    /// The peer leads a term that is over.
    #[error("peer leads term {told}, but term {seen} has been seen")]
    StaleTerm {
        /// The peer's term.
        told: Term,
        /// The highest term seen.
        seen: Term,
    },
    /// The peer said something that it must not.
    #[error("peer broke the protocol: {0}")]
    Protocol(String),
    /// The peer's certificate is genuine but does not entitle it to this.
    #[error("peer is not entitled")]
    Identity(#[from] IdentityError),
    /// The same agent connected anew.
    #[error("replaced by a newer connection")]
    Replaced,
    /// The peer lets its messages pile up.
    #[error("peer does not read")]
    Stalled,
    /// Closed by our own owner.
    #[error("closed")]
    Closed,
}

/// The highest version in both ranges.
fn negotiate(ours: &RangeInclusive<u16>, theirs: &RangeInclusive<u16>) -> Option<u16> {
    let version = *ours.end().min(theirs.end());
    (ours.contains(&version) && theirs.contains(&version)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_spoken() {
        assert_eq!(negotiate(&(1..=3), &(2..=5)), Some(3));
        assert_eq!(negotiate(&(2..=5), &(1..=3)), Some(3));
        assert_eq!(negotiate(&(1..=1), &(2..=3)), None);
        assert_eq!(negotiate(&(2..=3), &(1..=1)), None);
        #[expect(clippy::reversed_empty_ranges, reason = "what a hostile hello may say")]
        let reversed = 3..=1;
        assert_eq!(negotiate(&(1..=3), &reversed), None);
    }
}
