//! The node itself: processors, memory, pressure, devices, links; or the slice that stands for it.

use std::path::PathBuf;

use sage_common::CgroupPath;

use super::{cgroup::CgroupReader, file::KeptFile, hierarchy::Hierarchy, links::LinkReader, text};
use crate::{
    config::KernelConfig,
    core::usage::{NodeSample, Pressure, SliceSample},
};

/// Reader of the node's totals.
#[derive(Debug)]
pub struct NodeReader {
    stat: KeptFile,
    meminfo: KeptFile,
    diskstats: KeptFile,
    pressure: [KeptFile; 3],
    disks: Vec<String>,
    links: LinkReader,
    slice: Option<Slice>,
}

/// The cgroup that stands for the node, once it exists.
#[derive(Debug)]
struct Slice {
    cgroup: CgroupPath,
    reader: Option<CgroupReader>,
}

impl NodeReader {
    /// Prepares to read what `config` names.
    pub fn new(config: &KernelConfig) -> Self {
        let file = |name: &str| KeptFile::new(config.proc_root.join(name));
        Self {
            stat: file("stat"),
            meminfo: file("meminfo"),
            diskstats: file("diskstats"),
            pressure: pressure_files(config).map(KeptFile::new),
            disks: config.disks.clone(),
            links: LinkReader::new(config.links.clone()),
            slice: config.node_cgroup.clone().map(|cgroup| Slice { cgroup, reader: None }),
        }
    }

    /// Reads everything; what cannot be read is absent.
    pub fn read(&mut self, hierarchy: &Hierarchy, buffer: &mut Vec<u8>) -> NodeSample {
        let (links, qdiscs) = self.links.read().unwrap_or_default();
        let (memory_total, memory_used) = self.meminfo.read(buffer).ok().and_then(text::meminfo).unzip();
        let mut sample = NodeSample {
            cpu: self.stat.read(buffer).ok().and_then(text::proc_stat),
            slice: None,
            pressure: Pressure::default(),
            memory_used,
            memory_total,
            disks: self.diskstats.read(buffer).ok().map(|text| text::diskstats(text, &self.disks)).unwrap_or_default(),
            links,
            qdiscs,
        };
        match &mut self.slice {
            Some(slice) => slice.read(hierarchy, &mut sample, buffer),
            None => sample.pressure = self.machine_pressure(buffer),
        }
        sample
    }

    fn machine_pressure(&mut self, buffer: &mut Vec<u8>) -> Pressure {
        let [cpu_us, memory_us, io_us] =
            self.pressure.each_mut().map(|file| file.read(buffer).ok().and_then(text::pressure_total));
        Pressure { cpu_us, memory_us, io_us }
    }
}

impl Slice {
    /// Puts the slice in the machine's place. Its memory counts only where it has a limit of its own: without one, the
    /// machine's memory is what it shares. A slice that is not there leaves processor and pressure absent.
    fn read(&mut self, hierarchy: &Hierarchy, sample: &mut NodeSample, buffer: &mut Vec<u8>) {
        if self.reader.is_none() {
            self.reader = CgroupReader::open(hierarchy, &self.cgroup);
        }
        let read = self.reader.as_mut().and_then(|reader| reader.slice(buffer).ok());
        sample.slice = Some(read.unwrap_or_default());
        let Some(reader) = self.reader.as_mut().filter(|_| read.is_some_and(|slice| slice.cpu_ns.is_some())) else {
            self.reader = None;
            return;
        };
        sample.pressure = reader.pressure(buffer);
        if let (Some(used), Some(limit), _) = reader.memory(buffer) {
            (sample.memory_used, sample.memory_total) = (Some(used), Some(limit));
        }
    }
}

/// `/proc/pressure/{cpu,memory,io}`.
pub fn pressure_files(config: &KernelConfig) -> [PathBuf; 3] {
    ["cpu", "memory", "io"].map(|name| config.proc_root.join("pressure").join(name))
}

/// Whether a slice is configured but not to be found.
pub fn is_slice_missing(sample: &NodeSample) -> bool {
    sample.slice == Some(SliceSample::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn a_fake_proc_gives_the_nodes_totals() {
        let root = tempfile::tempdir().expect("temporary directory");
        let put = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
            std::fs::write(path, text).expect("writable");
        };
        put("stat", "cpu  10 0 5 80 1 0 0 4 0 0\ncpu0 10 0 5 80 1 0 0 4 0 0\nintr 1\n");
        put("meminfo", "MemTotal: 4 kB\nMemAvailable: 1 kB\n");
        put("pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n");
        let mut settings = Settings::default();
        settings.kernel.proc_root = root.path().to_owned();
        let config = settings.validate("n").expect("valid").kernel;
        let sample = NodeReader::new(&config).read(&Hierarchy::default(), &mut Vec::new());
        assert_eq!(sample.cpu.map(|cpu| (cpu.busy, cpu.steal, cpu.total, cpu.cores)), Some((15, 4, 100, 1)));
        assert_eq!((sample.memory_used, sample.memory_total), (Some(3_072), Some(4_096)));
        assert_eq!(sample.pressure, Pressure { cpu_us: Some(9), ..Pressure::default() });
        assert!(sample.disks.is_empty(), "no diskstats, no devices");
    }

    #[test]
    fn a_slice_that_is_not_there_does_not_pass_the_machine_off_as_the_node() {
        let mut settings = Settings::default();
        settings.kernel.node_cgroup = "no/such/slice".to_owned();
        let config = settings.validate("n").expect("valid").kernel;
        let sample = NodeReader::new(&config).read(&Hierarchy::default(), &mut Vec::new());
        assert!(is_slice_missing(&sample));
        assert_eq!(sample.pressure, Pressure::default());
    }
}
