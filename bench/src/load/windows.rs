//! What came back, by window and in all. Pure: durations in, percentiles out.

use hdrhistogram::Histogram;
use serde::Serialize;

/// One window's results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WindowReport {
    /// Its end, seconds since the start.
    pub t: f64,
    /// Requests sent in it.
    pub sent: u64,
    /// Answers that arrived in it.
    pub completed: u64,
    /// Requests that failed in it: refused, broken, answered with an error.
    pub errors: u64,
    /// Median from when they were due, milliseconds; `None` without answers.
    pub p50: Option<f64>,
    /// 95th percentile.
    pub p95: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}

/// The whole run's results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How long requests were sent, seconds.
    pub duration_s: f64,
    /// Sums and percentiles over the run, as in a window.
    #[serde(flatten)]
    pub total: WindowReport,
    /// The same by kind of request, in the order of the file.
    pub requests: Vec<RequestSummary>,
}

/// One kind's results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequestSummary {
    /// The kind's name.
    pub id: String,
    /// Answers.
    pub completed: u64,
    /// Failures.
    pub errors: u64,
    /// Median, milliseconds.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
}

/// Collects the results of a run.
#[derive(Debug)]
pub struct Windows {
    window: Tally,
    total: Tally,
    kinds: Vec<(String, Tally)>,
}

/// Nothing answers later: callers give up before. One minute in microseconds.
const LATENCY_MAX_US: u64 = 60_000_000;
/// Three digits cost 100 KB a histogram and keep the 99th percentile to 0.1 %.
const DIGITS: u8 = 3;

#[derive(Debug)]
struct Tally {
    sent: u64,
    errors: u64,
    /// `None` only if the constants above were no histogram.
    latencies_us: Option<Histogram<u64>>,
}

impl Tally {
    fn new() -> Self {
        Self { sent: 0, errors: 0, latencies_us: Histogram::new_with_max(LATENCY_MAX_US, DIGITS).ok() }
    }

    fn record(&mut self, latency_us: Option<u64>) {
        match (latency_us, &mut self.latencies_us) {
            (Some(latency), Some(histogram)) => histogram.saturating_record(latency),
            _ => self.errors += 1,
        }
    }

    fn report(&self, t: f64) -> WindowReport {
        WindowReport {
            t,
            sent: self.sent,
            completed: self.latencies_us.as_ref().map_or(0, Histogram::len),
            errors: self.errors,
            p50: self.quantile_ms(0.5),
            p95: self.quantile_ms(0.95),
            p99: self.quantile_ms(0.99),
            max: self.quantile_ms(1.0),
        }
    }

    fn quantile_ms(&self, q: f64) -> Option<f64> {
        let histogram = self.latencies_us.as_ref().filter(|histogram| !histogram.is_empty())?;
        Some(histogram.value_at_quantile(q) as f64 / 1e3)
    }
}

impl Windows {
    /// Nothing yet, for requests of these kinds.
    pub fn new(kinds: impl IntoIterator<Item = String>) -> Self {
        let kinds = kinds.into_iter().map(|id| (id, Tally::new())).collect();
        Self { window: Tally::new(), total: Tally::new(), kinds }
    }

    /// One request has left.
    pub fn sent(&mut self) {
        self.window.sent += 1;
        self.total.sent += 1;
    }

    /// One request of that kind was answered so long after it was due, or failed.
    pub fn finished(&mut self, kind: usize, latency_us: Option<u64>) {
        self.window.record(latency_us);
        self.total.record(latency_us);
        if let Some((_, tally)) = self.kinds.get_mut(kind) {
            tally.record(latency_us);
        }
    }

    /// The window that ends `t` seconds after the start; the next one begins empty.
    pub fn close(&mut self, t: f64) -> WindowReport {
        let report = self.window.report(t);
        self.window = Tally::new();
        report
    }

    /// The whole run, `duration_s` long.
    pub fn summary(&self, duration_s: f64) -> Summary {
        let requests = self.kinds.iter().map(|(id, tally)| RequestSummary {
            id: id.clone(),
            completed: tally.report(0.0).completed,
            errors: tally.errors,
            p50: tally.quantile_ms(0.5),
            p99: tally.quantile_ms(0.99),
        });
        Summary { duration_s, total: self.total.report(duration_s), requests: requests.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_reports_its_own_requests_and_the_summary_all_of_them() {
        let mut windows = Windows::new(["a".to_owned(), "b".to_owned()]);
        for latency in 1..=100 {
            windows.sent();
            windows.finished(0, Some(latency * 1_000));
        }
        let first = windows.close(1.0);
        assert_eq!((first.sent, first.completed, first.errors), (100, 100, 0));
        assert!((first.p50.unwrap() - 50.0).abs() < 0.1 && (first.p99.unwrap() - 99.0).abs() < 0.1);
        windows.sent();
        windows.finished(1, None);
        let second = windows.close(2.0);
        assert_eq!((second.completed, second.errors, second.p99), (0, 1, None));
        let summary = windows.summary(2.0);
        assert_eq!((summary.total.sent, summary.total.completed, summary.total.errors), (101, 100, 1));
        assert_eq!((summary.requests[0].completed, summary.requests[1].errors), (100, 1));
    }

    #[test]
    fn reports_are_flat_json_with_nulls_for_what_is_absent() {
        let report = serde_json::to_value(Windows::new([]).close(5.0)).unwrap();
        assert_eq!(report["t"], 5.0);
        assert!(report["p99"].is_null());
    }
}
