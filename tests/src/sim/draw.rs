//! Randomness that a seed decides. Each part of the simulation draws from a stream of its own, so that a fault more in
//! the network does not change what the application does.

use std::ops::RangeInclusive;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, LogNormal};
use sage_common::Micros;

/// One stream of draws.
#[derive(Clone, Debug)]
pub(super) struct Draw(SmallRng);

impl Draw {
    /// The stream `number` of `seed`.
    pub fn new(seed: u64, number: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Any number but zero.
    pub fn id(&mut self) -> u64 {
        self.0.random_range(1..=u64::MAX)
    }

    /// A whole number of `range`.
    pub fn among(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.0.random_range(range)
    }

    /// A time of `range`, in milliseconds.
    pub fn millis(&mut self, range: RangeInclusive<u64>) -> Micros {
        let (low, high) = (range.start() * 1_000, range.end() * 1_000);
        Micros::new(self.0.random_range(low..=high))
    }

    /// Whether something of this probability happens.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }

    /// `level`, give or take `spread` of it.
    pub fn about(&mut self, level: f64, spread: f64) -> f64 {
        level * (1.0 + spread * self.0.random_range(-1.0..=1.0))
    }

    /// Lognormal with this median; `sigma` is the deviation of the logarithm.
    pub fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        LogNormal::new(median.max(1e-9).ln(), sigma).map_or(median, |law| law.sample(&mut self.0))
    }

    /// The time to the next of events that come at `per_s` a second, each by itself.
    pub fn pause(&mut self, per_s: f64) -> Micros {
        let share: f64 = self.0.random_range(f64::EPSILON..1.0);
        Micros::new((-share.ln() / per_s * 1e6) as u64 + 1)
    }
}
