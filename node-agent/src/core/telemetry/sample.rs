//! The coherent sample: the traces with the smallest hashes, whole.
//!
//! Every node hashes trace ids the same way and keeps its `k` smallest, so nodes agree without talking. They need not
//! see the same number of traces: a node that sees few keeps all hashes up to a higher bound than a node that sees many,
//! so whatever the busiest node keeps, every other node that saw the trace keeps too. The bound, as a share of all
//! hashes, is `stub_share`; traces below the smallest share of all nodes are complete.
//!
//! Stubs carry the calls of a service only: spans inside a process are left out, and the parent of a call is the server
//! span it was made for. A call that outlived its server span was not waited for, and goes out as [`Side::Producer`].

use sage_common::{Micros, Side, Skeleton, SpanId, Stub, Timestamp, TraceHash};

use super::{
    pairing::{Child, Finished},
    registry::{Call, CallId, Registry},
    skeleton::Skeletons,
};

/// Stubs of one window: 512 traces of 16 spans. The bytes they take are bounded besides.
pub const STUBS_MAX: usize = 8_192;

/// Bytes of a stub on the wire without its names, at most: ids and times.
const STUB_BYTES: usize = 48;

/// Bytes of a skeleton, or of a call in it, without the names.
const SHAPE_BYTES: usize = 8;

/// Stubs and skeletons of one window, filled in the order of trace hashes.
#[derive(Debug)]
pub(super) struct Sample {
    window: Timestamp,
    traces_max: usize,
    traces: usize,
    last: Option<TraceHash>,
    /// The largest hash that is still whole here.
    limit: TraceHash,
    is_full: bool,
    bytes_left: usize,
    stubs: Vec<Stub>,
    skeletons: Skeletons,
}

impl Sample {
    /// An empty sample of the window that starts at `window`: at most `traces_max` traces, none above `limit`, of about
    /// `bytes_max` bytes on the wire.
    pub fn new(window: Timestamp, traces_max: usize, limit: TraceHash, bytes_max: usize) -> Self {
        Self {
            window,
            traces_max,
            traces: 0,
            last: None,
            limit,
            is_full: false,
            bytes_left: bytes_max,
            stubs: Vec::new(),
            skeletons: Skeletons::default(),
        }
    }

    /// Adds a finished span, unless enough traces with smaller hashes are here.
    pub fn add(&mut self, span: &Finished, registry: &Registry) {
        if !self.admits(span.trace) {
            return;
        }
        self.stubs.extend(stub(span, self.window, registry));
        self.stubs.extend(span.children.iter().filter_map(|child| child_stub(span, child, registry)));
        let calls = span.children.iter().map(|child| child.call);
        self.charge(std::iter::once(span.call).chain(calls), STUB_BYTES, registry);
        if span.side == Side::Server {
            let waited: Vec<(CallId, _)> =
                span.children.iter().filter(|child| child.is_sync).map(|child| (child.call, child.at)).collect();
            if self.skeletons.add(span.call, &waited) {
                let calls = waited.iter().map(|(call, _)| *call);
                self.charge(std::iter::once(span.call).chain(calls), SHAPE_BYTES, registry);
            }
        }
    }

    /// Stubs by trace, skeletons by name, and the share of all traces that they stand for.
    pub fn finish(self, registry: &Registry) -> (Vec<Stub>, Vec<Skeleton>, f32) {
        let share = (self.limit.0 as f64 / u64::MAX as f64) as f32;
        (self.stubs, self.skeletons.finish(registry), share)
    }

    fn charge(&mut self, calls: impl Iterator<Item = CallId>, each: usize, registry: &Registry) {
        for call in calls {
            let names = registry.get(call).map_or(0, Call::name_bytes);
            self.bytes_left = self.bytes_left.saturating_sub(each + names);
        }
    }

    fn admits(&mut self, trace: TraceHash) -> bool {
        if self.last != Some(trace) && !self.is_full && trace <= self.limit {
            if self.traces == self.traces_max || self.stubs.len() >= STUBS_MAX || self.bytes_left == 0 {
                self.is_full = true;
                self.limit = self.last.unwrap_or_default();
            } else {
                self.traces += 1;
                self.last = Some(trace);
            }
        }
        trace <= self.limit
    }
}

fn stub(span: &Finished, window: Timestamp, registry: &Registry) -> Option<Stub> {
    let call = registry.get(span.call)?;
    let parent = if span.side == Side::Server { span.parent } else { SpanId(0) };
    let into_window = span.start.since(window).unwrap_or_default();
    Some(Stub {
        trace: span.trace,
        id: span.id,
        parent,
        service: call.service.clone(),
        operation: call.name.operation.clone(),
        side: span.side,
        peer: call.name.peer.clone(),
        offset: if parent == SpanId(0) { into_window } else { Micros::ZERO },
        duration: span.duration,
        self_time: span.self_time,
        is_error: span.is_error,
    })
}

fn child_stub(parent: &Finished, child: &Child, registry: &Registry) -> Option<Stub> {
    let call = registry.get(child.call)?;
    let duration = child.at.length();
    Some(Stub {
        trace: parent.trace,
        id: child.id,
        parent: parent.id,
        service: call.service.clone(),
        operation: call.name.operation.clone(),
        side: if child.is_sync { child.side } else { Side::Producer },
        peer: call.name.peer.clone(),
        offset: child.offset,
        duration,
        self_time: duration,
        is_error: child.is_error,
    })
}
