//! Parsers of the kernel's text files. Pure and tolerant: unknown fields are ignored, missing ones are `None`, a missing
//! last newline does not matter, and no text makes them panic.

use crate::core::usage::{CpuTimes, Disk, TaskTimes, Throttle};

/// A file that holds one number. `max` and anything else that is no number is `None`.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number after `key` in a file of `key value` lines (`cpu.stat`, `memory.stat`).
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| number(value)).flatten()
    })
}

/// `some … total=N` of a PSI file, microseconds.
pub fn pressure_total(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split_ascii_whitespace().find_map(|field| number(field.strip_prefix("total=")?))
}

/// `nr_periods` and `nr_throttled` of `cpu.stat`, v1 or v2; `None` on a cgroup without bandwidth control.
pub fn throttle(text: &str, depth: u16) -> Option<Throttle> {
    Some(Throttle { depth, periods: keyed(text, "nr_periods")?, throttled: keyed(text, "nr_throttled")? })
}

/// `cpu.max`: `QUOTA PERIOD` or `max PERIOD`, in cores.
pub fn cpu_max(text: &str) -> Option<f64> {
    let mut fields = text.split_ascii_whitespace();
    let quota = number(fields.next()?)?;
    quota_cores(quota, number(fields.next()?)?)
}

/// A CFS quota over its period, in cores. `None` without a limit.
pub fn quota_cores(quota_us: u64, period_us: u64) -> Option<f64> {
    (period_us > 0).then(|| quota_us as f64 / period_us as f64)
}

/// v1 `memory.limit_in_bytes` and v2 `memory.max`: `None` without a limit. v1 says "none" with a number near `i64::MAX`.
pub fn memory_limit(text: &str) -> Option<u64> {
    number(text).filter(|limit| *limit < 1 << 62)
}

/// Sum of the `Total` lines' numbers of a `blkio.throttle.*` file, per device: `8:0 Total 4096`; the last line,
/// `Total N`, is their sum and stands alone on an idle cgroup.
pub fn blkio_total(text: &str) -> Option<u64> {
    text.lines().rev().find_map(|line| number(line.strip_prefix("Total ")?))
}

/// Bytes and operations of `io.stat`, all devices together. An empty file is a cgroup that did nothing yet.
pub fn io_stat(text: &str) -> (u64, u64) {
    let field = |key: &str| {
        let values = text.split_ascii_whitespace().filter_map(|field| number(field.strip_prefix(key)?));
        values.fold(0, u64::saturating_add)
    };
    (field("rbytes=").saturating_add(field("wbytes=")), field("rios=").saturating_add(field("wios=")))
}

/// `/proc/TID/schedstat`: time on a processor, time waiting for one, times put on one.
pub fn schedstat(text: &str, tid: u32) -> Option<TaskTimes> {
    let mut fields = text.split_ascii_whitespace().map(number);
    let (_run, wait_ns, switches) = (fields.next()??, fields.next()??, fields.next()??);
    Some(TaskTimes { tid, wait_ns, switches })
}

/// The first line of `/proc/stat` and how many processors follow it.
pub fn proc_stat(text: &str) -> Option<CpuTimes> {
    let mut lines = text.lines();
    let ticks: Vec<u64> =
        lines.next()?.strip_prefix("cpu ")?.split_ascii_whitespace().map_while(number).take(8).collect();
    let cores = lines.take_while(|line| line.starts_with("cpu")).count() as u32;
    // user nice system idle iowait irq softirq steal; guest time is part of user time already.
    let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks.try_into().ok()?;
    let busy = [user, nice, system, irq, softirq].into_iter().fold(0, u64::saturating_add);
    let total = [idle, iowait, steal].into_iter().fold(busy, u64::saturating_add);
    (cores > 0).then_some(CpuTimes { busy, steal, total, cores })
}

/// `MemTotal` and what is not `MemAvailable` of `/proc/meminfo`, bytes.
pub fn meminfo(text: &str) -> Option<(u64, u64)> {
    let field = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        number(line.trim_end().strip_suffix("kB")?).map(|kib| kib.saturating_mul(1024))
    };
    let (total, available) = (field("MemTotal:")?, field("MemAvailable:")?);
    Some((total, total.saturating_sub(available)))
}

/// The whole devices of `/proc/diskstats` that `wanted` names; without names, all but loop, ram and zram.
pub fn diskstats(text: &str, wanted: &[String]) -> Vec<Disk> {
    let all: Vec<Disk> = text.lines().filter_map(disk).collect();
    let is_part = |name: &str| all.iter().any(|whole| is_partition_of(name, &whole.name));
    let is_wanted = |disk: &&Disk| {
        if wanted.is_empty() {
            !["loop", "ram", "zram"].iter().any(|kind| disk.name.starts_with(kind)) && !is_part(&disk.name)
        } else {
            wanted.contains(&disk.name)
        }
    };
    all.iter().filter(is_wanted).take(DISKS_MAX).cloned().collect()
}

/// Devices measured at once: the largest storage server of a rack holds fewer.
const DISKS_MAX: usize = 128;

fn disk(line: &str) -> Option<Disk> {
    let mut fields = line.split_ascii_whitespace().skip(2);
    let name = fields.next()?.to_owned();
    let numbers: Vec<u64> = fields.map_while(number).take(10).collect();
    let [reads, _, _, read_ms, writes, _, _, write_ms, _, busy_ms] = numbers.try_into().ok()?;
    let (operations, operation_ms) = (reads.saturating_add(writes), read_ms.saturating_add(write_ms));
    Some(Disk { name, operations, operation_ms, busy_ms })
}

/// `sda1` of `sda`, `nvme0n1p2` of `nvme0n1`.
fn is_partition_of(name: &str, whole: &str) -> bool {
    let Some(rest) = name.strip_prefix(whole).filter(|rest| !rest.is_empty()) else { return false };
    let digits = if whole.ends_with(|c: char| c.is_ascii_digit()) { rest.strip_prefix('p') } else { Some(rest) };
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// What `/proc/PID/stat` says about a process that stands for itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProcessStat {
    /// Major page faults.
    pub major_faults: u64,
    /// User and system time, clock ticks.
    pub cpu_ticks: u64,
    /// Ticks after boot at which it started: with the pid, its identity.
    pub start_ticks: u64,
    /// Resident pages.
    pub resident_pages: u64,
}

/// `/proc/PID/stat`. The command may hold blanks and brackets, so fields count from the last `)`.
pub fn process_stat(text: &str) -> Option<ProcessStat> {
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    // proc(5) counts from 1 and the state, its field 3, is the first one here.
    let field = |index: usize| fields.get(index - 3).and_then(|field| number(field));
    let cpu_ticks = field(14)?.saturating_add(field(15)?);
    Some(ProcessStat { major_faults: field(12)?, cpu_ticks, start_ticks: field(22)?, resident_pages: field(24)? })
}

/// The cgroup of a process in the hierarchy of the v1 `controller`, else in the unified one; without leading slash.
/// `None` for the root cgroup too.
pub fn process_cgroup<'a>(text: &'a str, controller: Option<&str>) -> Option<&'a str> {
    let path = text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_ours = match controller {
            Some(controller) => controllers.split(',').any(|name| name == controller),
            None => id == "0" && controllers.is_empty(),
        };
        is_ours.then_some(path)
    })?;
    Some(path.trim_start_matches('/')).filter(|path| !path.is_empty())
}

/// `read_bytes` and `write_bytes` of `/proc/PID/io`.
pub fn process_io(text: &str) -> Option<u64> {
    let field = |key: &str| text.lines().find_map(|line| number(line.strip_prefix(key)?));
    Some(field("read_bytes:")?.saturating_add(field("write_bytes:")?))
}

/// The numbers of `cgroup.procs` and `tasks`, one a line.
pub fn ids(text: &str) -> impl Iterator<Item = u32> + '_ {
    text.lines().filter_map(|line| line.trim().parse().ok()).filter(|id| *id > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cpu_stat_of_both_versions_gives_periods_and_throttled_periods() {
        let v1 = "nr_periods 120\nnr_throttled 7\nthrottled_time 99123\nnr_bursts 0\nburst_time 0\n";
        let v2 = "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 120\nnr_throttled 7\nthrottled_usec 3";
        let expected = Some(Throttle { depth: 2, periods: 120, throttled: 7 });
        assert_eq!(throttle(v1, 2), expected);
        assert_eq!(throttle(v2, 2), expected);
        assert_eq!(throttle("usage_usec 9\nuser_usec 5\n", 2), None);
        assert_eq!(keyed(v2, "usage_usec"), Some(9));
    }

    #[test]
    fn limits_that_mean_none_are_none() {
        assert_eq!(cpu_max("max 100000\n"), None);
        assert_eq!(cpu_max("150000 100000\n"), Some(1.5));
        assert_eq!(cpu_max("150000 0"), None);
        assert_eq!(number("-1\n"), None);
        assert_eq!(memory_limit("9223372036854771712\n"), None);
        assert_eq!(memory_limit("max\n"), None);
        assert_eq!(memory_limit("1048576\n"), Some(1_048_576));
    }

    #[test]
    fn pressure_is_the_total_of_the_some_line() {
        let text =
            "some avg10=0.43 avg60=1.17 avg300=3.80 total=209048869\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        assert_eq!(pressure_total(text), Some(209_048_869));
        assert_eq!(pressure_total("full avg10=0.00 total=3\n"), None);
    }

    #[test]
    fn block_io_sums_devices() {
        let v1 = "254:0 Read 4096\n254:0 Write 8192\n254:0 Sync 1\n254:0 Async 2\n254:0 Discard 0\n254:0 Total 12288\nTotal 12288\n";
        assert_eq!(blkio_total(v1), Some(12_288));
        assert_eq!(blkio_total("Total 0"), Some(0));
        let v2 = "254:0 rbytes=100 wbytes=20 rios=3 wios=4 dbytes=0 dios=0\n8:0 rbytes=1 wbytes=1 rios=1 wios=1\n";
        assert_eq!(io_stat(v2), (122, 9));
        assert_eq!(io_stat(""), (0, 0));
    }

    #[test]
    fn proc_stat_splits_busy_stolen_and_idle() {
        let text = "cpu  57245 0 14955 196516 997 0 80 277 0 0\ncpu0 28508 0 6266 99715 370 0 11 142 0 0\ncpu1 1 2 3\nintr 9 8\n";
        let busy = 57_245 + 14_955 + 80;
        assert_eq!(proc_stat(text), Some(CpuTimes { busy, steal: 277, total: busy + 196_516 + 997 + 277, cores: 2 }));
        assert_eq!(proc_stat("cpu  1 2 3\n"), None, "a kernel that old is not supported");
    }

    #[test]
    fn memory_in_use_is_what_is_not_available() {
        let text = "MemTotal:       1000 kB\nMemFree:         1 kB\nMemAvailable:    250 kB\n";
        assert_eq!(meminfo(text), Some((1_024_000, 750 * 1024)));
        assert_eq!(meminfo("MemTotal: 1000 kB\n"), None);
    }

    #[test]
    fn only_whole_devices_are_measured_unless_named() {
        let line = |name: &str| format!(" 254 0 {name} 10 1 2 30 20 3 4 50 0 600 182023 7207 36 862336 855 51 2\n");
        let text: String = ["loop0", "zram0", "sda", "sda1", "nvme0n1", "nvme0n1p2", "vda"].map(line).concat();
        let names = |wanted: &[String]| diskstats(&text, wanted).into_iter().map(|d| d.name).collect::<Vec<_>>();
        assert_eq!(names(&[]), ["sda", "nvme0n1", "vda"]);
        assert_eq!(names(&["sda1".to_owned()]), ["sda1"]);
        let vda = Disk { name: "vda".into(), operations: 30, operation_ms: 80, busy_ms: 600 };
        assert_eq!(diskstats(&text, &[]).last(), Some(&vda));
    }

    #[test]
    fn a_process_may_be_called_anything() {
        let text =
            "42 (a) R (b) ) S 1 42 42 0 -1 4194304 100 0 7 0 30 12 0 0 20 0 5 0 123456 9000 250 18446744073709551615";
        let expected = ProcessStat { major_faults: 7, cpu_ticks: 42, start_ticks: 123_456, resident_pages: 250 };
        assert_eq!(process_stat(text), Some(expected));
    }

    #[test]
    fn the_cgroup_of_a_process_is_taken_from_the_right_hierarchy() {
        let text = "4:memory:/api\n2:cpu,cpuacct:/sage-demo/node-a/geo\n0::/unified:odd\n";
        assert_eq!(process_cgroup(text, Some("cpuacct")), Some("sage-demo/node-a/geo"));
        assert_eq!(process_cgroup(text, None), Some("unified:odd"));
        assert_eq!(process_cgroup("2:cpuacct:/\n", Some("cpuacct")), None);
    }

    #[test]
    fn task_times_and_ids_are_read_line_by_line() {
        let expected = Some(TaskTimes { tid: 7, wait_ns: 61_421, switches: 2 });
        assert_eq!(schedstat("817038 61421 2\n", 7), expected);
        assert_eq!(schedstat("817038 61421", 7), None);
        assert_eq!(ids("1\n22\n\nx\n0\n333").collect::<Vec<_>>(), [1, 22, 333]);
        assert_eq!(process_io("rchar: 1\nread_bytes: 4096\nwrite_bytes: 1\ncancelled_write_bytes: 9\n"), Some(4_097));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "(cpu |some |total=|Total |[0-9a-z:=() \n.-]){0,60}|\\PC{0,200}") {
            let _ = (number(&text), keyed(&text, "usage_usec"), pressure_total(&text), throttle(&text, 1));
            let _ = (cpu_max(&text), memory_limit(&text), blkio_total(&text), io_stat(&text), schedstat(&text, 1));
            let _ = (proc_stat(&text), meminfo(&text), diskstats(&text, &[]), process_stat(&text), process_io(&text));
            let _ = (process_cgroup(&text, Some("cpu")), process_cgroup(&text, None), ids(&text).count());
        }
    }
}
