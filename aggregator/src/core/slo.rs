//! Objectives against the history: met or violated, for how long, and what target a healthy history suggests.

use std::collections::{BTreeMap, VecDeque};

use sage_causal::{
    observation::{EdgeObservation, ObjectiveObservation},
    robust,
};
use sage_common::{LatencyQuantiles, Micros, OperationId, ServiceId, Slo};
use serde::{Deserialize, Serialize};

use crate::core::{merge, state::ClusterWindow};

/// Windows without a judgement that break a run: what was true before such a pause says nothing about now.
const PAUSE_MAX: u32 = 3;
/// Healthy windows below which no target is suggested.
const SUGGEST_WINDOWS_MIN: usize = 8;
/// A suggested target lies this far above what a rare healthy window reaches.
const SUGGEST_MARGIN: f64 = 1.25;
/// Standard deviations above the median at which a healthy window is rare: one in a hundred.
const SUGGEST_SIGMAS: f64 = 2.33;
/// Operations of one service that get a suggestion of their own, busiest first.
const SUGGEST_OPERATIONS_MAX: usize = 8;

/// How an objective stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SloState {
    /// Under the target.
    Met,
    /// Over the target.
    Violated,
    /// Too few calls to say.
    Idle,
    /// No window, or the nodes that know are missing.
    Unknown,
}

/// What `window` says about `slo`.
pub fn observed<'a>(slo: &Slo, window: &'a ClusterWindow) -> Option<&'a ObjectiveObservation> {
    window.observation.objectives.iter().find(|objective| objective.slo == slo.name)
}

/// How `slo` stands in `window`, with at least `calls_min` calls needed to judge.
pub fn judge(slo: &Slo, window: &ClusterWindow, calls_min: f64) -> SloState {
    match observed(slo, window) {
        None if window.observation.completeness < 1.0 => SloState::Unknown,
        None => SloState::Idle,
        Some(objective) if !objective.latency_us.is_finite() || objective.calls < calls_min => SloState::Idle,
        Some(objective) if objective.latency_us > slo.target.get() as f64 => SloState::Violated,
        Some(_) => SloState::Met,
    }
}

/// How an objective stands at the end of the history.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trail {
    /// In the newest window.
    pub now: SloState,
    /// The newest judged window's percentile.
    pub latency: Option<Micros>,
    /// Violated windows in a row up to now; short pauses do not count.
    pub violated: u32,
    /// Met windows in a row up to now, likewise.
    pub met: u32,
    /// Windows in a row up to now without a violation.
    pub quiet: u32,
}

/// Reads `history` (oldest first) backwards as far as the state of `slo` stays the same.
pub fn trail(slo: &Slo, history: &VecDeque<ClusterWindow>, calls_min: f64) -> Trail {
    let states = || history.iter().rev().map(|window| judge(slo, window, calls_min));
    let is_judged =
        |window: &&ClusterWindow| matches!(judge(slo, window, calls_min), SloState::Met | SloState::Violated);
    let newest = history.iter().rev().find(is_judged).and_then(|window| observed(slo, window));
    Trail {
        now: states().next().unwrap_or(SloState::Unknown),
        latency: newest.map(|objective| Micros::new(objective.latency_us as u64)),
        violated: run(states(), SloState::Violated),
        met: run(states(), SloState::Met),
        quiet: states().take_while(|state| *state != SloState::Violated).fold(0, |count, _| count + 1),
    }
}

/// How many of `states` (newest first) are `wanted` before the first that is the opposite, or a long pause.
fn run(states: impl Iterator<Item = SloState>, wanted: SloState) -> u32 {
    let (mut count, mut pause) = (0, 0);
    for state in states {
        match state {
            _ if state == wanted => (count, pause) = (count + 1, 0),
            SloState::Met | SloState::Violated => break,
            SloState::Idle | SloState::Unknown if pause == PAUSE_MAX => break,
            SloState::Idle | SloState::Unknown => pause += 1,
        }
    }
    count
}

/// Whether the model may learn from `window` as healthy: undisturbed, with traffic, and no objective missed.
pub fn is_healthy(slos: &[Slo], window: &ClusterWindow, calls_min: f64) -> bool {
    if window.is_disturbed || window.observation.completeness < 0.5 {
        return false;
    }
    let mut states = slos.iter().map(|slo| judge(slo, window, calls_min));
    if slos.is_empty() {
        return window.observation.edges.iter().map(|edge| edge.calls).sum::<f64>() >= calls_min;
    }
    let is_any_met = states.clone().any(|state| state == SloState::Met);
    is_any_met && states.all(|state| state != SloState::Violated)
}

/// A target that healthy history supports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Suggestion {
    /// A name for it.
    pub name: String,
    /// The entry service.
    pub service: ServiceId,
    /// One operation of it; all of them when absent.
    pub operation: Option<OperationId>,
    /// The percentile.
    pub percentile: f64,
    /// The target.
    pub target: Micros,
    /// Windows it is based on.
    pub windows: usize,
    /// How it was found, for people.
    pub basis: String,
}

/// Targets for everything that clients call, from the healthy windows of `history`.
pub fn suggest<'a>(
    percentile: f64,
    slos: &[Slo],
    history: impl Iterator<Item = &'a ClusterWindow>,
    calls_min: f64,
) -> Vec<Suggestion> {
    let mut found = Found::new();
    for window in history.filter(|window| is_healthy(slos, window, calls_min)) {
        let roots = || window.observation.edges.iter().filter(|edge| edge.key.caller.is_none());
        let mut services: BTreeMap<&ServiceId, Vec<&EdgeObservation>> = BTreeMap::new();
        for edge in roots() {
            services.entry(&edge.key.callee).or_default().push(edge);
            note(&mut found, &edge.key.callee, Some(&edge.key.operation), &[edge], percentile, calls_min);
        }
        for (service, edges) in services {
            note(&mut found, service, None, &edges, percentile, calls_min);
        }
    }
    let enough = found.into_iter().filter(|(_, (_, values))| values.len() >= SUGGEST_WINDOWS_MIN);
    choose(enough.collect(), percentile)
}

type Entry = (ServiceId, Option<OperationId>);
/// Calls, and the percentile of each window.
type Found = BTreeMap<Entry, (f64, Vec<f64>)>;

fn note(
    found: &mut Found,
    service: &ServiceId,
    operation: Option<&OperationId>,
    edges: &[&EdgeObservation],
    percentile: f64,
    calls_min: f64,
) {
    let calls: f64 = edges.iter().map(|edge| edge.calls).sum();
    let parts = edges.iter().filter_map(|edge| Some((edge.calls, edge.server.as_ref().or(edge.client.as_ref())?)));
    let merged: Option<LatencyQuantiles> = merge::mixture(parts);
    if let (true, Some(merged)) = (calls >= calls_min, merged) {
        let entry = found.entry((service.clone(), operation.cloned())).or_default();
        entry.0 += calls;
        entry.1.push(f64::from(merged.at(percentile)));
    }
}

fn choose(found: Found, percentile: f64) -> Vec<Suggestion> {
    let mut list: Vec<(Entry, (f64, Vec<f64>))> = found.into_iter().collect();
    // The whole service first, then its operations by traffic.
    list.sort_by(|((service_a, op_a), (calls_a, _)), ((service_b, op_b), (calls_b, _))| {
        (service_a, op_a.is_some()).cmp(&(service_b, op_b.is_some())).then(calls_b.total_cmp(calls_a))
    });
    let mut per_service: BTreeMap<ServiceId, usize> = BTreeMap::new();
    list.retain(|((service, operation), _)| {
        let count = per_service.entry(service.clone()).or_default();
        *count += usize::from(operation.is_some());
        operation.is_none() || *count <= SUGGEST_OPERATIONS_MAX
    });
    list.into_iter()
        .map(|((service, operation), (_, values))| suggestion(service, operation, &values, percentile))
        .collect()
}

fn suggestion(service: ServiceId, operation: Option<OperationId>, values: &[f64], percentile: f64) -> Suggestion {
    let (typical, rare) = healthy_level(values);
    let name = match &operation {
        Some(operation) => ServiceId::sanitized(&format!("{service}-{operation}").replace([' ', '/'], "-")).to_string(),
        None => service.to_string(),
    };
    let basis = format!(
        "the median of {} healthy windows is {}, one in a hundred reaches {}; {:.0} % above that, rounded up",
        values.len(),
        Micros::new(typical as u64),
        Micros::new(rare as u64),
        (SUGGEST_MARGIN - 1.0) * 100.0,
    );
    let target = round_up(rare * SUGGEST_MARGIN);
    Suggestion { name, service, operation, percentile, target, windows: values.len(), basis }
}

/// The median of what windows reached, and what one in a hundred reaches by their log-normal spread. Both from medians,
/// so that a few windows in which something else was wrong do not loosen the target.
fn healthy_level(values: &[f64]) -> (f64, f64) {
    let mut logs: Vec<f64> = values.iter().map(|value| value.max(1.0).ln()).collect();
    let middle = robust::median(&mut logs).unwrap_or(0.0);
    let sigma = robust::mad_scale(&logs, middle, 0.0);
    (middle.exp(), (middle + SUGGEST_SIGMAS * sigma).exp())
}

/// Up to two significant digits.
fn round_up(micros: f64) -> Micros {
    let micros = micros.max(10.0);
    let unit = 10_f64.powf(micros.log10().floor() - 1.0);
    Micros::new(((micros / unit).ceil() * unit) as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sage_causal::observation::{EdgeKey, Observation};
    use sage_common::{LATENCY_PERCENTILES, Timestamp};

    use super::*;
    use crate::core::testing::slo;

    /// A window whose percentile is `latency_ms` over `calls`; without an objective when there are none.
    fn window(close: u64, latency_ms: f64, calls: f64) -> ClusterWindow {
        let slo = slo();
        let quantiles = LatencyQuantiles(LATENCY_PERCENTILES.map(|p| (latency_ms * 1e3 * p / 99.0) as f32));
        let key = EdgeKey { caller: None, callee: slo.service, operation: OperationId::sanitized("GET /") };
        let edge = EdgeObservation {
            key,
            calls,
            errors: 0.0,
            client: None,
            server: Some(quantiles),
            gap: None,
            self_time: None,
        };
        let objective = ObjectiveObservation { slo: slo.name, calls, latency_us: latency_ms * 1e3 };
        let observation = Observation {
            start: Timestamp::from_micros(close * 10_000_000),
            length: Micros::from_secs(10),
            edges: vec![edge],
            services: Vec::new(),
            traces: Vec::new(),
            skeletons: Vec::new(),
            objectives: if calls > 0.0 { vec![objective] } else { Vec::new() },
            offered_per_s: 0.0,
            completeness: 1.0,
            trace_share: 1.0,
        };
        let arrived = Timestamp::from_micros(0);
        ClusterWindow { close, arrived, observation: Arc::new(observation), is_disturbed: false }
    }

    fn history(list: &[(f64, f64)]) -> VecDeque<ClusterWindow> {
        (1..).zip(list).map(|(close, (latency, calls))| window(close, *latency, *calls)).collect()
    }

    fn counts(list: &[(f64, f64)]) -> (u32, u32, u32) {
        let Trail { violated, met, quiet, .. } = trail(&slo(), &history(list), 50.0);
        (violated, met, quiet)
    }

    const GOOD: (f64, f64) = (20.0, 100.0);
    const BAD: (f64, f64) = (90.0, 100.0);
    const IDLE: (f64, f64) = (90.0, 3.0);
    const NONE: (f64, f64) = (0.0, 0.0);

    #[test]
    fn runs_end_at_the_opposite_and_short_pauses_do_not_count() {
        assert_eq!(counts(&[GOOD, BAD, BAD]), (2, 0, 0));
        assert_eq!(counts(&[BAD, IDLE, NONE, BAD]), (2, 0, 0));
        assert_eq!(counts(&[BAD, GOOD, IDLE, GOOD]), (0, 2, 3));
        assert_eq!(counts(&[BAD, IDLE, IDLE, NONE, NONE, BAD]), (1, 0, 0), "a long pause");
        assert_eq!(counts(&[]), (0, 0, 0));
    }

    #[test]
    fn too_few_calls_are_idle_and_a_missing_node_is_unknown() {
        let state = |(latency, calls)| judge(&slo(), &window(1, latency, calls), 50.0);
        assert_eq!(
            [GOOD, BAD, IDLE, NONE].map(state),
            [SloState::Met, SloState::Violated, SloState::Idle, SloState::Idle]
        );
        let mut partial = window(1, 0.0, 0.0);
        Arc::make_mut(&mut partial.observation).completeness = 0.5;
        assert_eq!(judge(&slo(), &partial, 50.0), SloState::Unknown);
        assert_eq!(judge(&slo(), &window(1, f64::NAN, 100.0), 50.0), SloState::Idle);
    }

    #[test]
    fn healthy_is_undisturbed_busy_and_met() {
        let slos = [slo()];
        assert!(is_healthy(&slos, &window(1, 20.0, 100.0), 50.0));
        assert!(!is_healthy(&slos, &window(1, 90.0, 100.0), 50.0));
        assert!(!is_healthy(&slos, &window(1, 20.0, 3.0), 50.0));
        assert!(!is_healthy(&slos, &ClusterWindow { is_disturbed: true, ..window(1, 20.0, 100.0) }, 50.0));
        assert!(is_healthy(&[], &window(1, 90.0, 100.0), 50.0), "without objectives traffic is enough");
    }

    #[test]
    fn a_suggested_target_lies_above_what_healthy_windows_reach() {
        let list: Vec<(f64, f64)> = (0..40).map(|n| (20.0 + f64::from(n % 10), 100.0)).chain([BAD; 5]).collect();
        let found = suggest(99.0, &[slo()], history(&list).iter(), 50.0);
        assert_eq!(found.len(), 2, "the service and its one operation");
        assert_eq!((found[0].operation.as_ref(), found[0].windows), (None, 40));
        let target = found[0].target.get() as f64 / 1e3;
        assert!((29.0..60.0).contains(&target), "{target} ms, and no healthy window reaches more than 29 ms");
        assert!(suggest(99.0, &[], history(&[GOOD; 5]).iter(), 50.0).is_empty(), "too short a history");
    }

    #[test]
    fn a_few_bad_windows_do_not_loosen_a_suggested_target() {
        let calm: Vec<(f64, f64)> = (0..12).map(|n| (20.0 + f64::from(n % 5), 100.0)).collect();
        let stormy: Vec<(f64, f64)> = calm.iter().copied().chain([(900.0, 100.0); 3]).collect();
        let target = |list: &[(f64, f64)]| suggest(99.0, &[], history(list).iter(), 50.0)[0].target.get() as f64;
        assert!(target(&stormy) < 1.5 * target(&calm), "{} against {}", target(&stormy), target(&calm));
    }
}
