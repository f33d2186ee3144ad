//! The pipeline as a whole, with the time as an argument.

use proptest::prelude::*;
use sage_common::{OperationId, PeerHint, SeriesKind, ServiceId, Side, SpanId, TraceHash};

use super::{fixture::span, *};

const T0: u64 = 1_700_000_000_000_000; // aligned to ten seconds

fn at(millis: u64) -> Timestamp {
    Timestamp::from_micros(T0 + millis * 1_000)
}

fn telemetry() -> Telemetry {
    Telemetry::new(TelemetryConfig::default(), at(0))
}

/// A span from `start` to `end`, in milliseconds after T0.
fn from_to(side: Side, (trace, id, parent): (u64, u64, u64), (start, end): (u64, u64)) -> Span {
    let duration = Micros::from_millis(end - start);
    Span { side, start: at(start), duration, ..span(trace, id, parent) }
}

fn server(ids: (u64, u64, u64), times: (u64, u64)) -> Span {
    from_to(Side::Server, ids, times)
}

fn client(ids: (u64, u64, u64), times: (u64, u64), operation: &str) -> Span {
    let operation = OperationId::sanitized(operation);
    let peer = Some(PeerHint::Service(ServiceId::sanitized("callee")));
    Span { operation, peer, ..from_to(Side::Client, ids, times) }
}

/// Feeds `spans` as they end and closes the first window.
fn first_window(spans: &[Span]) -> WindowLatencies {
    let mut telemetry = telemetry();
    for span in spans {
        telemetry.handle_span(span, span.end().max(at(0)));
    }
    telemetry.handle_timeout(at(11_000)).expect("closed")
}

fn series(window: &WindowLatencies, kind: SeriesKind) -> Vec<&LatencySeries> {
    window.latencies.iter().filter(|series| series.kind == kind).collect()
}

/// The self time of the only server span, in whole milliseconds.
fn self_millis(spans: &[Span]) -> u64 {
    let window = first_window(spans);
    let servers: Vec<_> = window.stubs.iter().filter(|stub| stub.side == Side::Server).collect();
    assert_eq!(servers.len(), 1);
    servers[0].self_time.get() / 1000
}

#[test]
fn self_time_leaves_out_the_union_of_the_calls_waited_for() {
    let serial =
        [client((1, 2, 1), (110, 120), "a"), client((1, 3, 1), (130, 150), "b"), server((1, 1, 0), (100, 200))];
    assert_eq!(self_millis(&serial), 70);
    let parallel =
        [client((1, 2, 1), (110, 150), "a"), client((1, 3, 1), (120, 160), "b"), server((1, 1, 0), (100, 200))];
    assert_eq!(self_millis(&parallel), 50);
}

#[test]
fn calls_below_internal_spans_count_for_the_server_span_above() {
    let spans = [
        client((1, 4, 3), (120, 140), "a"),
        from_to(Side::Internal, (1, 3, 2), (115, 145)),
        from_to(Side::Internal, (1, 2, 1), (110, 150)),
        server((1, 1, 0), (100, 200)),
    ];
    assert_eq!(self_millis(&spans), 80);
}

#[test]
fn a_call_below_another_call_is_part_of_it() {
    let spans =
        [client((1, 3, 2), (115, 125), "inner"), client((1, 2, 1), (110, 130), "outer"), server((1, 1, 0), (100, 200))];
    assert_eq!(self_millis(&spans), 80);
    let window = first_window(&spans);
    assert_eq!(window.skeletons[0].groups.len(), 1, "one call, not two");
}

#[test]
fn what_outlives_its_server_span_or_is_produced_was_not_waited_for() {
    let outliving = [server((1, 1, 0), (100, 200)), client((1, 2, 1), (110, 300), "a")];
    assert_eq!(self_millis(&outliving), 100);
    let window = first_window(&outliving);
    assert_eq!(window.stubs.iter().map(|stub| stub.side).collect::<Vec<_>>(), [Side::Server, Side::Producer]);
    let produced = [from_to(Side::Producer, (1, 2, 1), (110, 150)), server((1, 1, 0), (100, 200))];
    assert_eq!(self_millis(&produced), 100);
}

#[test]
fn children_may_come_before_or_after_their_parents_and_from_an_earlier_window() {
    let parent = server((1, 1, 0), (9_000, 12_000));
    let child = client((1, 2, 1), (9_100, 9_600), "a");
    for order in [[&parent, &child], [&child, &parent]] {
        let mut telemetry = telemetry();
        // An exporter delivers both a moment after the parent's end; the child's window is still open.
        telemetry.config.lateness = Micros::from_secs(5);
        for span in order {
            telemetry.handle_span(span, at(12_100));
        }
        let first = telemetry.handle_timeout(at(15_000)).expect("first");
        assert!(first.stubs.is_empty(), "its server span belongs to the next window");
        assert_eq!(series(&first, SeriesKind::Client)[0].calls, 1.0, "but the call ended in this one");
        let second = telemetry.handle_timeout(at(25_000)).expect("second");
        let stub = second.stubs.iter().find(|stub| stub.side == Side::Server).expect("server");
        assert_eq!(stub.self_time, Micros::from_millis(2_500));
        assert_eq!(second.stubs.len(), 2);
    }
}

#[test]
fn the_stub_of_a_root_says_when_in_the_window_it_began() {
    let offset = |parent: u64, start: u64, end: u64| {
        let mut telemetry = telemetry();
        telemetry.handle_span(&server((1, 1, parent), (start, end)), at(end));
        let (first, second) = (telemetry.handle_timeout(at(11_000 + 8_000)), telemetry.handle_timeout(at(40_000)));
        let windows = [first, second];
        let stubs: Vec<&Stub> = windows.iter().flatten().flat_map(|window| &window.stubs).collect();
        stubs[0].offset
    };
    assert_eq!(offset(0, 7_000, 7_500), Micros::from_millis(7_000));
    assert_eq!(offset(0, 9_000, 12_000), Micros::ZERO, "it began before the window in which it ended");
    assert_eq!(offset(9, 7_000, 7_500), Micros::ZERO, "its parent is elsewhere");
}

#[test]
fn stubs_name_the_server_span_as_parent_and_start_relative_to_it() {
    let spans = [
        client((1, 3, 2), (120, 140), "a"),
        from_to(Side::Internal, (1, 2, 1), (110, 150)),
        server((1, 1, 77), (100, 200)),
    ];
    let window = first_window(&spans);
    let [own, call] = &window.stubs[..] else { panic!("two stubs, without the internal span") };
    assert_eq!((own.id, own.parent, own.offset), (SpanId(1), SpanId(77), Micros::ZERO));
    assert_eq!((call.id, call.parent, call.offset), (SpanId(3), SpanId(1), Micros::from_millis(20)));
    assert_eq!(call.self_time, call.duration);
}

#[test]
fn skeletons_show_serial_groups_of_parallel_branches() {
    let spans = [
        client((1, 2, 1), (110, 120), "first"),
        client((1, 3, 1), (130, 170), "left"),
        client((1, 4, 1), (135, 150), "right"),
        client((1, 5, 1), (155, 160), "right2"),
        server((1, 1, 0), (100, 200)),
    ];
    let window = first_window(&spans);
    let [skeleton] = &window.skeletons[..] else { panic!("one arrangement") };
    let mut names: Vec<Vec<Vec<&str>>> = skeleton
        .groups
        .iter()
        .map(|group| group.iter().map(|branch| branch.iter().map(|call| call.operation.as_str()).collect()).collect())
        .collect();
    names[1].sort();
    assert_eq!(names, vec![vec![vec!["first"]], vec![vec!["left"], vec!["right", "right2"]]]);
    assert_eq!(skeleton.count, 1);
}

#[test]
fn only_roots_make_entry_histograms() {
    let window = first_window(&[server((1, 1, 0), (100, 200)), server((2, 1, 9), (100, 200))]);
    let [entry] = &window.entries[..] else { panic!("one entry") };
    assert!(!entry.v2.is_empty());
    assert_eq!(series(&window, SeriesKind::Server)[0].calls, 2.0);
}

#[test]
fn two_nodes_keep_the_same_traces_without_talking() {
    let config = TelemetryConfig { sample_traces: 50, ..TelemetryConfig::default() };
    let hash = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    // The front sees 2,000 traces; the back is called in every fifth of them.
    let sample = |step: usize| {
        let mut telemetry = Telemetry::new(config, at(0));
        for n in (0..2000).step_by(step) {
            telemetry.handle_span(&server((hash(n), 1, 0), (100, 200)), at(200));
        }
        let window = telemetry.handle_timeout(at(11_000)).expect("closed");
        (window.stubs.iter().map(|stub| stub.trace).collect::<Vec<_>>(), window.stub_share)
    };
    let (front, front_share) = sample(1);
    let (back, back_share) = sample(5);
    assert_eq!((front.len(), back.len()), (50, 50));
    assert!(front.is_sorted() && back.is_sorted());
    let both = (0..2000).step_by(5).map(|n| TraceHash(hash(n)));
    for trace in both.filter(|trace| front.contains(trace)) {
        assert!(back.contains(&trace), "what the busy node keeps, the other keeps too");
    }
    assert!((front_share - 0.025).abs() < 0.01, "{front_share}");
    assert!((back_share - 0.125).abs() < 0.05, "{back_share}");
}

#[test]
fn nothing_sampled_away_is_a_share_of_one() {
    let window = first_window(&[server((u64::MAX, 1, 0), (100, 200))]);
    assert_eq!((window.stub_share, window.stubs.len()), (1.0, 1));
}

#[test]
fn operation_names_without_end_are_bounded_and_still_counted() {
    let config = TelemetryConfig { series_max: 100, ..TelemetryConfig::default() };
    let mut telemetry = Telemetry::new(config, at(0));
    for n in 0..20_000 {
        let operation = OperationId::sanitized(&format!("GET /user/{n}"));
        telemetry.handle_span(&Span { operation, ..server((n, 1, 0), (100, 200)) }, at(200));
    }
    let window = telemetry.handle_timeout(at(11_000)).expect("closed");
    assert!(window.latencies.len() <= 102, "{}", window.latencies.len());
    let calls: f32 = series(&window, SeriesKind::Server).iter().map(|series| series.calls).sum();
    assert_eq!(calls, 20_000.0);
    assert!(window.latencies.iter().any(|series| series.operation == OperationId::other()));
    assert_eq!(telemetry.counters().other_operations, 20_000 - 12);
}

#[test]
fn a_clock_that_jumps_an_hour_opens_one_window_and_loses_none() {
    for hour in [at(3_600_000), Timestamp::from_micros(T0 - 3_600_000_000)] {
        let mut telemetry = telemetry();
        telemetry.handle_span(&server((1, 1, 0), (100, 200)), at(200));
        let after = Span { start: hour, ..server((2, 2, 0), (0, 100)) };
        telemetry.handle_span(&after, after.end());
        assert_eq!(telemetry.counters().clock_jumps, 1);
        assert!(telemetry.poll_timeout() <= hour);
        let before = telemetry.handle_timeout(hour).expect("what was open");
        assert_eq!((before.start, before.intake.spans, before.is_partial), (at(0), 1, true));
        assert_eq!(telemetry.handle_timeout(hour), None, "not thousands of them");
        let next = telemetry.handle_timeout(hour + Micros::from_secs(21)).expect("the new one");
        assert_eq!((next.start, next.intake.spans), (hour.aligned(Micros::from_secs(10)), 1));
    }
}

#[test]
fn a_clock_that_jumps_to_and_fro_keeps_bounded_windows() {
    let mut telemetry = telemetry();
    for n in 0..1000 {
        let now = if n % 2 == 0 { at(3_600_000) } else { at(0) };
        telemetry.handle_span(&Span { start: now, ..server((n, 1, 0), (0, 0)) }, now);
    }
    let closed = std::iter::from_fn(|| telemetry.handle_timeout(at(0))).count();
    assert!(closed < WINDOWS_OPEN_MAX);
    assert!(telemetry.counters().windows_discarded > 900);
}

#[test]
fn spans_far_from_the_agents_clock_count_in_the_newest_window() {
    let mut telemetry = telemetry();
    for start in [0, T0 / 2, T0 + 3_600_000_000, u64::MAX] {
        let foreign = Span { start: Timestamp::from_micros(start), ..server((start, 1, 0), (0, 10)) };
        telemetry.handle_span(&foreign, at(5_000));
    }
    assert_eq!(telemetry.counters().clock_skewed, 4);
    assert_eq!(telemetry.handle_timeout(at(11_000)).expect("closed").intake.spans, 4);
}

#[test]
fn late_spans_are_merged_while_their_window_is_open_and_dropped_after() {
    let mut telemetry = telemetry();
    telemetry.handle_span(&server((1, 1, 0), (9_000, 9_900)), at(10_500));
    assert_eq!(telemetry.handle_timeout(at(10_999)), None);
    let first = telemetry.handle_timeout(at(11_000)).expect("closed");
    assert_eq!(first.intake.spans, 1);
    telemetry.handle_span(&server((2, 1, 0), (9_000, 9_900)), at(11_500));
    assert_eq!(telemetry.counters().late, 1);
    let second = telemetry.handle_timeout(at(21_000)).expect("closed");
    assert_eq!((second.intake.spans, second.intake.dropped_spans), (0, 1));
    assert!(second.latencies.is_empty());
}

#[test]
fn windows_come_one_after_the_other_when_nothing_happens() {
    let mut telemetry = Telemetry::new(TelemetryConfig::default(), at(3_000));
    let mut starts = Vec::new();
    let mut now = at(3_000);
    for _ in 0..8 {
        now = now.max(telemetry.poll_timeout());
        starts.extend(telemetry.handle_timeout(now).map(|window| (window.start, window.is_partial)));
    }
    assert_eq!(starts, [(at(0), true), (at(10_000), false), (at(20_000), false), (at(30_000), false)]);
}

#[test]
fn a_span_delivered_twice_counts_once() {
    let span = server((1, 1, 0), (100, 200));
    let window = first_window(&[span.clone(), span]);
    assert_eq!(window.intake.spans, 1);
}

#[test]
fn orphans_are_counted_once_their_parent_has_had_its_time() {
    let mut telemetry = telemetry();
    telemetry.handle_span(&client((1, 2, 99), (100, 200), "a"), at(200));
    let unpaired: Vec<u64> = (1..8)
        .filter_map(|n| telemetry.handle_timeout(at(n * 10_000 + 1_000)))
        .map(|w| w.intake.unpaired_spans)
        .collect();
    assert_eq!(unpaired, [0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(telemetry.counters().orphans, 1);
}

#[test]
fn a_flood_sheds_whole_traces_and_keeps_the_counts() {
    let mut telemetry = telemetry();
    let spans = PENDING_MAX as u64 * 2;
    for n in 0..spans / 2 {
        let trace = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        telemetry.handle_span(&client((trace, 2, 1), (110, 150), "a"), at(200));
        telemetry.handle_span(&server((trace, 1, 0), (100, 200)), at(200));
    }
    assert!(telemetry.pairing.limit() < TraceHash(u64::MAX));
    let window = telemetry.handle_timeout(at(11_000)).expect("closed");
    let own = series(&window, SeriesKind::SelfTime)[0];
    assert_eq!(series(&window, SeriesKind::Server)[0].calls, (spans / 2) as f32);
    assert!((own.calls / (spans / 2) as f32 - 1.0).abs() < 0.05, "scaled to all: {}", own.calls);
    assert_eq!(own.quantiles.at(50.0).round() as u64 / 1000, 60, "whole traces only");
    assert_eq!(window.intake.unpaired_spans, 0);
    assert!(window.stub_share < 0.02);
    assert_eq!(telemetry.pairing.limit(), TraceHash(u64::MAX), "open again");
}

#[test]
fn windows_stay_small_under_any_rate_and_any_cardinality() {
    let mut telemetry = telemetry();
    let mut flood = |first: u64, millis: u64, window: u64| {
        for n in first..first + 300_000 {
            let trace = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let operation = OperationId::sanitized(&format!("op {}", n % 5_000));
            let service = ServiceId::sanitized(&format!("svc{}", n % 40));
            let side = if n % 2 == 0 { Side::Server } else { Side::Client };
            let times = (millis, millis + 1 + n % 400);
            let span = Span { operation, service, ..from_to(side, (trace, n + 1, n % 3), times) };
            telemetry.handle_span(&span, at(millis + 500));
        }
        telemetry.handle_timeout(at(window)).expect("closed")
    };
    let first = flood(0, 1_000, 11_000);
    let second = flood(300_000, 11_100, 21_000);
    assert!(first.latencies.len() <= 2000 + 3 * 40 && second.stubs.len() <= STUBS_MAX + TRACE_SPANS_MAX);
}

#[test]
fn the_longest_names_and_most_calls_fit_into_one_message() {
    let config = TelemetryConfig { series_max: 100_000, sample_traces: 100_000, ..TelemetryConfig::default() };
    let mut telemetry = Telemetry::new(config, at(0));
    for n in 0..60_000_u64 {
        let trace = (n / 6 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let service = ServiceId::sanitized(&format!("{:060}", n % 60 / 6));
        let operation = OperationId::sanitized(&format!("{:0120}", n % 6_000));
        let spans = match n % 6 {
            0 => server((trace, 1, 0), (100, 100 + n % 3_000)),
            _ => client((trace, n + 2, 1), (101, 110 + n % 50), "x"),
        };
        let peer = spans.peer.is_some().then(|| PeerHint::Service(ServiceId::sanitized(&format!("{:063}", n % 9))));
        telemetry.handle_span(&Span { service, operation, peer, ..spans }, at(5_000));
    }
    let window = telemetry.handle_timeout(at(11_000)).expect("closed");
    let WindowLatencies { start, length, is_partial: _, latencies, stubs, skeletons, entries, intake, stub_share } =
        window;
    assert!(latencies.len() > 1_000 && stubs.len() > 300, "{} series, {} stubs", latencies.len(), stubs.len());
    let window = sage_common::NodeWindow {
        key: sage_common::WindowKey { node: "a".parse().expect("a name"), boot: sage_common::BootId(1), seq: 0 },
        start,
        length,
        latencies,
        usage: Vec::new(),
        node_usage: Vec::new(),
        stubs,
        skeletons,
        entries,
        offers: Vec::new(),
        intake,
        stub_share,
    };
    sage_protocol::check::check_window(&window).expect("valid");
    let bytes = sage_protocol::codec::encode(&window).expect("short enough").len();
    assert!(bytes < WINDOW_BYTES_MAX + WINDOW_BYTES_MAX / 10, "{bytes}");
}

#[test]
fn a_trace_without_end_does_not_crowd_out_the_others() {
    let mut telemetry = telemetry();
    for n in 0..10_000 {
        telemetry.handle_span(&client((1, n + 10, 1), (110, 150), "a"), at(200));
    }
    telemetry.handle_span(&server((2, 1, 0), (100, 200)), at(200));
    let window = telemetry.handle_timeout(at(11_000)).expect("closed");
    assert_eq!(series(&window, SeriesKind::Client)[0].calls, 10_000.0);
    assert_eq!(window.stubs.len(), 1);
    assert_eq!(telemetry.counters().unpaired_for_room, 10_000);
}

#[test]
fn what_the_drivers_drop_is_counted_in_the_window_it_happened() {
    let mut telemetry = telemetry();
    telemetry.handle_intake(IntakeCounters { rejected_requests: 2, dropped_spans: 5, ..IntakeCounters::default() });
    let first = telemetry.handle_timeout(at(11_000)).expect("closed");
    assert_eq!((first.intake.rejected_requests, first.intake.dropped_spans), (2, 5));
    telemetry.handle_intake(IntakeCounters { rejected_requests: 2, dropped_spans: 9, ..IntakeCounters::default() });
    let second = telemetry.handle_timeout(at(21_000)).expect("closed");
    assert_eq!((second.intake.rejected_requests, second.intake.dropped_spans), (0, 4));
}

#[test]
fn observed_services_show_who_reports_and_are_forgotten_in_time() {
    let mut telemetry = telemetry();
    for n in 0..100 {
        telemetry.handle_span(&Span { pid: Some(4711), ..server((n, 1, 0), (100, 120)) }, at(200));
    }
    telemetry.handle_timeout(at(11_000));
    let [service] = &telemetry.observed()[..] else { panic!("one service") };
    assert_eq!((service.pids.as_slice(), service.calls_per_s), ([4711].as_slice(), 10.0));
    assert_eq!(service.p99.expect("calls").get() / 1000, 20);
    for n in 2..60 {
        telemetry.handle_timeout(at(n * 10_000 + 1_000));
    }
    assert_eq!(telemetry.observed(), []);
}

/// Any graph of spans: cycles, self-parents, collisions, zero ids, every side.
fn any_span() -> impl Strategy<Value = Span> {
    let side = prop::sample::select(vec![Side::Server, Side::Client, Side::Producer, Side::Internal]);
    let weight = prop::sample::select(vec![1.0_f32, 2.5, 1e6]);
    (side, weight, 0..4_u64, 0..12_u64, 0..12_u64, 0..30_000_u64, 0..5_000_u64, 0..3_u8).prop_map(
        |(side, weight, trace, id, parent, start, length, service)| {
            let service = ServiceId::sanitized(&format!("s{service}"));
            Span { service, weight, ..from_to(side, (trace, id, parent), (start, start + length)) }
        },
    )
}

proptest! {
    #[test]
    fn any_graph_of_spans_gives_valid_windows_and_the_same_ones_again(
        spans in prop::collection::vec((any_span(), 0..40_000_u64), 0..200),
    ) {
        let run = || {
            let mut telemetry = telemetry();
            let mut windows = Vec::new();
            for (span, now) in &spans {
                telemetry.handle_span(span, at(*now));
                windows.extend(std::iter::from_fn(|| telemetry.handle_timeout(at(*now))));
            }
            windows.extend(std::iter::from_fn(|| telemetry.handle_timeout(at(200_000))));
            (windows, telemetry.counters())
        };
        let (windows, counters) = run();
        for window in &windows {
            prop_assert!(window.latencies.iter().all(|series| series.quantiles.is_valid()));
            prop_assert!(window.stubs.iter().all(|stub| stub.self_time <= stub.duration));
            prop_assert!((0.0..=1.0).contains(&window.stub_share));
        }
        let counted: u64 = windows.iter().map(|window| window.intake.spans).sum();
        prop_assert_eq!(counted, counters.spans);
        prop_assert_eq!(counters.spans + counters.late + counters.duplicates, spans.len() as u64);
        prop_assert_eq!(run().0, windows);
    }
}
