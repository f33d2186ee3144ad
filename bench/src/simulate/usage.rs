//! From what replicas did to what their machines' samplers read, with the noise that samplers have.
//!
//! Cause metrics speak of the competition itself; effect metrics (threads, connections, run queue, own CPU) come from what
//! the replica did, so back-pressure shows in them wherever it reaches. Decoys raise the former and leave the latter.

use rand::Rng;
use rand_distr::{Distribution, Poisson};
use sage_common::{Metric, Timestamp};

use super::{
    counters::Counters,
    effects::Effects,
    model::{Model, Tier},
    random::{Key, drift},
    sink::{InstanceSecond, UsageSecond},
};
use crate::topology::Concurrency;

/// What one replica looks like at the end of a second.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// What it did.
    pub counters: &'a Counters,
    /// What is wrong with it.
    pub effects: &'a Effects,
    /// Requests being served.
    pub serving: u32,
    /// Bytes that wait on its link.
    pub backlog_bytes: f64,
}

/// One second of every machine. `key` names the noise, which is the same in worlds that differ by a fault.
pub fn seconds(model: &Model, key: Key, second: u64, at: Timestamp, states: &[State<'_>]) -> Vec<UsageSecond> {
    let mut machines: Vec<Machine> = vec![Machine::default(); model.machines.len()];
    for (replica, state) in model.replicas.iter().zip(states) {
        machines[replica.machine].add(&model.tiers[replica.tier], state);
    }
    let mut seconds: Vec<UsageSecond> = machines
        .iter()
        .enumerate()
        .map(|(number, machine)| UsageSecond {
            at,
            machine: number,
            node: model.machines[number].clone(),
            of_node: machine.read(Noise { key: key.child(MACHINE).child(number as u64), second }),
            instances: Vec::new(),
        })
        .collect();
    for (number, (replica, state)) in model.replicas.iter().zip(states).enumerate() {
        let tier = &model.tiers[replica.tier];
        let noise = Noise { key: key.child(INSTANCE).child(number as u64), second };
        let metrics = instance(tier, state, &machines[replica.machine], noise);
        let (service, instance) = (tier.service.clone(), replica.instance.clone());
        seconds[replica.machine].instances.push(InstanceSecond { service, instance, metrics });
    }
    seconds
}

const MACHINE: u64 = 1;
const INSTANCE: u64 = 2;

/// Sums over the replicas of one machine.
#[derive(Clone, Copy, Debug, Default)]
struct Machine {
    cores: f64,
    used_cores: f64,
    hog_cores: f64,
    hog_memory: f64,
    memory: f64,
    disk_busy: f64,
    disk_wait_ns: f64,
    disk_operations: f64,
    disk_shown: f64,
    sent: f64,
    received: f64,
    drops: f64,
    loss_shown: f64,
    backlog: f64,
}

/// Cores of a machine over those that its tiers may use.
const CORES_SPARE: f64 = 2.0;
/// What the system itself does on a machine: cores, disk operations a second and their time, bytes a second.
const SYSTEM_CORES: f64 = 0.08;
const SYSTEM_DISK_OPERATIONS: f64 = 5.0;
const SYSTEM_DISK_NS: f64 = 400e3;
const SYSTEM_BYTES: f64 = 20e3;
/// Memory of a machine per core, bytes.
const MEMORY_PER_CORE: f64 = 4e9;
/// The most that one operation of a busy device is seen to take.
const AWAIT_MAX_MS: f64 = 200.0;

impl Machine {
    fn add(&mut self, tier: &Tier, state: &State<'_>) {
        let State { counters, effects, .. } = state;
        let cores = f64::from(tier.cores) * tier.speed;
        self.cores += CORES_SPARE * cores;
        self.used_cores += counters.cpu_ns / 1e9;
        // A hog of the cores takes what it gets; one of the memory keeps half of them busy, one of the disk a tenth.
        let hog = effects.cpu.share_shown() + 0.5 * effects.mem.share_shown() + 0.1 * effects.disk.share_shown();
        self.hog_cores += hog * cores;
        self.hog_memory += 0.25 * effects.mem.share_shown();
        self.memory += memory_used(tier, state);
        self.disk_busy += counters.disk_busy_ns / 1e9;
        // A decoy shows in the operations without having slowed them.
        self.disk_wait_ns += counters.disk_wait_ns * effects.disk.shown / effects.disk.slowdown;
        self.disk_operations += counters.disk_operations as f64;
        self.disk_shown = self.disk_shown.max(effects.disk.shown);
        self.sent += counters.bytes_sent;
        self.received += counters.bytes_received;
        self.drops += counters.drops as f64;
        self.loss_shown += effects.loss_shown;
        self.backlog += state.backlog_bytes;
    }

    fn cores(&self) -> f64 {
        self.cores.max(2.0)
    }

    fn read(&self, noise: Noise) -> Vec<(Metric, f32)> {
        let system = SYSTEM_CORES * (1.0 + 0.5 * noise.slow(0).abs());
        let used = (self.used_cores + self.hog_cores + system).min(self.cores());
        let hog_disk = 1.0 - 1.0 / self.disk_shown.max(1.0);
        let wait_ms = (self.disk_wait_ns + SYSTEM_DISK_OPERATIONS * SYSTEM_DISK_NS * self.disk_shown.max(1.0)) / 1e6;
        let operations = self.disk_operations + SYSTEM_DISK_OPERATIONS;
        let mut values = Values::new(noise);
        values.share(Metric::NodeCpuUtilisation, used / self.cores(), 0.03);
        values.share(Metric::NodeCpuSteal, 0.002, 0.5);
        let memory = self.memory / (MEMORY_PER_CORE * self.cores());
        values.share(Metric::NodeMemoryUtilisation, 0.2 + memory + self.hog_memory, 0.01);
        values.push(Metric::NodeDiskAwait, (wait_ms / operations).min(AWAIT_MAX_MS), 0.1);
        let busy = 1.0 - (1.0 - self.disk_busy.min(1.0)) * (1.0 - 0.9 * hog_disk) * (1.0 - SYSTEM_DISK_NS / 1e9);
        values.share(Metric::NodeDiskUtilisation, busy, 0.08);
        values.push(Metric::NodeNetworkReceived, self.received + SYSTEM_BYTES, 0.03);
        values.push(Metric::NodeNetworkSent, self.sent + SYSTEM_BYTES, 0.03);
        let drops = self.drops + values.noise.count(Metric::NodeNetworkDrops, 0.05 + 0.5 * self.loss_shown);
        values.exact(Metric::NodeNetworkDrops, drops);
        values.push(Metric::NodeQdiscBacklog, self.backlog, 0.1);
        values.read
    }
}

/// What one instance's cgroup and processes show.
fn instance(tier: &Tier, state: &State<'_>, machine: &Machine, noise: Noise) -> Vec<(Metric, f32)> {
    let State { counters, effects, .. } = *state;
    let limit = f64::from(tier.cores) * tier.speed;
    let used = counters.cpu_ns / 1e9;
    let mut values = Values::new(noise);
    values.push(Metric::CpuUsed, used, 0.02);
    values.push(Metric::CpuLimitShare, used / limit, 0.02);
    values.share(Metric::CpuThrottled, 0.6 * ((used / limit - 0.85) / 0.15).clamp(0.0, 1.0), 0.2);
    let wait = counters.wait_ns / 1e9;
    let hogged = effects.cpu.share_shown();
    values.push(Metric::RunQueueWait, wait + 0.05 * hogged, 0.1);
    // Some task waits: as if waits began independently of each other.
    values.share(Metric::CpuPressure, 1.0 - (1.0 - 0.3 * hogged) * (-wait).exp(), 0.1);
    values.push(Metric::ContextSwitches, 100.0 + 2.0 * counters.slices as f64 + 0.5 * counters.messages as f64, 0.05);
    let others = (machine.used_cores - used).max(0.0) + machine.hog_cores + SYSTEM_CORES;
    values.push(Metric::NodeCpuCoRunners, others, 0.08);
    let memory = memory_used(tier, state);
    values.push(Metric::MemoryUsed, memory, 0.01);
    values.share(Metric::MemoryLimitShare, memory / (3.0 * memory_base(tier)), 0.01);
    let thrashing = effects.mem.share_shown();
    let faults = values.noise.count(Metric::MajorFaults, 0.1 + 20.0 * thrashing);
    values.exact(Metric::MajorFaults, faults);
    values.share(Metric::MemoryPressure, 0.004 + 0.3 * thrashing, 0.2);
    values.push(Metric::LlcMisses, (1e4 + 4e6 * used * tier.shares.mem.max(0.02)) * (1.0 + 10.0 * thrashing), 0.08);
    let operations = counters.disk_operations as f64;
    values.push(Metric::DiskOperations, operations, 0.02);
    values.push(Metric::DiskBytes, operations * 4_096.0, 0.03);
    let hog = if tier.shares.disk > 0.0 { 0.4 * effects.disk.share_shown() } else { 0.0 };
    values.share(Metric::IoPressure, 1.0 - (1.0 - hog) * (-counters.disk_wait_ns / 1e9).exp(), 0.15);
    connections(tier, state, &mut values);
    values.read
}

fn connections(tier: &Tier, state: &State<'_>, values: &mut Values) {
    let State { counters, effects, serving, .. } = *state;
    if let Some(round_trip) = counters.round_trip_ms() {
        values.push(Metric::RoundTrip, round_trip, 0.04);
    }
    let others = values.noise.count(Metric::Retransmits, 0.1 + effects.loss_shown);
    values.exact(Metric::Retransmits, counters.retransmits as f64 + others);
    let inbound = counters.open_inbound().max(f64::from(serving));
    let open = 2.0 + inbound + counters.open_outbound();
    values.exact(Metric::Connections, open.round());
    values.exact(Metric::OpenFiles, (20.0 + open).round());
    let threads = match tier.concurrency {
        Concurrency::EventLoop { workers, .. } => 1.0 + f64::from(workers),
        Concurrency::ThreadPerConnection {} => 4.0 + inbound,
        Concurrency::ThreadPool { threads } | Concurrency::SingleThread { threads } => 3.0 + f64::from(threads),
        Concurrency::Goroutines {} => 6.0 + f64::from(tier.cores),
        Concurrency::None {} => 1.0,
    };
    values.exact(Metric::Threads, threads.round());
}

/// A tier's memory without load: 40 to 640 MB, by its name.
fn memory_base(tier: &Tier) -> f64 {
    let name = tier.service.as_str().bytes().fold(Key::new(0), |key, byte| key.child(u64::from(byte)));
    40e6 * 16.0_f64.powf(name.uniform())
}

/// A request in service holds this much, a connection that.
const REQUEST_BYTES: f64 = 256e3;
const CONNECTION_BYTES: f64 = 64e3;

fn memory_used(tier: &Tier, state: &State<'_>) -> f64 {
    let open = state.counters.open_inbound() + state.counters.open_outbound();
    memory_base(tier) + REQUEST_BYTES * f64::from(state.serving) + CONNECTION_BYTES * open
}

/// Noise of one thing's samplers in one second.
#[derive(Clone, Copy, Debug)]
struct Noise {
    key: Key,
    second: u64,
}

/// Metrics wander by a few percent over such a time, for reasons that nobody knows.
const WANDER_PERIOD_S: f64 = 45.0;
const WANDER: f64 = 0.02;

impl Noise {
    fn key(&self, metric: Metric) -> Key {
        self.key.child(metric.index() as u64).child(self.second)
    }

    fn slow(&self, name: u64) -> f64 {
        drift(self.key.child(WANDERS).child(name), self.second as f64, WANDER_PERIOD_S)
    }

    /// A factor near 1.
    fn factor(&self, metric: Metric, spread: f64) -> f64 {
        let wander = WANDER * self.slow(metric.index() as u64 + 1);
        (spread * self.key(metric).normal() + wander).exp()
    }

    /// A Poisson count.
    fn count(&self, metric: Metric, mean: f64) -> f64 {
        let mut rng = self.key(metric).rng();
        if mean < 0.5 {
            // Two at once in a second are too rare to matter.
            return if rng.random::<f64>() < mean { 1.0 } else { 0.0 };
        }
        Poisson::new(mean).map_or(0.0, |poisson| poisson.sample(&mut rng))
    }
}

const WANDERS: u64 = 1 << 32;

struct Values {
    noise: Noise,
    read: Vec<(Metric, f32)>,
}

impl Values {
    fn new(noise: Noise) -> Self {
        Self { noise, read: Vec::with_capacity(20) }
    }

    fn exact(&mut self, metric: Metric, value: f64) {
        self.read.push((metric, value.max(0.0) as f32));
    }

    fn push(&mut self, metric: Metric, value: f64, spread: f64) {
        let factor = self.noise.factor(metric, spread);
        self.exact(metric, value * factor);
    }

    /// As [`push`](Self::push), for a share: at most 1.
    fn share(&mut self, metric: Metric, value: f64, spread: f64) {
        let factor = self.noise.factor(metric, spread);
        self.exact(metric, (value * factor).min(1.0));
    }
}
