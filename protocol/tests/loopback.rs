//! Both ends over real QUIC on the loopback: who gets in, what arrives, what survives.

mod support;

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use quinn::{Connection, Endpoint, crypto::rustls::QuicClientConfig, crypto::rustls::QuicServerConfig};
use sage_common::{ActionId, BootId, Micros, NodeId, Term, Timestamp};
use sage_protocol::{
    Role,
    codec::MESSAGE_BYTES_MAX,
    frame::encode_message,
    message::{AgentStatus, Command, CommandResult, FromAgent, Hello, Order, Outcome},
    pki::{FleetCa, Validity},
    quic::{
        AgentLink, AgentLinkEvent, AggregatorListener, LinkError, ListenerConfig, ListenerEvent, WindowNotSent,
        WindowSender,
    },
    session::{AgentSessionConfig, AgentState, Answer, Disconnect, Timing},
    tls::{SERVER_NAME, TlsError, TlsMaterial},
};
use support::{Spool, Store, name, window};
use tokio::sync::mpsc::Receiver;

/// No step of these tests takes longer, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

const BOOT: BootId = BootId(42);

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

async fn next<T>(what: &str, events: &mut Receiver<T>) -> T {
    soon(what, events.recv()).await.unwrap_or_else(|| panic!("{what}: the other end is gone"))
}

#[expect(clippy::disallowed_methods, reason = "certificates are checked by the wall clock")]
fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Timestamp::from_micros(Micros::from(since).get())
}

fn this_month() -> Validity {
    Validity { not_before: now() - Micros::from_secs(3_600), days: 30 }
}

/// A fleet's authority, and certificates of it.
struct Fleet(FleetCa);

impl Fleet {
    fn new(fleet: &str) -> Self {
        Self(FleetCa::create(name(fleet), this_month()).expect("created"))
    }

    fn member(&self, role: Role, member: &str) -> TlsMaterial {
        self.member_within(role, member, this_month())
    }

    fn member_within(&self, role: Role, member: &str, validity: Validity) -> TlsMaterial {
        let issued = self.0.issue(role, &name(member), &[], validity).expect("issued");
        let (certificate, key) = (issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes());
        TlsMaterial::from_pem(self.0.certificate_pem().as_bytes(), certificate, key).expect("readable")
    }

    fn agent(&self) -> TlsMaterial {
        self.member(Role::Agent, "node-a")
    }

    fn aggregator(&self) -> TlsMaterial {
        self.member(Role::Aggregator, "aggregator-1")
    }
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn listen(tls: &TlsMaterial, address: SocketAddr, timing: Timing) -> (AggregatorListener, Receiver<ListenerEvent>) {
    let config = ListenerConfig { address, timing };
    let welcome =
        |_: &Hello| Answer::Welcome { term: Term(3), leader: "aggregator-1".to_owned(), acknowledged_below: 0 };
    AggregatorListener::bind(&config, tls, welcome).expect("listens")
}

fn agent_config(node: &str, address: SocketAddr) -> AgentSessionConfig {
    AgentSessionConfig {
        node: name(node),
        boot: BOOT,
        program: "test".to_owned(),
        addresses: vec![address.to_string()],
        timing: Timing::default(),
    }
}

fn connect(tls: &TlsMaterial, node: &str, address: SocketAddr) -> (AgentLink, Receiver<AgentLinkEvent>) {
    AgentLink::spawn(agent_config(node, address), tls, AgentState::default()).expect("starts")
}

async fn connected(events: &mut Receiver<AgentLinkEvent>) -> WindowSender {
    loop {
        match next("a welcome", events).await {
            AgentLinkEvent::Connected { windows, .. } => return windows,
            AgentLinkEvent::Term(_) => {}
            other => panic!("{other:?} before the welcome"),
        }
    }
}

async fn why_not(events: &mut Receiver<AgentLinkEvent>) -> Disconnect {
    match next("a refusal", events).await {
        AgentLinkEvent::Disconnected(why) => why,
        other => panic!("{other:?} instead of a refusal"),
    }
}

fn encoded(node: &str, seq: u64) -> sage_protocol::EncodedWindow {
    sage_protocol::EncodedWindow::new(&window(&name(node), BOOT, seq)).expect("usable")
}

#[tokio::test]
async fn windows_commands_results_and_states_cross() {
    let fleet = Fleet::new("local");
    let (listener, mut at_aggregator) = listen(&fleet.aggregator(), any_port(), Timing::default());
    let (link, mut at_agent) = connect(&fleet.agent(), "node-a", listener.local_address().expect("bound"));
    let windows = connected(&mut at_agent).await;
    let node: NodeId = name("node-a");
    let hello = next("a hello", &mut at_aggregator).await;
    assert!(matches!(hello, ListenerEvent::Connected { hello, .. } if hello.boot == BOOT && hello.node == node));
    assert_eq!(listener.connected(), std::slice::from_ref(&node));

    windows.submit(encoded("node-a", 0)).expect("room");
    let seq = loop {
        match next("a window", &mut at_aggregator).await {
            ListenerEvent::Window(window) => break window.key.seq,
            ListenerEvent::Status { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    listener.acknowledge(&node, BOOT, vec![seq]);
    let acknowledged = next("an acknowledgement", &mut at_agent).await;
    assert!(matches!(acknowledged, AgentLinkEvent::Acknowledged { boot: BOOT, sequences } if sequences == [0]));

    let command = Command { term: Term(3), action: ActionId(9), order: Order::Revoke };
    listener.command(&node, command.clone()).expect("connected");
    assert!(matches!(next("a command", &mut at_agent).await, AgentLinkEvent::Command(got) if got == command));
    let status = AgentStatus { spooled: 7, leases: 1, is_frozen: false };
    link.set_state(AgentState { status, ..AgentState::default() });
    let result = CommandResult { action: ActionId(9), outcome: Outcome::Renewed };
    link.report(result.clone()).expect("taken");
    let (mut has_result, mut has_status) = (false, false);
    while !has_result || !has_status {
        match next("a result and a state", &mut at_aggregator).await {
            ListenerEvent::Result { result: got, .. } => has_result = got == result,
            ListenerEvent::Status { status: got, .. } => has_status |= got == status,
            other => panic!("{other:?}"),
        }
    }
    listener.set_term(Term(4));
    assert!(matches!(next("a term", &mut at_agent).await, AgentLinkEvent::Term(Term(4))));

    soon("the shutdown", link.shutdown()).await;
    loop {
        match next("the end", &mut at_aggregator).await {
            ListenerEvent::Disconnected { node: gone, .. } => break assert_eq!(gone, node),
            ListenerEvent::Status { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(listener.command(&node, command).map_err(|error| error.0), Err(node));
}

#[tokio::test]
async fn only_so_many_windows_are_under_way_and_an_acknowledgement_makes_room() {
    let fleet = Fleet::new("local");
    let (listener, mut at_aggregator) = listen(&fleet.aggregator(), any_port(), Timing::default());
    let (_link, mut at_agent) = connect(&fleet.agent(), "node-a", listener.local_address().expect("bound"));
    let windows = connected(&mut at_agent).await;
    for seq in 1..=8 {
        windows.submit(encoded("node-a", seq)).expect("there is room for the first");
        while !matches!(next("a window", &mut at_aggregator).await, ListenerEvent::Window(_)) {}
    }
    // Eight are with the aggregator, so the link takes no more out of its queue of eight.
    (9..=16).for_each(|seq| windows.submit(encoded("node-a", seq)).expect("room in the queue"));
    assert_eq!(windows.submit(encoded("node-a", 17)), Err(WindowNotSent::Full));
    listener.acknowledge(&name("node-a"), BOOT, vec![1, 2, 3]);
    assert!(matches!(next("an acknowledgement", &mut at_agent).await, AgentLinkEvent::Acknowledged { .. }));
    while !matches!(next("the ninth", &mut at_aggregator).await, ListenerEvent::Window(w) if w.key.seq == 9) {}
    windows.submit(encoded("node-a", 17)).expect("room again");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_by_both_sides() {
    let (ours, theirs) = (Fleet::new("local"), Fleet::new("local"));
    let (listener, _at_aggregator) = listen(&ours.aggregator(), any_port(), Timing::default());
    let (_link, mut at_agent) = connect(&theirs.agent(), "node-a", listener.local_address().expect("bound"));
    let why = why_not(&mut at_agent).await.to_string();
    assert!(why.contains("the peer's certificate or TLS is not acceptable"), "{why}");

    // One that trusts us, but is not trusted by us.
    let spy = theirs.0.issue(Role::Agent, &name("node-a"), &[], this_month()).expect("issued");
    let spy = TlsMaterial::from_pem(
        ours.0.certificate_pem().as_bytes(),
        spy.certificate_pem.as_bytes(),
        spy.key_pem.as_bytes(),
    );
    let (_link, mut at_agent) = connect(&spy.expect("readable"), "node-a", listener.local_address().expect("bound"));
    let why = why_not(&mut at_agent).await.to_string();
    assert!(why.contains("the peer does not accept our certificate"), "{why}");
    assert_eq!(listener.connected(), []);
}

#[tokio::test]
async fn an_agent_cannot_speak_for_another_node() {
    let fleet = Fleet::new("local");
    let (listener, _at_aggregator) = listen(&fleet.aggregator(), any_port(), Timing::default());
    let (_link, mut at_agent) = connect(&fleet.agent(), "node-b", listener.local_address().expect("bound"));
    let why = why_not(&mut at_agent).await;
    let reason = "the hello is of node node-b, the certificate of node node-a";
    assert_eq!(why, Disconnect::Refused(reason.to_owned()));
    assert_eq!(listener.connected(), []);
}

#[tokio::test]
async fn an_agents_certificate_does_not_make_an_aggregator() {
    let fleet = Fleet::new("local");
    let config = ListenerConfig { address: any_port(), timing: Timing::default() };
    let refused = AggregatorListener::bind(&config, &fleet.agent(), |_: &Hello| Answer::Redirect(None));
    assert!(matches!(refused, Err(LinkError::Tls(TlsError::Identity(_)))));

    // A rogue that does not check itself.
    let crypto = QuicServerConfig::try_from(fleet.agent().server_config().expect("a key")).expect("TLS 1.3");
    let rogue = Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), any_port()).expect("listens");
    let address = rogue.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Some(incoming) = rogue.accept().await {
            tokio::spawn(incoming.into_future());
        }
    });
    let (_link, mut at_agent) = connect(&fleet.agent(), "node-a", address);
    let why = why_not(&mut at_agent).await.to_string();
    assert!(why.contains("the peer's certificate or TLS is not acceptable"), "{why}");
}

#[tokio::test]
async fn an_aggregators_certificate_does_not_make_an_agent() {
    let fleet = Fleet::new("local");
    let (listener, _at_aggregator) = listen(&fleet.aggregator(), any_port(), Timing::default());
    let address = listener.local_address().expect("bound");
    let (_endpoint, connection) = dial(&fleet.member(Role::Aggregator, "aggregator-2"), address).await;
    let closed = soon("the refusal", connection.closed()).await.to_string();
    assert!(closed.contains("spiffe://local/aggregator/aggregator-2 is not an agent"), "{closed}");

    let spawned = AgentLink::spawn(agent_config("node-a", address), &fleet.aggregator(), AgentState::default());
    assert!(matches!(spawned, Err(LinkError::Tls(TlsError::Identity(_)))));
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_that_reason() {
    let fleet = Fleet::new("local");
    let (listener, _at_aggregator) = listen(&fleet.aggregator(), any_port(), Timing::default());
    let last_year = Validity { not_before: now() - Micros::from_secs(365 * 86_400), days: 30 };
    let expired = fleet.member_within(Role::Agent, "node-a", last_year);
    let address = listener.local_address().expect("bound");
    let spawned = AgentLink::spawn(agent_config("node-a", address), &expired, AgentState::default());
    assert!(matches!(spawned, Err(LinkError::Tls(TlsError::Expired { .. }))));

    // One that does not check itself: the handshake's end, as the client sees it, comes before the server's verdict.
    let (_endpoint, connection) = dial(&expired, address).await;
    let quinn::ConnectionError::ConnectionClosed(close) = soon("the refusal", connection.closed()).await else {
        panic!("not refused by TLS");
    };
    assert_eq!(u64::from(close.error_code), 0x100 + 45, "certificate_expired");
}

/// A client of quinn's own, free to misbehave.
async fn dial(tls: &TlsMaterial, address: SocketAddr) -> (Endpoint, Connection) {
    let crypto = QuicClientConfig::try_from(tls.client_config().expect("a key")).expect("TLS 1.3");
    let mut endpoint = Endpoint::client(any_port()).expect("binds");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let connecting = endpoint.connect(address, SERVER_NAME).expect("a valid name");
    let connection = soon("the handshake", connecting).await.expect("the server is trusted");
    (endpoint, connection)
}

async fn greet(connection: &Connection, node: &str) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut send, recv) = connection.open_bi().await.expect("one control stream is allowed");
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        node: name(node),
        boot: BOOT,
        program: "hostile".to_owned(),
        term: Term(0),
        held: vec![],
    };
    send.write_all(&encode_message(&FromAgent::Hello(hello)).expect("short")).await.expect("room");
    (send, recv)
}

#[tokio::test]
async fn hostile_streams_cost_their_sender_the_connection_and_nobody_else() {
    let fleet = Fleet::new("local");
    let timing = Timing { greeting_max: Micros::from_millis(300), ..Timing::default() };
    let (listener, mut at_aggregator) = listen(&fleet.aggregator(), any_port(), timing);
    let address = listener.local_address().expect("bound");
    let hostile = fleet.member(Role::Agent, "node-z");

    let oversize = vec![0; MESSAGE_BYTES_MAX + 100];
    let header_only = u32::MAX.to_le_bytes();
    let two_frames = [1, 0, 0, 0, 9, 1, 0, 0, 0, 9];
    let no_window = [3, 0, 0, 0, 1, 2, 3];
    for (bytes, reason) in [
        (oversize.as_slice(), "window stream: too long"),
        (&header_only, "frame of 4294967295 bytes is longer"),
        (&two_frames, "window stream: not exactly one frame"),
        (&no_window, "window stream: not a valid WindowMessage"),
        (&[], "window stream: not exactly one frame"),
    ] {
        let (_endpoint, connection) = dial(&hostile, address).await;
        let (_send, mut recv) = greet(&connection, "node-z").await;
        soon("the welcome", recv.read_chunk(100, true)).await.expect("welcomed").expect("a frame");
        let mut stream = connection.open_uni().await.expect("allowed");
        // The peer may hang up before all is written.
        let _ = stream.write_all(bytes).await;
        let _ = stream.finish();
        let closed = soon("the end", connection.closed()).await.to_string();
        assert!(closed.contains(reason), "{closed}");
    }

    // Silence instead of a hello, then garbage instead of one.
    let (_endpoint, silent) = dial(&hostile, address).await;
    let (mut send, _recv) = silent.open_bi().await.expect("allowed");
    send.write_all(&[0]).await.expect("room");
    let closed = soon("the end", silent.closed()).await.to_string();
    assert!(closed.contains("no greeting within 300.0ms"), "{closed}");
    let (_endpoint, garbled) = dial(&hostile, address).await;
    let (mut send, _recv) = garbled.open_bi().await.expect("allowed");
    send.write_all(&[0xff; 64]).await.expect("room");
    let closed = soon("the end", garbled.closed()).await.to_string();
    assert!(closed.contains("peer broke the protocol"), "{closed}");

    // The honest one is served as ever.
    let (_link, mut at_agent) = connect(&fleet.agent(), "node-a", address);
    let windows = connected(&mut at_agent).await;
    windows.submit(encoded("node-a", 0)).expect("room");
    while !matches!(next("a window", &mut at_aggregator).await, ListenerEvent::Window(w) if w.key.node == name("node-a"))
    {
    }
}

#[tokio::test]
async fn a_crowd_of_strangers_keeps_nobody_out() {
    let fleet = Fleet::new("local");
    let (listener, _at_aggregator) = listen(&fleet.aggregator(), any_port(), Timing::default());
    let address = listener.local_address().expect("bound");
    let stranger = fleet.member(Role::Agent, "node-z");
    let mut crowd = Vec::new();
    // From the 65th on each has to prove its address first.
    for _ in 0..80 {
        crowd.push(dial(&stranger, address).await);
    }
    let (_link, mut at_agent) = connect(&fleet.agent(), "node-a", address);
    connected(&mut at_agent).await;
    assert_eq!(listener.connected(), [name("node-a")], "no stranger has said a hello");
}

#[tokio::test]
async fn a_newer_connection_of_a_node_replaces_the_older_one_in_order() {
    let fleet = Fleet::new("local");
    let (listener, mut at_aggregator) = listen(&fleet.aggregator(), any_port(), Timing::default());
    let address = listener.local_address().expect("bound");
    let mut links = VecDeque::new();
    for _ in 0..3 {
        let (link, mut at_agent) = connect(&fleet.agent(), "node-a", address);
        let windows = connected(&mut at_agent).await;
        links.push_back((link, at_agent, windows));
        if links.len() > 1 {
            let (link, mut at_agent, _) = links.pop_front().expect("two");
            assert!(matches!(why_not(&mut at_agent).await, Disconnect::Lost(why) if why.contains("replaced")));
            link.shutdown().await;
        }
    }
    let mut is_connected = false;
    for _ in 0..5 {
        match next("connections and ends in turn", &mut at_aggregator).await {
            ListenerEvent::Connected { .. } => assert!(!std::mem::replace(&mut is_connected, true)),
            ListenerEvent::Disconnected { .. } => assert!(std::mem::replace(&mut is_connected, false)),
            ListenerEvent::Status { .. } => assert!(is_connected),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(listener.connected(), [name("node-a")]);
}

#[tokio::test]
async fn a_follower_sends_agents_to_the_leader() {
    let fleet = Fleet::new("local");
    let (leader, mut at_leader) = listen(&fleet.aggregator(), any_port(), Timing::default());
    let there = leader.local_address().expect("bound").to_string();
    let config = ListenerConfig { address: any_port(), timing: Timing::default() };
    let (follower, _at_follower) =
        AggregatorListener::bind(&config, &fleet.member(Role::Aggregator, "aggregator-2"), move |_: &Hello| {
            Answer::Redirect(Some(there.clone()))
        })
        .expect("listens");
    let (_link, mut at_agent) = connect(&fleet.agent(), "node-a", follower.local_address().expect("bound"));
    assert!(matches!(why_not(&mut at_agent).await, Disconnect::Redirected(Some(_))));
    connected(&mut at_agent).await;
    assert!(matches!(next("a hello", &mut at_leader).await, ListenerEvent::Connected { .. }));
    assert_eq!(follower.connected(), []);
}

/// What an aggregator's owner does, on a runtime of its own that can be killed: commit, then acknowledge. A few times
/// it does not acknowledge, as if a crash came between the two.
fn aggregator_process(
    tls: TlsMaterial,
    address: SocketAddr,
    store: &Arc<Mutex<Store>>,
) -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let committed = Arc::clone(store);
    let bound = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let config = ListenerConfig { address, timing: Timing::default() };
        // It does not say how far it had come, so that what is committed and not acknowledged comes again.
        let welcome =
            |_: &Hello| Answer::Welcome { term: Term(3), leader: "aggregator-1".to_owned(), acknowledged_below: 0 };
        let (listener, mut events) = AggregatorListener::bind(&config, &tls, welcome).expect("listens");
        bound.0.send(listener.local_address().expect("bound")).expect("awaited");
        let mut taken = 0_u32;
        while let Some(event) = events.recv().await {
            if let ListenerEvent::Window(window) = event {
                committed.lock().expect("not poisoned").apply(&window);
                taken += 1;
                if !taken.is_multiple_of(3) || taken > 15 {
                    listener.acknowledge(&window.key.node, window.key.boot, vec![window.key.seq]);
                }
            }
        }
    });
    let address = bound.1.recv_timeout(PATIENCE).expect("listens");
    (runtime, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_killed_aggregator_every_window_arrives_and_counts_once() {
    const WINDOWS: u64 = 40;
    let fleet = Fleet::new("local");
    let issued = fleet.0.issue(Role::Aggregator, &name("aggregator-1"), &[], this_month()).expect("issued");
    let tls = || {
        let authority = fleet.0.certificate_pem().as_bytes();
        TlsMaterial::from_pem(authority, issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())
            .expect("readable")
    };
    let store = Arc::new(Mutex::new(Store::default()));
    let (process, address) = aggregator_process(tls(), any_port(), &store);
    let mut process = Some(process);
    let timing = Timing { acknowledgement_max: Micros::from_secs(2), ..Timing::default() };
    let config = AgentSessionConfig { timing, ..agent_config("node-a", address) };
    let (_link, mut events) = AgentLink::spawn(config, &fleet.agent(), AgentState::default()).expect("starts");
    let mut spool = Spool::default();
    (0..WINDOWS).for_each(|seq| spool.push(&window(&name("node-a"), BOOT, seq)));
    let mut sender: Option<WindowSender> = None;
    let mut kills = 0;
    let mut reasons = Vec::new();
    while !spool.is_empty() {
        match next("progress", &mut events).await {
            AgentLinkEvent::Connected { acknowledged_below, windows, .. } => {
                spool.connected(BOOT, acknowledged_below);
                sender = Some(windows);
            }
            AgentLinkEvent::Acknowledged { boot, sequences } => {
                for (boot, seq) in spool.acknowledged(boot, &sequences) {
                    let key = window(&name("node-a"), boot, seq).key;
                    assert!(store.lock().expect("not poisoned").contains(&key), "acknowledged, so committed");
                }
            }
            AgentLinkEvent::Disconnected(why) => {
                reasons.push(why.to_string());
                sender = None;
            }
            AgentLinkEvent::Term(_) => {}
            other => panic!("{other:?}"),
        }
        let len = store.lock().expect("not poisoned").len();
        if kills < 2 && len >= 10 * (kills + 1) {
            // No goodbye: its tasks and its socket are gone from one moment to the next.
            process.take().expect("alive").shutdown_background();
            kills += 1;
            process = Some(restart(tls(), address, &store).await);
        }
        while let Some(windows) = &sender
            && let Some(window) = spool.next()
            && windows.submit(window.clone()).is_ok()
        {
            spool.submitted(&window);
        }
    }
    let store = store.lock().expect("not poisoned");
    assert_eq!(store.len() as u64, WINDOWS);
    assert_eq!(store.spans, (1..=WINDOWS).sum::<u64>());
    assert!(store.arrivals as u64 > WINDOWS, "some came again");
    let restarts = reasons.iter().filter(|why| why.contains("the peer has restarted")).count();
    assert_eq!((kills, restarts), (2, 2), "an agent hears of a restart at once, not by silence: {reasons:?}");
    process.take().expect("alive").shutdown_background();
}

/// The port is free once the killed process's socket is closed.
async fn restart(tls: TlsMaterial, address: SocketAddr, store: &Arc<Mutex<Store>>) -> tokio::runtime::Runtime {
    let is_free = async {
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the old socket's end", is_free).await;
    aggregator_process(tls, address, store).0
}
