#![expect(clippy::disallowed_methods, reason = "a driver: a user's table of names is a file")]
//! What every command on recordings takes.

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
        callgraph::CallGraph,
        feed::{Feed, Source},
        merge::Recording,
        names::Names,
        streams::Streams,
    },
};

/// Windows of spans where no trace tells how long they must be.
const WINDOW: Micros = Micros::from_secs(5);

/// How far samples are apart where the recording does not show it: a sample a minute is the most common.
const APART: Micros = Micros::from_secs(60);

/// Longest windows of recorded percentiles.
const APART_MAX: Micros = Micros::from_secs(600);

#[derive(Args, Debug)]
pub(super) struct RecordingOptions {
    /// Length of a window, e.g. `5s`, `500ms`, `5m`. By default 5 s, or as much longer as the busiest entry needs to be
    /// called twenty times: at most a minute.
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
    /// Who calls whom where no spans tell: `[{"client", "server"}]`, or what `sagectl graph --output json` gives. With
    /// recorded percentiles of latency, services without spans are diagnosed along it.
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
    /// The same as lines of `CALLER,CALLEE`; may be given beside --graph.
    #[arg(long, value_name = "FILE")]
    edges: Option<PathBuf>,
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

    /// Empty feeds for `recording`, of which `share` of the traces are taken; the graph in `graph` stands in where none is
    /// given.
    pub(super) fn streams(
        &self,
        recording: &mut Recording,
        slos: Vec<Slo>,
        graph: Option<&Path>,
        share: f64,
    ) -> Result<Streams, CliError> {
        let window = self.window.or_else(|| recording.rate().window(share)).unwrap_or(WINDOW);
        // Percentiles are told per window, so a window holds a sample of every service at least.
        let apart = recording.interval()?.unwrap_or(APART).get().div_ceil(1_000_000);
        let slow = Micros::from_secs(apart).min(APART_MAX).max(window);
        let spans = Feed::new(self.config(window, slos.clone()), Source::Spans, self.names()?);
        let metrics = Feed::new(self.config(slow, slos), Source::Metrics, self.names()?);
        let mut streams = Streams::new(spans, metrics, self.graph(graph)?);
        streams.spans.sample(share);
        Ok(streams)
    }

    fn config(&self, window: Micros, slos: Vec<Slo>) -> FleetConfig {
        FleetConfig { slos, sample_traces: self.traces_kept, ..FleetConfig::new(window, self.lateness) }
    }

    fn names(&self) -> Result<Names, CliError> {
        let Some(path) = &self.map else { return Ok(Names::default()) };
        Ok(Names::with_map(&text(path)?)?)
    }

    fn graph(&self, otherwise: Option<&Path>) -> Result<Option<CallGraph>, CliError> {
        let given: Vec<&Path> = [&self.graph, &self.edges].into_iter().flatten().map(PathBuf::as_path).collect();
        let paths = if given.is_empty() { otherwise.into_iter().collect() } else { given };
        let mut graph = None;
        for path in paths {
            let read = CallGraph::parse(&text(path)?).map_err(|what| CliError::Graph(path.to_owned(), what))?;
            graph.get_or_insert_with(CallGraph::default).merge(read);
        }
        Ok(graph)
    }
}

fn text(path: &Path) -> Result<String, CliError> {
    fs::read_to_string(path).map_err(|source| CliError::File(path.to_owned(), source))
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
