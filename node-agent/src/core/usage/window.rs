//! One window of usage: a percentile vector per instance and one for the node; means of what policy speaks of.

use std::collections::BTreeMap;

use sage_common::{CgroupPath, InstanceId, InstanceUsage, MetricValue, ServiceId};

use super::{
    CgroupCpu, InstanceSample, Sweep, instance::InstanceRates, means::Means, node::NodeRates, rules::INSTANCES_MAX,
    values::Values,
};

/// Turns sweeps into windows. Ordered maps throughout, so that the same sweeps give the same windows.
#[derive(Debug, Default)]
pub struct UsageTracker {
    node: NodeRates,
    node_values: Values,
    instances: BTreeMap<InstanceId, Followed>,
    cgroups: Means<(CgroupPath, Option<ServiceId>, u64)>,
    links: Means<(String, i32)>,
    capacity_cores: Option<f64>,
}

/// What a window says about usage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WindowUsage {
    /// Every instance that was alive at the end of the window.
    pub instances: Vec<InstanceUsage>,
    /// The node.
    pub node: Vec<MetricValue>,
    /// Mean processor use of cgroups, for policy.
    pub cgroups: Vec<CgroupUse>,
    /// Mean sending rate of links, for policy.
    pub links: Vec<LinkUse>,
    /// Cores that the node has, or the slice that stands for it.
    pub capacity_cores: Option<f64>,
}

/// What one cgroup used of the processors.
#[derive(Clone, Debug, PartialEq)]
pub struct CgroupUse {
    /// Which one.
    pub cgroup: CgroupPath,
    /// The service whose instance it is, if any.
    pub service: Option<ServiceId>,
    /// Cores in the mean; `None` until two samples say so.
    pub cores: Option<f64>,
}

/// What one link sent.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkUse {
    /// Which one.
    pub name: String,
    /// Bytes per second in the mean; `None` until two samples say so.
    pub sent_per_s: Option<f64>,
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
        self.advance_policy(sweep);
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
        let cgroup = |((cgroup, service, _), ns_per_s): ((CgroupPath, Option<ServiceId>, u64), Option<f64>)| {
            CgroupUse { cgroup, service, cores: ns_per_s.map(|ns_per_s| ns_per_s / 1e9) }
        };
        WindowUsage {
            instances: instances.collect(),
            node: self.node_values.drain(),
            cgroups: self.cgroups.drain().map(cgroup).collect(),
            links: self.links.drain().map(|((name, _), sent_per_s)| LinkUse { name, sent_per_s }).collect(),
            capacity_cores: self.capacity_cores,
        }
    }

    /// The means that policy wants beside the percentiles.
    fn advance_policy(&mut self, sweep: &Sweep) {
        let cgroup = |c: &CgroupCpu| ((c.cgroup.clone(), c.service.clone(), c.life), c.cpu_ns);
        self.cgroups.advance(sweep.at, sweep.cgroups.iter().map(cgroup));
        self.links
            .advance(sweep.at, sweep.node.links.iter().map(|link| ((link.name.clone(), link.index), Some(link.sent))));
        self.capacity_cores = match &sweep.node.slice {
            Some(slice) if slice.limit_cores.is_some() => slice.limit_cores,
            _ => sweep.node.cpu.map(|cpu| f64::from(cpu.cores)),
        };
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use sage_common::{Metric, Micros};

    use super::{super::*, *};

    fn instance(name: &str) -> InstanceSample {
        InstanceSample::empty("svc".parse().expect("valid"), InstanceId::sanitized(name), 1)
    }

    fn sweep(second: u64, instances: Vec<InstanceSample>) -> Sweep {
        Sweep { at: Micros::from_secs(second), instances, ..Sweep::default() }
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
        assert!(tracker.close().instances.is_empty());
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
            tracker.handle_sweep(&Sweep {
                at: Micros::from_secs(second),
                node,
                instances: vec![own],
                ..Sweep::default()
            });
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
            tracker.handle_sweep(&Sweep { at: Micros::from_secs(second), node, ..Sweep::default() });
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

    #[test]
    fn policy_sees_the_mean_use_of_cgroups_and_links() {
        let mut tracker = UsageTracker::default();
        for second in 1..=3_u64 {
            let cgroup = CgroupPath::try_from("app/batch".to_owned()).expect("valid");
            let cpu = CgroupCpu { cgroup, service: None, life: 1, cpu_ns: Some(second * second * 100_000_000) };
            let link = Link { index: 2, name: "eth0".into(), sent: second * 1_000, ..Link::default() };
            let cores = CpuTimes { cores: 4, ..CpuTimes::default() };
            let node = NodeSample { links: vec![link], cpu: Some(cores), ..NodeSample::default() };
            tracker.handle_sweep(&Sweep { at: Micros::from_secs(second), node, cgroups: vec![cpu], instances: vec![] });
        }
        let usage = tracker.close();
        assert_eq!(usage.cgroups[0].cores, Some(0.4), "the mean of 0.3 and 0.5");
        assert_eq!(usage.links, [LinkUse { name: "eth0".into(), sent_per_s: Some(1_000.0) }]);
        assert_eq!(usage.capacity_cores, Some(4.0));
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
                tracker.handle_sweep(&Sweep { at: Micros::new(at), instances: vec![sample], ..Sweep::default() });
            }
            for value in tracker.close().instances.iter().flat_map(|instance| &instance.metrics) {
                prop_assert!(value.quantiles.is_valid() && value.quantiles.0[0] >= 0.0);
            }
        }
    }
}
