//! `sagectl replay`: a recording through both cores, and answers for it.

use std::path::PathBuf;

use clap::Args;
use sage_causal::observation::Observation;
use sage_common::{Micros, Slo};
use serde_json::json;

use super::{
    CliError, Output, exported, progress::Progress, put, recording::RecordingOptions, reply::Said, spec::Spec,
    told::Told,
};
use crate::{
    eval::{
        desk::Desk,
        folder::{Labelled, Truth},
    },
    replay::{
        feed::Source,
        merge::Content,
        streams::{Finished, Streams},
        study::{answer, answer_by_means},
        time::{self, Period},
        watch::{Found, Watch},
    },
};

/// Run recorded telemetry through Sage and say what was wrong.
///
/// Files hold OTLP requests: a line of JSON each, as the OpenTelemetry Collector's file exporter writes them, or protobuf
/// behind its length; plain, gzip or zstd. Several files are read as one stream in time. What cannot be read is counted
/// and told with file and line.
///
/// With --diagnose it answers for that period, whether a target was broken or not, from the entry operation that was
/// degraded most. Without, it learns first (from --train, or from the first minutes) and answers for each period in which
/// a target was broken.
///
/// Examples:
///   sagectl replay --traces traces.jsonl.zst --metrics metrics.jsonl.zst \
///     --diagnose 2024-05-01T12:00:00Z..2024-05-01T12:05:00Z
///   sagectl replay --traces a.jsonl b.jsonl.gz --slo 'shop:frontend:p99<200ms' --json
///   sagectl replay --metrics metrics.jsonl --graph graph.json --diagnose 1714564800..1714566300
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct ReplayOptions {
    /// An incident that `sagectl incidents export` wrote: answered again from what the file holds.
    #[arg(value_name = "FILE", conflicts_with_all = ["traces", "metrics", "train", "diagnose", "slo"])]
    exported: Option<PathBuf>,
    /// Files of spans.
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present_any = ["metrics", "exported"])]
    traces: Vec<PathBuf>,
    /// Files of metrics.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    metrics: Vec<PathBuf>,
    /// A target, `NAME:SERVICE[:OPERATION]:pP<DURATION`, e.g. 'shop:frontend:p99<50ms'. May be given several times.
    #[arg(long, value_name = "SPEC", conflicts_with = "slo_auto")]
    slo: Vec<Spec>,
    /// Take targets for every entry operation from what is normal in training. This is so without --slo, too.
    #[arg(long)]
    slo_auto: bool,
    /// When nothing was wrong: learn from this. Everything outside the diagnosed periods, unless given.
    #[arg(long, value_name = "FROM..TO")]
    train: Option<Period>,
    /// When something was wrong: answer for this. May be given several times.
    #[arg(long, value_name = "FROM..TO")]
    diagnose: Vec<Period>,
    /// The answers as JSON; the same as --output json.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    recording: RecordingOptions,
}

impl ReplayOptions {
    pub(super) fn run(&self, output: Output) -> Result<(), CliError> {
        let output = if self.json { Output::Json } else { output };
        if let Some(path) = &self.exported {
            return exported::replay(path, output);
        }
        let mut recording = self.recording.recording();
        let files = self.traces.iter().map(|path| (path, Content::Traces));
        for (path, content) in files.chain(self.metrics.iter().map(|path| (path, Content::Metrics))) {
            recording.open(path, content)?;
        }
        let given = self.slos()?;
        let mut streams = self.recording.streams(&mut recording, given.clone(), None, 1.0)?;
        let mut answers = Answers { asked: self.asked(), given, said: Vec::new(), traced: Vec::new() };
        let mut progress = Progress::new();
        while let Some(finished) = recording.step(&mut streams)? {
            answers.take(&finished, &streams);
            progress.tell(recording.counters(), &streams);
        }
        let finished = streams.finish();
        answers.take(&finished, &streams);
        answers.finish(&streams);
        progress.clear();
        let told = Told::of(&recording, &streams);
        match output {
            Output::Json => put(&format!("{:#}\n", answers.json(&told, &streams))),
            Output::Table => put(&super::emphasised(&answers.text(&told, &streams))),
        }
    }

    fn slos(&self) -> Result<Vec<Slo>, CliError> {
        let slo = |spec: &Spec| match spec {
            Spec::Objective(slo) => slo.validate().map_err(|error| CliError::Objective(error.to_string())),
            Spec::Suggestion(name) => Err(CliError::Objective(format!(
                "{name:?} is no objective: want NAME:SERVICE[:OPERATION]:pP<DURATION, for example shop:frontend:p99<50ms"
            ))),
        };
        self.slo.iter().map(slo).collect()
    }

    fn asked(&self) -> Asked {
        if self.diagnose.is_empty() {
            return Asked::Broken {
                spans: Box::new(Watch::new(self.train)),
                metrics: Box::new(Watch::new(self.train)),
            };
        }
        let mut periods = self.diagnose.clone();
        periods.sort_by_key(|period| (period.start, period.end));
        let unlabelled = |period: &Period| Labelled {
            id: time::words(period),
            period: *period,
            alarmed: None,
            truth: Truth { services: Vec::new(), resource: String::new(), fault_type: String::new() },
        };
        let labelled: Vec<Labelled> = periods.iter().map(unlabelled).collect();
        let normal = self.train.map_or_else(|| time::outside(&periods), |train| vec![train]);
        Asked::Periods(Box::new(Desk::new(&labelled, &normal)), periods)
    }
}

/// Longest time without spans that is no gap in the traces.
const QUIET: Micros = Micros::from_secs(60);

/// What is asked.
enum Asked {
    /// Which targets were broken, by spans and by recorded percentiles.
    Broken { spans: Box<Watch>, metrics: Box<Watch> },
    /// What was wrong in these periods.
    Periods(Box<Desk>, Vec<Period>),
}

struct Answers {
    asked: Asked,
    given: Vec<Slo>,
    said: Vec<Said>,
    traced: Vec<Period>, // when there were spans, in order and apart
}

impl Answers {
    fn take(&mut self, finished: &Finished, streams: &Streams) {
        finished.spans.iter().for_each(|window| self.note_traced(window));
        match &mut self.asked {
            Asked::Broken { spans, metrics } => {
                let slos = streams.spans.slos();
                let found = finished.spans.iter().filter_map(|window| spans.take(window, &slos));
                self.said.extend(found.map(|found| of_found(&found, &slos, Source::Spans)));
                let slos = streams.metrics.slos();
                let found = finished.metrics.iter().filter_map(|window| metrics.take(window, &slos));
                self.said.extend(found.map(|found| of_found(&found, &slos, Source::Metrics)));
            }
            Asked::Periods(desk, periods) => {
                let replies = desk.take(finished, streams);
                self.said.extend(replies.into_iter().map(|reply| Said::of(reply, periods)));
            }
        }
    }

    /// Windows a minute apart are one period: a quiet moment is no gap.
    fn note_traced(&mut self, window: &Observation) {
        let period = Period { start: window.start, end: window.start + window.length };
        match self.traced.last_mut() {
            Some(last) if period.start <= last.end + QUIET => last.end = last.end.max(period.end),
            _ => self.traced.push(period),
        }
    }

    fn finish(&mut self, streams: &Streams) {
        match &mut self.asked {
            Asked::Broken { spans, metrics } => {
                for (watch, feed) in [(spans, &streams.spans), (metrics, &streams.metrics)] {
                    self.said.extend(watch.finish().map(|found| of_found(&found, &feed.slos(), feed.source())));
                }
                // Spans tell more, so percentiles are asked only about times without any.
                let traced = &self.traced;
                let is_traced = |period: &Period| traced.iter().any(|own| own.distance(period) == Micros::ZERO);
                self.said.retain(|said| said.source == Source::Spans || !is_traced(&said.period));
            }
            Asked::Periods(desk, periods) => {
                let replies = desk.finish(streams);
                self.said.extend(replies.into_iter().map(|reply| Said::of(reply, periods)));
            }
        }
        self.said.sort_by_key(|said| (said.period.start, said.period.end));
    }

    /// The objectives that were watched, with their targets.
    fn watched(&self, streams: &Streams) -> &[Slo] {
        match &self.asked {
            Asked::Broken { spans, .. } if streams.spans.fleet().counters().windows > 0 => spans.slos(),
            Asked::Broken { metrics, .. } => metrics.slos(),
            Asked::Periods(..) => &[],
        }
    }

    fn json(&self, told: &Told, streams: &Streams) -> serde_json::Value {
        let answers: Vec<_> = self.said.iter().map(|said| said.json(streams)).collect();
        json!({"read": told, "objectives": self.watched(streams), "answers": answers, "notes": self.notes(streams)})
    }

    fn text(&self, told: &Told, streams: &Streams) -> String {
        let mut text = told.text();
        for said in &self.said {
            text += &format!("\n{}", said.text(streams));
        }
        for note in self.notes(streams) {
            text += &format!("\n{note}\n");
        }
        text
    }

    /// What to know where there is no answer, or not the one that was wanted.
    fn notes(&self, streams: &Streams) -> Vec<String> {
        let mut notes = Vec::new();
        let windows = |feed: &crate::replay::feed::Feed| feed.fleet().counters().windows;
        if windows(&streams.spans) + windows(&streams.metrics) == 0 {
            notes.push(nothing(streams));
        }
        notes.extend(self.given.iter().filter(|slo| !streams.has_entry(&slo.service)).map(|slo| {
            format!("Objective {}: no request enters at {}; entries are {}.", slo.name, slo.service, streams.entries())
        }));
        if let (Asked::Broken { .. }, true) = (&self.asked, self.said.is_empty()) {
            notes.push(match self.watched(streams).len() {
                0 => "The recording ended before enough was learnt; --diagnose FROM..TO asks about a period all the same.".to_owned(),
                count => format!("No target was broken ({count} watched); --diagnose FROM..TO asks about a period all the same."),
            });
        }
        notes
    }
}

/// Why there is nothing to answer from.
fn nothing(streams: &Streams) -> String {
    if streams.metrics.percentiles() == 0 {
        return "There are no latencies in this recording: no spans, and no percentiles of latency among the metrics. \
                Usage alone does not say what requests waited for."
            .to_owned();
    }
    "Latencies were read, and none of them in a whole window.".to_owned()
}

fn of_found(found: &Found, slos: &[Slo], source: Source) -> Said {
    let start = found.period.first().map(|window| window.start).unwrap_or_default();
    let end = found.period.last().map(|window| window.start + window.length).unwrap_or_default();
    let study = match source {
        Source::Spans => answer,
        Source::Metrics => answer_by_means,
    };
    Said { period: Period { start, end }, source, answer: study(&found.training, &found.period, slos) }
}
