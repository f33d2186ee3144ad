#![expect(clippy::disallowed_methods, reason = "a driver: a user's table of names is a file")]
//! What every command on recordings takes, and what it tells of what it read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use sage_common::{Micros, Slo};

use super::CliError;
use crate::{
    pipeline::FleetConfig,
    replay::{
        feed::Feed,
        latency::CallGraph,
        merge::{ReadCounters, Recording},
        names::Names,
    },
};

/// Unknown names that are listed.
const UNKNOWN_MAX: usize = 40;

#[derive(Args, Debug)]
pub(super) struct RecordingOptions {
    /// Length of a window, e.g. `5s`, `500ms`, `5m`.
    #[arg(long, value_name = "LENGTH", value_parser = duration)]
    window: Option<Micros>,
    /// How long after its end a window still takes spans: at most ten windows.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    lateness: Micros,
    /// Whole traces kept per node and window; percentiles are of all spans.
    #[arg(long, value_name = "N", default_value_t = 256)]
    traces_kept: usize,
    /// Names of your metrics before the built-in ones: `NAME METRIC [FACTOR]` a line.
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Who calls whom where no spans tell: `[{"client", "server"}]`. With latency percentiles among the metrics, services
    /// without spans are diagnosed along it.
    #[arg(long, value_name = "FILE", visible_alias = "edges")]
    graph: Option<PathBuf>,
    /// Stop at the first damaged line.
    #[arg(long)]
    strict: bool,
    /// Tell why, for each answer.
    #[arg(long, short)]
    verbose: bool,
}

impl RecordingOptions {
    pub(super) fn recording(&self) -> Recording {
        Recording::new(self.strict)
    }

    pub(super) fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// An empty fleet; `graph` stands in where none is given.
    pub(super) fn feed(&self, window: Micros, slos: Vec<Slo>, graph: Option<&Path>) -> Result<Feed, CliError> {
        let names = match &self.map {
            Some(path) => {
                Names::with_map(&fs::read_to_string(path).map_err(|source| CliError::File(path.clone(), source))?)?
            }
            None => Names::default(),
        };
        let config = FleetConfig {
            slos,
            sample_traces: self.traces_kept,
            ..FleetConfig::new(self.window.unwrap_or(window), self.lateness)
        };
        let mut feed = Feed::new(config, names);
        if let Some(path) = self.graph.as_deref().or(graph) {
            let text = fs::read_to_string(path).map_err(|source| CliError::File(path.to_owned(), source))?;
            feed.set_graph(CallGraph::parse(&text).map_err(|what| CliError::Graph(path.to_owned(), what))?);
        }
        Ok(feed)
    }
}

/// `5s`, `500ms`, `5m`, `1h`.
pub(super) fn duration(text: &str) -> Result<Micros, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        "h" => 3_600e6,
        _ => return Err("want a number and ms, s, m or h".to_owned()),
    };
    let number: f64 = digits.parse().map_err(|_| format!("{digits:?} is no number"))?;
    let micros = number * unit;
    if (1e3..=86_400e6).contains(&micros) { Ok(Micros::new(micros as u64)) } else { Err("want 1ms to 24h".to_owned()) }
}

/// What was read and what could not be used, in words.
pub(super) fn told(read: &ReadCounters, feed: &Feed) -> String {
    let fleet = feed.fleet().counters();
    let mut text = format!(
        "{} requests: {} spans, {} data points; {} windows, {} intervals without any span\n",
        read.requests, read.spans, read.points, fleet.windows, fleet.silent
    );
    let mut note = |count: u64, what: &str| {
        if count > 0 {
            text += &format!("  {count} {what}\n");
        }
    };
    note(read.bad, "damaged requests or files");
    note(read.invalid_ids, "spans without a usable id, left out");
    note(read.odd_durations, "spans that end before they start or last longer than an hour, changed");
    note(read.broken_clocks, "spans and points far from everything around them, left out");
    note(fleet.late_spans, "spans later than the allowed lateness, left out");
    note(fleet.early_spans, "spans ahead of time, left out");
    note(fleet.duplicate_spans, "spans given twice");
    note(fleet.unpaired_spans, "spans without room for their trace: counted in percentiles only");
    note(fleet.orphan_spans, "client spans whose server span never came");
    note(fleet.refused_windows, "windows that broke a rule, left out");
    for problem in &read.problems {
        text += &format!("  {problem}\n");
    }
    let unknown = feed.names().unknown();
    if !unknown.is_empty() {
        let listed: Vec<String> =
            unknown.iter().take(UNKNOWN_MAX).map(|(name, count)| format!("{name} ({count})")).collect();
        text += &format!("  {} metric names are in no table: {}\n", unknown.len(), listed.join(", "));
    }
    text
}
