#![expect(clippy::disallowed_methods, reason = "a driver: an exported incident is a file")]
//! `sagectl replay FILE`: an incident that was exported as one file, answered again.

use std::{fmt::Write as _, fs::File, path::Path};

use sage_aggregator::incident_file::{IncidentFile, Story, format, replay as again};
use sage_causal::verdict::Verdict;
use serde_json::json;

use super::{
    CliError, Output, put,
    table::{Table, text},
    words::{self, causes, date_time, millis, percent},
};
use crate::eval::run::kind;

/// Longest value of a difference that is shown.
const VALUE_SHOWN: usize = 32;

/// The incident in `path`.
///
/// # Errors
///
/// [`CliError::File`], [`CliError::IncidentFile`].
pub(super) fn read(path: &Path) -> Result<IncidentFile, CliError> {
    let file = File::open(path).map_err(|source| CliError::File(path.to_owned(), source))?;
    format::read(file).map_err(|error| CliError::IncidentFile(path.to_owned(), error))
}

/// Answers for the incident in `path` from what the file holds, and says whether that is the verdict it holds.
///
/// # Errors
///
/// [`CliError::Differs`] when it is not; as [`read`] when it is no such file.
pub(super) fn replay(path: &Path, output: Output) -> Result<(), CliError> {
    let file = read(path)?;
    let replayed = again::replay(&file).map_err(|error| CliError::NoReplay(path.to_owned(), error))?;
    match output {
        Output::Json => put(&format!("{:#}\n", answer(&file, &replayed)))?,
        Output::Table => put(&told(&file, &replayed))?,
    }
    if replayed.is_same() { Ok(()) } else { Err(CliError::Differs(path.to_owned())) }
}

fn answer(file: &IncidentFile, replayed: &again::Replayed) -> serde_json::Value {
    let story = file.story.as_ref();
    json!({
        "incident": story.map(|story| story.incident.id),
        "fleet": file.fleet,
        "slo": file.slo,
        "label": story.and_then(|story| story.label.as_ref()).map(|label| &label.causes),
        "generation": file.generation,
        "windows": file.windows.len(),
        "is_same": replayed.is_same(),
        "differences": replayed.differences,
        "recorded": replayed.recorded,
        "verdict": replayed.given,
    })
}

fn told(file: &IncidentFile, replayed: &again::Replayed) -> String {
    let mut out = file.story.as_ref().map_or_else(String::new, |story| title(file, story));
    let _ = writeln!(out, "  verdict: {}", verdict(&replayed.given));
    let model = format!("model generation {}, {} windows", file.generation, file.windows.len());
    if replayed.is_same() {
        let _ = writeln!(out, "\nThe same verdict as when it was given, bit for bit ({model}).");
        return out;
    }
    let _ = writeln!(out, "\nAnother verdict than when it was given ({model}, exported by {}):\n", file.made_by);
    let mut table = Table::new([text("WHERE"), text("THEN"), text("NOW")]).indented(2);
    let shown = |value: &serde_json::Value| value.to_string().chars().take(VALUE_SHOWN).collect::<String>();
    for difference in &replayed.differences {
        table.row([difference.place.clone(), shown(&difference.recorded), shown(&difference.given)]);
    }
    out + &table.render()
}

fn title(file: &IncidentFile, story: &Story) -> String {
    let incident = &story.incident;
    let mut out = format!(
        "Incident {} of fleet {}: {} was {}, its target is {}; opened {}\n",
        incident.id,
        file.fleet,
        incident.slo,
        millis(incident.latency.as_millis_f64()),
        millis(incident.target.as_millis_f64()),
        date_time(incident.opened_at.as_micros() / 1_000),
    );
    if let Some(label) = &story.label {
        let _ = writeln!(out, "  truth, says the operator: {}", causes(&label.causes));
    }
    out
}

/// `culprit: geo (cpu); without it the target is met with 97 % probability`.
fn verdict(verdict: &Verdict) -> String {
    let names = words::culprits(verdict);
    if names.is_empty() {
        return format!("{}, nobody is named", kind(verdict.kind));
    }
    let p = percent(verdict.p_restored);
    format!("{}: {}; without it the target is met with {p} probability", kind(verdict.kind), names)
}
