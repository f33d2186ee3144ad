//! Every lease of a node.

use std::collections::{BTreeMap, VecDeque};

use sage_common::{ActionId, Knob, Micros, ServiceId, Setting, Term};
use sage_protocol::message::{Command, CommandResult, HeldLease, Order, Outcome, Refusal, RevertReason};

use super::{
    io::{Before, Failure, FailureKind, Input, Output, Saved, UndoRecord},
    lease::{CHECK_EVERY, Check, Ending, Lease, LeaseView, Phase, Step, same},
};
use crate::policy::{History, Policy, PolicyInputs, Request};

/// The most leases of one node: each knob is compared every second, and no incident needs more.
pub const LEASES_MAX: usize = 256;
/// How many ended actions are remembered, so that a late replay of one changes nothing.
pub const FINISHED_MAX: usize = 256;
/// The most commands that wait for a new term to become durable. The driver answers before it hands in the next one.
const PARKED_MAX: usize = 64;

/// Every lease of a node. See the picture in the [module documentation](super).
#[derive(Debug)]
pub struct LeaseTable {
    policy: Policy,
    inputs: PolicyInputs,
    history: History,
    machine_boot: String,
    /// The highest term seen, and the highest that is durable.
    term: Term,
    term_durable: Term,
    parked: VecDeque<Command>,
    leases: BTreeMap<ActionId, Lease>,
    finished: VecDeque<(ActionId, Outcome)>,
    outputs: VecDeque<Output>,
    is_frozen: bool,
    is_closing: bool,
}

impl LeaseTable {
    /// A table that goes on from what an earlier life left, and gives back every change that the machine still has.
    /// `machine_boot` names the present boot of the machine: what was changed in another is forgotten already.
    pub fn recover(policy: Policy, machine_boot: &str, saved: Saved, now: Micros) -> Self {
        let mut table = Self {
            policy,
            inputs: PolicyInputs::default(),
            history: History::default(),
            machine_boot: machine_boot.to_owned(),
            term: saved.term,
            term_durable: saved.term,
            parked: VecDeque::new(),
            leases: BTreeMap::new(),
            finished: saved.finished.into_iter().collect(),
            outputs: VecDeque::new(),
            is_frozen: saved.is_frozen,
            is_closing: false,
        };
        for undo in saved.live {
            let (action, is_same_boot) = (undo.action, undo.machine_boot == machine_boot);
            let phase = Phase::Held { check: Check::UnderWay };
            table.leases.insert(action, Lease { undo, deadline: now, phase, cut_short: None });
            if is_same_boot {
                table.begin_revert(action, RevertReason::Recovered);
            } else {
                table.finish(action, Outcome::Reverted(RevertReason::Recovered), now);
            }
        }
        table
    }

    /// Takes in what happened at `now` (monotonic).
    pub fn handle_input(&mut self, now: Micros, input: Input) {
        match input {
            Input::Command(command) => {
                // First, so that a lease that has run out is not renewed.
                self.handle_timeout(now);
                self.command(now, command);
            }
            Input::Brake(is_on) => self.brake(is_on),
            Input::TermPersisted(term, result) => self.term_persisted(now, term, &result),
            Input::Captured(action, result) => self.captured(now, action, result),
            Input::UndoLogged(action, result) => self.undo_logged(now, action, result),
            Input::Written(action, result) => self.written(now, action, result),
            Input::Found(action, result) => self.found(now, action, result),
            Input::Restored(action, result) => self.restored(now, action, result),
        }
    }

    /// Ends what has run out by `now`, compares held knobs, and tries again what could not be given back.
    pub fn handle_timeout(&mut self, now: Micros) {
        let due: Vec<ActionId> = self.due(now).collect();
        for action in due {
            self.wake(now, action);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) next has something to do.
    pub fn poll_timeout(&self) -> Option<Micros> {
        self.leases.values().filter_map(Lease::wakes_at).min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Gives everything back and takes nothing new, for good.
    pub fn close(&mut self) {
        self.is_closing = true;
        self.end_all(RevertReason::Shutdown);
    }

    /// Whether nothing is held and nothing is to be done.
    pub fn is_drained(&self) -> bool {
        self.leases.is_empty() && self.outputs.is_empty() && self.parked.is_empty()
    }

    /// Whether the brake is on.
    pub const fn is_frozen(&self) -> bool {
        self.is_frozen
    }

    /// The highest term seen.
    pub const fn term(&self) -> Term {
        self.term
    }

    /// The policy in force.
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// From now on another policy holds for what is asked. What is held stays until its lease ends.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// What is on the node now.
    pub fn set_inputs(&mut self, inputs: PolicyInputs) {
        self.inputs = inputs;
    }

    /// Every lease, in the order of actions.
    pub fn leases(&self, now: Micros) -> impl Iterator<Item = LeaseView> {
        self.leases.values().map(move |lease| lease.view(now))
    }

    /// The leases in force, for a leader that takes over.
    pub fn held(&self, now: Micros) -> impl Iterator<Item = HeldLease> {
        self.leases.values().filter_map(move |lease| lease.held(now))
    }

    /// The knobs whose settings are in force.
    pub fn knobs_in_force(&self) -> impl Iterator<Item = &Knob> {
        let in_force = |lease: &&Lease| matches!(lease.phase, Phase::Held { .. });
        self.leases.values().filter(in_force).map(|lease| &lease.undo.knob)
    }

    // ---- commands ----

    fn command(&mut self, now: Micros, command: Command) {
        if command.term < self.term {
            return self.refuse(command.action, Refusal::StaleTerm(self.term));
        }
        if command.term == self.term_durable {
            return self.obey(now, command);
        }
        if self.parked.len() >= PARKED_MAX {
            return self.report(command.action, Outcome::Failed("too many commands wait for a new term".to_owned()));
        }
        self.term = command.term;
        self.outputs.push_back(Output::PersistTerm(command.term));
        self.parked.push_back(command);
    }

    fn term_persisted(&mut self, now: Micros, term: Term, result: &Result<(), Failure>) {
        if result.is_ok() {
            self.term_durable = self.term_durable.max(term);
        }
        // Bounded by PARKED_MAX: each command is taken once, and kept only if it waits for a higher term.
        for command in std::mem::take(&mut self.parked) {
            match result {
                _ if command.term > term => self.parked.push_back(command),
                Err(failure) => {
                    let text = format!("term {term} could not be made durable: {}", failure.text);
                    self.report(command.action, Outcome::Failed(text));
                }
                Ok(()) if command.term < self.term => self.refuse(command.action, Refusal::StaleTerm(self.term)),
                Ok(()) => self.obey(now, command),
            }
        }
    }

    fn obey(&mut self, now: Micros, command: Command) {
        let Command { term, action, order } = command;
        match order {
            Order::Apply { knob, setting, lease, service, reason } => {
                let before = Before::from(setting.clone());
                let machine_boot = self.machine_boot.clone();
                let undo = UndoRecord { action, term, machine_boot, knob, before, setting, service, reason };
                self.apply(now, undo, lease);
            }
            Order::Renew { lease } => self.renew(now, action, lease),
            Order::Revoke => self.revoke(action),
            Order::Freeze | Order::Thaw => {
                let is_on = order == Order::Freeze;
                self.brake(is_on);
                self.report(action, Outcome::Frozen(is_on));
            }
        }
    }

    fn apply(&mut self, now: Micros, undo: UndoRecord, lease: Micros) {
        let action = undo.action;
        if self.is_replay(&undo) {
            return;
        }
        if let Err(refusal) = self.check(now, &undo.knob, &undo.setting, &undo.service, lease) {
            return self.refuse(action, refusal);
        }
        self.history.begin(now);
        self.outputs.push_back(Output::Capture { action, knob: undo.knob.clone() });
        let lease = Lease { undo, deadline: now + lease, phase: Phase::Capturing, cut_short: None };
        self.leases.insert(action, lease);
    }

    /// Answers an action that is known already, without any effect.
    fn is_replay(&mut self, undo: &UndoRecord) -> bool {
        let action = undo.action;
        if let Some((_, outcome)) = self.finished.iter().find(|(id, _)| *id == action) {
            let outcome = outcome.clone();
            self.report(action, outcome);
            return true;
        }
        let Some(lease) = self.leases.get(&action) else { return false };
        if lease.undo.knob != undo.knob || lease.undo.setting != undo.setting {
            let text = format!("action {action} already stands for {} on {}", lease.undo.setting, lease.undo.knob);
            self.refuse(action, Refusal::Unsupported(text));
            return true;
        }
        match lease.phase {
            Phase::Held { .. } => {
                let (before, now) = (lease.undo.before.setting.clone(), lease.undo.setting.clone());
                self.report(action, Outcome::Applied { before, now });
            }
            Phase::Reverting { .. } => self.refuse(action, Refusal::Held(action)),
            // The answer to the first one is on its way.
            Phase::Capturing | Phase::Logging | Phase::Writing => {}
        }
        true
    }

    fn check(
        &self,
        now: Micros,
        knob: &Knob,
        setting: &Setting,
        service: &ServiceId,
        lease: Micros,
    ) -> Result<(), Refusal> {
        if self.is_frozen {
            return Err(Refusal::Frozen);
        }
        if self.is_closing {
            return Err(Refusal::Policy("the agent is shutting down".to_owned()));
        }
        if let Some(holder) = self.leases.values().find(|held| held.undo.knob == *knob) {
            return Err(Refusal::Held(holder.undo.action));
        }
        if self.leases.len() >= LEASES_MAX {
            return Err(Refusal::Policy(format!("{LEASES_MAX} leases are in force already")));
        }
        if lease == Micros::ZERO {
            return Err(Refusal::Unsupported("a lease of no time".to_owned()));
        }
        self.policy.check(&Request { knob, setting, service, lease }, &self.inputs, now, &self.history)
    }

    fn renew(&mut self, now: Micros, action: ActionId, length: Micros) {
        let allowed = self.policy.check_lease(length);
        match (self.leases.get_mut(&action), allowed) {
            (Some(lease), Ok(())) if lease.is_standing() => {
                lease.deadline = now + length;
                self.report(action, Outcome::Renewed);
            }
            (Some(lease), Err(refusal)) if lease.is_standing() => self.refuse(action, refusal),
            _ => self.refuse(action, Refusal::UnknownAction),
        }
    }

    fn revoke(&mut self, action: ActionId) {
        if self.leases.contains_key(&action) {
            // If it is being given back already, the answer is on its way.
            return self.end(action, RevertReason::Revoked);
        }
        match self.finished.iter().find(|(id, _)| *id == action) {
            Some((_, outcome)) => {
                let outcome = outcome.clone();
                self.report(action, outcome);
            }
            None => self.refuse(action, Refusal::UnknownAction),
        }
    }

    fn brake(&mut self, is_on: bool) {
        if self.is_frozen != is_on {
            self.is_frozen = is_on;
            self.outputs.push_back(Output::PersistBrake(is_on));
        }
        if is_on {
            self.end_all(RevertReason::Frozen);
        }
    }

    // ---- the way in ----

    fn captured(&mut self, now: Micros, action: ActionId, result: Result<Before, Failure>) {
        let Some(lease) = self.leases.get_mut(&action).filter(|lease| lease.phase == Phase::Capturing) else { return };
        match (result, lease.cut_short) {
            (Ok(_), Some(reason)) => self.finish(action, Outcome::Reverted(reason), now),
            (Ok(before), None) => {
                lease.undo.before = before;
                lease.phase = Phase::Logging;
                self.outputs.push_back(Output::LogUndo(Box::new(lease.undo.clone())));
            }
            (Err(failure), _) => {
                let outcome = match failure.kind {
                    FailureKind::Unsupported | FailureKind::Foreign => {
                        Outcome::Refused(Refusal::Unsupported(failure.text))
                    }
                    FailureKind::Gone | FailureKind::Other => Outcome::Failed(failure.text),
                };
                self.leases.remove(&action);
                self.report(action, outcome);
            }
        }
    }

    fn undo_logged(&mut self, now: Micros, action: ActionId, result: Result<(), Failure>) {
        let Some(lease) = self.leases.get_mut(&action).filter(|lease| lease.phase == Phase::Logging) else { return };
        match (result, lease.cut_short) {
            (Ok(()), Some(reason)) => self.finish(action, Outcome::Reverted(reason), now),
            (Ok(()), None) => {
                lease.phase = Phase::Writing;
                let (knob, setting) = (lease.undo.knob.clone(), lease.undo.setting.clone());
                self.outputs.push_back(Output::Write { action, knob, setting });
            }
            (Err(failure), _) => {
                let text = format!("nothing was changed, because the undo record is not durable: {}", failure.text);
                self.leases.remove(&action);
                // The record may have reached the disk all the same.
                let outcome = Outcome::Failed(text);
                self.outputs.push_back(Output::ForgetUndo { action, outcome: outcome.clone() });
                self.report(action, outcome);
            }
        }
    }

    fn written(&mut self, now: Micros, action: ActionId, result: Result<Setting, Failure>) {
        let Some(lease) = self.leases.get_mut(&action).filter(|lease| lease.phase == Phase::Writing) else { return };
        let wanted = lease.undo.setting.clone();
        let problem = match result {
            Ok(found) if same(&found, &wanted) => {
                lease.phase = Phase::Held { check: Check::Due(now + CHECK_EVERY) };
                let (before, cut_short) = (lease.undo.before.setting.clone(), lease.cut_short);
                self.report(action, Outcome::Applied { before, now: found });
                if let Some(reason) = cut_short {
                    self.begin_revert(action, reason);
                }
                return;
            }
            Ok(found) => format!("{wanted} was written on {}, and {found} read back", lease.undo.knob),
            Err(failure) => failure.text,
        };
        lease.phase = Phase::Reverting { ending: Ending::FailedWrite, step: Step::Restoring, attempts: 0 };
        let (knob, before) = (lease.undo.knob.clone(), lease.undo.before.clone());
        self.outputs.push_back(Output::Restore { action, knob, before });
        self.report(action, Outcome::Failed(problem));
    }

    // ---- while held, and the way out ----

    fn due(&self, now: Micros) -> impl Iterator<Item = ActionId> {
        let is_due = move |lease: &Lease| lease.wakes_at().is_some_and(|at| at <= now);
        self.leases.iter().filter(move |(_, lease)| is_due(lease)).map(|(action, _)| *action)
    }

    fn wake(&mut self, now: Micros, action: ActionId) {
        let Some(lease) = self.leases.get_mut(&action) else { return };
        match &mut lease.phase {
            Phase::Reverting { ending, step, .. } => {
                let knob = lease.undo.knob.clone();
                let output = match ending {
                    Ending::Reason(_) => {
                        *step = Step::Reading;
                        Output::Read { action, knob }
                    }
                    Ending::FailedWrite => {
                        *step = Step::Restoring;
                        Output::Restore { action, knob, before: lease.undo.before.clone() }
                    }
                };
                self.outputs.push_back(output);
            }
            _ if lease.deadline <= now => self.end(action, RevertReason::Expired),
            Phase::Held { check } => {
                *check = Check::UnderWay;
                self.outputs.push_back(Output::Read { action, knob: lease.undo.knob.clone() });
            }
            Phase::Capturing | Phase::Logging | Phase::Writing => {}
        }
    }

    fn end_all(&mut self, reason: RevertReason) {
        let actions: Vec<ActionId> = self.leases.keys().copied().collect();
        for action in actions {
            self.end(action, reason);
        }
    }

    /// Ends a lease now, or as soon as what is under way has been answered.
    fn end(&mut self, action: ActionId, reason: RevertReason) {
        let Some(lease) = self.leases.get_mut(&action) else { return };
        match lease.phase {
            Phase::Held { .. } => self.begin_revert(action, reason),
            Phase::Capturing | Phase::Logging | Phase::Writing => {
                lease.cut_short.get_or_insert(reason);
            }
            Phase::Reverting { .. } => {}
        }
    }

    fn begin_revert(&mut self, action: ActionId, reason: RevertReason) {
        let Some(lease) = self.leases.get_mut(&action) else { return };
        lease.phase = Phase::Reverting { ending: Ending::Reason(reason), step: Step::Reading, attempts: 0 };
        self.outputs.push_back(Output::Read { action, knob: lease.undo.knob.clone() });
    }

    fn found(&mut self, now: Micros, action: ActionId, result: Result<Setting, Failure>) {
        let Some(lease) = self.leases.get_mut(&action) else { return };
        let is_ours = |found: &Setting| same(found, &lease.undo.setting);
        match (&mut lease.phase, result) {
            (Phase::Held { check }, Ok(found)) if is_ours(&found) => *check = Check::Due(now + CHECK_EVERY),
            (Phase::Held { .. }, Ok(found)) => self.finish(action, Outcome::Drifted { found }, now),
            (Phase::Held { .. }, Err(failure)) if failure.is_final() => {
                self.finish(action, Outcome::Failed(failure.text), now);
            }
            // It cannot be read just now; the lease has its deadline in any case.
            (Phase::Held { check }, Err(_)) => *check = Check::Due(now + CHECK_EVERY),
            (Phase::Reverting { step, .. }, Ok(found)) if *step == Step::Reading => {
                // What is as it was before may still have traces of us around it, so it is restored as well.
                if is_ours(&found) || same(&found, &lease.undo.before.setting) {
                    *step = Step::Restoring;
                    let (knob, before) = (lease.undo.knob.clone(), lease.undo.before.clone());
                    self.outputs.push_back(Output::Restore { action, knob, before });
                } else {
                    self.finish(action, Outcome::Drifted { found }, now);
                }
            }
            (Phase::Reverting { step, .. }, Err(failure)) if *step == Step::Reading => {
                self.revert_failed(now, action, &failure);
            }
            _ => {}
        }
    }

    fn restored(&mut self, now: Micros, action: ActionId, result: Result<Setting, Failure>) {
        let Some(lease) = self.leases.get(&action) else { return };
        let Phase::Reverting { ending, step: Step::Restoring, .. } = lease.phase else { return };
        let UndoRecord { knob, before, .. } = &lease.undo;
        match result {
            Ok(found) if same(&found, &before.setting) => self.finish_revert(now, action, ending),
            Ok(found) => {
                let text = format!("{} was put back on {knob}, and {found} read back", before.setting);
                self.revert_failed(now, action, &Failure::other(text));
            }
            Err(failure) => self.revert_failed(now, action, &failure),
        }
    }

    fn revert_failed(&mut self, now: Micros, action: ActionId, failure: &Failure) {
        let Some(lease) = self.leases.get_mut(&action) else { return };
        let Phase::Reverting { ending, step, attempts } = &mut lease.phase else { return };
        let ending = *ending;
        if failure.is_final() {
            return self.finish_revert(now, action, ending);
        }
        *step = Step::Waiting { until: now + Lease::retry_after(*attempts) };
        *attempts = attempts.saturating_add(1);
        if *attempts == 1 {
            let text = format!("{} cannot be given back yet: {}", lease.undo.knob, failure.text);
            self.report(action, Outcome::Failed(text));
        }
    }

    fn finish_revert(&mut self, now: Micros, action: ActionId, ending: Ending) {
        match ending {
            Ending::Reason(reason) => self.finish(action, Outcome::Reverted(reason), now),
            Ending::FailedWrite => {
                let outcome = Outcome::Failed("the setting could not be put in force".to_owned());
                self.forget(action, outcome, now);
            }
        }
    }

    fn finish(&mut self, action: ActionId, outcome: Outcome, now: Micros) {
        self.forget(action, outcome.clone(), now);
        self.report(action, outcome);
    }

    fn forget(&mut self, action: ActionId, outcome: Outcome, now: Micros) {
        let Some(lease) = self.leases.remove(&action) else { return };
        self.history.end(lease.undo.knob, now);
        if self.finished.len() >= FINISHED_MAX {
            self.finished.pop_front();
        }
        self.finished.push_back((action, outcome.clone()));
        self.outputs.push_back(Output::ForgetUndo { action, outcome });
    }

    fn refuse(&mut self, action: ActionId, refusal: Refusal) {
        self.report(action, Outcome::Refused(refusal));
    }

    fn report(&mut self, action: ActionId, outcome: Outcome) {
        self.outputs.push_back(Output::Report(CommandResult { action, outcome }));
    }
}
