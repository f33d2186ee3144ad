//! An agent: the cores of the daemon, wired as its driver wires them, and what of it outlasts its process.

use std::collections::{BTreeMap, VecDeque};

use sage_common::{BootId, KnobOffer, LinkName, Micros, NodeId, Span, Timestamp, WindowKey};
use sage_node_agent::{
    core::{
        actuation::Input,
        telemetry::{Telemetry, TelemetryConfig},
        usage::{Sweep, UsageWindows, WindowUsage},
    },
    driver::assemble::{assemble, encode},
    kernel::KernelInterface,
    policy::{CgroupState, LinkState, Policy, PolicyInputs},
};
use sage_protocol::{
    EncodedWindow, codec,
    message::{AgentStatus, Command, CommandResult},
    session::{AgentEvent, AgentInput, AgentOutput, AgentSession, AgentSessionConfig, AgentState, Timing},
};

pub use super::hands::Fuse;
use super::{
    checks::Ledger,
    draw::Draw,
    hands::{Crashed, Hands, UndoDisk, World},
    machine::Machine,
    network::{ConnId, Payload},
    trace::Trace,
};

/// Where aggregators are found.
const ADDRESS: &str = "aggregator:7443";
/// Between two sweeps of the counters.
const SWEEP: Micros = Micros::from_secs(1);
/// Capacity of the machines' links.
const LINK_BITS: u64 = 1_000_000_000;

/// One agent.
#[derive(Debug)]
pub struct Agent {
    /// When set, its process ends in the middle of what it does to the kernel.
    pub fuse: Option<Fuse>,
    pub(super) undo: UndoDisk,
    pub(super) life: Option<Life>,
    spool: Spool,
    policy: Policy,
    draw: Draw,
}

/// What a life of an agent has around it.
pub(super) struct Around<'a> {
    pub now: Micros,
    pub machine: &'a mut Machine,
    pub ledger: &'a mut Ledger,
    pub trace: &'a mut Trace,
}

/// What an agent wants of the network.
#[derive(Debug)]
pub(super) enum Wire {
    Connect,
    Send(Payload),
    Close,
}

/// Windows that nobody has acknowledged, as the files of the spool keep them.
#[derive(Debug, Default)]
struct Spool {
    windows: BTreeMap<u64, EncodedWindow>,
    next: u64,
}

impl Spool {
    fn push(&mut self, window: EncodedWindow) {
        self.windows.insert(self.next, window);
        self.next += 1;
    }

    fn after(&self, cursor: Option<u64>) -> Option<(u64, EncodedWindow)> {
        let from = cursor.map_or(0, |at| at + 1);
        self.windows.range(from..).next().map(|(at, window)| (*at, window.clone()))
    }

    fn forget(&mut self, is_over: impl Fn(&WindowKey) -> bool) {
        self.windows.retain(|_, window| !is_over(window.key()));
    }
}

/// A process.
#[derive(Debug)]
pub(super) struct Life {
    pub conn: Option<ConnId>,
    pub wire: VecDeque<Wire>,
    pub hands: Hands,
    pub session: AgentSession,
    node: NodeId,
    boot: BootId,
    telemetry: Telemetry,
    usage: UsageWindows,
    cursor: Option<u64>,
    seq: u64,
}

/// What a life works with while it handles one thing.
struct Desk<'a, 'b> {
    undo: &'a mut UndoDisk,
    spool: &'a mut Spool,
    fuse: &'a mut Option<Fuse>,
    around: &'a mut Around<'b>,
}

impl Desk<'_, '_> {
    fn world(&mut self) -> World<'_> {
        World { machine: self.around.machine, undo: self.undo, fuse: self.fuse }
    }

    fn wall(&self) -> Timestamp {
        self.around.machine.wall(self.around.now)
    }
}

impl Agent {
    pub(super) fn new(policy: Policy, draw: Draw) -> Self {
        Self { fuse: None, undo: UndoDisk::default(), life: None, spool: Spool::default(), policy, draw }
    }

    /// Whether its process runs.
    pub fn is_up(&self) -> bool {
        self.life.is_some()
    }

    /// Windows that wait to be acknowledged.
    pub fn spooled(&self) -> usize {
        self.spool.windows.len()
    }

    /// Whether its brake is on.
    pub fn is_frozen(&self) -> bool {
        self.undo.is_frozen
    }

    /// Leases that its process knows of.
    pub fn leases(&self, now: Micros) -> usize {
        self.life.as_ref().map_or(0, |life| life.hands.table.leases(now).count())
    }

    /// Starts a process that knows nothing but what is on disk.
    pub(super) fn start(&mut self, around: &mut Around<'_>) {
        let boot = BootId(self.draw.id());
        around.trace.note(around.now, &format!("{} starts as boot {boot}", around.machine.node));
        let mut fuse = None;
        let world = World { machine: around.machine, undo: &mut self.undo, fuse: &mut fuse };
        let hands = Hands::recover(self.policy.clone(), around.now, &world);
        let config = TelemetryConfig::default();
        let session = AgentSessionConfig {
            node: around.machine.node.clone(),
            boot,
            program: "simulated".to_owned(),
            addresses: vec![ADDRESS.to_owned()],
            timing: Timing::default(),
        };
        let state = AgentState { term: self.undo.term, ..AgentState::default() };
        self.life = Some(Life {
            conn: None,
            wire: VecDeque::new(),
            hands,
            session: AgentSession::new(session, state, around.now),
            node: around.machine.node.clone(),
            boot,
            telemetry: Telemetry::new(config, around.machine.wall(around.now)),
            usage: UsageWindows::new(config.window, SWEEP),
            cursor: None,
            seq: 0,
        });
        self.act(around, Life::recover);
    }

    /// The process is gone; what it has not written is lost.
    pub(super) fn crash(&mut self, around: &mut Around<'_>) {
        if self.life.take().is_some() {
            around.trace.note(around.now, &format!("{} crashes", around.machine.node));
        }
        self.fuse = None;
    }

    fn act(&mut self, around: &mut Around<'_>, act: impl FnOnce(&mut Life, &mut Desk<'_, '_>) -> Result<(), Crashed>) {
        let Self { fuse, undo, life, spool, .. } = self;
        let Some(alive) = life else { return };
        let mut desk = Desk { undo, spool, fuse, around };
        if act(alive, &mut desk).and_then(|()| alive.drive(&mut desk)).is_err() {
            self.crash(around);
        }
    }

    pub(super) fn spans(&mut self, around: &mut Around<'_>, spans: &[Span]) {
        self.act(around, |life, desk| {
            let wall = desk.wall();
            spans.iter().for_each(|span| life.telemetry.handle_span(span, wall));
            Ok(())
        });
    }

    pub(super) fn sweep(&mut self, around: &mut Around<'_>, sweep: &Sweep) {
        self.act(around, |life, desk| {
            life.usage.handle_sweep(desk.wall(), sweep);
            life.tell_state(desk);
            Ok(())
        });
    }

    /// What the driver's threads do every 200 ms.
    pub(super) fn tick(&mut self, around: &mut Around<'_>) {
        self.act(around, |life, desk| {
            life.close_due(desk);
            let results = life.hands.tick(desk.around.now, &mut desk.world())?;
            life.report(desk.around, results);
            Ok(())
        });
    }

    pub(super) fn input(&mut self, around: &mut Around<'_>, input: AgentInput) {
        self.act(around, |life, desk| {
            life.session.handle_input(desk.around.now, input);
            Ok(())
        });
    }

    pub(super) fn session_timeout(&mut self, around: &mut Around<'_>) {
        self.act(around, |life, desk| {
            life.session.handle_timeout(desk.around.now);
            Ok(())
        });
    }

    /// Hands `input` to the lease table, past the session.
    pub(super) fn actuate(&mut self, around: &mut Around<'_>, input: Input) -> Vec<CommandResult> {
        let mut all = Vec::new();
        self.act(around, |life, desk| {
            let results = life.hands.take(desk.around.now, input, &mut desk.world())?;
            all.clone_from(&results);
            life.report(desk.around, results);
            Ok(())
        });
        all
    }

    /// Ends the process as SIGTERM does: everything is given back first.
    pub(super) fn stop(&mut self, around: &mut Around<'_>) {
        self.act(around, |life, desk| {
            life.hands.table.close();
            let results = life.hands.pump(desk.around.now, &mut desk.world())?;
            life.report(desk.around, results);
            Ok(())
        });
        self.crash(around);
    }
}

impl Life {
    fn recover(&mut self, desk: &mut Desk<'_, '_>) -> Result<(), Crashed> {
        let results = self.hands.pump(desk.around.now, &mut desk.world())?;
        self.report(desk.around, results);
        self.tell_state(desk);
        Ok(())
    }

    /// What heartbeats and the next hello say.
    fn tell_state(&mut self, desk: &Desk<'_, '_>) {
        let now = desk.around.now;
        let table = &self.hands.table;
        let held: Vec<_> = table.held(now).collect();
        let status = AgentStatus {
            spooled: desk.spool.windows.len() as u32,
            leases: held.len() as u32,
            is_frozen: table.is_frozen(),
        };
        self.session.handle_input(now, AgentInput::State(AgentState { term: table.term(), status, held }));
    }

    fn report(&mut self, around: &mut Around<'_>, results: Vec<CommandResult>) {
        for result in results {
            around.trace.note(around.now, &format!("{} reports {}: {:?}", self.node, result.action, result.outcome));
            self.session.handle_input(around.now, AgentInput::Result(result));
        }
    }

    /// Closes the windows that are due, as the pipeline and its finisher do.
    fn close_due(&mut self, desk: &mut Desk<'_, '_>) {
        let wall = desk.wall();
        while let Some(latencies) = self.telemetry.handle_timeout(wall) {
            let usage = self.usage.take(latencies.start).unwrap_or_default();
            let inputs = policy_inputs(&usage);
            let kernel = &desk.around.machine.kernel;
            let offers: Vec<KnobOffer> = self.hands.table.policy().offers(&inputs, |knob| kernel.read(knob).ok());
            self.hands.table.set_inputs(inputs);
            let key = WindowKey { node: self.node.clone(), boot: self.boot, seq: self.seq };
            let window = assemble(key, latencies, usage, offers);
            desk.around.ledger.produce(&window);
            let window = encode(window).expect("an agent's own window holds to the rules");
            desk.around.trace.count(desk.around.now, window.bytes());
            desk.spool.push(window);
            self.seq += 1;
        }
    }

    /// Does what the session wants, and gives it windows, until both rest.
    fn drive(&mut self, desk: &mut Desk<'_, '_>) -> Result<(), Crashed> {
        loop {
            while let Some(output) = self.session.poll_output() {
                match output {
                    AgentOutput::Connect(_) => self.wire.push_back(Wire::Connect),
                    AgentOutput::Send(message) => {
                        let bytes = codec::encode(&message).expect("an agent's own message is short");
                        self.wire.push_back(Wire::Send(Payload::Control(bytes)));
                    }
                    AgentOutput::SendWindow(window) => {
                        self.wire.push_back(Wire::Send(Payload::Window(window.bytes().to_vec())));
                    }
                    AgentOutput::Close(_) => self.wire.push_back(Wire::Close),
                    AgentOutput::Event(event) => self.take_event(event, desk)?,
                }
            }
            let room = self.session.window_room();
            let Some((at, window)) = desk.spool.after(self.cursor).filter(|_| room > 0) else { return Ok(()) };
            self.cursor = Some(at);
            self.session.handle_input(desk.around.now, AgentInput::Window(window));
        }
    }

    fn take_event(&mut self, event: AgentEvent, desk: &mut Desk<'_, '_>) -> Result<(), Crashed> {
        let Around { now, ledger, trace, .. } = &mut *desk.around;
        match event {
            AgentEvent::Connected { term, acknowledged_below, .. } => {
                trace.note(*now, &format!("{} is connected in term {term}", self.node));
                self.cursor = None;
                let is_over = |key: &WindowKey| key.boot == self.boot && key.seq < acknowledged_below;
                ledger.acknowledge(&self.node, self.boot, 0..acknowledged_below);
                desk.spool.forget(is_over);
            }
            AgentEvent::Disconnected(why) => trace.note(*now, &format!("{} is disconnected: {why}", self.node)),
            AgentEvent::Term(term) => trace.note(*now, &format!("{} hears of term {term}", self.node)),
            AgentEvent::Acknowledged { boot, sequences } => {
                ledger.acknowledge(&self.node, boot, sequences.iter().copied());
                desk.spool.forget(|key| key.boot == boot && sequences.contains(&key.seq));
            }
            AgentEvent::Rejected { sequence, reason, .. } => panic!("window {sequence} is rejected: {reason}"),
            AgentEvent::Command(command) => self.obey(command, desk)?,
        }
        Ok(())
    }

    fn obey(&mut self, command: Command, desk: &mut Desk<'_, '_>) -> Result<(), Crashed> {
        let Around { now, trace, .. } = &mut *desk.around;
        let Command { term, action, order } = &command;
        trace.note(*now, &format!("{} is told in term {term}: {action} {order:?}", self.node));
        let now = *now;
        let results = self.hands.take(now, Input::Command(command), &mut desk.world())?;
        self.report(desk.around, results);
        self.tell_state(desk);
        Ok(())
    }
}

/// What policy has to know about the node.
fn policy_inputs(usage: &WindowUsage) -> PolicyInputs {
    let millicores = |cores: f64| (cores * 1e3) as u64;
    let cgroups = usage.cgroups.iter().map(|used| CgroupState {
        cgroup: used.cgroup.clone(),
        service: used.service.clone(),
        used_millicores: used.cores.map(millicores),
    });
    let links = usage.links.iter().filter_map(|used| {
        let link = LinkName::try_from(used.name.clone()).ok()?;
        let used_bits = used.sent_per_s.map(|bytes| (bytes * 8.0) as u64);
        Some(LinkState { link, used_bits, speed_bits: Some(LINK_BITS) })
    });
    PolicyInputs {
        cgroups: cgroups.collect(),
        links: links.collect(),
        capacity_millicores: usage.capacity_cores.map(millicores),
        own_cgroup: None,
    }
}
