//! Where an entry's time goes, by the mean times of services: for recorded percentiles, where no trace tells. Pure.
//!
//! Percentiles of callees do not add up to those of their callers. Means do, so they can be settled like accounts:
//!
//! ```text
//!  own time of a service = time in which it answered − time of the calls it awaited
//!  added by a service    = own time per request of the entry, in the period − the median of training windows
//! ```
//!
//! An own time may lie below zero: calls ran in parallel, or a callee's clock ran on after its answer. It does so in training
//! as well, and drops out of the difference; cutting it off at zero would hide a change below.
//!
//! A call graph does not say who waits. A caller waits for no call that takes longer than the caller itself does: if a
//! share s of its requests makes a call, and the median call takes t, then a share s / 2 of the caller's requests takes t or
//! more. Where the caller's percentiles say otherwise, it does not await the call.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::{
    observation::{EdgeObservation, Observation},
    robust,
};
use sage_common::{LATENCY_PERCENTILES, LatencyQuantiles, ServiceId};

/// Training windows with a service below which its normal own time is not known.
const WINDOWS_MIN: usize = 5;

/// A caller and its callee.
pub type Link = (ServiceId, ServiceId);

/// What a service adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Added {
    /// Which service.
    pub service: ServiceId,
    /// Own time per request of the entry above what is normal, microseconds; below zero where it takes less.
    pub us: f64,
}

/// What every service that a request at `entry` waits for adds in `period`, most first. Services that training does not
/// know are left out.
pub fn added(training: &[Observation], period: &[Observation], entry: &ServiceId) -> Vec<Added> {
    let awaited = reached(training.iter().chain(period), entry);
    let normal = normal(training, entry);
    let (mut entered, mut spent) = (0.0, BTreeMap::<ServiceId, f64>::new());
    for books in period.iter().map(Books::of) {
        entered += books.calls(entry);
        for (service, us) in books.own() {
            *spent.entry(service.clone()).or_default() += us;
        }
    }
    if entered <= 0.0 {
        return Vec::new();
    }
    let spent = spent.into_iter().filter(|(service, _)| awaited.contains(service));
    let mut all: Vec<Added> = spent
        .filter_map(|(service, us)| {
            let us = us / entered - normal.get(&service)?;
            Some(Added { service, us })
        })
        .collect();
    all.sort_by(|a, b| b.us.total_cmp(&a.us));
    all
}

/// Calls that nobody waits for, by what `windows` say of both sides.
pub fn unawaited(windows: &[&Observation]) -> BTreeSet<Link> {
    let mut links: BTreeMap<Link, Both> = BTreeMap::new();
    for window in windows {
        let books = Books::of(window);
        for edge in &window.edges {
            let Some(caller) = &edge.key.caller else { continue };
            let (Some(own), Some(call)) = (books.services.get(caller), quantiles(edge)) else { continue };
            let both = links.entry((caller.clone(), edge.key.callee.clone())).or_default();
            both.caller_calls += own.calls;
            both.calls += edge.calls;
            both.caller.push(own.quantiles);
            both.medians.push(f64::from(call.at(50.0)));
        }
    }
    links.into_iter().filter_map(|(link, both)| both.is_contradicted().then_some(link)).collect()
}

/// `windows` without the calls of `links`.
pub fn without(windows: &[Observation], links: &BTreeSet<Link>) -> Vec<Observation> {
    let is_kept = |caller: Option<&ServiceId>, callee: &ServiceId| {
        caller.is_none_or(|caller| !links.contains(&(caller.clone(), callee.clone())))
    };
    let mut kept = windows.to_vec();
    for window in &mut kept {
        window.edges.retain(|edge| is_kept(edge.key.caller.as_ref(), &edge.key.callee));
        for branch in window.skeletons.iter_mut().flat_map(|skeleton| skeleton.groups.iter_mut().flatten()) {
            branch.retain(|call| is_kept(call.caller.as_ref(), &call.callee));
        }
        for skeleton in &mut window.skeletons {
            skeleton.groups.iter_mut().for_each(|group| group.retain(|branch| !branch.is_empty()));
            skeleton.groups.retain(|group| !group.is_empty());
        }
    }
    kept
}

/// Both sides of a link over several windows.
#[derive(Default)]
struct Both {
    caller_calls: f64,
    calls: f64,
    caller: Vec<LatencyQuantiles>,
    medians: Vec<f64>,
}

impl Both {
    fn is_contradicted(&self) -> bool {
        let share = (self.calls / self.caller_calls.max(1e-9)).min(1.0);
        let mut tops: Vec<f64> = self
            .caller
            .iter()
            .filter_map(|own| highest_known(own).filter(|(p, _)| 0.5 * share > 1.0 - p / 100.0))
            .map(|(_, us)| us)
            .collect();
        // Windows whose percentiles reach high enough; where most do not, nothing can be said.
        let is_said = 2 * tops.len() > self.caller.len();
        let (Some(top), Some(call)) = (robust::median(&mut tops), robust::median(&mut self.medians.clone())) else {
            return false;
        };
        is_said && top < call
    }
}

/// The highest percentile that was measured: recorded ones go on flat beyond it.
fn highest_known(quantiles: &LatencyQuantiles) -> Option<(f64, f64)> {
    let last = *quantiles.0.last()?;
    let at = quantiles.0.iter().position(|us| *us >= last)?;
    Some((LATENCY_PERCENTILES[at], f64::from(last)))
}

/// One window's calls and times.
struct Books<'a> {
    services: BTreeMap<&'a ServiceId, Answered>,
    awaited: BTreeMap<&'a ServiceId, f64>, // microseconds of a caller's calls
}

struct Answered {
    calls: f64,
    quantiles: LatencyQuantiles,
    us: f64,
}

impl<'a> Books<'a> {
    fn of(window: &'a Observation) -> Self {
        let mut books = Self { services: BTreeMap::new(), awaited: BTreeMap::new() };
        for edge in window.edges.iter().filter(|edge| edge.calls.is_finite() && edge.calls > 0.0) {
            if let Some(quantiles) = edge.server.or(edge.client) {
                let empty = || Answered { calls: 0.0, quantiles, us: 0.0 };
                let answered = books.services.entry(&edge.key.callee).or_insert_with(empty);
                answered.calls += edge.calls;
                answered.us += edge.calls * mean(&quantiles);
            }
            if let (Some(caller), Some(call)) = (&edge.key.caller, quantiles(edge)) {
                *books.awaited.entry(caller).or_default() += edge.calls * mean(&call);
            }
        }
        books
    }

    fn calls(&self, service: &ServiceId) -> f64 {
        self.services.get(service).map_or(0.0, |answered| answered.calls)
    }

    /// Own time of every service in the window, microseconds.
    fn own(&self) -> impl Iterator<Item = (&'a ServiceId, f64)> {
        let awaited = |service: &ServiceId| self.awaited.get(service).copied().unwrap_or(0.0);
        self.services.iter().map(move |(service, answered)| (*service, answered.us - awaited(service)))
    }
}

/// As the caller saw it, else as the callee did.
fn quantiles(edge: &EdgeObservation) -> Option<LatencyQuantiles> {
    edge.client.or(edge.server)
}

/// Own time per request of `entry`, the median over the windows that have both.
fn normal(training: &[Observation], entry: &ServiceId) -> BTreeMap<ServiceId, f64> {
    let mut seen: BTreeMap<ServiceId, Vec<f64>> = BTreeMap::new();
    for books in training.iter().map(Books::of) {
        let entered = books.calls(entry);
        for (service, us) in books.own().filter(|_| entered > 0.0) {
            seen.entry(service.clone()).or_default().push(us / entered);
        }
    }
    let known = seen.into_iter().filter(|(_, values)| values.len() >= WINDOWS_MIN);
    known.filter_map(|(service, mut values)| Some((service, robust::median(&mut values)?))).collect()
}

/// `entry` and everything that it calls, directly or not.
fn reached<'a>(windows: impl Iterator<Item = &'a Observation>, entry: &ServiceId) -> BTreeSet<ServiceId> {
    let mut callees: BTreeMap<&ServiceId, BTreeSet<&ServiceId>> = BTreeMap::new();
    for key in windows.flat_map(|window| &window.edges).map(|edge| &edge.key) {
        if let Some(caller) = &key.caller {
            callees.entry(caller).or_default().insert(&key.callee);
        }
    }
    let mut reached = BTreeSet::from([entry.clone()]);
    let mut open = vec![entry];
    // Ends: every service is opened once.
    while let Some(service) = open.pop() {
        for callee in callees.get(service).into_iter().flatten() {
            if reached.insert((*callee).clone()) {
                open.push(callee);
            }
        }
    }
    reached
}

/// The mean of a duration with these percentiles, straight between them and flat below the first, microseconds.
fn mean(quantiles: &LatencyQuantiles) -> f64 {
    let (mut sum, mut below) = (0.0, (0.0, f64::from(quantiles.0[0])));
    for (percentile, us) in LATENCY_PERCENTILES.into_iter().zip(quantiles.0.map(f64::from)) {
        sum += (percentile - below.0) / 100.0 * 0.5 * (us + below.1);
        below = (percentile, us);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::scenes::{self, id, shaped};

    fn link(caller: &str, callee: &str) -> Link {
        (id(caller), id(callee))
    }

    /// Calls with milliseconds up to the 98th percentile, and from the 99th on.
    fn window(calls: &[(&str, &str, f64, (f64, f64))]) -> Observation {
        let edge = |(caller, callee, calls, (most, rare)): &(&str, &str, f64, (f64, f64))| {
            let caller = (!caller.is_empty()).then_some(*caller);
            shaped(caller, callee, *calls, |p| 1e3 * if p < 99.0 { most } else { rare })
        };
        scenes::window(calls.iter().map(edge).collect())
    }

    fn first(training: &[Observation], period: &[Observation]) -> (String, f64) {
        let all = added(training, period, &id("shop"));
        (all[0].service.to_string(), all[0].us)
    }

    fn healthy() -> Vec<Observation> {
        let calm = [
            ("", "shop", 100.0, (50.0, 400.0)),
            ("shop", "search", 200.0, (5.0, 50.0)),
            ("search", "table", 200.0, (4.0, 300.0)),
        ];
        vec![window(&calm); WINDOWS_MIN]
    }

    #[test]
    fn rare_delays_are_charged_to_the_service_that_makes_them_though_its_callee_has_the_longer_tail() {
        let slow = [
            ("", "shop", 100.0, (50.0, 1_400.0)),
            ("shop", "search", 200.0, (5.0, 550.0)),
            ("search", "table", 200.0, (4.0, 310.0)),
        ];
        let (service, us) = first(&healthy(), &[window(&slow)]);
        assert_eq!(service, "search");
        // Half a second in one and a half of a hundred calls, of which each request makes two; the table took a little of it.
        assert!((us - 2.0 * 0.015 * 490e3).abs() < 500.0, "{us}");
    }

    #[test]
    fn who_waits_for_a_slow_callee_adds_nothing() {
        let slow = [
            ("", "shop", 100.0, (90.0, 440.0)),
            ("shop", "search", 200.0, (25.0, 70.0)),
            ("search", "table", 200.0, (24.0, 320.0)),
        ];
        let all = added(&healthy(), &[window(&slow)], &id("shop"));
        assert_eq!(all[0].service, id("table"));
        assert!(all[1..].iter().all(|other| other.us.abs() < 1.0), "{all:?}");
    }

    #[test]
    fn more_work_of_a_service_that_the_entry_does_not_reach_adds_nothing() {
        let mut calls = vec![("", "shop", 100.0, (50.0, 400.0)), ("", "batch", 10.0, (1.0, 1.0))];
        let training = vec![window(&calls); WINDOWS_MIN];
        calls[1].3 = (9_000.0, 9_000.0);
        let all = added(&training, &[window(&calls)], &id("shop"));
        assert_eq!(all, [Added { service: id("shop"), us: 0.0 }]);
    }

    #[test]
    fn nothing_is_said_of_services_that_training_does_not_know_or_without_requests() {
        let new = [("", "shop", 100.0, (50.0, 400.0)), ("shop", "new", 100.0, (5.0, 5.0))];
        let all = added(&healthy(), &[window(&new)], &id("shop"));
        assert_eq!(all.iter().map(|own| own.service.as_str()).collect::<Vec<_>>(), ["shop"]);
        assert!(added(&healthy(), &[], &id("shop")).is_empty());
        assert!(added(&healthy()[1..], &[window(&new)], &id("shop")).is_empty(), "too few windows");
    }

    #[test]
    fn a_call_that_takes_longer_than_its_caller_is_not_awaited() {
        let calls = [
            ("", "shop", 100.0, (50.0, 400.0)),
            ("shop", "workflow", 3.0, (3_000.0, 3_000.0)),
            ("shop", "search", 200.0, (5.0, 900.0)),
        ];
        let windows = [window(&calls)];
        let found = unawaited(&windows.each_ref());
        assert_eq!(found, BTreeSet::from([link("shop", "workflow")]));
        let kept = without(&windows, &found);
        assert_eq!(kept[0].edges.len(), 2);
        assert!(!reached(kept.iter(), &id("shop")).contains(&id("workflow")));
    }

    #[test]
    fn calls_rarer_than_the_percentiles_reach_may_be_awaited() {
        // One request in a hundred and twenty: the 99th percentile does not show it.
        let calls = [("", "shop", 120.0, (50.0, 400.0)), ("shop", "workflow", 1.0, (3_000.0, 3_000.0))];
        assert_eq!(unawaited(&[&window(&calls)]), BTreeSet::new());
    }

    #[test]
    fn the_mean_is_that_of_straight_lines_between_percentiles() {
        assert!((mean(&LatencyQuantiles([7.0; LATENCY_PERCENTILES.len()])) - 7.0).abs() < 1e-9);
        let straight = LatencyQuantiles(LATENCY_PERCENTILES.map(|p| p as f32));
        // Flat below the tenth percentile, which adds half a tenth of ten.
        assert!((mean(&straight) - 50.5).abs() < 1e-6);
    }
}
