//! Processes and their tasks, from procfs.

use std::path::{Path, PathBuf};

use super::{
    file::{KeptFile, read_once},
    text,
};
use crate::core::usage::{InstanceSample, TaskTimes};

/// Tasks of one instance whose times are read; a larger crowd's are absent rather than wrong.
const TASKS_MAX: usize = 1_024;
/// Tasks read per sweep, all instances together: about 3 µs each.
pub const TASKS_PER_SWEEP: usize = 8_192;

/// Times of `tids`, within `budget` of reads. `None` when there are too many, or this kernel keeps none. A task that
/// ended meanwhile is left out.
pub fn task_times(proc_root: &Path, tids: &[u32], budget: &mut usize, buffer: &mut Vec<u8>) -> Option<Vec<TaskTimes>> {
    if tids.len() > TASKS_MAX.min(*budget) {
        return None;
    }
    *budget -= tids.len();
    let mut path = proc_root.to_owned();
    let mut times = Vec::with_capacity(tids.len());
    for tid in tids {
        path.push(tid.to_string());
        path.push("schedstat");
        times.extend(read_once(&path, buffer).and_then(|text| text::schedstat(text, *tid)));
        path.pop();
        path.pop();
    }
    (!times.is_empty() || tids.is_empty()).then_some(times)
}

/// Files that `pids` have open. The kernel tells since 6.2, as the size of `/proc/PID/fd`; an older one says zero, and
/// the answer is `None`.
pub fn open_files(proc_root: &Path, pids: &[u32]) -> Option<u64> {
    let mut sum = 0;
    for pid in pids {
        // A process that ended meanwhile has none.
        let size = std::fs::metadata(proc_root.join(pid.to_string()).join("fd")).map(|fd| fd.len());
        sum += match size {
            Ok(0) => return None,
            Ok(count) => count,
            Err(_) => 0,
        };
    }
    Some(sum)
}

/// One process that stands for itself.
#[derive(Debug)]
pub struct ProcessReader {
    pid: u32,
    start_ticks: u64,
    directory: PathBuf,
    stat: KeptFile,
    io: KeptFile,
}

impl ProcessReader {
    /// Prepares to read `pid`; `None` when it is gone.
    pub fn open(proc_root: &Path, pid: u32, buffer: &mut Vec<u8>) -> Option<Self> {
        let directory = proc_root.join(pid.to_string());
        let mut stat = KeptFile::new(directory.join("stat"));
        let start_ticks = text::process_stat(stat.read(buffer).ok()?)?.start_ticks;
        Some(Self { pid, start_ticks, io: KeptFile::new(directory.join("io")), stat, directory })
    }

    /// Which process.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, which tells it from another one under the same pid.
    pub const fn life(&self) -> u64 {
        self.start_ticks
    }

    /// Fills in what procfs says; `None` once the process is gone.
    pub fn read(&mut self, sample: &mut InstanceSample, buffer: &mut Vec<u8>) -> Option<()> {
        let stat =
            text::process_stat(self.stat.read(buffer).ok()?).filter(|stat| stat.start_ticks == self.start_ticks)?;
        let tick_ns = 1_000_000_000_u64.checked_div(procfs::ticks_per_second())?;
        sample.cpu_ns = Some(stat.cpu_ticks.saturating_mul(tick_ns));
        sample.memory_used = Some(stat.resident_pages.saturating_mul(procfs::page_size()));
        sample.major_faults = Some(stat.major_faults);
        sample.disk_bytes = self.io.read(buffer).ok().and_then(text::process_io);
        Some(())
    }

    /// Its tasks.
    pub fn tasks(&self) -> Vec<u32> {
        let entries = std::fs::read_dir(self.directory.join("task")).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).take(TASKS_MAX + 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_read() {
        let (proc_root, pid, mut buffer) = (Path::new("/proc"), std::process::id(), Vec::new());
        let mut reader = ProcessReader::open(proc_root, pid, &mut buffer).expect("alive");
        let (service, instance) = ("me".parse().expect("valid"), "me".parse().expect("valid"));
        let mut sample = InstanceSample::empty(service, instance, reader.life());
        reader.read(&mut sample, &mut buffer).expect("still alive");
        assert!(sample.memory_used.is_some_and(|bytes| bytes > 100_000));
        assert!(open_files(proc_root, &[pid]).is_none_or(|count| count >= 3));
        assert!(reader.tasks().contains(&pid));
    }

    #[test]
    fn a_process_that_is_gone_cannot_be_opened() {
        assert!(ProcessReader::open(Path::new("/proc"), u32::MAX, &mut Vec::new()).is_none());
    }

    #[test]
    fn task_times_are_read_within_a_budget() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for tid in [7, 8] {
            let task = directory.path().join(tid.to_string());
            std::fs::create_dir(&task).expect("writable");
            std::fs::write(task.join("schedstat"), format!("1 {tid} 3\n")).expect("writable");
        }
        let (mut budget, mut buffer) = (3, Vec::new());
        let times = task_times(directory.path(), &[7, 8, 9], &mut budget, &mut buffer).expect("within budget");
        assert_eq!(times.iter().map(|task| task.wait_ns).collect::<Vec<_>>(), [7, 8], "task 9 has ended");
        assert_eq!(task_times(directory.path(), &[7], &mut budget, &mut buffer), None, "the budget has run out");
    }
}
