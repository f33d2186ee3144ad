//! How a usage metric enters the model: two views of it, a floor, and a scale on which its noise is even.

use sage_common::{Metric, UsageQuantiles};
use serde::{Deserialize, Serialize};

use crate::robust;

/// Robust standard deviation below which no metric's normal is believed, in logs.
const SCALE_FLOOR: f64 = 0.1;
/// The same for counts, on the scale of a quarter of the square root: a Poisson count has 0.125 there.
const COUNT_SCALE_FLOOR: f64 = 0.16;
/// Training holds harmless contention; its tails are wider than its middle.
const SCALE_WIDENING: f64 = 1.3;

/// One metric over one window, reduced to what the model uses; in the metric's own unit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Median over the samples.
    pub median: f64,
    /// Mean of the median and everything above.
    pub upper: f64,
    /// Mean over the samples.
    pub mean: f64,
}

impl Reading {
    /// The views of `quantiles`; `None` when they are not finite.
    pub fn of(quantiles: &UsageQuantiles) -> Option<Self> {
        const WIDTHS: [f64; 6] = [0.175, 0.2, 0.25, 0.2, 0.125, 0.05];
        let mean = quantiles.0.iter().zip(WIDTHS).map(|(value, width)| f64::from(*value) * width).sum();
        quantiles.is_valid().then(|| Self {
            median: f64::from(quantiles.median()),
            upper: f64::from(quantiles.upper_mean()),
            mean,
        })
    }

    /// View by view, the median of `readings`; `None` when there are none. Of an even number, the mean of the middle two.
    pub fn median_of(readings: &[Self]) -> Option<Self> {
        let view = |pick: fn(&Self) -> f64| {
            let mut values: Vec<f64> = readings.iter().map(pick).collect();
            values.sort_unstable_by(f64::total_cmp);
            let (below, above) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
            Some(0.5 * (below + above))
        };
        Some(Self { median: view(|r| r.median)?, upper: view(|r| r.upper)?, mean: view(|r| r.mean)? })
    }
}

/// Readings added up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    sum: Reading,
    count: f64,
}

impl Total {
    /// Adds one.
    pub fn add(&mut self, reading: &Reading) {
        self.sum.median += reading.median;
        self.sum.upper += reading.upper;
        self.sum.mean += reading.mean;
        self.count += 1.0;
    }

    /// View by view, the mean; `None` when there are none.
    pub fn mean(&self) -> Option<Reading> {
        let Reading { median, upper, mean } = self.sum;
        let of = |sum: f64| sum / self.count;
        (self.count > 0.0).then(|| Reading { median: of(median), upper: of(upper), mean: of(mean) })
    }
}

/// The scale of one metric: `0.5 (ln(median + floor) + ln(upper + floor))`, or a quarter of the square root of a count.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct UsageScale {
    metric: Metric,
    floor: f64,
    window_s: f64,
}

impl UsageScale {
    /// Learns the floor from `readings` of windows of `window_s` seconds: a tenth of the median, at least what matters.
    pub fn learn(metric: Metric, readings: &[Reading], window_s: f64) -> Self {
        let mut medians: Vec<f64> = readings.iter().map(|reading| reading.median).collect();
        let median = robust::median(&mut medians).unwrap_or(0.0);
        Self { metric, floor: (0.1 * median).max(negligible(metric)), window_s }
    }

    /// The value that enters fits and nets.
    pub fn value(&self, reading: &Reading) -> f64 {
        if self.metric.spec().is_count {
            0.25 * (reading.mean * self.window_s).max(0.0).sqrt()
        } else {
            let log = |value: f64| (value.max(0.0) + self.floor).ln();
            0.5 * (log(reading.median) + log(reading.upper))
        }
    }

    /// The metric in its own unit that [`value`](Self::value) maps to `value`.
    pub fn unit(&self, value: f64) -> f64 {
        if self.metric.spec().is_count {
            (4.0 * value.max(0.0)).powi(2) / self.window_s.max(f64::MIN_POSITIVE)
        } else {
            (value.exp() - self.floor).max(0.0)
        }
    }

    /// Least standard deviation of [`value`](Self::value).
    pub fn scale_floor(&self) -> f64 {
        if self.metric.spec().is_count { COUNT_SCALE_FLOOR } else { SCALE_FLOOR }
    }

    /// The standard deviation to judge by, from the one of the residuals.
    pub fn judged(&self, scale: f64) -> f64 {
        (SCALE_WIDENING * scale).max(self.scale_floor())
    }
}

/// An amount of a metric, in its own unit, that slows nobody: a doubling from below it must not look like a factor.
const fn negligible(metric: Metric) -> f64 {
    match metric {
        Metric::CpuUsed | Metric::NodeCpuCoRunners => 0.05,
        Metric::CpuLimitShare
        | Metric::CpuThrottled
        | Metric::RunQueueWait
        | Metric::CpuPressure
        | Metric::NodeCpuUtilisation
        | Metric::NodeCpuSteal
        | Metric::MemoryLimitShare
        | Metric::MemoryPressure
        | Metric::NodeMemoryUtilisation
        | Metric::IoPressure
        | Metric::NodeDiskUtilisation => 0.05,
        Metric::ContextSwitches => 100.0,
        Metric::MemoryUsed => 4e6,
        Metric::LlcMisses => 1e5,
        Metric::DiskBytes | Metric::NodeNetworkReceived | Metric::NodeNetworkSent => 65_536.0,
        Metric::DiskOperations => 5.0,
        Metric::NodeDiskAwait => 0.5,
        Metric::RoundTrip => 0.1,
        Metric::NodeQdiscBacklog => 3_000.0,
        Metric::MajorFaults | Metric::Retransmits | Metric::NodeNetworkDrops => 1.0,
        Metric::Threads | Metric::OpenFiles | Metric::Connections => 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_series_is_its_own_three_views() {
        let reading = Reading::of(&UsageQuantiles([2.0; 6])).expect("finite");
        assert!((reading.mean - 2.0).abs() < 1e-12);
        assert_eq!((reading.median, reading.upper), (2.0, 2.0));
        assert_eq!(Reading::of(&UsageQuantiles([f32::NAN; 6])), None);
    }

    #[test]
    fn values_come_back_in_their_own_unit() {
        let readings = [Reading { median: 40.0, upper: 40.0, mean: 40.0 }];
        for metric in [Metric::ContextSwitches, Metric::Retransmits] {
            let scale = UsageScale::learn(metric, &readings, 10.0);
            assert!((scale.unit(scale.value(&readings[0])) - 40.0).abs() < 1e-9, "{metric:?}");
        }
    }

    #[test]
    fn the_median_replica_speaks_for_the_service() {
        let reading = |v| Reading { median: v, upper: v, mean: v };
        assert_eq!(Reading::median_of(&[reading(1.0), reading(9.0), reading(2.0)]), Some(reading(2.0)));
        assert_eq!(Reading::median_of(&[reading(1.0), reading(3.0)]), Some(reading(2.0)));
        assert_eq!(Reading::median_of(&[]), None);
    }

    #[test]
    fn a_trace_of_pressure_is_not_many_scales_from_none() {
        let calm = Reading::default();
        let scale = UsageScale::learn(Metric::CpuPressure, &[calm], 10.0);
        let slight = Reading { median: 0.01, upper: 0.01, mean: 0.01 };
        assert!((scale.value(&slight) - scale.value(&calm)) / scale.judged(0.0) < 3.0);
    }
}
