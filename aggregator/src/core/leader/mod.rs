//! What one replica does about the log: takes windows in, closes them, watches objectives, asks the model, plans, and
//! sees every action through. A replica that does not lead only applies.
//!
//! ```text
//!            Leading                        commit of the last decision
//!  following ───────► leading ─► deciding ◄────────────────────────────┐
//!      ▲                │           │ close · objectives · actions     │
//!      └────────────────┘           │ diagnose · plan · train          │
//!          Following                └──► Propose ──► log ──► Committed ┘
//! ```
//!
//! Every decision is a function of [`State`] and of who is connected; it is proposed, and the next one is taken only
//! when it is committed. So a leader that is rebuilt from the state in any phase goes on where the last one stopped.
//! `now` must never go back within one life: a driver derives it from one reading of the wall clock and a monotonic one.

mod commands;
mod decide;
mod intake;
#[cfg(test)]
mod tests;
mod training;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use sage_causal::observation::Observation;
use sage_common::{ActionId, BootId, Generation, Micros, NodeId, NodeWindow, Slo, Term, Timestamp, WindowKey};
use sage_protocol::message::{AgentStatus, Command, CommandResult, Hello};

use self::{commands::Contact, intake::Arrivals};
use crate::core::{
    clock::FleetClock,
    incident::{IncidentChange, IncidentId},
    label::Label,
    learning::Gate,
    oracle::Oracle,
    proposal::{ModelMeta, Proposal},
    rules::Rules,
    state::State,
};

/// What happens to a leader.
#[derive(Clone, Debug)]
pub enum Input<O> {
    /// This replica leads from here on.
    Leading(Term),
    /// This replica does not lead.
    Following,
    /// An entry of the log is durable.
    Committed {
        /// Its position.
        index: u64,
        /// The entry.
        proposal: Proposal,
    },
    /// Everything up to this state's position, because this replica was too far behind for the log.
    Snapshot(Box<State>),
    /// An agent's connection stands.
    AgentConnected(Hello),
    /// An agent's connection is gone.
    AgentDisconnected {
        /// The node.
        node: NodeId,
        /// The life of the agent whose connection it was.
        boot: BootId,
    },
    /// A node's window.
    Window(NodeWindow),
    /// What became of a command.
    CommandResult {
        /// The node.
        node: NodeId,
        /// What happened.
        result: CommandResult,
    },
    /// What an agent says with every heartbeat.
    AgentStatus {
        /// The node.
        node: NodeId,
        /// What it says.
        status: AgentStatus,
    },
    /// A training has ended.
    Trained {
        /// The new model.
        oracle: O,
        /// The same as [`Oracle::decode`] reads it.
        bytes: Vec<u8>,
        /// Its card; the generation is the job's.
        meta: ModelMeta,
    },
    /// A training of what changed has found that nothing did, or nothing that may be learnt yet.
    Unchanged,
    /// A training has failed, with the reason for people.
    TrainingFailed(String),
    /// An operator wants something.
    Operator(OperatorRequest),
}

/// What an operator can ask for. Whether it is possible is for the caller to check against the [`State`] first.
#[derive(Clone, Debug, PartialEq)]
pub enum OperatorRequest {
    /// Replaces all objectives.
    SetSlos(Vec<Slo>),
    /// Gives everything back and takes no action until thawed.
    Freeze,
    /// Releases the brake.
    Thaw,
    /// Takes the action that waits for it.
    Approve(ActionId),
    /// Says what was really at fault in an incident, or takes that back; the time is filled in.
    Label(IncidentId, Option<Label>),
}

/// What a driver is to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Hand this to the log.
    Propose(Proposal),
    /// Tell an agent that these windows are committed.
    Acknowledge {
        /// The node.
        node: NodeId,
        /// The life of the agent they belong to.
        boot: BootId,
        /// Their sequence numbers.
        sequences: Vec<u64>,
    },
    /// Send a command to a node; dropped when it is not connected any more.
    Send {
        /// The node.
        node: NodeId,
        /// The command.
        command: Command,
    },
    /// Train a model on another thread, then hand in [`Input::Trained`], [`Input::Unchanged`] or [`Input::TrainingFailed`].
    Train(TrainJob),
    /// Something that people want to read in the journal.
    Note(Event),
}

/// One training.
#[derive(Clone, Debug)]
pub struct TrainJob {
    /// The generation that the result will be.
    pub generation: Generation,
    /// How much of it.
    pub scope: TrainScope,
    /// Healthy windows, oldest first.
    pub healthy: Vec<Arc<Observation>>,
    /// Objectives.
    pub slos: Vec<Slo>,
    /// The model in use, as [`Oracle::decode`] reads it.
    pub previous: Option<Arc<Vec<u8>>>,
    /// When it was asked for.
    pub at: Timestamp,
    /// Arrival of the newest window in it.
    pub newest_window: Timestamp,
}

/// What a training covers.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainScope {
    /// Every service.
    Everything(Gate),
    /// The services that changed since the model before and those above them; nothing when there are none.
    Changes(Gate),
}

/// One line for the journal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// Whether somebody should look at it.
    pub is_problem: bool,
    /// The line.
    pub text: String,
}

/// Counters of this life of this replica, for metrics.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LeaderCounters {
    /// Windows handed in.
    pub windows: u64,
    /// Windows refused for good.
    pub refused: u64,
    /// Windows that were counted before, or are on their way into the log.
    pub repeated: u64,
    /// Windows whose node's clock is off, put on the fleet's time line.
    pub shifted: u64,
    /// Commands sent.
    pub commands: u64,
    /// Models trained and adopted.
    pub models_adopted: u64,
    /// Models trained and found no better.
    pub models_rejected: u64,
    /// Trainings that failed.
    pub trainings_failed: u64,
}

/// An agent's connection, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AgentLink {
    /// The life of the agent.
    pub boot: BootId,
    /// Whether the connection stands.
    pub is_connected: bool,
    /// What it said last.
    pub status: AgentStatus,
}

/// The brain of one replica.
#[derive(Debug)]
pub struct Leader<O> {
    rules: Rules,
    name: String,
    configured: Vec<Slo>,
    state: State,
    term: Option<Term>,
    led_since: Timestamp,
    agents: BTreeMap<NodeId, AgentLink>,
    clock: FleetClock,
    /// Windows that wait to be proposed together.
    inbox: Vec<NodeWindow>,
    inbox_due: Option<Timestamp>,
    in_flight: BTreeSet<WindowKey>,
    /// When the windows of each waiting interval arrived.
    arrivals: BTreeMap<Timestamp, Arrivals>,
    /// Decisions proposed and not committed.
    undecided: u32,
    contacts: BTreeMap<ActionId, Contact>,
    /// The count of closed windows at which the model was last asked about an incident.
    asked: BTreeMap<IncidentId, u64>,
    oracle: Option<(Generation, O)>,
    trained: Option<(Generation, O)>,
    is_training: bool,
    /// The count of closed windows when changes were last looked for.
    checked_close: u64,
    /// The count of closed windows before which nothing is trained.
    rests_until: u64,
    /// The count of closed windows at the last training of everything.
    trained_close: Option<u64>,
    last_failure: Option<String>,
    last_refusal: Option<(NodeId, String)>,
    counters: LeaderCounters,
    outputs: VecDeque<Output>,
}

impl<O: Oracle> Leader<O> {
    /// A replica called `name` that has applied everything up to `state`; `configured` are the configuration file's
    /// objectives, taken over when they differ from those taken over last.
    pub fn new(rules: Rules, name: &str, configured: Vec<Slo>, state: State) -> Self {
        let mut leader = Self {
            clock: FleetClock::new(rules.window, rules.lateness),
            rules,
            name: name.to_owned(),
            configured,
            state,
            term: None,
            led_since: Timestamp::default(),
            agents: BTreeMap::new(),
            inbox: Vec::new(),
            inbox_due: None,
            in_flight: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            undecided: 0,
            contacts: BTreeMap::new(),
            asked: BTreeMap::new(),
            oracle: None,
            trained: None,
            is_training: false,
            checked_close: 0,
            rests_until: 0,
            trained_close: None,
            last_failure: None,
            last_refusal: None,
            counters: LeaderCounters::default(),
            outputs: VecDeque::new(),
        };
        leader.load_model();
        leader
    }

    /// Takes `input` in at `now`.
    pub fn handle_input(&mut self, now: Timestamp, input: Input<O>) {
        match input {
            Input::Leading(term) => self.lead(now, term),
            Input::Following => self.follow(),
            Input::Committed { index, proposal } => self.commit(now, index, &proposal),
            Input::Snapshot(state) => self.restore(now, *state),
            Input::AgentConnected(hello) => self.connect(now, &hello),
            Input::AgentDisconnected { node, boot } => {
                if let Some(agent) = self.agents.get_mut(&node).filter(|agent| agent.boot == boot) {
                    agent.is_connected = false;
                }
            }
            Input::Window(window) => self.take_window(now, window),
            Input::CommandResult { node, result } => self.take_result(now, &node, result),
            Input::AgentStatus { node, status } => {
                if let Some(agent) = self.agents.get_mut(&node) {
                    agent.status = status;
                }
            }
            Input::Trained { oracle, bytes, meta } => self.take_model(oracle, bytes, meta),
            Input::Unchanged => self.is_training = false,
            Input::TrainingFailed(reason) => self.training_failed(reason),
            Input::Operator(request) => self.obey(now, request),
        }
        self.go_on(now);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.go_on(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) next has something to do.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.term?;
        let close = if self.undecided == 0 { self.close_deadline() } else { None };
        [self.inbox_due, close, self.command_deadline()].into_iter().flatten().min()
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn go_on(&mut self, now: Timestamp) {
        if self.term.is_none() {
            return;
        }
        self.flush_inbox(now, false);
        self.run_commands(now);
        if self.undecided == 0 {
            self.decide(now);
        }
    }

    fn lead(&mut self, now: Timestamp, term: Term) {
        self.forget_flight();
        self.term = Some(term);
        self.led_since = now;
        let leader = self.name.clone();
        self.propose(Proposal::TermStarted { term, leader, at: now });
    }

    fn follow(&mut self) {
        self.forget_flight();
        self.term = None;
    }

    /// What was proposed in an earlier period may never be committed: agents send it again.
    fn forget_flight(&mut self) {
        self.undecided = 0;
        self.in_flight.clear();
        self.inbox.clear();
        self.inbox_due = None;
        self.arrivals.clear();
        self.contacts.clear();
        self.asked.clear();
    }

    fn restore(&mut self, now: Timestamp, state: State) {
        self.state = state;
        self.arrivals.clear();
        self.note_arrivals(now);
        self.load_model();
    }

    fn commit(&mut self, now: Timestamp, index: u64, proposal: &Proposal) {
        let applied = self.state.apply(index, proposal);
        if applied.is_repeated {
            return;
        }
        if !matches!(proposal, Proposal::Windows { .. }) {
            self.undecided = self.undecided.saturating_sub(1);
        }
        match proposal {
            Proposal::Windows { windows, .. } => {
                self.note_arrivals(now);
                self.acknowledge(windows);
            }
            Proposal::Close { start, .. } => {
                self.arrivals.remove(start);
                self.clock.retain(|node| self.state.nodes().contains_key(node));
            }
            Proposal::Generation { .. } => self.load_model(),
            Proposal::Action { id, .. } => self.action_changed(now, *id),
            Proposal::Freeze { .. } | Proposal::Thaw { .. } => self.send_brake(),
            _ => {}
        }
        if self.term.is_some() {
            self.announce(proposal);
        }
    }

    fn obey(&mut self, now: Timestamp, request: OperatorRequest) {
        if self.term.is_none() {
            return;
        }
        let proposal = match request {
            OperatorRequest::SetSlos(slos) => Proposal::SetSlos { slos, is_configured: false, at: now },
            OperatorRequest::Freeze => Proposal::Freeze { at: now },
            OperatorRequest::Thaw => Proposal::Thaw { at: now },
            OperatorRequest::Approve(id) => {
                Proposal::Action { id, at: now, change: crate::core::ActionChange::Approved }
            }
            OperatorRequest::Label(id, label) => {
                let label = label.map(|label| Label { at: now, ..label });
                Proposal::Incident { id, at: now, change: IncidentChange::Labelled(label) }
            }
        };
        self.propose(proposal);
    }

    fn propose(&mut self, proposal: Proposal) {
        if !matches!(proposal, Proposal::Windows { .. }) {
            self.undecided += 1;
        }
        self.outputs.push_back(Output::Propose(proposal));
    }

    fn note(&mut self, is_problem: bool, text: String) {
        self.outputs.push_back(Output::Note(Event { is_problem, text }));
    }

    fn announce(&mut self, proposal: &Proposal) {
        match proposal {
            Proposal::TermStarted { term, .. } => self.note(false, format!("leading term {term}")),
            Proposal::Incident { id, change, .. } => self.announce_incident(*id, change),
            Proposal::Intent(action) => {
                let text = format!(
                    "action {} for incident {}: {} to {} on {} ({:?}): {}",
                    action.id, action.incident, action.knob, action.setting, action.node, action.state, action.reason
                );
                self.note(false, text);
            }
            Proposal::Action { id, change, .. } => self.note(false, format!("action {id}: {change:?}")),
            Proposal::Generation { meta, .. } => {
                let text = format!(
                    "model generation {} in use: {} windows, {:.1} s of training, learnt {}",
                    meta.generation,
                    meta.windows_trained,
                    meta.train_seconds,
                    meta.learnt_words()
                );
                self.note(false, text);
            }
            Proposal::Freeze { .. } => self.note(true, "the fleet is frozen: everything is given back".into()),
            Proposal::Thaw { .. } => self.note(false, "the fleet is thawed".into()),
            Proposal::SetSlos { slos, .. } => self.note(false, format!("{} objectives in force", slos.len())),
            Proposal::Windows { .. } | Proposal::Close { .. } => {}
        }
    }

    fn announce_incident(&mut self, id: IncidentId, change: &IncidentChange) {
        match change {
            IncidentChange::Opened { slo, latency, target } => {
                self.note(true, format!("incident {id}: {slo} is at {latency}, its target is {target}"));
            }
            IncidentChange::Diagnosed(verdict) | IncidentChange::Answered { verdict, .. } => {
                let culprits: Vec<String> = verdict
                    .culprits
                    .iter()
                    .map(|culprit| format!("{} ({:?})", culprit.service, culprit.resource))
                    .collect();
                let text = format!(
                    "incident {id}: {:?} {}; {} without it, p(restored) {:.2}",
                    verdict.kind,
                    culprits.join(", "),
                    verdict.counterfactual,
                    verdict.p_restored
                );
                self.note(false, text);
            }
            IncidentChange::Waiting(reason) => self.note(false, format!("incident {id}: no action: {reason}")),
            IncidentChange::Resolved => self.note(false, format!("incident {id}: the target is met again")),
            IncidentChange::Labelled(Some(label)) => {
                let causes: Vec<String> = label.causes.iter().map(|cause| cause.service.to_string()).collect();
                self.note(false, format!("incident {id}: an operator says that it was {}", causes.join(", ")));
            }
            IncidentChange::Labelled(None) => self.note(false, format!("incident {id}: its label is taken back")),
        }
    }
}

/// Reading.
impl<O> Leader<O> {
    /// What the log says.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The numbers it decides by.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The period that this replica leads; `None` when it does not.
    pub fn leading(&self) -> Option<Term> {
        self.term
    }

    /// Agents that are or were connected.
    pub fn agents(&self) -> &BTreeMap<NodeId, AgentLink> {
        &self.agents
    }

    /// Whether a training is under way.
    pub fn is_training(&self) -> bool {
        self.is_training
    }

    /// Counters of this life.
    pub fn counters(&self) -> LeaderCounters {
        self.counters
    }

    /// The model in use and its generation.
    pub fn oracle(&self) -> Option<&(Generation, O)> {
        self.oracle.as_ref()
    }

    /// What is wrong at the moment, for people.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let length = self.rules.window;
        for (node, shift) in self.clock.shifted() {
            let by = Micros::new(length.get().saturating_mul(shift.unsigned_abs()));
            let how = if shift > 0 { "behind" } else { "ahead" };
            problems.push(format!("the clock of {node} is {by} {how}; its windows are put on the fleet's time"));
        }
        for node in self.state.live_nodes() {
            if !self.agents.get(node).is_some_and(|agent| agent.is_connected) {
                problems.push(format!("{node} is not connected"));
            }
        }
        if let Some((node, reason)) = &self.last_refusal {
            problems.push(format!("{} windows refused; the last one of {node}: {reason}", self.counters.refused));
        }
        if let Some(reason) = &self.last_failure {
            problems.push(format!("the last training failed: {reason}"));
        }
        if self.state.slos().is_empty() {
            problems.push("no objective is set; try `sagectl slo suggest`".to_owned());
        }
        problems
    }
}
