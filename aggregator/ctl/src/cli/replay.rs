//! `sagectl replay`: a recording through both cores, and answers for it.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use sage_causal::observation::Observation;
use sage_common::{Micros, Slo, Timestamp};
use serde_json::{Value, json};

use super::{
    CliError, Output, exported, put,
    recording::{RecordingOptions, told},
    spec::Spec,
};
use crate::{
    eval::{
        collect::{Case, Collector},
        folder::{Labelled, Truth},
        run::kind,
    },
    replay::{
        feed::Feed,
        input::Input,
        merge::{Content, Recording},
        study::{Answer, StudyError, answer},
        time::{self, Period},
        watch::{Found, Watch},
    },
};

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(1);

/// Ranked services that are shown.
const SHOWN: usize = 5;

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
///   sagectl replay --traces a.jsonl --traces b.jsonl.gz --slo 'shop:frontend:p99<200ms' --output json
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
            recording.add(Input::open(path).map_err(|error| CliError::Replay(error.into()))?, content);
        }
        let mut feed = self.recording.feed(Micros::from_secs(5), self.slos()?, None)?;
        if !self.traces.is_empty() {
            feed.leave_latencies();
        }
        let mut answers = Answers { asked: self.asked(), said: Vec::new() };
        let mut progress = Progress::new();
        while let Some(finished) = recording.step(&mut feed)? {
            finished.iter().for_each(|window| answers.take(window, &feed));
            progress.tell(recording.counters().spans, feed.fleet().now());
        }
        feed.finish().iter().for_each(|window| answers.take(window, &feed));
        answers.finish(&feed);
        progress.clear();
        eprint!("{}", told(recording.counters(), &feed));
        if output == Output::Json {
            return put(&format!(
                "{:#}\n",
                json!(answers.said.iter().map(|said| said.json(&feed)).collect::<Vec<_>>())
            ));
        }
        put(&answers.text(&feed, &recording))
    }

    fn slos(&self) -> Result<Vec<Slo>, CliError> {
        let slo = |spec: &Spec| match spec {
            Spec::Objective(slo) => slo.validate().map_err(|error| CliError::Objective(error.to_string())),
            Spec::Suggestion(name) => Err(CliError::UnknownSuggestion(name.clone())),
        };
        self.slo.iter().map(slo).collect()
    }

    fn asked(&self) -> Asked {
        if self.diagnose.is_empty() {
            return Asked::Broken(Box::new(Watch::new(self.train)));
        }
        let mut periods = self.diagnose.clone();
        periods.sort_by_key(|period| period.start);
        let labelled: Vec<Labelled> = periods
            .iter()
            .map(|period| Labelled {
                id: words(period),
                period: *period,
                truth: Truth { services: Vec::new(), resource: String::new(), fault_type: String::new() },
            })
            .collect();
        let normal = self.train.map_or_else(|| outside(&periods), |train| vec![train]);
        Asked::Periods(Collector::new(&labelled, &normal), periods)
    }
}

/// What is between, before and behind `periods`, which are in order.
fn outside(periods: &[Period]) -> Vec<Period> {
    let mut free = Vec::new();
    let mut from = Timestamp::default();
    for period in periods {
        if from < period.start {
            free.push(Period { start: from, end: period.start });
        }
        from = from.max(period.end);
    }
    free.push(Period { start: from, end: Timestamp::from_micros(u64::MAX) });
    free
}

/// What is asked.
enum Asked {
    Broken(Box<Watch>),
    Periods(Collector, Vec<Period>),
}

struct Answers {
    asked: Asked,
    said: Vec<Said>,
}

/// One period and what is said of it.
struct Said {
    period: Period,
    answer: Result<Answer, StudyError>,
}

impl Answers {
    fn take(&mut self, window: &Observation, feed: &Feed) {
        match &mut self.asked {
            Asked::Broken(watch) => {
                let found = watch.take(window, feed.slos());
                self.said.extend(found.map(|found| of_found(&found, feed)));
            }
            Asked::Periods(collector, periods) => {
                let cases = collector.take(window);
                self.said.extend(cases.into_iter().map(|case| of_case(&case, periods, feed)));
            }
        }
    }

    fn finish(&mut self, feed: &Feed) {
        match &mut self.asked {
            Asked::Broken(watch) => {
                let found = watch.finish();
                self.said.extend(found.map(|found| of_found(&found, feed)));
            }
            Asked::Periods(collector, periods) => {
                let cases = collector.finish();
                self.said.extend(cases.into_iter().map(|case| of_case(&case, periods, feed)));
            }
        }
        self.said.sort_by_key(|said| said.period.start);
    }

    fn text(&self, feed: &Feed, recording: &Recording) -> String {
        if !self.said.is_empty() {
            return self.said.iter().map(|said| said.text(feed)).collect::<Vec<_>>().join("\n");
        }
        if recording.counters().spans == 0 {
            return "No span was read: there is nothing to answer from.\n".to_owned();
        }
        let watched = match &self.asked {
            Asked::Broken(watch) => watch.slos().len(),
            Asked::Periods(..) => 0,
        };
        match watched {
            0 => "The recording ended before enough was learnt; --diagnose asks about a period all the same.\n"
                .to_owned(),
            count => format!("No target was broken ({count} watched); --diagnose asks about a period all the same.\n"),
        }
    }
}

fn of_found(found: &Found, feed: &Feed) -> Said {
    let start = found.period.first().map(|window| window.start).unwrap_or_default();
    let end = found.period.last().map(|window| window.start + window.length).unwrap_or_default();
    Said { period: Period { start, end }, answer: answer(&found.training, &found.period, feed.slos()) }
}

fn of_case(case: &Case, periods: &[Period], feed: &Feed) -> Said {
    Said { period: periods[case.number], answer: answer(&case.training, &case.period, feed.slos()) }
}

fn words(period: &Period) -> String {
    format!("{}..{}", time::format(period.start), time::format(period.end))
}

impl Said {
    fn json(&self, feed: &Feed) -> Value {
        let period = words(&self.period);
        match &self.answer {
            Err(error) => json!({"period": period, "problem": told_error(error)}),
            Ok(answer) => json!({
                "period": period,
                "slo": answer.slo,
                "normal_us": answer.normal,
                "observed_us": answer.observed,
                "ranking": answer.ranking.iter().map(|service| feed.written(service)).collect::<Vec<_>>(),
                "resource": answer.resource,
                "p": answer.p,
                "windows": {"training": answer.training, "period": answer.period},
                "verdict": answer.verdict,
            }),
        }
    }

    fn text(&self, feed: &Feed) -> String {
        let answer = match &self.answer {
            Ok(answer) => answer,
            Err(error) => return format!("{}\n  {}\n", words(&self.period), told_error(error)),
        };
        let Answer { slo, normal, observed, verdict, .. } = answer;
        let mut text = format!("{}\n  {}: {observed}, normally {normal}", words(&self.period), slo.name);
        text += &format!(" ({} windows, learnt from {})\n", answer.period, answer.training);
        text += &format!("  verdict: {}, P {:.2}\n", kind(verdict.kind), answer.p);
        for culprit in &verdict.culprits {
            let resource = format!("{:?}", culprit.resource).to_lowercase();
            text += &format!("  culprit: {} ({resource}, P {:.2})", feed.written(&culprit.service), culprit.p_resource);
            text += &culprit.link_with.as_ref().map_or(String::new(), |other| {
                format!(", or {}: the spans cannot tell the ends of this link apart", feed.written(other))
            });
            text.push('\n');
        }
        let next: Vec<String> = answer.ranking.iter().take(SHOWN).map(|service| feed.written(service)).collect();
        text += &format!("  ranking: {}\n", next.join(", "));
        for missing in &verdict.missing {
            text += &format!("  note: {missing}\n");
        }
        text
    }
}

fn told_error(error: &StudyError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// One line on a terminal, written over.
struct Progress {
    last: Option<std::time::Instant>,
    is_shown: bool,
}

impl Progress {
    fn new() -> Self {
        Self { last: None, is_shown: io::stderr().is_terminal() }
    }

    #[expect(clippy::disallowed_methods, reason = "a driver: people watch by their own clock")]
    fn tell(&mut self, spans: u64, at: Timestamp) {
        let is_due = self.is_shown && self.last.is_none_or(|last| last.elapsed() >= PROGRESS);
        if is_due {
            self.last = Some(std::time::Instant::now());
            eprint!("\r{}  {spans} spans", time::format(at));
        }
    }

    fn clear(&self) {
        if self.last.is_some() {
            eprint!("\r{:60}\r", "");
        }
    }
}
