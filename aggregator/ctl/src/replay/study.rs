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

use super::accounts::{self, Added};

/// Healthy windows below which an entry's normal latency is not known.
const WINDOWS_MIN: usize = 5;

/// A target lies this far above what a rare healthy window reaches.
const MARGIN: f64 = 1.25;

/// Standard deviations above the median at which a healthy window is rare: one in a hundred.
const SIGMAS: f64 = 2.33;

/// Scatter of a percentile between healthy windows, at least, in logs.
const SCATTER_MIN: f64 = 0.05;

/// Rise of a percentile, in logs, below which there is nothing to explain.
const RISE_MIN: f64 = 0.02;

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
}

/// Answers for `period` by what is normal in `training`, both oldest first. Objectives with the largest possible target
/// are without one, and get one here.
///
/// # Errors
///
/// [`StudyError`].
pub fn answer(training: &[Observation], period: &[Observation], slos: &[Slo]) -> Result<Answer, StudyError> {
    if period.is_empty() {
        return Err(StudyError::NoPeriod);
    }
    if training.is_empty() {
        return Err(StudyError::NoTraining);
    }
    let none = || StudyError::NoEntry { training: training.len(), period: period.len() };
    let known: Vec<Entry> = slos.iter().filter_map(|slo| entry(slo, training, period)).collect();
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
    Ok(ask(&model, &worst, asked, training.len(), period))
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
    let mut answer = answer(&training, &period, slos)?;
    answer.added = accounts::added(&training, &period, &answer.slo.service);
    answer.rank_by_means();
    Ok(answer)
}

/// `slos` with a target each, from `training`; those whose normal latency is not known there are left out.
pub fn targets(training: &[Observation], slos: &[Slo]) -> Vec<Slo> {
    let healthy = slos.iter().filter_map(|slo| entry(slo, training, training));
    healthy.map(|entry| Slo { target: entry.target(), ..entry.slo }).collect()
}

fn ask(model: &Model, entry: &Entry, slo: Slo, training: usize, period: &[Observation]) -> Answer {
    let verdict = model.diagnose_period(period, &slo);
    let is_named = verdict.kind != VerdictKind::Unknown;
    Answer {
        ranking: ranking(&verdict, period),
        resource: verdict.culprits.first().map(|culprit| culprit.resource),
        p: if is_named { verdict.p_restored } else { 0.0 },
        normal: micros(entry.normal),
        observed: micros(entry.observed),
        added: Vec::new(),
        training,
        period: period.len(),
        slo,
        verdict,
    }
}

impl Answer {
    /// Those that add time to a request, most first: service and microseconds.
    pub fn adding(&self) -> impl Iterator<Item = (&ServiceId, f64)> {
        self.added.iter().filter(|own| own.us > 0.0).map(|own| (&own.service, own.us))
    }

    /// Those that add time come first, in the order of how much.
    fn rank_by_means(&mut self) {
        let mut ranking: Vec<ServiceId> = self.adding().map(|(service, _)| service.clone()).collect();
        if let Some(first) = ranking.first().filter(|first| self.ranking.first() != Some(*first)) {
            let note = format!("by mean times {first} adds most, so nobody is named with confidence");
            self.verdict.missing.push(note);
            self.p = 0.0;
            self.resource = None;
        }
        let rest: Vec<ServiceId> = self.ranking.drain(..).filter(|service| !ranking.contains(service)).collect();
        ranking.extend(rest);
        self.ranking = ranking;
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

fn entry(slo: &Slo, training: &[Observation], period: &[Observation]) -> Option<Entry> {
    let mut healthy: Vec<f64> = latencies(training, slo).map(|(_, us)| us.ln()).collect();
    if healthy.len() < WINDOWS_MIN {
        return None;
    }
    let normal = robust::median(&mut healthy)?;
    let mut apart: Vec<f64> = healthy.iter().map(|log| (log - normal).abs()).collect();
    let scatter = (1.4826 * robust::median(&mut apart)?).max(SCATTER_MIN);
    let (mut total, mut sum) = (0.0, 0.0);
    for (calls, us) in latencies(period, slo) {
        total += calls.max(1.0);
        sum += calls.max(1.0) * us.ln();
    }
    (total > 0.0).then(|| Entry { slo: slo.clone(), normal, scatter, observed: sum / total })
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
