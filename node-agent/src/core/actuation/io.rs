//! What goes into a [`LeaseTable`](super::LeaseTable) and what comes out.

use sage_common::{ActionId, Knob, ServiceId, Setting, Term};
use sage_protocol::message::{Command, CommandResult, Outcome};
use serde::{Deserialize, Serialize};

/// What a knob held before us.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Before {
    /// The setting, in our units.
    pub setting: Setting,
    /// The kernel's own text, where our units round it: two shares are not the ten that weight 1 stands for.
    pub exact: Option<String>,
}

impl From<Setting> for Before {
    fn from(setting: Setting) -> Self {
        Self { setting, exact: None }
    }
}

/// All that is needed to give a knob back, whoever reads it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct UndoRecord {
    /// The action that changes the knob.
    pub action: ActionId,
    /// The term it was ordered in.
    pub term: Term,
    /// The machine's boot: another boot has forgotten every setting.
    pub machine_boot: String,
    /// The knob.
    pub knob: Knob,
    /// What it held.
    pub before: Before,
    /// What we put on it.
    pub setting: Setting,
    /// The service it is meant to help.
    pub service: ServiceId,
    /// Why, for people.
    pub reason: String,
}

/// What an earlier life of the agent left in its log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saved {
    /// The highest term it obeyed.
    pub term: Term,
    /// Whether the brake was on.
    pub is_frozen: bool,
    /// Changes that were not given back.
    pub live: Vec<UndoRecord>,
    /// Actions that were over, oldest first, so that a replay of one changes nothing.
    pub finished: Vec<(ActionId, Outcome)>,
}

/// Something for the driver to do. They are performed in order, and each but the last three kinds is answered by the
/// [`Input`] of the same name.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Make this term durable.
    PersistTerm(Term),
    /// Read a knob before it is changed.
    Capture {
        /// The action that asks.
        action: ActionId,
        /// The knob.
        knob: Knob,
    },
    /// Make this record durable.
    LogUndo(Box<UndoRecord>),
    /// Put a setting in force and read it back.
    Write {
        /// The action that asks.
        action: ActionId,
        /// The knob.
        knob: Knob,
        /// Its new setting.
        setting: Setting,
    },
    /// Read a knob.
    Read {
        /// The action that asks.
        action: ActionId,
        /// The knob.
        knob: Knob,
    },
    /// Put back what a knob held, and read it back.
    Restore {
        /// The action that asks.
        action: ActionId,
        /// The knob.
        knob: Knob,
        /// What it held.
        before: Before,
    },
    /// Make it durable whether the brake is on. Not answered: the brake holds in any case.
    PersistBrake(bool),
    /// The change is over; its undo record may go. Not answered: a record too many is found to be done at restart.
    ForgetUndo {
        /// The action.
        action: ActionId,
        /// How it ended.
        outcome: Outcome,
    },
    /// Tell the aggregator.
    Report(CommandResult),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// An order came in.
    Command(Command),
    /// Somebody on this node set (or released) the brake.
    Brake(bool),
    /// Answers [`Output::PersistTerm`].
    TermPersisted(Term, Result<(), Failure>),
    /// Answers [`Output::Capture`].
    Captured(ActionId, Result<Before, Failure>),
    /// Answers [`Output::LogUndo`].
    UndoLogged(ActionId, Result<(), Failure>),
    /// Answers [`Output::Write`] with the setting read back.
    Written(ActionId, Result<Setting, Failure>),
    /// Answers [`Output::Read`].
    Found(ActionId, Result<Setting, Failure>),
    /// Answers [`Output::Restore`] with the setting read back.
    Restored(ActionId, Result<Setting, Failure>),
}

/// Why something could not be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// What it means for the lease.
    pub kind: FailureKind,
    /// The whole story, for people.
    pub text: String,
}

/// What a failure means for a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FailureKind {
    /// The thing itself is no more: there is nothing to give back.
    Gone,
    /// Somebody else has its place: there is nothing of ours to give back.
    Foreign,
    /// This kernel cannot do it.
    Unsupported,
    /// Anything else; it may go better another time.
    Other,
}

impl Failure {
    /// A failure of no special meaning.
    pub fn other(text: impl Into<String>) -> Self {
        Self { kind: FailureKind::Other, text: text.into() }
    }

    /// Whether nothing of ours can be left on the knob.
    pub(super) const fn is_final(&self) -> bool {
        matches!(self.kind, FailureKind::Gone | FailureKind::Foreign)
    }

    /// The knob's object is no more.
    pub fn gone(text: impl Into<String>) -> Self {
        Self { kind: FailureKind::Gone, text: text.into() }
    }
}
