//! `sagectl whatif`: end-to-end latency had something been otherwise.

use std::{fmt::Write as _, path::PathBuf};

use clap::Args;
use sage_aggregator::incident_file::{IncidentFile, format};
use sage_causal::{
    Model,
    observation::Observation,
    whatif::{MinimumFix, Setting, WhatIf},
};

use super::{
    CliError, Output, Session, exported, put,
    table::{Table, number, text, wrapped},
    words::{date_time, millis, percent, percentile},
};

/// Ask what the end-to-end latency would be if something were otherwise.
///
/// Of an incident, of one that was exported to a file, or of the newest windows of the live system. Nothing is changed
/// anywhere: the answer is computed here, by the model that the aggregator had.
///
/// Examples:
///   sagectl whatif --incident 3 --set cart=normal
///   sagectl whatif cart-slow.incident --set cart.cpu_throttled=p50 --set db.network=normal
///   sagectl whatif --minimum-fix 0.95
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct WhatIfOptions {
    /// An exported incident, instead of asking the aggregator.
    #[arg(value_name = "FILE", conflicts_with_all = ["incident", "slo"])]
    file: Option<PathBuf>,
    /// An incident's number, instead of the newest windows.
    #[arg(long, value_name = "INCIDENT")]
    incident: Option<u64>,
    /// Which objective of the live system; that of an open incident, else the first.
    #[arg(long, value_name = "NAME", conflicts_with = "incident")]
    slo: Option<String>,
    /// What is otherwise: a service at its normal, one resource of it (cpu, memory, disk, network, software), or one metric
    /// at a percentile of its normal spread at the present load. May be given several times.
    #[arg(
        long,
        value_name = "SERVICE=normal|SERVICE.RESOURCE=normal|SERVICE.METRIC=pN",
        required_unless_present = "minimum_fix"
    )]
    set: Vec<Setting>,
    /// Find the fewest services, or single resources of them, that meet the target with at least this probability.
    #[arg(long, value_name = "P", value_parser = probability, conflicts_with = "set")]
    minimum_fix: Option<f64>,
    /// The answer as JSON; the same as --output json.
    #[arg(long)]
    json: bool,
}

/// `0.95` or `95%`.
fn probability(text: &str) -> Result<f64, String> {
    let number = |digits: &str| digits.trim().parse::<f64>().ok();
    let p = text.strip_suffix('%').map_or_else(|| number(text), |digits| Some(number(digits)? / 100.0));
    p.filter(|p| *p > 0.0 && *p < 1.0).ok_or_else(|| "want a probability between 0 and 1".to_owned())
}

impl WhatIfOptions {
    pub(super) fn run(&self, session: &Session) -> Result<(), CliError> {
        let file = self.fetch(session)?;
        let name = || self.file.clone().unwrap_or_else(|| PathBuf::from("the aggregator's answer"));
        let model = Model::from_bytes(&file.model).map_err(|error| CliError::Model(name(), error))?;
        let recent: Vec<Observation> = file.windows.iter().map(|window| window.as_ref().clone()).collect();
        let is_json = self.json || session.output == Output::Json;
        if let Some(p) = self.minimum_fix {
            let fix = model.minimum_fix(&recent, &file.slo, p)?;
            return put(&if is_json { pretty(&fix) } else { title(&file, &fix.outcome) + &told_fix(&fix) });
        }
        let answer = model.what_if(&recent, &file.slo, &self.set)?;
        put(&if is_json { pretty(&answer) } else { title(&file, &answer) + &told(&answer) })
    }

    fn fetch(&self, session: &Session) -> Result<IncidentFile, CliError> {
        if let Some(path) = &self.file {
            return exported::read(path);
        }
        let path = match (self.incident, &self.slo) {
            (Some(id), _) => format!("/api/v1/incidents/{id}/export"),
            (None, Some(name)) => format!("/api/v1/export?slo={}", encoded(name)),
            (None, None) => "/api/v1/export".to_owned(),
        };
        let bytes = session.client.get_bytes(&path)?;
        format::read(bytes.as_slice()).map_err(|error| CliError::IncidentFile(PathBuf::from(path), error))
    }
}

/// `text` as part of a URL's query (RFC 3986, 2.1).
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn pretty(answer: &impl serde::Serialize) -> String {
    format!("{:#}\n", serde_json::json!(answer))
}

fn title(file: &IncidentFile, answer: &WhatIf) -> String {
    let what = match &file.story {
        Some(story) => format!("Incident {}", story.incident.id),
        None => "The newest windows".to_owned(),
    };
    let windows = if answer.windows == 1 { "1 window".to_owned() } else { format!("{} windows", answer.windows) };
    let text = format!(
        "{what}: {}, target {} < {}; {windows} up to {}, model generation {}",
        answer.slo,
        percentile(answer.percentile),
        millis(answer.target_us.as_millis_f64()),
        date_time(answer.newest_us.as_micros() / 1_000),
        answer.generation,
    );
    wrapped(&text, 0)
}

fn told(answer: &WhatIf) -> String {
    let mut out = String::new();
    for set in &answer.set {
        let _ = writeln!(out, "  with {set}");
    }
    out + "\n" + &outcome(answer)
}

fn outcome(answer: &WhatIf) -> String {
    let mut table = Table::new([text("PERCENTILE"), number("OBSERVED"), number("WOULD BE")]).indented(2);
    for one in &answer.distribution {
        let mark = if one.percentile.total_cmp(&answer.percentile).is_eq() { " (target)" } else { "" };
        table.row([
            percentile(one.percentile) + mark,
            millis(one.observed_us.as_millis_f64()),
            millis(one.counterfactual_us.as_millis_f64()),
        ]);
    }
    let mut out = table.render();
    let (p, before) = (percent(answer.p_met), percent(answer.p_met_observed));
    let _ = writeln!(out, "\nThe target would be met with {p} probability, instead of {before}.");
    for note in &answer.notes {
        out += &wrapped(&format!("note: {note}"), 0);
    }
    out
}

fn told_fix(fix: &MinimumFix) -> String {
    let wanted = percent(fix.p_wanted);
    let mut out = match (fix.is_enough, fix.parts.is_empty()) {
        (true, true) => format!("\nNothing: the target is met with at least {wanted} probability as it is.\n\n"),
        (true, false) => format!("\nThe fewest that meet the target with at least {wanted} probability:\n\n"),
        (false, true) => format!("\nNo service lowers the latency: the target is out of reach with {wanted}.\n\n"),
        (false, false) => format!("\nNo few services meet the target with {wanted} probability. The best are:\n\n"),
    };
    if !fix.parts.is_empty() {
        let mut table = Table::new([text("SERVICE"), text("WHAT MUST BE NORMAL")]).indented(2);
        for part in &fix.parts {
            let what = part.resource.map_or("all of it".to_owned(), |one| format!("{one:?}").to_lowercase());
            table.row([part.service.to_string(), what]);
        }
        out += &(table.render() + "\n");
    }
    out + &outcome(&fix.outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probability_is_a_share_or_a_percentage() {
        assert_eq!(probability("0.95"), Ok(0.95));
        assert_eq!(probability("95%"), Ok(0.95));
        for text in ["0", "1", "95", "x", "nan", "-1%"] {
            assert!(probability(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_encoded_for_a_query() {
        assert_eq!(encoded("home page/1"), "home%20page%2F1");
    }
}
