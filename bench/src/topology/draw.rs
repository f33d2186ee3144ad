//! Random draws of a topology: service times, counts, and the seeds that make a request's draws repeatable.

use rand::{Rng, RngCore};
use rand_distr::{Distribution, LogNormal};

use super::{Amount, Draw, Op};

/// Lognormal by mean and coefficient of variation: `sigma^2 = ln(1 + cv^2)`, `mu = ln(mean) - sigma^2 / 2`.
///
/// `None` unless `mean` is positive and both are finite.
pub fn lognormal(mean: f64, cv: f64) -> Option<LogNormal<f64>> {
    let variance = (cv * cv).ln_1p();
    if !(mean > 0.0 && mean.is_finite() && variance.is_finite()) {
        return None;
    }
    LogNormal::new(mean.ln() - variance / 2.0, variance.sqrt()).ok()
}

/// How long one operation takes by itself.
#[derive(Clone, Copy, Debug)]
pub struct OwnTime {
    mean_us: f64,
    per_item_us: f64,
    cv: f64,
    slow_p: f64,
    slow_factor: f64,
}

impl OwnTime {
    /// The own time of `op`, every duration multiplied by `scale`.
    pub fn new(op: &Op, scale: f64) -> Self {
        let (slow_p, slow_factor) = op.slow.map_or((0.0, 1.0), |slow| (slow.p, slow.factor));
        Self { mean_us: op.mean_us * scale, per_item_us: op.per_item_us * scale, cv: op.cv, slow_p, slow_factor }
    }

    /// One draw for a call with so many items, in microseconds.
    pub fn draw(&self, items: u32, rng: &mut impl RngCore) -> f64 {
        let mean = self.mean_us + self.per_item_us * f64::from(items);
        let drawn = lognormal(mean, self.cv).map_or(0.0, |dist| dist.sample(rng));
        let is_slow = rng.random::<f64>() < self.slow_p;
        if is_slow { drawn * self.slow_factor } else { drawn }
    }

    /// The mean for so many items, slow draws included, in microseconds.
    pub fn mean(&self, items: f64) -> f64 {
        (self.mean_us + self.per_item_us * items) * (1.0 + self.slow_p * (self.slow_factor - 1.0))
    }
}

/// One draw of a count. Lognormal counts are rounded to the nearest whole number, at least 1.
pub fn count(amount: Amount, rng: &mut impl RngCore) -> u32 {
    match amount {
        Amount::Fixed(count) => count,
        Amount::Drawn(Draw::UniformInt { lo, hi, step }) => lo + step * rng.random_range(0..=(hi - lo) / step),
        Amount::Drawn(Draw::Lognormal { mean, cv }) => {
            let drawn = lognormal(mean, cv).map_or(1.0, |dist| dist.sample(rng));
            drawn.round().clamp(1.0, f64::from(COUNT_MAX)) as u32
        }
    }
}

/// A lognormal's tail is endless; no request of the applications touches more items than this.
const COUNT_MAX: u32 = 100_000;

/// SplitMix64's output function: a bijection whose outputs look unrelated.
///
/// # Source
///
/// Steele, Lea & Flood, *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014.
pub const fn mix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::topology::{OpDist, Slow};

    fn op(slow: Option<Slow>) -> Op {
        Op { dist: OpDist::Lognormal, mean_us: 100.0, cv: 0.8, per_item_us: 10.0, slow, basis: String::new() }
    }

    fn moments(draws: &[f64]) -> (f64, f64) {
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn drawn_times_have_the_mean_and_variation_they_were_asked_for() {
        let own = OwnTime::new(&op(None), 2.0);
        let mut rng = SmallRng::seed_from_u64(7);
        let draws: Vec<f64> = (0..200_000).map(|_| own.draw(5, &mut rng)).collect();
        let (mean, cv) = moments(&draws);
        // (100 + 10 * 5) * 2 = 300; the standard error of the mean at this size is 0.5.
        assert!((mean - 300.0).abs() < 3.0, "mean {mean}");
        assert!((cv - 0.8).abs() < 0.02, "cv {cv}");
    }

    #[test]
    fn slow_draws_raise_the_mean_by_p_times_factor_less_one() {
        let own = OwnTime::new(&op(Some(Slow { p: 0.1, factor: 11.0 })), 1.0);
        let mut rng = SmallRng::seed_from_u64(8);
        let draws: Vec<f64> = (0..200_000).map(|_| own.draw(0, &mut rng)).collect();
        assert!((own.mean(0.0) - 200.0).abs() < 1e-9);
        assert!((moments(&draws).0 - 200.0).abs() < 5.0, "mean {}", moments(&draws).0);
    }

    #[test]
    fn counts_stay_on_their_grid() {
        let mut rng = SmallRng::seed_from_u64(9);
        let amount = Amount::Drawn(Draw::UniformInt { lo: 2, hi: 10, step: 2 });
        let mut seen = [0_u32; 11];
        for _ in 0..10_000 {
            seen[count(amount, &mut rng) as usize] += 1;
        }
        for (value, times) in seen.iter().enumerate() {
            let is_on_grid = value >= 2 && value % 2 == 0;
            assert_eq!(*times > 1_700, is_on_grid, "{value} drawn {times} times of 10000");
        }
        assert_eq!(count(Amount::Fixed(3), &mut rng), 3);
    }
}
