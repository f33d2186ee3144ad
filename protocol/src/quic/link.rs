//! The agent's end: one task that drives an [`AgentSession`] over QUIC, connection after connection.
//!
//! It keeps no window longer than its connection. The owner's spool does, and submits again after
//! [`AgentLinkEvent::Connected`].

use std::{collections::VecDeque, sync::Arc, time::Duration};

use sage_common::{BootId, Term};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tracing::info;

use crate::{
    encoded::EncodedWindow,
    identity::Role,
    message::{Command, CommandResult},
    quic::{
        LinkError,
        clock::{Clock, wall_clock},
        transport,
        wire::{Connector, Happened, Wire},
    },
    session::{
        AgentEvent, AgentInput, AgentOutput, AgentSession, AgentSessionConfig, AgentState, Disconnect,
        WINDOWS_IN_FLIGHT_MAX,
    },
    tls::TlsMaterial,
};

/// Events that wait for the owner before the link stops reading: a second of commands and acknowledgements.
const EVENTS_MAX: usize = 64;

/// Results that wait for the link, which takes them at once unless the machine is starved.
const RESULTS_QUEUE_MAX: usize = 256;

/// How long a shutdown takes at most.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// What the owner of an [`AgentLink`] is told. Mirrors [`AgentEvent`].
#[derive(Debug)]
pub enum AgentLinkEvent {
    /// A leader welcomed us. Forget every window of this boot below `acknowledged_below`, then submit all others through
    /// `windows`, oldest first, also those submitted before. Whenever `windows` is full, go on at the next
    /// [`Acknowledged`](Self::Acknowledged) or [`Rejected`](Self::Rejected).
    Connected {
        /// Where.
        address: String,
        /// Its name, for people.
        leader: String,
        /// Its term.
        term: Term,
        /// Every window of this boot below this number is committed.
        acknowledged_below: u64,
        /// Takes windows for as long as this connection stands.
        windows: WindowSender,
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

/// Why a window was not taken.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum WindowNotSent {
    /// Enough are under way; an acknowledgement, a rejection or the end of the connection follows.
    #[error("enough windows are under way")]
    Full,
    /// The connection is over; submit it after the next [`AgentLinkEvent::Connected`].
    #[error("the connection is over")]
    Disconnected,
}

/// Takes windows for one connection.
#[derive(Clone, Debug)]
pub struct WindowSender(mpsc::Sender<EncodedWindow>);

impl WindowSender {
    /// Submits `window`; keep it until it is acknowledged. Never waits.
    ///
    /// # Errors
    ///
    /// [`WindowNotSent`].
    pub fn submit(&self, window: EncodedWindow) -> Result<(), WindowNotSent> {
        self.0.try_send(window).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WindowNotSent::Full,
            mpsc::error::TrySendError::Closed(_) => WindowNotSent::Disconnected,
        })
    }
}

/// An agent's link to its aggregators. Dropping it closes the connection.
#[derive(Debug)]
pub struct AgentLink {
    results: mpsc::Sender<CommandResult>,
    state: watch::Sender<AgentState>,
    task: JoinHandle<()>,
}

impl AgentLink {
    /// Starts the link, which connects at once and stays connected. The receiver must be read: when it is dropped the
    /// link ends.
    ///
    /// # Errors
    ///
    /// [`LinkError::Tls`] when `tls` is not an agent's or does not hold now, [`LinkError::Crypto`].
    pub fn spawn(
        config: AgentSessionConfig,
        tls: &TlsMaterial,
        state: AgentState,
    ) -> Result<(Self, mpsc::Receiver<AgentLinkEvent>), LinkError> {
        tls.require(Role::Agent, wall_clock())?;
        let connector = Connector { client: transport::client(tls)?, fleet: tls.identity().fleet.clone() };
        let clock = Clock::start();
        let (results, results_inbox) = mpsc::channel(RESULTS_QUEUE_MAX);
        let (state_sender, state_inbox) = watch::channel(state.clone());
        let (events, events_outbox) = mpsc::channel(EVENTS_MAX);
        let driver = Driver {
            session: AgentSession::new(config, state, clock.now()),
            connector: Arc::new(connector),
            clock,
            wire: Wire::Idle,
            windows: None,
            pending: VecDeque::new(),
            results: results_inbox,
            state: state_inbox,
            events,
        };
        let task = tokio::spawn(driver.run());
        Ok((Self { results, state: state_sender, task }, events_outbox))
    }

    /// Reports what became of a command: now, or after the next connection stands. Never waits.
    ///
    /// # Errors
    ///
    /// The result itself, when the link has ended or 256 results wait for it.
    pub fn report(&self, result: CommandResult) -> Result<(), CommandResult> {
        self.results.try_send(result).map_err(|error| match error {
            mpsc::error::TrySendError::Full(result) | mpsc::error::TrySendError::Closed(result) => result,
        })
    }

    /// Replaces what heartbeats and the next hello say. Call it whenever a lease, the spool or the term changes, and
    /// every second or so for the leases' remaining time.
    pub fn set_state(&self, state: AgentState) {
        self.state.send_replace(state);
    }

    /// Sends the results reported so far, closes the connection and ends, all within two seconds.
    pub async fn shutdown(self) {
        let Self { results, state, mut task } = self;
        drop((results, state));
        if tokio::time::timeout(SHUTDOWN_MAX, &mut task).await.is_err() {
            task.abort();
        }
    }
}

struct Driver {
    session: AgentSession,
    connector: Arc<Connector>,
    clock: Clock,
    wire: Wire,
    /// Windows submitted on this connection.
    windows: Option<mpsc::Receiver<EncodedWindow>>,
    /// Events that the owner's queue has no room for yet.
    pending: VecDeque<AgentLinkEvent>,
    results: mpsc::Receiver<CommandResult>,
    state: watch::Receiver<AgentState>,
    events: mpsc::Sender<AgentLinkEvent>,
}

impl Driver {
    async fn run(mut self) {
        loop {
            if self.perform().await {
                return;
            }
            let Self { session, clock, wire, windows, pending, results, state, events, .. } = &mut self;
            let window = async {
                match windows {
                    Some(windows) => windows.recv().await,
                    None => None,
                }
            };
            let input = tokio::select! {
                happened = wire.next(pending.len() < EVENTS_MAX) => match happened {
                    Happened::Dialled(Ok(open)) => {
                        *wire = Wire::Open(open);
                        AgentInput::Opened
                    }
                    Happened::Dialled(Err(why)) | Happened::Input(AgentInput::Closed(why)) => {
                        *wire = Wire::Idle;
                        AgentInput::Closed(why)
                    }
                    Happened::Input(input) => input,
                },
                Some(window) = window, if session.window_room() > 0 => AgentInput::Window(window),
                result = results.recv() => result.map_or(AgentInput::Shutdown, AgentInput::Result),
                Ok(()) = state.changed() => AgentInput::State(state.borrow_and_update().clone()),
                permit = events.reserve(), if !pending.is_empty() => {
                    if let (Ok(permit), Some(event)) = (permit, pending.pop_front()) {
                        permit.send(event);
                    }
                    continue;
                }
                () = events.closed() => AgentInput::Shutdown,
                () = clock.sleep_until(session.poll_timeout()) => {
                    session.handle_timeout(clock.now());
                    continue;
                }
            };
            session.handle_input(clock.now(), input);
        }
    }

    /// Does what the session wants. Ends: no output causes another but a failed send, which ends the connection.
    /// Returns whether the session is over.
    async fn perform(&mut self) -> bool {
        while let Some(output) = self.session.poll_output() {
            match output {
                AgentOutput::Connect(address) => {
                    let connector = Arc::clone(&self.connector);
                    self.wire = Wire::Dialling(tokio::spawn(async move { connector.connect(&address).await }));
                }
                AgentOutput::Send(message) => {
                    if let Wire::Open(open) = &mut self.wire
                        && let Err(why) = open.control.queue(&message)
                    {
                        self.wire = Wire::Idle;
                        self.session.handle_input(self.clock.now(), AgentInput::Closed(why));
                    }
                }
                AgentOutput::SendWindow(window) => {
                    if let Wire::Open(open) = &mut self.wire {
                        open.upload(&window);
                    }
                }
                AgentOutput::Close(why) => {
                    self.close(&why).await;
                    if why == Disconnect::Closed {
                        return true;
                    }
                }
                AgentOutput::Event(event) => self.tell(event),
            }
        }
        false
    }

    async fn close(&mut self, why: &Disconnect) {
        match std::mem::replace(&mut self.wire, Wire::Idle) {
            Wire::Idle => {}
            Wire::Dialling(attempt) => attempt.abort(),
            Wire::Open(open) => open.close(why).await,
        }
    }

    fn tell(&mut self, event: AgentEvent) {
        let event = match event {
            AgentEvent::Connected { address, leader, term, acknowledged_below } => {
                info!(%address, %leader, %term, "connected to the leader");
                // As many again as may be in flight, so that the next ones are at hand when an acknowledgement comes.
                let (windows, inbox) = mpsc::channel(WINDOWS_IN_FLIGHT_MAX);
                self.windows = Some(inbox);
                let windows = WindowSender(windows);
                AgentLinkEvent::Connected { address, leader, term, acknowledged_below, windows }
            }
            AgentEvent::Disconnected(why) => {
                info!(%why, "not connected");
                self.windows = None;
                AgentLinkEvent::Disconnected(why)
            }
            AgentEvent::Term(term) => AgentLinkEvent::Term(term),
            AgentEvent::Acknowledged { boot, sequences } => AgentLinkEvent::Acknowledged { boot, sequences },
            AgentEvent::Rejected { boot, sequence, reason } => AgentLinkEvent::Rejected { boot, sequence, reason },
            AgentEvent::Command(command) => AgentLinkEvent::Command(command),
        };
        self.pending.push_back(event);
    }
}
