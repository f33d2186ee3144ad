//! Counters to rates: what happened per second between two samples.

use std::collections::BTreeMap;

use sage_common::Micros;

/// Two samples further apart than this say nothing about either moment: the process was stopped, the machine slept.
pub const GAP_MAX: Micros = Micros::from_secs(15);

/// The last value of one counter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter {
    last: Option<(Micros, u64)>,
}

impl Counter {
    /// Increase per second since the sample before. `None` for the first sample, after an absent one, when the
    /// counter or time went backwards, and after a gap of more than [`GAP_MAX`].
    pub fn rate(&mut self, at: Micros, value: Option<u64>) -> Option<f64> {
        let before = std::mem::replace(&mut self.last, value.map(|value| (at, value)));
        let ((then, old), new) = (before?, value?);
        Some(new.checked_sub(old)? as f64 / elapsed_s(then, at)?)
    }
}

/// Seconds from `then` to `at`, when that is a span over which a rate means something.
pub fn elapsed_s(then: Micros, at: Micros) -> Option<f64> {
    let elapsed = at.get().checked_sub(then.get())?;
    (elapsed > 0 && elapsed <= GAP_MAX.get()).then(|| elapsed as f64 / 1e6)
}

/// What the first value of a new member of a [`Family`] means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Birth {
    /// It began between the two samples, so all of it counts (tasks).
    Counts,
    /// It may be older than our sight of it, so it only sets the mark (links, devices, connections).
    Marks,
}

/// The last values of counters that come and go under one roof, such as the tasks of an instance. Their sum may fall
/// when a member leaves; the increase of those who stay is never lost by that.
#[derive(Clone, Debug)]
pub struct Family<K> {
    birth: Birth,
    last: Option<(Micros, BTreeMap<K, u64>)>,
}

impl<K: Ord> Family<K> {
    /// An empty family.
    pub const fn new(birth: Birth) -> Self {
        Self { birth, last: None }
    }

    /// Increase per second of all members together, under the rules of [`Counter::rate`]. A member that went
    /// backwards adds nothing.
    pub fn rate(&mut self, at: Micros, members: Option<impl Iterator<Item = (K, u64)>>) -> Option<f64> {
        let now: Option<BTreeMap<K, u64>> = members.map(Iterator::collect);
        let before = self.last.take();
        let sum = match (&before, &now) {
            (Some((_, old)), Some(new)) => {
                let increases = new.iter().map(|(key, value)| self.increase(old.get(key), *value));
                Some(increases.fold(0, u64::saturating_add))
            }
            _ => None,
        };
        self.last = now.map(|now| (at, now));
        Some(sum? as f64 / elapsed_s(before?.0, at)?)
    }

    fn increase(&self, old: Option<&u64>, new: u64) -> u64 {
        match (old, self.birth) {
            (Some(old), _) => new.saturating_sub(*old),
            (None, Birth::Counts) => new,
            (None, Birth::Marks) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn s(secs: u64) -> Micros {
        Micros::from_secs(secs)
    }

    #[test]
    fn the_first_sample_gives_no_rate_and_the_second_does() {
        let mut counter = Counter::default();
        assert_eq!(counter.rate(s(1), Some(100)), None);
        assert_eq!(counter.rate(s(3), Some(110)), Some(5.0));
    }

    #[test]
    fn a_reset_is_skipped_and_the_next_rate_is_right() {
        let mut counter = Counter::default();
        counter.rate(s(1), Some(u64::MAX));
        assert_eq!(counter.rate(s(2), Some(5)), None);
        assert_eq!(counter.rate(s(3), Some(7)), Some(2.0));
    }

    #[test]
    fn an_absent_sample_breaks_the_chain() {
        let mut counter = Counter::default();
        counter.rate(s(1), Some(1));
        assert_eq!(counter.rate(s(2), None), None);
        assert_eq!(counter.rate(s(3), Some(9)), None);
    }

    #[test]
    fn time_that_stands_still_runs_back_or_leaps_gives_no_rate() {
        for second in [0, 1, 1 + 16] {
            let mut counter = Counter::default();
            counter.rate(s(1), Some(1));
            assert_eq!(counter.rate(s(second), Some(9)), None, "{second}");
        }
    }

    #[test]
    fn a_member_that_leaves_takes_nothing_from_those_who_stay() {
        let mut tasks = Family::new(Birth::Counts);
        assert_eq!(tasks.rate(s(1), Some([(1, 1_000), (2, 10)].into_iter())), None);
        assert_eq!(tasks.rate(s(2), Some([(2, 14), (3, 6)].into_iter())), Some(10.0));
    }

    #[test]
    fn a_link_that_is_plugged_in_brings_no_past_with_it() {
        let mut links = Family::new(Birth::Marks);
        links.rate(s(1), Some([("a", 1)].into_iter()));
        assert_eq!(links.rate(s(2), Some([("a", 3), ("b", 1 << 40)].into_iter())), Some(2.0));
        assert_eq!(links.rate(s(3), Some([("b", (1 << 40) + 8)].into_iter())), Some(8.0));
    }

    proptest! {
        #[test]
        fn rates_are_finite_and_not_negative(
            samples in proptest::collection::vec((any::<u64>(), proptest::option::of(any::<u64>())), 0..40)
        ) {
            let (mut counter, mut family) = (Counter::default(), Family::new(Birth::Counts));
            for (at, value) in samples {
                let at = Micros::new(at % 40_000_000);
                let members = value.map(|v| [(v % 3, v / 2)].into_iter());
                for rate in [counter.rate(at, value), family.rate(at, members)].into_iter().flatten() {
                    prop_assert!(rate.is_finite() && rate >= 0.0);
                }
            }
        }
    }
}
