//! The entries of the replicated log. Everything the fleet must not forget is one of these.

use sage_causal::ModelCard;
use sage_common::{ActionId, Generation, NodeWindow, Slo, Term, Timestamp};
use serde::{Deserialize, Serialize};

use crate::core::{
    action::{Action, ActionChange},
    incident::{IncidentChange, IncidentId},
    leader::TrainJob,
};

/// Services named in a line of the journal.
const NAMED_MAX: usize = 6;

/// One entry. All times are by the proposing leader's clock.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Proposal {
    /// A leader begins its period.
    TermStarted {
        /// The period.
        term: Term,
        /// The leader's name.
        leader: String,
        /// When.
        at: Timestamp,
    },
    /// Windows of nodes, as they arrived. Applying one twice changes nothing.
    Windows {
        /// When they arrived.
        at: Timestamp,
        /// The windows; their start has been put on the fleet's time line.
        windows: Vec<NodeWindow>,
    },
    /// The interval is complete, or has waited long enough: make its cluster window.
    Close {
        /// Start of the interval.
        start: Timestamp,
        /// When its first node window arrived.
        arrived: Timestamp,
        /// When it was closed.
        at: Timestamp,
    },
    /// Replaces all objectives.
    SetSlos {
        /// The objectives.
        slos: Vec<Slo>,
        /// Whether they come from the configuration file, which is taken over only when it has changed.
        is_configured: bool,
        /// When.
        at: Timestamp,
    },
    /// Something happens to an incident.
    Incident {
        /// Which; a new number for [`IncidentChange::Opened`].
        id: IncidentId,
        /// When.
        at: Timestamp,
        /// What.
        change: IncidentChange,
    },
    /// A new action is decided, recommended, or put before an operator. In the log before its command is sent.
    Intent(Box<Action>),
    /// Something happens to an action.
    Action {
        /// Which.
        id: ActionId,
        /// When.
        at: Timestamp,
        /// What.
        change: ActionChange,
    },
    /// A new generation of the model is in use.
    Generation {
        /// Its card.
        meta: ModelMeta,
        /// The model as [`Oracle::decode`](crate::core::Oracle::decode) reads it.
        bytes: Vec<u8>,
    },
    /// The brake of the whole fleet is pulled.
    Freeze {
        /// When.
        at: Timestamp,
    },
    /// The brake is released.
    Thaw {
        /// When.
        at: Timestamp,
    },
}

/// One generation of the model, for people and for the decision when to train again.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ModelMeta {
    /// Its number; grows by one.
    pub generation: Generation,
    /// When it was trained.
    pub trained_at: Timestamp,
    /// Windows it has learnt from.
    pub windows_trained: u64,
    /// Arrival of the newest of them.
    pub newest_window: Timestamp,
    /// Time the training took, seconds.
    pub train_seconds: f64,
    /// One card per service.
    pub cards: Vec<ModelCard>,
}

impl ModelMeta {
    /// The card of what `job` became, after `train_seconds`, at `at`.
    pub fn new(job: &TrainJob, cards: Vec<ModelCard>, train_seconds: f64, at: Timestamp) -> Self {
        Self {
            generation: job.generation,
            trained_at: at,
            windows_trained: job.healthy.len() as u64,
            newest_window: job.newest_window,
            train_seconds,
            cards,
        }
    }

    /// The services that this generation learnt again, for people.
    pub fn learnt_words(&self) -> String {
        let newest = self.cards.iter().map(|card| card.last_retrain).max().unwrap_or_default();
        let learnt: Vec<&str> =
            self.cards.iter().filter(|card| card.last_retrain == newest).map(|card| card.service.as_str()).collect();
        match learnt.len() {
            count if count == self.cards.len() => "all services".to_owned(),
            count if count > NAMED_MAX => format!("{} and {} more", learnt[..NAMED_MAX].join(", "), count - NAMED_MAX),
            _ => learnt.join(", "),
        }
    }
}
