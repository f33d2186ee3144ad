//! Hostile numbers never enter: every rule of [`check_window`] refuses a window that breaks it and nothing else.

mod support;

use proptest::prelude::*;
use sage_common::{CallShape, Micros, NodeWindow, Setting, Timestamp};
use sage_protocol::{EncodedWindow, InvalidWindow, UnusableWindow, check, check_window, codec};
use support::{full_window, name};

fn spoilt(spoil: impl Fn(&mut NodeWindow)) -> InvalidWindow {
    let mut window = full_window();
    check_window(&window).expect("in order before");
    spoil(&mut window);
    let problem = check_window(&window).expect_err("spoilt");
    assert_eq!(
        EncodedWindow::new(&window),
        Err(UnusableWindow::Invalid(problem.clone())),
        "it does not leave an agent"
    );
    problem
}

#[test]
fn numbers_that_are_not_finite_or_out_of_range_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 1e30] {
        assert!(matches!(spoilt(|w| w.latencies[0].calls = bad), InvalidWindow::Number { what: "calls", .. }));
        assert!(matches!(spoilt(|w| w.latencies[0].errors = bad), InvalidWindow::Number { what: "errors", .. }));
        assert!(matches!(spoilt(|w| w.entries[0].errors = bad), InvalidWindow::Number { .. }));
        assert!(matches!(spoilt(|w| w.stub_share = bad), InvalidWindow::Number { .. }));
    }
}

#[test]
fn percentiles_that_are_not_finite_or_not_sorted_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        assert!(matches!(spoilt(|w| w.latencies[0].quantiles.0[3] = bad), InvalidWindow::Quantiles { .. }));
        assert!(matches!(
            spoilt(|w| w.usage[0].metrics[1].quantiles.0[0] = bad.abs()),
            InvalidWindow::Quantiles { .. }
        ));
        assert!(matches!(spoilt(|w| w.node_usage[0].quantiles.0[5] = -bad), InvalidWindow::Quantiles { .. }));
    }
}

#[test]
fn a_metric_is_given_once() {
    let twice = spoilt(|w| w.usage[0].metrics[1] = w.usage[0].metrics[0]);
    assert!(matches!(twice, InvalidWindow::Repeated { metric: "cpu_throttled", .. }), "{twice}");
}

#[test]
fn an_interval_is_positive_bounded_and_aligned() {
    for (start, length) in [(1_000_000, 0), (0, 3_600_000_001), (1_000_001, 1_000_000)] {
        let problem = spoilt(|w| (w.start, w.length) = (Timestamp::from_micros(start), Micros::new(length)));
        assert!(matches!(problem, InvalidWindow::Interval { .. }), "{problem}");
    }
}

#[test]
fn settings_fit_their_knobs() {
    assert!(matches!(spoilt(|w| w.offers[0].current = Setting::Frozen(true)), InvalidWindow::Setting { .. }));
    assert!(matches!(spoilt(|w| w.offers[0].lowest = Some(Setting::Cores(Some(1)))), InvalidWindow::Setting { .. }));
    assert!(matches!(spoilt(|w| w.offers[1].highest = Some(Setting::Weight(0))), InvalidWindow::Setting { .. }));
}

#[test]
fn every_list_is_bounded() {
    fn flood<T: Clone>(list: &mut Vec<T>, max: usize) {
        let one = list[0].clone();
        *list = vec![one; max + 1];
    }
    let floods: [fn(&mut NodeWindow); 9] = [
        |w| flood(&mut w.latencies, check::LATENCIES_MAX),
        |w| flood(&mut w.usage, check::INSTANCES_MAX),
        |w| flood(&mut w.node_usage, sage_common::Metric::COUNT),
        |w| flood(&mut w.stubs, check::STUBS_MAX),
        |w| flood(&mut w.skeletons, check::SKELETONS_MAX),
        |w| flood(&mut w.skeletons[0].groups, check::SKELETON_PARTS_MAX),
        |w| flood(&mut w.entries, check::ENTRIES_MAX),
        |w| flood(&mut w.entries[0].v2, check::HISTOGRAM_BYTES_MAX),
        |w| flood(&mut w.offers, check::OFFERS_MAX),
    ];
    for flood in floods {
        assert!(matches!(spoilt(flood), InvalidWindow::TooMany { .. }));
    }
    let call = CallShape { operation: name("Rate"), peer: None };
    let wide = spoilt(|w| w.skeletons[0].groups = vec![vec![vec![call.clone(); check::SKELETON_PARTS_MAX]]]);
    assert!(matches!(wide, InvalidWindow::TooMany { .. }));
}

#[test]
fn a_window_over_the_message_limit_does_not_leave_an_agent() {
    let mut window = full_window();
    window.entries = vec![window.entries[0].clone(); 64];
    window.entries.iter_mut().for_each(|entry| entry.v2 = vec![0; check::HISTOGRAM_BYTES_MAX]);
    assert!(matches!(
        EncodedWindow::new(&window),
        Err(UnusableWindow::Codec(codec::CodecError::TooLong { max: codec::MESSAGE_BYTES_MAX, .. }))
    ));
}

proptest! {
    /// Flips bits of a real window: most change a number, some a length, few an enum.
    #[test]
    fn a_damaged_window_is_refused_or_still_in_order(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..6),
    ) {
        let mut bytes = codec::encode(&full_window()).expect("short");
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Ok(window) = EncodedWindow::from_bytes(bytes) {
            let window = EncodedWindow::decode(window.bytes()).expect("it was one");
            prop_assert!(window.latencies.iter().all(|series| series.quantiles.is_valid()));
            prop_assert!(window.stub_share.is_finite());
        }
    }
}
