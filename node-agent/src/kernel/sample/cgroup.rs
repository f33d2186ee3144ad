//! One cgroup's files, v1 or v2, kept open and read every second.

use std::path::PathBuf;

use sage_common::CgroupPath;

use super::{
    file::{KeptFile, Text, inode},
    hierarchy::{Hierarchy, Tree},
    text,
};
use crate::core::usage::{InstanceSample, Pressure, SliceSample, Throttle};

/// Reader of one cgroup.
#[derive(Debug)]
pub struct CgroupReader {
    cgroup: CgroupPath,
    directory: PathBuf,
    life: u64,
    usage: Versioned,
    limit: Option<Limit>,
    throttles: Vec<(u16, KeptFile)>,
    memory: Option<Memory>,
    io: Option<Io>,
    pressure: Option<[KeptFile; 3]>,
    processes: KeptFile,
    tasks: KeptFile,
}

/// Processor time: v1 `cpuacct.usage`, v2 `cpu.stat`.
#[derive(Debug)]
struct Versioned {
    file: KeptFile,
    is_v2: bool,
}

#[derive(Debug)]
enum Limit {
    V1 { quota: KeptFile, period: KeptFile },
    V2(KeptFile),
}

#[derive(Debug)]
struct Memory {
    used: KeptFile,
    limit: KeptFile,
    stat: KeptFile,
    is_v2: bool,
}

#[derive(Debug)]
enum Io {
    V1 { bytes: KeptFile, operations: KeptFile },
    V2(KeptFile),
}

/// Memory as [`CgroupReader`] finds it: working set, limit, major faults.
type MemoryReading = (Option<u64>, Option<u64>, Option<u64>);

impl CgroupReader {
    /// Prepares to read `cgroup`; `None` when it is not there.
    pub fn open(hierarchy: &Hierarchy, cgroup: &CgroupPath) -> Option<Self> {
        let main = hierarchy.main()?;
        let usage = hierarchy.usage.as_ref().unwrap_or(main);
        let usage_name = if usage.is_v2 { "cpu.stat" } else { "cpuacct.usage" };
        let tasks = if main.is_v2 { "cgroup.threads" } else { "tasks" };
        let pressure = hierarchy.pressure.as_ref();
        let directory = main.directory(cgroup);
        Some(Self {
            cgroup: cgroup.clone(),
            life: inode(&directory)?,
            directory,
            usage: Versioned { file: file(usage, cgroup, usage_name), is_v2: usage.is_v2 },
            limit: hierarchy.cpu.as_ref().map(|tree| Limit::new(tree, cgroup)),
            throttles: hierarchy.cpu.as_ref().map(|tree| throttles(tree, cgroup)).unwrap_or_default(),
            memory: hierarchy.memory.as_ref().map(|tree| Memory::new(tree, cgroup)),
            io: hierarchy.io.as_ref().map(|tree| Io::new(tree, cgroup)),
            pressure: pressure
                .map(|tree| ["cpu", "memory", "io"].map(|n| file(tree, cgroup, &format!("{n}.pressure")))),
            processes: file(main, cgroup, "cgroup.procs"),
            tasks: file(main, cgroup, tasks),
        })
    }

    /// Which cgroup.
    pub const fn cgroup(&self) -> &CgroupPath {
        &self.cgroup
    }

    /// Which life of that name.
    pub const fn life(&self) -> u64 {
        self.life
    }

    /// The processes in it; `None` once it is gone.
    pub fn processes(&mut self, buffer: &mut Vec<u8>) -> Option<Vec<u32>> {
        self.processes.read_anew(buffer).ok().map(|text| text::ids(text).collect())
    }

    /// The tasks in it.
    pub fn tasks(&mut self, buffer: &mut Vec<u8>) -> Option<Vec<u32>> {
        self.tasks.read_anew(buffer).ok().map(|text| text::ids(text).collect())
    }

    /// Processor time in nanoseconds; `Err` once the cgroup is gone.
    pub fn cpu_ns(&mut self, buffer: &mut Vec<u8>) -> Result<Option<u64>, Vanished> {
        match self.usage.file.read(buffer) {
            Text::Gone => Err(Vanished),
            Text::Absent => Ok(None),
            Text::Is(text) if self.usage.is_v2 => {
                Ok(text::keyed(text, "usage_usec").map(|micros| micros.saturating_mul(1_000)))
            }
            Text::Is(text) => Ok(text::number(text)),
        }
    }

    /// Fills in everything that the cgroup's own files say. A cgroup that is removed meanwhile has vanished, so that no
    /// half a sample passes for a whole one.
    pub fn read(&mut self, sample: &mut InstanceSample, buffer: &mut Vec<u8>) -> Result<(), Vanished> {
        sample.cpu_ns = self.cpu_ns(buffer)?;
        sample.limit_cores = self.limit_cores(buffer);
        sample.throttles = self.throttles(buffer);
        (sample.memory_used, sample.memory_limit, sample.major_faults) = self.memory(buffer);
        (sample.disk_bytes, sample.disk_operations) = self.io.as_mut().map_or((None, None), |io| io.read(buffer));
        sample.pressure = self.pressure(buffer);
        if inode(&self.directory) == Some(self.life) { Ok(()) } else { Err(Vanished) }
    }

    /// What matters of a cgroup that stands for the node.
    pub fn slice(&mut self, buffer: &mut Vec<u8>) -> Result<SliceSample, Vanished> {
        let cpu_ns = self.cpu_ns(buffer)?;
        Ok(SliceSample { life: self.life, cpu_ns, limit_cores: self.limit_cores(buffer) })
    }

    /// Its CPU limit in cores.
    pub fn limit_cores(&mut self, buffer: &mut Vec<u8>) -> Option<f64> {
        self.limit.as_mut()?.cores(buffer)
    }

    /// Working set, limit, major faults.
    pub fn memory(&mut self, buffer: &mut Vec<u8>) -> MemoryReading {
        self.memory.as_mut().map_or((None, None, None), |memory| memory.read(buffer))
    }

    /// Its own pressure.
    pub fn pressure(&mut self, buffer: &mut Vec<u8>) -> Pressure {
        let Some(files) = &mut self.pressure else { return Pressure::default() };
        let [cpu_us, memory_us, io_us] =
            files.each_mut().map(|file| file.read(buffer).ok().and_then(text::pressure_total));
        Pressure { cpu_us, memory_us, io_us }
    }

    fn throttles(&mut self, buffer: &mut Vec<u8>) -> Vec<Throttle> {
        let read = |(depth, file): &mut (u16, KeptFile)| text::throttle(file.read(buffer).ok()?, *depth);
        self.throttles.iter_mut().filter_map(read).collect()
    }
}

/// The cgroup was removed while it was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Vanished;

impl Limit {
    fn new(tree: &Tree, cgroup: &CgroupPath) -> Self {
        if tree.is_v2 {
            return Self::V2(file(tree, cgroup, "cpu.max"));
        }
        Self::V1 { quota: file(tree, cgroup, "cpu.cfs_quota_us"), period: file(tree, cgroup, "cpu.cfs_period_us") }
    }

    fn cores(&mut self, buffer: &mut Vec<u8>) -> Option<f64> {
        match self {
            Self::V2(max) => max.read(buffer).ok().and_then(text::cpu_max),
            Self::V1 { quota, period } => {
                let quota_us = quota.read(buffer).ok().and_then(text::number)?;
                text::quota_cores(quota_us, period.read(buffer).ok().and_then(text::number)?)
            }
        }
    }
}

impl Memory {
    fn new(tree: &Tree, cgroup: &CgroupPath) -> Self {
        let (used, limit) = match tree.is_v2 {
            true => ("memory.current", "memory.max"),
            false => ("memory.usage_in_bytes", "memory.limit_in_bytes"),
        };
        let file = |name| file(tree, cgroup, name);
        Self { used: file(used), limit: file(limit), stat: file("memory.stat"), is_v2: tree.is_v2 }
    }

    /// The working set is what is charged minus what could be dropped at once (inactive file pages), as the kubelet
    /// counts it.
    fn read(&mut self, buffer: &mut Vec<u8>) -> MemoryReading {
        let used = self.used.read(buffer).ok().and_then(text::number);
        let limit = self.limit.read(buffer).ok().and_then(text::memory_limit);
        let (inactive, faults) = if self.is_v2 { ("inactive_file", "pgmajfault") } else { V1_STAT };
        let stat = self.stat.read(buffer).ok();
        let inactive = stat.and_then(|text| text::keyed(text, inactive));
        let working_set = used.map(|used| used.saturating_sub(inactive.unwrap_or(0)));
        (working_set, limit, stat.and_then(|text| text::keyed(text, faults)))
    }
}

/// v1 counts a cgroup's own pages apart from those of its children; the totals hold both.
const V1_STAT: (&str, &str) = ("total_inactive_file", "total_pgmajfault");

impl Io {
    fn new(tree: &Tree, cgroup: &CgroupPath) -> Self {
        if tree.is_v2 {
            return Self::V2(file(tree, cgroup, "io.stat"));
        }
        let bytes = file(tree, cgroup, "blkio.throttle.io_service_bytes_recursive");
        Self::V1 { bytes, operations: file(tree, cgroup, "blkio.throttle.io_serviced_recursive") }
    }

    fn read(&mut self, buffer: &mut Vec<u8>) -> (Option<u64>, Option<u64>) {
        match self {
            Self::V2(stat) => stat.read(buffer).ok().map(text::io_stat).unzip(),
            Self::V1 { bytes, operations } => {
                let total =
                    |file: &mut KeptFile, buffer: &mut Vec<u8>| file.read(buffer).ok().and_then(text::blkio_total);
                (total(bytes, buffer), total(operations, buffer))
            }
        }
    }
}

fn file(tree: &Tree, cgroup: &CgroupPath, name: &str) -> KeptFile {
    KeptFile::new(tree.directory(cgroup).join(name))
}

/// `cpu.stat` of the cgroup and of everything above it: a parent's quota stops its children too.
fn throttles(tree: &Tree, cgroup: &CgroupPath) -> Vec<(u16, KeptFile)> {
    let mut path = tree.root.clone();
    let levels = cgroup.as_str().split('/').zip(1_u16..).map(|(part, depth)| {
        path.push(part);
        (depth, KeptFile::new(path.join("cpu.stat")))
    });
    levels.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: [(&str, &str); 13] = [
        ("cpuacct/app/geo/cpuacct.usage", "7000000000\n"),
        ("cpuacct/app/geo/cgroup.procs", "12\n"),
        ("cpuacct/app/geo/tasks", "12\n13\n"),
        ("cpu/app/geo/cpu.cfs_quota_us", "50000\n"),
        ("cpu/app/geo/cpu.cfs_period_us", "100000\n"),
        ("cpu/app/geo/cpu.stat", "nr_periods 9\nnr_throttled 1\nthrottled_time 5\n"),
        ("cpu/app/cpu.stat", "nr_periods 90\nnr_throttled 10\nthrottled_time 5\n"),
        ("memory/app/geo/memory.usage_in_bytes", "1000\n"),
        ("memory/app/geo/memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory/app/geo/memory.stat", "inactive_file 1\ntotal_inactive_file 400\ntotal_pgmajfault 3\n"),
        ("blkio/app/geo/blkio.throttle.io_service_bytes_recursive", "254:0 Read 1\nTotal 8192\n"),
        ("blkio/app/geo/blkio.throttle.io_serviced_recursive", "Total 2\n"),
        ("unified/app/geo/cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=55\n"),
    ];
    const V2: [(&str, &str); 10] = [
        ("app/geo/cpu.stat", "usage_usec 7000000\nnr_periods 9\nnr_throttled 1\n"),
        ("app/cpu.stat", "usage_usec 9000000\nnr_periods 90\nnr_throttled 10\n"),
        ("app/geo/cgroup.procs", "12\n"),
        ("app/geo/cgroup.threads", "12\n13\n"),
        ("app/geo/cpu.max", "50000 100000\n"),
        ("app/geo/memory.current", "1000\n"),
        ("app/geo/memory.max", "max\n"),
        ("app/geo/memory.stat", "inactive_file 400\npgmajfault 3\n"),
        ("app/geo/io.stat", "254:0 rbytes=8192 wbytes=0 rios=2 wios=0 dbytes=0 dios=0\n"),
        ("app/geo/cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=55\n"),
    ];

    fn sample_of(files: &[(&str, &str)], marks: &[&str]) -> (tempfile::TempDir, CgroupReader) {
        let root = tempfile::tempdir().expect("temporary directory");
        for (name, text) in files.iter().copied().chain(marks.iter().map(|mark| (*mark, ""))) {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
            std::fs::write(path, text).expect("writable");
        }
        let hierarchy = Hierarchy::detect(root.path());
        let cgroup = CgroupPath::try_from("app/geo".to_owned()).expect("valid path");
        let reader = CgroupReader::open(&hierarchy, &cgroup).expect("is there");
        (root, reader)
    }

    fn check(mut reader: CgroupReader) {
        let mut buffer = Vec::new();
        let instance = "app/geo".parse().expect("valid");
        let mut sample = InstanceSample::empty("geo".parse().expect("valid"), instance, reader.life());
        reader.read(&mut sample, &mut buffer).expect("still there");
        assert_eq!(sample.cpu_ns, Some(7_000_000_000));
        assert_eq!(sample.limit_cores, Some(0.5));
        let above = Throttle { depth: 1, periods: 90, throttled: 10 };
        assert_eq!(sample.throttles, [above, Throttle { depth: 2, periods: 9, throttled: 1 }]);
        assert_eq!((sample.memory_used, sample.memory_limit, sample.major_faults), (Some(600), None, Some(3)));
        assert_eq!((sample.disk_bytes, sample.disk_operations), (Some(8_192), Some(2)));
        assert_eq!(sample.pressure, Pressure { cpu_us: Some(55), memory_us: None, io_us: None });
        assert_eq!(reader.processes(&mut buffer), Some(vec![12]));
        assert_eq!(reader.tasks(&mut buffer), Some(vec![12, 13]));
    }

    #[test]
    fn both_versions_of_the_files_say_the_same() {
        let roots = ["cpuacct/cgroup.procs", "cpu/cgroup.procs", "memory/cgroup.procs", "blkio/cgroup.procs"];
        let (_root, reader) = sample_of(&V1, &[&roots[..], &["unified/cgroup.controllers"]].concat());
        check(reader);
        let (_root, reader) = sample_of(&V2, &["cgroup.controllers"]);
        check(reader);
    }

    #[test]
    fn what_a_kernel_lacks_is_absent() {
        let (_root, mut reader) = sample_of(&V2[..1], &["cgroup.controllers"]);
        let mut sample =
            InstanceSample::empty("geo".parse().expect("valid"), "x".parse().expect("valid"), reader.life());
        reader.read(&mut sample, &mut Vec::new()).expect("still there");
        assert!(sample.cpu_ns.is_some() && sample.limit_cores.is_none() && sample.memory_used.is_none());
        assert!(sample.disk_bytes.is_none() && sample.pressure == Pressure::default());
    }
}
