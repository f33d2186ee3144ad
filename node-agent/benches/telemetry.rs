//! How long the latency part of a window takes: counting a span, and turning the histograms of a busy node into percentiles
//! when the window closes. `cargo bench -p sage-node-agent --bench telemetry`.

#![expect(missing_docs, reason = "the harness's macro makes a public function without one")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sage_common::{Micros, OperationId, ServiceId, Side, Span, SpanId, Timestamp, TraceHash};
use sage_node_agent::core::telemetry::{Telemetry, TelemetryConfig};

/// Latency series of a node: services by operations.
const SERVICES: u64 = 20;
const OPERATIONS: u64 = 5;

/// Spans of one window: a node that serves two thousand calls a second.
const SPANS: u64 = 20_000;

const START: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

/// Span number `number` of the window, a root of its own.
fn span(number: u64) -> Span {
    let series = number % (SERVICES * OPERATIONS);
    Span {
        trace: TraceHash(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        id: SpanId(number + 1),
        parent: SpanId(0),
        service: ServiceId::sanitized(&format!("service-{}", series / OPERATIONS)),
        instance: None,
        pid: None,
        operation: OperationId::sanitized(&format!("operation-{}", series % OPERATIONS)),
        side: Side::Server,
        peer: None,
        start: START + Micros::new(number * 400),
        duration: Micros::new(300 + number.wrapping_mul(7_919) % 5_000),
        is_error: false,
        weight: 1.0,
    }
}

fn counted(spans: &[Span]) -> Telemetry {
    let mut telemetry = Telemetry::new(TelemetryConfig::default(), START);
    for span in spans {
        telemetry.handle_span(span, span.end());
    }
    telemetry
}

fn window(criterion: &mut Criterion) {
    let spans: Vec<Span> = (0..SPANS).map(span).collect();
    let mut group = criterion.benchmark_group(format!("window of {} series, {SPANS} spans", SERVICES * OPERATIONS));
    group.bench_function("counting its spans", |bencher| bencher.iter(|| counted(black_box(&spans))));
    let end = START + Micros::from_secs(30);
    group.bench_function("histogram close", |bencher| {
        let close = |mut telemetry: Telemetry| telemetry.handle_timeout(end).expect("a window is due");
        bencher.iter_batched(|| counted(&spans), close, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(2));
    targets = window
}
criterion_main!(benches);
