//! `/metrics` in the OpenMetrics text format. Written from the board at each scrape, so that no series outlives what it
//! speaks of; the only label is the service's name, of which there is a bounded number.

use std::{fmt::Write, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use sage_common::Micros;

use super::{board::Board, report::State};

type Float = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ServiceLabel {
    service: String,
}

/// The text of one scrape.
pub fn text(board: &Board, now: Micros) -> String {
    let mut registry = Registry::with_prefix("sage_agent");
    from_report(&mut registry, board, now);
    from_views(&mut registry, board);
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        let _ = write!(text, "# {error}");
    }
    text
}

fn from_report(registry: &mut Registry, board: &Board, now: Micros) {
    let report = board.report(now);
    counter(registry, "spans", "Spans counted", report.intake.spans);
    counter(registry, "rejected_requests", "Requests that could not be decoded", report.intake.rejected_requests);
    counter(registry, "dropped_spans", "Spans shed because a bound was reached", report.intake.dropped_spans);
    gauge(registry, "unpaired_ratio", "Share of the last window's spans left unpaired", report.intake.unpaired_ratio);
    counter(registry, "windows_sent", "Windows handed to a connection", report.windows.sent);
    counter(registry, "windows_acknowledged", "Windows committed by an aggregator", report.windows.acknowledged);
    gauge(registry, "windows_spooled", "Windows that wait for an acknowledgement", report.windows.spooled as f64);
    gauge(registry, "connected", "Whether a leader has welcomed this agent", f64::from(u8::from(report.connected)));
    gauge(registry, "healthy", "Whether status is healthy", f64::from(u8::from(report.state == State::Healthy)));
    gauge(registry, "frozen", "Whether the brake is on", f64::from(u8::from(report.frozen)));
    gauge(registry, "term", "Highest term known", report.term as f64);
    gauge(registry, "leases", "Settings in force", report.leases.len() as f64);
    gauge(registry, "cpu_cores", "Cores used by this process", report.own.cpu_cores);
    gauge(registry, "resident_memory_bytes", "Memory of this process", report.own.memory_bytes as f64);
    let (calls, p99): (Family<ServiceLabel, Float>, Family<ServiceLabel, Float>) = Default::default();
    for service in report.services {
        let label = ServiceLabel { service: service.name };
        calls.get_or_create(&label).set(service.calls_per_s);
        if let Some(p99_ms) = service.p99_ms {
            p99.get_or_create(&label).set(p99_ms / 1e3);
        }
    }
    registry.register("service_calls_per_second", "Calls served in the last window", calls);
    registry.register_with_unit("service_p99", "99th percentile of server spans", Unit::Seconds, p99);
}

fn from_views(registry: &mut Registry, board: &Board) {
    let totals = board.intake().totals();
    let views = board.views().clone();
    let counters = views.pipeline.counters;
    counter(registry, "requests", "Requests and packets received", totals.requests);
    counter(registry, "refused_requests", "Requests turned away under overload", totals.refused_requests);
    counter(registry, "late_spans", "Spans that came after their window", counters.late);
    counter(registry, "skewed_spans", "Spans far from this node's clock", counters.clock_skewed);
    counter(registry, "duplicate_spans", "Spans delivered twice", counters.duplicates);
    counter(registry, "other_operation_spans", "Spans counted under _OTHER", counters.other_operations);
    counter(registry, "clock_jumps", "Jumps of the wall clock", counters.clock_jumps);
    counter(registry, "windows_lost", "Windows that could not be sent at all", views.pipeline.windows_lost);
    counter(registry, "windows_rejected", "Windows that aggregators refused for good", views.uplink.rejected);
    counter(registry, "windows_shed", "Windows shed from a full spool", views.uplink.spool.shed);
    counter(registry, "windows_damaged", "Spool files that were not whole", views.uplink.spool.damaged);
    gauge(registry, "spool_bytes", "Bytes on disk", views.uplink.spool_bytes as f64);
    counter(registry, "drifts", "Held knobs that somebody else changed", views.actuation.drifts);
    counter(registry, "sweeps", "Readings of usage", views.sampling.sweeps);
    counter(registry, "sweep_overruns", "Readings that took longer than a second", views.sampling.overruns);
    gauge(registry, "sweep_seconds", "Duration of the last reading", views.sampling.sweep.as_secs_f64());
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter: Counter = Counter::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Float::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sage_common::BootId;

    use super::*;
    use crate::{core::telemetry::ObservedService, intake::IntakeStats};

    #[test]
    fn metrics_carry_prefix_units_and_one_label() {
        let node = "n".parse().expect("valid");
        let board = Board::new(node, BootId(1), Micros::ZERO, Arc::new(IntakeStats::default()));
        board.views().pipeline.counters.spans = 7;
        board.views().pipeline.services = vec![ObservedService {
            service: "geo".parse().expect("valid"),
            instances: vec![],
            pids: vec![1],
            calls_per_s: 2.5,
            p99: Some(Micros::from_millis(20)),
        }];
        let text = text(&board, Micros::from_secs(1));
        let expected = [
            "sage_agent_spans_total 7",
            "sage_agent_connected 0.0",
            "sage_agent_service_calls_per_second{service=\"geo\"} 2.5",
            "sage_agent_service_p99_seconds{service=\"geo\"} 0.02",
        ];
        for line in expected {
            assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
