//! The aggregator's side of one connection with one agent.
//!
//! ```text
//!              Hello, checked          Answer::Welcome
//!   greeting ────────────────► asking ────────────────► ready
//!      │ wrong node, no common    │ Answer::Redirect,     │ silence, Redirect,
//!      ▼ version, too late        ▼ Answer::Refuse        ▼ broken protocol
//!     over                       over                    over
//! ```
//!
//! It does not remember windows: a doubled one is handed on again, the owner's store knows its key, and the owner
//! acknowledges it again. Nothing is acknowledged unless the owner says that it is committed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sage_common::{BootId, Micros, NodeId, NodeWindow, Term};

use crate::{
    check::{InvalidWindow, check_window},
    message::{AgentStatus, Command, CommandResult, FromAgent, FromAggregator, Hello, Welcome},
    session::{ACKNOWLEDGED_PER_MESSAGE_MAX, Disconnect, HELD_MAX, REJECTIONS_MAX, Timing, VERSIONS, negotiate},
};

/// The owner's answer to a hello.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// We lead.
    Welcome {
        /// Our term. The agent hangs up if it has seen a higher one, which its hello says.
        term: Term,
        /// Our name.
        leader: String,
        /// Every window of the hello's boot below this number is committed.
        acknowledged_below: u64,
    },
    /// Somebody else leads: there, or nobody yet.
    Redirect(Option<String>),
    /// We do not want this agent, for this reason.
    Refuse(String),
}

/// What may happen to an [`AggregatorSession`].
#[derive(Debug)]
pub enum AggregatorInput {
    /// The agent said something on the control stream.
    Message(FromAgent),
    /// A window came on a stream of its own; decoded, not yet checked.
    Window(Box<NodeWindow>),
    /// The owner's answer to [`AggregatorOutput::Hello`].
    Answer(Answer),
    /// The owner has committed these windows.
    Acknowledge {
        /// The life of the agent they belong to.
        boot: BootId,
        /// Their sequence numbers.
        sequences: Vec<u64>,
    },
    /// The owner gives an order.
    Command(Command),
    /// The owner leads a new term.
    Term(Term),
    /// The owner leads no more.
    Redirect(Option<String>),
    /// The owner ends the connection.
    Close(Disconnect),
}

/// What an [`AggregatorSession`] wants done.
#[derive(Debug, PartialEq)]
pub enum AggregatorOutput {
    /// Send on the control stream.
    Send(FromAggregator),
    /// The agent's hello is in order: ask the owner, and say [`AggregatorInput::Answer`].
    Hello(Hello),
    /// A checked window of this node. Its boot may be an earlier one; it may have come before.
    Window(Box<NodeWindow>),
    /// A window was rejected, and the agent told.
    Rejected(InvalidWindow),
    /// What became of a command.
    Result(CommandResult),
    /// The agent's state, with every heartbeat.
    Status(AgentStatus),
    /// Close the connection once what was to be sent has been.
    Close(Disconnect),
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Greeting { deadline: Micros },
    Asking { version: u16 },
    Ready { heard: Micros, heartbeat_at: Micros, term: Term },
    Over,
}

/// The aggregator's side of the protocol. See the module for its picture.
#[derive(Debug)]
pub struct AggregatorSession {
    timing: Timing,
    /// The node in the peer's certificate.
    node: NodeId,
    phase: Phase,
    rejections: usize,
    /// Committed and not yet told. Gathered while the peer is slow to read, told in batches.
    acknowledged: BTreeMap<BootId, BTreeSet<u64>>,
    outputs: VecDeque<AggregatorOutput>,
}

impl AggregatorSession {
    /// A session with the agent whose certificate names `node`, from `now` on.
    pub fn new(node: NodeId, timing: Timing, now: Micros) -> Self {
        Self {
            timing,
            node,
            phase: Phase::Greeting { deadline: now + timing.greeting_max },
            rejections: 0,
            acknowledged: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes what has happened at `now`.
    pub fn handle_input(&mut self, now: Micros, input: AggregatorInput) {
        match (input, self.phase) {
            (_, Phase::Over) => {}
            (AggregatorInput::Close(why), _) => self.close(why),
            (AggregatorInput::Message(message), Phase::Greeting { .. }) => self.on_greeting(message),
            (AggregatorInput::Answer(answer), Phase::Asking { version }) => self.on_answer(now, version, answer),
            (AggregatorInput::Message(message), Phase::Ready { heartbeat_at, term, .. }) => {
                self.phase = Phase::Ready { heard: now, heartbeat_at, term };
                self.on_message(message);
            }
            (AggregatorInput::Window(window), Phase::Ready { heartbeat_at, term, .. }) => {
                self.phase = Phase::Ready { heard: now, heartbeat_at, term };
                self.on_window(window);
            }
            (AggregatorInput::Message(_) | AggregatorInput::Window(_), _) => {
                self.close(Disconnect::Protocol("spoke before its welcome".to_owned()));
            }
            (AggregatorInput::Acknowledge { boot, sequences }, Phase::Ready { .. }) => {
                self.acknowledged.entry(boot).or_default().extend(sequences);
            }
            (AggregatorInput::Command(command), Phase::Ready { .. }) => {
                self.send(FromAggregator::Command(command));
            }
            (AggregatorInput::Term(term), Phase::Ready { heard, .. }) => {
                self.phase = Phase::Ready { heard, heartbeat_at: now, term };
                self.handle_timeout(now);
            }
            (AggregatorInput::Redirect(leader), Phase::Ready { .. }) => self.redirect(leader),
            // Whatever the owner says before it has welcomed the agent is in its answer, or comes again.
            _ => {}
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Micros) {
        let Timing { greeting_max, silence_max, heartbeat, .. } = self.timing;
        match self.phase {
            Phase::Greeting { deadline } if now >= deadline => self.close(Disconnect::NoGreeting(greeting_max)),
            Phase::Ready { heard, .. } if now >= heard + silence_max => self.close(Disconnect::Silent(silence_max)),
            Phase::Ready { heard, heartbeat_at, term } if now >= heartbeat_at => {
                self.phase = Phase::Ready { heard, heartbeat_at: now + heartbeat, term };
                self.send(FromAggregator::Heartbeat(term));
            }
            _ => {}
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) next has something to do.
    pub fn poll_timeout(&self) -> Option<Micros> {
        match self.phase {
            Phase::Greeting { deadline } => Some(deadline),
            Phase::Ready { heard, heartbeat_at, .. } => Some(heartbeat_at.min(heard + self.timing.silence_max)),
            Phase::Asking { .. } | Phase::Over => None,
        }
    }

    /// What to do next, until there is nothing. Acknowledgements come last, as many in one message as have gathered.
    pub fn poll_output(&mut self) -> Option<AggregatorOutput> {
        self.outputs.pop_front().or_else(|| self.next_acknowledgement().map(AggregatorOutput::Send))
    }

    /// The node in the peer's certificate.
    pub const fn node(&self) -> &NodeId {
        &self.node
    }

    fn next_acknowledgement(&mut self) -> Option<FromAggregator> {
        let mut entry = self.acknowledged.first_entry()?;
        let boot = *entry.key();
        let rest = match entry.get().iter().nth(ACKNOWLEDGED_PER_MESSAGE_MAX).copied() {
            Some(next) => entry.get_mut().split_off(&next),
            None => BTreeSet::new(),
        };
        let told = std::mem::replace(entry.get_mut(), rest);
        if entry.get().is_empty() {
            entry.remove();
        }
        Some(FromAggregator::Acknowledged { boot, sequences: told.into_iter().collect() })
    }

    fn on_greeting(&mut self, message: FromAgent) {
        let FromAgent::Hello(hello) = message else {
            return self.close(Disconnect::Protocol("spoke before its hello".to_owned()));
        };
        match self.check(&hello) {
            Ok(version) => {
                self.phase = Phase::Asking { version };
                self.outputs.push_back(AggregatorOutput::Hello(hello));
            }
            Err(reason) => self.refuse(reason),
        }
    }

    /// The version to speak, or why the agent is refused.
    fn check(&self, hello: &Hello) -> Result<u16, String> {
        let Hello { version_min, version_max, node, held, .. } = hello;
        if *node != self.node {
            return Err(format!("the hello is of node {node}, the certificate of node {}", self.node));
        }
        if held.len() > HELD_MAX {
            return Err(format!("{} held leases are more than the {HELD_MAX} allowed", held.len()));
        }
        if let Some(lease) = held.iter().find(|lease| !lease.setting.fits(&lease.knob)) {
            return Err(format!("{} does not fit {}", lease.setting, lease.knob));
        }
        negotiate(&VERSIONS, &(*version_min..=*version_max)).ok_or_else(|| {
            let (ours_min, ours_max) = (VERSIONS.start(), VERSIONS.end());
            format!("we speak versions {ours_min} to {ours_max}, the agent {version_min} to {version_max}")
        })
    }

    fn on_answer(&mut self, now: Micros, version: u16, answer: Answer) {
        match answer {
            Answer::Welcome { term, leader, acknowledged_below } => {
                self.phase = Phase::Ready { heard: now, heartbeat_at: now + self.timing.heartbeat, term };
                self.send(FromAggregator::Welcome(Welcome { version, term, leader, acknowledged_below }));
            }
            Answer::Redirect(leader) => self.redirect(leader),
            Answer::Refuse(reason) => self.refuse(reason),
        }
    }

    fn on_message(&mut self, message: FromAgent) {
        match message {
            FromAgent::Heartbeat(status) => self.outputs.push_back(AggregatorOutput::Status(status)),
            FromAgent::Result(result) => self.outputs.push_back(AggregatorOutput::Result(result)),
            FromAgent::Hello(_) => self.close(Disconnect::Protocol("a second hello".to_owned())),
        }
    }

    fn on_window(&mut self, window: Box<NodeWindow>) {
        if window.key.node != self.node {
            let claimed = &window.key.node;
            return self.close(Disconnect::Protocol(format!("a window of node {claimed} from node {}", self.node)));
        }
        let Err(problem) = check_window(&window) else {
            return self.outputs.push_back(AggregatorOutput::Window(window));
        };
        self.send(FromAggregator::Rejected {
            boot: window.key.boot,
            sequence: window.key.seq,
            reason: problem.to_string(),
        });
        self.outputs.push_back(AggregatorOutput::Rejected(problem));
        self.rejections += 1;
        if self.rejections > REJECTIONS_MAX {
            self.close(Disconnect::Protocol(format!("{} windows rejected", self.rejections)));
        }
    }

    fn redirect(&mut self, leader: Option<String>) {
        self.send(FromAggregator::Redirect(leader.clone()));
        self.close(Disconnect::Redirected(leader));
    }

    fn refuse(&mut self, reason: String) {
        self.send(FromAggregator::Refused(reason.clone()));
        self.close(Disconnect::Refused(reason));
    }

    fn close(&mut self, why: Disconnect) {
        self.phase = Phase::Over;
        self.acknowledged.clear();
        self.outputs.push_back(AggregatorOutput::Close(why));
    }

    fn send(&mut self, message: FromAggregator) {
        self.outputs.push_back(AggregatorOutput::Send(message));
    }
}
