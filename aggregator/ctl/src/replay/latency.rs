//! Recorded latency of services and of calls between them: percentiles, buckets, means, counts, success. Pure.
//!
//! [`spoken`](super::spoken) says which names speak of it. Histograms come as their counters, as Prometheus writes
//! them: what took at most so long, what all took together.

use std::collections::BTreeMap;

use sage_common::{LATENCY_PERCENTILES, LatencyQuantiles};

/// Distinct sets of attributes whose buckets are kept per service and interval: routes times status codes.
const SETS_MAX: usize = 512;

/// Buckets of one set: the finest ladder that is common has fewer.
const BUCKETS_MAX: usize = 256;

/// How far the mean that was measured may move what buckets say: they are a factor of two wide, or a few.
const STRETCH: (f64, f64) = (0.5, 2.0);

/// What a point says of latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Said {
    /// This percentile, microseconds.
    Percentile(f64, f64),
    /// The mean, microseconds.
    Mean(f64),
    /// Requests since the point before.
    Requests(f64),
    /// The same, of a histogram: it may be told besides.
    Counted(f64),
    /// Requests per second.
    Rate(f64),
    /// Requests that failed, since the point before.
    Failures(f64),
    /// Share of requests that succeeded.
    Succeeded(f64),
    /// Requests of one set of attributes, since the point before, that took at most so many microseconds.
    AtMost(f64, f64),
    /// Microseconds that requests took together, since the point before.
    Spent(f64),
}

impl Said {
    /// Whether it is a count since the point before.
    pub fn is_count(&self) -> bool {
        matches!(self, Self::Requests(_) | Self::Counted(_) | Self::Failures(_) | Self::AtMost(..) | Self::Spent(_))
    }
}

impl Said {
    /// Counts times `factor`; what is no count stays.
    pub fn scaled(self, factor: f64) -> Self {
        match self {
            Self::Requests(count) => Self::Requests(factor * count),
            Self::Counted(count) => Self::Counted(factor * count),
            Self::Failures(count) => Self::Failures(factor * count),
            Self::AtMost(bound, count) => Self::AtMost(bound, factor * count),
            Self::Spent(micros) => Self::Spent(factor * micros),
            other => other,
        }
    }
}

/// Whose calls it speaks of.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Whose {
    /// Those that the service answered.
    Served,
    /// Those that the service made to this one.
    Made(String),
}

/// One service, or the calls of one service to another, over one interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    percentiles: Vec<(f64, f64)>, // percentile and microseconds
    mean: Option<f64>,            // the largest of those given
    requests: Option<Tally>,
    counted: Option<Tally>,
    rate: Option<f64>,
    succeeded: Option<f64>,
    spent: f64,
    at_most: BTreeMap<u64, Buckets>, // by the set of attributes
}

/// Requests, and how many of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Tally {
    all: f64,
    failed: f64,
}

/// What requests of one set of attributes took: bound in microseconds, how many took at most that, by the bound.
#[derive(Clone, Debug, Default, PartialEq)]
struct Buckets(Vec<(f64, f64)>);

impl Summary {
    /// How much it holds.
    pub fn size(&self) -> usize {
        self.percentiles.len() + self.at_most.values().map(|buckets| buckets.0.len()).sum::<usize>()
    }

    /// Adds what a point of the attributes `set` said; `is_failed` tells that it is of requests that failed.
    pub fn add(&mut self, set: u64, said: Said, is_failed: bool) {
        let tally = |tally: &mut Option<Tally>, count: f64| {
            let tally = tally.get_or_insert_default();
            tally.all += count;
            tally.failed += if is_failed { count } else { 0.0 };
        };
        match said {
            Said::Percentile(percentile, micros) => self.percentiles.push((percentile, micros)),
            Said::Mean(micros) => self.mean = Some(self.mean.unwrap_or(0.0).max(micros)),
            Said::Requests(count) => tally(&mut self.requests, count),
            Said::Counted(count) => tally(&mut self.counted, count),
            Said::Rate(rate) => self.rate = Some(self.rate.unwrap_or(0.0) + rate),
            Said::Failures(count) => self.requests.get_or_insert_default().failed += count,
            Said::Succeeded(share) => self.succeeded = Some(share),
            Said::Spent(micros) => self.spent += micros,
            Said::AtMost(bound, count) => {
                if self.at_most.len() < SETS_MAX || self.at_most.contains_key(&set) {
                    self.at_most.entry(set).or_default().add(bound, count);
                }
            }
        }
    }

    /// The grid between the percentiles that are known, in logs; flat beyond them, because nothing tells of more. Else
    /// what buckets say; else the mean throughout. `None` without any.
    pub fn quantiles(&self) -> Option<LatencyQuantiles> {
        if self.percentiles.is_empty() {
            return self.of_buckets().or_else(|| self.mean().and_then(|mean| rising(|_| mean)));
        }
        let known = self.known();
        let (first, last) = (*known.first()?, *known.last()?);
        let at = |p: f64| match known.iter().position(|(q, _)| *q >= p) {
            Some(0) => first.1,
            Some(at) => {
                let (a, b) = (known[at - 1], known[at]);
                a.1 + (b.1 - a.1) * (p - a.0) / (b.0 - a.0).max(1e-9)
            }
            None => last.1,
        };
        rising(|p| at(p).exp())
    }

    /// Calls within `seconds`; `None` where nobody counts them.
    pub fn calls(&self, seconds: f64) -> Option<f64> {
        let requests = self.requests.filter(|tally| tally.all > 0.0 || self.counted.is_none());
        requests
            .or(self.counted)
            .map(|tally| tally.all)
            .or_else(|| Some(self.rate? * seconds))
            .or_else(|| (!self.at_most.is_empty()).then(|| self.at_most.values().map(Buckets::total).sum()))
    }

    /// Share of calls that failed.
    pub fn failed(&self) -> f64 {
        let share = |tally: Tally| (tally.all > 0.0).then(|| (tally.failed / tally.all).min(1.0));
        let succeeded = self.succeeded.map(|share| 1.0 - share);
        succeeded.or_else(|| self.requests.and_then(share)).or_else(|| self.counted.and_then(share)).unwrap_or(0.0)
    }

    /// Percentiles and logs of microseconds, in order; what several replicas or routes said of one, in the mean.
    fn known(&self) -> Vec<(f64, f64)> {
        let mut known: Vec<(f64, f64)> = self.percentiles.iter().map(|(p, us)| (*p, us.max(1.0).ln())).collect();
        known.sort_by(|a, b| a.0.total_cmp(&b.0));
        known
            .chunk_by(|a, b| a.0 == b.0)
            .map(|same| (same[0].0, same.iter().map(|(_, log)| log).sum::<f64>() / same.len() as f64))
            .collect()
    }

    /// As it was given, else what all took over how many they were.
    fn mean(&self) -> Option<f64> {
        let counted = || self.counted.or(self.requests).filter(|tally| tally.all > 0.0);
        self.mean.or_else(|| Some(self.spent / counted()?.all)).filter(|mean| *mean > 0.0)
    }

    /// Percentiles straight within buckets, stretched to the mean that was measured: buckets are wide.
    fn of_buckets(&self) -> Option<LatencyQuantiles> {
        let mut all: BTreeMap<(u64, u64), f64> = BTreeMap::new(); // bits of positive numbers sort as they do
        for (low, high, count) in self.at_most.values().flat_map(Buckets::apart) {
            *all.entry((high.to_bits(), low.to_bits())).or_default() += count;
        }
        let buckets: Vec<(f64, f64, f64)> =
            all.into_iter().map(|((high, low), count)| (f64::from_bits(low), f64::from_bits(high), count)).collect();
        let total: f64 = buckets.iter().map(|(.., count)| count).sum();
        if total <= 0.0 {
            return None;
        }
        let told: f64 = buckets.iter().map(|(low, high, count)| 0.5 * (low + high) * count).sum();
        let is_measured = self.spent > 0.0 && told > 0.0;
        let stretch = if is_measured { (self.spent / told).clamp(STRETCH.0, STRETCH.1) } else { 1.0 };
        let mut at = (0_usize, 0.0); // the bucket, and how many are below it
        rising(|p| {
            let wanted = p / 100.0 * total;
            while at.0 + 1 < buckets.len() && at.1 + buckets[at.0].2 < wanted {
                at = (at.0 + 1, at.1 + buckets[at.0].2);
            }
            let (low, high, count) = buckets[at.0];
            let share = if count > 0.0 { ((wanted - at.1) / count).clamp(0.0, 1.0) } else { 1.0 };
            (stretch * (low + share * (high - low))).max(1.0)
        })
    }
}

impl Buckets {
    fn add(&mut self, bound: f64, count: f64) {
        match self.0.iter().position(|(known, _)| *known >= bound) {
            Some(at) if self.0[at].0 == bound => self.0[at].1 += count,
            _ if self.0.len() >= BUCKETS_MAX => {}
            Some(at) => self.0.insert(at, (bound, count)),
            None => self.0.push((bound, count)),
        }
    }

    fn total(&self) -> f64 {
        self.0.iter().map(|(_, count)| *count).fold(0.0, f64::max)
    }

    /// Each bucket with its own requests: lower and upper bound, and how many. What lies above the last bound is taken to
    /// lie there.
    fn apart(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        let mut below = (0.0, 0.0_f64);
        self.0.iter().map(move |(bound, count)| {
            let bound = if bound.is_finite() { *bound } else { below.0 };
            let own = (below.0, bound, (count - below.1).max(0.0));
            below = (bound, below.1.max(*count));
            own
        })
    }
}

/// The grid of `at`, which takes percentiles from below; never falling.
fn rising(mut at: impl FnMut(f64) -> f64) -> Option<LatencyQuantiles> {
    let mut most = 0.0_f32;
    let grid = LATENCY_PERCENTILES.map(|p| {
        most = most.max(at(p) as f32);
        most
    });
    Some(LatencyQuantiles(grid)).filter(LatencyQuantiles::is_valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(all: &[Said]) -> Summary {
        let mut summary = Summary::default();
        all.iter().for_each(|said| summary.add(0, *said, false));
        summary
    }

    #[test]
    fn the_grid_lies_between_the_known_percentiles_and_never_falls() {
        let known = [(99.0, 200.0), (50.0, 100.0), (90.0, 90.0)].map(|(p, us)| Said::Percentile(p, us));
        let grid = summary(&known).quantiles().expect("known");
        let whole = [10.0, 50.0, 100.0].map(|p| grid.at(p).round());
        assert_eq!(whole, [100.0, 100.0, 200.0]);
        assert!(grid.is_valid() && grid.at(90.0) >= grid.at(50.0));
        assert_eq!(Summary::default().quantiles(), None);
    }

    #[test]
    fn what_replicas_say_of_one_percentile_counts_in_the_mean() {
        let both = summary(&[Said::Percentile(99.0, 100.0), Said::Percentile(99.0, 400.0)]);
        assert_eq!(both.quantiles().map(|grid| grid.at(99.0).round()), Some(200.0));
    }

    #[test]
    fn buckets_give_percentiles_straight_between_their_bounds_in_any_order() {
        let all = summary(&[
            Said::AtMost(f64::INFINITY, 100.0),
            Said::AtMost(1_000.0, 50.0),
            Said::AtMost(2_000.0, 90.0),
            Said::AtMost(4_000.0, 100.0),
        ]);
        let grid = all.quantiles().expect("known");
        assert_eq!(
            [10.0, 50.0, 75.0, 90.0, 95.0, 100.0].map(|p| grid.at(p).round()),
            [200.0, 1_000.0, 1_625.0, 2_000.0, 3_000.0, 4_000.0]
        );
        assert_eq!(all.calls(1.0), Some(100.0));
    }

    #[test]
    fn buckets_of_other_attributes_and_bounds_add_up() {
        let mut both = summary(&[Said::AtMost(1_000.0, 50.0), Said::AtMost(f64::INFINITY, 50.0)]);
        both.add(1, Said::AtMost(8_000.0, 0.0), false);
        both.add(1, Said::AtMost(16_000.0, 50.0), false);
        let grid = both.quantiles().expect("known");
        assert_eq!((grid.at(50.0).round(), grid.at(75.0).round()), (1_000.0, 12_000.0));
        assert_eq!(both.calls(1.0), Some(100.0));
    }

    #[test]
    fn a_mean_that_was_measured_stretches_what_buckets_say_and_stands_alone_without_them() {
        let slow = summary(&[Said::AtMost(1_000.0, 0.0), Said::AtMost(2_000.0, 10.0), Said::Spent(18_000.0)]);
        assert_eq!(slow.quantiles().expect("known").at(50.0).round(), 1_800.0);
        for alone in [[Said::Mean(700.0), Said::Requests(7.0)], [Said::Counted(2.0), Said::Spent(1_400.0)]] {
            assert_eq!(summary(&alone).quantiles().map(|grid| grid.at(99.0)), Some(700.0));
        }
    }

    #[test]
    fn what_lies_above_the_last_bound_is_taken_to_lie_there() {
        let all = summary(&[Said::AtMost(1_000.0, 1.0), Said::AtMost(f64::INFINITY, 10.0)]);
        assert_eq!(all.quantiles().expect("known").at(99.0), 1_000.0);
    }

    #[test]
    fn failures_are_a_share_of_what_was_counted() {
        assert_eq!(summary(&[Said::Requests(10.0), Said::Failures(2.0)]).failed(), 0.2);
        let mut histogram = summary(&[Said::Counted(3.0)]);
        histogram.add(1, Said::Counted(1.0), true);
        assert_eq!((histogram.failed(), histogram.calls(1.0)), (0.25, Some(4.0)));
        assert_eq!(summary(&[Said::Failures(1.0)]).failed(), 0.0, "of how many?");
        assert!((summary(&[Said::Succeeded(0.9)]).failed() - 0.1).abs() < 1e-9);
    }
}
