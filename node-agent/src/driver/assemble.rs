//! One node window from its parts. Pure.

use sage_common::{KnobOffer, NodeWindow, Stub, TraceHash, WindowKey};
use sage_protocol::{CodecError, EncodedWindow, UnusableWindow};

use crate::core::{telemetry::WindowLatencies, usage::WindowUsage};

/// Times the stubs are halved before a window that is too long is sent without any: 16,384 become fewer than one.
const HALVINGS_MAX: usize = 14;

/// Puts the parts together.
pub fn assemble(key: WindowKey, spans: WindowLatencies, usage: WindowUsage, offers: Vec<KnobOffer>) -> NodeWindow {
    let WindowLatencies { start, length, latencies, stubs, skeletons, entries, intake, stub_share, .. } = spans;
    let WindowUsage { instances: usage, node: node_usage, .. } = usage;
    NodeWindow {
        key,
        start,
        length,
        latencies,
        usage,
        node_usage,
        stubs,
        skeletons,
        entries,
        offers,
        intake,
        stub_share,
    }
}

/// Encodes a window; where it is longer than a message may be, halves its sample of traces until it fits.
///
/// # Errors
///
/// [`UnusableWindow`] when it does not fit without stubs either, or breaks a rule.
pub fn encode(mut window: NodeWindow) -> Result<EncodedWindow, UnusableWindow> {
    for _ in 0..HALVINGS_MAX {
        match EncodedWindow::new(&window) {
            Err(UnusableWindow::Codec(CodecError::TooLong { .. })) if !window.stubs.is_empty() => halve(&mut window),
            result => return result,
        }
    }
    window.stubs.clear();
    window.stub_share = 0.0;
    EncodedWindow::new(&window)
}

/// Keeps the lower half of the traces by hash, as every node would: the sample stays coherent.
fn halve(window: &mut NodeWindow) {
    let mut traces: Vec<TraceHash> = window.stubs.iter().map(|stub: &Stub| stub.trace).collect();
    traces.sort_unstable();
    traces.dedup();
    let keep = traces.len() / 2;
    window.stub_share *= keep as f32 / traces.len().max(1) as f32;
    match traces.get(keep) {
        Some(first_out) if keep > 0 => window.stubs.retain(|stub| stub.trace < *first_out),
        _ => window.stubs.clear(),
    }
}

#[cfg(test)]
mod tests {
    use sage_common::{BootId, IntakeCounters, Micros, Side, SpanId, Timestamp};

    use super::*;

    fn spans(traces: u64, per_trace: u64) -> WindowLatencies {
        let stub = |trace, id| Stub {
            trace: TraceHash(trace),
            id: SpanId(trace * 100 + id + 1),
            parent: SpanId(0),
            service: "service-with-a-name".parse().expect("valid"),
            operation: "operation-with-a-rather-long-name-that-takes-room-in-the-message".parse().expect("valid"),
            side: Side::Server,
            peer: None,
            offset: Micros::ZERO,
            duration: Micros::new(1_000),
            self_time: Micros::new(1_000),
            is_error: false,
        };
        WindowLatencies {
            start: Timestamp::from_micros(10_000_000),
            length: Micros::from_secs(10),
            is_partial: false,
            latencies: vec![],
            stubs: (0..traces).flat_map(|trace| (0..per_trace).map(move |id| stub(trace, id))).collect(),
            skeletons: vec![],
            entries: vec![],
            intake: IntakeCounters::default(),
            stub_share: 1.0,
        }
    }

    fn window(traces: u64, per_trace: u64) -> NodeWindow {
        let key = WindowKey { node: "n".parse().expect("valid"), boot: BootId(1), seq: 0 };
        assemble(key, spans(traces, per_trace), WindowUsage::default(), vec![])
    }

    #[test]
    fn a_window_that_fits_keeps_its_stubs() {
        let encoded = encode(window(10, 3)).expect("valid");
        assert_eq!(EncodedWindow::decode(encoded.bytes()).expect("its own bytes").stubs.len(), 30);
    }

    #[test]
    fn a_window_too_long_for_a_message_keeps_whole_traces_of_the_lowest_hashes() {
        let encoded = encode(window(4_000, 4)).expect("fits after halving");
        let kept = EncodedWindow::decode(encoded.bytes()).expect("its own bytes");
        let traces = kept.stubs.len() as u64 / 4;
        assert!(traces > 0 && kept.stubs.len() < 16_000);
        assert!(kept.stubs.iter().all(|stub| stub.trace.0 < traces));
        assert!((f64::from(kept.stub_share) - traces as f64 / 4_000.0).abs() < 1e-6);
    }
}
