#![expect(clippy::disallowed_methods, reason = "a driver: answers go to a file")]
//! `sagectl eval`: labelled incidents, answered and scored.

use std::{fs, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{CliError, put, recording::RecordingOptions, told::Told};
use crate::{
    eval::{
        folder::Folder,
        run::{self, Evaluation, Prediction},
    },
    incident_file,
    replay::{merge::Content, study::CONFIDENT},
};

/// Answer labelled incidents of a recording, and score the answers.
///
/// DIR holds incidents.json (`[{"id", "start", "end", "services", "resource", "fault_type"}]`), normal.json (`[{"start", "end"}]`; without
/// it, all time that is not near an incident is taken for normal), and the recording: files traces* and metrics* (OTLP as
/// JSON lines or protobuf; plain, .gz or .zst), either of them, and graph.json where no traces tell who calls whom. Each incident is answered from healthy windows before it, or the nearest ones where there are too few. Where
/// incidents.json says in `target.service` at which entry the alarm was raised, that entry is asked about: an operator
/// knows it. The truth (`services`, `resource`, `fault_type`) is read for scoring alone, after the last answer.
///
/// Or DIR holds incidents that `sagectl incidents export` wrote, and labels that `sagectl incidents label` gave them: each
/// is answered again from what its file holds.
#[derive(Args, Debug)]
pub(super) struct EvalOptions {
    /// The folder.
    dir: PathBuf,
    /// Write the predictions here: `[{"id", "ranking", "resource", "verdict", "p", "why"}]`.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Take only this share of the traces, as a sampler would.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    sample: f64,
    #[command(flatten)]
    recording: RecordingOptions,
}

impl EvalOptions {
    pub(super) fn run(&self) -> Result<(), CliError> {
        if !self.dir.join("incidents.json").exists() {
            let files = incident_file::files(&self.dir)?;
            if !files.is_empty() {
                return self.exported(&files);
            }
        }
        let folder = Folder::open(&self.dir)?;
        let mut recording = self.recording.recording();
        for (stem, content) in [("traces", Content::Traces), ("metrics", Content::Metrics)] {
            for path in folder.find(stem) {
                recording.open(&path, content)?;
            }
        }
        let graph = folder.find("graph.json").into_iter().next();
        let mut streams = self.recording.streams(&mut recording, Vec::new(), graph.as_deref(), self.sample)?;
        let evaluation = run::run(&folder, &mut recording, &mut streams, |prediction| self.tell(prediction))?;
        eprint!("{}", Told::of(&recording, &streams).text());
        self.write(&folder, &evaluation)
    }

    fn exported(&self, files: &[PathBuf]) -> Result<(), CliError> {
        let scored = incident_file::score(&self.dir, files, |prediction| self.tell(prediction))?;
        if scored.unlabelled > 0 {
            eprintln!("{} incidents without a label are left out", scored.unlabelled);
        }
        if scored.changed > 0 {
            eprintln!("{} verdicts are not what they were when given: sagectl replay FILE", scored.changed);
        }
        self.write(&scored.folder, &scored.evaluation)
    }

    fn tell(&self, prediction: &Prediction) {
        let first = prediction.ranking.first().map_or("-", String::as_str);
        let resource = prediction.resource.as_deref().unwrap_or("-");
        eprintln!("{}: {} {first} ({resource}), P {:.2}", prediction.id, prediction.verdict, prediction.p);
        if self.recording.is_verbose() {
            prediction.why.iter().for_each(|line| eprintln!("    {line}"));
        }
    }

    fn write(&self, folder: &Folder, evaluation: &Evaluation) -> Result<(), CliError> {
        if let Some(path) = &self.json {
            let text = format!("{:#}\n", json!(evaluation.predictions));
            fs::write(path, text).map_err(CliError::Write)?;
        }
        let (confident, wrong) = evaluation.confidence();
        put(&format!(
            "{}\n{confident} of {} answers name somebody with P of at least {}; {wrong} of those are wrong.\n",
            evaluation.table(folder),
            evaluation.predictions.len(),
            CONFIDENT
        ))
    }
}
