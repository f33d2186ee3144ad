//! Histograms and summaries as their counters, as Prometheus writes them: `NAME_bucket{le}`, `NAME_count`, `NAME_sum`,
//! `NAME{quantile}`. Pure.
//!
//! Only those whose name speaks of latency are taken apart. Of others there is one point, their count, so that the name is
//! told like any other that nobody knows.

use opentelemetry_proto::tonic::metrics::v1::{ExponentialHistogramDataPoint, HistogramDataPoint, SummaryDataPoint};

use super::{
    points::{Kind, Point},
    spoken::Row,
};

/// Buckets of one histogram at most: OpenTelemetry's finest have 160.
const BUCKETS_MAX: usize = 320;

/// Resolution to which exponential buckets are joined: four to each doubling.
const SCALE_MAX: i32 = 2;

/// One histogram, or a summary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    count: f64,
    sum: Option<f64>,
    at_most: Vec<(f64, f64)>,   // upper bound and how many are not above it
    quantiles: Vec<(f64, f64)>, // quantile from 0 to 1, and value
}

impl Histogram {
    /// Buckets between `bounds`, one more than there are bounds. `None` when it says nothing.
    pub fn explicit(count: Option<f64>, sum: Option<f64>, bounds: &[f64], counts: &[f64]) -> Option<Self> {
        let is_fit = counts.len() == bounds.len() + 1 && bounds.len() <= BUCKETS_MAX;
        let mut below = 0.0;
        let add = |(bound, own): (&f64, &f64)| {
            below += own.max(0.0);
            (*bound, below)
        };
        let at_most: Vec<(f64, f64)> = if is_fit { bounds.iter().zip(counts).map(add).collect() } else { Vec::new() };
        let count = count.or_else(|| is_fit.then(|| counts.iter().sum()))?;
        Some(Self { count, sum, at_most, quantiles: Vec::new() })
    }

    /// Bucket i lies between base^(offset + i) and base^(offset + i + 1), base = 2^(2^-scale). `None` when it says nothing.
    pub fn exponential(
        count: Option<f64>,
        sum: Option<f64>,
        scale: i32,
        offset: i32,
        zeros: f64,
        counts: &[f64],
    ) -> Option<Self> {
        let joined = (scale - SCALE_MAX).clamp(0, 30);
        let scale = scale - joined;
        let mut below = zeros.max(0.0);
        let mut at_most: Vec<(f64, f64)> = Vec::new();
        for (own, at) in counts.iter().take(BUCKETS_MAX).zip(i64::from(offset)..) {
            below += own.max(0.0);
            let bound = (((at >> joined) + 1) as f64 * (-f64::from(scale)).exp2()).exp2();
            match at_most.last_mut().filter(|last| last.0 == bound) {
                Some(last) => last.1 = below,
                None if bound.is_finite() => at_most.push((bound, below)),
                None => {}
            }
        }
        let count = count.or_else(|| (below > 0.0).then_some(below))?;
        Some(Self { count, sum, at_most, quantiles: Vec::new() })
    }

    /// A summary: quantiles from 0 to 1 and their values.
    pub fn quantiles(count: Option<f64>, sum: Option<f64>, quantiles: impl Iterator<Item = (f64, f64)>) -> Self {
        let quantiles = quantiles.take(BUCKETS_MAX).collect();
        Self { count: count.unwrap_or(0.0), sum, at_most: Vec::new(), quantiles }
    }

    /// As protobuf has it.
    pub fn of_explicit(point: &HistogramDataPoint) -> Option<Self> {
        let counts: Vec<f64> = point.bucket_counts.iter().map(|count| *count as f64).collect();
        Self::explicit(Some(point.count as f64), point.sum, &point.explicit_bounds, &counts)
    }

    /// As protobuf has it.
    pub fn of_exponential(point: &ExponentialHistogramDataPoint) -> Option<Self> {
        let buckets = point.positive.as_ref();
        let counts: Vec<f64> = buckets.iter().flat_map(|own| &own.bucket_counts).map(|count| *count as f64).collect();
        let offset = buckets.map_or(0, |own| own.offset);
        Self::exponential(Some(point.count as f64), point.sum, point.scale, offset, point.zero_count as f64, &counts)
    }

    /// As protobuf has it.
    pub fn of_summary(point: &SummaryDataPoint) -> Self {
        let quantiles = point.quantile_values.iter().map(|own| (own.quantile, own.value));
        Self::quantiles(Some(point.count as f64), Some(point.sum), quantiles)
    }

    /// Hands its counters to `sink`; `whole` says name, attributes, time and kind.
    pub fn tell(&self, whole: &Point, mut sink: impl FnMut(Point)) {
        let mut tell = |ending: &str, value: f64, kind, extra: Option<(&str, String)>| {
            let mut attributes = whole.attributes.clone();
            if let Some((key, text)) = extra {
                attributes.push((key.to_owned(), text));
                attributes.sort();
            }
            if value.is_finite() {
                sink(Point { name: whole.name.clone() + ending, attributes, value, kind, ..whole.clone() });
            }
        };
        if !Row::of(&whole.name).is_some_and(|row| row.is_duration()) {
            return tell("", self.count, whole.kind, None);
        }
        for (bound, count) in &self.at_most {
            tell("_bucket", *count, whole.kind, Some(("le", bound.to_string())));
        }
        if !self.at_most.is_empty() {
            tell("_bucket", self.count, whole.kind, Some(("le", "+Inf".to_owned())));
        }
        for (quantile, value) in &self.quantiles {
            tell("", *value, Kind::Gauge, Some(("quantile", quantile.to_string())));
        }
        tell("_count", self.count, whole.kind, None);
        if let Some(sum) = self.sum {
            tell("_sum", sum, whole.kind, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use sage_common::Timestamp;

    use super::*;

    fn told(histogram: &Histogram, name: &str) -> Vec<(String, Option<String>, f64)> {
        let whole = Point {
            name: name.to_owned(),
            unit: "s".to_owned(),
            attributes: Vec::new(),
            at: Timestamp::default(),
            value: 0.0,
            kind: Kind::Cumulative,
        };
        let mut all = Vec::new();
        histogram.tell(&whole, |point| {
            let told = point.attribute("le").or_else(|| point.attribute("quantile")).map(str::to_owned);
            all.push((point.name, told, point.value));
        });
        all
    }

    fn row(name: &str, bound: Option<&str>, value: f64) -> (String, Option<String>, f64) {
        (name.to_owned(), bound.map(str::to_owned), value)
    }

    #[test]
    fn buckets_count_what_is_not_above_their_bound() {
        let histogram = Histogram::explicit(Some(6.0), Some(2.5), &[0.1, 0.5], &[1.0, 2.0, 3.0]).expect("whole");
        assert_eq!(
            told(&histogram, "http.server.duration"),
            [
                row("http.server.duration_bucket", Some("0.1"), 1.0),
                row("http.server.duration_bucket", Some("0.5"), 3.0),
                row("http.server.duration_bucket", Some("+Inf"), 6.0),
                row("http.server.duration_count", None, 6.0),
                row("http.server.duration_sum", None, 2.5),
            ]
        );
    }

    #[test]
    fn exponential_buckets_are_joined_to_four_in_each_doubling() {
        let fine = Histogram::exponential(Some(9.0), None, 3, 8, 1.0, &[1.0, 2.0, 3.0, 2.0]).expect("whole");
        let bounds: Vec<(i64, f64)> =
            fine.at_most.iter().map(|(bound, count)| ((bound * 1e3) as i64, *count)).collect();
        assert_eq!(bounds, [(2_378, 4.0), (2_828, 9.0)]);
        let coarse = Histogram::exponential(Some(3.0), None, -1, -1, 0.0, &[1.0, 2.0]).expect("whole");
        assert_eq!(coarse.at_most, [(1.0, 1.0), (4.0, 3.0)]);
    }

    #[test]
    fn summaries_tell_quantiles() {
        let summary = Histogram::quantiles(Some(3.0), Some(1.0), [(0.5, 0.25)].into_iter());
        assert_eq!(
            told(&summary, "http_request_duration_seconds")[0],
            row("http_request_duration_seconds", Some("0.5"), 0.25)
        );
    }

    #[test]
    fn what_is_no_latency_is_one_point() {
        let histogram = Histogram::explicit(None, None, &[1.0], &[1.0, 2.0]).expect("whole");
        assert_eq!(told(&histogram, "jvm.gc.pause"), [row("jvm.gc.pause", None, 3.0)]);
        assert_eq!(Histogram::explicit(None, None, &[], &[]), None);
    }
}
