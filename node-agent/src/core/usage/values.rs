//! The samples of one window.

use std::collections::BTreeMap;

use sage_common::{Metric, MetricValue, Micros, UsageQuantiles};

use super::{Pressure, rates::Counter};

/// Samples of one metric kept per window: an hour of seconds, the longest window that the configuration accepts.
pub const SAMPLES_MAX: usize = 3_600;

/// The samples of one window by metric.
#[derive(Debug, Default)]
pub(super) struct Values(BTreeMap<Metric, Vec<f32>>);

impl Values {
    /// Keeps a value if it is there, finite and not negative.
    pub(super) fn push(&mut self, metric: Metric, value: Option<f64>) {
        let Some(value) = value.map(|value| value as f32).filter(|value| value.is_finite() && *value >= 0.0) else {
            return;
        };
        let values = self.0.entry(metric).or_default();
        if values.len() < SAMPLES_MAX {
            values.push(value);
        }
    }

    /// The percentiles of every metric; nothing is left.
    pub(super) fn drain(&mut self) -> Vec<MetricValue> {
        let grid = |(metric, mut values): (Metric, Vec<f32>)| {
            UsageQuantiles::of_values(&mut values).map(|quantiles| MetricValue { metric, quantiles })
        };
        std::mem::take(&mut self.0).into_iter().filter_map(grid).collect()
    }
}

/// Counters of the three PSI totals.
#[derive(Debug, Default)]
pub(super) struct PressureRates([Counter; 3]);

impl PressureRates {
    pub(super) fn advance(&mut self, at: Micros, pressure: &Pressure, values: &mut Values) {
        let totals = [
            (Metric::CpuPressure, pressure.cpu_us),
            (Metric::MemoryPressure, pressure.memory_us),
            (Metric::IoPressure, pressure.io_us),
        ];
        for (counter, (metric, total)) in self.0.iter_mut().zip(totals) {
            values.push(metric, counter.rate(at, total).map(|us_per_s| (us_per_s / 1e6).min(1.0)));
        }
    }
}

/// `part` over `whole`, where both are known and there is a whole.
pub(super) fn share(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    part.zip(whole.filter(|whole| *whole > 0.0)).map(|(part, whole)| part / whole)
}
