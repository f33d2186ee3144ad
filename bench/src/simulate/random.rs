//! Randomness by name: every draw belongs to a key, and keys come from keys.
//!
//! A request's draws depend on the seed, its place among the arrivals and the call site only, never on what happened
//! before. So two worlds that differ by one fault see the same arrivals, the same work and the same bad luck (common
//! random numbers), and the difference between them is the fault's alone.

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, StandardNormal};

use crate::topology::mix64;

/// The name of a draw.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Key(u64);

impl Key {
    /// The key of a whole world.
    pub const fn new(seed: u64) -> Self {
        Self(mix64(seed))
    }

    /// The key of one thing inside this one.
    pub const fn child(self, name: u64) -> Self {
        Self(mix64(self.0 ^ mix64(name)))
    }

    /// Its bits, as good as random.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// One draw in `[0, 1)`.
    pub const fn uniform(self) -> f64 {
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// One draw from the standard normal distribution.
    pub fn normal(self) -> f64 {
        StandardNormal.sample(&mut self.rng())
    }

    /// A generator for many draws.
    pub fn rng(self) -> SmallRng {
        SmallRng::seed_from_u64(self.0)
    }

    /// One draw in `low..high`, even in logs.
    pub fn log_uniform(self, low: f64, high: f64) -> f64 {
        (low.ln() + self.uniform() * (high.ln() - low.ln())).exp()
    }

    /// One of `count` places; 0 when there are none.
    pub fn index(self, count: usize) -> usize {
        if count < 2 { 0 } else { self.rng().random_range(0..count) }
    }
}

/// Smooth noise with mean 0 and standard deviation near 1 that can be asked at any time: normal draws at every `period`,
/// with a cosine between them.
pub fn drift(key: Key, at_s: f64, period_s: f64) -> f64 {
    let place = at_s / period_s;
    let (knot, share) = (place.floor(), place - place.floor());
    let at = |knot: f64| key.child(knot as i64 as u64).normal();
    let weight = 0.5 - 0.5 * (std::f64::consts::PI * share).cos();
    // Between two knots the variance would sink; the divisor keeps it even.
    (at(knot) * (1.0 - weight) + at(knot + 1.0) * weight) / (weight * weight + (1.0 - weight).powi(2)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_the_same_draw_for_ever_and_its_children_others() {
        let key = Key::new(7);
        assert_eq!(key.child(1).uniform(), Key::new(7).child(1).uniform());
        assert_ne!(key.child(1), key.child(2));
        assert_ne!(key.child(1).child(2), key.child(2).child(1));
    }

    #[test]
    fn draws_of_neighbouring_keys_are_uniform() {
        let draws: Vec<f64> = (0..20_000).map(|n| Key::new(3).child(n).uniform()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let low = draws.iter().filter(|draw| **draw < 0.1).count();
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
        assert!((1_850..2_150).contains(&low), "{low} of 20000 below 0.1");
    }

    #[test]
    fn drift_is_continuous_and_of_unit_spread() {
        let key = Key::new(5);
        let values: Vec<f64> = (0..40_000).map(|n| drift(key, f64::from(n) * 0.5, 10.0)).collect();
        let steps = values.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(0.0, f64::max);
        let variance = values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
        assert!(steps < 1.0, "a jump of {steps}");
        assert!((variance - 1.0).abs() < 0.15, "variance {variance}");
    }
}
