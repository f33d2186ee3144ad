//! What the readers hand over: raw counters and gauges of one moment. Plain data.

use sage_common::{CgroupPath, InstanceId, Micros, ServiceId};

/// Everything read in one pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sweep {
    /// When, by a clock that never jumps (not the wall clock).
    pub at: Micros,
    /// The node.
    pub node: NodeSample,
    /// Every instance that was there.
    pub instances: Vec<InstanceSample>,
    /// Processor time of every cgroup that policy may speak of: instances and best-effort co-runners.
    pub cgroups: Vec<CgroupCpu>,
}

/// Processor time of one cgroup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CgroupCpu {
    /// Which one.
    pub cgroup: CgroupPath,
    /// The service whose instance it is, if any.
    pub service: Option<ServiceId>,
    /// Its inode.
    pub life: u64,
    /// Processor time used, nanoseconds.
    pub cpu_ns: Option<u64>,
}

/// Counters and gauges of one instance.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceSample {
    /// Which service it is a replica of.
    pub service: ServiceId,
    /// Which replica.
    pub instance: InstanceId,
    /// Tells two lives under one name apart: the cgroup's inode, or the process's start time.
    pub life: u64,
    /// Processor time used, nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Its own CPU limit in cores.
    pub limit_cores: Option<f64>,
    /// CFS bandwidth control of the instance's cgroup and of every cgroup above it.
    pub throttles: Vec<Throttle>,
    /// How many tasks it has.
    pub threads: Option<u64>,
    /// Times of its tasks.
    pub tasks: Option<Vec<TaskTimes>>,
    /// Pressure of its own cgroup.
    pub pressure: Pressure,
    /// Working set, bytes.
    pub memory_used: Option<u64>,
    /// Memory limit, bytes.
    pub memory_limit: Option<u64>,
    /// Major page faults.
    pub major_faults: Option<u64>,
    /// Bytes read and written.
    pub disk_bytes: Option<u64>,
    /// Operations issued.
    pub disk_operations: Option<u64>,
    /// Established TCP connections of its processes.
    pub connections: Option<Vec<Connection>>,
    /// Open files of its processes.
    pub open_files: Option<u64>,
}

impl InstanceSample {
    /// A sample in which nothing could be read yet.
    pub fn empty(service: ServiceId, instance: InstanceId, life: u64) -> Self {
        Self {
            service,
            instance,
            life,
            cpu_ns: None,
            limit_cores: None,
            throttles: Vec::new(),
            threads: None,
            tasks: None,
            pressure: Pressure::default(),
            memory_used: None,
            memory_limit: None,
            major_faults: None,
            disk_bytes: None,
            disk_operations: None,
            connections: None,
            open_files: None,
        }
    }
}

/// `cpu.stat` of one cgroup.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Throttle {
    /// Depth of the cgroup below the root, which names it among an instance's ancestors.
    pub depth: u16,
    /// Enforcement periods so far.
    pub periods: u64,
    /// Periods in which it was throttled.
    pub throttled: u64,
}

/// `/proc/TID/schedstat` of one task.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TaskTimes {
    /// The task.
    pub tid: u32,
    /// Time runnable but waiting for a processor, nanoseconds.
    pub wait_ns: u64,
    /// Times it was put on a processor: every switch of context, voluntary or not, ends in one.
    pub switches: u64,
}

/// PSI `some` totals, microseconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pressure {
    /// Processor.
    pub cpu_us: Option<u64>,
    /// Memory.
    pub memory_us: Option<u64>,
    /// Block devices.
    pub io_us: Option<u64>,
}

/// `tcp_info` of one connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Connection {
    /// The kernel's socket cookie: never used twice.
    pub cookie: u64,
    /// Smoothed round-trip time, microseconds.
    pub srtt_us: u32,
    /// Segments sent again so far.
    pub retransmits: u32,
    /// Data segments sent so far.
    pub segments_out: u32,
}

/// Counters and gauges of the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSample {
    /// `/proc/stat`.
    pub cpu: Option<CpuTimes>,
    /// The cgroup that stands for the node, where the configuration names one.
    pub slice: Option<SliceSample>,
    /// `/proc/pressure`, or the slice's own.
    pub pressure: Pressure,
    /// Memory in use, bytes.
    pub memory_used: Option<u64>,
    /// Memory in all, bytes.
    pub memory_total: Option<u64>,
    /// `/proc/diskstats`, whole devices.
    pub disks: Vec<Disk>,
    /// Links.
    pub links: Vec<Link>,
    /// Root queueing disciplines of those links.
    pub qdiscs: Vec<Qdisc>,
}

/// First line of `/proc/stat`, in clock ticks, and how many processors are online.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CpuTimes {
    /// Doing something for somebody.
    pub busy: u64,
    /// Stolen by the hypervisor.
    pub steal: u64,
    /// Everything, idle included.
    pub total: u64,
    /// Processors online.
    pub cores: u32,
}

/// The cgroup that stands for the node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SliceSample {
    /// The cgroup's inode.
    pub life: u64,
    /// Processor time used, nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Its CPU limit in cores.
    pub limit_cores: Option<f64>,
}

/// One block device of `/proc/diskstats`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Disk {
    /// Its name.
    pub name: String,
    /// Reads and writes completed.
    pub operations: u64,
    /// Milliseconds spent by all of them together.
    pub operation_ms: u64,
    /// Milliseconds in which at least one was under way.
    pub busy_ms: u64,
}

/// One link.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Link {
    /// The kernel's index: another link under the same name has another.
    pub index: i32,
    /// Its name.
    pub name: String,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Packets dropped in either direction.
    pub drops: u64,
}

/// One root queueing discipline.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Qdisc {
    /// Index of its link.
    pub link: i32,
    /// Its handle: another discipline in its place has another.
    pub handle: u32,
    /// Packets dropped.
    pub drops: u64,
    /// Bytes waiting.
    pub backlog: u64,
}
