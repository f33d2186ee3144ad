//! The durations of one call in one window.

use hdrhistogram::{
    Histogram,
    serialization::{Serializer, V2Serializer},
};
use sage_common::{LatencyQuantiles, Micros};

/// Durations are kept one by one up to this number, then as a histogram of 2 significant digits (10 to 20 KB): a node
/// with thousands of rare operations pays for what it sees, 8 bytes a call.
const LIST_MAX: usize = 96;

/// Calls and their durations in microseconds.
#[derive(Debug)]
pub(super) struct Series {
    /// Weighted by sampling.
    pub calls: f64,
    /// Of those, failed ones.
    pub errors: f64,
    durations: Durations,
}

#[derive(Debug)]
enum Durations {
    List(Vec<(u32, u32)>),
    Histogram(Histogram<u32>),
}

impl Default for Series {
    fn default() -> Self {
        Self { calls: 0.0, errors: 0.0, durations: Durations::List(Vec::new()) }
    }
}

impl Series {
    /// Adds one span that stands for `weight` calls.
    pub fn record(&mut self, duration: Micros, weight: f32, is_error: bool) {
        self.calls += f64::from(weight);
        if is_error {
            self.errors += f64::from(weight);
        }
        let micros = u32::try_from(duration.get()).unwrap_or(u32::MAX);
        let count = weight.round().max(1.0) as u32;
        match &mut self.durations {
            Durations::List(list) if list.len() < LIST_MAX => list.push((micros, count)),
            Durations::List(list) => {
                list.push((micros, count));
                if let Some(histogram) = histogram_of(list) {
                    self.durations = Durations::Histogram(histogram);
                }
            }
            Durations::Histogram(histogram) => add(histogram, u64::from(micros), count),
        }
    }

    /// The percentiles; `None` when nothing was recorded.
    pub fn quantiles(&self) -> Option<LatencyQuantiles> {
        self.with_histogram(LatencyQuantiles::of).flatten()
    }

    /// Adds the durations to `sum`.
    pub fn add_to(&self, sum: &mut Histogram<u32>) {
        self.with_histogram(|own| {
            for bucket in own.iter_recorded() {
                add(sum, bucket.value_iterated_to(), bucket.count_at_value());
            }
        });
    }

    /// hdrhistogram V2 bytes, uncompressed.
    pub fn to_v2(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.with_histogram(|histogram| {
            // Writing to memory fails only for counts above 63 bits.
            if V2Serializer::new().serialize(histogram, &mut bytes).is_err() {
                bytes.clear();
            }
        });
        bytes
    }

    fn with_histogram<T>(&self, read: impl FnOnce(&Histogram<u32>) -> T) -> Option<T> {
        match &self.durations {
            Durations::List(list) => histogram_of(list).as_ref().map(read),
            Durations::Histogram(histogram) => Some(read(histogram)),
        }
    }
}

/// An empty histogram of the resolution used everywhere.
pub(super) fn histogram() -> Option<Histogram<u32>> {
    Histogram::new(2).ok()
}

/// Counts saturate by themselves; a value can only be refused by a histogram that does not resize itself.
fn add(histogram: &mut Histogram<u32>, micros: u64, count: u32) {
    if histogram.record_n(micros, count).is_err() {
        histogram.saturating_record_n(micros, count);
    }
}

fn histogram_of(list: &[(u32, u32)]) -> Option<Histogram<u32>> {
    let mut histogram = histogram()?;
    for (micros, count) in list {
        add(&mut histogram, u64::from(*micros), *count);
    }
    Some(histogram)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;

    use super::*;

    fn series(durations: impl Iterator<Item = u64>) -> Series {
        let mut series = Series::default();
        for duration in durations {
            series.record(Micros::new(duration), 1.0, false);
        }
        series
    }

    #[test]
    fn few_and_many_durations_have_the_same_percentiles() {
        for count in [LIST_MAX as u64, LIST_MAX as u64 + 1, 5000] {
            let quantiles = series((1..=count).map(|n| n * 1000)).quantiles().expect("not empty");
            let median = count as f32 * 500.0;
            assert!((quantiles.at(50.0) - median).abs() < median * 0.03 + 1000.0, "{count}: {}", quantiles.at(50.0));
        }
        assert_eq!(Series::default().quantiles(), None);
    }

    #[test]
    fn sampled_spans_count_for_those_left_out() {
        let mut series = Series::default();
        series.record(Micros::new(100), 100.0, true);
        series.record(Micros::new(9000), 1.0, false);
        assert_eq!((series.calls, series.errors), (101.0, 100.0));
        assert!(series.quantiles().expect("full").at(95.0) < 110.0);
    }

    #[test]
    fn entry_bytes_read_back_as_the_same_histogram() {
        let bytes = series(1..=1000).to_v2();
        let back: Histogram<u32> = Deserializer::new().deserialize(&mut bytes.as_slice()).expect("own bytes");
        assert_eq!(back.len(), 1000);
        assert!(back.value_at_quantile(0.99).abs_diff(990) <= 10);
    }
}
