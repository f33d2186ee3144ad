//! What is normal to simple systems: mean and deviation of a logarithm, and a level that follows load.

use sage_causal::robust::{REGRESSORS, Regression, Row};

/// Values to learn from below which nothing is normal.
const VALUES_MIN: usize = 8;

/// Least deviation, in logs: a metric that never moved is not infinitely far off when it does.
const DEVIATION_FLOOR: f64 = 0.05;

/// A value below this part of its usual is as good as zero.
const NEGLIGIBLE: f64 = 0.1;

/// No floor is smaller: shares of time and rates of events below this slow nobody.
const FLOOR: f64 = 0.01;

/// A normal distribution of `ln(x + floor)`.
#[derive(Clone, Copy, Debug)]
pub struct Gauss {
    mean: f64,
    deviation: f64,
    floor: f64,
}

impl Gauss {
    /// Learns from `values`; `None` when there are too few.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.len() < VALUES_MIN {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let floor = (NEGLIGIBLE * sorted[sorted.len() / 2]).max(FLOOR);
        let logs: Vec<f64> = values.iter().map(|value| (value.max(0.0) + floor).ln()).collect();
        let mean = logs.iter().sum::<f64>() / logs.len() as f64;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (logs.len() - 1) as f64;
        Some(Self { mean, deviation: variance.sqrt().max(DEVIATION_FLOOR), floor })
    }

    /// Deviations of `value` above the mean.
    pub fn z(&self, value: f64) -> f64 {
        ((value.max(0.0) + self.floor).ln() - self.mean) / self.deviation
    }
}

/// A latency that follows load: `ln us = a + b ln(calls + 1)`, robustly.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    fit: Regression,
}

impl Loaded {
    /// Learns from `(calls, us)`; `None` when there are too few.
    pub fn of(values: &[(f64, f64)]) -> Option<Self> {
        if values.len() < VALUES_MIN {
            return None;
        }
        let rows: Vec<Row> = values.iter().map(|(calls, _)| row(*calls)).collect();
        let logs: Vec<f64> = values.iter().map(|(_, us)| us.max(1.0).ln()).collect();
        Regression::fit(&rows, &logs, 1, DEVIATION_FLOOR).map(|fit| Self { fit })
    }

    /// The normal latency at `calls`, microseconds.
    pub fn us(&self, calls: f64) -> f64 {
        self.fit.at(&row(calls)).exp()
    }

    /// Deviations of `us` above normal.
    pub fn z(&self, calls: f64, us: f64) -> f64 {
        (us.max(1.0).ln() - self.fit.at(&row(calls))) / self.fit.scale
    }
}

fn row(calls: f64) -> Row {
    let mut row = [0.0; REGRESSORS];
    row[0] = (calls.max(0.0) + 1.0).ln();
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_counted_in_deviations_of_the_log() {
        // ln(x + 10) for x = 90 and 172.8: 4.605 and 5.208; mean 4.907, deviation 0.312 with n - 1 of ten values.
        let values: Vec<f64> = (0..10).map(|i| if i % 2 == 0 { 90.0 } else { 172.8 }).collect();
        let gauss = Gauss::of(&values).expect("enough");
        assert!((gauss.floor - 17.28).abs() < 1e-9);
        assert!(gauss.z(172.8) > 0.9 && gauss.z(172.8) < 1.0 && gauss.z(90.0) < -0.9);
        assert!(Gauss::of(&values[..7]).is_none());
    }

    #[test]
    fn a_latency_that_grows_with_load_is_normal_at_that_load() {
        let values: Vec<(f64, f64)> = (1..40).map(|i| (f64::from(i) * 50.0, f64::from(i) * 100.0)).collect();
        let loaded = Loaded::of(&values).expect("enough");
        assert!((loaded.us(500.0) / 1_000.0).ln().abs() < 0.1, "{}", loaded.us(500.0));
        assert!(loaded.z(500.0, 1_000.0).abs() < 2.0 && loaded.z(500.0, 4_000.0) > 5.0);
    }
}
