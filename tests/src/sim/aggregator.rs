//! An aggregator's process: leader, sessions and log, wired as the daemon's owner wires them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::mpsc::{self, Receiver},
};

use sage_aggregator::{
    core::{Input, Leader, OperatorRequest, Output, Proposal, Replica, ReplicaEvent, Rules, State, TrainJob},
    model::GuardedModel,
};
use sage_common::{BootId, Micros, NodeId, Slo, Term, Timestamp};
use sage_protocol::{
    EncodedWindow, codec,
    message::{Command, FromAgent, Hello},
    session::{AggregatorInput, AggregatorOutput, AggregatorSession, Answer, Disconnect, Timing},
};

use super::{
    log::MemoryLog,
    network::{ConnId, Payload},
    trace::Trace,
};

/// Closed windows between two snapshots.
const COMPACT_EVERY: u64 = 11;
/// Sent commands that are remembered, for delivering them late.
const SENT_MAX: usize = 64;

/// Where a process ends in the middle of what it does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Crash {
    /// After this many more things that the leader wants done.
    AfterOutputs(u32),
    /// When an action is durable, before the leader is told so.
    IntentDurable,
    /// When the leader has been told that, before its command is sent.
    IntentTold,
}

/// The process has ended.
#[derive(Debug)]
pub(super) struct Crashed;

/// One process.
pub struct Aggregator {
    /// When set, it ends in the middle of what it does.
    pub crash: Option<Crash>,
    /// Commands that it sent, oldest first.
    pub sent: VecDeque<(NodeId, Command)>,
    pub(super) process: u64,
    pub(super) wire: VecDeque<(ConnId, Payload)>,
    pub(super) jobs: VecDeque<TrainJob>,
    pub(super) log: MemoryLog,
    leader: Leader<GuardedModel>,
    events: Receiver<ReplicaEvent>,
    sessions: BTreeMap<ConnId, AggregatorSession>,
    peers: BTreeMap<NodeId, Peer>,
    term: Option<Term>,
    started: Micros,
    started_at: Timestamp,
    compacted: u64,
}

#[derive(Clone, Copy, Debug)]
struct Peer {
    conn: ConnId,
    boot: BootId,
}

/// What a process is started with.
pub(super) struct Setting {
    pub process: u64,
    pub rules: Rules,
    pub slos: Vec<Slo>,
    pub now: Micros,
    pub wall: Timestamp,
}

impl Aggregator {
    /// A process that begins with `state`, which is what `log` holds.
    pub(super) fn start(setting: Setting, state: State, mut log: MemoryLog) -> Self {
        let (sender, events) = mpsc::channel();
        log.subscribe(Box::new(move |event| {
            // Nobody listens any more when the process has ended.
            let _ = sender.send(event);
        }));
        let name = format!("aggregator-{}", setting.process);
        let compacted = state.closes();
        Self {
            crash: None,
            sent: VecDeque::new(),
            process: setting.process,
            wire: VecDeque::new(),
            jobs: VecDeque::new(),
            log,
            leader: Leader::new(setting.rules, &name, setting.slos, state),
            events,
            sessions: BTreeMap::new(),
            peers: BTreeMap::new(),
            term: None,
            started: setting.now,
            started_at: setting.wall,
            compacted,
        }
    }

    /// What it decides by.
    pub fn leader(&self) -> &Leader<GuardedModel> {
        &self.leader
    }

    /// The term that it leads.
    pub fn term(&self) -> Option<Term> {
        self.term
    }

    fn wall(&self, now: Micros) -> Timestamp {
        self.started_at + now.saturating_sub(self.started)
    }

    /// When [`timeout`](Self::timeout) has something to do.
    pub(super) fn deadline(&self) -> Option<Micros> {
        let leader = self.leader.poll_timeout().map(|at| self.started + at.since(self.started_at).unwrap_or_default());
        let sessions = self.sessions.values().filter_map(AggregatorSession::poll_timeout).min();
        [leader, sessions, self.log.due()].into_iter().flatten().min()
    }

    /// Does what is due at `now`.
    pub(super) fn timeout(&mut self, now: Micros, trace: &mut Trace) -> Result<(), Crashed> {
        self.log.set_now(now);
        self.log.sync();
        self.sessions.values_mut().for_each(|session| session.handle_timeout(now));
        if self.leader.poll_timeout().is_some_and(|at| at <= self.wall(now)) {
            self.leader.handle_timeout(self.wall(now));
            self.carry_out(now, trace)?;
        }
        self.settle(now, trace)
    }

    /// An agent's connection stands.
    pub(super) fn accept(&mut self, conn: ConnId, node: NodeId, now: Micros) {
        self.sessions.insert(conn, AggregatorSession::new(node, Timing::default(), now));
    }

    pub(super) fn holds(&self, conn: ConnId) -> bool {
        self.sessions.contains_key(&conn)
    }

    /// Something came over `conn`.
    pub(super) fn receive(
        &mut self,
        conn: ConnId,
        payload: Payload,
        now: Micros,
        trace: &mut Trace,
    ) -> Result<(), Crashed> {
        let Some(session) = self.sessions.get_mut(&conn) else { return Ok(()) };
        let input = match payload {
            Payload::Control(bytes) => {
                let message: FromAgent = codec::decode(&bytes).expect("an agent's own message");
                AggregatorInput::Message(message)
            }
            Payload::Window(bytes) => {
                AggregatorInput::Window(Box::new(EncodedWindow::decode(&bytes).expect("an agent's own window")))
            }
            Payload::Over(why) => AggregatorInput::Close(Disconnect::Lost(why)),
        };
        session.handle_input(now, input);
        self.settle(now, trace)
    }

    /// An operator, or the trainer, has something to say.
    pub(super) fn take(&mut self, input: Input<GuardedModel>, now: Micros, trace: &mut Trace) -> Result<(), Crashed> {
        self.step(input, now, trace)?;
        self.settle(now, trace)
    }

    /// An operator's order.
    pub(super) fn order(&mut self, order: OperatorRequest, now: Micros, trace: &mut Trace) -> Result<(), Crashed> {
        self.take(Input::Operator(order), now, trace)
    }

    /// Carries events of the log and outputs of the sessions on, until all rest.
    pub(super) fn settle(&mut self, now: Micros, trace: &mut Trace) -> Result<(), Crashed> {
        self.log.set_now(now);
        loop {
            if let Ok(event) = self.events.try_recv() {
                self.take_log(event, now, trace)?;
                continue;
            }
            let next = self.sessions.iter_mut().find_map(|(conn, one)| one.poll_output().map(|output| (*conn, output)));
            let Some((conn, output)) = next else { return Ok(()) };
            self.take_output(conn, output, now, trace)?;
        }
    }

    fn take_log(&mut self, event: ReplicaEvent, now: Micros, trace: &mut Trace) -> Result<(), Crashed> {
        match event {
            ReplicaEvent::Leading(term) => {
                self.term = Some(term);
                self.tell_all(now, || AggregatorInput::Term(term));
                self.step(Input::Leading(term), now, trace)
            }
            ReplicaEvent::Committed { index, proposal } => {
                let is_intent = matches!(proposal, Proposal::Intent(_));
                if is_intent && self.crash == Some(Crash::IntentDurable) {
                    return Err(Crashed);
                }
                let input = Input::Committed { index, proposal };
                if is_intent && self.crash == Some(Crash::IntentTold) {
                    self.leader.handle_input(self.wall(now), input);
                    return Err(Crashed);
                }
                self.step(input, now, trace)?;
                self.compact();
                Ok(())
            }
            ReplicaEvent::Following(_) | ReplicaEvent::Snapshot(_) => Ok(()),
        }
    }

    fn compact(&mut self) {
        let closes = self.leader.state().closes();
        if closes >= self.compacted + COMPACT_EVERY {
            self.compacted = closes;
            self.log.compact(self.leader.state()).expect("a state has bytes");
        }
    }

    fn take_output(
        &mut self,
        conn: ConnId,
        output: AggregatorOutput,
        now: Micros,
        trace: &mut Trace,
    ) -> Result<(), Crashed> {
        let Some(node) = self.sessions.get(&conn).map(|session| session.node().clone()) else { return Ok(()) };
        let input = match output {
            AggregatorOutput::Send(message) => {
                let bytes = codec::encode(&message).expect("an aggregator's own message is short");
                self.wire.push_back((conn, Payload::Control(bytes)));
                return Ok(());
            }
            AggregatorOutput::Hello(hello) => return self.welcome(conn, hello, now, trace),
            AggregatorOutput::Close(why) => return self.close(conn, &why, now, trace),
            AggregatorOutput::Rejected(problem) => panic!("a window of {node} is rejected: {problem}"),
            AggregatorOutput::Window(window) => Input::Window(*window),
            AggregatorOutput::Result(result) => Input::CommandResult { node, result },
            AggregatorOutput::Status(status) => Input::AgentStatus { node, status },
        };
        self.step(input, now, trace)
    }

    /// Takes the place of the node's earlier connection, then answers.
    fn welcome(&mut self, conn: ConnId, hello: Hello, now: Micros, trace: &mut Trace) -> Result<(), Crashed> {
        let Hello { node, boot, term: seen, .. } = hello.clone();
        if let Some(before) = self.peers.get(&node).copied() {
            self.close(before.conn, &Disconnect::Replaced, now, trace)?;
        }
        let answer = match self.term {
            None => Answer::Redirect(None),
            Some(term) if seen > term => {
                self.log.raise_term(seen);
                Answer::Redirect(None)
            }
            Some(term) => {
                let acknowledged_below = self.leader.state().acknowledged_below(&node, boot);
                Answer::Welcome { term, leader: format!("aggregator-{}", self.process), acknowledged_below }
            }
        };
        let is_welcome = matches!(answer, Answer::Welcome { .. });
        if let Some(session) = self.sessions.get_mut(&conn) {
            session.handle_input(now, AggregatorInput::Answer(answer));
        }
        if is_welcome {
            self.peers.insert(node, Peer { conn, boot });
            self.step(Input::AgentConnected(hello), now, trace)?;
        }
        Ok(())
    }

    fn close(&mut self, conn: ConnId, why: &Disconnect, now: Micros, trace: &mut Trace) -> Result<(), Crashed> {
        let Some(session) = self.sessions.remove(&conn) else { return Ok(()) };
        self.wire.push_back((conn, Payload::Over(why.to_string())));
        let node = session.node().clone();
        let Some(peer) = self.peers.get(&node).copied().filter(|peer| peer.conn == conn) else { return Ok(()) };
        self.peers.remove(&node);
        self.step(Input::AgentDisconnected { node, boot: peer.boot }, now, trace)
    }

    fn step(&mut self, input: Input<GuardedModel>, now: Micros, trace: &mut Trace) -> Result<(), Crashed> {
        self.leader.handle_input(self.wall(now), input);
        self.carry_out(now, trace)
    }

    fn carry_out(&mut self, now: Micros, trace: &mut Trace) -> Result<(), Crashed> {
        while let Some(output) = self.leader.poll_output() {
            match &mut self.crash {
                Some(Crash::AfterOutputs(0)) => return Err(Crashed),
                Some(Crash::AfterOutputs(left)) => *left -= 1,
                _ => {}
            }
            match output {
                Output::Propose(proposal) => self.log.propose(proposal).expect("a log in memory takes everything"),
                Output::Acknowledge { node, boot, sequences } => {
                    self.tell(&node, now, AggregatorInput::Acknowledge { boot, sequences });
                }
                Output::Send { node, command } => {
                    if self.sent.len() == SENT_MAX {
                        self.sent.pop_front();
                    }
                    self.sent.push_back((node.clone(), command.clone()));
                    self.tell(&node, now, AggregatorInput::Command(command));
                }
                Output::Train(job) => self.jobs.push_back(job),
                Output::Note(event) => trace.note(now, &format!("aggregator-{}: {}", self.process, event.text)),
            }
        }
        Ok(())
    }

    fn tell(&mut self, node: &NodeId, now: Micros, input: AggregatorInput) {
        let conn = self.peers.get(node).map(|peer| peer.conn);
        if let Some(session) = conn.and_then(|conn| self.sessions.get_mut(&conn)) {
            session.handle_input(now, input);
        }
    }

    fn tell_all(&mut self, now: Micros, input: impl Fn() -> AggregatorInput) {
        let nodes: Vec<NodeId> = self.peers.keys().cloned().collect();
        nodes.iter().for_each(|node| self.tell(node, now, input()));
    }
}
