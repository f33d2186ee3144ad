//! Pairing: finds the local children of every server span, whatever order exporters deliver them in.
//!
//! Spans wait, grouped by trace, until the window closes in which their server span ended. A client span belongs to the
//! nearest server span above it in the same service; spans inside the process are only links of that chain. A client
//! span below another client span is part of that call and not a call of its own.
//!
//! Memory is bounded by giving up whole traces, those with the largest hash first: what is left is complete, and it is
//! the same on every node. A window remembers the largest hash that it kept throughout ([`Pairing::limit`]).

use std::collections::BTreeMap;

use sage_common::{Micros, Side, Span, SpanId, Timestamp, TraceHash};

use super::{
    intervals::{Interval, self_time},
    registry::{CallId, ServiceIndex},
};

/// Spans waiting at once: 6 to 9 MiB, ten seconds of 6,500 spans a second. Beyond it traces are given up.
pub const PENDING_MAX: usize = 65_536;

/// Spans of one trace waiting at once. A trace that has more is not paired: it would crowd out all others.
pub const TRACE_SPANS_MAX: usize = 1024;

/// Spans between a client span and its server span. Real stacks have fewer than ten; it also ends parent cycles.
const DEPTH_MAX: usize = 64;

/// A child may seem to end this much after its parent although it did not: both ends are rounded to microseconds.
const ROUNDING: Micros = Micros::new(2);

/// Spans that wait for their relatives.
#[derive(Debug)]
pub(super) struct Pairing {
    traces: BTreeMap<TraceHash, Trace>,
    len: usize,
    limit: TraceHash,
    /// Windows that a span waits for a parent that has not come.
    patience: u64,
}

/// The spans of a trace, and the oldest window that one of them ended in.
#[derive(Debug)]
struct Trace {
    spans: Vec<Pending>,
    oldest: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    id: SpanId,
    parent: SpanId,
    service: ServiceIndex,
    call: CallId,
    side: Side,
    is_error: bool,
    weight: f32,
    at: Interval,
    /// The window it ended in.
    window: u64,
    /// The window that was newest when it came.
    entered: u64,
}

/// What became of a span.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Admission {
    /// It waits for its relatives.
    Kept,
    /// The very same span is here already: an exporter's retry.
    Duplicate,
    /// Its trace is not paired, for lack of room.
    Shed,
}

/// A span with everything that belongs to it.
#[derive(Clone, Debug)]
pub(super) struct Finished {
    pub trace: TraceHash,
    pub id: SpanId,
    pub parent: SpanId,
    pub call: CallId,
    pub side: Side,
    pub is_error: bool,
    pub weight: f32,
    pub start: Timestamp,
    pub duration: Micros,
    /// Duration minus the union of the synchronous children.
    pub self_time: Micros,
    /// For server spans: the calls made on its behalf, by start.
    pub children: Vec<Child>,
}

/// A call made on behalf of a server span.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub id: SpanId,
    pub call: CallId,
    pub side: Side,
    pub is_error: bool,
    /// Whether the server span waited for it.
    pub is_sync: bool,
    pub at: Interval,
    /// Start after the start of the server span.
    pub offset: Micros,
}

/// What closing a window left behind.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Unfinished {
    /// Client spans whose server span never came.
    pub orphans: u64,
    /// Spans of traces with too many spans to pair.
    pub oversized: u64,
}

/// Where a span's chain of parents leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Root {
    /// To this server span of the group.
    Server(usize),
    /// To a span without parent that is no server span.
    Top,
    /// Into another client span.
    Nested,
    /// Nowhere: a parent is missing, or the parents run in a circle.
    Broken,
}

impl Pairing {
    pub fn new(patience: u64) -> Self {
        Self { traces: BTreeMap::new(), len: 0, limit: TraceHash(u64::MAX), patience }
    }

    /// The largest trace hash that is paired now.
    pub fn limit(&self) -> TraceHash {
        self.limit
    }

    /// Takes a span that ended in `window`, while `newest` is the newest window.
    pub fn admit(&mut self, span: &Span, call: CallId, service: ServiceIndex, window: u64, newest: u64) -> Admission {
        if span.trace > self.limit {
            return Admission::Shed;
        }
        let at = Interval::new(span.start, span.duration);
        // Most traces have one span here, or a handful: the usual first capacity of four would triple the memory.
        let first = || Trace { spans: Vec::with_capacity(1), oldest: window };
        let Trace { spans: trace, oldest } = self.traces.entry(span.trace).or_insert_with(first);
        if trace.iter().any(|other| other.id == span.id && other.call == call && other.at == at) {
            return Admission::Duplicate;
        }
        if trace.len() >= TRACE_SPANS_MAX {
            return Admission::Shed;
        }
        *oldest = window.min(*oldest);
        let Span { id, parent, side, is_error, weight, .. } = *span;
        trace.push(Pending { id, parent, service, call, side, is_error, weight, at, window, entered: newest });
        self.len += 1;
        if self.len > PENDING_MAX {
            self.give_up_traces();
        }
        if span.trace > self.limit { Admission::Shed } else { Admission::Kept }
    }

    /// Finishes the spans of windows up to `window`, in the order of their trace hashes.
    pub fn close(&mut self, window: u64, mut finish: impl FnMut(Finished)) -> Unfinished {
        let mut unfinished = Unfinished::default();
        let Self { traces, len, patience, .. } = self;
        traces.retain(|hash, Trace { spans: trace, oldest }| {
            let before = trace.len();
            if before >= TRACE_SPANS_MAX {
                unfinished.oversized += before as u64;
                *len -= before;
                return false;
            }
            // Nothing of it is due: what waits for a parent came no earlier than its window, so it waits on as well.
            if *oldest > window {
                return true;
            }
            close_trace(*hash, trace, window, *patience, &mut finish, &mut unfinished);
            *len -= before - trace.len();
            *oldest = trace.iter().map(|span| span.window).min().unwrap_or(u64::MAX);
            !trace.is_empty()
        });
        // Half empty: the flood is over, or it will be shed again.
        if self.len < PENDING_MAX / 2 {
            self.limit = TraceHash(u64::MAX);
        }
        unfinished
    }

    /// Makes room: a quarter at a time, so that the cost is spread over many spans.
    fn give_up_traces(&mut self) {
        while self.len > PENDING_MAX / 4 * 3 {
            let Some((hash, trace)) = self.traces.pop_last() else { break };
            self.len -= trace.spans.len();
            self.limit = TraceHash(hash.0.saturating_sub(1));
        }
    }
}

fn close_trace(
    hash: TraceHash,
    trace: &mut Vec<Pending>,
    window: u64,
    patience: u64,
    finish: &mut impl FnMut(Finished),
    unfinished: &mut Unfinished,
) {
    trace.sort_unstable_by_key(|span| (span.id, span.service, span.at.start));
    let roots: Vec<Root> = (0..trace.len()).map(|index| root_of(trace, index)).collect();
    let is_due = |index: usize| trace[index].window <= window;
    for (index, span) in trace.iter().enumerate().filter(|(index, _)| is_due(*index)) {
        match (span.side, roots[index]) {
            (Side::Server, _) => finish(finish_server(hash, trace, index, &roots)),
            (Side::Client | Side::Producer, Root::Top) => finish(span.finished(hash, Vec::new())),
            _ => {}
        }
    }
    let mut keep = Vec::with_capacity(trace.len());
    for (index, span) in trace.iter().enumerate() {
        let kept = match (span.side, roots[index]) {
            (Side::Server, _) | (_, Root::Top | Root::Nested) => !is_due(index),
            (_, Root::Server(server)) => !is_due(server),
            (_, Root::Broken) => span.entered + patience > window,
        };
        let is_call = matches!(span.side, Side::Client | Side::Producer);
        unfinished.orphans += u64::from(!kept && is_call && roots[index] == Root::Broken);
        keep.push(kept);
    }
    let mut keep = keep.into_iter();
    trace.retain(|_| keep.next().unwrap_or(false));
}

/// Follows the parents of `trace[index]` within its service. `trace` is sorted by (id, service).
fn root_of(trace: &[Pending], index: usize) -> Root {
    let service = trace[index].service;
    let mut at = index;
    for _ in 0..DEPTH_MAX {
        let parent = trace[at].parent;
        if parent == SpanId(0) {
            return Root::Top;
        }
        let Ok(next) = trace.binary_search_by_key(&(parent, service), |span| (span.id, span.service)) else {
            return Root::Broken;
        };
        match trace[next].side {
            Side::Server if next != index => return Root::Server(next),
            Side::Internal if next != at => at = next,
            Side::Client | Side::Producer if next != index => return Root::Nested,
            _ => return Root::Broken,
        }
    }
    Root::Broken
}

fn finish_server(hash: TraceHash, trace: &[Pending], server: usize, roots: &[Root]) -> Finished {
    let whole = trace[server].at;
    let mut children: Vec<Child> = (0..trace.len())
        .filter(|index| roots[*index] == Root::Server(server))
        .filter_map(|index| Child::of(&trace[index], whole))
        .collect();
    children.sort_by_key(|child| (child.at.start, child.at.end, child.id));
    trace[server].finished(hash, children)
}

impl Child {
    fn of(span: &Pending, whole: Interval) -> Option<Self> {
        let Pending { id, call, side, is_error, at, .. } = *span;
        let is_sync = side == Side::Client && at.end <= whole.end + ROUNDING;
        let offset = at.start.since(whole.start).unwrap_or_default();
        matches!(side, Side::Client | Side::Producer).then_some(Self { id, call, side, is_error, is_sync, at, offset })
    }
}

impl Pending {
    fn finished(&self, trace: TraceHash, children: Vec<Child>) -> Finished {
        let Self { id, parent, call, side, is_error, weight, at, .. } = *self;
        let own = self_time(at, children.iter().filter(|child| child.is_sync).map(|child| child.at));
        let (start, duration) = (at.start, at.length());
        Finished { trace, id, parent, call, side, is_error, weight, start, duration, self_time: own, children }
    }
}
