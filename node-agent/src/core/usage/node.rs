//! From two samples of the node to its metrics.

use std::collections::BTreeMap;

use sage_common::{Metric, Micros};

use super::{
    CpuTimes, Link, NodeSample, SliceSample,
    rates::{Birth, Counter, Family, elapsed_s},
    values::{PressureRates, Values, share},
};

/// The counters of the node.
#[derive(Debug)]
pub(super) struct NodeRates {
    cpu: Option<(Micros, CpuTimes)>,
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
    pub(super) fn advance(&mut self, at: Micros, sample: &NodeSample, values: &mut Values) -> Option<f64> {
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

    fn slice_cores(&mut self, at: Micros, slice: &SliceSample) -> Option<f64> {
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
        let by = |value: fn(&Link) -> u64| {
            Some(sample.links.iter().map(move |link| ((link.index, link.name.clone()), value(link))))
        };
        values.push(Metric::NodeNetworkReceived, self.received.rate(at, by(|link| link.received)));
        values.push(Metric::NodeNetworkSent, self.sent.rate(at, by(|link| link.sent)));
        let dropped = self.link_drops.rate(at, by(|link| link.drops));
        values.push(Metric::NodeNetworkDrops, dropped.map(|dropped| dropped + shed.unwrap_or(0.0)));
    }
}
