//! What was read of a recording and what could not be used, for people and for programs.

use std::collections::BTreeMap;

use sage_common::Timestamp;
use serde::Serialize;

use super::words;
use crate::{
    pipeline::FleetCounters,
    replay::{
        merge::{ReadCounters, Recording},
        streams::Streams,
        time,
    },
};

/// Unknown names that are listed for people.
const UNKNOWN_MAX: usize = 40;

/// What was read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Told {
    files: usize,
    requests: u64,
    spans: u64,
    points: u64,
    from: Option<String>,
    to: Option<String>,
    services: usize,
    windows: Windows,
    /// What could not be used, and how often.
    not_used: BTreeMap<&'static str, u64>,
    /// Files that held nothing at all.
    useless: Vec<String>,
    /// The first damaged requests: file, line, fault.
    problems: Vec<String>,
    /// Metric names in no table, with their points.
    unknown_metrics: BTreeMap<String, u64>,
    #[serde(skip)]
    length_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Windows {
    of_spans: u64,
    of_spans_s: f64,
    of_metrics: u64,
    of_metrics_s: f64,
}

impl Told {
    pub(super) fn of(recording: &Recording, streams: &Streams) -> Self {
        let read = recording.counters();
        let (fast, slow) = (streams.spans.fleet().counters(), streams.metrics.fleet().counters());
        let at = |at: Timestamp| time::format(at);
        Self {
            files: recording.files(),
            requests: read.requests,
            spans: read.spans,
            points: read.points,
            from: read.times.map(|(first, _)| at(first)),
            to: read.times.map(|(_, last)| at(last)),
            services: streams.services().len(),
            windows: Windows {
                of_spans: fast.windows,
                of_spans_s: streams.spans.window().as_secs_f64(),
                of_metrics: slow.windows,
                of_metrics_s: streams.metrics.window().as_secs_f64(),
            },
            not_used: not_used(read, &fast, &slow),
            useless: read.useless.clone(),
            problems: read.problems.clone(),
            unknown_metrics: streams.spans.names().unknown().clone(),
            length_ms: read.times.and_then(|(first, last)| last.since(first)).unwrap_or_default().get() / 1_000,
        }
    }

    /// The same for people.
    pub(super) fn text(&self) -> String {
        let Self { files, spans, points, services, windows, .. } = self;
        let s = if *files == 1 { "" } else { "s" };
        let mut text = format!("Read {files} file{s}: {spans} spans and {points} data points of {services} services");
        if let (Some(from), Some(to)) = (&self.from, &self.to) {
            text += &format!("\n  {from} to {to} ({})", words::span(self.length_ms));
        }
        text.push('\n');
        for (count, length, what) in [
            (windows.of_spans, windows.of_spans_s, "spans"),
            (windows.of_metrics, windows.of_metrics_s, "recorded percentiles"),
        ] {
            if count > 0 {
                text += &format!("  {count} windows of {length} s with latencies from {what}\n");
            }
        }
        for (what, count) in &self.not_used {
            text += &format!("  {count} {what}\n");
        }
        for line in self.useless.iter().chain(&self.problems) {
            text += &format!("  {line}\n");
        }
        text + &self.unknown()
    }

    fn unknown(&self) -> String {
        let names = &self.unknown_metrics;
        if names.is_empty() {
            return String::new();
        }
        let listed: Vec<String> =
            names.iter().take(UNKNOWN_MAX).map(|(name, count)| format!("{name} ({count})")).collect();
        let more = names.len().saturating_sub(UNKNOWN_MAX);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        let are = if names.len() == 1 { "name is" } else { "names are" };
        format!("  {} metric {are} in no table (--map adds some): {}{rest}\n", names.len(), listed.join(", "))
    }
}

/// Everything that was not used as it stands, in words that follow their count.
fn not_used(read: &ReadCounters, fast: &FleetCounters, slow: &FleetCounters) -> BTreeMap<&'static str, u64> {
    let all = [
        (read.bad, "damaged requests or files"),
        (read.empty, "requests without anything usable in them"),
        (read.kindless, "spans without a kind; it was told by who called whom"),
        (read.invalid_ids, "spans without a usable id, left out"),
        (read.odd_durations, "spans that end before they start or last longer than an hour, changed"),
        (read.broken_clocks, "spans and data points far in time from everything around them, left out"),
        (read.unreadable_points, "data points that are no number or have no time, left out"),
        (fast.late_spans, "spans later than the allowed lateness, left out (--lateness allows more)"),
        (fast.early_spans, "spans ahead of time, left out"),
        (fast.duplicate_spans, "spans given twice"),
        (fast.unpaired_spans, "spans without room for their trace: counted in percentiles only"),
        (fast.orphan_spans, "client spans whose server span never came"),
        (fast.refused_windows + slow.refused_windows, "windows that broke a rule, left out"),
    ];
    all.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| (what, count)).collect()
}
