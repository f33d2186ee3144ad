//! What is measured besides latency. Adding a metric is three edits: a variant here (with its row in [`Metric::ALL`]
//! and [`Metric::spec`]), its reader in the agent, its row in the docs.

use serde::{Deserialize, Serialize};

/// Resource that a metric speaks for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricGroup {
    /// Processor time.
    Cpu,
    /// Memory capacity, bandwidth and last-level cache.
    Memory,
    /// Block devices.
    Disk,
    /// Links and TCP.
    Network,
    /// Threads, files, connections: never a resource of its own.
    Process,
}

/// One usage metric of an instance, or of the node it runs on.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Cores used by the instance itself.
    CpuUsed,
    /// Cores used over the instance's limit.
    CpuLimitShare,
    /// Share of CFS periods in which the instance, or a cgroup above it, was throttled.
    CpuThrottled,
    /// Time the instance's tasks waited on a run queue, seconds per second.
    RunQueueWait,
    /// Voluntary and involuntary context switches per second.
    ContextSwitches,
    /// CPU pressure (PSI some) of the instance's cgroup or else of the node, share of time.
    CpuPressure,
    /// Share of the node's cores in use by anyone.
    NodeCpuUtilisation,
    /// Cores used on the node by cgroups that are not this instance.
    NodeCpuCoRunners,
    /// Stolen time, share.
    NodeCpuSteal,
    /// Working set, bytes.
    MemoryUsed,
    /// Working set over the memory limit.
    MemoryLimitShare,
    /// Major page faults per second.
    MajorFaults,
    /// Memory pressure (PSI some), share of time.
    MemoryPressure,
    /// Share of the node's memory in use.
    NodeMemoryUtilisation,
    /// Last-level cache misses per second.
    LlcMisses,
    /// Bytes read and written by the instance per second.
    DiskBytes,
    /// Operations issued by the instance per second.
    DiskOperations,
    /// I/O pressure (PSI some), share of time.
    IoPressure,
    /// Mean time of one operation on the node's devices, milliseconds.
    NodeDiskAwait,
    /// Share of time in which the node's busiest device had work.
    NodeDiskUtilisation,
    /// Smoothed round-trip time of the instance's TCP connections, milliseconds.
    RoundTrip,
    /// Segments the instance's TCP connections sent again, per second.
    Retransmits,
    /// Bytes received by the node's links per second.
    NodeNetworkReceived,
    /// Bytes sent by the node's links per second.
    NodeNetworkSent,
    /// Packets dropped by the node's links and qdiscs per second.
    NodeNetworkDrops,
    /// Bytes waiting in the node's qdiscs.
    NodeQdiscBacklog,
    /// Threads of the instance.
    Threads,
    /// Open files of the instance.
    OpenFiles,
    /// Established TCP connections of the instance.
    Connections,
}

/// How a metric is treated by the model.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MetricSpec {
    /// Its name in JSON, in Prometheus and on screen.
    pub name: &'static str,
    /// The resource it speaks for.
    pub group: MetricGroup,
    /// Rises because of others (back-pressure): never an input of a normal or a decoder.
    pub is_effect: bool,
    /// A count of rare events: square root instead of logarithm, no load term.
    pub is_count: bool,
    /// Whether its normal value depends on load.
    pub has_load_term: bool,
}

impl Metric {
    /// Every metric, in declaration order.
    pub const ALL: [Self; 29] = [
        Self::CpuUsed,
        Self::CpuLimitShare,
        Self::CpuThrottled,
        Self::RunQueueWait,
        Self::ContextSwitches,
        Self::CpuPressure,
        Self::NodeCpuUtilisation,
        Self::NodeCpuCoRunners,
        Self::NodeCpuSteal,
        Self::MemoryUsed,
        Self::MemoryLimitShare,
        Self::MajorFaults,
        Self::MemoryPressure,
        Self::NodeMemoryUtilisation,
        Self::LlcMisses,
        Self::DiskBytes,
        Self::DiskOperations,
        Self::IoPressure,
        Self::NodeDiskAwait,
        Self::NodeDiskUtilisation,
        Self::RoundTrip,
        Self::Retransmits,
        Self::NodeNetworkReceived,
        Self::NodeNetworkSent,
        Self::NodeNetworkDrops,
        Self::NodeQdiscBacklog,
        Self::Threads,
        Self::OpenFiles,
        Self::Connections,
    ];

    /// How many metrics there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`Metric::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// How the model treats this metric.
    pub const fn spec(self) -> MetricSpec {
        use MetricGroup::{Cpu, Disk, Memory, Network, Process};
        match self {
            Self::CpuUsed => effect("cpu_used", Cpu),
            Self::CpuLimitShare => cause("cpu_limit_share", Cpu),
            Self::CpuThrottled => cause("cpu_throttled", Cpu),
            Self::RunQueueWait => effect("run_queue_wait", Cpu),
            Self::ContextSwitches => effect("context_switches", Cpu),
            Self::CpuPressure => cause("cpu_pressure", Cpu),
            Self::NodeCpuUtilisation => cause("node_cpu_utilisation", Cpu),
            Self::NodeCpuCoRunners => steady("node_cpu_co_runners", Cpu),
            Self::NodeCpuSteal => steady("node_cpu_steal", Cpu),
            Self::MemoryUsed => effect("memory_used", Memory),
            Self::MemoryLimitShare => cause("memory_limit_share", Memory),
            Self::MajorFaults => count("major_faults", Memory),
            Self::MemoryPressure => steady("memory_pressure", Memory),
            Self::NodeMemoryUtilisation => steady("node_memory_utilisation", Memory),
            Self::LlcMisses => steady("llc_misses", Memory),
            Self::DiskBytes => cause("disk_bytes", Disk),
            Self::DiskOperations => cause("disk_operations", Disk),
            Self::IoPressure => cause("io_pressure", Disk),
            Self::NodeDiskAwait => cause("node_disk_await", Disk),
            Self::NodeDiskUtilisation => cause("node_disk_utilisation", Disk),
            Self::RoundTrip => steady("round_trip", Network),
            Self::Retransmits => count("retransmits", Network),
            Self::NodeNetworkReceived => cause("node_network_received", Network),
            Self::NodeNetworkSent => cause("node_network_sent", Network),
            Self::NodeNetworkDrops => count("node_network_drops", Network),
            Self::NodeQdiscBacklog => steady("node_qdisc_backlog", Network),
            Self::Threads => effect("threads", Process),
            Self::OpenFiles => effect("open_files", Process),
            Self::Connections => effect("connections", Process),
        }
    }

    /// Name in JSON, in Prometheus and on screen.
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// The resource this metric speaks for.
    pub const fn group(self) -> MetricGroup {
        self.spec().group
    }

    /// Whether it is measured for the whole node and shared by all its instances.
    pub fn is_of_node(self) -> bool {
        self.name().starts_with("node_")
    }
}

const fn cause(name: &'static str, group: MetricGroup) -> MetricSpec {
    MetricSpec { name, group, is_effect: false, is_count: false, has_load_term: true }
}

const fn effect(name: &'static str, group: MetricGroup) -> MetricSpec {
    MetricSpec { name, group, is_effect: true, is_count: false, has_load_term: true }
}

const fn steady(name: &'static str, group: MetricGroup) -> MetricSpec {
    MetricSpec { name, group, is_effect: false, is_count: false, has_load_term: false }
}

const fn count(name: &'static str, group: MetricGroup) -> MetricSpec {
    MetricSpec { name, group, is_effect: false, is_count: true, has_load_term: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_stands_at_its_own_index_under_its_serde_name() {
        for (index, metric) in Metric::ALL.into_iter().enumerate() {
            assert_eq!(metric.index(), index);
            assert_eq!(serde_json::to_string(&metric).expect("plain enum"), format!("{:?}", metric.name()));
        }
    }
}
