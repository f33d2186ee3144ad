//! What is normal at a load: latency of every edge and usage of every service, by robust regressions.
//!
//! Effect metrics are never regressors here: they rise because of others.

use std::collections::BTreeSet;

use sage_common::{Metric, MetricGroup, Micros, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    curve::{Curve, Q},
    frame::{Frame, Readings},
    graph::Graph,
    observation::EdgeKey,
    robust::{Regression, Row},
    usage::{Reading, UsageScale},
};

/// Robust standard deviation below which no latency normal is believed, in logs.
const SCALE_FLOOR: f64 = 0.02;

/// Scale floor while a usage fit is weighted; what it is judged by has a higher floor of its own.
const USAGE_FIT_FLOOR: f64 = 1e-3;

/// Windows below which a normal has no slope: a few windows cannot tell load from chance.
const SLOPE_WINDOWS_MIN: usize = 25;

/// Spread of the percentiles of one window where too few were seen to tell, in logs: a tail strays more than a middle.
const YOUNG_SCALES: [f64; Q] = [0.05, 0.05, 0.05, 0.05, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3];

/// Windows below which there is no normal.
pub const WINDOWS_MIN: usize = 3;

/// A rate (per second) added before the logarithm: one call in ten seconds is "idle".
const RATE_FLOOR: f64 = 0.1;

/// Learning data must span this long before the time of day says anything: two days.
const DAY_SPAN_MIN: Micros = Micros::from_secs(2 * 86_400);

/// What a normal depends on.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Regressors {
    has_day: bool,
}

impl Regressors {
    /// Load always; the time of day when `frames` span more than two days.
    pub fn of(frames: &[Frame]) -> Self {
        let newest = frames.iter().map(|frame| frame.time).max();
        let oldest = frames.iter().map(|frame| frame.time).min();
        let span = newest.zip(oldest).and_then(|(newest, oldest)| newest.since(oldest));
        Self { has_day: span.is_some_and(|span| span > DAY_SPAN_MIN) }
    }

    /// The row of regressors at `rate` calls per second and `time`.
    pub fn row(self, rate: f64, time: Timestamp) -> Row {
        let load = (rate.max(0.0) + RATE_FLOOR).ln();
        if !self.has_day {
            return [load, 0.0, 0.0];
        }
        let turn = (time.as_micros() % 86_400_000_000) as f64 / 86_400e6 * std::f64::consts::TAU;
        [load, turn.sin(), turn.cos()]
    }

    fn active(self, windows: usize) -> usize {
        match (windows >= SLOPE_WINDOWS_MIN, self.has_day) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 3,
        }
    }
}

/// A latency distribution given load: one regression per percentile.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CurveNormal {
    lines: Vec<Regression>,
    /// Windows it was fitted on.
    pub windows: usize,
}

impl CurveNormal {
    /// Fits; `None` with fewer than [`WINDOWS_MIN`] windows.
    pub fn fit(rows: &[Row], curves: &[Curve], regressors: Regressors) -> Option<Self> {
        let windows = curves.len();
        if windows < WINDOWS_MIN {
            return None;
        }
        let line = |q: usize| {
            let values: Vec<f64> = curves.iter().map(|curve| curve.logs()[q]).collect();
            Regression::fit(rows, &values, regressors.active(windows), SCALE_FLOOR)
        };
        Some(Self { lines: (0..Q).map(line).collect::<Option<_>>()?, windows })
    }

    /// Widens the spread of a normal of few windows, which cannot know it: to that of `before`, or to what a window's
    /// percentiles stray by anyway.
    fn widen(&mut self, before: Option<&Self>) {
        if self.windows >= SLOPE_WINDOWS_MIN {
            return;
        }
        for (q, line) in self.lines.iter_mut().enumerate() {
            let known = before.and_then(|before| before.lines.get(q)).map_or(YOUNG_SCALES[q], |line| line.scale);
            line.scale = line.scale.max(known);
        }
    }

    /// The normal curve at `row`; `None` only for a damaged model.
    pub fn at(&self, row: &Row) -> Option<Curve> {
        let mut logs = [0.0; Q];
        for (log, line) in logs.iter_mut().zip(&self.lines) {
            *log = line.at(row);
        }
        Curve::of_logs(logs)
    }

    /// Its level at the middle of the loads seen: mean of p25 to p95, microseconds; `None` only for a damaged model.
    pub fn level_us(&self) -> Option<f64> {
        let row = self.lines.first()?.centre();
        Some(self.at(&row)?.band_us(1..7))
    }

    /// Robust standard deviation of each percentile, in logs.
    pub fn scales(&self) -> [f64; Q] {
        std::array::from_fn(|q| self.lines.get(q).map_or(SCALE_FLOOR, |line| line.scale))
    }
}

/// Normal latencies of one edge.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EdgeNormal {
    /// Which edge.
    pub key: EdgeKey,
    /// Self time of its server spans.
    pub self_time: Option<CurveNormal>,
    /// Client minus server span.
    pub gap: Option<CurveNormal>,
    /// Client spans: stands in for self time where the callee reports nothing.
    pub client: Option<CurveNormal>,
    /// Median calls per arrival at the entries.
    pub calls_per_arrival: Option<f64>,
}

impl EdgeNormal {
    /// Fits edge number `edge` of `graph` on `frames`.
    pub fn fit(graph: &Graph, edge: usize, frames: &[&Frame], regressors: Regressors) -> Self {
        let fit = |pick: fn(&Frame, usize) -> Option<Curve>| {
            let mut rows = Vec::new();
            let mut curves = Vec::new();
            for frame in frames {
                if let Some(curve) = pick(frame, edge) {
                    rows.push(regressors.row(frame.edges[edge].rate, frame.time));
                    curves.push(curve);
                }
            }
            CurveNormal::fit(&rows, &curves, regressors)
        };
        let ratio = |frame: &&Frame| {
            let arrivals = frame.offered_per_s.filter(|rate| *rate > 0.0)?;
            Some(frame.edges[edge].rate / arrivals)
        };
        // Before its first call the edge was not there, rather than idle.
        let called = frames.iter().skip_while(|frame| frame.edges[edge].calls <= 0.0);
        let mut ratios: Vec<f64> = called.filter_map(ratio).collect();
        Self {
            key: graph.edges()[edge].clone(),
            self_time: fit(|frame, edge| frame.edges[edge].self_time),
            gap: fit(|frame, edge| frame.edges[edge].gap),
            client: fit(|frame, edge| frame.edges[edge].client),
            calls_per_arrival: crate::robust::median(&mut ratios),
        }
    }
}

/// Normal value of one usage metric.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct UsageNormal {
    /// Which metric.
    pub metric: Metric,
    scale: UsageScale,
    line: Regression,
}

impl UsageNormal {
    /// Fits `metric` of service number `service` on `frames`; `None` with fewer than [`WINDOWS_MIN`] readings.
    pub fn fit(metric: Metric, service: usize, frames: &[&Frame], regressors: Regressors) -> Option<Self> {
        let reading = |frame: &&Frame| {
            let service = &frame.services[service];
            Some((regressors.row(service.rate, frame.time), service.readings[metric.index()]?))
        };
        let (rows, readings): (Vec<Row>, Vec<Reading>) = frames.iter().filter_map(reading).unzip();
        if rows.len() < WINDOWS_MIN {
            return None;
        }
        let window_s = frames.first()?.window_s;
        let scale = UsageScale::learn(metric, &readings, window_s);
        let values: Vec<f64> = readings.iter().map(|reading| scale.value(reading)).collect();
        let active = if metric.spec().has_load_term { regressors.active(rows.len()) } else { 0 };
        Some(Self { metric, scale, line: Regression::fit(&rows, &values, active, USAGE_FIT_FLOOR)? })
    }

    /// Signed distance of `reading` from normal in robust standard deviations.
    pub fn z(&self, reading: &Reading, row: &Row) -> f64 {
        (self.scale.value(reading) - self.line.at(row)) / self.scale.judged(self.line.scale)
    }

    /// Its normal value at `row` as it enters nets.
    pub fn value(&self, row: &Row) -> f64 {
        self.line.at(row)
    }

    /// `reading` as it enters nets.
    pub fn value_of(&self, reading: &Reading) -> f64 {
        self.scale.value(reading)
    }

    /// Normal and observed in the metric's own unit.
    pub fn units(&self, reading: &Reading, row: &Row) -> (f64, f64) {
        (self.scale.unit(self.line.at(row)), self.scale.unit(self.scale.value(reading)))
    }
}

/// Everything normal about one service and the edges into it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ServiceNormal {
    /// Which service.
    pub service: sage_common::ServiceId,
    /// Edges into it.
    pub edges: Vec<EdgeNormal>,
    /// Its metrics, effect metrics included: they are reported and used by Little's law, never as inputs.
    pub usage: Vec<UsageNormal>,
}

impl ServiceNormal {
    /// Fits service number `service` of `graph` on `frames`.
    pub fn fit(graph: &Graph, service: usize, frames: &[&Frame], regressors: Regressors) -> Self {
        let present: BTreeSet<usize> =
            frames.iter().flat_map(|frame| present(&frame.services[service].readings)).collect();
        let usage = |metric: usize| UsageNormal::fit(Metric::ALL[metric], service, frames, regressors);
        Self {
            service: graph.services()[service].clone(),
            edges: graph.ins(service).iter().map(|edge| EdgeNormal::fit(graph, *edge, frames, regressors)).collect(),
            usage: present.into_iter().filter_map(usage).collect(),
        }
    }

    /// What the nets of the services that number `service` calls want of it: its network metrics, and nothing else.
    pub fn network(graph: &Graph, service: usize, frames: &[&Frame], regressors: Regressors) -> Self {
        let metrics = Metric::ALL.into_iter().filter(|metric| metric.group() == MetricGroup::Network);
        let fit = |metric| UsageNormal::fit(metric, service, frames, regressors);
        Self {
            service: graph.services()[service].clone(),
            edges: Vec::new(),
            usage: metrics.filter(|metric| !metric.spec().is_effect).filter_map(fit).collect(),
        }
    }

    /// Widens normals of few windows to the spread that `before`, the service's normal until now, knew.
    pub fn widen(&mut self, before: Option<&Self>) {
        for edge in &mut self.edges {
            let old = before.and_then(|before| before.edge(&edge.key));
            for (new, old) in [
                (&mut edge.self_time, old.map(|old| &old.self_time)),
                (&mut edge.gap, old.map(|old| &old.gap)),
                (&mut edge.client, old.map(|old| &old.client)),
            ] {
                if let Some(new) = new {
                    new.widen(old.and_then(Option::as_ref));
                }
            }
        }
        let is_young =
            |edge: &EdgeNormal| edge.self_time.as_ref().is_none_or(|curve| curve.windows < SLOPE_WINDOWS_MIN);
        if !self.edges.iter().all(is_young) {
            return;
        }
        for usage in &mut self.usage {
            let old = before.and_then(|before| before.metric(usage.metric));
            usage.line.scale = usage.line.scale.max(old.map_or(0.0, |old| old.line.scale));
        }
    }

    /// The normal of an edge into it.
    pub fn edge(&self, key: &EdgeKey) -> Option<&EdgeNormal> {
        self.edges.iter().find(|edge| edge.key == *key)
    }

    /// The normal of one of its metrics.
    pub fn metric(&self, metric: Metric) -> Option<&UsageNormal> {
        self.usage.iter().find(|usage| usage.metric == metric)
    }
}

fn present(readings: &Readings) -> impl Iterator<Item = usize> + '_ {
    readings.iter().enumerate().filter(|(_, reading)| reading.is_some()).map(|(metric, _)| metric)
}

#[cfg(test)]
mod tests {
    use sage_common::{LATENCY_PERCENTILES, LatencyQuantiles};

    use super::*;

    fn curve(us: f32) -> Curve {
        Curve::of(&LatencyQuantiles(LATENCY_PERCENTILES.map(|p| us * (1.0 + p as f32 / 100.0)))).expect("valid")
    }

    fn fit(windows: usize) -> CurveNormal {
        let regressors = Regressors { has_day: false };
        let rates: Vec<f64> = (0..windows).map(|i| 10.0 * 1.05_f64.powi(i as i32)).collect();
        let rows: Vec<Row> = rates.iter().map(|rate| regressors.row(*rate, Timestamp::default())).collect();
        let curves: Vec<Curve> = rates.iter().map(|rate| curve(*rate as f32 * 10.0)).collect();
        CurveNormal::fit(&rows, &curves, regressors).expect("enough windows")
    }

    #[test]
    fn latency_that_follows_load_is_normal_at_every_load() {
        let row = Regressors { has_day: false }.row(20.0, Timestamp::default());
        let normal = fit(40).at(&row).expect("finite");
        assert!((normal.at(0.5).exp() - 300.0).abs() < 9.0, "{}", normal.at(0.5).exp());
    }

    #[test]
    fn a_new_normal_of_few_windows_has_no_slope() {
        let regressors = Regressors { has_day: false };
        let few = fit(SLOPE_WINDOWS_MIN - 1);
        let at = |rate: f64| few.at(&regressors.row(rate, Timestamp::default()));
        assert_eq!(at(10.0), at(30.0));
    }

    #[test]
    fn a_normal_of_few_windows_is_no_surer_than_the_one_before() {
        let (mut few, mut many) = (fit(4), fit(40));
        many.lines.iter_mut().for_each(|line| line.scale = 0.4);
        few.widen(Some(&many));
        assert_eq!(few.scales(), [0.4; Q]);
        let mut alone = fit(4);
        alone.widen(None);
        assert!(alone.scales().iter().zip(YOUNG_SCALES).all(|(own, least)| *own >= least));
    }

    #[test]
    fn the_time_of_day_is_a_regressor_only_after_two_days() {
        let noon = Timestamp::from_micros(43_200_000_000);
        let short = Regressors { has_day: false }.row(1.0, noon);
        let long = Regressors { has_day: true }.row(1.0, noon);
        assert_eq!(short[1..], [0.0, 0.0]);
        assert!((long[2] + 1.0).abs() < 1e-9, "{long:?}");
    }
}
