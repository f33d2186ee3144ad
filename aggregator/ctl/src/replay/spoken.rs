//! Which metric names speak of latency: OpenTelemetry's conventions old and new, its span metrics, Prometheus clients,
//! Spring, Istio, gRPC. Pure.
//!
//! A name is a prefix (whose calls), what is measured, and endings: a unit, a percentile, a part of a histogram.
//!
//! ```text
//!  http.client.request.duration_bucket{le}     traces_spanmetrics_latency_sum     istio_requests_total     latency-90
//! ```

use super::{
    latency::{Said, Whose},
    points::Point,
};

/// What a name says, whatever the value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    what: What,
    is_client: bool,
    is_of_spans: bool,
    factor: Option<f64>, // microseconds, where the name says its unit
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Percentile(f64),
    /// A quantile where an attribute says which, else the mean.
    Duration,
    Bucket,
    Sum,
    Count,
    Requests,
    Rate,
    Failures,
    Succeeded,
    Failed,
}

/// What one point says, and of whose calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoken {
    /// The service, where the point names another than its resource.
    pub service: Option<String>,
    /// Whose calls.
    pub whose: Whose,
    /// What of them.
    pub said: Said,
    /// Whether it is of requests that failed.
    pub is_failed: bool,
}

/// Prefixes of what a service answered, and of what it asked others.
const SERVED: [&str; 9] = [
    "rpc_server_",
    "http_server_",
    "grpc_server_",
    "istio_",
    "traces_spanmetrics_",
    "traces_span_metrics_",
    "span_metrics_",
    "service_",
    "http_",
];
const MADE: [&str; 4] = ["rpc_client_", "http_client_", "grpc_client_", "db_client_"];

const DURATIONS: [&str; 12] = [
    "request_duration",
    "requests_duration",
    "duration",
    "latency",
    "request_latency",
    "response_latency",
    "response_time",
    "request_time",
    "call_duration",
    "handling",
    "handling_time",
    "operation_duration",
];

/// Endings that name a unit, in microseconds; longer ones first.
const UNITS: [(&str, f64); 8] = [
    ("_milliseconds", 1e3),
    ("_microseconds", 1.0),
    ("_nanoseconds", 1e-3),
    ("_seconds", 1e6),
    ("_ms", 1e3),
    ("_us", 1.0),
    ("_ns", 1e-3),
    ("_s", 1e6),
];

/// Attributes that name whom a client called.
const PEERS: [&str; 9] = [
    "service.peer.name",
    "peer.service",
    "server",
    "callee",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "clientName",
    "server.address",
];

/// Attributes that name who called.
const SOURCES: [&str; 3] = ["source_workload", "source_canonical_service", "source_app"];

/// gRPC's codes of failures of a server, by OpenTelemetry's conventions, as numbers and in words.
const GRPC_FAILURES: [&str; 12] = [
    "2",
    "4",
    "12",
    "13",
    "14",
    "15",
    "unknown",
    "deadlineexceeded",
    "unimplemented",
    "internal",
    "unavailable",
    "dataloss",
];

impl Row {
    /// What `name` says; `None` when it speaks of something else.
    pub fn of(name: &str) -> Option<Self> {
        let flat: String =
            name.chars().map(|c| if matches!(c, '.' | '-') { '_' } else { c.to_ascii_lowercase() }).collect();
        let made = MADE.iter().find_map(|prefix| flat.strip_prefix(prefix));
        let rest = made.or_else(|| SERVED.iter().find_map(|prefix| flat.strip_prefix(prefix))).unwrap_or(&flat);
        let is_of_spans = flat.starts_with("traces_") || flat.starts_with("span_metrics_");
        let (what, factor) = duration(rest).or_else(|| Some((counted(rest)?, None)))?;
        Some(Self { what, is_client: made.is_some(), is_of_spans, factor })
    }

    /// The same, in seconds whatever a point says.
    pub fn in_seconds(self) -> Self {
        Self { factor: Some(1e6), ..self }
    }

    /// Whether it is of a duration.
    pub fn is_duration(&self) -> bool {
        matches!(self.what, What::Percentile(_) | What::Duration | What::Bucket | What::Sum | What::Count)
    }

    /// What `point` says when its number is `value`; `None` when that is nothing, or of calls to nobody knows whom.
    pub fn said(&self, point: &Point, value: f64) -> Option<Spoken> {
        let value = Some(value).filter(|value| value.is_finite() && *value >= 0.0)?;
        let attribute = |name: &str| point.attribute(name);
        let micros = self.factor.unwrap_or(match point.unit.as_str() {
            "us" | "µs" => 1.0,
            "ms" => 1e3,
            "ns" => 1e-3,
            _ => 1e6, // the conventions' unit is the second
        });
        let share = if point.unit == "%" { value / 100.0 } else { value }.min(1.0);
        let said = match self.what {
            What::Percentile(p) => Said::Percentile(p, micros * value),
            What::Duration => match attribute("quantile").map(str::parse::<f64>) {
                Some(quantile) => {
                    Said::Percentile(100.0 * quantile.ok().filter(|q| (0.01..=1.0).contains(q))?, micros * value)
                }
                None => Said::Mean(micros * value),
            },
            What::Bucket => {
                let bound: f64 = attribute("le")?.parse().ok()?;
                Said::AtMost(micros * bound, value)
            }
            What::Sum => Said::Spent(micros * value),
            What::Count => Said::Counted(value),
            What::Requests => Said::Requests(value),
            What::Rate => Said::Rate(value),
            What::Failures => Said::Failures(value),
            What::Succeeded => Said::Succeeded(share),
            What::Failed => Said::Succeeded(1.0 - share),
        };
        let (service, whose) = self.whose(point)?;
        Some(Spoken { service, whose, said, is_failed: is_failed(point) })
    }

    /// The service that measured where the point names it, and whose calls it speaks of.
    fn whose(&self, point: &Point) -> Option<(Option<String>, Whose)> {
        let first = |names: &[&str]| names.iter().find_map(|name| point.attribute(name)).map(str::to_owned);
        let peer = || first(&PEERS).map(Whose::Made);
        let own = || {
            first(if self.is_of_spans {
                &["service.name", "service_name", "service"]
            } else {
                &["service.name", "service_name"]
            })
        };
        if let Some(kind) = point.attribute("span.kind").or_else(|| point.attribute("span_kind")) {
            return match kind.trim_start_matches("SPAN_KIND_") {
                "SERVER" | "CONSUMER" => Some((own(), Whose::Served)),
                "CLIENT" | "PRODUCER" => Some((own(), peer()?)),
                _ => None,
            };
        }
        let of_mesh = point.attribute("destination_workload").or_else(|| point.attribute("destination_service_name"));
        match (of_mesh, point.attribute("reporter")) {
            (Some(_), Some("source")) => Some((Some(first(&SOURCES)?), peer()?)),
            (Some(server), _) => Some((Some(server.to_owned()), Whose::Served)),
            (None, _) if self.is_client => Some((own(), peer()?)),
            (None, _) => Some((own(), Whose::Served)),
        }
    }
}

/// A duration or a part of one, and its unit where the name says it.
fn duration(rest: &str) -> Option<(What, Option<f64>)> {
    let part = [("_bucket", What::Bucket), ("_sum", What::Sum), ("_count", What::Count)]
        .into_iter()
        .find_map(|(ending, what)| Some((rest.strip_suffix(ending)?, what)));
    let (rest, what) = part.unwrap_or((rest, What::Duration));
    let (rest, behind) = unit(rest);
    let mean = ["_avg", "_mean", "_average"].iter().find_map(|ending| rest.strip_suffix(ending));
    let (rest, what) = match (percentile(rest), mean) {
        (Some((rest, p)), _) if part.is_none() => (rest, What::Percentile(p)),
        (_, Some(rest)) if part.is_none() => (rest, What::Duration),
        _ => (rest, what),
    };
    let (rest, before) = unit(rest);
    // Spring's timers of requests are called as their counters are.
    let is_timer = rest == "requests" && part.is_some() && behind.is_some();
    (DURATIONS.contains(&rest) || is_timer).then_some((what, behind.or(before)))
}

fn unit(rest: &str) -> (&str, Option<f64>) {
    let found = UNITS.iter().find_map(|(ending, micros)| Some((rest.strip_suffix(ending)?, Some(*micros))));
    found.unwrap_or((rest, None))
}

/// `latency_p95`, `latency_95`, `latency_p99_9`.
fn percentile(rest: &str) -> Option<(&str, f64)> {
    let at = rest.find("_p").filter(|at| rest[at + 2..].starts_with(|c: char| c.is_ascii_digit()));
    let (base, digits) = match at {
        Some(at) => (&rest[..at], rest[at + 2..].replace('_', ".")),
        None => rest.rsplit_once('_').map(|(base, digits)| (base, digits.to_owned()))?,
    };
    let p: f64 = digits.parse().ok().filter(|p| (1.0..=100.0).contains(p))?;
    Some((base, p))
}

fn counted(rest: &str) -> Option<What> {
    Some(match rest.strip_suffix("_total").unwrap_or(rest) {
        "requests" | "request_count" | "requests_count" | "calls" | "handled" => What::Requests,
        "request_rate" | "requests_rate" | "rate" | "workload" | "requests_per_second" | "rps" | "qps" => What::Rate,
        "request_errors" | "errors" | "error_count" | "failures" | "failed_requests" => What::Failures,
        "availability" | "success_ratio" | "success_rate" => What::Succeeded,
        "error_ratio" | "error_rate" => What::Failed,
        _ => return None,
    })
}

/// Whether the attributes of `point` tell of requests that their server failed.
fn is_failed(point: &Point) -> bool {
    point.attributes.iter().any(|(key, value)| match key.as_str() {
        "error.type" | "error_type" => !matches!(value.as_str(), "" | "none" | "None"),
        "http.response.status_code"
        | "http.status_code"
        | "http_response_status_code"
        | "http_status_code"
        | "response_code"
        | "status_code"
        | "status"
        | "code" => is_server_error(value),
        "rpc.grpc.status_code" | "rpc_grpc_status_code" | "grpc_code" | "grpc_response_status" => {
            GRPC_FAILURES.contains(&value.to_ascii_lowercase().as_str())
        }
        "status.code" => value.ends_with("ERROR"),
        "outcome" => value == "SERVER_ERROR",
        _ => false,
    })
}

/// `500` to `599`, or `5xx`; span metrics write `STATUS_CODE_ERROR`.
fn is_server_error(value: &str) -> bool {
    value == "STATUS_CODE_ERROR" || value.len() == 3 && value.starts_with('5')
}

#[cfg(test)]
mod tests {
    use sage_common::Timestamp;

    use super::*;
    use crate::replay::points::Kind;

    fn point(name: &str, value: f64, unit: &str, attributes: &[(&str, &str)]) -> Point {
        Point {
            name: name.to_owned(),
            unit: unit.to_owned(),
            attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            at: Timestamp::default(),
            value,
            kind: Kind::Gauge,
        }
    }

    fn spoken(name: &str, value: f64, unit: &str, attributes: &[(&str, &str)]) -> Option<Spoken> {
        let point = point(name, value, unit, attributes);
        Row::of(name)?.said(&point, value)
    }

    fn said(name: &str, value: f64, unit: &str) -> Option<Said> {
        spoken(name, value, unit, &[]).map(|spoken| spoken.said)
    }

    #[test]
    fn names_tell_percentiles_means_counts_and_success() {
        let p95 = Some(Said::Percentile(95.0, 250_000.0));
        for (name, value, unit) in [
            ("rpc.server.duration.p95", 0.25, "s"),
            ("http.server.request.duration.p95", 250.0, "ms"),
            ("latency-95", 0.25, ""),
            ("latency_p95_ms", 250.0, ""),
            ("http_request_duration_ms_p95", 250.0, "1"),
            ("response_time_p95", 250.0, "ms"),
        ] {
            assert_eq!(said(name, value, unit), p95, "{name}");
        }
        assert_eq!(said("rpc.server.duration.avg", 3.0, "ms"), Some(Said::Mean(3_000.0)));
        assert_eq!(said("rpc.server.requests", 7.0, "1"), Some(Said::Requests(7.0)));
        assert_eq!(said("istio_requests_total", 7.0, ""), Some(Said::Requests(7.0)));
        assert_eq!(said("workload", 7.0, ""), Some(Said::Rate(7.0)));
        assert_eq!(said("rpc.server.availability", 50.0, "%"), Some(Said::Succeeded(0.5)));
        assert_eq!(said("error_rate", 0.25, "1"), Some(Said::Succeeded(0.75)));
    }

    #[test]
    fn parts_of_histograms_come_with_their_unit() {
        let bucket = |name, unit| spoken(name, 3.0, unit, &[("le", "0.5")]).map(|spoken| spoken.said);
        for (name, unit) in [("http.server.request.duration_bucket", "s"), ("request_duration_seconds_bucket", "")] {
            assert_eq!(bucket(name, unit), Some(Said::AtMost(500_000.0, 3.0)), "{name}");
        }
        assert_eq!(bucket("istio_request_duration_milliseconds_bucket", ""), Some(Said::AtMost(500.0, 3.0)));
        assert_eq!(said("http_server_requests_seconds_sum", 2.0, ""), Some(Said::Spent(2e6)));
        assert_eq!(said("traces_spanmetrics_latency_count", 2.0, ""), Some(Said::Counted(2.0)));
        let quantile =
            spoken("http_request_duration_seconds", 2.0, "", &[("quantile", "0.99")]).map(|spoken| spoken.said);
        assert_eq!(quantile, Some(Said::Percentile(99.0, 2e6)));
        let infinite = spoken("latency_bucket", 3.0, "", &[("le", "+Inf")]).map(|spoken| spoken.said);
        assert_eq!(infinite, Some(Said::AtMost(f64::INFINITY, 3.0)));
    }

    #[test]
    fn attributes_tell_whose_calls_and_whether_they_failed() {
        let to_cart = Whose::Made("cart".to_owned());
        assert_eq!(spoken("rpc.client.duration.p50", 3.0, "s", &[]), None, "to whom?");
        let client = spoken("rpc.client.duration.p50", 3.0, "s", &[("peer.service", "cart")]).expect("known");
        assert_eq!((client.whose, client.said), (to_cart.clone(), Said::Percentile(50.0, 3e6)));
        let mesh = [
            ("reporter", "source"),
            ("source_workload", "front"),
            ("destination_workload", "cart"),
            ("response_code", "503"),
        ];
        let mesh = spoken("istio_requests_total", 3.0, "", &mesh).expect("known");
        assert_eq!((mesh.service.as_deref(), mesh.whose, mesh.is_failed), (Some("front"), to_cart, true));
        let spans = [("service.name", "cart"), ("span.kind", "SPAN_KIND_SERVER"), ("status.code", "STATUS_CODE_UNSET")];
        let spans = spoken("traces.span.metrics.duration_count", 3.0, "ms", &spans).expect("known");
        assert_eq!((spans.service.as_deref(), spans.whose, spans.is_failed), (Some("cart"), Whose::Served, false));
        assert_eq!(spoken("traces.span.metrics.calls", 3.0, "", &[("span.kind", "SPAN_KIND_INTERNAL")]), None);
    }

    #[test]
    fn what_speaks_of_something_else_says_nothing() {
        for name in [
            "container.cpu.time",
            "jvm.gc.duration",
            "frontdoor.duration.p50",
            "rpc.server.request.size_sum",
            "",
            "p99",
        ] {
            assert_eq!(Row::of(name), None, "{name}");
        }
        assert_eq!(said("rpc.server.duration.p999", 3.0, "s"), None);
        assert_eq!(said("requests", f64::NAN, ""), None);
        assert_eq!(said("requests", -1.0, ""), None);
    }
}
