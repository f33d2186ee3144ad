//! Percentiles of replicas put together: the mixture of quantile functions, weighted by count.

use sage_common::{LATENCY_PERCENTILES, LatencyQuantiles};

/// Percentiles of the mixture of `parts`, each `(weight, quantiles)`.
///
/// `F(x) = sum_k w_k F_k(x) / sum_k w_k`, read backwards at [`LATENCY_PERCENTILES`]. Every `F_k` is the inverse of its
/// quantile function, which is linear between grid points; the mass below the lowest grid point sits on it. `F` is
/// linear between the union of all grid values, so the result is exact for these functions.
///
/// `None` when no part has a positive, finite weight and valid quantiles.
pub fn mixture<'a>(parts: impl IntoIterator<Item = (f64, &'a LatencyQuantiles)>) -> Option<LatencyQuantiles> {
    let parts: Vec<(f64, &LatencyQuantiles)> = parts
        .into_iter()
        .filter(|(weight, quantiles)| weight.is_finite() && *weight > 0.0 && quantiles.is_valid())
        .collect();
    if let [(_, single)] = parts[..] {
        return Some(*single);
    }
    let total: f64 = parts.iter().map(|(weight, _)| weight).sum();
    let mut values: Vec<f32> = parts.iter().flat_map(|(_, quantiles)| quantiles.0).collect();
    values.sort_unstable_by(f32::total_cmp);
    values.dedup();
    let share = |x: f32, below: bool| {
        parts.iter().map(|(weight, quantiles)| weight * share_of(quantiles, x, below)).sum::<f64>() / total
    };
    let steps: Vec<(f32, f64, f64)> = values.into_iter().map(|x| (x, share(x, true), share(x, false))).collect();
    (!steps.is_empty()).then(|| LatencyQuantiles(LATENCY_PERCENTILES.map(|percentile| invert(&steps, percentile))))
}

/// Per cent of `quantiles` at or under `x`; strictly under `x` for `below`.
fn share_of(quantiles: &LatencyQuantiles, x: f32, below: bool) -> f64 {
    let grid = &quantiles.0;
    let next = if below { grid.partition_point(|q| *q < x) } else { grid.partition_point(|q| *q <= x) };
    match next {
        0 => 0.0,
        n if n == grid.len() => 100.0,
        n => {
            let (x0, x1) = (f64::from(grid[n - 1]), f64::from(grid[n]));
            let (p0, p1) = (LATENCY_PERCENTILES[n - 1], LATENCY_PERCENTILES[n]);
            p0 + (p1 - p0) * ((f64::from(x) - x0) / (x1 - x0)).clamp(0.0, 1.0)
        }
    }
}

/// The smallest value at which the mixture reaches `percentile`; `steps` are `(value, share below, share at)`.
fn invert(steps: &[(f32, f64, f64)], percentile: f64) -> f32 {
    // Sums of weights carry rounding errors of a few ulps, so the last step may stay a hair under 100.
    const SLACK: f64 = 1e-9;
    let at = steps.partition_point(|(_, _, share)| *share + SLACK < percentile).min(steps.len() - 1);
    let (x1, below, _) = steps[at];
    let Some((x0, _, share0)) = at.checked_sub(1).map(|before| steps[before]) else { return x1 };
    if below <= percentile || below <= share0 {
        return x1;
    }
    let part = ((percentile - share0) / (below - share0)).clamp(0.0, 1.0) as f32;
    x0 + part * (x1 - x0)
}

/// Percentiles of the difference of two durations, from their quantile functions alone: `max(0, Q_a - Q_b)`, made
/// not decreasing. Exact when both grow together, which client and server time of the same calls do.
pub fn difference(longer: &LatencyQuantiles, shorter: &LatencyQuantiles) -> LatencyQuantiles {
    let mut floor = 0.0_f32;
    let mut values = longer.0;
    for (value, shorter) in values.iter_mut().zip(shorter.0) {
        floor = floor.max(*value - shorter);
        *value = floor;
    }
    LatencyQuantiles(values)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uniform(from: f32, to: f32) -> LatencyQuantiles {
        LatencyQuantiles(LATENCY_PERCENTILES.map(|p| from + (to - from) * (p / 100.0) as f32))
    }

    #[test]
    fn two_equal_replicas_are_one() {
        let one = uniform(0.0, 100.0);
        let both = mixture([(3.0, &one), (5.0, &one)]).expect("two parts");
        for (a, b) in both.0.iter().zip(one.0) {
            assert!((a - b).abs() < 1e-3, "{a} against {b}");
        }
    }

    #[test]
    fn a_slow_replica_with_a_tenth_of_the_calls_is_the_tail() {
        let (fast, slow) = (uniform(0.0, 100.0), uniform(1_000.0, 2_000.0));
        let both = mixture([(90.0, &fast), (10.0, &slow)]).expect("two parts");
        assert!((both.at(85.0) - 100.0 * 85.0 / 90.0).abs() < 1.0, "{}", both.at(85.0));
        // p99 of all is p90 of the slow tenth.
        assert!((both.at(99.0) - 1_900.0).abs() < 1.0, "{}", both.at(99.0));
    }

    #[test]
    fn nothing_with_weight_gives_nothing() {
        let one = uniform(0.0, 1.0);
        assert_eq!(mixture([(0.0, &one), (f64::NAN, &one)]), None);
        assert_eq!(mixture([(1.0, &LatencyQuantiles([f32::NAN; 12]))]), None);
    }

    #[test]
    fn a_gap_from_two_functions_is_never_negative_and_never_falls() {
        let gap = difference(&uniform(10.0, 20.0), &uniform(0.0, 30.0));
        assert!(gap.is_valid());
        assert_eq!(difference(&uniform(15.0, 25.0), &uniform(10.0, 20.0)).0, [5.0; 12]);
    }

    proptest! {
        #[test]
        fn a_mixture_is_valid_and_between_its_parts(
            parts in prop::collection::vec((0.1_f64..100.0, prop::collection::vec(0.0_f32..1e6, 12)), 1..6),
        ) {
            let parts: Vec<(f64, LatencyQuantiles)> = parts.into_iter().map(|(weight, mut values)| {
                values.sort_unstable_by(f32::total_cmp);
                (weight, LatencyQuantiles(values.try_into().expect("twelve")))
            }).collect();
            let merged = mixture(parts.iter().map(|(weight, q)| (*weight, q))).expect("weights");
            prop_assert!(merged.is_valid());
            for (index, value) in merged.0.iter().enumerate() {
                let all = parts.iter().map(|(_, q)| q.0[index]);
                let (low, high) = (all.clone().fold(f32::MAX, f32::min), all.fold(0.0, f32::max));
                prop_assert!(*value >= low - low * 1e-5 && *value <= high + high * 1e-5, "{low} {value} {high}");
            }
        }
    }
}
