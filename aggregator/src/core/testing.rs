//! A fleet in memory for the tests of the core: nodes that make windows and hold leases, a log of one, virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hdrhistogram::{
    Histogram,
    serialization::{Serializer, V2Serializer},
};
use sage_causal::{
    observation::Observation,
    verdict::{Candidate, Culprit, Resource, Verdict, VerdictKind},
};
use sage_common::{
    ActionId, BootId, CgroupPath, EntryHistogram, Generation, InstanceId, InstanceUsage, IntakeCounters, Knob,
    KnobOffer, LatencyQuantiles, LatencySeries, LinkName, Metric, MetricValue, Micros, NodeId, NodeWindow, OfferRole,
    OperationId, PeerHint, SeriesKind, ServiceId, Setting, Side, Slo, SpanId, Stub, Term, Timestamp, TraceHash, Trust,
    UsageQuantiles, WindowKey,
};
use sage_protocol::{
    codec,
    message::{Command, CommandResult, HeldLease, Hello, Order, Outcome, Refusal, RevertReason},
};

use crate::core::{Action, Input, Leader, ModelMeta, Oracle, Output, Proposal, Rules, State};

/// Length of a window.
pub const WINDOW: Micros = Micros::from_secs(10);
/// When an agent sends a window after its end.
const SENT_AFTER: Micros = Micros::from_secs(1);
/// Virtual time moves in these steps.
const TICK: Micros = Micros::from_millis(500);
/// The target of the one objective.
pub const TARGET: Micros = Micros::from_millis(50);

pub fn service(name: &str) -> ServiceId {
    ServiceId::sanitized(name)
}

pub fn operation(name: &str) -> OperationId {
    OperationId::sanitized(name)
}

pub fn node(name: &str) -> NodeId {
    NodeId::sanitized(name)
}

pub fn cgroup(path: &str) -> CgroupPath {
    CgroupPath::try_from(path.to_owned()).expect("valid")
}

pub fn slo() -> Slo {
    Slo { name: "home".into(), service: service("front"), operation: None, percentile: 99.0, target: TARGET }
}

/// Same numbers for the same seed (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between 0 and 1.
    pub fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// About `median` microseconds, skewed to the right.
    fn micros(&mut self, median: f64) -> u64 {
        let bell = (0..6).map(|_| self.share()).sum::<f64>() - 3.0;
        (median * (bell * 0.4).exp()) as u64
    }
}

/// A script in the place of a model: whoever runs next to a busy best-effort cgroup is the culprit.
#[derive(Clone, Debug, PartialEq)]
pub struct Script;

impl Oracle for Script {
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes == b"script" { Ok(Self) } else { Err("not a script".into()) }
    }

    fn diagnose(&self, recent: &[Arc<Observation>], slo: &Slo, generation: Generation) -> Option<Verdict> {
        let newest = recent.last()?;
        let observed = newest.objectives.iter().find(|objective| objective.slo == slo.name)?.latency_us;
        let reading = |metric: Metric| {
            newest.services.iter().flat_map(|own| own.instances.iter().map(move |one| (own, one))).find_map(
                |(own, one)| {
                    let (_, found) = one.metrics.iter().find(|(of, _)| *of == metric)?;
                    (found.median() > 0.5).then(|| own.service.clone())
                },
            )
        };
        let (culprit, resource) = match (reading(Metric::NodeCpuCoRunners), reading(Metric::NodeQdiscBacklog)) {
            (Some(culprit), _) => (culprit, Resource::Cpu),
            (None, Some(culprit)) => (culprit, Resource::Network),
            (None, None) => (service("geo"), Resource::Software),
        };
        Some(verdict(slo, &culprit, resource, observed, generation, newest.start))
    }

    fn is_better_than(&self, _: &Self, _: &[Arc<Observation>]) -> bool {
        true
    }
}

/// A verdict against one service.
pub fn verdict(
    slo: &Slo,
    culprit: &ServiceId,
    resource: Resource,
    observed_us: f64,
    generation: Generation,
    window: Timestamp,
) -> Verdict {
    let counterfactual = Micros::from_millis(20);
    Verdict {
        slo: slo.name.clone(),
        window,
        kind: VerdictKind::Culprit,
        culprits: vec![Culprit {
            service: culprit.clone(),
            resource,
            p_resource: 0.9,
            link_with: None,
            instance: None,
            evidence: Vec::new(),
        }],
        observed: Micros::new(observed_us as u64),
        target: slo.target,
        counterfactual,
        p_restored: 0.95,
        candidates: vec![Candidate {
            service: culprit.clone(),
            counterfactual,
            p_restored: 0.95,
            own_excess_us: 1e5,
            null_rank: 1.0,
        }],
        path: Vec::new(),
        missing: Vec::new(),
        generation,
        model_age: Micros::ZERO,
    }
}

/// What is wrong in the world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// A best-effort cgroup on `b` takes the cores; limiting it to a core or freezing it helps `geo`.
    Hog,
    /// The same, but only a freeze helps.
    StubbornHog,
    /// A best-effort cgroup on `b` fills the link; a ceiling or a freeze helps.
    Sender,
    /// `geo` itself is slow.
    Slow,
}

/// A node's agent: what it measured and what it holds.
#[derive(Debug)]
pub struct Agent {
    pub boot: BootId,
    pub next_seq: u64,
    pub unacknowledged: BTreeMap<u64, NodeWindow>,
    pub leases: BTreeMap<ActionId, (Knob, Setting, Timestamp)>,
    pub is_up: bool,
    /// Added to the start of every window: this node's clock is off by so many windows.
    pub clock_off: i64,
    pub term: Term,
}

/// The whole fleet.
pub struct Fleet<O> {
    pub leader: Leader<O>,
    pub log: Vec<Proposal>,
    pub now: Timestamp,
    pub agents: BTreeMap<NodeId, Agent>,
    pub fault: Option<Fault>,
    pub trust: Trust,
    pub dice: Dice,
    pub notes: Vec<String>,
    pub jobs: VecDeque<crate::core::TrainJob>,
    pub rules: Rules,
    pub calls: usize,
    /// Commands still on their way.
    pub is_deaf: bool,
    /// The aggregator dies after so many more outputs, in the middle of whatever it does.
    pub crash_after: Option<usize>,
    inputs: VecDeque<Input<O>>,
}

pub fn rules() -> Rules {
    Rules { windows_min: 4, retrain_every_windows: 10_000, calls_min: 20.0, windows_max: 500, ..Rules::default() }
}

impl<O: Oracle> Fleet<O> {
    /// Two nodes, a log without entries, a leader.
    pub fn new(rules: Rules) -> Self {
        let agent = |boot| Agent {
            boot: BootId(boot),
            next_seq: 0,
            unacknowledged: BTreeMap::new(),
            leases: BTreeMap::new(),
            is_up: true,
            clock_off: 0,
            term: Term(0),
        };
        let leader = Leader::new(rules.clone(), "one", vec![slo()], State::new(rules.windows_max));
        let mut fleet = Self {
            leader,
            log: Vec::new(),
            now: Timestamp::from_micros(1_700_000_000_000_000).aligned(WINDOW),
            agents: BTreeMap::from([(node("a"), agent(1)), (node("b"), agent(2))]),
            fault: None,
            trust: Trust::Auto,
            dice: Dice(7),
            notes: Vec::new(),
            jobs: VecDeque::new(),
            rules,
            calls: 60,
            is_deaf: false,
            crash_after: None,
            inputs: VecDeque::new(),
        };
        fleet.start_leader();
        fleet
    }

    fn start_leader(&mut self) {
        let term = Term(self.leader.state().term().0 + 1);
        self.inputs.push_back(Input::Leading(term));
        let hellos: Vec<Hello> = self
            .agents
            .iter()
            .filter(|(_, agent)| agent.is_up)
            .map(|(node, agent)| hello(node, agent, self.now))
            .collect();
        self.inputs.extend(hellos.into_iter().map(Input::AgentConnected));
        for agent in self.agents.values().filter(|agent| agent.is_up) {
            self.inputs.extend(agent.unacknowledged.values().cloned().map(Input::Window));
        }
        self.settle();
    }

    /// The aggregator dies and comes back with nothing but its state, through its durable bytes.
    pub fn restart(&mut self) {
        let bytes = codec::encode_snapshot(self.leader.state()).expect("state has bytes");
        let state: State = codec::decode_snapshot(&bytes).expect("its own bytes");
        assert_eq!(&state, self.leader.state(), "a snapshot is the state");
        self.leader = Leader::new(self.rules.clone(), "one", vec![slo()], state);
        self.inputs.clear();
        self.start_leader();
    }

    /// The aggregator dies in the middle of something and comes back with nothing but its log.
    fn crash(&mut self) {
        let mut state = State::new(self.rules.windows_max);
        for (at, proposal) in self.log.iter().enumerate() {
            state.apply(at as u64 + 1, proposal);
        }
        self.leader = Leader::new(self.rules.clone(), "one", vec![slo()], state);
        self.inputs.clear();
        self.start_leader();
    }

    /// An agent dies; its settings are undone by its next life.
    pub fn restart_agent(&mut self, name: &str) {
        let agent = self.agents.get_mut(&node(name)).expect("known");
        agent.boot = BootId(agent.boot.0 + 100);
        agent.next_seq = 0;
        agent.leases.clear();
        let hello = hello(&node(name), agent, self.now);
        self.inputs.push_back(Input::AgentConnected(hello));
        self.settle();
    }

    pub fn stop_agent(&mut self, name: &str) {
        let agent = self.agents.get_mut(&node(name)).expect("known");
        agent.is_up = false;
        agent.leases.clear();
        let boot = agent.boot;
        self.give(Input::AgentDisconnected { node: node(name), boot });
    }

    pub fn give(&mut self, input: Input<O>) {
        self.inputs.push_back(input);
        self.settle();
    }

    /// Runs `count` windows.
    pub fn run(&mut self, count: u32) {
        let end = self.now + WINDOW.saturating_mul(u64::from(count));
        while self.now < end {
            self.tick();
        }
    }

    /// Runs until `holds`, for at most `most` windows.
    pub fn run_until(&mut self, most: u32, holds: impl Fn(&State) -> bool) {
        for _ in 0..u64::from(most) * WINDOW.get() / TICK.get() {
            if holds(self.leader.state()) {
                return;
            }
            self.tick();
        }
        panic!("not within {most} windows; notes: {:#?}", self.notes);
    }

    pub fn tick(&mut self) {
        self.now = self.now + TICK;
        self.expire();
        if (self.now - SENT_AFTER).aligned(WINDOW) == self.now - SENT_AFTER {
            self.measure(self.now - SENT_AFTER - WINDOW);
        }
        self.settle();
        self.check();
    }

    fn expire(&mut self) {
        for (node, agent) in &mut self.agents {
            let gone: Vec<ActionId> =
                agent.leases.iter().filter(|(_, (_, _, until))| *until <= self.now).map(|(id, _)| *id).collect();
            for action in gone {
                agent.leases.remove(&action);
                let outcome = Outcome::Reverted(RevertReason::Expired);
                let result = CommandResult { action, outcome };
                self.inputs.push_back(Input::CommandResult { node: node.clone(), result });
            }
        }
    }

    /// Carries inputs, outputs and the log to rest.
    pub fn settle(&mut self) {
        // Ends: every round either takes an input or an output away, or the leader is asked for a time in the past,
        // which it must not be more than once per round.
        for _ in 0..10_000 {
            if let Some(input) = self.inputs.pop_front() {
                self.leader.handle_input(self.now, input);
            } else if let Some(output) = self.leader.poll_output() {
                self.perform(output);
                match self.crash_after.as_mut() {
                    Some(0) => {
                        self.crash_after = None;
                        return self.crash();
                    }
                    Some(left) => *left -= 1,
                    None => {}
                }
            } else if self.leader.poll_timeout().is_some_and(|due| due <= self.now) {
                let before = self.leader.poll_timeout();
                self.leader.handle_timeout(self.now);
                let is_busy = self.leader.poll_timeout() == before;
                if let Some(output) = self.leader.poll_output() {
                    self.perform(output);
                } else {
                    assert!(!is_busy, "a deadline in the past with nothing to do: {before:?}");
                }
            } else {
                return;
            }
        }
        panic!("the leader does not come to rest; notes: {:#?}", self.notes);
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Propose(proposal) => {
                self.log.push(proposal.clone());
                self.inputs.push_back(Input::Committed { index: self.log.len() as u64, proposal });
            }
            Output::Acknowledge { node, boot, sequences } => {
                let agent = self.agents.get_mut(&node).filter(|agent| agent.boot == boot);
                if let Some(agent) = agent {
                    agent.unacknowledged.retain(|seq, _| !sequences.contains(seq));
                }
            }
            Output::Send { node, command } => self.obey(&node, command),
            Output::Train(job) => self.jobs.push_back(job),
            Output::Note(event) => self.notes.push(event.text),
        }
    }

    fn obey(&mut self, node: &NodeId, command: Command) {
        let Some(agent) = self.agents.get_mut(node).filter(|agent| agent.is_up && !self.is_deaf) else { return };
        agent.term = agent.term.max(command.term);
        assert_eq!(agent.term, command.term, "a leader commands in its own term");
        let outcome = match command.order {
            Order::Apply { knob, setting, lease, .. } => {
                agent.leases.insert(command.action, (knob.clone(), setting.clone(), self.now + lease));
                Outcome::Applied { before: normal_setting(&knob), now: setting }
            }
            Order::Renew { lease } => match agent.leases.get_mut(&command.action) {
                Some((_, _, until)) => {
                    *until = self.now + lease;
                    Outcome::Renewed
                }
                None => Outcome::Refused(Refusal::UnknownAction),
            },
            Order::Revoke => match agent.leases.remove(&command.action) {
                Some(_) => Outcome::Reverted(RevertReason::Revoked),
                None => Outcome::Refused(Refusal::UnknownAction),
            },
            Order::Freeze => {
                for (action, _) in std::mem::take(&mut agent.leases) {
                    let result = CommandResult { action, outcome: Outcome::Reverted(RevertReason::Frozen) };
                    self.inputs.push_back(Input::CommandResult { node: node.clone(), result });
                }
                Outcome::Frozen(true)
            }
            Order::Thaw => Outcome::Frozen(false),
        };
        let result = CommandResult { action: command.action, outcome };
        self.inputs.push_back(Input::CommandResult { node: node.clone(), result });
    }

    fn held(&self, matches: impl Fn(&Knob, &Setting) -> bool) -> bool {
        self.agents.values().flat_map(|agent| agent.leases.values()).any(|(knob, setting, _)| matches(knob, setting))
    }

    /// Whether the fault hurts, with the settings in force.
    pub fn is_hurting(&self) -> bool {
        let is_frozen = self.held(|knob, _| matches!(knob, Knob::Freeze { .. }));
        let is_limited = self.held(|knob, _| matches!(knob, Knob::CpuQuota { .. }));
        let has_ceiling = self.held(|knob, _| matches!(knob, Knob::EgressCeiling { .. }));
        match self.fault {
            None => false,
            Some(Fault::Hog) => !is_frozen && !is_limited,
            Some(Fault::StubbornHog) => !is_frozen,
            Some(Fault::Sender) => !is_frozen && !has_ceiling,
            Some(Fault::Slow) => true,
        }
    }

    fn measure(&mut self, start: Timestamp) {
        let traces = self.traces();
        for name in ["a", "b"] {
            let key = node(name);
            let window = self.window(name, start, &traces);
            let Some(agent) = self.agents.get_mut(&key).filter(|agent| agent.is_up) else { continue };
            agent.next_seq += 1;
            agent.unacknowledged.insert(window.key.seq, window.clone());
            self.inputs.push_back(Input::Window(window));
        }
    }

    /// Stubs of one window: front (a) calls geo (b), and rate (a) after that.
    fn traces(&mut self) -> Vec<Stub> {
        let slow = if self.is_hurting() { 12.0 } else { 1.0 };
        let is_gap = self.fault == Some(Fault::Sender);
        let mut stubs = Vec::new();
        for _ in 0..self.calls {
            let dice = &mut self.dice;
            let (trace, ids) = (TraceHash(dice.next() >> 1), dice.next() | 1);
            let geo_self = (dice.micros(8_000.0) as f64 * if is_gap { 1.0 } else { slow }) as u64;
            let gap = (dice.micros(1_500.0) as f64 * if is_gap { slow * 8.0 } else { 1.0 }) as u64;
            let (rate_self, rate_gap, front_self) = (dice.micros(2_000.0), dice.micros(400.0), dice.micros(3_000.0));
            let geo_client = geo_self + gap;
            let rate_client = rate_self + rate_gap;
            let front = front_self + geo_client + rate_client;
            let id = |number: u64| SpanId(ids.wrapping_add(number * 2) | 1);
            let stub = |number, parent, who: &str, op: &str, side, offset, duration, own, peer: Option<&str>| Stub {
                trace,
                id: id(number),
                parent: if parent == 0 { SpanId(0) } else { id(parent) },
                service: service(who),
                operation: operation(op),
                side,
                peer: peer.map(|peer| PeerHint::Address(service(peer))),
                offset: Micros::new(offset),
                duration: Micros::new(duration),
                self_time: Micros::new(own),
                is_error: false,
            };
            let half = front_self / 2;
            stubs.push(stub(1, 0, "front", "GET /", Side::Server, 0, front, front_self, None));
            stubs.push(stub(2, 1, "front", "near", Side::Client, half, geo_client, geo_client, Some("geo.local")));
            stubs.push(stub(3, 2, "geo", "Near", Side::Server, 0, geo_self, geo_self, None));
            let after = half + geo_client;
            stubs.push(stub(4, 1, "front", "rate", Side::Client, after, rate_client, rate_client, Some("rate.local")));
            stubs.push(stub(5, 4, "rate", "Get", Side::Server, 0, rate_self, rate_self, None));
        }
        stubs
    }

    fn window(&self, name: &str, start: Timestamp, stubs: &[Stub]) -> NodeWindow {
        let agent = &self.agents[&node(name)];
        let own: &[&str] = if name == "a" { &["front", "rate"] } else { &["geo"] };
        let mine = |stub: &&Stub| own.contains(&stub.service.as_str());
        let hog = name == "b" && matches!(self.fault, Some(Fault::Hog | Fault::StubbornHog));
        let sender = name == "b" && self.fault == Some(Fault::Sender);
        let value = |metric, value: f32| MetricValue { metric, quantiles: UsageQuantiles([value; 6]) };
        let usage = own.iter().map(|own| InstanceUsage {
            service: service(own),
            instance: InstanceId::sanitized(&format!("{own}-1")),
            metrics: vec![value(Metric::CpuUsed, 0.3)],
        });
        let shift = WINDOW.saturating_mul(agent.clock_off.unsigned_abs());
        NodeWindow {
            key: WindowKey { node: node(name), boot: agent.boot, seq: agent.next_seq },
            start: if agent.clock_off < 0 { start - shift } else { start + shift },
            length: WINDOW,
            latencies: series(stubs.iter().filter(mine)),
            usage: usage.collect(),
            node_usage: vec![
                value(Metric::NodeCpuCoRunners, if hog { 1.6 } else { 0.01 }),
                value(Metric::NodeQdiscBacklog, if sender { 1e5 } else { 0.1 }),
            ],
            stubs: stubs.iter().filter(mine).cloned().collect(),
            skeletons: Vec::new(),
            entries: if name == "a" { entries(stubs) } else { Vec::new() },
            offers: if name == "b" { self.offers(hog) } else { Vec::new() },
            intake: IntakeCounters::default(),
            stub_share: 1.0,
        }
    }

    fn offers(&self, hog: bool) -> Vec<KnobOffer> {
        let batch = || cgroup("batch/hog");
        let link = LinkName::try_from("eth0".to_owned()).expect("valid");
        let current = |knob: &Knob| {
            let leases = self.agents[&node("b")].leases.values();
            let held = leases.filter(|(own, _, _)| own == knob).map(|(_, setting, _)| setting.clone()).next_back();
            held.unwrap_or_else(|| normal_setting(knob))
        };
        let offer = |knob: Knob, role, used, capacity| KnobOffer {
            current: current(&knob),
            knob,
            role,
            lowest: None,
            highest: None,
            trust: self.trust,
            used,
            capacity,
        };
        let geo = OfferRole::Service(service("geo"));
        let used = if hog { 1_600 } else { 10 };
        vec![
            offer(Knob::CpuQuota { cgroup: cgroup("app/geo") }, geo, Some(300), Some(2_000)),
            offer(Knob::CpuQuota { cgroup: batch() }, OfferRole::BestEffort, Some(used), Some(2_000)),
            offer(Knob::Freeze { cgroup: batch() }, OfferRole::BestEffort, None, None),
            offer(Knob::EgressCeiling { link, cgroup: batch() }, OfferRole::BestEffort, None, Some(100_000_000)),
        ]
    }

    /// What must hold at any time.
    pub fn check(&self) {
        let state = self.leader.state();
        for incident in state.incidents().values() {
            let trials =
                incident.actions.iter().filter(|id| state.actions().get(id).is_some_and(Action::is_in_trial)).count();
            assert!(trials <= 1, "two actions at once for incident {}", incident.id);
        }
        let mut nodes: Vec<&NodeId> =
            state.actions().values().filter(|action| action.is_in_trial()).map(|action| &action.node).collect();
        nodes.dedup();
        assert!(nodes.len() <= 1, "blast radius: {nodes:?}");
    }

    /// The log alone gives the same state.
    pub fn check_replay(&self) {
        let mut state = State::new(self.rules.windows_max);
        for (at, proposal) in self.log.iter().enumerate() {
            state.apply(at as u64 + 1, proposal);
            assert!(state.apply(at as u64 + 1, proposal).is_repeated);
        }
        assert_eq!(&state, self.leader.state());
    }

    pub fn leases(&self) -> usize {
        self.agents.values().map(|agent| agent.leases.len()).sum()
    }
}

impl Fleet<Script> {
    /// Runs until a script is in the place of a model.
    pub fn learned(rules: Rules) -> Self {
        let mut fleet = Self::new(rules);
        fleet.calls = 30;
        fleet.learn();
        fleet
    }

    pub fn learn(&mut self) {
        while self.jobs.is_empty() {
            self.tick();
            assert!(self.log.len() < 10_000, "no training: {:#?}", self.notes);
        }
        let job = self.jobs.pop_front().expect("asked for");
        let meta = ModelMeta::new(&job, Vec::new(), 0.1, self.now);
        self.give(Input::Trained { oracle: Script, bytes: b"script".to_vec(), meta });
    }
}

fn hello(node: &NodeId, agent: &Agent, now: Timestamp) -> Hello {
    let held = agent.leases.iter().map(|(action, (knob, setting, until))| HeldLease {
        action: *action,
        knob: knob.clone(),
        setting: setting.clone(),
        remaining: until.since(now).unwrap_or_default(),
    });
    Hello {
        version_min: 1,
        version_max: 1,
        node: node.clone(),
        boot: agent.boot,
        program: "test".into(),
        term: agent.term,
        held: held.collect(),
    }
}

fn normal_setting(knob: &Knob) -> Setting {
    match knob {
        Knob::Freeze { .. } => Setting::Frozen(false),
        Knob::EgressCeiling { .. } | Knob::EgressRate { .. } => Setting::Rate(None),
        Knob::CpuWeight { .. } => Setting::Weight(100),
        _ => Setting::Cores(None),
    }
}

/// Percentiles of everything in `stubs`, as an agent would report them.
fn series<'a>(stubs: impl Iterator<Item = &'a Stub>) -> Vec<LatencySeries> {
    type Key = (ServiceId, OperationId, SeriesKind, Option<PeerHint>);
    let mut values: BTreeMap<Key, Vec<f32>> = BTreeMap::new();
    for stub in stubs {
        let mut add = |kind, micros: Micros| {
            let key = (stub.service.clone(), stub.operation.clone(), kind, stub.peer.clone());
            values.entry(key).or_default().push(micros.get() as f32);
        };
        match stub.side {
            Side::Server => {
                add(SeriesKind::Server, stub.duration);
                add(SeriesKind::SelfTime, stub.self_time);
            }
            _ => add(SeriesKind::Client, stub.duration),
        }
    }
    let one = |((service, operation, kind, peer), mut values): (Key, Vec<f32>)| LatencySeries {
        service,
        operation,
        kind,
        peer,
        calls: values.len() as f32,
        errors: 0.0,
        quantiles: LatencyQuantiles::of_values(&mut values).expect("not empty"),
    };
    values.into_iter().map(one).collect()
}

fn entries(stubs: &[Stub]) -> Vec<EntryHistogram> {
    let mut histogram = Histogram::<u64>::new(2).expect("two digits");
    for stub in stubs.iter().filter(|stub| stub.parent == SpanId(0)) {
        histogram.record(stub.duration.get()).expect("auto-resizing");
    }
    let mut v2 = Vec::new();
    V2Serializer::new().serialize(&histogram, &mut v2).expect("into memory");
    vec![EntryHistogram { service: service("front"), operation: operation("GET /"), v2, errors: 0.0 }]
}
