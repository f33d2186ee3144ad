//! The agent's side, across all its connections: whom to call, what to say, what is still unacknowledged.
//!
//! ```text
//!            backoff over            Opened              Welcome
//!   waiting ─────────────► dialling ────────► greeting ───────────► ready
//!    ▲  ▲                     │ Closed,          │ Refused, Redirect,  │ Closed, silence, stale term,
//!    │  └─────────────────────┘ too late         │ too late            │ Redirect, no acknowledgement
//!    └───────────────────────────────────────────┴─────────────────────┘
//! ```
//!
//! Windows live in the owner's spool. After [`AgentEvent::Connected`] the owner submits all it holds, oldest first, as
//! [`AgentSession::window_room`] allows; what a broken connection left unacknowledged is submitted again by the same rule.

use std::collections::{BTreeMap, VecDeque};

use sage_common::{BootId, Micros, NodeId, Term};

use crate::{
    encoded::EncodedWindow,
    message::{AgentStatus, Command, CommandResult, FromAgent, FromAggregator, HeldLease, Hello, Welcome},
    session::{
        Disconnect, HELD_MAX, REDIRECTS_MAX, RESULTS_MAX, Timing, VERSIONS, WINDOWS_IN_FLIGHT_MAX, backoff::Backoff,
    },
};

/// What an agent's sessions have in common.
#[derive(Clone, Debug)]
pub struct AgentSessionConfig {
    /// The agent's node, as in its certificate.
    pub node: NodeId,
    /// This life of the agent. Also seeds the jitter.
    pub boot: BootId,
    /// Program version, for people.
    pub program: String,
    /// Where aggregators listen, `host:port`; tried in turn.
    pub addresses: Vec<String>,
    /// How long to wait for what.
    pub timing: Timing,
}

/// What the agent's owner knows and the session repeats to aggregators.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentState {
    /// The highest term obeyed, from durable storage; the session raises its own copy as it hears higher ones.
    pub term: Term,
    /// Sent with every heartbeat.
    pub status: AgentStatus,
    /// Sent with every hello, up to [`HELD_MAX`].
    pub held: Vec<HeldLease>,
}

/// What may happen to an [`AgentSession`].
#[derive(Debug)]
pub enum AgentInput {
    /// The connection asked for stands and the peer is an aggregator of our fleet.
    Opened,
    /// The connection, or the attempt, is over. Only for one that the session has not closed itself.
    Closed(Disconnect),
    /// The aggregator said something on the connection that is open.
    Message(FromAggregator),
    /// The owner submits a window. Ignored unless connected: it is submitted again after the next
    /// [`AgentEvent::Connected`]. Ignored too while there is no [room](AgentSession::window_room).
    Window(EncodedWindow),
    /// The owner reports what became of a command.
    Result(CommandResult),
    /// The owner's state has changed.
    State(AgentState),
    /// The owner stops.
    Shutdown,
}

/// What an [`AgentSession`] wants done.
#[derive(Debug, PartialEq)]
pub enum AgentOutput {
    /// Connect to this address, then say [`AgentInput::Opened`] or [`AgentInput::Closed`].
    Connect(String),
    /// Send on the control stream.
    Send(FromAgent),
    /// Send on a stream of its own.
    SendWindow(EncodedWindow),
    /// Close the connection, or give up the attempt, and say nothing more about it.
    Close(Disconnect),
    /// Tell the owner.
    Event(AgentEvent),
}

/// What an agent's owner is told.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentEvent {
    /// A leader welcomed us. Submit every window that is not acknowledged, oldest first.
    Connected {
        /// Where.
        address: String,
        /// Its name, for people.
        leader: String,
        /// Its term.
        term: Term,
        /// Every window of this boot below this number is committed, as if acknowledged.
        acknowledged_below: u64,
    },
    /// A connection ended or could not be made. Another attempt follows by itself.
    Disconnected(Disconnect),
    /// A higher term was heard of. Make it durable before obeying a command of it.
    Term(Term),
    /// These windows are committed: forget them.
    Acknowledged {
        /// The life of the agent they belong to.
        boot: BootId,
        /// Their sequence numbers.
        sequences: Vec<u64>,
    },
    /// This window will never be taken: forget it and count it.
    Rejected {
        /// The life of the agent it belongs to.
        boot: BootId,
        /// Its sequence number.
        sequence: u64,
        /// Why, for people.
        reason: String,
    },
    /// An order. Its term may be lower than the highest seen: then refuse it.
    Command(Command),
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Waiting { until: Micros },
    Dialling { deadline: Micros },
    Greeting { deadline: Micros },
    Ready { since: Micros, heard: Micros, heartbeat_at: Micros },
    Over,
}

/// The agent's side of the protocol. See the module for its picture.
#[derive(Debug)]
pub struct AgentSession {
    config: AgentSessionConfig,
    state: AgentState,
    phase: Phase,
    backoff: Backoff,
    /// Index into the configured addresses.
    next_address: usize,
    /// Where a leader was said to be; tried before any configured address.
    redirect: Option<String>,
    /// Redirects followed since the last welcome.
    redirects: u32,
    /// The address of the connection or attempt under way.
    address: String,
    results: VecDeque<CommandResult>,
    /// Windows sent on this connection and not yet acknowledged, with the time of sending.
    in_flight: BTreeMap<(BootId, u64), Micros>,
    outputs: VecDeque<AgentOutput>,
}

impl AgentSession {
    /// A session that connects at once, at `now`.
    pub fn new(config: AgentSessionConfig, state: AgentState, now: Micros) -> Self {
        let Timing { backoff_first, backoff_max, .. } = config.timing;
        let mut session = Self {
            backoff: Backoff::new(backoff_first, backoff_max, config.boot.0),
            config,
            state,
            phase: Phase::Waiting { until: now },
            next_address: 0,
            redirect: None,
            redirects: 0,
            address: String::new(),
            results: VecDeque::new(),
            in_flight: BTreeMap::new(),
            outputs: VecDeque::new(),
        };
        session.handle_timeout(now);
        session
    }

    /// Takes what has happened at `now`.
    pub fn handle_input(&mut self, now: Micros, input: AgentInput) {
        match (input, self.phase) {
            (_, Phase::Over) => {}
            (AgentInput::Opened, Phase::Dialling { deadline }) => self.greet(deadline),
            (AgentInput::Closed(why), Phase::Dialling { .. } | Phase::Greeting { .. } | Phase::Ready { .. }) => {
                self.retry(now, why);
            }
            (AgentInput::Opened | AgentInput::Closed(_), _) => {}
            (AgentInput::Message(message), Phase::Greeting { .. }) => self.on_greeting(now, message),
            (AgentInput::Message(message), Phase::Ready { since, heartbeat_at, .. }) => {
                self.phase = Phase::Ready { since, heard: now, heartbeat_at };
                self.on_message(now, message);
            }
            (AgentInput::Message(_), _) => {}
            (AgentInput::Window(window), Phase::Ready { .. }) => self.send_window(now, window),
            (AgentInput::Window(_), _) => {}
            (AgentInput::Result(result), _) => self.take_result(result),
            (AgentInput::State(state), _) => {
                self.state = AgentState { term: state.term.max(self.state.term), ..state };
            }
            (AgentInput::Shutdown, _) => {
                self.phase = Phase::Over;
                self.outputs.push_back(AgentOutput::Close(Disconnect::Closed));
            }
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Micros) {
        let Timing { greeting_max, silence_max, acknowledgement_max, heartbeat, .. } = self.config.timing;
        match self.phase {
            Phase::Waiting { until } if now >= until => self.dial(now + greeting_max),
            Phase::Dialling { deadline } | Phase::Greeting { deadline } if now >= deadline => {
                self.close(now, Disconnect::NoGreeting(greeting_max));
            }
            Phase::Ready { heard, .. } if now >= heard + silence_max => {
                self.close(now, Disconnect::Silent(silence_max));
            }
            Phase::Ready { .. } if self.oldest_in_flight().is_some_and(|sent| now >= sent + acknowledgement_max) => {
                self.close(now, Disconnect::Unacknowledged(acknowledgement_max));
            }
            Phase::Ready { since, heard, heartbeat_at } if now >= heartbeat_at => {
                self.phase = Phase::Ready { since, heard, heartbeat_at: now + heartbeat };
                self.send(FromAgent::Heartbeat(self.state.status));
            }
            _ => {}
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) next has something to do; `None` after a shutdown.
    pub fn poll_timeout(&self) -> Option<Micros> {
        let Timing { silence_max, acknowledgement_max, .. } = self.config.timing;
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Dialling { deadline } | Phase::Greeting { deadline } => Some(deadline),
            Phase::Ready { heard, heartbeat_at, .. } => {
                let unacknowledged = self.oldest_in_flight().map(|sent| sent + acknowledgement_max);
                Some(heartbeat_at.min(heard + silence_max)).map(|at| unacknowledged.map_or(at, |other| at.min(other)))
            }
            Phase::Over => None,
        }
    }

    /// What to do next, until there is nothing.
    pub fn poll_output(&mut self) -> Option<AgentOutput> {
        self.outputs.pop_front()
    }

    /// How many windows may be submitted now.
    pub fn window_room(&self) -> usize {
        match self.phase {
            Phase::Ready { .. } => WINDOWS_IN_FLIGHT_MAX.saturating_sub(self.in_flight.len()),
            _ => 0,
        }
    }

    /// The highest term heard of or obeyed. Never goes down.
    pub const fn term(&self) -> Term {
        self.state.term
    }

    fn dial(&mut self, deadline: Micros) {
        let configured = || {
            let addresses = &self.config.addresses;
            addresses.get(self.next_address % addresses.len().max(1)).cloned()
        };
        let Some(address) = self.redirect.take().or_else(configured) else {
            self.phase = Phase::Over; // no address at all: there is nobody to talk to, ever
            return;
        };
        self.phase = Phase::Dialling { deadline };
        self.address.clone_from(&address);
        self.outputs.push_back(AgentOutput::Connect(address));
    }

    fn greet(&mut self, deadline: Micros) {
        self.phase = Phase::Greeting { deadline };
        let AgentSessionConfig { node, boot, program, .. } = self.config.clone();
        let held = self.state.held.iter().take(HELD_MAX).cloned().collect();
        let (version_min, version_max) = (*VERSIONS.start(), *VERSIONS.end());
        let term = self.state.term;
        self.send(FromAgent::Hello(Hello { version_min, version_max, node, boot, program, term, held }));
    }

    fn on_greeting(&mut self, now: Micros, message: FromAggregator) {
        match message {
            FromAggregator::Welcome(welcome) => self.enter(now, welcome),
            FromAggregator::Redirect(leader) => self.close(now, Disconnect::Redirected(leader)),
            FromAggregator::Refused(reason) => self.close(now, Disconnect::Refused(reason)),
            other => self.close(now, unexpected("before its welcome", &other)),
        }
    }

    fn enter(&mut self, now: Micros, welcome: Welcome) {
        let Welcome { version, term, leader, acknowledged_below } = welcome;
        if !VERSIONS.contains(&version) {
            return self
                .close(now, Disconnect::Protocol(format!("welcome in version {version}, which was not offered")));
        }
        if !self.raise_term(now, term) {
            return;
        }
        self.phase = Phase::Ready { since: now, heard: now, heartbeat_at: now };
        self.redirects = 0;
        self.event(AgentEvent::Connected { address: self.address.clone(), leader, term, acknowledged_below });
        while let Some(result) = self.results.pop_front() {
            self.send(FromAgent::Result(result));
        }
    }

    fn on_message(&mut self, now: Micros, message: FromAggregator) {
        match message {
            FromAggregator::Heartbeat(term) => {
                self.raise_term(now, term);
            }
            FromAggregator::Acknowledged { boot, sequences } => {
                for sequence in &sequences {
                    self.in_flight.remove(&(boot, *sequence));
                }
                self.event(AgentEvent::Acknowledged { boot, sequences });
            }
            FromAggregator::Rejected { boot, sequence, reason } => {
                self.in_flight.remove(&(boot, sequence));
                self.event(AgentEvent::Rejected { boot, sequence, reason });
            }
            FromAggregator::Command(command) => {
                if command.term > self.state.term {
                    self.raise_term(now, command.term);
                }
                self.event(AgentEvent::Command(command));
            }
            FromAggregator::Redirect(leader) => self.close(now, Disconnect::Redirected(leader)),
            FromAggregator::Refused(reason) => self.close(now, Disconnect::Refused(reason)),
            other @ FromAggregator::Welcome(_) => self.close(now, unexpected("after its welcome", &other)),
        }
    }

    /// Whether `told` is at least the highest term seen; if not, the peer's time is over and so is this connection.
    fn raise_term(&mut self, now: Micros, told: Term) -> bool {
        let seen = self.state.term;
        if told < seen {
            self.close(now, Disconnect::StaleTerm { told, seen });
            return false;
        }
        if told > seen {
            self.state.term = told;
            self.event(AgentEvent::Term(told));
        }
        true
    }

    fn send_window(&mut self, now: Micros, window: EncodedWindow) {
        let key = (window.key().boot, window.key().seq);
        if self.window_room() > 0 && !self.in_flight.contains_key(&key) {
            self.in_flight.insert(key, now);
            self.outputs.push_back(AgentOutput::SendWindow(window));
        }
    }

    fn take_result(&mut self, result: CommandResult) {
        if matches!(self.phase, Phase::Ready { .. }) {
            return self.send(FromAgent::Result(result));
        }
        if self.results.len() == RESULTS_MAX {
            self.results.pop_front();
        }
        self.results.push_back(result);
    }

    fn close(&mut self, now: Micros, why: Disconnect) {
        self.outputs.push_back(AgentOutput::Close(why.clone()));
        self.retry(now, why);
    }

    /// Plans the next attempt, and tells why the last one ended.
    fn retry(&mut self, now: Micros, why: Disconnect) {
        // Only a connection that lasted says that all is well; one that breaks at once must not be hurried after.
        if let Phase::Ready { since, .. } = self.phase
            && now >= since + self.config.timing.backoff_max
        {
            self.backoff.reset();
        }
        self.in_flight.clear();
        let mut until = now;
        match &why {
            Disconnect::Redirected(Some(leader)) if self.redirects < REDIRECTS_MAX => {
                self.redirects += 1;
                self.redirect = Some(leader.clone());
            }
            other => {
                if matches!(other, Disconnect::Refused(_)) {
                    self.backoff.slow_down();
                }
                self.redirects = 0;
                self.next_address = self.next_address.wrapping_add(1);
                until = now + self.backoff.next();
            }
        }
        self.phase = Phase::Waiting { until };
        self.event(AgentEvent::Disconnected(why));
    }

    fn oldest_in_flight(&self) -> Option<Micros> {
        self.in_flight.values().min().copied()
    }

    fn send(&mut self, message: FromAgent) {
        self.outputs.push_back(AgentOutput::Send(message));
    }

    fn event(&mut self, event: AgentEvent) {
        self.outputs.push_back(AgentOutput::Event(event));
    }
}

fn unexpected(when: &str, message: &FromAggregator) -> Disconnect {
    let kind = match message {
        FromAggregator::Welcome(_) => "a welcome",
        FromAggregator::Redirect(_) => "a redirect",
        FromAggregator::Refused(_) => "a refusal",
        FromAggregator::Heartbeat(_) => "a heartbeat",
        FromAggregator::Acknowledged { .. } => "an acknowledgement",
        FromAggregator::Command(_) => "a command",
        FromAggregator::Rejected { .. } => "a rejection",
    };
    Disconnect::Protocol(format!("{kind} {when}"))
}
