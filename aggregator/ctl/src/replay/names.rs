//! What a recorded name stands for: OpenTelemetry's semantic conventions, node_exporter's and cAdvisor's names, and a
//! user's own table before them. Pure.

use std::collections::{BTreeMap, HashMap};

use sage_common::Metric;
use thiserror::Error;

use super::{
    points::{Kind, Point},
    spoken::{Row as Latency, Spoken},
};

/// Unknown names remembered: more are counted under the last.
const UNKNOWN_MAX: usize = 1_000;

/// Names whose reading is remembered; of more, each point is read anew.
const READ_MAX: usize = 10_000;

/// How the points of one metric at one place and time become one value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Merge {
    /// They add up: directions, devices.
    Sum,
    /// Their mean: processors.
    Mean,
    /// The largest: the busiest device.
    Max,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Which of ours.
    pub metric: Metric,
    /// Theirs times this is ours.
    pub factor: f64,
    /// How points become one.
    pub merge: Merge,
    /// Whether ours is what is left of 1.
    pub is_complement: bool,
    /// Whether it tells of the whole node whatever the resource says.
    pub is_of_node: bool,
}

/// What a point is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// One of our metrics.
    Usage(Rule),
    /// How long requests took, how many there were, how many succeeded.
    Latency(Spoken),
}

/// A row of a user's table.
#[derive(Clone, Debug, PartialEq)]
enum Row {
    Usage(Rule),
    Latency { row: Latency, factor: f64 },
}

/// Why a user's table cannot be used.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("line {line} of the map: {what}")]
pub struct MapError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// The table, and what it did not know.
#[derive(Debug, Default)]
pub struct Names {
    own: BTreeMap<String, Row>,
    read: HashMap<String, Option<Latency>>,
    unknown: BTreeMap<String, u64>,
}

impl Names {
    /// A table with a user's rows: `NAME METRIC [FACTOR]` a line, `#` begins a comment. METRIC is one of ours, or
    /// `latency_pNN` (seconds), `requests`, `rate`, `success_ratio` or `error_ratio` of what a service answered.
    ///
    /// # Errors
    ///
    /// [`MapError`]: the first row that does not read.
    pub fn with_map(text: &str) -> Result<Self, MapError> {
        let mut own = BTreeMap::new();
        for (at, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let failed = |what: String| MapError { line: at + 1, what };
            let (name, metric, factor) = match words[..] {
                [] => continue,
                [name, metric] => (name, metric, 1.0),
                [name, metric, factor] => {
                    let number = factor.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
                    (name, metric, number.ok_or_else(|| failed(format!("{factor:?} is no factor")))?)
                }
                _ => return Err(failed("want NAME METRIC [FACTOR]".to_owned())),
            };
            let row = match Metric::ALL.into_iter().find(|known| known.name() == metric) {
                Some(known) => Row::Usage(Rule { factor, ..rule(known) }),
                None => match Latency::of(metric) {
                    Some(row) => Row::Latency { row: row.in_seconds(), factor },
                    None => return Err(failed(format!("no metric is called {metric:?}"))),
                },
            };
            own.insert(name.to_owned(), row);
        }
        Ok(Self { own, ..Self::default() })
    }

    /// What `point` is about; one that is in no table is counted.
    pub fn find(&mut self, point: &Point) -> Option<Meaning> {
        let of_row = |row: &Row| match row {
            Row::Usage(rule) => Some(Meaning::Usage(rule.clone())),
            Row::Latency { row, factor } => row.said(point, factor * point.value).map(Meaning::Latency),
        };
        let found = match self.own.get(&point.name) {
            Some(row) => of_row(row),
            None => self.latency(point).map(Meaning::Latency).or_else(|| usage(point)),
        };
        if found.is_none() {
            let is_room = self.unknown.len() < UNKNOWN_MAX || self.unknown.contains_key(&point.name);
            let name = if is_room { point.name.as_str() } else { "(further names)" };
            match self.unknown.get_mut(name) {
                Some(count) => *count += 1,
                None => drop(self.unknown.insert(name.to_owned(), 1)),
            }
        }
        found
    }

    fn latency(&mut self, point: &Point) -> Option<Spoken> {
        let row = match self.read.get(&point.name) {
            Some(row) => *row,
            None => {
                let row = Latency::of(&point.name);
                if self.read.len() < READ_MAX {
                    self.read.insert(point.name.clone(), row);
                }
                row
            }
        };
        row?.said(point, point.value)
    }

    /// Names in no table, with their points.
    pub fn unknown(&self) -> &BTreeMap<String, u64> {
        &self.unknown
    }
}

/// Whether a name is of a counter, whatever its points claim to be: Prometheus says it by the name alone.
pub fn is_counter(point: &Point) -> bool {
    let endings = ["_total", "_bucket", "_count", "_sum"];
    let is_named = || endings.iter().any(|ending| point.name.ends_with(ending));
    point.kind == Kind::Cumulative || (point.kind == Kind::Gauge && is_named())
}

fn rule(metric: Metric) -> Rule {
    Rule { metric, factor: 1.0, merge: Merge::Sum, is_complement: false, is_of_node: metric.is_of_node() }
}

fn attribute<'a>(point: &'a Point, keys: &[&str]) -> &'a str {
    let found = point.attributes.iter().find(|(key, _)| keys.contains(&key.as_str()));
    found.map_or("", |(_, value)| value.as_str())
}

fn usage(point: &Point) -> Option<Meaning> {
    let rule = of_instance(point).or_else(|| of_node(point))?;
    let factor = if point.unit == "%" { rule.factor / 100.0 } else { rule.factor };
    Some(Meaning::Usage(Rule { factor, ..rule }))
}

fn of_instance(point: &Point) -> Option<Rule> {
    of_processor(point).or_else(|| of_memory(point)).or_else(|| of_disk(point)).or_else(|| of_process(point))
}

fn of_processor(point: &Point) -> Option<Rule> {
    Some(match point.name.as_str() {
        "container.cpu.usage"
        | "container.cpu.time"
        | "container.cpu.utilization"
        | "process.cpu.time"
        | "k8s.pod.cpu.usage"
        | "k8s.pod.cpu.time"
        | "k8s.pod.cpu.utilization"
        | "k8s.container.cpu.usage"
        | "k8s.container.cpu.time"
        | "jvm.cpu.time"
        | "container_cpu_usage_seconds_total"
        | "process_cpu_seconds_total"
        | "cpu"
        | "cpu_usage" => rule(Metric::CpuUsed),
        "container.cpu.usage.total" => scaled(1e-9, Metric::CpuUsed),
        "container.cpu.percent" => scaled(0.01, Metric::CpuUsed),
        "k8s.container.cpu.limit.utilization"
        | "k8s.container.cpu_limit_utilization"
        | "k8s.pod.cpu.limit.utilization"
        | "k8s.pod.cpu_limit_utilization"
        | "jvm.cpu.recent_utilization"
        | "process.runtime.jvm.cpu.utilization"
        | "process_cpu_usage" => max(Metric::CpuLimitShare),
        // The kernel's period is a tenth of a second unless somebody changed it.
        "container_cpu_cfs_throttled_periods_total" | "container.cpu.throttling_data.throttled_periods" => {
            Rule { factor: 0.1, ..max(Metric::CpuThrottled) }
        }
        "container_cpu_cfs_throttled_seconds_total" => max(Metric::CpuThrottled),
        "container.cpu.throttling_data.throttled_time" => Rule { factor: 1e-9, ..max(Metric::CpuThrottled) },
        "container_pressure_cpu_waiting_seconds_total" => rule(Metric::CpuPressure),
        _ => return None,
    })
}

fn of_memory(point: &Point) -> Option<Rule> {
    let is_major = || {
        let kinds = ["failure_type", "type", "process.paging.fault_type", "system.paging.fault.type"];
        matches!(attribute(point, &kinds), "pgmajfault" | "major")
    };
    Some(match point.name.as_str() {
        "container.memory.usage"
        | "container.memory.usage.total"
        | "container.memory.working_set"
        | "container.memory.rss"
        | "k8s.pod.memory.working_set"
        | "k8s.pod.memory.usage"
        | "k8s.container.memory.working_set"
        | "process.memory.usage"
        | "process.memory.physical_usage"
        | "container_memory_working_set_bytes"
        | "container_memory_usage_bytes"
        | "container_memory_rss"
        | "process_resident_memory_bytes"
        | "mem"
        | "memory"
        | "memory_usage" => max(Metric::MemoryUsed),
        // Pools of one heap.
        "jvm.memory.used" | "process.runtime.jvm.memory.usage" | "jvm_memory_used_bytes" => rule(Metric::MemoryUsed),
        "container.memory.percent" => scaled(0.01, Metric::MemoryLimitShare),
        "k8s.container.memory.limit.utilization"
        | "k8s.container.memory_limit_utilization"
        | "k8s.pod.memory.limit.utilization"
        | "k8s.pod.memory_limit_utilization" => rule(Metric::MemoryLimitShare),
        "k8s.pod.memory.major_page_faults" | "container.memory.major_page_faults" | "container.memory.pgmajfault" => {
            rule(Metric::MajorFaults)
        }
        "container_memory_failures_total" | "process.paging.faults" if is_major() => rule(Metric::MajorFaults),
        "container_pressure_memory_waiting_seconds_total" => rule(Metric::MemoryPressure),
        _ => return None,
    })
}

fn of_disk(point: &Point) -> Option<Rule> {
    Some(match point.name.as_str() {
        "container.disk.io"
        | "process.disk.io"
        | "container.blockio.io_service_bytes_recursive"
        | "container_fs_reads_bytes_total"
        | "container_fs_writes_bytes_total"
        | "container_blkio_device_usage_total"
        | "diskio"
        | "disk_io" => rule(Metric::DiskBytes),
        "container.disk.operations"
        | "container.blockio.io_serviced_recursive"
        | "container_fs_reads_total"
        | "container_fs_writes_total" => rule(Metric::DiskOperations),
        "container_pressure_io_waiting_seconds_total" => rule(Metric::IoPressure),
        _ => return None,
    })
}

/// Connections, threads, files.
fn of_process(point: &Point) -> Option<Rule> {
    let is_established = || attribute(point, &["tcp_state"]) == "established";
    Some(match point.name.as_str() {
        // Packets that an interface lost are sent again.
        "k8s.pod.network.errors"
        | "container.network.io.usage.rx_dropped"
        | "container.network.io.usage.tx_dropped"
        | "container_network_receive_packets_dropped_total"
        | "container_network_transmit_packets_dropped_total"
        | "container_network_receive_errors_total"
        | "container_network_transmit_errors_total" => rule(Metric::Retransmits),
        "container_network_tcp_usage_total" | "container_network_tcp6_usage_total" if is_established() => {
            rule(Metric::Connections)
        }
        "socket" | "sockets" | "container_sockets" => rule(Metric::Connections),
        "process.thread.count"
        | "process.threads"
        | "jvm.thread.count"
        | "jvm_threads_live_threads"
        | "container.pids.count"
        | "container_threads"
        | "process_threads" => max(Metric::Threads),
        "process.open_file_descriptor.count"
        | "process.open_file_descriptors"
        | "process_open_fds"
        | "container_file_descriptors" => rule(Metric::OpenFiles),
        _ => return None,
    })
}

/// The largest of a place's points.
fn max(metric: Metric) -> Rule {
    Rule { merge: Merge::Max, ..rule(metric) }
}

fn scaled(factor: f64, metric: Metric) -> Rule {
    Rule { factor, ..rule(metric) }
}

fn of_node(point: &Point) -> Option<Rule> {
    let state = attribute(point, &["state", "system.cpu.state", "cpu.mode", "mode", "system.memory.state"]);
    let sends = ["transmit", "sent", "out"].contains(&attribute(point, &["direction", "network.io.direction"]));
    let sum = |metric| Some(Rule { is_of_node: true, ..rule(metric) });
    let max = |metric| Some(Rule { merge: Merge::Max, is_of_node: true, ..rule(metric) });
    let mean = |metric| Some(Rule { merge: Merge::Mean, is_of_node: true, ..rule(metric) });
    match point.name.as_str() {
        "k8s.node.cpu.utilization" => mean(Metric::NodeCpuUtilisation),
        "system.cpu.utilization" | "system.cpu.time" | "node_cpu_seconds_total" => match state {
            "idle" => Some(Rule { is_complement: true, ..mean(Metric::NodeCpuUtilisation)? }),
            "steal" => mean(Metric::NodeCpuSteal),
            _ => None,
        },
        "k8s.node.memory.utilization" => mean(Metric::NodeMemoryUtilisation),
        "system.memory.utilization" if state == "used" => mean(Metric::NodeMemoryUtilisation),
        "system.disk.io_time" | "node_disk_io_time_seconds_total" => max(Metric::NodeDiskUtilisation),
        "k8s.node.network.io" | "system.network.io" if sends => sum(Metric::NodeNetworkSent),
        "k8s.node.network.io" | "system.network.io" => sum(Metric::NodeNetworkReceived),
        "node_network_receive_bytes_total" => sum(Metric::NodeNetworkReceived),
        "node_network_transmit_bytes_total" => sum(Metric::NodeNetworkSent),
        "system.network.dropped"
        | "system.network.errors"
        | "system.network.packet.dropped"
        | "node_network_receive_errs_total"
        | "node_network_transmit_errs_total"
        | "node_network_receive_drop_total"
        | "node_network_transmit_drop_total" => sum(Metric::NodeNetworkDrops),
        "node_netstat_Tcp_RetransSegs" => sum(Metric::Retransmits),
        "node_pressure_cpu_waiting_seconds_total" => max(Metric::CpuPressure),
        "node_pressure_memory_waiting_seconds_total" => max(Metric::MemoryPressure),
        "node_pressure_io_waiting_seconds_total" => max(Metric::IoPressure),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use sage_common::Timestamp;

    use super::*;
    use crate::replay::latency::{Said, Whose};

    fn point(name: &str, attributes: &[(&str, &str)]) -> Point {
        Point {
            name: name.to_owned(),
            unit: "1".to_owned(),
            attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            at: Timestamp::default(),
            value: 1.0,
            kind: Kind::Gauge,
        }
    }

    fn rule_of(names: &mut Names, point: &Point) -> Option<Rule> {
        match names.find(point)? {
            Meaning::Usage(rule) => Some(rule),
            Meaning::Latency(_) => None,
        }
    }

    #[test]
    fn three_dialects_name_the_same_metric() {
        let mut names = Names::default();
        for name in ["container.cpu.time", "k8s.pod.cpu.usage", "container_cpu_usage_seconds_total"] {
            assert_eq!(rule_of(&mut names, &point(name, &[])).expect("known").metric, Metric::CpuUsed, "{name}");
        }
        let idle = point("node_cpu_seconds_total", &[("cpu", "0"), ("mode", "idle")]);
        let idle = rule_of(&mut names, &idle).expect("known");
        assert!(idle.is_complement && idle.is_of_node && idle.merge == Merge::Mean);
        assert_eq!(names.find(&point("node_cpu_seconds_total", &[("mode", "user")])), None);
    }

    #[test]
    fn unknown_names_are_listed_once_with_their_count() {
        let mut names = Names::default();
        for _ in 0..3 {
            names.find(&point("shop.basket.size", &[]));
        }
        assert_eq!(names.unknown(), &BTreeMap::from([("shop.basket.size".to_owned(), 3)]));
    }

    #[test]
    fn a_users_table_comes_first_and_is_checked() {
        let mut names = Names::with_map("# ours\nshop.cpu cpu_used 0.001 # millicores\n\n").expect("valid");
        let found = rule_of(&mut names, &point("shop.cpu", &[])).map(|rule| (rule.metric, rule.factor));
        assert_eq!(found, Some((Metric::CpuUsed, 0.001)));
        for (text, line) in [("a b c d", 1), ("\na heat", 2), ("a cpu_used -1", 1)] {
            assert_eq!(Names::with_map(text).expect_err("wrong").line, line, "{text}");
        }
    }

    #[test]
    fn a_percentage_becomes_a_share() {
        let percent = Point { unit: "%".to_owned(), ..point("k8s.node.cpu.utilization", &[]) };
        assert_eq!(rule_of(&mut Names::default(), &percent).expect("known").factor, 0.01);
    }

    #[test]
    fn a_users_table_names_latencies_too() {
        let mut names = Names::with_map("shop.millis latency_p95 0.001\nshop.hits requests").expect("valid");
        let said = |names: &mut Names, name, value| names.find(&Point { value, ..point(name, &[]) });
        let served =
            |said| Some(Meaning::Latency(Spoken { service: None, whose: Whose::Served, said, is_failed: false }));
        assert_eq!(said(&mut names, "shop.millis", 250.0), served(Said::Percentile(95.0, 250_000.0)));
        assert_eq!(said(&mut names, "shop.hits", 7.0), served(Said::Requests(7.0)));
    }
}
