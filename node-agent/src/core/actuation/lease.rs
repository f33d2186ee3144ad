//! One lease and where it stands.

use sage_common::{ActionId, Knob, Micros, ServiceId, Setting};
use sage_protocol::message::{HeldLease, RevertReason};

use super::io::UndoRecord;

/// How often a held knob is compared with what we put on it.
pub(super) const CHECK_EVERY: Micros = Micros::from_secs(1);
/// The first wait after a knob could not be given back; doubled each time.
const RETRY_FIRST: Micros = Micros::from_secs(1);
/// The longest such wait: an operator who clears the cause should not wait much longer than a minute.
const RETRY_LONGEST: Micros = Micros::from_secs(60);

/// A knob that an action holds, or is about to, or is giving back.
#[derive(Debug)]
pub(super) struct Lease {
    pub undo: UndoRecord,
    pub deadline: Micros,
    pub phase: Phase,
    /// Why it must end as soon as what is under way has been answered.
    pub cut_short: Option<RevertReason>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    Capturing,
    Logging,
    Writing,
    Held { check: Check },
    Reverting { ending: Ending, step: Step, attempts: u32 },
}

/// The next comparison of a held knob.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Check {
    Due(Micros),
    UnderWay,
}

/// How the end of a lease is to be reported.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    Reason(RevertReason),
    /// The write failed, and that has been reported already. What is there now is half ours, so it is not compared.
    FailedWrite,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    Reading,
    Restoring,
    Waiting { until: Micros },
}

impl Lease {
    /// When it next has something to do by itself.
    pub fn wakes_at(&self) -> Option<Micros> {
        match self.phase {
            Phase::Held { check: Check::Due(at) } => Some(at.min(self.deadline)),
            Phase::Held { check: Check::UnderWay } => Some(self.deadline),
            Phase::Reverting { step: Step::Waiting { until }, .. } => Some(until),
            Phase::Capturing | Phase::Logging | Phase::Writing => self.cut_short.is_none().then_some(self.deadline),
            Phase::Reverting { .. } => None,
        }
    }

    /// Whether it stands and may be renewed.
    pub const fn is_standing(&self) -> bool {
        self.cut_short.is_none() && !matches!(self.phase, Phase::Reverting { .. })
    }

    /// How long to wait before giving back is tried again.
    pub fn retry_after(attempts: u32) -> Micros {
        RETRY_FIRST.saturating_mul(1 << attempts.min(6)).min(RETRY_LONGEST)
    }

    pub fn view(&self, now: Micros) -> LeaseView {
        LeaseView {
            action: self.undo.action,
            knob: self.undo.knob.clone(),
            setting: self.undo.setting.clone(),
            before: self.undo.before.setting.clone(),
            remaining: self.deadline.saturating_sub(now),
            service: self.undo.service.clone(),
            reason: self.undo.reason.clone(),
            state: match self.phase {
                Phase::Capturing | Phase::Logging | Phase::Writing => LeaseState::Applying,
                Phase::Held { .. } => LeaseState::Held,
                Phase::Reverting { attempts: 0, .. } => LeaseState::Reverting,
                Phase::Reverting { attempts, .. } => LeaseState::Stuck { attempts },
            },
        }
    }

    pub fn held(&self, now: Micros) -> Option<HeldLease> {
        matches!(self.phase, Phase::Held { .. }).then(|| HeldLease {
            action: self.undo.action,
            knob: self.undo.knob.clone(),
            setting: self.undo.setting.clone(),
            remaining: self.deadline.saturating_sub(now),
        })
    }
}

/// A lease as people see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeaseView {
    /// The action it came from.
    pub action: ActionId,
    /// The knob it holds.
    pub knob: Knob,
    /// The setting it keeps.
    pub setting: Setting,
    /// The setting that will be given back.
    pub before: Setting,
    /// Time left until then, unless renewed.
    pub remaining: Micros,
    /// The service it is meant to help.
    pub service: ServiceId,
    /// Why, for people.
    pub reason: String,
    /// Where it stands.
    pub state: LeaseState,
}

/// Where a lease stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LeaseState {
    /// On its way into force.
    Applying,
    /// In force.
    Held,
    /// On its way out.
    Reverting,
    /// The kernel would not take the old setting back yet; the node is degraded.
    Stuck {
        /// How often it was tried.
        attempts: u32,
    },
}

/// Whether two settings are the same to the kernel: rates are kept in whole bytes per second there.
pub(super) fn same(a: &Setting, b: &Setting) -> bool {
    match (a, b) {
        (Setting::Rate(Some(a)), Setting::Rate(Some(b))) => a.abs_diff(*b) < 8,
        _ => a == b,
    }
}
