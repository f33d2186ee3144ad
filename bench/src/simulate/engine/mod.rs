//! The discrete-event engine: virtual time, requests, cores, threads, connections, links.
//!
//! ```text
//! arrival ─► admission ─► [lock] ─► [stall] ─► cores ─► disk ─► next step ─► ... ─► answer
//!            (threads)                           ▲                 │ call
//!                                                └── reply ◄── pool ─► link ─► callee's admission
//! ```
//!
//! A server span begins when a thread takes the request up; an event loop takes it up when it first works on it. A client
//! span begins when the call is made and covers waiting for a connection. Cores are first come, first served and are not
//! taken away: a slowdown stretches the time on them.

mod call;
mod event;
mod network;
mod report;
mod serve;
mod trace;
mod visit;

use std::{
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
};

use sage_common::{Micros, Span, Timestamp};

use self::{
    call::Call,
    event::{Event, Happens},
    visit::{Fibre, Visit},
};
use super::{
    arrivals::{Arrivals, LoadShape, SECOND},
    counters::Counters,
    effects::{self, Effects},
    fault::FaultPlan,
    model::Model,
    queue::Queue,
    random::Key,
    sink::Sink,
    slab::Slab,
};
use crate::topology::{Concurrency, Topology};

/// What a run needs to know besides its model.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Same seed, same bytes.
    pub seed: u64,
    /// How load varies.
    pub shape: LoadShape,
    /// Requests in the system at once; the others are refused.
    pub in_system_max: u32,
    /// A call that takes longer has failed.
    pub call_timeout: Micros,
    /// A call that ran out of time is made again so many times.
    pub retries: u32,
    /// Share of the traces that are recorded.
    pub sampling: f64,
    /// Whether client spans name whom they called.
    pub has_peer_names: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            shape: LoadShape::default(),
            in_system_max: 600,
            call_timeout: Micros::from_secs(10),
            retries: 0,
            sampling: 1.0,
            has_peer_names: true,
        }
    }
}

/// What became of the requests so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Arrived.
    pub offered: u64,
    /// Turned away because too many were in the system.
    pub refused: u64,
    /// Answered, well or not.
    pub answered: u64,
    /// Of those, answered with an error.
    pub failed: u64,
    /// Still in the system.
    pub in_system: u32,
}

/// Start of every world by its wall clock: 2025-01-06 00:00 UTC, a Monday.
pub const EPOCH: Timestamp = Timestamp::from_micros(1_736_121_600_000_000);

/// The wall clock at `at` nanoseconds after the start of the world.
pub fn wall(at: u64) -> Timestamp {
    EPOCH + Micros::new(at / 1_000)
}

/// One replica as it runs.
#[derive(Clone, Debug)]
struct Replica {
    cores: Queue,
    disk: Queue,
    lock: Queue,
    admission: Queue,
    effects: Effects,
    /// When its link has sent what is waiting, where the link is slow.
    link_free_at: u64,
    counters: Counters,
}

/// Operations that a disk serves at once: an SSD's channels.
const DISK_CHANNELS: u32 = 4;

/// A running world.
#[derive(Debug)]
pub struct Engine {
    model: Arc<Model>,
    options: EngineOptions,
    key: Key,
    now: u64,
    /// Bounded by the requests in the system: each has a bounded number of fibres and calls.
    events: BinaryHeap<Event>,
    sequence: u64,
    arrivals: Arrivals,
    faults: Vec<FaultPlan>,
    replicas: Vec<Replica>,
    gates: Vec<Queue>,
    visits: Slab<Visit>,
    fibres: Slab<Fibre>,
    calls: Slab<Call>,
    /// Deadline, number and serial number of calls, in order: all have the same time.
    deadlines: VecDeque<(u64, u32, u64)>,
    counts: Counts,
    /// Spans that ended in this event, with their machines.
    spans: Vec<(usize, Span)>,
    next_usage: u64,
    /// Whether all spans are wanted, or those of the entry only.
    is_traced: bool,
}

impl Engine {
    /// A world that begins at `from` (whole seconds) with nobody in it.
    pub fn new(topology: &Topology, model: Arc<Model>, options: EngineOptions, from: Micros) -> Self {
        let key = Key::new(options.seed);
        let second = from.get() / 1_000_000;
        let arrivals = Arrivals::new(topology, options.shape, key.child(ARRIVALS), second);
        let mut engine = Self {
            replicas: (0..model.replicas.len()).map(|number| replica(&model, number)).collect(),
            gates: effects::on_gates(&model, &[], from).into_iter().map(Queue::new).collect(),
            model,
            options,
            key,
            now: second * SECOND,
            events: BinaryHeap::new(),
            sequence: 0,
            arrivals,
            faults: Vec::new(),
            visits: Slab::default(),
            fibres: Slab::default(),
            calls: Slab::default(),
            deadlines: VecDeque::new(),
            counts: Counts::default(),
            spans: Vec::new(),
            next_usage: (second + 1) * SECOND,
            is_traced: true,
        };
        engine.apply_faults();
        engine
    }

    /// Reports the entry's server spans only and no usage: for worlds whose end-to-end latency is all that is asked for.
    pub fn entry_only(mut self) -> Self {
        self.is_traced = false;
        self
    }

    /// Puts these faults in place of those before, from now on.
    pub fn set_faults(&mut self, faults: &[FaultPlan]) {
        self.faults = faults.to_vec();
        self.arrivals.set_faults(faults);
        let now = self.now;
        let mut edges: Vec<u64> = faults.iter().flat_map(|fault| [fault.start, fault.end]).map(nanoseconds).collect();
        edges.sort_unstable();
        edges.dedup();
        for at in edges.into_iter().filter(|at| *at > now) {
            self.plan(at, Happens::FaultsChange);
        }
        self.apply_faults();
    }

    /// The faults in place.
    pub fn faults(&self) -> &[FaultPlan] {
        &self.faults
    }

    /// Gives every replica of a tier that many times its cores, from now on; at least one core.
    pub fn scale_cores(&mut self, tier: usize, factor: f64) {
        let tier = &self.model.tiers[tier];
        let cores = ((f64::from(tier.cores) * factor).round() as u32).max(1);
        for number in tier.first..tier.first + tier.replicas {
            self.replicas[number].cores.resize(cores);
            self.fill_cores(number);
        }
    }

    /// Lets time pass until `until`; what happens goes to `sink`.
    pub fn run_until(&mut self, until: Micros, sink: &mut impl Sink) {
        let until = nanoseconds(until);
        while self.step(until, sink) {} // ends: time passes, and arrivals have a rate
        self.now = until.max(self.now);
    }

    /// Requests a second at a time without surges.
    pub fn rate(&self, at: Micros) -> f64 {
        self.arrivals.rate(at.as_secs_f64())
    }

    /// What became of the requests.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Virtual time since the start of the world.
    pub fn now(&self) -> Micros {
        Micros::new(self.now / 1_000)
    }

    /// The model it runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Does what is next before `until`; whether there was anything.
    fn step(&mut self, until: u64, sink: &mut impl Sink) -> bool {
        let event = self.events.peek().map_or(u64::MAX, |event| event.at);
        let deadline = self.deadlines.front().map_or(u64::MAX, |(at, ..)| *at);
        let arrival = self.arrivals.peek().at;
        let next = event.min(deadline).min(arrival);
        if self.next_usage <= until && self.next_usage <= next {
            self.now = self.next_usage;
            self.next_usage += SECOND;
            self.report_usage(sink);
            return true;
        }
        if next >= until {
            return false;
        }
        self.now = next;
        if deadline == next {
            if let Some((_, call, serial)) = self.deadlines.pop_front() {
                self.call_timed_out(call, serial);
            }
        } else if event == next {
            if let Some(event) = self.events.pop() {
                self.handle(event.happens);
            }
        } else {
            let arrival = self.arrivals.take();
            self.arrive(arrival);
        }
        for (machine, span) in self.spans.drain(..) {
            sink.span(machine, &span);
        }
        true
    }

    fn handle(&mut self, happens: Happens) {
        match happens {
            Happens::CoreDone(fibre) => self.core_done(fibre),
            Happens::DiskDone(fibre) => self.disk_done(fibre),
            Happens::LockDone(fibre) => self.lock_done(fibre),
            Happens::StallDone(fibre) => self.stall_done(fibre),
            Happens::Arrives(call) => self.call_arrives(call),
            Happens::Replied(call) => self.call_replied(call),
            Happens::PoolTimeout(call, serial) => self.pool_timed_out(call, serial),
            Happens::FaultsChange => self.apply_faults(),
        }
    }

    fn plan(&mut self, at: u64, happens: Happens) {
        self.sequence += 1;
        self.events.push(Event { at, sequence: self.sequence, happens });
    }

    fn plan_in(&mut self, delay_ns: f64, happens: Happens) {
        self.plan(self.now + delay_ns.max(0.0) as u64, happens);
    }

    fn apply_faults(&mut self) {
        let at = self.now();
        let model = self.model.clone();
        for (number, effects) in effects::on_replicas(&model, &self.faults, at).into_iter().enumerate() {
            let replica = &mut self.replicas[number];
            replica.effects = effects;
            replica.admission.resize(effects.limit);
            while let Some((visit, _)) = self.replicas[number].admission.admit() {
                self.take_up(visit);
            }
        }
        for (number, limit) in effects::on_gates(&model, &self.faults, at).into_iter().enumerate() {
            self.gates[number].resize(limit);
            while let Some((call, _)) = self.gates[number].admit() {
                self.transmit(call);
            }
        }
    }
}

const ARRIVALS: u64 = 1;
const USAGE: u64 = 2;

fn replica(model: &Model, number: usize) -> Replica {
    let tier = &model.tiers[model.replicas[number].tier];
    Replica {
        cores: Queue::new(tier.cores),
        disk: Queue::new(DISK_CHANNELS),
        lock: Queue::new(1),
        admission: Queue::new(tier.limit),
        effects: Effects::none(tier.limit),
        link_free_at: 0,
        counters: Counters::default(),
    }
}

fn nanoseconds(time: Micros) -> u64 {
    time.get().saturating_mul(1_000)
}

/// Whether a request is taken up only when a core first works on it.
fn is_event_loop(concurrency: Concurrency) -> bool {
    matches!(concurrency, Concurrency::EventLoop { .. })
}

#[cfg(test)]
mod tests;
