//! How long to wait before the next attempt: doubling, capped, and jittered so that a fleet does not return in step.

use rand::{Rng, SeedableRng, rngs::SmallRng};
use sage_common::Micros;

/// Delays between attempts, each drawn from the upper half of its bound.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Micros,
    max: Micros,
    attempts: u32,
    draw: SmallRng,
}

impl Backoff {
    pub(super) fn new(first: Micros, max: Micros, seed: u64) -> Self {
        Self { first, max, attempts: 0, draw: SmallRng::seed_from_u64(seed) }
    }

    /// The delay before the next attempt.
    pub(super) fn next(&mut self) -> Micros {
        let factor = 1_u64.checked_shl(self.attempts).unwrap_or(u64::MAX);
        let bound = self.first.saturating_mul(factor).min(self.max).get();
        self.attempts = self.attempts.saturating_add(1);
        Micros::new(self.draw.random_range(bound / 2..=bound))
    }

    /// All is well: the next delay is the shortest again.
    pub(super) const fn reset(&mut self) {
        self.attempts = 0;
    }

    /// There is no point in hurrying: the next delay is the longest.
    pub(super) const fn slow_down(&mut self) {
        self.attempts = u64::BITS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_differ_between_seeds() {
        let (first, max) = (Micros::from_millis(100), Micros::from_secs(5));
        let mut backoff = Backoff::new(first, max, 1);
        for attempt in 0..100 {
            let bound = if attempt < 6 { first.saturating_mul(1 << attempt).min(max) } else { max };
            let delay = backoff.next();
            assert!(delay <= bound && delay.get() >= bound.get() / 2, "attempt {attempt}: {delay}");
        }
        backoff.reset();
        assert!(backoff.next() <= first);
        backoff.slow_down();
        assert!(backoff.next().get() >= max.get() / 2);
        let delays = |seed| Backoff::new(first, max, seed).next();
        assert!((0..20).any(|seed| delays(seed) != delays(99)));
    }
}
