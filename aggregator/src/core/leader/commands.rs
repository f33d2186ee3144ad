//! Commands: brings the nodes to what the log says of every action, again and again until they answer.
//!
//! | the log says            | the node is told       | until                                        |
//! |-------------------------|------------------------|----------------------------------------------|
//! | proposed                | Apply                  | it answers, or has not for three times       |
//! | applied, kept           | Renew, thrice a lease  | it answers that the setting is gone          |
//! | proposed to kept, ending| Revoke                 | it answers, or its lease must have run out   |

use sage_common::{ActionId, Micros, NodeId, Timestamp};
use sage_protocol::message::{Command, CommandResult, Hello, Order, Outcome, Refusal, RevertReason};

use super::{AgentLink, Leader, Output};
use crate::core::{
    action::{Action, ActionChange, ActionState, Ending},
    oracle::Oracle,
    proposal::Proposal,
};

/// How long a command may go unanswered before it is sent again; agents answer within a round trip and a few writes.
const RESEND: Micros = Micros::from_secs(5);
/// How often an Apply is sent before the node counts as not answering.
const TRIES_MAX: u32 = 3;
/// After a lease has run out the agent needs this long to give the setting back and say so.
const EXPIRY_GRACE: Micros = Micros::from_secs(5);
/// The action number of commands that belong to no action.
const NO_ACTION: ActionId = ActionId(0);

/// What was last heard and said about an action.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contact {
    /// When the node last said that the setting is in force, or this replica took over.
    confirmed_at: Timestamp,
    /// When a command was last sent.
    sent_at: Option<Timestamp>,
    /// How often Apply was sent.
    tries: u32,
    /// An answer is on its way into the log: nothing more to say.
    is_settling: bool,
}

/// What an action needs now.
enum Need {
    Send(Order),
    Give(ActionChange),
}

impl<O: Oracle> Leader<O> {
    pub(super) fn connect(&mut self, now: Timestamp, hello: &Hello) {
        let node = &hello.node;
        let link = AgentLink { boot: hello.boot, is_connected: true, status: Default::default() };
        self.agents.insert(node.clone(), link);
        if self.term.is_none() {
            return;
        }
        if self.state.is_frozen() {
            self.send(node, NO_ACTION, Order::Freeze);
        }
        for held in &hello.held {
            let is_ours = |action: &Action| action.node == *node && action.is_in_force();
            if self.state.actions().get(&held.action).is_some_and(is_ours) {
                let contact = self.contact(now, held.action);
                contact.confirmed_at = now;
                contact.sent_at = None;
            } else {
                self.send(node, held.action, Order::Revoke);
            }
        }
        let is_lost = |action: &&Action| {
            action.node == *node
                && action.is_in_force()
                && action.state != ActionState::Proposed
                && hello.held.iter().all(|held| held.action != action.id)
        };
        let lost: Vec<ActionId> = self.state.actions().values().filter(is_lost).map(|action| action.id).collect();
        for id in lost {
            self.settle(now, id, ActionChange::Reverted { why: Ending::Lost });
        }
        let mine: Vec<ActionId> =
            self.state.actions().values().filter(|action| action.node == *node).map(|action| action.id).collect();
        for id in mine {
            if let Some(contact) = self.contacts.get_mut(&id) {
                contact.sent_at = None;
            }
        }
    }

    fn contact(&mut self, now: Timestamp, id: ActionId) -> &mut Contact {
        let fresh = Contact { confirmed_at: now, sent_at: None, tries: 0, is_settling: false };
        self.contacts.entry(id).or_insert(fresh)
    }

    fn send(&mut self, node: &NodeId, action: ActionId, order: Order) {
        let Some(term) = self.term else { return };
        self.counters.commands += 1;
        self.outputs.push_back(Output::Send { node: node.clone(), command: Command { term, action, order } });
    }

    pub(super) fn send_brake(&mut self) {
        let order = if self.state.is_frozen() { Order::Freeze } else { Order::Thaw };
        let connected: Vec<NodeId> =
            self.agents.iter().filter(|(_, agent)| agent.is_connected).map(|(node, _)| node.clone()).collect();
        for node in connected {
            self.send(&node, NO_ACTION, order.clone());
        }
    }

    fn is_connected(&self, node: &NodeId) -> bool {
        self.agents.get(node).is_some_and(|agent| agent.is_connected)
    }

    /// Proposes what became of an action, once.
    fn settle(&mut self, now: Timestamp, id: ActionId, change: ActionChange) {
        let contact = self.contact(now, id);
        if !contact.is_settling {
            contact.is_settling = true;
            self.propose(Proposal::Action { id, at: now, change });
        }
    }

    /// Does for every action in force what is due.
    pub(super) fn run_commands(&mut self, now: Timestamp) {
        let ids: Vec<ActionId> =
            self.state.actions().values().filter(|action| action.is_in_force()).map(|action| action.id).collect();
        self.contacts.retain(|id, _| ids.binary_search(id).is_ok());
        for id in ids {
            let contact = *self.contact(now, id);
            let Some(action) = self.state.actions().get(&id) else { continue };
            let node = action.node.clone();
            match self.need(action, contact, now) {
                Some(Need::Give(change)) => self.settle(now, id, change),
                Some(Need::Send(order)) if self.is_connected(&node) => {
                    let contact = self.contact(now, id);
                    contact.sent_at = Some(now);
                    contact.tries += u32::from(matches!(order, Order::Apply { .. }));
                    self.send(&node, id, order);
                }
                _ => {}
            }
        }
    }

    fn need(&self, action: &Action, contact: Contact, now: Timestamp) -> Option<Need> {
        let since = |then: Timestamp| now.since(then).unwrap_or_default();
        if contact.is_settling {
            return None;
        }
        let has_expired = since(contact.confirmed_at) > self.rules.lease + EXPIRY_GRACE;
        if has_expired || contact.tries >= TRIES_MAX && contact.sent_at.is_none_or(|sent| since(sent) >= RESEND) {
            return Some(Need::Give(given_up(action)));
        }
        let pause = if action.is_renewed() { self.renew_every() } else { RESEND };
        let is_quiet = contact.sent_at.is_none_or(|sent| since(sent) >= pause);
        // The brake gives everything back by itself, and refuses the rest.
        let is_braked = self.state.is_frozen();
        match action.state {
            _ if !is_quiet || is_braked => None,
            _ if action.ending.is_some() => Some(Need::Send(Order::Revoke)),
            ActionState::Proposed => Some(Need::Send(Order::Apply {
                knob: action.knob.clone(),
                setting: action.setting.clone(),
                lease: self.rules.lease,
                service: action.service.clone(),
                reason: format!("incident {}: {}", action.incident, action.reason),
            })),
            _ => Some(Need::Send(Order::Renew { lease: self.rules.lease })),
        }
    }

    fn renew_every(&self) -> Micros {
        Micros::new(self.rules.lease.get() / 3)
    }

    /// When the next command is due, or the next lease must have run out.
    pub(super) fn command_deadline(&self) -> Option<Timestamp> {
        let due = |action: &Action| {
            let contact = self.contacts.get(&action.id).filter(|contact| !contact.is_settling)?;
            let expiry = contact.confirmed_at + self.rules.lease + EXPIRY_GRACE + Micros::new(1);
            let pause = if action.is_renewed() { self.renew_every() } else { RESEND };
            let is_sending = self.is_connected(&action.node) && !self.state.is_frozen();
            let resend = contact.sent_at.filter(|_| is_sending).map_or(expiry, |sent| sent + pause);
            Some(expiry.min(resend))
        };
        self.state.actions().values().filter(|action| action.is_in_force()).filter_map(due).min()
    }

    pub(super) fn take_result(&mut self, now: Timestamp, node: &NodeId, result: CommandResult) {
        let CommandResult { action: id, outcome } = result;
        if let (Outcome::Frozen(is_frozen), Some(agent)) = (&outcome, self.agents.get_mut(node)) {
            agent.status.is_frozen = *is_frozen;
        }
        if self.term.is_none() || id == NO_ACTION {
            return;
        }
        let Some(action) = self.state.actions().get(&id).filter(|action| action.node == *node) else {
            if matches!(outcome, Outcome::Applied { .. } | Outcome::Renewed) {
                self.send(node, id, Order::Revoke);
            }
            return;
        };
        match answer(action, outcome) {
            Answer::InForce => {
                let is_wanted = action.is_in_force();
                self.contact(now, id).confirmed_at = now;
                if !is_wanted {
                    self.send(node, id, Order::Revoke);
                }
            }
            Answer::Change(change) => {
                self.contact(now, id).confirmed_at = now;
                self.settle(now, id, change);
            }
            Answer::Trouble(text) => self.note(true, format!("action {id} on {node}: {text}")),
        }
    }

    /// The log has taken a change of this action: what is due next is to be said anew.
    pub(super) fn action_changed(&mut self, now: Timestamp, id: ActionId) {
        // A setting that has just been applied is renewed a third of a lease later; all else is said at once.
        let is_renewed = self.state.actions().get(&id).is_some_and(Action::is_renewed);
        let contact = self.contact(now, id);
        contact.is_settling = false;
        contact.tries = 0;
        contact.sent_at = is_renewed.then_some(now);
    }
}

/// What an answer of a node means.
enum Answer {
    InForce,
    Change(ActionChange),
    Trouble(String),
}

fn answer(action: &Action, outcome: Outcome) -> Answer {
    let is_proposed = action.state == ActionState::Proposed;
    match outcome {
        Outcome::Applied { before, .. } if is_proposed => Answer::Change(ActionChange::Applied { before }),
        Outcome::Applied { .. } | Outcome::Renewed => Answer::InForce,
        Outcome::Reverted(reason) => {
            let why = match reason {
                RevertReason::Frozen => Ending::Frozen,
                _ => action.ending.unwrap_or(Ending::Lost),
            };
            Answer::Change(ActionChange::Reverted { why })
        }
        Outcome::Drifted { found } => Answer::Change(ActionChange::Drifted(found)),
        Outcome::Refused(Refusal::UnknownAction) if !is_proposed || action.ending.is_some() => {
            Answer::Change(ActionChange::Reverted { why: action.ending.unwrap_or(Ending::Lost) })
        }
        Outcome::Refused(refusal) if is_proposed => Answer::Change(ActionChange::Refused(refused(&refusal))),
        Outcome::Refused(refusal) => Answer::Trouble(refused(&refusal)),
        Outcome::Failed(text) if is_proposed => Answer::Change(ActionChange::Failed(text)),
        Outcome::Failed(text) => Answer::Trouble(text),
        Outcome::Frozen(_) => Answer::InForce,
    }
}

fn given_up(action: &Action) -> ActionChange {
    match (action.state, action.ending) {
        (ActionState::Proposed, None) => ActionChange::Failed("the node did not answer".to_owned()),
        (_, ending) => ActionChange::Reverted { why: ending.unwrap_or(Ending::Unreachable) },
    }
}

fn refused(refusal: &Refusal) -> String {
    match refusal {
        Refusal::StaleTerm(term) => format!("the node has seen term {term}"),
        Refusal::Policy(rule) => format!("policy: {rule}"),
        Refusal::Frozen => "the node's brake is on".to_owned(),
        Refusal::Held(other) => format!("action {other} holds the knob"),
        Refusal::UnknownAction => "the node does not know the action".to_owned(),
        Refusal::Unsupported(text) => format!("not possible there: {text}"),
    }
}
