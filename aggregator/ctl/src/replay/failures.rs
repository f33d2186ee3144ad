//! Where requests began to fail: for faults that slow nothing. Pure.
//!
//! A failure that a service only passes on shows at its callee as well. So failures are settled like times:
//!
//! ```text
//!  own failures of a service = calls that it failed − failures of the calls that it made
//!  added by a service        = own failures per request of the entry, in the period − the median of training windows
//! ```
//!
//! Own failures lie below zero where a service makes up for its callees. A callee that training does not know is no
//! service that changed: who began to call it did, so its failures are its caller's.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::{observation::Observation, robust};
use sage_common::ServiceId;

/// Training windows with requests below which it is not known how many fail.
const WINDOWS_MIN: usize = 5;

/// Failed requests at the entry above normal, at least: fewer are chance.
const FAILED_MIN: f64 = 5.0;

/// Share of the requests that they are, at least: the most common objective is that 99 % succeed.
const SHARE_MIN: f64 = 0.01;

/// Standard deviations of a count above which it is not chance, among as many services as there are.
const SIGMAS: f64 = 4.0;

/// Interquartile ranges above the upper quartile up to which a healthy window is usual (Tukey's fence): up to a quarter of
/// training may hold bursts of failures that nobody noticed.
const FENCE: f64 = 1.5;

/// How sure failures alone can make: nothing is recomputed, and what is not instrumented fails unseen.
const P_MAX: f64 = 0.9;

/// Requests of one entry that fail as they did not in training.
#[derive(Clone, Debug, PartialEq)]
pub struct Failing {
    /// The entry.
    pub entry: ServiceId,
    /// Share of its requests that fails in training, the median over windows.
    pub normal: f64,
    /// The same in the period.
    pub observed: f64,
    /// How far that is above what healthy windows reach, in standard deviations of a count.
    pub sigmas: f64,
    /// Services that add failures, most first, with failures per request of the entry.
    pub added: Vec<(ServiceId, f64)>,
}

impl Failing {
    /// How sure it is of the first: its share of the failures that nobody's noise explains, and of those at the entry.
    pub fn p(&self) -> f64 {
        let all: f64 = self.added.iter().map(|(_, share)| share).sum();
        let Some((_, first)) = self.added.first() else { return 0.0 };
        P_MAX * (first / all).min(first / (self.observed - self.normal).max(1e-9)).clamp(0.0, 1.0)
    }
}

/// The one of `entries` whose requests fail clearly more often in `period` than in `training`, if any does.
pub fn failing(training: &[Observation], period: &[Observation], entries: &[ServiceId]) -> Option<Failing> {
    let known: BTreeSet<&ServiceId> = services(training).collect();
    let healthy: Vec<Counts<'_>> =
        training.iter().map(|window| Counts::of(std::slice::from_ref(window), &known)).collect();
    let seen = Counts::of(period, &known);
    let entries: BTreeSet<&ServiceId> = entries.iter().collect();
    let all = entries.into_iter().filter_map(|entry| at(entry, &healthy, &seen));
    all.max_by(|a, b| a.sigmas.total_cmp(&b.sigmas))
}

fn at(entry: &ServiceId, healthy: &[Counts<'_>], seen: &Counts<'_>) -> Option<Failing> {
    let requests = seen.calls(entry).filter(|calls| *calls > 0.0)?;
    let healthy: Vec<(&Counts<'_>, f64)> =
        healthy.iter().filter_map(|window| Some((window, window.calls(entry).filter(|calls| *calls > 0.0)?))).collect();
    let mut shares: Vec<f64> = healthy.iter().map(|(window, calls)| window.failed(entry) / calls).collect();
    if shares.len() < WINDOWS_MIN {
        return None;
    }
    let usual = fence(&mut shares);
    let normal = robust::median(&mut shares)?;
    let observed = seen.failed(entry) / requests;
    let above = (observed - usual) * requests;
    let sigmas = above / (usual * requests).max(1.0).sqrt();
    if above < FAILED_MIN || sigmas < SIGMAS || observed - normal < SHARE_MIN {
        return None;
    }
    let mut added: Vec<(ServiceId, f64)> = seen
        .own
        .keys()
        .filter_map(|service| Some(((*service).clone(), added(service, &healthy, seen, requests)?)))
        .collect();
    added.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    (!added.is_empty()).then(|| Failing { entry: entry.clone(), normal, observed, sigmas, added })
}

/// What `service` adds, where it is more than its own healthy windows reach and than chance.
fn added(service: &ServiceId, healthy: &[(&Counts<'_>, f64)], seen: &Counts<'_>, requests: f64) -> Option<f64> {
    let mut own: Vec<f64> = healthy.iter().map(|(window, calls)| window.own(service) / calls).collect();
    let usual = fence(&mut own);
    let share = seen.own(service) / requests - robust::median(&mut own)?;
    let is_clear = (share - usual) * requests >= SIGMAS * (usual * requests).max(1.0).sqrt();
    is_clear.then_some(share)
}

/// What a usual healthy window does not exceed; never below zero. `values` are sorted then.
fn fence(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let quartile = |quarters: usize| values.get(quarters * values.len() / 4).copied().unwrap_or(0.0);
    (quartile(3) + FENCE * (quartile(3) - quartile(1))).max(0.0)
}

fn services(windows: &[Observation]) -> impl Iterator<Item = &ServiceId> {
    windows.iter().flat_map(|window| &window.edges).map(|edge| &edge.key.callee)
}

/// Calls and failures of some windows.
struct Counts<'a> {
    served: BTreeMap<&'a ServiceId, (f64, f64)>, // calls and failures
    own: BTreeMap<&'a ServiceId, f64>,
}

impl<'a> Counts<'a> {
    fn of(windows: &'a [Observation], known: &BTreeSet<&ServiceId>) -> Self {
        let mut counts = Self { served: BTreeMap::new(), own: BTreeMap::new() };
        let is_counted = |calls: f64, errors: f64| calls.is_finite() && errors.is_finite() && calls > 0.0;
        for edge in windows.iter().flat_map(|window| &window.edges).filter(|edge| is_counted(edge.calls, edge.errors)) {
            let served = counts.served.entry(&edge.key.callee).or_default();
            *served = (served.0 + edge.calls, served.1 + edge.errors);
            if known.contains(&edge.key.callee) {
                *counts.own.entry(&edge.key.callee).or_default() += edge.errors;
                if let Some(caller) = &edge.key.caller {
                    *counts.own.entry(caller).or_default() -= edge.errors;
                }
            }
        }
        counts
    }

    fn calls(&self, service: &ServiceId) -> Option<f64> {
        self.served.get(service).map(|served| served.0)
    }

    fn failed(&self, service: &ServiceId) -> f64 {
        self.served.get(service).map_or(0.0, |served| served.1)
    }

    fn own(&self, service: &ServiceId) -> f64 {
        self.own.get(service).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::scenes::{Failing as _, edge, id, window};

    /// A shop that calls a search, which calls a table: requests, and failures of each.
    fn calls(shop: f64, search: f64, table: f64) -> Observation {
        window(vec![
            edge(None, "shop", 100.0, 1e3).failed(shop),
            edge(Some("shop"), "search", 200.0, 1e3).failed(search),
            edge(Some("search"), "table", 200.0, 1e3).failed(table),
        ])
    }

    fn healthy() -> Vec<Observation> {
        (0..12).map(|n| calls(f64::from(n % 3 == 0), f64::from(n % 3 == 0), 0.0)).collect()
    }

    fn found(period: Observation) -> Option<(String, f64)> {
        let found = failing(&healthy(), &[period], &[id("shop")])?;
        Some((found.added[0].0.to_string(), found.p()))
    }

    #[test]
    fn who_fails_itself_is_named_and_not_who_passes_it_on() {
        let (who, p) = found(calls(30.0, 32.0, 0.0)).expect("clear");
        assert_eq!(who, "search");
        assert!(p > 0.8, "{p}");
        assert_eq!(found(calls(30.0, 30.0, 30.0)).expect("clear").0, "table");
        assert_eq!(found(calls(30.0, 0.0, 0.0)).expect("clear").0, "shop");
    }

    #[test]
    fn failures_that_somebody_makes_up_for_break_nothing() {
        assert_eq!(found(calls(1.0, 30.0, 30.0)), None);
    }

    #[test]
    fn a_few_failures_are_chance() {
        assert_eq!(found(calls(4.0, 4.0, 4.0)), None);
        assert_eq!(found(calls(0.0, 0.0, 0.0)), None);
    }

    #[test]
    fn failures_of_a_new_callee_are_its_callers() {
        let mut period = calls(30.0, 30.0, 0.0);
        period.edges.push(edge(Some("search"), "nowhere", 30.0, 1e3).failed(30.0));
        assert_eq!(found(period).expect("clear").0, "search");
    }

    #[test]
    fn two_that_fail_alike_are_named_with_less_confidence() {
        let mut period = calls(40.0, 20.0, 0.0);
        period.edges.push(edge(Some("shop"), "cart", 100.0, 1e3).failed(20.0));
        let mut training = healthy();
        training.iter_mut().for_each(|window| window.edges.push(edge(Some("shop"), "cart", 100.0, 1e3)));
        let found = failing(&training, &[period], &[id("shop")]).expect("clear");
        assert!(found.p() < 0.5, "{found:?}");
    }
}
