//! What every experiment is given: which cases, which systems, where progress goes.
#![allow(clippy::disallowed_methods, reason = "experiments measure time")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    case::{Case, CaseSource},
    measure::Tally,
    parallel,
    results::Row,
    seeds::derived,
    sources::{self, Conditions},
    system::{Answer, System},
    systems,
};

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seed of histories and cases.
    pub seed: u64,
    /// Applications.
    pub apps: Vec<String>,
    /// Systems, where an experiment compares several.
    pub systems: Vec<String>,
    /// Cases per application.
    pub cases: usize,
    /// Windows of history.
    pub windows: usize,
    /// Whether experiments that can be shortened should be.
    pub is_quick: bool,
    /// Whether wrong answers are written to standard error, one line each.
    pub explains: bool,
}

/// One answer and how long it took.
pub struct Told {
    /// Which system, by its place in the list.
    pub system: usize,
    /// What it said.
    pub answer: Answer,
    /// How long it took to say.
    pub took: Duration,
}

/// One case with everybody's answers.
pub struct Answered {
    /// The case; its windows are dropped.
    pub case: Case,
    /// One per system.
    pub told: Vec<Told>,
}

impl Plan {
    /// The source of `app` under `conditions`.
    ///
    /// # Errors
    ///
    /// When there is no such application.
    pub fn source(&self, app: &str, conditions: &Conditions) -> Result<Box<dyn CaseSource>> {
        sources::open(app, self.seed, conditions).with_context(|| format!("no application is called {app}"))
    }

    /// Trains `names` on the history of `source`, side by side.
    ///
    /// # Errors
    ///
    /// When a system is unknown or cannot learn.
    pub fn trained(&self, source: &dyn CaseSource, names: &[String]) -> Result<Vec<Box<dyn System>>> {
        let history = source.history(self.windows);
        let slo = source.slo();
        let bar = progress(names.len(), &format!("{} learning", source.app()));
        let train = |place: usize| -> Result<Box<dyn System>> {
            let name = &names[place];
            let Some(mut system) = systems::make(name, derived(self.seed, 7)) else {
                bail!("no system is called {name}")
            };
            system
                .train(&history.windows, &slo, &history.labels)
                .with_context(|| format!("{name} on {}", source.app()))?;
            Ok(system)
        };
        let trained = parallel::map(names.len(), train, || bar.inc(1));
        bar.finish_and_clear();
        trained.into_iter().collect()
    }

    /// Every case of `source` before every one of `systems`. `change` alters what the systems see, and may refuse a case.
    pub fn answered(
        &self,
        source: &dyn CaseSource,
        systems: &[Box<dyn System>],
        change: impl Fn(Case) -> Option<Case> + Sync,
    ) -> Vec<Answered> {
        let slo = source.slo();
        let bar = progress(self.cases, source.app());
        let answer = |number: usize| {
            let mut case = change(source.case(number as u64)?)?;
            let told = systems.iter().enumerate().map(|(system, one)| {
                let begun = Instant::now();
                let answer = one.diagnose(&case.recent, &slo);
                Told { system, answer, took: begun.elapsed() }
            });
            let told: Vec<Told> = told.collect();
            case.recent = Vec::new();
            Some(Answered { case, told })
        };
        let answered: Vec<Answered> = parallel::map(self.cases, answer, || bar.inc(1)).into_iter().flatten().collect();
        bar.finish_and_clear();
        if self.explains {
            explain(source, systems, &answered);
        }
        answered
    }
}

/// Adds every answer to `tally`, with the median time it took, in milliseconds.
pub fn tally(app: &str, systems: &[Box<dyn System>], answered: &[Answered], tally: &mut Tally) {
    for one in answered {
        for told in &one.told {
            let name = systems[told.system].name();
            tally.add_answer(app, name, &one.case, &told.answer, None);
            tally.add(app, name, "all", "median_ms", told.took.as_secs_f64() * 1e3);
        }
    }
}

/// Writes what the first system got wrong.
fn explain(source: &dyn CaseSource, systems: &[Box<dyn System>], answered: &[Answered]) {
    for one in answered {
        let Some(told) = one.told.first() else { continue };
        let truth = &one.case.truth;
        let measures = super::measure::measures(truth, &told.answer);
        let is_good = |name: &str, value: f64| !matches!(name, "exact" | "right" | "resource") || value == 1.0;
        if measures.iter().all(|(name, value)| is_good(name, *value)) {
            continue;
        }
        let named: Vec<String> = told.answer.set.iter().map(|(name, of)| format!("{name} {of:?}")).collect();
        let injected: Vec<String> =
            truth.injected.iter().map(|i| format!("{} {} {:?}", i.service, i.kind, i.resource)).collect();
        eprintln!(
            "{} case {} {}: {:?}, severity {:.2}, injected {injected:?}, accepted {:?}, answered {:?} {named:?}, worlds {:?}",
            source.app(),
            one.case.number,
            systems[told.system].name(),
            truth.expected,
            truth.severity,
            truth.acceptable.iter().map(names).collect::<Vec<_>>(),
            told.answer.kind,
            truth.worlds.iter().map(|(set, us)| format!("{} {us:.0}", names(set))).collect::<Vec<_>>(),
        );
    }
}

fn names(set: &super::case::Set) -> String {
    set.iter().map(sage_common::ServiceId::as_str).collect::<Vec<_>>().join("+")
}

/// A bar on standard error; hidden when that is no terminal.
pub fn progress(count: usize, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(count as u64);
    if let Ok(style) = ProgressStyle::with_template("{msg:32} {bar:32} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

/// A table of `rows`: a line per (application, system), a column per (slice, measure) of `columns`.
pub fn table(rows: &[Row], columns: &[(&str, &str)]) -> String {
    let mut keys: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let key = (row.app.as_str(), row.system.as_str());
        let is_shown = columns.contains(&(row.slice.as_str(), row.measure.as_str()));
        if is_shown && !keys.contains(&key) {
            keys.push(key);
        }
    }
    let heads: Vec<String> = columns.iter().map(|(slice, measure)| format!("{slice} {measure}")).collect();
    let mut text = format!("{:20} {:24}", "application", "system");
    heads.iter().for_each(|head| text += &format!(" {head:>16}"));
    for (app, system) in keys {
        text += &format!("\n{app:20} {system:24}");
        for ((slice, measure), head) in columns.iter().zip(&heads) {
            let row = rows.iter().find(|row| {
                (row.app.as_str(), row.system.as_str()) == (app, system)
                    && row.slice == *slice
                    && row.measure == *measure
            });
            let cell = row.map_or("-".to_owned(), |row| format!("{:.3} ({})", row.value, row.n));
            text += &format!(" {cell:>width$}", width = head.len().max(16));
        }
    }
    text
}
