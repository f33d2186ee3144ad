//! Memory under floods and bombs, in a process of its own and one test at a time: the peak is the process's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sage_common::{Micros, OperationId, ServiceId, Side, Span, SpanId, Timestamp, TraceHash};
use sage_node_agent::{
    core::telemetry::{Telemetry, TelemetryConfig},
    parse::{ATTRIBUTES_MAX, Tally, otlp, otlp_json},
};

const T0: u64 = 1_700_000_000_000_000; // aligned to ten seconds

fn at(millis: u64) -> Timestamp {
    Timestamp::from_micros(T0 + millis * 1_000)
}

/// The `n`-th span of the flood: 5,000 operations of 40 services, both sides, one to 400 ms long.
fn span(n: u64, millis: u64) -> Span {
    Span {
        trace: TraceHash((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        id: SpanId(n + 1),
        parent: SpanId(n % 3),
        service: ServiceId::sanitized(&format!("svc{}", n % 40)),
        instance: None,
        pid: None,
        operation: OperationId::sanitized(&format!("op {}", n % 5_000)),
        side: if n.is_multiple_of(2) { Side::Server } else { Side::Client },
        peer: None,
        start: at(millis),
        duration: Micros::from_millis(1 + n % 400),
        is_error: false,
        weight: 1.0,
    }
}

#[expect(clippy::disallowed_methods, reason = "the test measures its own process")]
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).expect("number").parse().expect("KiB")
}

/// Holds the other tests of this file back and starts the peak anew.
#[expect(clippy::disallowed_methods, reason = "the test measures its own process")]
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    std::fs::write("/proc/self/clear_refs", "5").expect("5 resets the peak, proc(5)");
    guard
}

#[test]
fn a_mebibyte_of_empty_json_objects_costs_no_memory() {
    let _alone = alone();
    let many = vec!["{}"; (4 << 20) / 12].join(","); // a MiB each: JSON is slow without optimisation
    let requests = [
        format!("{{\"resourceSpans\":[{many}]}}"),
        format!("{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{many}]}}]}}]}}"),
        format!("{{\"resourceSpans\":[{{\"resource\":{{\"attributes\":[{many}]}}}}]}}"),
    ];
    let before = peak_kib();
    for request in &requests {
        otlp_json::decode(request.as_bytes(), drop).expect("well-formed");
    }
    let grown = peak_kib() - before;
    assert!(grown < 2048, "{grown} KiB more for 3 MiB of requests");
}

/// `count` protobuf fields `tag` of length-delimited `inner`.
fn wrapped(tag: u8, count: usize, inner: &[u8]) -> Vec<u8> {
    let mut element = vec![tag << 3 | 2];
    prost::encoding::encode_varint(inner.len() as u64, &mut element);
    element.extend_from_slice(inner);
    element.repeat(count)
}

#[test]
fn four_mebibytes_of_empty_messages_cost_no_memory() {
    const BOMB: usize = 4 << 20;
    let _alone = alone();
    let empty_spans = wrapped(1, 1, &wrapped(2, 1, &wrapped(2, BOMB / 2, &[])));
    let empty_attributes = wrapped(1, 1, &wrapped(2, 1, &wrapped(2, 1, &wrapped(9, BOMB / 2, &[]))));
    let empty_resources = wrapped(1, BOMB / 2, &[]);
    let before = peak_kib();
    let decode = |bytes: &[u8]| otlp::decode(bytes, drop).expect("well-formed");
    assert_eq!(decode(&empty_spans).invalid_ids, BOMB as u64 / 2);
    assert_eq!(decode(&empty_attributes).attributes_skipped, (BOMB / 2 - ATTRIBUTES_MAX) as u64);
    assert_eq!(decode(&empty_resources), Tally::default());
    let grown = peak_kib() - before;
    assert!(grown < 4096, "{grown} KiB more for 12 MiB of requests");
}

#[test]
fn memory_is_flat_under_any_rate_and_any_cardinality() {
    let _alone = alone();
    let mut telemetry = Telemetry::new(TelemetryConfig::default(), at(0));
    let mut flood = |first: u64, millis: u64, window: u64| {
        for n in first..first + 300_000 {
            telemetry.handle_span(&span(n, millis), at(millis + 500));
        }
        drop(telemetry.handle_timeout(at(window)).expect("closed"));
    };
    let before = peak_kib();
    flood(0, 1_000, 11_000);
    let once = peak_kib() - before;
    flood(300_000, 11_100, 21_000);
    let twice = peak_kib() - before;
    assert!(once < 32 << 10 && twice < once + (4 << 10), "{once} KiB, then {twice} KiB");
}
