//! One accepted connection, from handshake to end.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use quinn::{Connection, Incoming, ReadToEndError, RecvStream, VarInt};
use rustls::pki_types::CertificateDer;
use sage_common::{NodeId, NodeWindow};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info};

use crate::{
    codec::MESSAGE_BYTES_MAX,
    encoded::EncodedWindow,
    frame::{FrameDecoder, HEADER_LEN},
    identity::{IdentityError, PeerIdentity, Role},
    message::Hello,
    quic::{
        ListenerEvent, WINDOW_STREAMS_MAX,
        clock::Clock,
        control::Control,
        error::explain,
        listener::{INBOX_MAX, Peer, Shared},
    },
    session::{AggregatorInput, AggregatorOutput, AggregatorSession, Answer, Disconnect},
};

/// From the first packet to the control stream.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// For one window: 50 KiB over 20 kbit/s. A slower peer is dribbling on purpose.
const WINDOW_STREAM_MAX: Duration = Duration::from_secs(20);

/// Events of one connection that the owner's queue has no room for yet. Reading stops there.
const PENDING_MAX: usize = 16;

/// How a connection is closed that was in order.
const CODE_OK: u32 = 0;
/// How one is closed whose peer may not be here.
const CODE_REFUSED: u32 = 1;
/// How one is closed whose peer broke the protocol.
const CODE_PROTOCOL: u32 = 2;

/// The identity in the peer's certificate, whose signature TLS has checked.
pub(super) fn peer_identity(connection: &Connection) -> Result<PeerIdentity, IdentityError> {
    let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain.as_deref().and_then(|chain| chain.first());
    PeerIdentity::of_certificate(leaf.ok_or_else(|| IdentityError::Malformed("none shown".to_owned()))?)
}

/// Runs one connection. `stranger` is given back once the peer is welcomed.
pub(super) async fn serve(shared: Arc<Shared>, incoming: Incoming, stranger: OwnedSemaphorePermit) {
    let remote = incoming.remote_address();
    match timeout(HANDSHAKE_MAX, greet(&shared, incoming)).await {
        Err(_) => debug!(%remote, "no handshake in time"),
        Ok(Err(why)) => info!(%remote, %why, "connection refused"),
        Ok(Ok((connection, control, node))) => {
            let clock = Clock::start();
            let (inbox_sender, inbox) = mpsc::channel(INBOX_MAX);
            let served = Served {
                session: AggregatorSession::new(node, shared.timing, clock.now()),
                clock,
                connection,
                control,
                inbox,
                inbox_sender: Some(inbox_sender),
                serial: shared.serials.fetch_add(1, Ordering::Relaxed),
                windows: JoinSet::new(),
                pending: VecDeque::new(),
                stranger: Some(stranger),
                done: None,
                shared,
            };
            served.run().await;
        }
    }
}

/// Handshake, role of the peer, control stream.
async fn greet(shared: &Shared, incoming: Incoming) -> Result<(Connection, Control, NodeId), Disconnect> {
    let connecting = incoming.accept()?;
    let connection = connecting.await.map_err(|error| Disconnect::Unreachable(explain(&error)))?;
    match peer_identity(&connection).and_then(|peer| peer.require(Role::Agent, &shared.fleet)) {
        Ok(peer) => {
            let (send, recv) = connection.accept_bi().await?;
            Ok((connection, Control::new(send, recv), peer.name))
        }
        Err(error) => {
            connection.close(VarInt::from_u32(CODE_REFUSED), error.to_string().as_bytes());
            Err(error.into())
        }
    }
}

/// A connection with an agent.
struct Served {
    shared: Arc<Shared>,
    session: AggregatorSession,
    clock: Clock,
    connection: Connection,
    control: Control,
    /// What the listener's owner says.
    inbox: mpsc::Receiver<AggregatorInput>,
    /// The other end of `inbox`, until the connection is entered among the peers.
    inbox_sender: Option<mpsc::Sender<AggregatorInput>>,
    serial: u64,
    /// One task for each window stream, never more than the peer may open.
    windows: JoinSet<Result<NodeWindow, Disconnect>>,
    pending: VecDeque<ListenerEvent>,
    /// Held until the peer is welcomed.
    stranger: Option<OwnedSemaphorePermit>,
    /// Set once entered: lets the next connection of the node in when it is dropped.
    done: Option<DropGuard>,
}

impl Served {
    async fn run(mut self) {
        let why = loop {
            if let Some(why) = self.perform().await {
                break why;
            }
            self.step().await;
        };
        self.finish(why).await;
    }

    /// Waits for one thing to happen, and tells the session.
    async fn step(&mut self) {
        let Self { session, clock, connection, control, inbox, windows, pending, shared, .. } = self;
        let has_room = pending.len() < PENDING_MAX;
        let input = tokio::select! {
            message = control.next(has_room) => match message {
                Ok(message) => AggregatorInput::Message(message),
                Err(why) => AggregatorInput::Close(why),
            },
            stream = connection.accept_uni(), if windows.len() < WINDOW_STREAMS_MAX as usize => match stream {
                Ok(stream) => {
                    windows.spawn(read_window(stream));
                    return;
                }
                Err(error) => AggregatorInput::Close(error.into()),
            },
            Some(read) = windows.join_next(), if has_room => match read {
                Ok(Ok(window)) => AggregatorInput::Window(Box::new(window)),
                Ok(Err(why)) => AggregatorInput::Close(why),
                Err(error) => AggregatorInput::Close(Disconnect::Lost(error.to_string())),
            },
            input = inbox.recv() => input.unwrap_or(AggregatorInput::Close(Disconnect::Replaced)),
            () = shared.cancel.cancelled() => AggregatorInput::Close(Disconnect::Closed),
            permit = shared.events.reserve(), if !pending.is_empty() => {
                match (permit, pending.pop_front()) {
                    (Ok(permit), Some(event)) => return permit.send(event),
                    _ => AggregatorInput::Close(Disconnect::Closed), // the owner is gone
                }
            }
            () = clock.sleep_until(session.poll_timeout()) => return session.handle_timeout(clock.now()),
        };
        session.handle_input(clock.now(), input);
    }

    /// Does what the session wants, until it wants nothing or the end.
    async fn perform(&mut self) -> Option<Disconnect> {
        while let Some(output) = self.session.poll_output() {
            let node = || self.session.node().clone();
            let event = match output {
                AggregatorOutput::Send(message) => {
                    if let Err(why) = self.control.queue(&message) {
                        return Some(why);
                    }
                    continue;
                }
                AggregatorOutput::Hello(hello) => {
                    self.enter(hello).await;
                    continue;
                }
                AggregatorOutput::Close(why) => return Some(why),
                AggregatorOutput::Window(window) => ListenerEvent::Window(window),
                AggregatorOutput::Rejected(problem) => ListenerEvent::Rejected { node: node(), problem },
                AggregatorOutput::Result(result) => ListenerEvent::Result { node: node(), result },
                AggregatorOutput::Status(status) => ListenerEvent::Status { node: node(), status },
            };
            self.pending.push_back(event);
        }
        None
    }

    /// Takes the place of the node's earlier connection, once all of its events are out, and asks the owner for an
    /// answer. From being entered on, what the owner says to the node waits in the inbox for the welcome.
    async fn enter(&mut self, hello: Hello) {
        let Some(inbox) = self.inbox_sender.take() else { return };
        let node = self.session.node().clone();
        let done = CancellationToken::new();
        self.done = Some(done.clone().drop_guard());
        let before = self.shared.enter(&node, Peer { serial: self.serial, inbox, done });
        if let Some(Peer { inbox, done, .. }) = before {
            drop(inbox);
            done.cancelled().await;
        }
        let answer = self.shared.welcome.answer(&hello);
        if let Answer::Welcome { term, .. } = &answer {
            info!(%node, boot = %hello.boot, program = %hello.program, %term, "agent connected");
            self.stranger = None;
            self.pending.push_back(ListenerEvent::Connected { node, hello });
        }
        self.session.handle_input(self.clock.now(), AggregatorInput::Answer(answer));
    }

    /// Last messages out, last events out, place given up; in this order.
    async fn finish(mut self, why: Disconnect) {
        let node = self.session.node().clone();
        let code = match &why {
            Disconnect::Closed | Disconnect::Redirected(_) | Disconnect::Replaced => CODE_OK,
            Disconnect::Refused(_) => CODE_REFUSED,
            _ => CODE_PROTOCOL,
        };
        if !matches!(why, Disconnect::Lost(_) | Disconnect::Silent(_) | Disconnect::Stalled | Disconnect::Replaced) {
            self.control.flush().await;
        }
        self.connection.close(VarInt::from_u32(code), why.to_string().as_bytes());
        self.shared.leave(&node, self.serial);
        info!(%node, %why, "agent disconnected");
        // Welcomed connections alone have been told of.
        if self.stranger.is_none() {
            self.pending.push_back(ListenerEvent::Disconnected { node, why });
        }
        for event in self.pending.drain(..) {
            if self.shared.events.send(event).await.is_err() {
                return; // the owner is gone
            }
        }
    }
}

/// The one window of a stream.
async fn read_window(mut stream: RecvStream) -> Result<NodeWindow, Disconnect> {
    let broken = |problem: &dyn std::fmt::Display| Disconnect::Protocol(format!("window stream: {problem}"));
    let read = timeout(WINDOW_STREAM_MAX, stream.read_to_end(HEADER_LEN + MESSAGE_BYTES_MAX)).await;
    let bytes = match read.map_err(|_| broken(&"too slow"))? {
        Ok(bytes) => bytes,
        Err(ReadToEndError::TooLong) => return Err(broken(&"too long")),
        Err(ReadToEndError::Read(error)) => return Err(error.into()),
    };
    let mut rest = bytes.as_slice();
    let frame = FrameDecoder::new(MESSAGE_BYTES_MAX).decode(&mut rest)?;
    match frame {
        Some(content) if rest.is_empty() => EncodedWindow::decode(&content).map_err(|error| broken(&error)),
        _ => Err(broken(&"not exactly one frame")),
    }
}
