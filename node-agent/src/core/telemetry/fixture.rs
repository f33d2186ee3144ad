//! Spans for tests.

use sage_common::{Micros, OperationId, ServiceId, Side, Span, SpanId, Timestamp, TraceHash};

/// A server span of service `svc`, operation `op`: 1 ms long, starting at 1 s.
pub fn span(trace: u64, id: u64, parent: u64) -> Span {
    Span {
        trace: TraceHash(trace),
        id: SpanId(id),
        parent: SpanId(parent),
        service: ServiceId::sanitized("svc"),
        instance: None,
        pid: None,
        operation: OperationId::sanitized("op"),
        side: Side::Server,
        peer: None,
        start: Timestamp::from_micros(1_000_000),
        duration: Micros::from_millis(1),
        is_error: false,
        weight: 1.0,
    }
}
