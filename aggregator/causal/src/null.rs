//! What scores look like when nothing is wrong: left-out healthy stretches, scored like incidents. Only what stands above
//! them counts; without that, a counterfactual is worse than a plain sum of excess.

use std::collections::BTreeMap;

use sage_common::{MetricGroup, ServiceId};
use serde::{Deserialize, Serialize};

use crate::robust::{mad_scale, median, normal_cdf};

/// What a healthy stretch may reach must be exceeded by this factor: few stretches do not show the worst one.
const MARGIN: f64 = 1.25;

/// Spread of a gain (in logs) below which no null is believed.
const GAIN_SCALE_FLOOR: f64 = 0.005;

/// Range of the calibrated error of a counterfactual, in logs.
const ERROR_RANGE: (f64, f64) = (0.05, 0.25);

/// The error where nothing was calibrated: the study's.
const ERROR_DEFAULT: f64 = 0.08;

/// Scores of one service over left-out stretches of one length.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Scores {
    /// Fall of the objective's percentile when the service alone is repaired, in logs.
    pub gains: Vec<f64>,
    /// Own excess, microseconds per call.
    pub excesses: Vec<f64>,
}

/// Nulls of one objective.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Null {
    /// By number of pooled windows, ascending.
    lengths: Vec<(usize, Vec<(ServiceId, Scores)>)>,
    /// Observed against wholly normal, in logs, one a stretch.
    errors: Vec<f64>,
}

/// Least scores that count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Floor {
    /// Gain, in logs.
    pub gain: f64,
    /// Own excess, microseconds per call.
    pub excess_us: f64,
}

impl Null {
    /// Adds the scores of one left-out stretch of `windows` windows.
    pub fn add(&mut self, windows: usize, service: &ServiceId, gain: f64, excess_us: f64) {
        if !gain.is_finite() || !excess_us.is_finite() {
            return;
        }
        let place = self.lengths.partition_point(|(length, _)| *length < windows);
        if self.lengths.get(place).is_none_or(|(length, _)| *length != windows) {
            self.lengths.insert(place, (windows, Vec::new()));
        }
        let services = &mut self.lengths[place].1;
        let at = services.binary_search_by(|(name, _)| name.cmp(service)).unwrap_or_else(|at| {
            services.insert(at, (service.clone(), Scores::default()));
            at
        });
        services[at].1.gains.push(gain);
        services[at].1.excesses.push(excess_us);
    }

    /// Multiplies every score of `service` by `ratio`: its noise grew or shrank with its level.
    pub fn rescale(&mut self, service: &ServiceId, ratio: f64) {
        for scores in self.lengths.iter_mut().flat_map(|(_, all)| all).filter(|(name, _)| name == service) {
            scores.1.gains.iter_mut().chain(&mut scores.1.excesses).for_each(|score| *score *= ratio);
        }
    }

    /// Keeps the scores of the services for which `is_kept` holds.
    pub fn retain(&mut self, is_kept: impl Fn(&ServiceId) -> bool) {
        self.lengths.iter_mut().for_each(|(_, services)| services.retain(|(name, _)| is_kept(name)));
    }

    /// Adds how far the wholly normal world was from the observed one, in logs.
    pub fn add_error(&mut self, error: f64) {
        if error.is_finite() {
            self.errors.push(error);
        }
    }

    /// What `service` must exceed over `windows` pooled windows.
    pub fn floor(&self, windows: usize, service: &ServiceId) -> Floor {
        let worst = |values: &[f64]| MARGIN * upper(values);
        self.scores(windows, service)
            .map_or(Floor::default(), |scores| Floor { gain: worst(&scores.gains), excess_us: worst(&scores.excesses) })
    }

    /// The percentile of the null at which `gain` lies, by its median and MAD; 0.5 where there is no null.
    pub fn rank(&self, windows: usize, service: &ServiceId, gain: f64) -> f64 {
        let Some(scores) = self.scores(windows, service) else { return 0.5 };
        let Some(centre) = median(&mut scores.gains.clone()) else { return 0.5 };
        normal_cdf((gain - centre) / mad_scale(&scores.gains, centre, GAIN_SCALE_FLOOR))
    }

    /// Standard deviation of a counterfactual percentile, in logs.
    pub fn error(&self) -> f64 {
        let Some(centre) = median(&mut self.errors.clone()) else { return ERROR_DEFAULT };
        mad_scale(&self.errors, centre, 0.0).hypot(ERROR_RANGE.0).min(ERROR_RANGE.1)
    }

    /// Whether any stretch was scored.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The longest scored length that is not longer than asked for: shorter stretches are noisier, never calmer.
    fn scores(&self, windows: usize, service: &ServiceId) -> Option<&Scores> {
        let upto = self.lengths.partition_point(|(length, _)| *length <= windows);
        let (_, services) = self.lengths.get(upto.saturating_sub(1))?;
        services.binary_search_by(|(name, _)| name.cmp(service)).ok().map(|at| &services[at].1)
    }
}

/// Healthy windows are those that met the target: of so many stretches one may hold an incident that was too small to
/// break it, and does not count.
const STRETCHES_PER_INCIDENT: usize = 10;

/// The largest of `values` without one in [`STRETCHES_PER_INCIDENT`]; zero where there are none.
pub fn upper(values: &[f64]) -> f64 {
    let mut values: Vec<f64> = values.to_vec();
    values.sort_unstable_by(|a, b| b.total_cmp(a));
    values.get(values.len() / STRETCHES_PER_INCIDENT).map_or(0.0, |value| value.max(0.0))
}

/// The largest group score of each service over left-out healthy windows.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(from = "Vec<(ServiceId, MetricGroup, f64)>", into = "Vec<(ServiceId, MetricGroup, f64)>")]
pub struct GroupNull(BTreeMap<(ServiceId, MetricGroup), f64>);

impl GroupNull {
    /// Keeps the larger one.
    pub fn add(&mut self, service: &ServiceId, group: MetricGroup, score: f64) {
        let worst = self.0.entry((service.clone(), group)).or_insert(0.0);
        *worst = worst.max(score);
    }

    /// Keeps the scores of the services for which `is_kept` holds.
    pub fn retain(&mut self, is_kept: impl Fn(&ServiceId) -> bool) {
        self.0.retain(|(service, _), _| is_kept(service));
    }

    /// The largest score seen; zero where none was.
    pub fn worst(&self, service: &ServiceId, group: MetricGroup) -> f64 {
        self.0.get(&(service.clone(), group)).copied().unwrap_or(0.0)
    }
}

impl From<Vec<(ServiceId, MetricGroup, f64)>> for GroupNull {
    fn from(entries: Vec<(ServiceId, MetricGroup, f64)>) -> Self {
        Self(entries.into_iter().map(|(service, group, score)| ((service, group), score)).collect())
    }
}

impl From<GroupNull> for Vec<(ServiceId, MetricGroup, f64)> {
    fn from(null: GroupNull) -> Self {
        null.0.into_iter().map(|((service, group), score)| (service, group, score)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> Null {
        let mut null = Null::default();
        let service = ServiceId::sanitized("a");
        for gain in [0.01, 0.02, 0.03, 0.02, 0.04] {
            null.add(1, &service, gain, 1000.0 * gain);
            null.add(4, &service, gain / 2.0, 500.0 * gain);
        }
        null
    }

    #[test]
    fn the_worst_healthy_stretch_must_be_exceeded() {
        let floor = null().floor(1, &ServiceId::sanitized("a"));
        assert!((floor.gain - 0.05).abs() < 1e-12 && (floor.excess_us - 50.0).abs() < 1e-9, "{floor:?}");
        assert_eq!(null().floor(1, &ServiceId::sanitized("b")), Floor::default());
    }

    #[test]
    fn a_longer_stretch_is_judged_by_the_longest_null_that_fits() {
        let service = ServiceId::sanitized("a");
        assert!((null().floor(6, &service).gain - 0.025).abs() < 1e-12);
        assert!((null().floor(3, &service).gain - 0.05).abs() < 1e-12);
    }

    #[test]
    fn a_service_at_another_level_is_judged_by_noise_of_that_level() {
        let (mut null, service) = (null(), ServiceId::sanitized("a"));
        null.rescale(&service, 10.0);
        assert!((null.floor(1, &service).excess_us - 500.0).abs() < 1e-9);
        null.retain(|name| *name != service);
        assert_eq!(null.floor(1, &service), Floor::default());
    }

    #[test]
    fn noise_ranks_in_the_middle_and_a_large_gain_at_the_top() {
        let service = ServiceId::sanitized("a");
        assert!((null().rank(1, &service, 0.02) - 0.5).abs() < 1e-6);
        assert!(null().rank(1, &service, 0.5) > 0.9999);
        assert_eq!(Null::default().rank(1, &service, 9.0), 0.5);
    }

    #[test]
    fn the_error_is_calibrated_within_its_range() {
        assert_eq!(Null::default().error(), ERROR_DEFAULT);
        let mut null = Null::default();
        [0.0, 9.0, -9.0, 4.0, -4.0].into_iter().for_each(|error| null.add_error(error));
        assert_eq!(null.error(), ERROR_RANGE.1);
    }
}
