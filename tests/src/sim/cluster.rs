//! The cluster and its clock: one queue of events, and the deadlines of everybody who waits.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
};

use sage_aggregator::core::{Input, OperatorRequest, Rules, State, TrainJob};
use sage_aggregator::model;
use sage_common::{Micros, ServiceId, Slo, Span, Timestamp};
use sage_node_agent::policy::Policy;
use sage_protocol::{
    codec,
    session::{AgentInput, Disconnect},
};

use super::{
    agent::{Agent, Around, Wire},
    aggregator::{Aggregator, Crashed, Setting},
    application::Application,
    checks::Ledger,
    draw::Draw,
    log::{LogDisk, MemoryLog, lock},
    machine::Machine,
    network::{ConnId, End, Network, Payload},
    trace::Trace,
};

/// Length of a window.
pub const WINDOW: Micros = Micros::from_secs(10);
/// The one objective's target.
pub const TARGET: Micros = Micros::from_millis(70);
/// The best-effort cgroup of every machine.
pub const CGROUP_HOG: &str = "batch/hog";

/// Machines of the cluster.
const MACHINES: usize = 3;
/// Between two looks of an agent's threads.
const TICK: Micros = Micros::from_millis(200);
const SECOND: Micros = Micros::from_secs(1);
/// The wall clock's reading at the start, on the turn of a window.
const EPOCH: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
/// Windows after which learning has failed.
const LEARNING_MAX: u32 = 40;
/// Steps at one moment beyond which something goes round in circles.
const STEPS_AT_ONCE_MAX: u32 = 10_000;

const POLICY: &str = r#"
    [defaults]
    actions_per_hour = 60
    [[service]]
    name = "*"
    trust = "auto"
    knobs = ["cpu_quota"]
    cores_max = 2.0
    [[best_effort]]
    cgroup = "batch/*"
    trust = "auto"
    knobs = ["cpu_quota", "freeze"]
    cores_min = 0.05
"#;

/// What waits for its time.
#[derive(Debug)]
pub(super) enum Event {
    Request,
    Tick(usize),
    Sweep(usize),
    Stands(ConnId),
    Packet { conn: ConnId, to: End, payload: Payload },
    Train { process: u64, job: Box<TrainJob> },
    StartAgent(usize),
    StartAggregator,
}

impl Event {
    /// Tells it from others, for comparing runs.
    fn label(&self) -> Vec<u8> {
        match self {
            Self::Request => vec![0],
            Self::Tick(number) => vec![1, *number as u8],
            Self::Sweep(number) => vec![2, *number as u8],
            Self::Stands(conn) => conn.to_le_bytes().to_vec(),
            Self::Packet { payload: Payload::Control(bytes) | Payload::Window(bytes), .. } => bytes.clone(),
            Self::Packet { payload: Payload::Over(why), .. } => why.clone().into_bytes(),
            Self::Train { process, .. } => vec![3, *process as u8],
            Self::StartAgent(number) => vec![4, *number as u8],
            Self::StartAggregator => vec![5],
        }
    }
}

/// The cluster.
pub struct Cluster {
    /// Time since the simulation's start.
    pub now: Micros,
    /// What runs on it.
    pub application: Application,
    /// Its machines.
    pub machines: Vec<Machine>,
    /// Their agents.
    pub agents: Vec<Agent>,
    /// Aggregator processes; the last is the one that agents find.
    pub aggregators: Vec<Aggregator>,
    /// What was made and what is safe.
    pub ledger: Ledger,
    pub(super) network: Network,
    pub(super) trace: Trace,
    pub(super) draw: Draw,
    pub(super) log_disk: Arc<Mutex<LogDisk>>,
    pub(super) processes: u64,
    queue: BTreeMap<(Micros, u64), Event>,
    queued: u64,
    spans: Vec<BTreeMap<(Micros, u64), Span>>,
    at_once: u32,
}

/// A cluster that has learnt what is normal, switched off.
#[derive(Clone)]
struct Learned {
    now: Micros,
    disk: LogDisk,
    ledger: Ledger,
}

impl Cluster {
    /// A cluster that knows nothing yet.
    pub fn new(seed: u64) -> Self {
        Self::started(seed, Learned { now: Micros::ZERO, disk: LogDisk::default(), ledger: Ledger::default() })
    }

    /// A cluster whose aggregator has learnt what is normal in an earlier life; everybody starts anew.
    pub fn learned(seed: u64) -> Self {
        static LEARNED: OnceLock<Learned> = OnceLock::new();
        let learned = LEARNED.get_or_init(|| {
            let mut cluster = Self::new(0);
            cluster.learn();
            cluster.crash_aggregator();
            let now = cluster.now + WINDOW;
            Learned {
                now: Micros::new(now.get() - now.get() % WINDOW.get()),
                disk: cluster.disk(),
                ledger: cluster.ledger,
            }
        });
        let mut cluster = Self::started(seed, learned.clone());
        cluster.run_windows(2);
        cluster
    }

    fn started(seed: u64, learned: Learned) -> Self {
        let Learned { now, disk, ledger } = learned;
        let policy = Policy::parse(POLICY, "the simulation's policy").expect("valid");
        let mut cluster = Self {
            now,
            application: Application::new(seed),
            machines: (0..MACHINES).map(|number| Machine::new(number, seed, EPOCH)).collect(),
            agents: (0..MACHINES as u64).map(|n| Agent::new(policy.clone(), Draw::new(seed, 20 + n))).collect(),
            aggregators: Vec::new(),
            ledger,
            network: Network::new(MACHINES, seed),
            trace: Trace::default(),
            draw: Draw::new(seed, 3),
            log_disk: Arc::new(Mutex::new(disk)),
            processes: 0,
            queue: BTreeMap::new(),
            queued: 0,
            spans: vec![BTreeMap::new(); MACHINES],
            at_once: 0,
        };
        cluster.start_aggregator();
        for number in 0..MACHINES {
            let first = cluster.draw.millis(0..=900);
            cluster.schedule(first, Event::StartAgent(number));
            cluster.schedule(first + TICK, Event::Tick(number));
            cluster.schedule(SECOND, Event::Sweep(number));
        }
        cluster.schedule(SECOND, Event::Request);
        cluster
    }

    /// Runs until a model is in use.
    pub fn learn(&mut self) {
        self.run_until("a model", LEARNING_MAX, |cluster| cluster.state().is_some_and(|state| state.model().is_some()));
    }

    /// The leader's numbers.
    pub fn rules() -> Rules {
        Rules {
            windows_min: 14,
            windows_max: 60,
            retrain_every_windows: 1_000,
            settled_windows: 20,
            calls_min: 40.0,
            hold_windows: 3,
            ..Rules::default()
        }
    }

    /// The objective.
    pub fn slo() -> Slo {
        Slo {
            name: "home".to_owned(),
            service: ServiceId::sanitized("front"),
            operation: None,
            percentile: 99.0,
            target: TARGET,
        }
    }

    /// What the aggregator that agents find says; `None` while it is down.
    pub fn state(&self) -> Option<&State> {
        self.aggregators.last().map(|aggregator| aggregator.leader().state())
    }

    /// What is on the aggregator's disk.
    pub fn disk(&self) -> LogDisk {
        lock(&self.log_disk).clone()
    }

    pub(super) fn empty_state(&self) -> State {
        State::new(Self::rules().windows_max)
    }

    /// The number of events so far and their hash: the same for the same run.
    pub fn hash(&self) -> (u64, u64) {
        self.trace.hash()
    }

    /// The last things that happened, for people.
    pub fn story(&self) -> String {
        self.trace.tail()
    }

    /// Hands an operator's order to the aggregator.
    pub fn order(&mut self, order: OperatorRequest) {
        let now = self.now;
        self.with_aggregator(None, |aggregator, trace| aggregator.order(order, now, trace));
    }

    /// Runs for `windows` windows.
    pub fn run_windows(&mut self, windows: u32) {
        let end = self.now + WINDOW.saturating_mul(u64::from(windows));
        while self.now < end {
            self.step();
        }
    }

    /// Runs until `holds`, for at most `windows` windows.
    pub fn run_until(&mut self, what: &str, windows: u32, holds: impl Fn(&Self) -> bool) {
        let end = self.now + WINDOW.saturating_mul(u64::from(windows));
        while !holds(self) {
            assert!(self.now < end, "no {what} within {windows} windows:{}", self.story());
            self.step();
        }
    }

    /// Runs until `holds` or for `windows` windows, whichever comes first.
    pub fn run_until_or(&mut self, windows: u32, holds: impl Fn(&Self) -> bool) {
        let end = self.now + WINDOW.saturating_mul(u64::from(windows));
        while !holds(self) && self.now < end {
            self.step();
        }
    }

    /// Lets the next thing happen.
    pub fn step(&mut self) {
        let event = self.queue.first_key_value().map(|((at, _), _)| *at);
        let agents = (0..MACHINES).filter_map(|n| Some((self.agents[n].life.as_ref()?.session.poll_timeout()?, n)));
        let agent = agents.min();
        let aggregator = self.aggregators.iter().filter_map(|one| Some((one.deadline()?, one.process))).min();
        let next = [event, agent.map(|(at, _)| at), aggregator.map(|(at, _)| at)].into_iter().flatten().min();
        let next = next.expect("the application never ends").max(self.now);
        self.at_once = if next == self.now { self.at_once + 1 } else { 0 };
        assert!(self.at_once < STEPS_AT_ONCE_MAX, "time stands still:{}", self.story());
        self.now = next;
        if event.is_some_and(|at| at <= next) {
            let (_, event) = self.queue.pop_first().expect("seen above");
            self.happen(event);
        } else if let Some((_, number)) = agent.filter(|(at, _)| *at <= next) {
            self.with_agent(number, Agent::session_timeout);
        } else if let Some((_, process)) = aggregator {
            self.with_aggregator(Some(process), |one, trace| one.timeout(next, trace));
        }
        self.check_knobs();
    }

    fn happen(&mut self, event: Event) {
        self.trace.count(self.now, &event.label());
        match event {
            Event::Request => self.request(),
            Event::Tick(number) => self.tick(number),
            Event::Sweep(number) => {
                let sweep = self.machines[number].sweep(self.now, &self.application.tiers);
                self.with_agent(number, |agent, around| agent.sweep(around, &sweep));
                self.schedule(SECOND, Event::Sweep(number));
            }
            Event::Stands(conn) => self.stand(conn),
            Event::Packet { conn, to, payload } => {
                if let Some(payload) = self.network.pass(conn, to, payload) {
                    self.deliver(conn, to, payload);
                }
            }
            Event::Train { process, job } => self.train(process, *job),
            Event::StartAgent(number) if !self.agents[number].is_up() => self.with_agent(number, Agent::start),
            Event::StartAgent(_) => {}
            Event::StartAggregator => {
                if self.aggregators.is_empty() {
                    self.start_aggregator();
                }
            }
        }
    }

    pub(super) fn schedule(&mut self, after: Micros, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), event);
    }

    fn request(&mut self) {
        for emitted in self.application.request(self.now, &self.machines) {
            self.queued += 1;
            self.spans[emitted.machine].insert((emitted.at, self.queued), emitted.span);
        }
        let pause = self.application.next_pause();
        self.schedule(pause, Event::Request);
    }

    fn tick(&mut self, number: usize) {
        let later = self.spans[number].split_off(&(self.now, u64::MAX));
        let spans: Vec<Span> = std::mem::replace(&mut self.spans[number], later).into_values().collect();
        self.with_agent(number, |agent, around| {
            agent.spans(around, &spans);
            agent.tick(around);
        });
        self.schedule(TICK, Event::Tick(number));
    }

    fn train(&mut self, process: u64, job: TrainJob) {
        if self.aggregators.iter().all(|one| one.process != process) {
            return;
        }
        let (now, at) = (self.now, EPOCH + self.now);
        let input = match model::train(job) {
            Ok(None) => Input::Unchanged,
            Ok(Some(new)) => Input::Trained { meta: new.meta(1.0, at), bytes: new.bytes, oracle: new.oracle },
            Err(reason) => Input::TrainingFailed(reason),
        };
        self.with_aggregator(Some(process), |one, trace| one.take(input, now, trace));
    }

    /// A handshake has come to its end.
    fn stand(&mut self, conn: ConnId) {
        let Some((number, process)) = self.network.connection(conn).map(|one| (one.agent, one.process)) else { return };
        if self.agents[number].life.as_ref().is_none_or(|life| life.conn != Some(conn)) {
            return;
        }
        let (now, node) = (self.now, self.machines[number].node.clone());
        let input = match self.aggregators.iter_mut().find(|one| one.process == process) {
            Some(aggregator) => {
                aggregator.accept(conn, node, now);
                AgentInput::Opened
            }
            None => AgentInput::Closed(Disconnect::Unreachable("nobody listens".to_owned())),
        };
        self.with_agent(number, |agent, around| agent.input(around, input));
    }

    pub(super) fn deliver(&mut self, conn: ConnId, to: End, payload: Payload) {
        let Some((number, process)) = self.network.connection(conn).map(|one| (one.agent, one.process)) else { return };
        let now = self.now;
        if to == End::Aggregator {
            return self.with_aggregator(Some(process), |one, trace| one.receive(conn, payload, now, trace));
        }
        let Some(life) = self.agents[number].life.as_mut().filter(|life| life.conn == Some(conn)) else { return };
        let input = match payload {
            Payload::Control(bytes) => AgentInput::Message(codec::decode(&bytes).expect("an aggregator's own message")),
            Payload::Over(why) => {
                life.conn = None;
                AgentInput::Closed(Disconnect::Lost(why))
            }
            Payload::Window(_) => return,
        };
        self.with_agent(number, |agent, around| agent.input(around, input));
    }

    /// Lets an agent do something, then sends what it wants sent.
    pub(super) fn with_agent<T>(&mut self, number: usize, act: impl FnOnce(&mut Agent, &mut Around<'_>) -> T) -> T {
        let Self { machines, agents, ledger, trace, now, .. } = self;
        let mut around = Around { now: *now, machine: &mut machines[number], ledger, trace };
        let was_up = agents[number].is_up();
        let before = agents[number].life.as_ref().and_then(|life| life.conn);
        let told = act(&mut agents[number], &mut around);
        if was_up && !agents[number].is_up() {
            self.agent_is_gone(number, before);
        }
        self.send_of_agent(number);
        told
    }

    fn send_of_agent(&mut self, number: usize) {
        while let Some(wire) = self.agents[number].life.as_mut().and_then(|life| life.wire.pop_front()) {
            let conn = self.agents[number].life.as_ref().and_then(|life| life.conn);
            let now_conn = match (wire, conn) {
                (Wire::Connect, _) => Some(self.dial(number)),
                (Wire::Send(payload), Some(conn)) => {
                    self.send(conn, End::Aggregator, &payload);
                    Some(conn)
                }
                (Wire::Close, Some(conn)) => {
                    self.send(conn, End::Aggregator, &Payload::Over("closed by the agent".to_owned()));
                    None
                }
                (_, None) => None,
            };
            if let Some(life) = &mut self.agents[number].life {
                life.conn = now_conn;
            }
        }
    }

    fn dial(&mut self, number: usize) -> ConnId {
        let process = self.aggregators.last().map_or(0, |aggregator| aggregator.process);
        let (conn, stands) = self.network.dial(number, process, self.now);
        if let Some(at) = stands {
            self.schedule(at.saturating_sub(self.now), Event::Stands(conn));
        }
        conn
    }

    pub(super) fn send(&mut self, conn: ConnId, to: End, payload: &Payload) {
        for at in self.network.arrivals(conn, to, payload, self.now) {
            self.schedule(at.saturating_sub(self.now), Event::Packet { conn, to, payload: payload.clone() });
        }
    }

    /// Lets an aggregator's process (the one that agents find, without a number) do something, then sends what it wants
    /// sent.
    pub(super) fn with_aggregator(
        &mut self,
        process: Option<u64>,
        act: impl FnOnce(&mut Aggregator, &mut Trace) -> Result<(), Crashed>,
    ) {
        let is_it = |one: &Aggregator| process.is_none_or(|process| one.process == process);
        let Some(place) = self.aggregators.iter().rposition(is_it) else { return };
        let outcome = act(&mut self.aggregators[place], &mut self.trace);
        if outcome.is_err() {
            return self.aggregator_is_gone(place);
        }
        let aggregator = &mut self.aggregators[place];
        let (process, wire, jobs) =
            (aggregator.process, std::mem::take(&mut aggregator.wire), std::mem::take(&mut aggregator.jobs));
        for (conn, payload) in wire {
            self.send(conn, End::Agent, &payload);
        }
        for job in jobs {
            let takes = self.draw.millis(500..=6_000);
            self.schedule(takes, Event::Train { process, job: Box::new(job) });
        }
        self.forget_connections();
    }

    fn forget_connections(&mut self) {
        let Self { network, agents, aggregators, .. } = self;
        let of_agent = |conn| agents.iter().filter_map(|agent| agent.life.as_ref()).any(|life| life.conn == Some(conn));
        network.retain(|conn| of_agent(conn) || aggregators.iter().any(|one| one.holds(conn)));
    }

    pub(super) fn setting(&mut self) -> (Setting, MemoryLog) {
        self.processes += 1;
        let wall = EPOCH + self.now;
        let setting =
            Setting { process: self.processes, rules: Self::rules(), slos: vec![Self::slo()], now: self.now, wall };
        let draw = Draw::new(self.draw.id(), 4);
        (setting, MemoryLog::open(Arc::clone(&self.log_disk), self.now, draw))
    }
}
