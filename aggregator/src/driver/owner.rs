//! The one task that owns the state: takes what happens, lets the leader decide, and carries out what it says.

use std::collections::{HashMap, VecDeque};

use sage_common::{ActionId, BootId, Micros, NodeId, Term, Timestamp};
use sage_protocol::{
    message::{Command, Order},
    quic::{AggregatorListener, ListenerEvent},
};
use tokio::sync::{oneshot, watch};

use super::{
    DriverError,
    answers::{Answer, answer},
    clock::Clock,
    welcome::Welcome,
};
use crate::{
    core::{
        Input, Leader, OperatorRequest, Oracle, Output, Proposal, Replica, ReplicaError, ReplicaEvent, TrainJob,
        view::Identity,
    },
    http::{Ask, Refusal, Reply, metrics::CallTotals},
    model::{GuardedModel, NewModel},
    replica::{Health, SingleReplica},
    trainer::{Trained, Trainer},
};

/// Entries that are not durable yet, above which windows are left at the agents, which send them again.
const PENDING_BYTES_MAX: usize = 64 << 20;

/// What the owner works with.
pub(super) struct Parts {
    pub(super) clock: Clock,
    pub(super) replica: SingleReplica,
    pub(super) listener: AggregatorListener,
    pub(super) trainer: Trainer<TrainJob>,
    pub(super) welcome: Welcome,
    /// Name and fleet; the time is filled in.
    pub(super) identity: Identity,
}

/// What this life has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Windows that the transport threw away.
    pub(super) rejected: u64,
    /// Windows left at the agents because the log was behind.
    pub(super) shed: u64,
}

/// See the module.
pub(super) struct Owner<O> {
    leader: Leader<O>,
    parts: Parts,
    health: watch::Receiver<Health>,
    /// The life of each connected agent.
    boots: HashMap<NodeId, BootId>,
    calls: CallTotals,
    counts: Counts,
    proposed: u64,
    committed: u64,
    /// Orders of operators, by the number of the entry that makes them durable.
    orders: VecDeque<(u64, oneshot::Sender<Result<Reply, Refusal>>)>,
    is_closing: bool,
}

impl<O: Oracle> Owner<O> {
    pub(super) fn new(leader: Leader<O>, parts: Parts) -> Self {
        Self {
            health: parts.replica.health(),
            leader,
            parts,
            boots: HashMap::new(),
            calls: CallTotals::default(),
            counts: Counts::default(),
            proposed: 0,
            committed: 0,
            orders: VecDeque::new(),
            is_closing: false,
        }
    }

    pub(super) fn leader(&self) -> &Leader<O> {
        &self.leader
    }

    pub(super) fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    pub(super) fn clock(&self) -> Clock {
        self.parts.clock
    }

    pub(super) fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    pub(super) fn calls(&self) -> &CallTotals {
        &self.calls
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn identity(&self) -> Identity {
        Identity { uptime: self.parts.clock.uptime(), ..self.parts.identity.clone() }
    }

    /// What keeps us from serving, for people.
    pub(super) fn trouble(&self) -> Option<String> {
        let health = self.health.borrow();
        let not_leading = || self.leader.leading().is_none().then(|| "not leading yet".to_owned());
        health.failure.clone().or_else(|| health.problem.clone()).or_else(not_leading)
    }

    /// Something came over the network.
    pub(super) fn take_event(&mut self, event: ListenerEvent) -> Result<(), DriverError> {
        let input = match event {
            ListenerEvent::Connected { node, hello } => {
                self.boots.insert(node, hello.boot);
                Input::AgentConnected(hello)
            }
            ListenerEvent::Window(_) if self.is_closing => return Ok(()),
            ListenerEvent::Window(_) if self.parts.replica.pending_bytes() > PENDING_BYTES_MAX => {
                self.counts.shed += 1;
                return Ok(());
            }
            ListenerEvent::Window(window) => Input::Window(*window),
            ListenerEvent::Rejected { node, problem } => {
                self.counts.rejected += 1;
                tracing::debug!(%node, %problem, "window rejected");
                return Ok(());
            }
            ListenerEvent::Result { node, result } => Input::CommandResult { node, result },
            ListenerEvent::Status { node, status } => Input::AgentStatus { node, status },
            ListenerEvent::Disconnected { node, why } => {
                tracing::info!(%node, %why, "agent disconnected");
                let Some(boot) = self.boots.remove(&node) else { return Ok(()) };
                Input::AgentDisconnected { node, boot }
            }
        };
        self.step(input)
    }

    /// The log has something to say.
    pub(super) fn take_log(&mut self, event: ReplicaEvent) -> Result<(), DriverError> {
        match event {
            ReplicaEvent::Leading(term) => {
                self.parts.welcome.lead(Some(term));
                self.parts.listener.set_term(term);
                self.step(Input::Leading(term))
            }
            ReplicaEvent::Following(leader) => {
                self.parts.welcome.lead(None);
                self.parts.listener.redirect_all(leader.as_deref());
                self.step(Input::Following)
            }
            ReplicaEvent::Snapshot(state) => self.step(Input::Snapshot(state)),
            ReplicaEvent::Committed { index, proposal } => {
                let has_closed = matches!(proposal, Proposal::Close { .. });
                self.committed += 1;
                self.step(Input::Committed { index, proposal })?;
                if has_closed {
                    self.count_calls();
                }
                self.answer_orders();
                self.compact()
            }
        }
    }

    fn count_calls(&mut self) {
        let state = self.leader.state();
        if let Some(window) = state.history().back() {
            self.calls.add(&window.observation, state.graph());
        }
    }

    fn answer_orders(&mut self) {
        while self.orders.front().is_some_and(|(entry, _)| *entry <= self.committed) {
            if let Some((_, reply)) = self.orders.pop_front() {
                // Whoever asked may have hung up.
                let _ = reply.send(Ok(Reply::Text("{}".into())));
            }
        }
    }

    fn compact(&mut self) -> Result<(), DriverError> {
        let Self { parts, leader, .. } = self;
        if !parts.replica.is_compaction_due() {
            return Ok(());
        }
        // A large state takes a while to encode; other tasks of this thread go on elsewhere.
        tokio::task::block_in_place(|| parts.replica.compact(leader.state())).map_err(log_failed)
    }

    /// Somebody asks, or orders.
    pub(super) fn take_ask(&mut self, ask: Ask) -> Result<(), DriverError> {
        let Ask { question, reply } = ask;
        match answer(self, question) {
            Answer::Now(answer) => {
                // Whoever asked may have hung up.
                let _ = reply.send(answer);
            }
            Answer::After(request) => {
                if let Some(mut trouble) = self.trouble() {
                    if request == OperatorRequest::Freeze {
                        trouble += "; until then freeze the nodes themselves: sage-agent freeze";
                    }
                    let _ = reply.send(Err(Refusal::Unavailable(trouble)));
                    return Ok(());
                }
                self.step(Input::Operator(request))?;
                self.orders.push_back((self.proposed, reply));
            }
        }
        Ok(())
    }

    /// An agent has obeyed a higher term than ours.
    pub(super) fn raise_term(&self, seen: Term) {
        tracing::warn!(%seen, "an agent has obeyed a higher term: was state_dir lost, or does another aggregator lead?");
        self.parts.replica.raise_term(seen);
    }

    /// What is due is done.
    pub(super) fn take_timeout(&mut self) -> Result<(), DriverError> {
        self.leader.handle_timeout(self.parts.clock.now());
        self.carry_out()
    }

    fn step(&mut self, input: Input<O>) -> Result<(), DriverError> {
        self.leader.handle_input(self.parts.clock.now(), input);
        self.carry_out()
    }

    /// Ends: outputs cause inputs only through the log, the network and the trainer.
    fn carry_out(&mut self) -> Result<(), DriverError> {
        while let Some(output) = self.leader.poll_output() {
            match output {
                Output::Propose(proposal) => {
                    self.proposed += 1;
                    self.parts.replica.propose(proposal).map_err(log_failed)?;
                }
                Output::Acknowledge { node, boot, sequences } => {
                    let below = self.leader.state().acknowledged_below(&node, boot);
                    self.parts.welcome.acknowledged(&node, boot, below);
                    self.parts.listener.acknowledge(&node, boot, sequences);
                }
                Output::Send { node, command } => self.send(&node, command),
                Output::Train(job) => self.parts.trainer.submit(job),
                Output::Note(event) if event.is_problem => tracing::warn!("{}", event.text),
                Output::Note(event) => tracing::info!("{}", event.text),
            }
        }
        Ok(())
    }

    fn send(&self, node: &NodeId, command: Command) {
        if self.is_closing && command.order != Order::Revoke {
            return;
        }
        if let Err(error) = self.parts.listener.command(node, command) {
            // The leader sends it again until the node answers or the lease has run out.
            tracing::debug!(%error, "command not sent");
        }
    }

    /// Takes every setting back from the nodes that can be reached, and starts nothing new.
    pub(super) fn begin_close(&mut self) {
        self.is_closing = true;
        let Some(term) = self.leader.leading() else { return };
        for (node, action) in self.held() {
            self.send(&node, Command { term, action, order: Order::Revoke });
        }
    }

    /// Actions in force on nodes that are connected.
    pub(super) fn held(&self) -> Vec<(NodeId, ActionId)> {
        let actions = self.leader.state().actions().values().filter(|action| action.is_in_force());
        actions
            .filter(|action| self.boots.contains_key(&action.node))
            .map(|action| (action.node.clone(), action.id))
            .collect()
    }

    /// Ends the connections and writes out what was proposed.
    pub(super) async fn close(self) {
        let Parts { replica, listener, .. } = self.parts;
        listener.shutdown().await;
        // Joins the log's thread, which may have one `fsync` to do.
        tokio::task::block_in_place(|| drop(replica));
    }
}

fn log_failed(error: ReplicaError) -> DriverError {
    DriverError::LogWrite(error)
}

impl Owner<GuardedModel> {
    /// A training has ended.
    pub(super) fn take_model(&mut self, trained: Trained<Option<NewModel>>) -> Result<(), DriverError> {
        let Trained { result, seconds } = trained;
        self.step(match result {
            Ok(None) => Input::Unchanged,
            Ok(Some(new)) => {
                let meta = new.meta(seconds, self.now());
                Input::Trained { oracle: new.oracle, bytes: new.bytes, meta }
            }
            Err(reason) => Input::TrainingFailed(reason),
        })
    }
}

/// The time that closing waits for nodes to give their settings back. What they do not, their leases do.
pub(super) const REVOKE_MAX: Micros = Micros::from_secs(2);
