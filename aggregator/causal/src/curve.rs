//! A distribution of latency as a quantile function: logarithms of microseconds on the fixed percentile grid.

use sage_common::{LATENCY_PERCENTILES, LatencyQuantiles};
use serde::{Deserialize, Serialize};

/// Points of the grid.
pub const Q: usize = LATENCY_PERCENTILES.len();

/// Below its lowest percentile a curve falls by this much (in logs) down to share zero.
const LOW_TAIL: f64 = 0.3;

/// Halvings when a mixture is inverted: 2^-40 of the range is far below a microsecond.
const BISECTIONS: usize = 40;

/// Share of calls at each knot: zero, then the grid.
const SHARES: [f64; Q + 1] = {
    let mut shares = [0.0; Q + 1];
    let mut i = 0;
    while i < Q {
        shares[i + 1] = LATENCY_PERCENTILES[i] / 100.0;
        i += 1;
    }
    shares
};

/// `ln(max(us, 1))` at [`LATENCY_PERCENTILES`]; finite and not decreasing.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Curve([f64; Q]);

impl Curve {
    /// From microseconds; `None` when they are not valid quantiles.
    pub fn of(quantiles: &LatencyQuantiles) -> Option<Self> {
        quantiles.is_valid().then(|| Self(quantiles.0.map(|us| f64::from(us).max(1.0).ln())))
    }

    /// From logarithms, made not decreasing; `None` when one is not finite.
    pub fn of_logs(mut logs: [f64; Q]) -> Option<Self> {
        for i in 1..Q {
            logs[i] = logs[i].max(logs[i - 1]);
        }
        logs.iter().all(|v| v.is_finite()).then_some(Self(logs))
    }

    /// From logarithms drawn at equal shares; sorts them. `None` when there are none.
    pub fn of_draws(draws: &mut [f64]) -> Option<Self> {
        draws.sort_unstable_by(f64::total_cmp);
        let last = draws.len().checked_sub(1)?;
        let logs = LATENCY_PERCENTILES.map(|percentile| {
            let position = (percentile / 100.0 * draws.len() as f64 - 0.5).clamp(0.0, last as f64);
            let below = position as usize;
            let above = (below + 1).min(last);
            draws[below] + (position - below as f64) * (draws[above] - draws[below])
        });
        Some(Self(logs))
    }

    /// The difference `self - other` of two quantile functions in microseconds, percentile by percentile: what a gap
    /// looks like when only client and server spans are known.
    pub fn minus(&self, other: &Self) -> Self {
        let mut logs = [0.0; Q];
        for (i, log) in logs.iter_mut().enumerate() {
            *log = (self.0[i].exp() - other.0[i].exp()).max(1.0).ln();
        }
        for i in 1..Q {
            logs[i] = logs[i].max(logs[i - 1]);
        }
        Self(logs)
    }

    /// The distribution of calls drawn from `parts` in proportion to their weights; `None` without weight.
    pub fn mixture(parts: &[(f64, Self)]) -> Option<Self> {
        match parts {
            [] => None,
            [(weight, only)] => (*weight > 0.0).then_some(*only),
            _ => {
                let mut logs = [0.0; Q];
                for (log, share) in logs.iter_mut().zip(&SHARES[1..]) {
                    *log = Self::mixture_at(parts, *share)?;
                }
                Self::of_logs(logs)
            }
        }
    }

    /// One quantile of a mixture; see [`Curve::mixture`].
    pub fn mixture_at(parts: &[(f64, Self)], share: f64) -> Option<f64> {
        let total: f64 = parts.iter().map(|(weight, _)| weight).sum();
        if total.is_nan() || total <= 0.0 {
            return None;
        }
        if let [(_, only)] = parts {
            return Some(only.at(share));
        }
        let mut low = parts.iter().map(|(_, curve)| curve.knot(0)).fold(f64::INFINITY, f64::min);
        let mut high = parts.iter().map(|(_, curve)| curve.knot(Q)).fold(f64::NEG_INFINITY, f64::max);
        for _ in 0..BISECTIONS {
            let middle = 0.5 * (low + high);
            let below: f64 = parts.iter().map(|(weight, curve)| weight * curve.rank(middle)).sum();
            if below < share * total { low = middle } else { high = middle }
        }
        Some(high)
    }

    /// Logarithm of the latency below which `share` (0 to 1) of the calls stay, linear between the knots.
    pub fn at(&self, share: f64) -> f64 {
        let share = share.clamp(0.0, 1.0);
        let above = SHARES.partition_point(|knot| *knot < share);
        if above == 0 {
            return self.knot(0);
        }
        let (s0, s1) = (SHARES[above - 1], SHARES[above]);
        let (v0, v1) = (self.knot(above - 1), self.knot(above));
        v0 + (share - s0) / (s1 - s0) * (v1 - v0)
    }

    /// Share of calls at or below `log`: the inverse of [`Curve::at`], the middle of a step where it is flat.
    pub fn rank(&self, log: f64) -> f64 {
        let knots = |is_before: &dyn Fn(f64) -> bool| {
            if is_before(self.knot(0)) { 1 + self.0.partition_point(|v| is_before(*v)) } else { 0 }
        };
        let (below, upto) = (knots(&|v| v < log), knots(&|v| v <= log));
        if upto > below {
            0.5 * (SHARES[below] + SHARES[upto - 1])
        } else if below == 0 || below > Q {
            if below == 0 { 0.0 } else { 1.0 }
        } else {
            let (v0, v1) = (self.knot(below - 1), self.knot(below));
            SHARES[below - 1] + (log - v0) / (v1 - v0) * (SHARES[below] - SHARES[below - 1])
        }
    }

    /// The logarithms at the grid.
    pub const fn logs(&self) -> &[f64; Q] {
        &self.0
    }

    /// Applies `change` percentile by percentile (index, log); a result that is not finite leaves the old value.
    pub fn map(&self, change: impl Fn(usize, f64) -> f64) -> Self {
        let mut logs = self.0;
        for (i, log) in logs.iter_mut().enumerate() {
            let new = change(i, *log);
            if new.is_finite() {
                *log = new;
            }
        }
        for i in 1..Q {
            logs[i] = logs[i].max(logs[i - 1]);
        }
        Self(logs)
    }

    /// The smaller of both at every percentile.
    pub fn min(&self, other: &Self) -> Self {
        self.map(|i, log| log.min(other.0[i]))
    }

    /// Mean in microseconds, by the trapezoid rule over the knots.
    pub fn mean_us(&self) -> f64 {
        (0..Q).map(|i| 0.5 * (self.knot(i).exp() + self.knot(i + 1).exp()) * (SHARES[i + 1] - SHARES[i])).sum()
    }

    /// Mean of the latencies at the percentiles `range` of the grid, microseconds.
    pub fn band_us(&self, range: std::ops::Range<usize>) -> f64 {
        let count = range.len().max(1) as f64;
        self.0[range].iter().map(|log| log.exp()).sum::<f64>() / count
    }

    fn knot(&self, index: usize) -> f64 {
        if index == 0 { self.0[0] - LOW_TAIL } else { self.0[index - 1] }
    }
}

/// Grid indices of p50 to p99.5: where a shift is looked for.
pub const SHIFT_BAND: std::ops::Range<usize> = 2..11;

/// Grid indices of p75 to p99.5: where an excess is counted.
pub const TAIL_BAND: std::ops::Range<usize> = 3..11;

/// Grid indices of p90 to p99.5.
pub const FAR_BAND: std::ops::Range<usize> = 5..11;

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(low: f32, high: f32) -> Curve {
        Curve::of(&LatencyQuantiles(LATENCY_PERCENTILES.map(|p| low + (high - low) * p as f32 / 100.0))).expect("valid")
    }

    #[test]
    fn rank_is_the_inverse_of_at() {
        let curve = uniform(100.0, 900.0);
        for share in [0.02, 0.1, 0.3, 0.77, 0.992, 1.0] {
            assert!((curve.rank(curve.at(share)) - share).abs() < 1e-12, "{share}");
        }
        assert_eq!((curve.rank(0.0), curve.rank(99.0)), (0.0, 1.0));
    }

    #[test]
    fn a_flat_curve_ranks_its_value_in_the_middle() {
        let curve = Curve::of(&LatencyQuantiles([50.0; Q])).expect("valid");
        assert!((curve.rank(f64::from(50.0_f32).ln()) - 0.55).abs() < 1e-12);
    }

    #[test]
    fn a_mixture_of_two_apart_halves_has_its_median_between_them() {
        let parts = [(1.0, uniform(10.0, 20.0)), (1.0, uniform(1000.0, 2000.0))];
        let mixed = Curve::mixture(&parts).expect("weights");
        assert!(mixed.at(0.25).exp() < 20.0 && mixed.at(0.75).exp() > 1000.0, "{mixed:?}");
        assert_eq!(Curve::mixture(&[(0.0, uniform(1.0, 2.0))]), None);
        let same = Curve::mixture(&[(3.0, uniform(10.0, 20.0)), (1.0, uniform(10.0, 20.0))]).expect("weights");
        assert!(same.logs().iter().zip(uniform(10.0, 20.0).logs()).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn the_mean_of_a_nearly_uniform_curve_is_its_middle() {
        assert!((uniform(1000.0, 1001.0).mean_us() - 987.0).abs() < 2.0); // the low tail takes 1.3 %
    }

    #[test]
    fn quantiles_that_are_not_finite_give_no_curve() {
        let mut quantiles = LatencyQuantiles([50.0; Q]);
        quantiles.0[3] = f32::NAN;
        assert_eq!(Curve::of(&quantiles), None);
    }

    #[test]
    fn a_difference_of_curves_never_falls() {
        let gap = uniform(300.0, 400.0).minus(&uniform(100.0, 390.0));
        assert!(gap.logs().is_sorted());
        assert!((gap.at(0.1).exp() - 181.0).abs() < 1.0, "{gap:?}");
    }
}
