//! What changed since a model was learnt: the graph, or how a service behaves.
//!
//! | change  | test                                                                                                     |
//! |---------|----------------------------------------------------------------------------------------------------------|
//! | new     | calls to a service without normals in three windows                                                      |
//! | calls   | an edge in three windows that was not learnt; a learnt one without a call where twenty were due           |
//! | step    | the newest three windows that met the target lie at one level, on the same side, four robust standard deviations and 12 % from normal |
//! | drift   | the median of the newest forty windows lies one and a half robust standard deviations and 8 % from normal |
//! | young   | a normal of fewer than 120 windows could have twice as many                                              |
//! | accepted| an operator said so                                                                                      |
//!
//! Distance is the mean over p25 to p95 of ln observed - ln normal, of self times and of gaps, each weighted by calls.
//! A new level begins where windows are nearer to it than to the old one.

use std::collections::{BTreeMap, BTreeSet};

use sage_common::{MetricGroup, ServiceId, Timestamp};

use crate::{
    curve::Curve,
    frame::{EdgeFrame, Frame},
    graph::Graph,
    model::Model,
    normals::{Expected, ExpectedEdge},
    observation::EdgeKey,
    resource::{GROUPS, SCORE_MIN, group_score},
    robust::{mad_scale, median},
    scene::{CALLS_MIN, scores},
};

/// Windows that must agree on a new level, or show a new edge.
pub const STEP_WINDOWS: usize = 3;

/// Distance of a new level, in robust standard deviations of a window's level.
const STEP_MIN_SD: f64 = 4.0;

/// Distance of a new level, in logs.
const STEP_MIN: f64 = 0.12;

/// The windows at a new level may differ by this share of its distance: a backlog that drains is no level.
const STEP_SPREAD_MAX: f64 = 0.5;

/// Windows over which a drift is looked for.
const DRIFT_WINDOWS: usize = 40;

/// Distance of their median, in robust standard deviations of a window's level.
const DRIFT_MIN_SD: f64 = 1.5;

/// Distance of their median, in logs.
const DRIFT_MIN: f64 = 0.08;

/// Standard deviation of a window's level below which none is believed, in logs.
const LEVEL_SD_FLOOR: f64 = 0.02;

/// Levels older than the model from which that standard deviation is taken, at least.
const LEVEL_WINDOWS_MIN: usize = 8;

/// That standard deviation where there are fewer.
const LEVEL_SD_DEFAULT: f64 = 0.08;

/// A change of a part below this many microseconds is nobody's business.
const LEVEL_MIN_US: f64 = 30.0;

/// Calls that were due on an edge for its silence to mean something.
const SILENT_CALLS_MIN: f64 = 20.0;

/// Windows from which a normal is no longer young.
pub const YOUNG_MAX: usize = 120;

/// Grid indices of p25 to p95: where a level is taken; the far tail of one window is chance.
const LEVEL_BAND: std::ops::Range<usize> = 1..7;

/// What kind of change.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ChangeKind {
    /// An operator said that this is how the service is now.
    Accepted,
    /// It was not there.
    NewService,
    /// It is called by others, or calls others, than before.
    Calls,
    /// Its self time or its gaps are at another level.
    Step,
    /// They are creeping away.
    Drift,
    /// Its normal rests on few windows, and there are more by now.
    Young,
}

/// One change of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Whose.
    pub service: ServiceId,
    /// Which.
    pub kind: ChangeKind,
    /// Start of the first window of its new normal; `None` where older windows still speak for it.
    pub since: Option<Timestamp>,
    /// Resource that is scarcer than it was where the service runs, when it is at another level: a level that has this cause
    /// passes with it.
    pub pressed: Option<MetricGroup>,
    /// For people.
    pub detail: String,
}

impl Change {
    /// Whether the services above it must learn again, too.
    pub fn reaches_ancestors(&self) -> bool {
        self.kind != ChangeKind::Young
    }
}

/// All changes, the graph's and the services'.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// At most one of each kind per service, ordered by service.
    pub all: Vec<Change>,
    /// Edges that were not learnt and are to be.
    pub come: BTreeSet<EdgeKey>,
    /// Learnt edges that carry no calls any more.
    pub gone: BTreeSet<EdgeKey>,
    /// Services whose call structures are new, and since when.
    pub shapes: BTreeMap<ServiceId, Timestamp>,
}

/// Finds what changed between `model` and `frames`, windows that met the target, oldest first. `accepted` are services
/// whose present behaviour an operator took as normal, and since when.
pub fn detect(model: &Model, graph: &Graph, frames: &[&Frame], accepted: &BTreeMap<ServiceId, Timestamp>) -> Changes {
    let mut changes = Changes::default();
    for (service, since) in accepted.iter().filter(|(service, since)| model.since(service) != Some(**since)) {
        changes.add(service, ChangeKind::Accepted, Some(*since), "accepted by an operator".to_owned());
    }
    let detector = Detector { model, graph, frames };
    detector.edges(&mut changes);
    for number in 0..graph.services().len() {
        detector.service(number, accepted, &mut changes);
    }
    changes.all.sort_by(|a, b| (&a.service, a.kind).cmp(&(&b.service, b.kind)));
    changes
}

impl Changes {
    fn add(&mut self, service: &ServiceId, kind: ChangeKind, since: Option<Timestamp>, detail: String) {
        let known = self.all.iter().any(|change| change.service == *service && change.kind == kind);
        if !known {
            self.all.push(Change { service: service.clone(), kind, since, pressed: None, detail });
        }
    }

    fn press(&mut self, service: &ServiceId, pressed: Option<MetricGroup>) {
        let own = self.all.iter_mut().filter(|change| change.service == *service && change.since.is_some());
        own.for_each(|change| change.pressed = pressed);
    }

    /// The services' structures changed with the edge `key`, first (or no longer) seen at `at`.
    fn reshape(&mut self, key: &EdgeKey, at: Timestamp, what: &str) {
        let Some(caller) = &key.caller else { return };
        let since = self.shapes.entry(caller.clone()).or_insert(at);
        *since = (*since).max(at);
        self.add(caller, ChangeKind::Calls, None, format!("{what} {} {}", key.callee, key.operation));
    }
}

struct Detector<'a> {
    model: &'a Model,
    graph: &'a Graph,
    frames: &'a [&'a Frame],
}

impl Detector<'_> {
    fn edges(&self, changes: &mut Changes) {
        for (edge, key) in self.graph.edges().iter().enumerate() {
            let is_learnt = self.model.edges.contains(key);
            let seen = self.frames.iter().filter(|frame| frame.edges[edge].calls > 0.0);
            if !is_learnt {
                let first = seen.clone().map(|frame| frame.time).min();
                if let Some(first) = first.filter(|_| seen.count() >= STEP_WINDOWS) {
                    changes.come.insert(key.clone());
                    changes.reshape(key, first, "now calls");
                    let is_new = !self.model.normals().services.contains_key(&key.callee);
                    let kind = if is_new { ChangeKind::NewService } else { ChangeKind::Calls };
                    changes.add(&key.callee, kind, None, "is called on a new edge".to_owned());
                }
            } else if let Some(silent) = self.silent_since(edge) {
                changes.gone.insert(key.clone());
                changes.reshape(key, silent, "no longer calls");
            }
        }
    }

    /// Since when a learnt edge carries no calls, if enough were due.
    fn silent_since(&self, edge: usize) -> Option<Timestamp> {
        let key = &self.graph.edges()[edge];
        let silent = self.frames.iter().rev().take_while(|frame| frame.edges[edge].calls <= 0.0);
        let normal = self.model.normals().services.get(&key.callee)?.edge(key)?;
        let due = |frame: &&Frame| Some(normal.calls_per_arrival? * frame.offered_per_s? * frame.window_s);
        let due: f64 = silent.clone().filter_map(due).sum();
        let is_long = silent.clone().count() >= STEP_WINDOWS;
        (is_long && due >= SILENT_CALLS_MIN).then(|| silent.last().map(|frame| frame.time))?
    }

    fn service(&self, number: usize, accepted: &BTreeMap<ServiceId, Timestamp>, changes: &mut Changes) {
        let name = &self.graph.services()[number];
        if !self.model.normals().services.contains_key(name) || accepted.contains_key(name) {
            return;
        }
        let mut has_moved = false;
        for (part, pick) in [("self time", self_time as Pick), ("gap", gap as Pick)] {
            let levels = self.levels(number, pick);
            let found = step(&levels, self.model.newest).map(|found| (ChangeKind::Step, found));
            let found = found.or_else(|| drift(&levels, self.model.newest).map(|found| (ChangeKind::Drift, found)));
            if let Some((kind, (since, distance))) = found {
                has_moved = true;
                changes.add(name, kind, Some(since), format!("{part} {:+.0} %", 100.0 * distance.exp_m1()));
                changes.press(name, self.pressed(number));
            }
        }
        if !has_moved && let Some((had, has)) = self.growth(number) {
            changes.add(name, ChangeKind::Young, None, format!("{has} windows instead of {had}"));
        }
    }

    /// Distance from normal of one part of a service, window by window of its present normal.
    fn levels(&self, service: usize, pick: Pick) -> Vec<Level> {
        let name = &self.graph.services()[service];
        let since = self.model.since(name).unwrap_or_default();
        let level = |frame: &&Frame| {
            let edges = self.graph.ins(service).iter().filter(|edge| frame.edges[**edge].calls >= CALLS_MIN);
            let mut total = Totals::default();
            for edge in edges {
                let expected = self.model.normals().linear(self.graph, *edge, frame, 1.0);
                if let (Some(observed), Some(normal)) = pick(&frame.edges[*edge], &expected) {
                    total.add(frame.edges[*edge].calls, &observed, &normal);
                }
            }
            total.level(frame.time)
        };
        self.frames.iter().filter(|frame| frame.time >= since).filter_map(level).collect()
    }

    /// The resource whose metrics stand above normal, and above what healthy windows showed, in all of the newest windows.
    fn pressed(&self, service: usize) -> Option<MetricGroup> {
        let name = &self.graph.services()[service];
        let (normal, regressors) = (self.model.normals().services.get(name)?, self.model.normals().regressors?);
        let newest = &self.frames[self.frames.len().saturating_sub(STEP_WINDOWS)..];
        let is_above = |group: &MetricGroup| {
            let least = SCORE_MIN.max(self.model.group_null().worst(name, *group));
            newest.iter().all(|frame| {
                let seen = &frame.services[service];
                let usage = scores(normal, &seen.readings, &regressors.row(seen.rate, frame.time));
                group_score(&usage, *group).is_some_and(|score| score >= least)
            })
        };
        GROUPS.into_iter().find(is_above)
    }

    /// Windows that the thinnest normal of a service was fitted on, and could be.
    fn growth(&self, service: usize) -> Option<(usize, usize)> {
        let name = &self.graph.services()[service];
        let since = self.model.since(name).unwrap_or_default();
        let normal = self.model.normals().services.get(name)?;
        let frames: Vec<&Frame> = self.frames.iter().copied().filter(|frame| frame.time >= since).collect();
        let of_edge = |edge: &usize| {
            let has = frames.iter().filter(|frame| frame.edges[*edge].self_time.is_some()).count();
            let had = normal.edge(&self.graph.edges()[*edge])?.self_time.as_ref().map_or(1, |curve| curve.windows);
            (had < YOUNG_MAX && has >= STEP_WINDOWS && has >= 2 * had).then_some((had, has))
        };
        self.graph.ins(service).iter().filter_map(of_edge).min()
    }
}

/// One part of an edge, observed and expected.
type Pick = fn(&EdgeFrame, &ExpectedEdge) -> (Option<Curve>, Option<Expected>);

fn self_time(seen: &EdgeFrame, expected: &ExpectedEdge) -> (Option<Curve>, Option<Expected>) {
    if seen.server.is_some() { (seen.self_time, expected.self_time) } else { (seen.client, expected.client) }
}

fn gap(seen: &EdgeFrame, expected: &ExpectedEdge) -> (Option<Curve>, Option<Expected>) {
    (seen.gap, expected.gap)
}

/// The distance of one window.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    time: Timestamp,
    /// In logs.
    distance: f64,
    /// In microseconds.
    us: f64,
}

#[derive(Default)]
struct Totals {
    calls: f64,
    distance: f64,
    us: f64,
}

impl Totals {
    fn add(&mut self, calls: f64, observed: &Curve, normal: &Expected) {
        let logs = LEVEL_BAND.map(|q| observed.logs()[q] - normal.curve.logs()[q]).sum::<f64>();
        self.calls += calls;
        self.distance += calls * logs / LEVEL_BAND.len() as f64;
        self.us += calls * (observed.band_us(LEVEL_BAND) - normal.curve.band_us(LEVEL_BAND));
    }

    fn level(self, time: Timestamp) -> Option<Level> {
        let Self { calls, distance, us } = self;
        (calls > 0.0).then(|| Level { time, distance: distance / calls, us: us / calls })
    }
}

/// Robust standard deviation of the levels that the model was learnt from.
fn deviation(levels: &[Level], newest: Timestamp) -> f64 {
    let mut learnt: Vec<f64> = levels.iter().filter(|level| level.time < newest).map(|level| level.distance).collect();
    if learnt.len() < LEVEL_WINDOWS_MIN {
        return LEVEL_SD_DEFAULT;
    }
    let centre = median(&mut learnt).unwrap_or(0.0);
    mad_scale(&learnt, centre, LEVEL_SD_FLOOR)
}

/// A new level at the end of `levels`: since when, and how far (logs).
fn step(levels: &[Level], newest: Timestamp) -> Option<(Timestamp, f64)> {
    let last = &levels[levels.len().checked_sub(STEP_WINDOWS)?..];
    let distance = middle(last.iter().map(|level| level.distance))?;
    let is_far = |level: &Level| {
        level.distance * distance.signum() >= (STEP_MIN_SD * deviation(levels, newest)).max(STEP_MIN)
            && level.us.abs() >= LEVEL_MIN_US
    };
    let (low, high) = last.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), level| {
        (low.min(level.distance), high.max(level.distance))
    });
    if !last.iter().all(is_far) || high - low > STEP_SPREAD_MAX * distance.abs() {
        return None;
    }
    let is_new = |level: &&Level| (level.distance - distance).abs() < level.distance.abs();
    Some((levels.iter().rev().take_while(is_new).last()?.time, distance))
}

/// The newest windows away from normal as a whole: since when they are taken instead, and how far (logs).
fn drift(levels: &[Level], newest: Timestamp) -> Option<(Timestamp, f64)> {
    let last = &levels[levels.len().checked_sub(DRIFT_WINDOWS)?..];
    let distance = middle(last.iter().map(|level| level.distance))?;
    let us = middle(last.iter().map(|level| level.us))?;
    let is_far = distance.abs() >= (DRIFT_MIN_SD * deviation(levels, newest)).max(DRIFT_MIN);
    (is_far && us.abs() >= LEVEL_MIN_US).then(|| (last[0].time, distance))
}

fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
    median(&mut values.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(distances: &[f64]) -> Vec<Level> {
        let level = |(index, distance): (usize, &f64)| Level {
            time: Timestamp::from_micros(index as u64),
            distance: *distance,
            us: 1e3 * distance,
        };
        distances.iter().enumerate().map(level).collect()
    }

    /// Twenty calm windows, then `after`; the model has learnt the calm ones.
    fn after(after: &[f64]) -> (Vec<Level>, Timestamp) {
        let calm = (0..20).map(|i| 0.03 * f64::from(i % 3 - 1));
        (levels(&calm.chain(after.iter().copied()).collect::<Vec<_>>()), Timestamp::from_micros(20))
    }

    #[test]
    fn three_windows_at_a_new_level_are_a_step_and_two_are_not() {
        let (three, newest) = after(&[0.9, 1.0, 0.95]);
        assert_eq!(step(&three, newest), Some((Timestamp::from_micros(20), 0.95)));
        assert_eq!(step(&after(&[0.9, 1.0]).0, newest), None);
        assert_eq!(step(&after(&[0.9, -1.0, 0.95]).0, newest), None);
    }

    #[test]
    fn a_backlog_that_drains_is_no_level() {
        let (draining, newest) = after(&[2.0, 1.2, 0.4]);
        assert_eq!(step(&draining, newest), None);
    }

    #[test]
    fn a_service_that_became_faster_changed_too() {
        let (faster, newest) = after(&[-0.7, -0.7, -0.69, -0.72]);
        assert_eq!(step(&faster, newest).map(|(since, _)| since), Some(Timestamp::from_micros(20)));
    }

    #[test]
    fn many_windows_a_little_off_are_a_drift_and_a_few_are_not() {
        let (few, newest) = after(&[0.1; 12]);
        assert_eq!((step(&few, newest), drift(&few, newest)), (None, None));
        let (many, newest) = after(&[0.1; 40]);
        assert_eq!(drift(&many, newest), Some((Timestamp::from_micros(20), 0.1)));
    }

    #[test]
    fn microseconds_that_nobody_feels_are_no_change() {
        let mut tiny = after(&[0.9, 1.0, 0.95]);
        tiny.0.iter_mut().for_each(|level| level.us /= 100.0);
        assert_eq!(step(&tiny.0, tiny.1), None);
    }
}
