//! Actions: one knob of one node, from the intent to the setting being given back.
//!
//! ```text
//!                 approve              Applied            Kept
//!  awaiting ───────────────► proposed ─────────► applied ───────► kept
//!  approval                     │                   │ Ending(NoHelp)  │ Ending(GivenBack)
//!                 Refused,      ▼                   ▼                 ▼
//!  recommended    Failed     refused, failed        └───► reverted ◄──┘      drifted (somebody else's hand)
//! ```
//!
//! An intent is in the log before its command leaves, and an ending before its revoke leaves, so that a restart in any
//! phase knows what to finish. `Ending` alone changes nothing on the node: the state becomes `reverted` when the agent
//! says so, or when its lease must have run out.

use sage_causal::verdict::Resource;
use sage_common::{ActionId, Knob, Micros, NodeId, ServiceId, Setting, Timestamp};
use serde::{Deserialize, Serialize};

use crate::core::incident::IncidentId;

/// Where an action stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionState {
    /// Policy or mode allows no more than to say it.
    Recommended,
    /// An operator has to approve it.
    AwaitingApproval,
    /// Decided; the node has not answered yet.
    Proposed,
    /// In force, being watched.
    Applied,
    /// In force, and shown to help.
    Kept,
    /// Given back.
    Reverted,
    /// The node's rules forbid it.
    Refused,
    /// The kernel said no, or the node did not answer.
    Failed,
    /// Somebody else changed the knob.
    Drifted,
}

/// Why an action comes, or came, to its end.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The watched windows were no better.
    NoHelp,
    /// It helped, and the target has been met for long enough: given back to see whether it is still needed.
    GivenBack,
    /// The brake was pulled.
    Frozen,
    /// The node lost it: a restart, or a lease that nobody could renew.
    Lost,
    /// The node has not answered in time.
    Unreachable,
    /// The incident was over before anybody approved it.
    Stale,
}

/// One requested change of one knob.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Action {
    /// Its number.
    pub id: ActionId,
    /// The incident it answers.
    pub incident: IncidentId,
    /// The objective of that incident.
    pub slo: String,
    /// The node.
    pub node: NodeId,
    /// The knob.
    pub knob: Knob,
    /// The setting asked for.
    pub setting: Setting,
    /// The setting in force before, as offered when planned, then as the agent read it.
    pub before: Option<Setting>,
    /// The service it is to help.
    pub service: ServiceId,
    /// What of that service is at fault.
    pub resource: Resource,
    /// Why, for people.
    pub reason: String,
    /// Where it stands.
    pub state: ActionState,
    /// Why it ends or ended.
    pub ending: Option<Ending>,
    /// What the node answered, for people, when it refused, failed or drifted.
    pub answer: Option<String>,
    /// When it was decided.
    pub requested_at: Timestamp,
    /// When the node had it in force.
    pub applied_at: Option<Timestamp>,
    /// When it was given back.
    pub reverted_at: Option<Timestamp>,
    /// The count of closed windows when its state or ending last changed.
    pub changed_close: u64,
    /// The objective's percentile when it was decided.
    pub baseline: Micros,
    /// The percentile that the model promises.
    pub predicted: Micros,
    /// The percentile after it.
    pub measured: Option<Micros>,
    /// Windows to keep it after the target is met again; doubles whenever a give-back brought the violation back.
    pub hold_windows: u32,
}

/// What happens to an action.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum ActionChange {
    /// An operator said yes.
    Approved,
    /// In force on the node.
    Applied {
        /// The setting to be given back.
        before: Setting,
    },
    /// It helps.
    Kept {
        /// The percentile measured.
        measured: Micros,
    },
    /// It is to end; the node is told next.
    Ending {
        /// Why.
        why: Ending,
        /// The percentile measured, when that is the reason.
        measured: Option<Micros>,
    },
    /// Given back; with the reason when none was decided before.
    Reverted {
        /// Why.
        why: Ending,
    },
    /// The node's rules forbid it.
    Refused(String),
    /// The kernel said no, or the node did not answer.
    Failed(String),
    /// Somebody else changed the knob.
    Drifted(Setting),
}

impl Action {
    /// Whether its setting is in force on the node, or may be.
    pub fn is_in_force(&self) -> bool {
        matches!(self.state, ActionState::Proposed | ActionState::Applied | ActionState::Kept)
    }

    /// Whether it is still open whether it helps: decided, and neither kept nor ended.
    pub fn is_in_trial(&self) -> bool {
        matches!(self.state, ActionState::Proposed | ActionState::Applied)
    }

    /// Whether it is to be renewed.
    pub fn is_renewed(&self) -> bool {
        self.ending.is_none() && matches!(self.state, ActionState::Applied | ActionState::Kept)
    }

    /// Whether it was tried and is out of force again, or never got there.
    pub fn is_over(&self) -> bool {
        use ActionState::{Drifted, Failed, Refused, Reverted};
        matches!(self.state, Reverted | Refused | Failed | Drifted)
    }

    /// What became of it, for people.
    pub fn outcome(&self) -> Option<String> {
        let measured = self.measured.map_or(String::new(), |measured| {
            format!(" ({} before, {} predicted, {measured} measured)", self.baseline, self.predicted)
        });
        let text = match (self.state, self.ending) {
            (ActionState::Refused | ActionState::Failed | ActionState::Drifted, _) => {
                return self.answer.clone();
            }
            (ActionState::Kept, None) => "helped, kept",
            (_, Some(Ending::NoHelp)) => "did not help, given back",
            (_, Some(Ending::GivenBack)) => "helped, given back after the target was met",
            (_, Some(Ending::Frozen)) => "given back by the brake",
            (_, Some(Ending::Lost)) => "lost with the node's lease",
            (_, Some(Ending::Unreachable)) => "the node did not answer; its lease has run out",
            (_, Some(Ending::Stale)) => "the incident was over before it was approved",
            _ => return None,
        };
        Some(format!("{text}{measured}"))
    }

    /// Takes `change` at `at`; a change that does not fit the present state is ignored, because the log may say
    /// things twice. Returns whether it was taken.
    pub(crate) fn apply(&mut self, change: &ActionChange, at: Timestamp, close: u64) -> bool {
        use ActionState::{Applied, AwaitingApproval, Drifted, Failed, Kept, Proposed, Refused, Reverted};
        match (self.state, change) {
            (AwaitingApproval, ActionChange::Approved) => self.state = Proposed,
            (Proposed, ActionChange::Applied { before }) => {
                self.state = Applied;
                self.before = Some(before.clone());
                self.applied_at = Some(at);
            }
            (Applied, ActionChange::Kept { measured }) => {
                self.state = Kept;
                self.measured = Some(*measured);
            }
            (AwaitingApproval, ActionChange::Ending { why, .. }) => {
                self.state = ActionState::Recommended;
                self.ending = Some(*why);
            }
            (Proposed | Applied | Kept, ActionChange::Ending { why, measured }) if self.ending.is_none() => {
                self.ending = Some(*why);
                self.measured = measured.or(self.measured);
            }
            (Proposed | Applied | Kept, ActionChange::Reverted { why }) => {
                self.state = Reverted;
                self.ending.get_or_insert(*why);
                self.reverted_at = Some(at);
            }
            (Proposed, ActionChange::Refused(text)) => self.end(Refused, text.clone()),
            (Proposed, ActionChange::Failed(text)) => self.end(Failed, text.clone()),
            (Proposed | Applied | Kept, ActionChange::Drifted(found)) => {
                self.end(Drifted, format!("somebody else set it to {found}"));
                self.reverted_at = Some(at);
            }
            _ => return false,
        }
        self.changed_close = close;
        true
    }

    fn end(&mut self, state: ActionState, answer: String) {
        self.state = state;
        self.answer = Some(answer);
    }
}
