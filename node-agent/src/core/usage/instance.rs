//! From two samples of one instance to its metrics.

use std::collections::BTreeMap;

use sage_common::{Metric, Micros};

use super::{
    InstanceSample, Throttle,
    rates::{Birth, Counter, Family},
    values::{PressureRates, Values, share},
};

/// The counters of one life of an instance.
#[derive(Debug)]
pub(super) struct InstanceRates {
    cpu: Counter,
    throttles: BTreeMap<u16, Throttle>,
    wait: Family<u32>,
    switches: Family<u32>,
    pressure: PressureRates,
    major_faults: Counter,
    disk_bytes: Counter,
    disk_operations: Counter,
    retransmits: Family<u64>,
    segments: BTreeMap<u64, u32>,
}

impl Default for InstanceRates {
    fn default() -> Self {
        Self {
            cpu: Counter::default(),
            throttles: BTreeMap::new(),
            wait: Family::new(Birth::Counts),
            switches: Family::new(Birth::Counts),
            pressure: PressureRates::default(),
            major_faults: Counter::default(),
            disk_bytes: Counter::default(),
            disk_operations: Counter::default(),
            retransmits: Family::new(Birth::Marks),
            segments: BTreeMap::new(),
        }
    }
}

impl InstanceRates {
    /// Takes one sample; what it says goes to `values`. `node_cores` are in use on the node by anyone.
    pub(super) fn advance(
        &mut self,
        at: Micros,
        sample: &InstanceSample,
        node_cores: Option<f64>,
        values: &mut Values,
    ) {
        let cores = self.cpu.rate(at, sample.cpu_ns).map(|ns_per_s| ns_per_s / 1e9);
        values.push(Metric::CpuUsed, cores);
        values.push(Metric::CpuLimitShare, share(cores, sample.limit_cores));
        values.push(Metric::CpuThrottled, self.throttled(&sample.throttles));
        values.push(Metric::NodeCpuCoRunners, node_cores.zip(cores).map(|(node, own)| (node - own).max(0.0)));
        self.advance_tasks(at, sample, values);
        self.pressure.advance(at, &sample.pressure, values);
        let used = sample.memory_used.map(|bytes| bytes as f64);
        values.push(Metric::MemoryUsed, used);
        values.push(Metric::MemoryLimitShare, share(used, sample.memory_limit.map(|bytes| bytes as f64)));
        values.push(Metric::MajorFaults, self.major_faults.rate(at, sample.major_faults));
        values.push(Metric::DiskBytes, self.disk_bytes.rate(at, sample.disk_bytes));
        values.push(Metric::DiskOperations, self.disk_operations.rate(at, sample.disk_operations));
        values.push(Metric::OpenFiles, sample.open_files.map(|count| count as f64));
        self.advance_connections(at, sample, values);
    }

    fn advance_tasks(&mut self, at: Micros, sample: &InstanceSample, values: &mut Values) {
        let tasks = sample.tasks.as_deref();
        let wait = self.wait.rate(at, tasks.map(|tasks| tasks.iter().map(|task| (task.tid, task.wait_ns))));
        values.push(Metric::RunQueueWait, wait.map(|ns_per_s| ns_per_s / 1e9));
        let switches = self.switches.rate(at, tasks.map(|tasks| tasks.iter().map(|task| (task.tid, task.switches))));
        values.push(Metric::ContextSwitches, switches);
        values.push(Metric::Threads, sample.threads.map(|count| count as f64));
    }

    /// The largest share of throttled periods of the instance's cgroup and those above it: a parent's quota stops its
    /// children too. Zero where no period passed: a cgroup without a limit, or an idle one, was not held back.
    fn throttled(&mut self, now: &[Throttle]) -> Option<f64> {
        let before = std::mem::take(&mut self.throttles);
        self.throttles = now.iter().map(|throttle| (throttle.depth, *throttle)).collect();
        let shares = now.iter().filter_map(|throttle| {
            let old = before.get(&throttle.depth)?;
            let periods = throttle.periods.checked_sub(old.periods)?;
            let throttled = throttle.throttled.checked_sub(old.throttled)?;
            Some(if periods == 0 { 0.0 } else { (throttled as f64 / periods as f64).min(1.0) })
        });
        shares.reduce(f64::max)
    }

    /// The round trip is the mean over the connections that sent something since the last sample: an idle
    /// connection's is a memory of other times.
    fn advance_connections(&mut self, at: Micros, sample: &InstanceSample, values: &mut Values) {
        let connections = sample.connections.as_deref();
        let again =
            self.retransmits.rate(at, connections.map(|all| all.iter().map(|c| (c.cookie, u64::from(c.retransmits)))));
        values.push(Metric::Retransmits, again);
        values.push(Metric::Connections, connections.map(|all| all.len() as f64));
        let before = std::mem::take(&mut self.segments);
        let all = connections.unwrap_or_default();
        self.segments = all.iter().map(|c| (c.cookie, c.segments_out)).collect();
        let is_active = |cookie: u64, sent: u32| before.get(&cookie).is_some_and(|old| sent > *old);
        let active: Vec<f64> = all
            .iter()
            .filter(|c| c.srtt_us > 0 && is_active(c.cookie, c.segments_out))
            .map(|c| f64::from(c.srtt_us) / 1e3)
            .collect();
        let mean = (!active.is_empty()).then(|| active.iter().sum::<f64>() / active.len() as f64);
        values.push(Metric::RoundTrip, mean);
    }
}
