//! Numbers and names in plain words: milliseconds, per cent, clock times, what a metric means.

use sage_aggregator::core::TrueCause;
use sage_causal::{
    observation::EdgeKey,
    verdict::{Evidence, EvidenceKind, Resource, Verdict},
};
use sage_common::{Metric, ServiceId};

/// `48.3 ms`, with as many digits as a reader can use; `-` when absent.
pub fn millis(value: impl Into<Option<f64>>) -> String {
    match value.into() {
        None => "-".into(),
        Some(ms) if ms.abs() >= 10_000.0 => format!("{:.1} s", ms / 1e3),
        Some(ms) if ms.abs() >= 100.0 => format!("{ms:.0} ms"),
        Some(ms) if ms.abs() >= 1.0 => format!("{ms:.1} ms"),
        Some(ms) => format!("{ms:.2} ms"),
    }
}

/// `97 %`; neither 0 nor 100 is claimed for a value that only rounds to it.
pub fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p > 0.0 && p < 1.0 => "<1 %".into(),
        p if p > 99.0 && p < 100.0 => ">99 %".into(),
        p => format!("{p:.0} %"),
    }
}

/// `p99` or `p99.9`.
pub fn percentile(p: f64) -> String {
    format!("p{p}")
}

/// `45 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`: the two largest units.
pub fn span(ms: u64) -> String {
    let s = ms.saturating_add(500) / 1_000;
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => pair(s / 60, "min", s % 60, "s"),
        3_600..86_400 => pair(s / 3_600, "h", s % 3_600 / 60, "min"),
        _ => pair(s / 86_400, "d", s % 86_400 / 3_600, "h"),
    }
}

fn pair(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large} {large_unit}") } else { format!("{large} {large_unit} {small} {small_unit}") }
}

/// `2026-11-21 22:10:04 UTC` of milliseconds since the Unix epoch.
pub fn date_time(at_ms: u64) -> String {
    let (days, seconds) = (at_ms / 86_400_000, at_ms / 1_000 % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {}", clock(seconds * 1_000))
}

/// `22:10:04 UTC` of milliseconds since the Unix epoch.
pub fn clock(at_ms: u64) -> String {
    let seconds = at_ms / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// Year, month and day of `days` since 1970-01-01 (Hinnant, *chrono-compatible low-level date algorithms*,
/// `civil_from_days`, for dates after the epoch).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// What of a service is at fault, as a person would say it.
pub const fn resource(resource: Resource) -> &'static str {
    match resource {
        Resource::Cpu => "processor time",
        Resource::Memory => "memory",
        Resource::Disk => "the disk",
        Resource::Network => "the network",
        Resource::Software => "the software itself (threads, connections, locks or a slow code path)",
    }
}

/// The services that a verdict names, `geo (cpu), rate (network)`; empty when it names nobody.
pub fn culprits(verdict: &Verdict) -> String {
    let names = verdict.culprits.iter().map(|culprit| blamed(&culprit.service, Some(culprit.resource)));
    names.collect::<Vec<_>>().join(", ")
}

/// What an operator says was at fault, `geo (cpu), rate`.
pub fn causes(causes: &[TrueCause]) -> String {
    causes.iter().map(|cause| blamed(&cause.service, cause.resource)).collect::<Vec<_>>().join(", ")
}

fn blamed(service: &ServiceId, resource: Option<Resource>) -> String {
    match resource {
        Some(resource) => format!("{service} ({})", format!("{resource:?}").to_lowercase()),
        None => service.to_string(),
    }
}

/// `search → geo, operation Nearby`.
pub fn edge(edge: &EdgeKey) -> String {
    let caller = edge.caller.as_ref().map_or("clients", |caller| caller.as_str());
    format!("{caller} → {}, {}", edge.callee, edge.operation)
}

/// What a piece of evidence measures, its normal and its observed value.
pub fn evidence(evidence: &Evidence) -> (String, String, String) {
    let Evidence { what, normal, observed, .. } = evidence;
    match what {
        EvidenceKind::SelfTime(key) => {
            (format!("own time of {} {}", key.callee, key.operation), millis(normal / 1e3), millis(observed / 1e3))
        }
        EvidenceKind::Gap(key) => (format!("on the way {}", edge(key)), millis(normal / 1e3), millis(observed / 1e3)),
        EvidenceKind::Metric(metric) => {
            let (name, show) = metric_words(*metric);
            (name.to_owned(), show(*normal), show(*observed))
        }
    }
}

type Show = fn(f64) -> String;

/// A metric's plain name, and how its values are written.
fn metric_words(metric: Metric) -> (&'static str, Show) {
    match metric {
        Metric::CpuUsed => ("CPU used", cores),
        Metric::CpuLimitShare => ("CPU used of its limit", percent),
        Metric::CpuThrottled => ("time slices cut short by its CPU limit", percent),
        Metric::RunQueueWait => ("time spent waiting for a CPU", per_second_ms),
        Metric::ContextSwitches => ("context switches", rate),
        Metric::CpuPressure => ("time stalled for want of CPU", percent),
        Metric::NodeCpuUtilisation => ("CPU of the node in use", percent),
        Metric::NodeCpuCoRunners => ("CPU used by others on the node", cores),
        Metric::NodeCpuSteal => ("CPU stolen by the hypervisor", percent),
        Metric::MemoryUsed => ("memory used", bytes),
        Metric::MemoryLimitShare => ("memory used of its limit", percent),
        Metric::MajorFaults => ("pages read back from disk", rate),
        Metric::MemoryPressure => ("time stalled for want of memory", percent),
        Metric::NodeMemoryUtilisation => ("memory of the node in use", percent),
        Metric::LlcMisses => ("cache misses", rate),
        Metric::DiskBytes => ("disk traffic", bytes_per_second),
        Metric::DiskOperations => ("disk operations", rate),
        Metric::IoPressure => ("time stalled on the disk", percent),
        Metric::NodeDiskAwait => ("time of one disk operation", |ms| millis(ms)),
        Metric::NodeDiskUtilisation => ("busiest disk of the node in use", percent),
        Metric::RoundTrip => ("network round trip", |ms| millis(ms)),
        Metric::Retransmits => ("segments sent again", rate),
        Metric::NodeNetworkReceived => ("received by the node", bytes_per_second),
        Metric::NodeNetworkSent => ("sent by the node", bytes_per_second),
        Metric::NodeNetworkDrops => ("packets dropped on the node", rate),
        Metric::NodeQdiscBacklog => ("bytes waiting to be sent on the node", bytes),
        Metric::Threads => ("threads", count),
        Metric::OpenFiles => ("open files", count),
        Metric::Connections => ("open connections", count),
    }
}

fn cores(value: f64) -> String {
    format!("{value:.2} cores")
}

fn per_second_ms(seconds_per_second: f64) -> String {
    format!("{:.0} ms/s", seconds_per_second * 1e3)
}

fn rate(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}/s") } else { format!("{value:.1}/s") }
}

fn count(value: f64) -> String {
    format!("{value:.0}")
}

fn bytes(value: f64) -> String {
    match value.abs() {
        v if v >= 1e9 => format!("{:.1} GB", value / 1e9),
        v if v >= 1e6 => format!("{:.1} MB", value / 1e6),
        v if v >= 1e3 => format!("{:.1} kB", value / 1e3),
        _ => format!("{value:.0} B"),
    }
}

fn bytes_per_second(value: f64) -> String {
    format!("{}/s", bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_a_clock_shows_them() {
        assert_eq!(date_time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date_time(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(date_time(1_795_299_004_999), "2026-11-21 22:10:04 UTC");
    }

    #[test]
    fn spans_show_their_two_largest_units() {
        assert_eq!(span(400), "0 s");
        assert_eq!(span(45_000), "45 s");
        assert_eq!(span(200_000), "3 min 20 s");
        assert_eq!(span(7_200_000), "2 h");
        assert_eq!(span(360_000_000), "4 d 4 h");
    }

    #[test]
    fn milliseconds_keep_the_digits_a_reader_can_use() {
        assert_eq!(millis(0.25), "0.25 ms");
        assert_eq!(millis(48.26), "48.3 ms");
        assert_eq!(millis(184.3), "184 ms");
        assert_eq!(millis(12_345.0), "12.3 s");
        assert_eq!(millis(None), "-");
    }

    #[test]
    fn certainty_is_never_rounded_into_being() {
        assert_eq!(percent(0.997), ">99 %");
        assert_eq!(percent(0.003), "<1 %");
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.0), "0 %");
    }

    #[test]
    fn every_metric_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Metric::ALL.iter().map(|metric| metric_words(*metric).0).collect();
        assert_eq!(names.len(), Metric::COUNT);
    }
}
