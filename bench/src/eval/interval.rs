//! Confidence intervals: Wilson's for shares, the percentile bootstrap for means of anything else.

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Two-sided 95 %.
const Z: f64 = 1.959_963_984_540_054;

/// Resamples of a bootstrap: the 2.5 % point of a thousand has 25 below it.
const RESAMPLES: usize = 1_000;

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The mean of `values` with its interval: Wilson's when all are 0 or 1. `None` when there are none.
pub fn mean(values: &[f64], seed: u64) -> Option<Estimate> {
    if values.is_empty() {
        return None;
    }
    if values.iter().all(|value| *value == 0.0 || *value == 1.0) {
        return Some(wilson(values.iter().sum(), values.len() as f64));
    }
    Some(bootstrap(values, seed, |values| values.iter().sum::<f64>() / values.len() as f64))
}

/// The median of `values` with its bootstrap interval. `None` when there are none.
pub fn median(values: &[f64], seed: u64) -> Option<Estimate> {
    (!values.is_empty()).then(|| bootstrap(values, seed, middle))
}

/// `hits` of `count`: centre `(p + z²/2n) / (1 + z²/n)`, half width `z sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n)`.
///
/// # Source
///
/// Wilson, *Probable Inference, the Law of Succession, and Statistical Inference*, 1927.
pub fn wilson(hits: f64, count: f64) -> Estimate {
    let p = hits / count;
    let z2 = Z * Z / count;
    let centre = (p + z2 / 2.0) / (1.0 + z2);
    let half = Z * (p * (1.0 - p) / count + z2 / (4.0 * count)).sqrt() / (1.0 + z2);
    Estimate { value: p, low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

/// `statistic` of `values`, with the 2.5 and 97.5 % points of its resamples. The same seed gives the same interval.
pub fn bootstrap(values: &[f64], seed: u64, statistic: impl Fn(&[f64]) -> f64) -> Estimate {
    let mut draw = SmallRng::seed_from_u64(seed);
    let mut sample = vec![0.0; values.len()];
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            sample.fill_with(|| values[draw.random_range(0..values.len())]);
            statistic(&sample)
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| means[((RESAMPLES - 1) as f64 * share).round() as usize];
    Estimate { value: statistic(values), low: at(0.025), high: at(0.975) }
}

fn middle(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    0.5 * (values[(values.len() - 1) / 2] + values[values.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilsons_interval_is_the_one_worked_out_by_hand() {
        // p = 0.8, n = 10: z² / n = 0.38415; centre (0.8 + 0.19207) / 1.38415 = 0.71674,
        // half 1.95996 * sqrt(0.016 + 0.0096036) / 1.38415 = 0.22658.
        let estimate = wilson(8.0, 10.0);
        assert!((estimate.low - 0.49016).abs() < 1e-4, "{estimate:?}");
        assert!((estimate.high - 0.94332).abs() < 1e-4, "{estimate:?}");
        // All of 100: lower end 100 / (100 + z²) = 0.96301.
        let all = wilson(100.0, 100.0);
        assert!((all.low - 0.963_006).abs() < 1e-5 && all.high == 1.0, "{all:?}");
    }

    #[test]
    fn the_bootstrap_of_a_mean_is_near_the_normal_interval() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 20)).collect();
        let estimate = mean(&values, 1).expect("values");
        // Standard deviation of 0..19 is 5.766, of the mean of 400 0.2883: 9.5 +- 0.565.
        assert!((estimate.value - 9.5).abs() < 1e-12);
        assert!((estimate.low - 8.935).abs() < 0.1 && (estimate.high - 10.065).abs() < 0.1, "{estimate:?}");
        assert_eq!(mean(&values, 1), Some(estimate));
    }

    #[test]
    fn shares_get_wilsons_interval_and_nothing_none() {
        assert_eq!(mean(&[1.0, 0.0, 1.0, 1.0], 9), Some(wilson(3.0, 4.0)));
        assert_eq!((mean(&[], 9), median(&[], 9)), (None, None));
        assert_eq!(median(&[1.0, 9.0, 2.0], 9).map(|e| e.value), Some(2.0));
    }
}
