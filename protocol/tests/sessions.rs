//! Both sessions over a simulated network with a seed: loss, duplication, reordering, silence, restarts of either side.
//! Whatever happens, an acknowledged window is in the store, and every window counts once.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use sage_common::{ActionId, BootId, Micros, NodeId, NodeWindow, Term};
use sage_protocol::{
    EncodedWindow,
    message::{Command, CommandResult, FromAgent, FromAggregator, Order, Outcome, Welcome},
    session::{
        AgentEvent, AgentInput, AgentOutput, AgentSession, AgentSessionConfig, AgentState, AggregatorInput,
        AggregatorOutput, AggregatorSession, Answer, Disconnect, RESULTS_MAX, Timing, WINDOWS_IN_FLIGHT_MAX,
    },
};
use support::{Spool, Store, name, window};

type Instant = u64; // microseconds
type ConnectionId = u64;

const CHAOS: Instant = 120_000_000;
const CALM: Instant = 60_000_000;

enum Event {
    Dialled(ConnectionId),
    ToAgent(ConnectionId, FromAggregator),
    ToAggregator(ConnectionId, FromAgent),
    Window(ConnectionId, Box<NodeWindow>),
    LostAtAgent(ConnectionId),
    LostAtAggregator(ConnectionId),
    Commit { life: u64, window: Box<NodeWindow> },
    Produce,
    RestartAgent,
    StopAggregator,
    StartAggregator,
    BreakConnection,
}

/// One agent, one aggregator, the network between them, and their owners.
struct World {
    now: Instant,
    draw: SmallRng,
    events: BTreeMap<(Instant, u64), Event>,
    events_made: u64,
    // The agent's machine.
    node: NodeId,
    agent: AgentSession,
    boot: BootId,
    next_seq: u64,
    connection: Option<ConnectionId>,
    in_flight: BTreeSet<(BootId, u64)>,
    spool: Spool,
    term_durable: Term,
    spans_made: u64,
    windows_made: usize,
    // The network.
    connections: BTreeMap<ConnectionId, Connection>,
    connections_made: u64,
    // The aggregator's machine.
    is_aggregator_up: bool,
    /// Counts restarts; what an earlier life had not committed is gone.
    life: u64,
    store: Store,
    disconnects: usize,
}

struct Connection {
    aggregator: AggregatorSession,
    /// Whether the network carries anything.
    is_up: bool,
    /// Whether the aggregator's session has ended. It may live on for a while when the network does not.
    is_over: bool,
    is_welcomed: bool,
    /// A control stream keeps its order: nothing arrives before what was sent earlier.
    to_agent_at: Instant,
    to_aggregator_at: Instant,
}

fn config(node: &NodeId, boot: BootId) -> AgentSessionConfig {
    AgentSessionConfig {
        node: node.clone(),
        boot,
        program: "test".to_owned(),
        addresses: vec!["one:1".to_owned(), "two:2".to_owned()],
        timing: Timing::default(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let (node, boot) = (name("node-a"), BootId(1));
        let mut world = Self {
            now: 0,
            draw: SmallRng::seed_from_u64(seed),
            events: BTreeMap::new(),
            events_made: 0,
            agent: AgentSession::new(config(&node, boot), AgentState::default(), Micros::ZERO),
            node,
            boot,
            next_seq: 0,
            connection: None,
            in_flight: BTreeSet::new(),
            spool: Spool::default(),
            term_durable: Term(0),
            spans_made: 0,
            windows_made: 0,
            connections: BTreeMap::new(),
            connections_made: 0,
            is_aggregator_up: true,
            life: 1,
            store: Store::default(),
            disconnects: 0,
        };
        world.at(1_000_000, Event::Produce);
        for _ in 0..4 {
            let (agent, aggregator, cut) = (world.some_time(), world.some_time(), world.some_time());
            let down = world.draw.random_range(1..8_000_000);
            world.at(agent, Event::RestartAgent);
            world.at(aggregator, Event::StopAggregator);
            world.at(aggregator + down, Event::StartAggregator);
            world.at(cut, Event::BreakConnection);
        }
        world
    }

    fn some_time(&mut self) -> Instant {
        self.draw.random_range(0..CHAOS)
    }

    fn at(&mut self, time: Instant, event: Event) {
        self.events_made += 1;
        self.events.insert((time, self.events_made), event);
    }

    fn is_chaos(&self) -> bool {
        self.now < CHAOS
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.is_chaos() && self.draw.random_bool(probability)
    }

    fn delay(&mut self) -> Instant {
        self.draw.random_range(100..if self.is_chaos() { 400_000 } else { 5_000 })
    }

    fn run(&mut self) {
        while self.now < CHAOS + CALM {
            self.drain();
            let timers = self.connections.values().filter(|c| !c.is_over).map(|c| c.aggregator.poll_timeout());
            let timer = timers.chain([self.agent.poll_timeout()]).flatten().min().map(Micros::get);
            let event = self.events.first_key_value().map(|((time, _), _)| *time);
            self.now = [timer, event].into_iter().flatten().min().expect("heartbeats go on").max(self.now);
            if event == Some(self.now) {
                let (_, event) = self.events.pop_first().expect("just seen");
                self.happen(event);
            } else {
                let now = Micros::new(self.now);
                self.agent.handle_timeout(now);
                for connection in self.connections.values_mut().filter(|connection| !connection.is_over) {
                    connection.aggregator.handle_timeout(now);
                }
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let now = Micros::new(self.now);
        match event {
            Event::Dialled(id) if self.connection == Some(id) => {
                let is_open = self.is_aggregator_up && self.connections[&id].is_up;
                let nobody = AgentInput::Closed(Disconnect::Unreachable("nobody there".to_owned()));
                self.agent.handle_input(now, if is_open { AgentInput::Opened } else { nobody });
            }
            Event::ToAgent(id, message) if self.connection == Some(id) && self.connections[&id].is_up => {
                self.agent.handle_input(now, AgentInput::Message(message));
            }
            Event::LostAtAgent(id) if self.connection == Some(id) => {
                self.agent.handle_input(now, AgentInput::Closed(Disconnect::Lost("cut".to_owned())));
            }
            Event::ToAggregator(id, message) if self.connections[&id].is_up => {
                self.tell_aggregator(id, AggregatorInput::Message(message));
            }
            Event::Window(id, window) if self.connections[&id].is_up => {
                self.tell_aggregator(id, AggregatorInput::Window(window));
            }
            Event::LostAtAggregator(id) => {
                self.tell_aggregator(id, AggregatorInput::Close(Disconnect::Lost("cut".to_owned())));
            }
            Event::Commit { life, window } if life == self.life && self.is_aggregator_up => self.commit(&window),
            Event::Produce => self.produce(),
            Event::RestartAgent => self.restart_agent(),
            Event::StopAggregator => self.stop_aggregator(),
            Event::StartAggregator if !self.is_aggregator_up => {
                self.is_aggregator_up = true;
                self.life += 1;
            }
            Event::BreakConnection => {
                if let Some(id) = self.connection {
                    self.cut(id);
                }
            }
            _ => {}
        }
    }

    fn produce(&mut self) {
        let window = window(&self.node, self.boot, self.next_seq);
        self.next_seq += 1;
        self.spans_made += window.intake.spans;
        self.windows_made += 1;
        self.spool.push(&window);
        self.submit();
        if self.is_chaos() {
            let pause = self.draw.random_range(10_000..1_000_000);
            self.at(self.now + pause, Event::Produce);
        }
    }

    /// As an owner does: whatever there is room for.
    fn submit(&mut self) {
        while self.agent.window_room() > 0
            && let Some(window) = self.spool.next()
        {
            self.spool.submitted(&window);
            self.agent.handle_input(Micros::new(self.now), AgentInput::Window(window));
            self.drain_agent();
        }
    }

    fn restart_agent(&mut self) {
        if let Some(id) = self.connection.take() {
            self.cut(id);
        }
        self.in_flight.clear();
        self.boot = BootId(self.boot.0 + 1);
        self.next_seq = 0;
        let state = AgentState { term: self.term_durable, ..AgentState::default() };
        self.agent = AgentSession::new(config(&self.node, self.boot), state, Micros::new(self.now));
    }

    fn stop_aggregator(&mut self) {
        self.is_aggregator_up = false;
        let up: Vec<_> = self.connections.iter().filter(|(_, c)| c.is_up).map(|(id, _)| *id).collect();
        for id in up {
            self.cut(id);
        }
        self.connections.values_mut().for_each(|connection| connection.is_over = true);
    }

    /// The network drops `id`. Each side hears of it later, or has to notice the silence.
    fn cut(&mut self, id: ConnectionId) {
        self.connections.get_mut(&id).expect("made").is_up = false;
        for lost in [Event::LostAtAgent(id), Event::LostAtAggregator(id)] {
            if self.draw.random_bool(0.5) {
                let later = self.now + self.delay();
                self.at(later, lost);
            }
        }
    }

    fn commit(&mut self, window: &NodeWindow) {
        self.store.apply(window);
        let boot = window.key.boot;
        let current = self.connections.iter_mut().rev().find(|(_, c)| !c.is_over && c.is_welcomed);
        if let Some((_, connection)) = current {
            let sequences = vec![window.key.seq];
            connection.aggregator.handle_input(Micros::new(self.now), AggregatorInput::Acknowledge { boot, sequences });
        }
    }

    fn tell_aggregator(&mut self, id: ConnectionId, input: AggregatorInput) {
        let connection = self.connections.get_mut(&id).expect("made");
        if self.is_aggregator_up && !connection.is_over {
            connection.aggregator.handle_input(Micros::new(self.now), input);
        }
    }

    fn drain(&mut self) {
        self.drain_agent();
        self.submit();
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            while let Some(output) = self.connections.get_mut(&id).expect("made").aggregator.poll_output() {
                self.perform_aggregator(id, output);
            }
        }
    }

    fn drain_agent(&mut self) {
        while let Some(output) = self.agent.poll_output() {
            match output {
                AgentOutput::Connect(_) => self.dial(),
                AgentOutput::Send(message) => {
                    self.carry(|c| &mut c.to_aggregator_at, |id| Event::ToAggregator(id, message));
                }
                AgentOutput::SendWindow(window) => self.carry_window(&window),
                AgentOutput::Close(_) => {
                    if let Some(id) = self.connection.take() {
                        self.cut(id);
                    }
                }
                AgentOutput::Event(event) => self.tell_owner(event),
            }
        }
    }

    fn dial(&mut self) {
        self.connections_made += 1;
        let id = self.connections_made;
        let connection = Connection {
            aggregator: AggregatorSession::new(self.node.clone(), Timing::default(), Micros::new(self.now)),
            is_up: true,
            is_over: false,
            is_welcomed: false,
            to_agent_at: 0,
            to_aggregator_at: 0,
        };
        self.connections.insert(id, connection);
        self.connection = Some(id);
        if !self.chance(0.1) {
            let later = self.now + self.delay();
            self.at(later, Event::Dialled(id));
        }
    }

    /// Puts a control message of the agent's connection on its way, behind all earlier ones. Losing one is losing the
    /// connection.
    fn carry(&mut self, last: fn(&mut Connection) -> &mut Instant, event: impl FnOnce(ConnectionId) -> Event) {
        let Some(id) = self.connection else { return };
        self.carry_on(id, last, event);
    }

    fn carry_on(
        &mut self,
        id: ConnectionId,
        last: fn(&mut Connection) -> &mut Instant,
        event: impl FnOnce(ConnectionId) -> Event,
    ) {
        if !self.connections[&id].is_up {
            return;
        }
        if self.chance(0.003) {
            return self.cut(id);
        }
        let arrival = self.now + self.delay();
        let last = last(self.connections.get_mut(&id).expect("made"));
        *last = arrival.max(*last);
        let arrival = *last;
        self.at(arrival, event(id));
    }

    /// Window streams overtake each other, and are made to vanish and to come twice.
    fn carry_window(&mut self, window: &EncodedWindow) {
        let key = (window.key().boot, window.key().seq);
        assert!(self.in_flight.insert(key), "a window is sent once on a connection");
        assert!(self.in_flight.len() <= WINDOWS_IN_FLIGHT_MAX);
        let Some(id) = self.connection else { return };
        let copies = if self.chance(0.02) { 0 } else { 1 + u8::from(self.chance(0.1)) };
        for _ in 0..copies {
            let arrival = self.now + self.delay();
            let window = EncodedWindow::decode(window.bytes()).expect("just encoded");
            self.at(arrival, Event::Window(id, Box::new(window)));
        }
    }

    fn tell_owner(&mut self, event: AgentEvent) {
        let forgotten = match event {
            AgentEvent::Connected { term, acknowledged_below, .. } => {
                assert_eq!(term, Term(self.life), "only the living lead");
                self.spool.connected(self.boot, acknowledged_below)
            }
            AgentEvent::Acknowledged { boot, sequences } => {
                for sequence in &sequences {
                    self.in_flight.remove(&(boot, *sequence));
                }
                self.spool.acknowledged(boot, &sequences)
            }
            AgentEvent::Disconnected(_) => {
                self.disconnects += 1;
                self.in_flight.clear();
                vec![]
            }
            AgentEvent::Term(term) => {
                assert!(term > self.term_durable, "terms only rise");
                self.term_durable = term;
                vec![]
            }
            AgentEvent::Rejected { reason, .. } => panic!("every window is in order, but {reason}"),
            AgentEvent::Command(command) => panic!("nobody commands: {command:?}"),
        };
        for (boot, seq) in forgotten {
            let key = window(&self.node, boot, seq).key;
            assert!(self.store.contains(&key), "{key:?} was acknowledged but is not in the store");
        }
    }

    fn perform_aggregator(&mut self, id: ConnectionId, output: AggregatorOutput) {
        match output {
            AggregatorOutput::Send(message) => {
                self.carry_on(id, |c| &mut c.to_agent_at, |id| Event::ToAgent(id, message));
            }
            AggregatorOutput::Hello(hello) => {
                let acknowledged_below = self.store.below(&self.node, hello.boot);
                let answer =
                    Answer::Welcome { term: Term(self.life), leader: "aggregator-1".to_owned(), acknowledged_below };
                self.connections.get_mut(&id).expect("made").is_welcomed = true;
                self.tell_aggregator(id, AggregatorInput::Answer(answer));
            }
            AggregatorOutput::Window(window) => {
                let later = self.now + self.delay();
                self.at(later, Event::Commit { life: self.life, window });
            }
            AggregatorOutput::Close(_) => {
                self.connections.get_mut(&id).expect("made").is_over = true;
                self.cut(id);
            }
            AggregatorOutput::Rejected(problem) => panic!("every window is in order, but {problem}"),
            AggregatorOutput::Result(_) | AggregatorOutput::Status(_) => {}
        }
    }
}

#[test]
fn acknowledged_windows_count_once_whatever_the_network_and_restarts_do() {
    let (mut again, mut disconnects) = (0, 0);
    for seed in 0..60 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        world.run();
        assert!(world.windows_made > 100, "seed {seed}: {} windows", world.windows_made);
        assert!(world.spool.is_empty(), "seed {seed}: a minute of calm acknowledges everything");
        assert_eq!(world.store.len(), world.windows_made, "seed {seed}");
        assert_eq!(world.store.spans, world.spans_made, "seed {seed}");
        again += world.store.arrivals - world.windows_made;
        disconnects += world.disconnects;
    }
    assert!(again > 500 && disconnects > 500, "the network was too kind: {again} repeats, {disconnects} disconnects");
}

fn secs(secs: u64) -> Micros {
    Micros::from_secs(secs)
}

fn agent() -> AgentSession {
    AgentSession::new(
        config(&name("node-a"), BootId(1)),
        AgentState { term: Term(5), ..AgentState::default() },
        secs(0),
    )
}

fn outputs(session: &mut AgentSession) -> Vec<AgentOutput> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

fn welcome(term: u64) -> AgentInput {
    let leader = "aggregator-1".to_owned();
    AgentInput::Message(FromAggregator::Welcome(Welcome {
        version: 1,
        term: Term(term),
        leader,
        acknowledged_below: 0,
    }))
}

/// An agent that is welcomed at second 0.
fn connected_agent() -> AgentSession {
    let mut session = agent();
    session.handle_input(secs(0), AgentInput::Opened);
    session.handle_input(secs(0), welcome(5));
    outputs(&mut session);
    session
}

fn disconnect(outputs: &[AgentOutput]) -> Option<&Disconnect> {
    outputs.iter().find_map(|output| match output {
        AgentOutput::Event(AgentEvent::Disconnected(why)) => Some(why),
        _ => None,
    })
}

#[test]
fn an_agent_hangs_up_on_a_leader_of_an_older_term() {
    let stale = Disconnect::StaleTerm { told: Term(4), seen: Term(5) };
    let mut session = agent();
    session.handle_input(secs(0), AgentInput::Opened);
    session.handle_input(secs(0), welcome(4));
    assert_eq!(disconnect(&outputs(&mut session)), Some(&stale));

    let mut session = connected_agent();
    session.handle_input(secs(0), AgentInput::Message(FromAggregator::Heartbeat(Term(4))));
    assert_eq!(disconnect(&outputs(&mut session)), Some(&stale));
    assert_eq!(session.term(), Term(5));
}

#[test]
fn a_higher_term_is_told_before_the_command_that_brought_it() {
    let mut session = connected_agent();
    let command = Command { term: Term(6), action: ActionId(1), order: Order::Freeze };
    session.handle_input(secs(0), AgentInput::Message(FromAggregator::Command(command.clone())));
    assert_eq!(
        outputs(&mut session),
        [AgentOutput::Event(AgentEvent::Term(Term(6))), AgentOutput::Event(AgentEvent::Command(command))]
    );
}

#[test]
fn a_command_of_an_older_term_is_handed_on_to_be_refused() {
    let mut session = connected_agent();
    let command = Command { term: Term(4), action: ActionId(1), order: Order::Freeze };
    session.handle_input(secs(0), AgentInput::Message(FromAggregator::Command(command.clone())));
    assert_eq!(outputs(&mut session), [AgentOutput::Event(AgentEvent::Command(command))]);
    assert_eq!(session.term(), Term(5));
}

#[test]
fn a_redirect_is_followed_at_once_but_not_in_circles() {
    let mut session = agent();
    outputs(&mut session);
    let mut dialled = 0;
    for _ in 0..20 {
        session.handle_input(secs(0), AgentInput::Opened);
        session.handle_input(secs(0), AgentInput::Message(FromAggregator::Redirect(Some("three:3".to_owned()))));
        session.handle_timeout(secs(0));
        if outputs(&mut session).contains(&AgentOutput::Connect("three:3".to_owned())) {
            dialled += 1;
        } else {
            break;
        }
    }
    assert_eq!(dialled, 5);
    assert!(session.poll_timeout().expect("it tries again") > secs(0), "after a pause");
}

#[test]
fn every_address_is_tried_in_turn() {
    let mut session = agent();
    let mut dialled = Vec::new();
    let mut now = secs(0);
    while dialled.len() < 4 {
        for output in outputs(&mut session) {
            if let AgentOutput::Connect(address) = output {
                dialled.push(address);
                session.handle_input(now, AgentInput::Closed(Disconnect::Unreachable("nobody there".to_owned())));
            }
        }
        now = session.poll_timeout().expect("it goes on");
        session.handle_timeout(now);
    }
    assert_eq!(dialled, ["one:1", "two:2", "one:1", "two:2"]);
}

#[test]
fn an_aggregator_that_never_acknowledges_is_left() {
    let mut session = connected_agent();
    let window = EncodedWindow::new(&window(&name("node-a"), BootId(1), 0)).expect("usable");
    session.handle_input(secs(0), AgentInput::Window(window));
    for second in 1..10 {
        session.handle_input(secs(second), AgentInput::Message(FromAggregator::Heartbeat(Term(5))));
        session.handle_timeout(secs(second));
        assert_eq!(disconnect(&outputs(&mut session)), None, "second {second}");
    }
    session.handle_timeout(secs(10));
    assert_eq!(disconnect(&outputs(&mut session)), Some(&Disconnect::Unacknowledged(secs(10))));
}

#[test]
fn an_agent_leaves_a_silent_aggregator_and_one_that_does_not_greet() {
    let mut session = connected_agent();
    session.handle_timeout(secs(8));
    assert_eq!(disconnect(&outputs(&mut session)), Some(&Disconnect::Silent(secs(8))));

    let mut session = agent();
    session.handle_input(secs(1), AgentInput::Opened);
    session.handle_timeout(secs(5));
    assert_eq!(disconnect(&outputs(&mut session)), Some(&Disconnect::NoGreeting(secs(5))));
}

#[test]
fn results_wait_for_the_next_connection_and_the_oldest_go_first() {
    let mut session = agent();
    let result = |action| CommandResult { action: ActionId(action), outcome: Outcome::Renewed };
    for action in 0..=RESULTS_MAX as u64 {
        session.handle_input(secs(0), AgentInput::Result(result(action)));
    }
    session.handle_input(secs(0), AgentInput::Opened);
    session.handle_input(secs(0), welcome(5));
    let sent: Vec<_> = outputs(&mut session)
        .into_iter()
        .filter_map(|output| match output {
            AgentOutput::Send(FromAgent::Result(result)) => Some(result.action.0),
            _ => None,
        })
        .collect();
    assert_eq!(sent, (1..=RESULTS_MAX as u64).collect::<Vec<_>>());
}

fn aggregator() -> AggregatorSession {
    AggregatorSession::new(name("node-a"), Timing::default(), secs(0))
}

fn said(session: &mut AggregatorSession) -> Vec<AggregatorOutput> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

fn hello(node: &str, versions: (u16, u16)) -> AggregatorInput {
    AggregatorInput::Message(FromAgent::Hello(sage_protocol::message::Hello {
        version_min: versions.0,
        version_max: versions.1,
        node: name(node),
        boot: BootId(1),
        program: "test".to_owned(),
        term: Term(0),
        held: vec![],
    }))
}

fn welcomed_aggregator() -> AggregatorSession {
    let mut session = aggregator();
    session.handle_input(secs(0), hello("node-a", (1, 1)));
    let answer = Answer::Welcome { term: Term(1), leader: "a".to_owned(), acknowledged_below: 0 };
    session.handle_input(secs(0), AggregatorInput::Answer(answer));
    said(&mut session);
    session
}

#[test]
fn a_hello_of_another_node_or_of_another_version_is_refused_with_the_reason() {
    for (input, reason) in [
        (hello("node-b", (1, 1)), "the hello is of node node-b, the certificate of node node-a"),
        (hello("node-a", (2, 9)), "we speak versions 1 to 1, the agent 2 to 9"),
        (hello("node-a", (9, 0)), "we speak versions 1 to 1, the agent 9 to 0"),
    ] {
        let mut session = aggregator();
        session.handle_input(secs(0), input);
        let reason = reason.to_owned();
        assert_eq!(
            said(&mut session),
            [
                AggregatorOutput::Send(FromAggregator::Refused(reason.clone())),
                AggregatorOutput::Close(Disconnect::Refused(reason))
            ]
        );
    }
}

#[test]
fn a_peer_that_says_nothing_or_speaks_out_of_turn_is_closed() {
    let mut session = aggregator();
    session.handle_timeout(secs(5));
    assert_eq!(said(&mut session), [AggregatorOutput::Close(Disconnect::NoGreeting(secs(5)))]);

    for input in [
        AggregatorInput::Window(Box::new(window(&name("node-a"), BootId(1), 0))),
        AggregatorInput::Message(FromAgent::Heartbeat(Default::default())),
    ] {
        let mut session = aggregator();
        session.handle_input(secs(0), input);
        assert!(matches!(said(&mut session)[..], [AggregatorOutput::Close(Disconnect::Protocol(_))]));
    }
}

#[test]
fn a_window_of_another_node_ends_the_connection() {
    let mut session = welcomed_aggregator();
    let foreign = Box::new(window(&name("node-b"), BootId(1), 0));
    session.handle_input(secs(0), AggregatorInput::Window(foreign));
    assert!(matches!(said(&mut session)[..], [AggregatorOutput::Close(Disconnect::Protocol(_))]));
}

#[test]
fn a_window_with_a_hostile_number_is_rejected_and_the_agent_told() {
    let mut session = welcomed_aggregator();
    let mut poisoned = window(&name("node-a"), BootId(1), 7);
    poisoned.stub_share = f32::NAN;
    session.handle_input(secs(0), AggregatorInput::Window(Box::new(poisoned)));
    let said = said(&mut session);
    assert!(
        matches!(
            &said[..],
            [
                AggregatorOutput::Send(FromAggregator::Rejected { boot: BootId(1), sequence: 7, .. }),
                AggregatorOutput::Rejected(_)
            ]
        ),
        "{said:?}"
    );

    let mut agent = connected_agent();
    let reason = "share of sampled traces of node-a is out of range".to_owned();
    let rejected = FromAggregator::Rejected { boot: BootId(1), sequence: 7, reason: reason.clone() };
    agent.handle_input(secs(0), AgentInput::Message(rejected));
    let event = AgentEvent::Rejected { boot: BootId(1), sequence: 7, reason };
    assert_eq!(outputs(&mut agent), [AgentOutput::Event(event)]);
}

#[test]
fn acknowledgements_gather_into_batches() {
    let mut session = welcomed_aggregator();
    for sequence in (0..1_500).rev() {
        let sequences = vec![sequence, sequence];
        session.handle_input(secs(0), AggregatorInput::Acknowledge { boot: BootId(1), sequences });
    }
    let batches: Vec<Vec<u64>> = said(&mut session)
        .into_iter()
        .map(|output| match output {
            AggregatorOutput::Send(FromAggregator::Acknowledged { sequences, .. }) => sequences,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(batches, [(0..1_024).collect::<Vec<_>>(), (1_024..1_500).collect()]);
}
