//! BARO's ranking of metrics (Pham, Ha and Zhang: BARO, Robust Root Cause Analysis for Microservices via Multivariate
//! Bayesian Online Change Point Detection, FSE 2024). Pure.
//!
//! BARO finds the time of a fault by change points, then ranks metrics by how far they leave their median in
//! interquartile ranges (`RobustScorer`). Here the time is given, as to every other method of the table, so only the
//! ranking is left. A service stands where its first metric stands.

use std::collections::BTreeMap;

use sage_causal::observation::Observation;
use sage_common::ServiceId;

use super::baseline::{Ranked, What, metrics};

/// Healthy windows below which quartiles mean nothing, as for the other rules.
const WINDOWS_MIN: usize = 5;

/// Ranks services by their largest rise above the healthy median, in interquartile ranges.
pub fn baro(training: &[Observation], period: &[Observation]) -> Ranked {
    let (healthy, seen) = (metrics(training), metrics(period));
    let mut best: BTreeMap<ServiceId, (f64, What)> = BTreeMap::new();
    for ((service, what), values) in &seen {
        let key = (service.clone(), *what);
        let Some(scale) = healthy.get(&key).and_then(|own| Scale::of(own)) else { continue };
        let score = values.iter().map(|value| scale.score(*value)).fold(f64::NEG_INFINITY, f64::max);
        let entry = best.entry(service.clone()).or_insert((score, *what));
        if score > entry.0 {
            *entry = (score, *what);
        }
    }
    Ranked::of(best)
}

/// Median and interquartile range.
struct Scale {
    median: f64,
    range: f64,
}

impl Scale {
    /// `None` of too few values, and of a constant: BARO leaves those out.
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let is_constant = sorted.first() == sorted.last();
        if sorted.len() < WINDOWS_MIN || is_constant {
            return None;
        }
        let range = quantile(&sorted, 0.75) - quantile(&sorted, 0.25);
        // A range of nothing counts as one, as in the original's scaler.
        Some(Self { median: quantile(&sorted, 0.5), range: if range > 0.0 { range } else { 1.0 } })
    }

    fn score(&self, value: f64) -> f64 {
        (value - self.median) / self.range
    }
}

/// Linear between the two neighbours; `sorted` is not empty.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::scenes;

    fn window(latencies: &[(&str, f32)]) -> Observation {
        let edge = |(callee, us): &(&str, f32)| scenes::edge(None, callee, 10.0, f64::from(*us));
        scenes::window(latencies.iter().map(edge).collect())
    }

    fn names(ranked: &Ranked) -> Vec<&str> {
        ranked.ranking.iter().map(ServiceId::as_str).collect()
    }

    #[test]
    fn a_small_rise_of_a_steady_metric_stands_above_a_large_one_of_a_restless_metric() {
        let training: Vec<Observation> = (0..9_u8)
            .map(|step| window(&[("steady", 100.0 + f32::from(step % 3)), ("restless", 100.0 * f32::from(step % 3))]))
            .collect();
        let ranked = baro(&training, &[window(&[("steady", 150.0), ("restless", 900.0)])]);
        assert_eq!(names(&ranked), ["steady", "restless"]);
        assert_eq!(ranked.resource, None, "latency is no resource");
    }

    #[test]
    fn one_wild_healthy_window_does_not_hide_a_rise() {
        let mut training: Vec<Observation> =
            (0..9_u8).map(|step| window(&[("a", 100.0 + f32::from(step)), ("b", 100.0 + f32::from(step))])).collect();
        training.push(window(&[("a", 9_000.0), ("b", 104.0)]));
        let ranked = baro(&training, &[window(&[("a", 200.0), ("b", 130.0)])]);
        assert_eq!(names(&ranked), ["a", "b"]);
    }

    #[test]
    fn constants_and_short_histories_are_left_out() {
        let training = vec![window(&[("flat", 100.0)]); 9];
        assert_eq!(baro(&training, &[window(&[("flat", 900.0)])]), Ranked::default());
        let short: Vec<Observation> = [1.0, 2.0, 3.0].map(|us| window(&[("short", us)])).into();
        assert_eq!(baro(&short, &[window(&[("short", 900.0)])]), Ranked::default());
    }

    #[test]
    fn quartiles_lie_straight_between_neighbours() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(|share| quantile(&sorted, share)), [1.0, 1.75, 2.5, 3.25, 4.0]);
    }
}
