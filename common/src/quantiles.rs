//! The fixed percentile grids on which latency and usage leave a node.

use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};

/// Percentiles of latency. Loss makes tails bimodal between p95 and p99, so the grid is dense there.
pub const LATENCY_PERCENTILES: [f64; 12] = [10.0, 25.0, 50.0, 75.0, 85.0, 90.0, 95.0, 97.0, 98.0, 99.0, 99.5, 100.0];

/// Percentiles of usage over the one-second samples of a window.
pub const USAGE_PERCENTILES: [f64; 6] = [10.0, 25.0, 50.0, 75.0, 90.0, 100.0];

/// Latency at [`LATENCY_PERCENTILES`], in microseconds; finite and not decreasing.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(transparent)]
pub struct LatencyQuantiles(pub [f32; LATENCY_PERCENTILES.len()]);

impl LatencyQuantiles {
    /// The grid of `histogram` (microseconds), by one cumulative pass; `None` when it is empty.
    pub fn of<C: Counter>(histogram: &Histogram<C>) -> Option<Self> {
        grid(histogram, &LATENCY_PERCENTILES).map(Self)
    }

    /// The grid of unsorted `values` (microseconds); `None` when there are none. Sorts in place.
    pub fn of_values(values: &mut [f32]) -> Option<Self> {
        grid_of_values(values, &LATENCY_PERCENTILES).map(Self)
    }

    /// Latency at `percentile` in microseconds, linear between grid points and flat outside.
    pub fn at(&self, percentile: f64) -> f32 {
        let above = LATENCY_PERCENTILES.partition_point(|p| *p < percentile);
        match above {
            0 => self.0[0],
            n if n == self.0.len() => self.0[n - 1],
            n => {
                let (p0, p1) = (LATENCY_PERCENTILES[n - 1], LATENCY_PERCENTILES[n]);
                let share = ((percentile - p0) / (p1 - p0)) as f32;
                self.0[n - 1] + share * (self.0[n] - self.0[n - 1])
            }
        }
    }

    /// Whether every value is finite, not negative, and no smaller than the one before.
    pub fn is_valid(&self) -> bool {
        self.0.iter().all(|value| value.is_finite() && *value >= 0.0) && self.0.is_sorted()
    }
}

/// Usage at [`USAGE_PERCENTILES`], in the metric's own unit.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(transparent)]
pub struct UsageQuantiles(pub [f32; USAGE_PERCENTILES.len()]);

impl UsageQuantiles {
    /// The grid of unsorted `values`; `None` when there are none. Sorts in place.
    pub fn of_values(values: &mut [f32]) -> Option<Self> {
        grid_of_values(values, &USAGE_PERCENTILES).map(Self)
    }

    /// The median.
    pub fn median(&self) -> f32 {
        self.0[2]
    }

    /// Mean of the median and everything above it.
    pub fn upper_mean(&self) -> f32 {
        self.0[2..].iter().sum::<f32>() / (self.0.len() - 2) as f32
    }

    /// Whether every value is finite and no smaller than the one before.
    pub fn is_valid(&self) -> bool {
        self.0.iter().all(|value| value.is_finite()) && self.0.is_sorted()
    }
}

fn grid<C: Counter, const N: usize>(histogram: &Histogram<C>, percentiles: &[f64; N]) -> Option<[f32; N]> {
    let total = histogram.len();
    if total == 0 {
        return None;
    }
    let mut values = [0.0; N];
    let mut next = 0;
    let mut seen = 0_u64;
    for bucket in histogram.iter_recorded() {
        seen += bucket.count_since_last_iteration();
        while next < N && seen as f64 >= percentiles[next] / 100.0 * total as f64 {
            values[next] = bucket.value_iterated_to() as f32;
            next += 1;
        }
    }
    let last = if next == 0 { histogram.max() as f32 } else { values[next - 1] };
    values[next..].fill(last);
    Some(values)
}

fn grid_of_values<const N: usize>(values: &mut [f32], percentiles: &[f64; N]) -> Option<[f32; N]> {
    values.sort_unstable_by(f32::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some(percentiles.map(|percentile| {
        let rank = (percentile / 100.0 * values.len() as f64).ceil() as usize;
        values[rank.saturating_sub(1).min(last)]
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_of_a_histogram_agrees_with_its_own_percentiles() {
        let mut histogram = Histogram::<u32>::new(2).expect("two digits");
        for value in 1..=10_000 {
            histogram.record(value).expect("auto-resizing");
        }
        let quantiles = LatencyQuantiles::of(&histogram).expect("not empty");
        for (value, percentile) in quantiles.0.iter().zip(LATENCY_PERCENTILES) {
            let own = histogram.value_at_percentile(percentile) as f32;
            assert!((value - own).abs() <= own * 0.011, "p{percentile}: {value} against {own}");
        }
        assert!(quantiles.is_valid());
    }

    #[test]
    fn empty_input_has_no_quantiles() {
        assert_eq!(LatencyQuantiles::of(&Histogram::<u32>::new(2).expect("two digits")), None);
        assert_eq!(UsageQuantiles::of_values(&mut []), None);
    }

    #[test]
    fn one_value_fills_the_grid() {
        assert_eq!(UsageQuantiles::of_values(&mut [3.0]), Some(UsageQuantiles([3.0; 6])));
    }

    #[test]
    fn interpolation_meets_the_grid_points() {
        let quantiles =
            LatencyQuantiles::of_values(&mut (1..=1000).map(|v| v as f32).collect::<Vec<_>>()).expect("full");
        assert_eq!(quantiles.at(99.0), 990.0);
        assert_eq!(quantiles.at(5.0), quantiles.0[0]);
        assert!((quantiles.at(99.25) - 992.5).abs() < 0.01);
    }
}
