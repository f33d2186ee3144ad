//! Incidents: one breach of one objective, from the first violated windows to the target being met again.
//!
//! ```text
//!            Opened               Resolved
//!   (none) ─────────► open ──────────────────► resolved
//!                      │ ▲
//!                      └─┘ Diagnosed, Waiting; actions refer to it
//! ```

use sage_causal::verdict::Verdict;
use sage_common::{ActionId, Micros, Timestamp};
use serde::{Deserialize, Serialize};

use crate::core::label::Label;

/// Number of an incident, unique within the fleet.
pub type IncidentId = u64;

/// Verdicts kept per incident: the first one, and the newest ones.
pub const VERDICTS_MAX: usize = 16;

/// One breach of one objective.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Incident {
    /// Its number.
    pub id: IncidentId,
    /// The objective's name.
    pub slo: String,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// The count of closed windows at that time.
    pub opened_close: u64,
    /// When the target was met again.
    pub resolved_at: Option<Timestamp>,
    /// The percentile that opened it.
    pub latency: Micros,
    /// The target at that time.
    pub target: Micros,
    /// What the model said, oldest first.
    pub verdicts: Vec<VerdictRecord>,
    /// Actions taken or recommended for it, oldest first.
    pub actions: Vec<ActionId>,
    /// Why nothing is being done at the moment, when nothing is.
    pub waiting: Option<String>,
    /// Whether the newest verdict has been turned into an action, or into nothing.
    pub is_planned: bool,
}

/// One verdict and when it was given.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct VerdictRecord {
    /// When.
    pub at: Timestamp,
    /// The count of closed windows at that time.
    pub close: u64,
    /// What.
    pub verdict: Verdict,
}

/// What happens to an incident.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum IncidentChange {
    /// The objective has been missed for long enough.
    Opened {
        /// The objective's name.
        slo: String,
        /// The percentile.
        latency: Micros,
        /// The target.
        target: Micros,
    },
    /// The model has answered. Written by releases that kept no exhibits.
    Diagnosed(Box<Verdict>),
    /// The newest verdict leads to no action for now, with the reason for people.
    Waiting(String),
    /// The objective has been met for long enough.
    Resolved,
    /// The model has answered.
    Answered {
        /// What it said.
        verdict: Box<Verdict>,
        /// What it looked at.
        seen: Seen,
    },
    /// An operator says what was really at fault, or takes that back.
    Labelled(Option<Label>),
}

/// Which windows a diagnosis looked at, and as of when.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Seen {
    /// Position of the newest entry of the log that the leader had applied.
    pub applied: u64,
    /// Number of the oldest window.
    pub first: u64,
    /// Number of the newest.
    pub last: u64,
    /// How many there were.
    pub windows: u32,
}

impl Incident {
    /// Whether the target is still missed.
    pub fn is_open(&self) -> bool {
        self.resolved_at.is_none()
    }

    /// When the model first answered.
    pub fn diagnosed_at(&self) -> Option<Timestamp> {
        self.verdicts.first().map(|record| record.at)
    }

    /// The newest answer.
    pub fn newest(&self) -> Option<&VerdictRecord> {
        self.verdicts.last()
    }

    /// Adds a verdict; keeps the first and the newest ones.
    pub(crate) fn diagnose(&mut self, record: VerdictRecord) {
        if self.verdicts.len() >= VERDICTS_MAX {
            self.verdicts.remove(1);
        }
        self.verdicts.push(record);
        self.is_planned = false;
        self.waiting = None;
    }
}
