//! One window of usage: a percentile vector per instance and one for the node.

use std::collections::BTreeMap;

use sage_common::{InstanceId, InstanceUsage, Metric, MetricValue, Micros, ServiceId, UsageQuantiles};

use super::{
    InstanceSample, NodeSample, Pressure, Sweep, Throttle,
    rates::{Birth, Counter, Family, elapsed_s},
    rules::INSTANCES_MAX,
};

/// Samples of one metric kept per window: an hour of seconds, the longest window that the configuration accepts.
pub const SAMPLES_MAX: usize = 3_600;

/// Turns sweeps into windows. Ordered maps throughout, so that the same sweeps give the same windows.
#[derive(Debug, Default)]
pub struct UsageTracker {
    node: NodeRates,
    node_values: Values,
    instances: BTreeMap<InstanceId, Followed>,
}

/// What a window says about usage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WindowUsage {
    /// Every instance that was alive at the end of the window.
    pub instances: Vec<InstanceUsage>,
    /// The node.
    pub node: Vec<MetricValue>,
}

#[derive(Debug)]
struct Followed {
    service: ServiceId,
    life: u64,
    rates: InstanceRates,
    values: Values,
}

impl UsageTracker {
    /// Takes one sweep. An instance that is not in it is forgotten; one whose `life` changed begins anew.
    pub fn handle_sweep(&mut self, sweep: &Sweep) {
        let node_cores = self.node.advance(sweep.at, &sweep.node, &mut self.node_values);
        self.instances.retain(|id, _| sweep.instances.iter().any(|sample| sample.instance == *id));
        for sample in &sweep.instances {
            let is_same = self.instances.get(&sample.instance).is_some_and(|followed| followed.is_of(sample));
            if !is_same {
                if self.instances.len() >= INSTANCES_MAX {
                    continue;
                }
                self.instances.insert(sample.instance.clone(), Followed::new(sample));
            }
            if let Some(followed) = self.instances.get_mut(&sample.instance) {
                followed.rates.advance(sweep.at, sample, node_cores, &mut followed.values);
            }
        }
    }

    /// Ends the window: percentiles of what was sampled since the last call. Counters run on.
    pub fn close(&mut self) -> WindowUsage {
        let instances = self.instances.iter_mut().filter_map(|(instance, followed)| {
            let metrics = followed.values.drain();
            (!metrics.is_empty()).then(|| InstanceUsage {
                service: followed.service.clone(),
                instance: instance.clone(),
                metrics,
            })
        });
        WindowUsage { instances: instances.collect(), node: self.node_values.drain() }
    }
}

impl Followed {
    fn new(sample: &InstanceSample) -> Self {
        let (rates, values) = (InstanceRates::default(), Values::default());
        Self { service: sample.service.clone(), life: sample.life, rates, values }
    }

    fn is_of(&self, sample: &InstanceSample) -> bool {
        self.life == sample.life && self.service == sample.service
    }
}

/// The samples of one window by metric.
#[derive(Debug, Default)]
struct Values(BTreeMap<Metric, Vec<f32>>);

impl Values {
    /// Keeps a value if it is there, finite and not negative.
    fn push(&mut self, metric: Metric, value: Option<f64>) {
        let Some(value) = value.map(|value| value as f32).filter(|value| value.is_finite() && *value >= 0.0) else {
            return;
        };
        let values = self.0.entry(metric).or_default();
        if values.len() < SAMPLES_MAX {
            values.push(value);
        }
    }

    fn drain(&mut self) -> Vec<MetricValue> {
        let grid = |(metric, mut values): (Metric, Vec<f32>)| {
            UsageQuantiles::of_values(&mut values).map(|quantiles| MetricValue { metric, quantiles })
        };
        std::mem::take(&mut self.0).into_iter().filter_map(grid).collect()
    }
}

/// Counters of the three PSI totals.
#[derive(Debug, Default)]
struct PressureRates([Counter; 3]);

impl PressureRates {
    fn advance(&mut self, at: Micros, pressure: &Pressure, values: &mut Values) {
        let totals = [
            (Metric::CpuPressure, pressure.cpu_us),
            (Metric::MemoryPressure, pressure.memory_us),
            (Metric::IoPressure, pressure.io_us),
        ];
        for (counter, (metric, total)) in self.0.iter_mut().zip(totals) {
            values.push(metric, counter.rate(at, total).map(|us_per_s| (us_per_s / 1e6).min(1.0)));
        }
    }
}

#[derive(Debug)]
struct InstanceRates {
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
    fn advance(&mut self, at: Micros, sample: &InstanceSample, node_cores: Option<f64>, values: &mut Values) {
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
        values.push(Metric::Threads, tasks.map(|tasks| tasks.len() as f64));
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

fn share(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    part.zip(whole.filter(|whole| *whole > 0.0)).map(|(part, whole)| part / whole)
}

#[derive(Debug)]
struct NodeRates {
    cpu: Option<(Micros, super::CpuTimes)>,
    slice: Counter,
    slice_life: Option<u64>,
    pressure: PressureRates,
    disk_operations: Family<String>,
    disk_time: Family<String>,
    disk_busy: BTreeMap<String, Counter>,
    received: Family<(i32, String)>,
    sent: Family<(i32, String)>,
    link_drops: Family<(i32, String)>,
    qdisc_drops: Family<(i32, u32)>,
}

impl Default for NodeRates {
    fn default() -> Self {
        Self {
            cpu: None,
            slice: Counter::default(),
            slice_life: None,
            pressure: PressureRates::default(),
            disk_operations: Family::new(Birth::Marks),
            disk_time: Family::new(Birth::Marks),
            disk_busy: BTreeMap::new(),
            received: Family::new(Birth::Marks),
            sent: Family::new(Birth::Marks),
            link_drops: Family::new(Birth::Marks),
            qdisc_drops: Family::new(Birth::Marks),
        }
    }
}

impl NodeRates {
    /// Takes the node's sample; returns the cores in use on the node by anyone.
    fn advance(&mut self, at: Micros, sample: &NodeSample, values: &mut Values) -> Option<f64> {
        let machine = self.machine_cpu(at, sample, values);
        let (used, capacity) = match &sample.slice {
            Some(slice) => {
                (self.slice_cores(at, slice), slice.limit_cores.or(sample.cpu.map(|cpu| f64::from(cpu.cores))))
            }
            None => (machine, sample.cpu.map(|cpu| f64::from(cpu.cores))),
        };
        values.push(Metric::NodeCpuUtilisation, share(used, capacity));
        self.pressure.advance(at, &sample.pressure, values);
        let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
        values.push(Metric::NodeMemoryUtilisation, share(bytes(sample.memory_used), bytes(sample.memory_total)));
        self.advance_disks(at, sample, values);
        self.advance_links(at, sample, values);
        used
    }

    /// Cores in use by `/proc/stat`; pushes steal.
    fn machine_cpu(&mut self, at: Micros, sample: &NodeSample, values: &mut Values) -> Option<f64> {
        let before = std::mem::replace(&mut self.cpu, sample.cpu.map(|cpu| (at, cpu)));
        let ((then, old), new) = (before?, sample.cpu?);
        elapsed_s(then, at)?;
        let total = new.total.checked_sub(old.total).filter(|ticks| *ticks > 0)? as f64;
        values.push(Metric::NodeCpuSteal, new.steal.checked_sub(old.steal).map(|ticks| ticks as f64 / total));
        Some(new.busy.checked_sub(old.busy)? as f64 / total * f64::from(new.cores))
    }

    fn slice_cores(&mut self, at: Micros, slice: &super::SliceSample) -> Option<f64> {
        if self.slice_life.replace(slice.life) != Some(slice.life) {
            self.slice = Counter::default();
        }
        self.slice.rate(at, slice.cpu_ns).map(|ns_per_s| ns_per_s / 1e9)
    }

    fn advance_disks(&mut self, at: Micros, sample: &NodeSample, values: &mut Values) {
        if sample.disks.is_empty() {
            return;
        }
        let disks = &sample.disks;
        let operations = self.disk_operations.rate(at, Some(disks.iter().map(|d| (d.name.clone(), d.operations))));
        let time = self.disk_time.rate(at, Some(disks.iter().map(|d| (d.name.clone(), d.operation_ms))));
        values.push(Metric::NodeDiskAwait, share(time, operations));
        self.disk_busy.retain(|name, _| disks.iter().any(|disk| disk.name == *name));
        let busy = disks
            .iter()
            .filter_map(|disk| self.disk_busy.entry(disk.name.clone()).or_default().rate(at, Some(disk.busy_ms)));
        let busiest = busy.reduce(f64::max).map(|ms_per_s| (ms_per_s / 1e3).min(1.0));
        values.push(Metric::NodeDiskUtilisation, busiest);
    }

    fn advance_links(&mut self, at: Micros, sample: &NodeSample, values: &mut Values) {
        let qdiscs = &sample.qdiscs;
        let shed = self.qdisc_drops.rate(at, Some(qdiscs.iter().map(|q| ((q.link, q.handle), q.drops))));
        if !qdiscs.is_empty() {
            let backlog = qdiscs.iter().map(|qdisc| qdisc.backlog as f64).sum::<f64>();
            values.push(Metric::NodeQdiscBacklog, Some(backlog));
        }
        if sample.links.is_empty() {
            return;
        }
        let by = |value: fn(&super::Link) -> u64| {
            Some(sample.links.iter().map(move |link| ((link.index, link.name.clone()), value(link))))
        };
        values.push(Metric::NodeNetworkReceived, self.received.rate(at, by(|link| link.received)));
        values.push(Metric::NodeNetworkSent, self.sent.rate(at, by(|link| link.sent)));
        let dropped = self.link_drops.rate(at, by(|link| link.drops));
        values.push(Metric::NodeNetworkDrops, dropped.map(|dropped| dropped + shed.unwrap_or(0.0)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::*, *};

    fn instance(name: &str) -> InstanceSample {
        InstanceSample::empty("svc".parse().expect("valid"), InstanceId::sanitized(name), 1)
    }

    fn sweep(second: u64, instances: Vec<InstanceSample>) -> Sweep {
        Sweep { at: Micros::from_secs(second), node: NodeSample::default(), instances }
    }

    fn median(metrics: &[MetricValue], metric: Metric) -> Option<f32> {
        metrics.iter().find(|value| value.metric == metric).map(|value| value.quantiles.median())
    }

    fn cores(tracker: &mut UsageTracker, metric: Metric) -> Option<f32> {
        let usage = tracker.close();
        usage.instances.first().and_then(|instance| median(&instance.metrics, metric))
    }

    #[test]
    fn cores_used_are_the_increase_of_processor_time() {
        let mut tracker = UsageTracker::default();
        for second in 1..=3 {
            let sample = InstanceSample { cpu_ns: Some(second * 500_000_000), limit_cores: Some(2.0), ..instance("a") };
            tracker.handle_sweep(&sweep(second, vec![sample]));
        }
        let usage = tracker.close();
        let metrics = &usage.instances[0].metrics;
        assert_eq!(median(metrics, Metric::CpuUsed), Some(0.5));
        assert_eq!(median(metrics, Metric::CpuLimitShare), Some(0.25));
        assert_eq!(metrics.len(), 2, "what the kernel did not say is absent: {metrics:?}");
    }

    #[test]
    fn the_first_sample_of_an_instance_gives_no_usage() {
        let mut tracker = UsageTracker::default();
        tracker.handle_sweep(&sweep(1, vec![InstanceSample { cpu_ns: Some(7), ..instance("a") }]));
        assert_eq!(tracker.close(), WindowUsage::default());
    }

    #[test]
    fn a_cgroup_made_again_under_the_same_name_begins_anew() {
        let mut tracker = UsageTracker::default();
        for (second, life, cpu_ns) in [(1, 1, 0), (2, 1, 1_000_000_000), (3, 2, 9_000_000_000_000)] {
            let sample = InstanceSample { life, cpu_ns: Some(cpu_ns), ..instance("a") };
            tracker.handle_sweep(&sweep(second, vec![sample]));
        }
        assert_eq!(cores(&mut tracker, Metric::CpuUsed), None, "its past and the other's do not mix");
    }

    #[test]
    fn a_vanished_instance_is_not_in_the_window() {
        let mut tracker = UsageTracker::default();
        for second in 1..=2 {
            tracker.handle_sweep(&sweep(second, vec![InstanceSample { cpu_ns: Some(second), ..instance("a") }]));
        }
        tracker.handle_sweep(&sweep(3, vec![]));
        assert!(tracker.close().instances.is_empty());
    }

    #[test]
    fn a_parents_throttling_counts_for_the_child() {
        let mut tracker = UsageTracker::default();
        for second in 1..=2 {
            let own = Throttle { depth: 3, periods: 10 * second, throttled: second };
            let parent = Throttle { depth: 2, periods: 10 * second, throttled: 6 * second };
            let idle = Throttle { depth: 1, periods: 0, throttled: 0 };
            let sample = InstanceSample { throttles: vec![own, parent, idle], ..instance("a") };
            tracker.handle_sweep(&sweep(second, vec![sample]));
        }
        assert_eq!(cores(&mut tracker, Metric::CpuThrottled), Some(0.6));
    }

    #[test]
    fn idle_connections_do_not_speak_for_the_round_trip() {
        let mut tracker = UsageTracker::default();
        for second in 1..=2 {
            let busy = Connection { cookie: 1, srtt_us: 4_000, retransmits: second, segments_out: second };
            let idle = Connection { cookie: 2, srtt_us: 900_000, retransmits: 0, segments_out: 5 };
            let sample = InstanceSample { connections: Some(vec![busy, idle]), ..instance("a") };
            tracker.handle_sweep(&sweep(u64::from(second), vec![sample]));
        }
        let usage = tracker.close();
        let metrics = &usage.instances[0].metrics;
        assert_eq!(median(metrics, Metric::RoundTrip), Some(4.0));
        assert_eq!(median(metrics, Metric::Retransmits), Some(1.0));
        assert_eq!(median(metrics, Metric::Connections), Some(2.0));
    }

    #[test]
    fn a_slice_stands_for_the_node_and_co_runners_are_the_rest_of_it() {
        let mut tracker = UsageTracker::default();
        for second in 1..=2_u64 {
            let slice = SliceSample { life: 1, cpu_ns: Some(second * 800_000_000), limit_cores: Some(1.0) };
            let cpu = CpuTimes { busy: second * 100, steal: 0, total: second * 200, cores: 2 };
            let node = NodeSample { slice: Some(slice), cpu: Some(cpu), ..NodeSample::default() };
            let own = InstanceSample { cpu_ns: Some(second * 300_000_000), ..instance("a") };
            tracker.handle_sweep(&Sweep { at: Micros::from_secs(second), node, instances: vec![own] });
        }
        let usage = tracker.close();
        assert_eq!(median(&usage.node, Metric::NodeCpuUtilisation), Some(0.8));
        let others = median(&usage.instances[0].metrics, Metric::NodeCpuCoRunners).expect("both are known");
        assert!((others - 0.5).abs() < 1e-6);
    }

    #[test]
    fn machine_totals_come_from_proc_stat_disks_and_links() {
        let mut tracker = UsageTracker::default();
        for second in 1..=2_u64 {
            let node = NodeSample {
                cpu: Some(CpuTimes { busy: second * 50, steal: second * 20, total: second * 200, cores: 2 }),
                memory_used: Some(3),
                memory_total: Some(4),
                disks: vec![Disk {
                    name: "vda".into(),
                    operations: second * 10,
                    operation_ms: second * 25,
                    busy_ms: second * 400,
                }],
                links: vec![Link {
                    index: 2,
                    name: "eth0".into(),
                    received: second * 7,
                    sent: second * 9,
                    drops: second,
                }],
                qdiscs: vec![Qdisc { link: 2, handle: 1, drops: second * 2, backlog: 11 }],
                ..NodeSample::default()
            };
            tracker.handle_sweep(&Sweep { at: Micros::from_secs(second), node, instances: vec![] });
        }
        let node = tracker.close().node;
        let expected = [
            (Metric::NodeCpuUtilisation, 0.25),
            (Metric::NodeCpuSteal, 0.1),
            (Metric::NodeMemoryUtilisation, 0.75),
            (Metric::NodeDiskAwait, 2.5),
            (Metric::NodeDiskUtilisation, 0.4),
            (Metric::NodeNetworkReceived, 7.0),
            (Metric::NodeNetworkSent, 9.0),
            (Metric::NodeNetworkDrops, 3.0),
            (Metric::NodeQdiscBacklog, 11.0),
        ];
        for (metric, value) in expected {
            assert_eq!(median(&node, metric), Some(value), "{metric:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_but_valid_percentiles_leaves_whatever_the_counters_do(
            steps in proptest::collection::vec((0_u64..20_000_000, any::<u64>(), any::<f64>(), 0_u64..3), 1..30)
        ) {
            let mut tracker = UsageTracker::default();
            for (at, raw, limit, life) in steps {
                let sample = InstanceSample {
                    life,
                    cpu_ns: Some(raw),
                    limit_cores: Some(limit),
                    throttles: vec![Throttle { depth: 1, periods: raw % 7, throttled: raw }],
                    tasks: Some(vec![TaskTimes { tid: 1, wait_ns: raw, switches: raw }]),
                    memory_used: Some(raw),
                    memory_limit: Some(raw % 2),
                    ..instance("a")
                };
                tracker.handle_sweep(&Sweep { at: Micros::new(at), node: NodeSample::default(), instances: vec![sample] });
            }
            for value in tracker.close().instances.iter().flat_map(|instance| &instance.metrics) {
                prop_assert!(value.quantiles.is_valid() && value.quantiles.0[0] >= 0.0);
            }
        }
    }
}
