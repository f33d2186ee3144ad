//! The aggregator's end: accepts agents, runs one [`AggregatorSession`](crate::session::AggregatorSession) for each, and
//! gives their owner one stream of events.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use quinn::{Endpoint, Incoming, VarInt};
use sage_common::{BootId, NodeId, NodeWindow, Term};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    check::InvalidWindow,
    identity::{FleetName, Role},
    message::{AgentStatus, Command, CommandResult, Hello},
    quic::{LinkError, clock::wall_clock, serve::serve, transport},
    session::{AggregatorInput, Answer, Disconnect, Timing},
    tls::TlsMaterial,
};

/// Connections at once: a fleet of 5,000 agents, some of them with an old connection that is not yet over.
const CONNECTIONS_MAX: usize = 6_000;

/// Peers at once that have not said who they are, or are not welcomed yet.
const STRANGERS_MAX: usize = 512;

/// Above so many strangers a peer must first prove that its address is its own (QUIC retry).
const STRANGERS_BEFORE_RETRY: usize = 64;

/// Events that wait for the owner. Behind them, QUIC's flow control holds the agents back.
const EVENTS_MAX: usize = 256;

/// Messages of the owner that wait for one connection's task, which takes them at once unless the machine is starved.
pub(super) const INBOX_MAX: usize = 1_024;

/// How long a shutdown waits for agents to take their last messages.
const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// How an aggregator listens.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// UDP address; port 0 takes a free one.
    pub address: SocketAddr,
    /// How long to wait for what.
    pub timing: Timing,
}

/// What the owner of an [`AggregatorListener`] is told. For one node, `Connected` and `Disconnected` take turns, also
/// when a newer connection replaces an older one, and everything else comes between them.
#[derive(Debug)]
pub enum ListenerEvent {
    /// An agent is welcomed.
    Connected {
        /// Its node, from its certificate.
        node: NodeId,
        /// What it said of itself.
        hello: Hello,
    },
    /// A checked window of a connected node, perhaps not for the first time. Acknowledge it once it is committed, and
    /// again whenever it comes again.
    Window(Box<NodeWindow>),
    /// A window was thrown away, and its agent told to do the same.
    Rejected {
        /// Whose.
        node: NodeId,
        /// Why.
        problem: InvalidWindow,
    },
    /// What became of a command.
    Result {
        /// Who reports.
        node: NodeId,
        /// What.
        result: CommandResult,
    },
    /// A heartbeat.
    Status {
        /// Whose.
        node: NodeId,
        /// Its state.
        status: AgentStatus,
    },
    /// An agent is gone.
    Disconnected {
        /// Its node.
        node: NodeId,
        /// Why.
        why: Disconnect,
    },
}

/// Answers hellos. Called from connection tasks, at most once for each connection: it must not block.
pub trait WelcomeSource: Send + Sync + 'static {
    /// Whether we lead, in which term, and what is committed of the hello's boot. A term that is lower than the hello's
    /// makes the agent hang up: the owner must lead a higher one first.
    fn answer(&self, hello: &Hello) -> Answer;
}

impl<F: Fn(&Hello) -> Answer + Send + Sync + 'static> WelcomeSource for F {
    fn answer(&self, hello: &Hello) -> Answer {
        self(hello)
    }
}

/// The node has no welcomed connection now, or its task is starved.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("node {0} is not connected")]
pub struct NotConnected(pub NodeId);

/// Accepts agents. Clones share one endpoint; it closes when [`shutdown`](Self::shutdown) is called, or when the last
/// clone is dropped. A connection also ends when it has an event to tell and the receiver is dropped.
#[derive(Clone, Debug)]
pub struct AggregatorListener {
    shared: Arc<Shared>,
    /// Cancels everything when the last clone goes.
    _guard: Arc<tokio_util::sync::DropGuard>,
}

impl AggregatorListener {
    /// Listens. `welcome` answers hellos.
    ///
    /// # Errors
    ///
    /// [`LinkError::Tls`] when `tls` is not an aggregator's or does not hold now, [`LinkError::Crypto`],
    /// [`LinkError::Bind`].
    pub fn bind(
        config: &ListenerConfig,
        tls: &TlsMaterial,
        welcome: impl WelcomeSource,
    ) -> Result<(Self, mpsc::Receiver<ListenerEvent>), LinkError> {
        tls.require(Role::Aggregator, wall_clock())?;
        let endpoint = transport::server_endpoint(config.address, tls)?;
        let (events, events_outbox) = mpsc::channel(EVENTS_MAX);
        let cancel = CancellationToken::new();
        let shared = Arc::new(Shared {
            endpoint,
            fleet: tls.identity().fleet.clone(),
            timing: config.timing,
            peers: Mutex::default(),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            serials: AtomicU64::new(0),
            welcome: Box::new(welcome),
            events,
            cancel: cancel.clone(),
        });
        tokio::spawn(accept(Arc::clone(&shared)));
        Ok((Self { shared, _guard: Arc::new(cancel.drop_guard()) }, events_outbox))
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// Tells `node` that these windows of `boot` are committed. Lost without harm when the node is not connected: it
    /// sends them again, and they are to be acknowledged again.
    pub fn acknowledge(&self, node: &NodeId, boot: BootId, sequences: Vec<u64>) {
        // Said again when they come again.
        let _ = self.shared.tell(node, AggregatorInput::Acknowledge { boot, sequences });
    }

    /// Gives `node` an order.
    ///
    /// # Errors
    ///
    /// [`NotConnected`]. Without an error it may still be lost with the connection: only a result says otherwise.
    pub fn command(&self, node: &NodeId, command: Command) -> Result<(), NotConnected> {
        self.shared.tell(node, AggregatorInput::Command(command))
    }

    /// Tells every connected agent that we lead `term` now.
    pub fn set_term(&self, term: Term) {
        self.shared.tell_all(|| AggregatorInput::Term(term));
    }

    /// Sends every connected agent to the leader at `leader`, or away while there is none.
    pub fn redirect_all(&self, leader: Option<&str>) {
        self.shared.tell_all(|| AggregatorInput::Redirect(leader.map(ToOwned::to_owned)));
    }

    /// Ends the connection with `node`, if there is one.
    pub fn disconnect(&self, node: &NodeId) {
        // Not connected is what is wanted.
        let _ = self.shared.tell(node, AggregatorInput::Close(Disconnect::Closed));
    }

    /// The nodes with a welcomed connection, or one about to be.
    pub fn connected(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.shared.peers().keys().cloned().collect();
        nodes.sort();
        nodes
    }

    /// Closes every connection, after what was to be sent has been, and stops listening; takes at most two seconds.
    pub async fn shutdown(self) {
        self.shared.cancel.cancel();
        // Agents that do not hear of it notice the silence.
        let _ = tokio::time::timeout(SHUTDOWN_MAX, self.shared.endpoint.wait_idle()).await;
        self.shared.endpoint.close(VarInt::from_u32(0), b"shutdown");
    }
}

/// What all connections share.
pub(super) struct Shared {
    endpoint: Endpoint,
    pub(super) fleet: FleetName,
    pub(super) timing: Timing,
    peers: Mutex<HashMap<NodeId, Peer>>,
    strangers: Arc<Semaphore>,
    /// The next connection's serial.
    pub(super) serials: AtomicU64,
    pub(super) welcome: Box<dyn WelcomeSource>,
    pub(super) events: mpsc::Sender<ListenerEvent>,
    /// The listener is to end.
    pub(super) cancel: CancellationToken,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("endpoint", &self.endpoint).field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

/// The connection that speaks for a node.
#[derive(Debug)]
pub(super) struct Peer {
    /// Tells it from others of the same node.
    pub(super) serial: u64,
    /// The way to its task. When it is dropped the task ends.
    pub(super) inbox: mpsc::Sender<AggregatorInput>,
    /// Cancelled once the task's last event is out.
    pub(super) done: CancellationToken,
}

impl Shared {
    /// Makes `peer` speak for `node`; returns the one that did.
    pub(super) fn enter(&self, node: &NodeId, peer: Peer) -> Option<Peer> {
        self.peers().insert(node.clone(), peer)
    }

    /// Forgets the peer with `serial`, unless another has taken its place.
    pub(super) fn leave(&self, node: &NodeId, serial: u64) {
        let mut peers = self.peers();
        if peers.get(node).is_some_and(|peer| peer.serial == serial) {
            peers.remove(node);
        }
    }

    fn tell(&self, node: &NodeId, input: AggregatorInput) -> Result<(), NotConnected> {
        let peers = self.peers();
        let peer = peers.get(node).ok_or_else(|| NotConnected(node.clone()))?;
        peer.inbox.try_send(input).map_err(|_| NotConnected(node.clone()))
    }

    fn tell_all(&self, input: impl Fn() -> AggregatorInput) {
        self.peers().retain(|_, peer| peer.inbox.try_send(input()).is_ok());
    }

    /// A panic elsewhere leaves the map as good as it was.
    fn peers(&self) -> MutexGuard<'_, HashMap<NodeId, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes connections until the listener ends.
async fn accept(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.cancel.cancelled() => return,
            incoming = shared.endpoint.accept() => match incoming {
                Some(incoming) => admit(&shared, incoming),
                None => return,
            },
        }
    }
}

/// Starts a task for `incoming`, if bounds allow.
fn admit(shared: &Arc<Shared>, incoming: Incoming) {
    let is_crowded = STRANGERS_MAX - shared.strangers.available_permits() >= STRANGERS_BEFORE_RETRY;
    if is_crowded && incoming.may_retry() && !incoming.remote_address_validated() {
        if let Err(error) = incoming.retry() {
            debug!(%error, "cannot ask for a retry");
        }
        return;
    }
    let stranger: Option<OwnedSemaphorePermit> = Arc::clone(&shared.strangers).try_acquire_owned().ok();
    match stranger {
        Some(stranger) if shared.endpoint.open_connections() < CONNECTIONS_MAX => {
            tokio::spawn(serve(Arc::clone(shared), incoming, stranger));
        }
        _ => incoming.refuse(),
    }
}
