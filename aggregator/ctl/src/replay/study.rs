//! Trains on healthy windows and answers for a period, even one in which no target was broken. Pure.
//!
//! Without targets, an entry operation's target lies above what a rare healthy window reaches, and the entry whose
//! percentile rose most against its own scatter is asked about. Where a period was degraded without breaking even that,
//! the target moves half way down to what is normal: an operator has said that something was wrong.

use sage_causal::{
    Model, ModelError, TrainOptions,
    observation::{EdgeKey, Observation},
    robust, train,
    verdict::{Resource, Verdict, VerdictKind},
};
use sage_common::{Micros, ServiceId, Slo};
use thiserror::Error;

use super::{
    accounts::{self, Added},
    failures::{self, Failing},
};

/// Healthy windows below which an entry's normal latency is not known.
const WINDOWS_MIN: usize = 5;

/// A target lies this far above what a rare healthy window reaches.
const MARGIN: f64 = 1.25;

/// Standard deviations above the median at which a healthy window is rare: one in a hundred.
const SIGMAS: f64 = 2.33;

/// Scatter of a percentile between healthy windows, at least, in logs.
const SCATTER_MIN: f64 = 0.05;

/// Rise of a percentile, in logs, below which there is nothing to explain however calm it is.
const RISE_MIN: f64 = 0.02;

/// Healthy stretches may hold an incident that nobody noticed: one in so many does not count.
const STRETCHES_PER_INCIDENT: usize = 10;

/// Stretches as long as a period that training is cut into at least, to see how much they differ.
const STRETCHES_MIN: usize = 4;

/// What is left of a confidence that something contradicts.
const DOUBT: f64 = 0.5;

/// P from which an answer is confident.
pub const CONFIDENT: f64 = 0.5;

/// Why there is no answer at all.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StudyError {
    /// Nothing to learn from.
    #[error("cannot learn what is normal")]
    Model(#[from] ModelError),
    /// Nothing is known of the time that was healthy.
    #[error("no window with latencies lies in the time to learn from; --train says when nothing was wrong")]
    NoTraining,
    /// Nothing is known of the time that is asked about.
    #[error("no window with latencies lies in the period")]
    NoPeriod,
    /// No entry operation has latencies both in training and in the period.
    #[error(
        "no entry operation has latencies both in the {training} training windows and in the {period} of the period"
    )]
    NoEntry {
        /// Windows to train on.
        training: usize,
        /// Windows of the period.
        period: usize,
    },
}

/// An answer for a period.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The objective that was asked about, with the target it was asked with.
    pub slo: Slo,
    /// Its percentile in training, the median over windows.
    pub normal: Micros,
    /// Its percentile in the period.
    pub observed: Micros,
    /// The verdict.
    pub verdict: Verdict,
    /// Services, the likeliest culprit first; the other end of a link that cannot be told apart right behind.
    pub ranking: Vec<ServiceId>,
    /// What of the first is at fault, if the verdict names anybody.
    pub resource: Option<Resource>,
    /// How sure: P(target met) had the named been normal; zero when nobody is named.
    pub p: f64,
    /// What services add to a request in the mean, most first: of recorded percentiles alone.
    pub added: Vec<Added>,
    /// Requests that fail as they did not in training, and where they begin to.
    pub failing: Option<Failing>,
    /// Whether the first is named by its failures and not by its time.
    pub is_by_failures: bool,
    /// Windows learnt from.
    pub training: usize,
    /// Windows of the period.
    pub period: usize,
}

/// How one entry did.
#[derive(Clone, Debug)]
struct Entry {
    slo: Slo,
    normal: f64,
    scatter: f64,
    observed: f64,
    chance: f64, // what healthy stretches of this length rise by
}

/// Answers for `period` by what is normal in `training`, both oldest first. Objectives with the largest possible target
/// are without one, and get one here.
///
/// # Errors
///
/// [`StudyError`].
pub fn answer(training: &[Observation], period: &[Observation], slos: &[Slo]) -> Result<Answer, StudyError> {
    let mut answer = by_time(training, period, slos)?;
    answer.rank_by_failures(training, period, slos);
    Ok(answer)
}

fn by_time(training: &[Observation], period: &[Observation], slos: &[Slo]) -> Result<Answer, StudyError> {
    if period.is_empty() {
        return Err(StudyError::NoPeriod);
    }
    if training.is_empty() {
        return Err(StudyError::NoTraining);
    }
    let none = || StudyError::NoEntry { training: training.len(), period: period.len() };
    let known: Vec<Entry> = slos.iter().filter_map(|slo| entry(slo, training, period, slos.len())).collect();
    let windows = || training.iter().chain(period);
    let (mut entries, others): (Vec<Entry>, Vec<Entry>) =
        known.into_iter().partition(|entry| is_entered(&entry.slo, windows()));
    if entries.is_empty() {
        entries = others;
    }
    let worst = entries.into_iter().max_by(|a, b| a.degradation().total_cmp(&b.degradation())).ok_or_else(none)?;
    let healthy = Slo { target: worst.target(), ..worst.slo.clone() };
    let (model, _) = train(training, std::slice::from_ref(&healthy), None, &TrainOptions::default())?;
    let asked = Slo { target: worst.asked(healthy.target), ..healthy };
    Ok(ask(&model, &worst, &asked, training.len(), period))
}

/// As [`answer`], of latencies that are recorded percentiles. Distributions composed of those are rough, and mean times
/// add up whatever the shape: services rank by what they [add](accounts::added) to a request, and who is named must be first there,
/// else nobody is named with confidence. Calls that nobody waits for are left out.
///
/// # Errors
///
/// [`StudyError`].
pub fn answer_by_means(training: &[Observation], period: &[Observation], slos: &[Slo]) -> Result<Answer, StudyError> {
    let all: Vec<&Observation> = training.iter().chain(period).collect();
    let unawaited = accounts::unawaited(&all);
    let (training, period) = (accounts::without(training, &unawaited), accounts::without(period, &unawaited));
    let mut answer = by_time(&training, &period, slos)?;
    answer.added = accounts::added(&training, &period, &answer.slo.service);
    answer.rank_by_means();
    answer.doubt_callers(&period);
    answer.rank_by_failures(&training, &period, slos);
    Ok(answer)
}

/// `slos` with a target each, from `training`; those whose normal latency is not known there are left out.
pub fn targets(training: &[Observation], slos: &[Slo]) -> Vec<Slo> {
    let healthy = slos.iter().filter_map(|slo| entry(slo, training, training, slos.len()));
    healthy.map(|entry| Slo { target: entry.target(), ..entry.slo }).collect()
}

fn ask(model: &Model, entry: &Entry, slo: &Slo, training: usize, period: &[Observation]) -> Answer {
    let verdict = model.diagnose_period(period, slo);
    let is_named = verdict.kind != VerdictKind::Unknown;
    let mut answer = Answer {
        ranking: ranking(&verdict, period),
        resource: verdict.culprits.first().map(|culprit| culprit.resource),
        p: if is_named { verdict.p_restored } else { 0.0 },
        normal: micros(entry.normal),
        observed: micros(entry.observed),
        added: Vec::new(),
        failing: None,
        is_by_failures: false,
        training,
        period: period.len(),
        verdict,
        slo: slo.clone(),
    };
    answer.weigh(&model.findings(period, slo));
    answer.doubt_chance(entry);
    answer
}

impl Answer {
    /// Those that add time to a request, most first: service and microseconds.
    pub fn adding(&self) -> impl Iterator<Item = (&ServiceId, f64)> {
        self.added.iter().filter(|own| own.us > 0.0).map(|own| (&own.service, own.us))
    }

    /// What usage says: where calls are too few for times to tell, a service that is slower and short of something comes
    /// before those that are only slower; and one of those is named with less confidence while another is short.
    fn weigh(&mut self, findings: &[(ServiceId, Resource, f64)]) {
        let short = |service: &ServiceId| {
            let found = findings.iter().find(|(own, ..)| own == service);
            found
                .filter(|(_, resource, p)| *resource != Resource::Software && *p >= CONFIDENT)
                .map(|(_, resource, _)| *resource)
        };
        let slower = self.verdict.candidates.iter().filter(|candidate| candidate.own_excess_us > 0.0);
        let scarce: Vec<ServiceId> =
            slower.map(|candidate| &candidate.service).filter(|service| short(service).is_some()).cloned().collect();
        if self.verdict.kind == VerdictKind::Unknown {
            self.put_first(scarce);
            let first = self.ranking.first().filter(|_| !self.verdict.candidates.is_empty());
            let found = first.and_then(|first| findings.iter().find(|(own, ..)| own == first));
            self.resource = found.map(|(_, resource, _)| *resource);
            return;
        }
        let is_software = self.verdict.culprits.iter().all(|culprit| culprit.resource == Resource::Software);
        let other = scarce.iter().find(|service| self.ranking.first().is_none_or(|first| first != *service)).cloned();
        let Some(other) = other.filter(|_| is_software) else { return };
        self.p *= DOUBT;
        self.verdict.missing.push(format!("{other} is slower too, and short of a resource"));
        if self.p < CONFIDENT {
            self.resource = short(&other);
            self.put_first(vec![other]);
            self.name_nobody();
        }
    }

    /// What healthy stretches rise by as well is no degradation: who would be to blame for it comes first still, and nobody
    /// is named.
    fn doubt_chance(&mut self, entry: &Entry) {
        let rise = entry.observed - entry.normal;
        if rise < entry.chance && self.verdict.kind != VerdictKind::Unknown {
            self.p = self.p.min(CONFIDENT * (rise / entry.chance).max(0.0));
            self.verdict.missing.push("nothing is degraded more than in healthy stretches".to_owned());
            self.name_nobody();
        }
    }

    /// Where failures tell more than times, those that add failures come first.
    fn rank_by_failures(&mut self, training: &[Observation], period: &[Observation], slos: &[Slo]) {
        let entries: Vec<ServiceId> = slos.iter().map(|slo| slo.service.clone()).collect();
        self.failing = failures::failing(training, period, &entries);
        let Some(failing) = &self.failing else { return };
        let first = &failing.added[0].0;
        let note = format!(
            "{:.1} % of the requests to {} fail, normally {:.1} %; {first} fails itself most",
            100.0 * failing.observed,
            failing.entry,
            100.0 * failing.normal
        );
        self.verdict.missing.push(note);
        if self.p >= failing.p() {
            return;
        }
        let ranking: Vec<ServiceId> = failing.added.iter().map(|(service, _)| service.clone()).collect();
        (self.p, self.resource, self.is_by_failures) = (failing.p(), Some(Resource::Software), true);
        self.name_nobody();
        self.put_first(ranking);
    }

    fn put_first(&mut self, mut ranking: Vec<ServiceId>) {
        let rest: Vec<ServiceId> = self.ranking.drain(..).filter(|service| !ranking.contains(service)).collect();
        ranking.extend(rest);
        self.ranking = ranking;
    }

    /// Takes back whom the model named; they stay among the candidates.
    fn name_nobody(&mut self) {
        self.verdict.kind = VerdictKind::Unknown;
        self.verdict.culprits.clear();
        self.verdict.path.clear();
    }

    /// Those that add time come first, in the order of how much.
    fn rank_by_means(&mut self) {
        let ranking: Vec<ServiceId> = self.adding().map(|(service, _)| service.clone()).collect();
        if let Some(first) = ranking.first().filter(|first| self.ranking.first() != Some(*first)) {
            let note = format!("by mean times {first} adds most, so there is no confident culprit");
            self.verdict.missing.push(note);
            self.p = 0.0;
            self.resource = None;
            self.name_nobody();
        }
        self.put_first(ranking);
    }

    /// Where nobody measured the calling side, what a network takes from a call looks as if the caller took it itself: only
    /// what a caller is short of tells the two apart.
    fn doubt_callers(&mut self, period: &[Observation]) {
        let Some(culprit) = self.verdict.culprits.first() else { return };
        let calls = period
            .iter()
            .flat_map(|window| &window.edges)
            .filter(|edge| edge.key.caller.as_ref() == Some(&culprit.service));
        let is_unseen = calls.clone().next().is_some()
            && calls.clone().all(|edge| edge.gap.is_none_or(|gap| gap.0.iter().all(|us| *us <= 1.0)));
        if is_unseen && culprit.resource == Resource::Software {
            let note = format!(
                "nobody measured how long {} waited for its calls: the network may have taken it",
                culprit.service
            );
            self.p *= DOUBT;
            self.verdict.missing.push(note);
        }
    }
}

impl Entry {
    /// Rise against its own scatter.
    fn degradation(&self) -> f64 {
        (self.observed - self.normal) / self.scatter
    }

    fn target(&self) -> Micros {
        if self.slo.target < Micros::new(u64::MAX) {
            return self.slo.target;
        }
        micros(self.normal + SIGMAS * self.scatter + MARGIN.ln())
    }

    /// The target to ask with: the healthy one where the period as a whole broke it, else one half way down to normal.
    fn asked(&self, healthy: Micros) -> Micros {
        let rise = self.observed - self.normal;
        if micros(self.observed) > healthy || rise < RISE_MIN {
            return healthy;
        }
        micros(self.normal + 0.5 * rise).min(healthy)
    }
}

fn entry(slo: &Slo, training: &[Observation], period: &[Observation], asked: usize) -> Option<Entry> {
    let healthy: Vec<f64> = latencies(training, slo).map(|(_, us)| us.ln()).collect();
    if healthy.len() < WINDOWS_MIN {
        return None;
    }
    let normal = robust::median(&mut healthy.clone())?;
    let mut apart: Vec<f64> = healthy.iter().map(|log| (log - normal).abs()).collect();
    let scatter = (1.4826 * robust::median(&mut apart)?).max(SCATTER_MIN);
    let (mut total, mut sum) = (0.0, 0.0);
    for (calls, us) in latencies(period, slo) {
        total += calls.max(1.0);
        sum += calls.max(1.0) * us.ln();
    }
    let chance = chance(&healthy, normal, scatter, latencies(period, slo).count(), asked);
    (total > 0.0).then(|| Entry { slo: slo.clone(), normal, scatter, observed: sum / total, chance })
}

/// Rise of the mean of `windows` windows, in logs, that is chance: what healthy stretches as long reach, and what their
/// scatter gives to the worst of `asked` percentiles that are looked at. The median `normal` and the `scatter` are of
/// `healthy`, which is in order of time.
fn chance(healthy: &[f64], normal: f64, scatter: f64, windows: usize, asked: usize) -> f64 {
    let length = windows.min(healthy.len() / STRETCHES_MIN).max(1);
    let rise = |stretch: &[f64]| stretch.iter().sum::<f64>() / length as f64 - normal;
    let rises: Vec<f64> = healthy.windows(length).map(rise).collect();
    let sigmas = (SIGMAS * SIGMAS + 2.0 * (asked.max(1) as f64).ln()).sqrt();
    RISE_MIN.max(upper(&rises)).max(sigmas * scatter / (windows.max(1) as f64).sqrt())
}

/// The largest of `values` without one in [`STRETCHES_PER_INCIDENT`]; zero where there are none, or where it is less.
pub(super) fn upper(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    values.get(values.len() / STRETCHES_PER_INCIDENT).map_or(0.0, |value| value.max(0.0))
}

/// Whether clients make most of the calls that `slo` covers. What other services call has roots as well, where the
/// beginning of a trace was lost; they are no entry.
fn is_entered<'a>(slo: &Slo, windows: impl Iterator<Item = &'a Observation>) -> bool {
    let covered =
        windows.flat_map(|window| &window.edges).filter(|edge| slo.covers(&edge.key.callee, &edge.key.operation));
    let (mut of_clients, mut of_services) = (0.0, 0.0);
    for edge in covered.filter(|edge| edge.calls.is_finite()) {
        *if edge.key.caller.is_none() { &mut of_clients } else { &mut of_services } += edge.calls;
    }
    of_clients >= of_services
}

/// Calls and latency of `slo` in the windows that have it.
fn latencies<'a>(windows: &'a [Observation], slo: &'a Slo) -> impl Iterator<Item = (f64, f64)> + 'a {
    let objectives = windows.iter().filter_map(|window| window.objectives.iter().find(|own| own.slo == slo.name));
    objectives
        .map(|own| (own.calls, own.latency_us))
        .filter(|(calls, us)| calls.is_finite() && us.is_finite() && *us > 0.0)
}

/// Services, the likeliest culprit first: those named with the other ends of their links, the candidates, then every callee.
pub fn ranking(verdict: &Verdict, period: &[Observation]) -> Vec<ServiceId> {
    let mut ranking: Vec<ServiceId> = Vec::new();
    let mut add = |service: &ServiceId| {
        if !ranking.contains(service) {
            ranking.push(service.clone());
        }
    };
    for culprit in &verdict.culprits {
        add(&culprit.service);
        if let Some(other) = &culprit.link_with {
            add(other);
        }
    }
    verdict.candidates.iter().for_each(|candidate| add(&candidate.service));
    let callee = |edge: &EdgeKey| edge.callee.clone();
    period.iter().flat_map(|window| &window.edges).for_each(|edge| add(&callee(&edge.key)));
    ranking
}

fn micros(log: f64) -> Micros {
    Micros::new(log.exp().round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_restless_and_the_shorter_the_larger_is_what_chance_gives() {
        let of = |spread: f64, windows: usize, asked: usize| {
            let healthy: Vec<f64> = (0..60).map(|n| spread * f64::from(n * 7 % 11 - 5)).collect();
            chance(&healthy, 0.0, 4.0 * spread, windows, asked)
        };
        assert_eq!(of(0.0, 10, 1), RISE_MIN);
        assert!(of(0.1, 10, 1) > of(0.05, 10, 1));
        assert!(of(0.1, 2, 1) > of(0.1, 10, 1));
        assert!(of(0.1, 10, 80) > of(0.1, 10, 1));
    }

    #[test]
    fn what_drifts_for_minutes_rises_by_chance_for_minutes() {
        let drifting: Vec<f64> = (0..60).map(|n| if n / 10 % 2 == 0 { 0.2 } else { -0.2 }).collect();
        assert!(chance(&drifting, 0.0, 0.05, 10, 1) > 0.15);
    }

    #[test]
    fn one_healthy_stretch_in_ten_may_be_an_incident() {
        let mut values = vec![1.0; 18];
        values.extend([9.0, 8.0]);
        assert_eq!(upper(&values), 1.0);
        assert_eq!(upper(&[]), 0.0);
        assert_eq!(upper(&[-1.0]), 0.0);
    }
}
