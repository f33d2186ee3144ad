//! The fleet as a whole: what the cores do themselves is tested with them.

use sage_causal::observation::EdgeObservation;
use sage_common::{OperationId, Side, SpanId, TraceHash};

use super::*;

const WINDOW: Micros = Micros::from_secs(5);
const T0: u64 = 1_700_000_000_000_000; // aligned to five seconds

fn at(millis: u64) -> Timestamp {
    Timestamp::from_micros(T0 + millis * 1_000)
}

fn slo() -> Slo {
    Slo {
        name: "shop".into(),
        service: "front".parse().expect("valid"),
        operation: None,
        percentile: 99.0,
        target: Micros::from_millis(50),
    }
}

fn fleet(lateness: Micros) -> Fleet {
    let nodes = ["a", "b"].map(|node| node.parse().expect("valid")).to_vec();
    let mut fleet = Fleet::new(FleetConfig { nodes, slos: vec![slo()], ..FleetConfig::new(WINDOW, lateness) });
    assert!(fleet.advance(at(0)).is_empty());
    fleet
}

fn span(trace: u64, id: u64, parent: u64, who: &str, side: Side, start_ms: u64, length_ms: u64) -> Span {
    Span {
        trace: TraceHash(trace),
        id: SpanId(id),
        parent: SpanId(parent),
        service: ServiceId::sanitized(who),
        instance: None,
        pid: None,
        operation: OperationId::sanitized("get"),
        side,
        peer: None,
        start: at(start_ms),
        duration: Micros::from_millis(length_ms),
        is_error: false,
        weight: 1.0,
    }
}

/// One request: `front` on node 0 takes 20 ms, of which a call takes 10 ms, of which `stock` on node 1 takes 6 ms.
fn request(number: u64, start_ms: u64) -> [(usize, Span); 3] {
    let id = 10 * (number + 1);
    [
        (0, span(number + 1, id, 0, "front", Side::Server, start_ms, 20)),
        (0, span(number + 1, id + 1, id, "front", Side::Client, start_ms + 5, 10)),
        (1, span(number + 1, id + 2, id + 1, "stock", Side::Server, start_ms + 6, 6)),
    ]
}

/// `seconds` of ten requests a second, each span handed over at its own end, moved by `disorder_ms`.
fn spans(seconds: u64, disorder_ms: impl Fn(u64) -> u64) -> Vec<(u64, usize, Span)> {
    let mut all: Vec<(u64, usize, Span)> = (0..seconds * 10)
        .flat_map(|number| request(number, number * 100).map(|(node, span)| (number, node, span)))
        .map(|(number, node, span)| (span.end().as_micros() + disorder_ms(number) * 1_000, node, span))
        .collect();
    all.sort_by_key(|(time, ..)| *time);
    all
}

fn run(fleet: &mut Fleet, spans: &[(u64, usize, Span)]) -> Vec<Observation> {
    let mut all = Vec::new();
    for (time, node, span) in spans {
        all.extend(fleet.advance(Timestamp::from_micros(*time)));
        fleet.span(*node, span);
    }
    all.extend(fleet.finish());
    all
}

fn edge<'a>(observation: &'a Observation, callee: &str) -> &'a EdgeObservation {
    observation.edges.iter().find(|edge| edge.key.callee.as_str() == callee).expect("seen")
}

#[test]
fn spans_of_two_nodes_become_edges_with_self_times_gaps_and_whole_traces() {
    let mut fleet = fleet(WINDOW);
    let seen = run(&mut fleet, &spans(20, |_| 0));
    assert_eq!(seen.len(), 4);
    let second = &seen[1];
    let stock = edge(second, "stock");
    assert_eq!(stock.key.caller.as_ref().map(ServiceId::as_str), Some("front"));
    assert_eq!(stock.calls, 50.0);
    let median = |quantiles: Option<sage_common::LatencyQuantiles>| quantiles.expect("measured").at(50.0) / 1e3;
    assert!((median(stock.gap) - 4.0).abs() < 0.1);
    assert!((median(edge(second, "front").self_time) - 10.0).abs() < 0.2);
    assert!((second.objectives[0].latency_us / 1e3 - 20.0).abs() < 0.3);
    assert_eq!((second.traces.len(), second.traces[0].calls.len()), (50, 2));
    assert_eq!(second.completeness, 1.0);
    assert_eq!(fleet.counters().spans, 600);
}

#[test]
fn spans_out_of_order_within_the_lateness_change_nothing() {
    let straight = run(&mut fleet(Micros::from_secs(10)), &spans(30, |_| 0));
    let shaken = run(&mut fleet(Micros::from_secs(10)), &spans(30, |number| number * 7_919 % 9_000));
    assert_eq!(straight, shaken);
}

#[test]
fn the_same_calls_give_the_same_observations() {
    let once = || run(&mut fleet(WINDOW), &spans(15, |number| number * 31 % 700));
    assert_eq!(once(), once());
}

#[test]
fn spans_that_are_too_late_or_too_early_are_counted_and_left_out() {
    let mut fleet = fleet(WINDOW);
    fleet.span(0, &span(1, 1, 0, "front", Side::Server, 60_000, 20));
    fleet.advance(at(30_000));
    fleet.span(0, &span(2, 2, 0, "front", Side::Server, 1_000, 20));
    fleet.span(0, &span(3, 3, 0, "front", Side::Server, 29_000, 20));
    let seen = fleet.finish();
    let counters = fleet.counters();
    assert_eq!((counters.early_spans, counters.late_spans, counters.spans), (1, 1, 1));
    assert_eq!(seen.len(), 1, "only the interval with a span in it");
    assert_eq!(seen[0].start, at(25_000));
}

#[test]
fn a_day_without_anything_recorded_makes_no_windows_and_forgets_nobody() {
    let mut fleet = fleet(WINDOW);
    let mut all = spans(10, |_| 0);
    let day = 86_400_000_000;
    let later: Vec<_> = all
        .iter()
        .map(|(time, node, span)| {
            let start = Timestamp::from_micros(span.start.as_micros() + day);
            (time + day, *node, Span { start, trace: TraceHash(span.trace.0 + 5_000), ..span.clone() })
        })
        .collect();
    all.extend(later);
    let seen = run(&mut fleet, &all);
    assert_eq!(seen.len(), 4);
    assert_eq!(edge(&seen[3], "stock").calls, 50.0);
    assert!(fleet.counters().silent < 2 * STEPS_MAX + 20);
}

#[test]
fn ready_made_samples_are_percentiles_of_their_window_beside_those_of_the_node() {
    let mut fleet = fleet(WINDOW);
    let place = Place::Instance("front".parse().expect("valid"), InstanceId::sanitized("front-1"));
    for (millis, value) in [(1_000, 0.2), (2_000, 0.4), (3_000, 0.6), (6_000, 0.9), (7_000, f64::NAN)] {
        fleet.metric(0, &place, Metric::CpuUsed, at(millis), value);
    }
    fleet.metric(0, &Place::Node, Metric::NodeCpuUtilisation, at(1_000), 0.5);
    fleet.metric(0, &Place::Node, Metric::NodeCpuUtilisation, at(86_400_000), 0.5);
    let seen = run(&mut fleet, &spans(10, |_| 0));
    let instance = &seen[0].services.iter().find(|of| of.service.as_str() == "front").expect("seen").instances[0];
    assert_eq!(instance.node.as_str(), "a");
    let medians: Vec<(Metric, f32)> = instance.metrics.iter().map(|(metric, q)| (*metric, q.median())).collect();
    assert_eq!(medians, [(Metric::CpuUsed, 0.4), (Metric::NodeCpuUtilisation, 0.5)]);
    let counters = fleet.counters();
    assert_eq!((counters.metrics, counters.dropped_metrics), (5, 2), "not a number, and a day ahead");
}
