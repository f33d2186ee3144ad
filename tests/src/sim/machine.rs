//! A machine: its kernel in memory, its clock, its counters, and the best-effort work that may take its processors.

use std::collections::BTreeMap;

use sage_common::{CgroupPath, Knob, Micros, NodeId, Setting, Timestamp};
use sage_node_agent::{
    core::usage::{
        CgroupCpu, Connection, CpuTimes, Disk, InstanceSample, Link, NodeSample, Pressure, Sweep, TaskTimes, Throttle,
    },
    kernel::RecordingKernel,
};

use super::{application::Tier, cluster::CGROUP_HOG, draw::Draw};

/// Processors of a machine.
const CORES: f64 = 2.0;
/// What a hog takes if nothing holds it.
const HOG_CORES: f64 = 1.9;
/// Best effort between two hogs.
const IDLE_CORES: f64 = 0.02;
/// A machine with less of its processors free makes everybody wait.
const FREE_MIN: f64 = 0.4;
/// How much longer services take then.
const SLOWDOWN: f64 = 12.0;

/// Best-effort work that hurts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hog {
    /// Takes processors: a lower quota helps, and so does a freeze.
    Processor,
    /// Hurts with whatever processor time it gets: only a freeze helps.
    Stubborn,
}

/// One machine.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub node: NodeId,
    /// Its kernel.
    pub kernel: RecordingKernel,
    /// Best-effort work that hurts, if any.
    pub hog: Option<Hog>,
    /// Which boot of the machine this is.
    pub boot: u64,
    /// Its wall clock at the start of the simulation.
    clock: Timestamp,
    has_jumped: bool,
    as_found: BTreeMap<Knob, Setting>,
    counted: Micros,
    counters: Counters,
    draw: Draw,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    batch_ns: f64,
    busy_ticks: f64,
    total_ticks: f64,
    wait_us: f64,
    seconds: f64,
    services_us: f64,
}

impl Machine {
    pub(super) fn new(number: usize, seed: u64, clock: Timestamp) -> Self {
        let mut draw = Draw::new(seed, 10 + number as u64);
        let clock = clock + draw.millis(0..=60);
        let as_found = BTreeMap::from([
            (Knob::CpuQuota { cgroup: hog() }, Setting::Cores(None)),
            (Knob::Freeze { cgroup: hog() }, Setting::Frozen(false)),
        ]);
        Self {
            node: NodeId::sanitized(&format!("node-{}", char::from(b'a' + number as u8))),
            kernel: RecordingKernel::new(as_found.clone()),
            hog: None,
            boot: 1,
            clock,
            has_jumped: false,
            as_found,
            counted: Micros::ZERO,
            counters: Counters::default(),
            draw,
        }
    }

    /// What its wall clock shows at `now`.
    pub fn wall(&self, now: Micros) -> Timestamp {
        self.clock + now
    }

    /// Sets its wall clock forward, or back.
    pub fn jump(&mut self, by: Micros, is_back: bool) {
        self.clock = if is_back { self.clock - by } else { self.clock + by };
        self.has_jumped = true;
    }

    pub(super) fn has_jumped(&self) -> bool {
        self.has_jumped
    }

    /// Starts it anew: the kernel forgets every setting.
    pub fn reboot(&mut self) {
        self.boot += 1;
        self.kernel.settings = self.as_found.clone();
    }

    /// The knobs that are not as they were found.
    pub fn changed(&self) -> Vec<Knob> {
        let is_changed = |(knob, setting): &(&Knob, &Setting)| self.as_found.get(*knob) != Some(*setting);
        self.kernel.settings.iter().filter(is_changed).map(|(knob, _)| knob.clone()).collect()
    }

    /// By what factor services take longer here now.
    pub(super) fn slowdown(&self) -> f64 {
        let is_crowded = CORES - self.batch_cores() < FREE_MIN;
        let is_hurt = match self.hog {
            None => false,
            Some(Hog::Processor) => is_crowded,
            Some(Hog::Stubborn) => self.batch_cores() > 0.0,
        };
        if is_hurt { SLOWDOWN } else { 1.0 }
    }

    fn batch_cores(&self) -> f64 {
        let setting = |knob: Knob| self.kernel.settings.get(&knob).cloned();
        if setting(Knob::Freeze { cgroup: hog() }) == Some(Setting::Frozen(true)) {
            return 0.0;
        }
        let wanted = if self.hog.is_some() { HOG_CORES } else { IDLE_CORES };
        match setting(Knob::CpuQuota { cgroup: hog() }) {
            Some(Setting::Cores(Some(millicores))) => wanted.min(f64::from(millicores) / 1e3),
            _ => wanted,
        }
    }

    /// Reads every counter, as a sampler would at `now`.
    pub(super) fn sweep(&mut self, now: Micros, tiers: &[Tier]) -> Sweep {
        let here: Vec<&Tier> = tiers.iter().filter(|tier| self.node_is(tier)).collect();
        self.advance(now, &here);
        let instances = here.iter().map(|tier| self.instance(tier)).collect();
        let service_cpu = |tier: &&Tier| CgroupCpu {
            cgroup: cgroup(&format!("app/{}", tier.address)),
            service: Some(tier.service.clone()),
            life: tier.life,
            cpu_ns: Some((tier.cpu_us * 1e3) as u64),
        };
        let batch = CgroupCpu { cgroup: hog(), service: None, life: 1, cpu_ns: Some(self.counters.batch_ns as u64) };
        let cgroups = here.iter().map(service_cpu).chain([batch]).collect();
        Sweep { at: now, node: self.node_sample(), instances, cgroups }
    }

    fn node_is(&self, tier: &Tier) -> bool {
        self.node.as_str().as_bytes().last() == Some(&(b'a' + tier.machine as u8))
    }

    /// Lets the counters run up to `now`.
    fn advance(&mut self, now: Micros, here: &[&Tier]) {
        let seconds = now.saturating_sub(self.counted).as_secs_f64();
        self.counted = now;
        let services_us: f64 = here.iter().map(|tier| tier.cpu_us).sum();
        let batch = self.draw.about(self.batch_cores(), 0.03) * seconds;
        let services = (services_us - self.counters.services_us).max(0.0) / 1e6;
        let waiting = if self.slowdown() > 1.0 { 0.6 } else { 0.02 };
        let Counters { batch_ns, busy_ticks, total_ticks, wait_us, seconds: all, services_us: seen } =
            &mut self.counters;
        *batch_ns += batch * 1e9;
        *busy_ticks += (batch + services).min(CORES * seconds) * 100.0;
        *total_ticks += CORES * seconds * 100.0;
        *wait_us += self.draw.about(waiting, 0.2) * seconds * 1e6;
        *all += seconds;
        *seen = services_us;
    }

    /// A counter that has run at about `per_s` since the start.
    fn steady(&mut self, per_s: f64) -> u64 {
        let seconds = self.counters.seconds;
        // What one reading is off by is small against what a second adds, so it never runs backwards.
        (per_s * seconds + self.draw.about(per_s * 0.1, 0.5)) as u64
    }

    fn instance(&mut self, tier: &Tier) -> InstanceSample {
        let wait_us = self.counters.wait_us;
        let task = TaskTimes { tid: 1, wait_ns: (wait_us * 1e3) as u64, switches: self.steady(200.0) };
        let connection = Connection {
            cookie: tier.life,
            srtt_us: self.draw.about(400.0, 0.1) as u32,
            retransmits: 0,
            segments_out: self.steady(50.0) as u32,
        };
        InstanceSample {
            cpu_ns: Some((tier.cpu_us * 1e3) as u64),
            throttles: vec![Throttle { depth: 1, periods: self.steady(10.0), throttled: 0 }],
            threads: Some(8),
            tasks: Some(vec![task]),
            pressure: Pressure { cpu_us: Some(wait_us as u64), memory_us: Some(0), io_us: Some(0) },
            memory_used: Some(self.draw.about(2e8, 0.02) as u64),
            major_faults: Some(0),
            disk_bytes: Some(self.steady(2e4)),
            disk_operations: Some(self.steady(5.0)),
            connections: Some(vec![connection]),
            open_files: Some(40),
            ..InstanceSample::empty(tier.service.clone(), tier.instance(), tier.life)
        }
    }

    fn node_sample(&mut self) -> NodeSample {
        let Counters { busy_ticks, total_ticks, wait_us, .. } = self.counters;
        let cpu = CpuTimes { busy: busy_ticks as u64, steal: 0, total: total_ticks as u64, cores: CORES as u32 };
        let disk = Disk {
            name: "vda".to_owned(),
            operations: self.steady(20.0),
            operation_ms: self.steady(20.0),
            busy_ms: self.steady(15.0),
        };
        let link =
            Link { index: 2, name: "eth0".to_owned(), received: self.steady(1e6), sent: self.steady(1e6), drops: 0 };
        NodeSample {
            cpu: Some(cpu),
            pressure: Pressure { cpu_us: Some(wait_us as u64), memory_us: Some(0), io_us: Some(0) },
            memory_used: Some(self.draw.about(2e9, 0.01) as u64),
            memory_total: Some(8_000_000_000),
            disks: vec![disk],
            links: vec![link],
            ..NodeSample::default()
        }
    }
}

pub(super) fn cgroup(path: &str) -> CgroupPath {
    CgroupPath::try_from(path.to_owned()).expect("the simulation's own paths are valid")
}

fn hog() -> CgroupPath {
    cgroup(CGROUP_HOG)
}
