//! Spans of this application and their OTLP form.
#![expect(
    clippy::disallowed_methods,
    reason = "spans are timed by the monotonic clock, anchored once to the wall clock"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode},
};

use crate::topology::mix64;

/// One finished side of one call.
#[derive(Clone, Debug)]
pub struct SpanRecord {
    /// 128-bit trace id.
    pub trace_id: u128,
    /// Its own id.
    pub span_id: u64,
    /// The span it happened in; 0: none.
    pub parent_id: u64,
    /// Whether this is the callee's side.
    pub is_server: bool,
    /// The callee's operation.
    pub method: Arc<str>,
    /// The callee, where callers tell it.
    pub peer: Option<Arc<str>>,
    /// When it began.
    pub start: Instant,
    /// When it ended.
    pub end: Instant,
    /// Whether it failed.
    pub is_error: bool,
}

/// Ids that no other process draws: a bijection of a counter that starts at a random place.
#[derive(Debug)]
pub struct SpanIds(AtomicU64);

impl SpanIds {
    /// Ids for one process.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(mix64(seed)))
    }

    /// The next one; never 0.
    pub fn next(&self) -> u64 {
        mix64(self.0.fetch_add(1, Ordering::Relaxed)).max(1)
    }
}

/// One instant on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Anchor {
    at: Instant,
    unix_ns: u64,
}

impl Anchor {
    /// Now.
    pub fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { at: Instant::now(), unix_ns: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// `instant` in nanoseconds since 1970, by the wall clock as it was at the anchor.
    pub fn unix_ns(&self, instant: Instant) -> u64 {
        let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        match instant.checked_duration_since(self.at) {
            Some(after) => self.unix_ns.saturating_add(nanos(after)),
            None => self.unix_ns.saturating_sub(nanos(self.at.saturating_duration_since(instant))),
        }
    }
}

/// The resource attributes of one tier's process.
pub fn resource(service: &str, pid: u32) -> Resource {
    let attributes = vec![
        text("service.name", service),
        text("service.instance.id", &format!("{service}-{pid}")),
        attribute("process.pid", Value::IntValue(i64::from(pid))),
    ];
    Resource { attributes, ..Resource::default() }
}

/// One export of `spans`, all from one process.
pub fn export_request(resource: &Resource, spans: &[SpanRecord], anchor: &Anchor) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope {
        name: "sage-bench".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let spans = spans.iter().map(|span| to_otlp(span, anchor)).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    let resource_spans = ResourceSpans { resource: Some(resource.clone()), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
}

fn to_otlp(span: &SpanRecord, anchor: &Anchor) -> Span {
    let mut attributes = vec![text("rpc.system.name", "sage-bench"), text("rpc.method", &span.method)];
    attributes.extend(span.peer.as_ref().map(|peer| text("service.peer.name", peer)));
    let start = anchor.unix_ns(span.start);
    let status = span.is_error.then(|| Status { message: String::new(), code: StatusCode::Error.into() });
    Span {
        trace_id: span.trace_id.to_be_bytes().to_vec(),
        span_id: span.span_id.to_be_bytes().to_vec(),
        parent_span_id: if span.parent_id == 0 { Vec::new() } else { span.parent_id.to_be_bytes().to_vec() },
        name: span.method.to_string(),
        kind: if span.is_server { SpanKind::Server } else { SpanKind::Client }.into(),
        start_time_unix_nano: start,
        end_time_unix_nano: anchor.unix_ns(span.end).max(start),
        attributes,
        status,
        // W3C trace flags: sampled.
        flags: 1,
        ..Span::default()
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;

    #[test]
    fn span_ids_are_distinct_and_never_zero() {
        let ids = SpanIds::new(3);
        let drawn: HashSet<u64> = (0..10_000).map(|_| ids.next()).collect();
        assert_eq!(drawn.len(), 10_000);
        assert!(!drawn.contains(&0));
    }

    #[test]
    fn wall_clock_times_keep_monotonic_durations() {
        let anchor = Anchor::now();
        let start = anchor.at + Duration::from_micros(5);
        assert_eq!(anchor.unix_ns(start + Duration::from_micros(7)) - anchor.unix_ns(start), 7_000);
        assert_eq!(anchor.unix_ns(anchor.at), anchor.unix_ns);
    }

    #[test]
    fn a_root_has_no_parent_and_a_failure_has_a_status() {
        let anchor = Anchor::now();
        let span = SpanRecord {
            trace_id: 1,
            span_id: 2,
            parent_id: 0,
            is_server: true,
            method: "browse".into(),
            peer: None,
            start: anchor.at,
            end: anchor.at + Duration::from_millis(1),
            is_error: true,
        };
        let span = to_otlp(&span, &anchor);
        assert!(span.parent_span_id.is_empty());
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        assert_eq!(span.status.expect("set").code, 2);
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 1_000_000);
    }
}
