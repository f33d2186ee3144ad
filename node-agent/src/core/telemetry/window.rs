//! One open window: the durations that ended in it.

use std::collections::BTreeMap;

use sage_common::{EntryHistogram, LatencySeries, SeriesKind, Side, Span, SpanId, Timestamp, TraceHash};

use super::{
    pairing::Finished,
    registry::{Call, CallId, Registry},
    series::Series,
};

/// Entry operations with a histogram of their own, 1 KB each on the wire: more than an application has objectives.
pub const ENTRIES_MAX: usize = 32;

/// Bytes of a series on the wire without its names: percentiles, counts, kind.
const SERIES_BYTES: usize = 64;

/// A window that spans may still fall into.
#[derive(Debug)]
pub(super) struct OpenWindow {
    pub seq: u64,
    pub start: Timestamp,
    /// Whether the agent missed its beginning or its end.
    pub is_partial: bool,
    /// Whether a jump of the clock ended it: nothing may be added.
    pub is_closed: bool,
    /// The largest trace hash whose spans were all kept for pairing.
    pub limit: TraceHash,
    pub spans: u64,
    pub dropped: u64,
    pub rejected: u64,
    series: BTreeMap<(CallId, SeriesKind), Series>,
    entries: BTreeMap<CallId, Series>,
}

impl OpenWindow {
    pub fn new(seq: u64, start: Timestamp, is_partial: bool, limit: TraceHash) -> Self {
        Self {
            seq,
            start,
            is_partial,
            is_closed: false,
            limit,
            spans: 0,
            dropped: 0,
            rejected: 0,
            series: BTreeMap::new(),
            entries: BTreeMap::new(),
        }
    }

    /// Counts `span` under `call`.
    pub fn record(&mut self, span: &Span, call: CallId) {
        self.spans += 1;
        let kind = match span.side {
            Side::Server => SeriesKind::Server,
            Side::Client => SeriesKind::Client,
            Side::Producer | Side::Internal => return,
        };
        self.series.entry((call, kind)).or_default().record(span.duration, span.weight, span.is_error);
        let is_entry = span.side == Side::Server && span.parent == SpanId(0);
        if is_entry && (self.entries.len() < ENTRIES_MAX || self.entries.contains_key(&call)) {
            self.entries.entry(call).or_default().record(span.duration, span.weight, span.is_error);
        }
    }

    /// Counts the self time of a server span. Only part of the traces may be paired, so `scale` (1 over that part)
    /// makes the number of calls comparable.
    pub fn record_self(&mut self, span: &Finished, scale: f64) {
        let series = self.series.entry((span.call, SeriesKind::SelfTime)).or_default();
        series.record(span.self_time, span.weight, span.is_error);
        let missing = f64::from(span.weight) * (scale - 1.0);
        series.calls += missing;
        series.errors += if span.is_error { missing } else { 0.0 };
    }

    /// The durations of server spans.
    pub fn servers(&self) -> impl Iterator<Item = (CallId, &Series)> {
        self.series
            .iter()
            .filter(|((_, kind), _)| *kind == SeriesKind::Server)
            .map(|((call, _), series)| (*call, series))
    }

    /// About how many bytes its series take on the wire, self times included.
    pub fn series_bytes(&self, registry: &Registry) -> usize {
        let bytes = |(call, kind): &(CallId, SeriesKind)| {
            let names = registry.get(*call).map_or(0, Call::name_bytes);
            match kind {
                SeriesKind::Server => 2 * (SERIES_BYTES + names),
                SeriesKind::SelfTime => 0,
                SeriesKind::Client => SERIES_BYTES + names,
            }
        };
        self.series.keys().map(bytes).sum()
    }

    /// The series with the most calls that fit into `bytes_max` bytes, ordered by name.
    pub fn latencies(&self, registry: &Registry, bytes_max: usize) -> Vec<LatencySeries> {
        let mut ranked: Vec<(&(CallId, SeriesKind), &Series)> = self.series.iter().collect();
        ranked.sort_by(|(_, a), (_, b)| b.calls.total_cmp(&a.calls)); // stable: ties keep the order of the map
        let mut left = bytes_max;
        let fits = |((call, _), _): &(&(CallId, SeriesKind), &Series)| {
            let bytes = SERIES_BYTES + registry.get(*call).map_or(0, Call::name_bytes);
            left.checked_sub(bytes).inspect(|rest| left = *rest).is_some()
        };
        let kept: Vec<_> = ranked.into_iter().take_while(fits).collect();
        let mut all: Vec<LatencySeries> =
            kept.into_iter().filter_map(|((call, kind), series)| latency(*call, *kind, series, registry)).collect();
        all.sort_by(|a, b| {
            (&a.service, &a.operation, a.kind, &a.peer).cmp(&(&b.service, &b.operation, b.kind, &b.peer))
        });
        all
    }

    /// The mergeable histograms of entry operations, ordered by name.
    pub fn entries(&self, registry: &Registry) -> Vec<EntryHistogram> {
        let entry = |(id, series): (&CallId, &Series)| {
            let call = registry.get(*id)?;
            Some(EntryHistogram {
                service: call.service.clone(),
                operation: call.name.operation.clone(),
                v2: series.to_v2(),
                errors: series.errors as f32,
            })
        };
        let mut all: Vec<EntryHistogram> = self.entries.iter().filter_map(entry).collect();
        all.sort_by(|a, b| (&a.service, &a.operation).cmp(&(&b.service, &b.operation)));
        all
    }
}

fn latency(call: CallId, kind: SeriesKind, series: &Series, registry: &Registry) -> Option<LatencySeries> {
    let call = registry.get(call)?;
    Some(LatencySeries {
        service: call.service.clone(),
        operation: call.name.operation.clone(),
        kind,
        peer: call.name.peer.clone(),
        calls: series.calls as f32,
        errors: series.errors as f32,
        quantiles: series.quantiles()?,
    })
}
