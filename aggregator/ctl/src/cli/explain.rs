//! `sagectl explain`: one incident told as a chain of reasoning, for someone who has not read the code.

use sage_causal::verdict::{Culprit, Resource, Verdict, VerdictKind};

use super::{
    answer::{Action, DatedVerdict, Incident, Objective},
    table::{Table, cut, number, text, wrapped},
    words::{causes, clock, date_time, edge, evidence, millis, percent, percentile, resource, span},
};

/// Candidates shown; the rest is only counted.
const CANDIDATES_SHOWN: usize = 8;

/// Pieces of evidence shown per culprit, the strongest first.
const EVIDENCE_SHOWN: usize = 6;

/// Everything known about one incident.
#[derive(Debug)]
pub struct Story<'a> {
    /// The incident.
    pub incident: &'a Incident,
    /// Its objective, if it still exists.
    pub objective: Option<&'a Objective>,
    /// The actions taken for it, in order.
    pub actions: Vec<&'a Action>,
}

impl Story<'_> {
    /// The whole story, no line longer than [`super::table::WIDTH_MAX`].
    pub fn tell(&self) -> String {
        let mut out = self.what_broke();
        match self.incident.verdicts.last() {
            None => out += &section("Why", &wrapped(&self.no_verdict(), 2)),
            Some(last) => {
                out += &section("Why", &self.why(last));
                for culprit in &last.verdict.culprits {
                    out += &section(&format!("Evidence against {}", culprit.service), &proof(culprit));
                }
                out += &section("The way the latency travelled", &path(&last.verdict));
            }
        }
        if let Some(label) = &self.incident.label {
            let said = format!("An operator said on {}: {}.", date_time(label.at_ms), causes(&label.causes));
            out += &section("What it really was", &wrapped(&said, 2));
        }
        out += &section("What was done", &self.what_was_done());
        out += &section("What it did", &self.what_it_did());
        if let Some(last) = self.incident.verdicts.last() {
            out += &section("What is missing", &missing(&last.verdict));
            out += &section("Who says so", &wrapped(&source(&self.incident.verdicts, last), 2));
        }
        out
    }

    fn percentile(&self) -> String {
        self.objective.map_or_else(|| "the percentile".to_owned(), |slo| percentile(slo.percentile))
    }

    fn target_of(&self) -> String {
        let Some(Objective { service, operation, .. }) = self.objective else {
            return format!("objective {} (since removed)", self.incident.slo);
        };
        operation.as_ref().map_or_else(|| format!("service {service}"), |own| format!("{own} on service {service}"))
    }

    fn what_broke(&self) -> String {
        let Incident { id, slo, opened_at_ms, diagnosed_at_ms, resolved_at_ms, latency_ms, target_ms, .. } =
            self.incident;
        let state = resolved_at_ms.map_or_else(
            || "open".to_owned(),
            |resolved| format!("resolved after {}", span(resolved.saturating_sub(*opened_at_ms))),
        );
        let mut text = format!(
            "{} of {} was {}; its target is {}. It has been over the target since {}",
            self.percentile(),
            self.target_of(),
            millis(*latency_ms),
            millis(*target_ms),
            date_time(*opened_at_ms),
        );
        text += &match diagnosed_at_ms {
            Some(at) => format!("; the cause was named {} later", span(at.saturating_sub(*opened_at_ms))),
            None => "; no cause has been named yet".to_owned(),
        };
        text += &match resolved_at_ms {
            Some(at) => format!("; the target was met again at {}.", clock(*at)),
            None => ".".to_owned(),
        };
        let title = format!("Incident {id}: {slo} is over its target ({state})");
        format!("{}\n", cut(&title, super::table::WIDTH_MAX)) + &section("What broke", &wrapped(&text, 2))
    }

    fn no_verdict(&self) -> String {
        if self.incident.resolved_at_ms.is_some() {
            "It was over before a diagnosis was due: the target must be missed for several windows in a row, so that \
             one slow moment changes nothing."
                .into()
        } else {
            "Not diagnosed yet. A diagnosis needs the target missed for several windows in a row and a trained model; \
             `sagectl status` shows whether there is one."
                .into()
        }
    }

    fn why(&self, last: &DatedVerdict) -> String {
        let verdict = &last.verdict;
        let mut out = wrapped(&self.conclusion(verdict), 2);
        if verdict.candidates.is_empty() {
            return out;
        }
        out += "\n";
        let question = format!(
            "Each service was asked: had it alone been normal, what would {} have been ({} was observed)?",
            self.percentile(),
            millis(verdict.observed.as_millis_f64()),
        );
        out + &wrapped(&question, 2) + &candidates(verdict, &self.percentile())
    }

    fn conclusion(&self, verdict: &Verdict) -> String {
        let names = list(verdict.culprits.iter().map(describe));
        let would = format!(
            "{} would have been {} instead of {} (target {}), and the target met with {} probability",
            self.percentile(),
            millis(verdict.counterfactual.as_millis_f64()),
            millis(verdict.observed.as_millis_f64()),
            millis(verdict.target.as_millis_f64()),
            percent(verdict.p_restored),
        );
        match verdict.kind {
            VerdictKind::Culprit => format!("The cause is {names}. Had this been normal, {would}."),
            VerdictKind::Partial => {
                format!("Part of the cause is {names}. Had this been normal, {would}: it helps and is not enough.")
            }
            VerdictKind::Demand => format!(
                "More calls arrive than ever before, so no service is at fault; {names} cannot keep up and should be \
                 scaled out."
            ),
            VerdictKind::Unknown => "No cause could be named with confidence, so nothing is changed. What would help \
                                     stands below."
                .into(),
        }
    }

    fn what_was_done(&self) -> String {
        let mut out: String = self.actions.iter().map(|action| wrapped(&done(action), 2)).collect();
        if out.is_empty() {
            out = wrapped("Nothing was changed on any node.", 2);
            let culprits = self.incident.verdicts.last().map(|last| last.verdict.culprits.as_slice());
            out += &culprits.unwrap_or_default().iter().map(|culprit| wrapped(&advice(culprit), 2)).collect::<String>();
        }
        if let Some(waiting) = &self.incident.waiting {
            out += &wrapped(&format!("At present nothing is done: {waiting}."), 2);
        }
        out
    }

    fn what_it_did(&self) -> String {
        let judged: Vec<&&Action> = self.actions.iter().filter(|action| action.applied_at_ms.is_some()).collect();
        if judged.is_empty() {
            return wrapped("Nothing was in force, so there is nothing to measure.", 2);
        }
        let mut table = Table::new([
            text("ACTION"),
            number("BEFORE"),
            number("PREDICTED"),
            number("MEASURED"),
            number("TARGET"),
            text("OUTCOME"),
        ])
        .indented(2);
        for action in judged {
            let outcome = action.outcome.clone().unwrap_or_else(|| format!("not judged yet ({})", action.state));
            table.row([
                action.id.clone(),
                millis(action.baseline_ms.unwrap_or(self.incident.latency_ms)),
                millis(action.predicted_ms),
                millis(action.measured_ms),
                millis(self.incident.target_ms),
                outcome,
            ]);
        }
        table.render()
    }
}

/// What a person can do where Sage did nothing.
fn advice(culprit: &Culprit) -> String {
    let service = &culprit.service;
    match culprit.resource {
        Resource::Cpu => {
            format!("What would help: more processor time for {service}, or less for what runs beside it.")
        }
        Resource::Memory => format!("What would help: more memory for {service}, or less for what runs beside it."),
        Resource::Disk => format!("What would help: fewer reads and writes by what shares the disk of {service}."),
        Resource::Network => format!("What would help: fewer bytes by what shares the link of {service}'s node."),
        Resource::Software => format!(
            "What would help: whoever owns {service} looks at its latest change, its locks and its pools; no setting of a \
             machine repairs it."
        ),
    }
}

fn section(title: &str, body: &str) -> String {
    format!("\n{title}\n{body}")
}

/// `a`, `a and b`, `a, b and c`.
fn list(items: impl Iterator<Item = String>) -> String {
    let mut items: Vec<String> = items.collect();
    match items.pop() {
        None => "nothing in particular".into(),
        Some(last) if items.is_empty() => last,
        Some(last) => format!("{} and {last}", items.join(", ")),
    }
}

fn describe(culprit: &Culprit) -> String {
    let Culprit { service, resource: what, p_resource, link_with, instance, .. } = culprit;
    let mut text = format!("{service}: {} ({} sure of that)", resource(*what), percent(*p_resource));
    if let Some(other) = link_with {
        text += &format!(", at its end of the link with {other} or at the other");
    }
    if let Some(instance) = instance {
        text += &format!(", in replica {instance} only");
    }
    text
}

fn candidates(verdict: &Verdict, percentile: &str) -> String {
    let mut table = Table::new([
        text("IF NORMAL"),
        number("LATENCY"),
        number("TARGET MET"),
        number("OWN EXCESS PER CALL"),
        number("UNLIKE HEALTHY TIMES"),
    ])
    .indented(2);
    for candidate in verdict.candidates.iter().take(CANDIDATES_SHOWN) {
        table.row([
            candidate.service.to_string(),
            format!("{percentile} {}", millis(candidate.counterfactual.as_millis_f64())),
            percent(candidate.p_restored),
            millis(candidate.own_excess_us / 1e3),
            percent(candidate.null_rank),
        ]);
    }
    let more = verdict.candidates.len().saturating_sub(CANDIDATES_SHOWN);
    let rest = if more == 0 { String::new() } else { format!("  and {more} more that explain less\n") };
    table.render() + &rest
}

pub(super) fn proof(culprit: &Culprit) -> String {
    if culprit.evidence.is_empty() {
        return wrapped("None beyond the latencies above.", 2);
    }
    let mut table =
        Table::new([text("WHAT WAS MEASURED"), number("NORMAL"), number("OBSERVED"), number("IN USUAL SPREADS")])
            .indented(2);
    for piece in culprit.evidence.iter().take(EVIDENCE_SHOWN) {
        let (what, normal, observed) = evidence(piece);
        table.row([what, normal, observed, deviation(piece.z)]);
    }
    table.render()
}

/// A robust z score; beyond 20 the number says no more than "far".
fn deviation(z: f64) -> String {
    if z.abs() > 20.0 { format!("{} 20", if z > 0.0 { ">" } else { "< -" }) } else { format!("{z:+.1}") }
}

pub(super) fn path(verdict: &Verdict) -> String {
    let Some(first) = verdict.path.first() else {
        return wrapped("It arose in the entry service itself, or no path could be told.", 2);
    };
    let entry = first.caller.as_ref().map_or("clients", |caller| caller.as_str());
    let hops = verdict.path.iter().map(|key| key.callee.as_str());
    let summary = std::iter::once(entry).chain(hops).collect::<Vec<_>>().join(" → ");
    let mut out = wrapped(&summary, 2);
    for key in &verdict.path {
        out += &wrapped(&edge(key), 4);
    }
    out
}

fn done(action: &Action) -> String {
    let Action {
        id, node, knob, service, setting, before, state, requested_at_ms, applied_at_ms, reverted_at_ms, ..
    } = action;
    let change = before.as_ref().map_or_else(|| setting.clone(), |before| format!("{before} → {setting}"));
    let when = match (applied_at_ms, reverted_at_ms) {
        (None, _) => format!("{} at {}, not in force", state_words(state), clock(*requested_at_ms)),
        (Some(from), None) => format!("in force since {}", clock(*from)),
        (Some(from), Some(to)) => {
            format!("in force from {} for {}, then given back", clock(*from), span(to.saturating_sub(*from)))
        }
    };
    let mut text = format!("Action {id} on node {node}, to help {service}: {knob}: {change}; {when}.");
    if !action.reason.is_empty() {
        text += &format!(" Reason: {}.", action.reason.trim_end_matches('.'));
    }
    if let (None, Some(outcome)) = (applied_at_ms, &action.outcome) {
        text += &format!(" Outcome: {}.", outcome.trim_end_matches('.'));
    }
    text
}

/// The API's state of an action, in words.
pub fn state_words(state: &str) -> String {
    match state {
        "awaiting_approval" => "needs approval".into(),
        other => other.replace('_', " "),
    }
}

fn missing(verdict: &Verdict) -> String {
    if verdict.missing.is_empty() {
        return wrapped("Nothing: every tier reported, and the model knew this situation.", 2);
    }
    verdict.missing.iter().map(|gap| wrapped(&format!("- {gap}"), 2)).collect()
}

fn source(all: &[DatedVerdict], last: &DatedVerdict) -> String {
    let Verdict { generation, model_age, .. } = last.verdict;
    let earlier = match all.len() - 1 {
        0 => String::new(),
        1 => " One earlier diagnosis of this incident is in `--output json`.".into(),
        n => format!(" {n} earlier diagnoses of this incident are in `--output json`."),
    };
    format!(
        "Diagnosed at {} by model generation {generation}, which had learnt from windows up to {} before.{earlier}",
        clock(last.at_ms),
        span(model_age.get() / 1_000),
    )
}
