//! What a recorded name stands for: OpenTelemetry's semantic conventions, node_exporter's and cAdvisor's names, and a
//! user's own table before them. Pure.

use std::collections::BTreeMap;

use sage_common::Metric;
use thiserror::Error;

use super::{
    latency::{self, Said, Whose},
    points::{Kind, Point},
};

/// Unknown names remembered: more are counted under the last.
const UNKNOWN_MAX: usize = 1_000;

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
    Latency(Whose, Said),
}

/// A row of a user's table.
#[derive(Clone, Debug, PartialEq)]
enum Row {
    Usage(Rule),
    Latency { name: String, factor: f64 },
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
                None if latency::of_name(metric, 0.0, "s").is_some() => {
                    Row::Latency { name: metric.to_owned(), factor }
                }
                None => return Err(failed(format!("no metric is called {metric:?}"))),
            };
            own.insert(name.to_owned(), row);
        }
        Ok(Self { own, unknown: BTreeMap::new() })
    }

    /// What `point` is about; one that is in no table is counted.
    pub fn find(&mut self, point: &Point) -> Option<Meaning> {
        let of_row = |row: &Row| match row {
            Row::Usage(rule) => Some(Meaning::Usage(rule.clone())),
            Row::Latency { name, factor } => {
                Some(Meaning::Latency(Whose::Served, latency::of_name(name, factor * point.value, "s")?))
            }
        };
        let found = match self.own.get(&point.name) {
            Some(row) => of_row(row),
            None => known(point),
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

    /// Names in no table, with their points.
    pub fn unknown(&self) -> &BTreeMap<String, u64> {
        &self.unknown
    }
}

/// Whether a name is of a counter, whatever its points claim to be.
pub fn is_counter(point: &Point) -> bool {
    point.kind == Kind::Cumulative || (point.kind == Kind::Gauge && point.name.ends_with("_total"))
}

fn rule(metric: Metric) -> Rule {
    Rule { metric, factor: 1.0, merge: Merge::Sum, is_complement: false, is_of_node: metric.is_of_node() }
}

fn attribute<'a>(point: &'a Point, keys: &[&str]) -> &'a str {
    let found = point.attributes.iter().find(|(key, _)| keys.contains(&key.as_str()));
    found.map_or("", |(_, value)| value.as_str())
}

fn known(point: &Point) -> Option<Meaning> {
    if let Some((whose, said)) = latency::said(point) {
        return Some(Meaning::Latency(whose, said));
    }
    let rule = of_instance(point).or_else(|| of_node(point))?;
    let factor = if point.unit == "%" { rule.factor / 100.0 } else { rule.factor };
    Some(Meaning::Usage(Rule { factor, ..rule }))
}

fn of_instance(point: &Point) -> Option<Rule> {
    let metric = match point.name.as_str() {
        "container.cpu.usage"
        | "container.cpu.time"
        | "process.cpu.time"
        | "k8s.pod.cpu.usage"
        | "k8s.pod.cpu.time"
        | "k8s.container.cpu.usage"
        | "container_cpu_usage_seconds_total"
        | "process_cpu_seconds_total" => Metric::CpuUsed,
        "k8s.container.cpu.limit.utilization"
        | "k8s.container.cpu_limit_utilization"
        | "k8s.pod.cpu.limit.utilization"
        | "k8s.pod.cpu_limit_utilization" => Metric::CpuLimitShare,
        // The kernel's period is a tenth of a second unless somebody changed it.
        "container_cpu_cfs_throttled_periods_total" | "container.cpu.throttling_data.throttled_periods" => {
            return Some(Rule { factor: 0.1, merge: Merge::Max, ..rule(Metric::CpuThrottled) });
        }
        "container_pressure_cpu_waiting_seconds_total" => Metric::CpuPressure,
        "container.memory.usage"
        | "container.memory.working_set"
        | "k8s.pod.memory.working_set"
        | "k8s.pod.memory.usage"
        | "process.memory.usage"
        | "container_memory_working_set_bytes"
        | "process_resident_memory_bytes" => return Some(Rule { merge: Merge::Max, ..rule(Metric::MemoryUsed) }),
        "k8s.container.memory.limit.utilization"
        | "k8s.container.memory_limit_utilization"
        | "k8s.pod.memory.limit.utilization"
        | "k8s.pod.memory_limit_utilization" => Metric::MemoryLimitShare,
        "k8s.pod.memory.major_page_faults" | "container.memory.major_page_faults" => Metric::MajorFaults,
        "container_memory_failures_total" if attribute(point, &["failure_type"]) == "pgmajfault" => Metric::MajorFaults,
        "container_pressure_memory_waiting_seconds_total" => Metric::MemoryPressure,
        "container.disk.io"
        | "process.disk.io"
        | "container_fs_reads_bytes_total"
        | "container_fs_writes_bytes_total" => Metric::DiskBytes,
        "container.disk.operations" | "container_fs_reads_total" | "container_fs_writes_total" => {
            Metric::DiskOperations
        }
        "container_pressure_io_waiting_seconds_total" => Metric::IoPressure,
        "process.thread.count" | "container_threads" | "process_threads" => Metric::Threads,
        "process.open_file_descriptor.count" | "process_open_fds" | "container_file_descriptors" => Metric::OpenFiles,
        _ => return None,
    };
    Some(rule(metric))
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
        | "system.network.packet.dropped"
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
            Meaning::Latency(..) => None,
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
        let p95 = Meaning::Latency(Whose::Served, Said::Percentile(95.0, 250_000.0));
        assert_eq!(said(&mut names, "shop.millis", 250.0), Some(p95));
        assert_eq!(said(&mut names, "shop.hits", 7.0), Some(Meaning::Latency(Whose::Served, Said::Requests(7.0))));
    }
}
