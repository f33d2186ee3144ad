//! Self time: what a server span spent outside the calls it waited for.

use sage_common::{Micros, Timestamp};

/// One stretch of time on one machine's clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Interval {
    pub start: Timestamp,
    pub end: Timestamp,
}

impl Interval {
    pub fn new(start: Timestamp, duration: Micros) -> Self {
        Self { start, end: start + duration }
    }

    pub fn length(self) -> Micros {
        self.end.since(self.start).unwrap_or_default()
    }
}

/// `whole` minus the union of `parts` (sorted by start; the parts outside `whole` count for nothing).
pub(super) fn self_time(whole: Interval, parts: impl Iterator<Item = Interval>) -> Micros {
    let mut covered = Micros::ZERO;
    let mut seen = whole.start;
    for part in parts {
        let (start, end) = (part.start.max(seen), part.end.min(whole.end));
        covered = covered + end.since(start).unwrap_or_default();
        seen = seen.max(end);
    }
    whole.length().saturating_sub(covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(whole: (u64, u64), parts: &[(u64, u64)]) -> u64 {
        let interval =
            |(start, end)| Interval { start: Timestamp::from_micros(start), end: Timestamp::from_micros(end) };
        self_time(interval(whole), parts.iter().copied().map(interval)).get()
    }

    #[test]
    fn self_time_is_the_span_minus_the_union_of_its_children() {
        assert_eq!(own((0, 100), &[]), 100);
        assert_eq!(own((0, 100), &[(10, 30), (40, 60)]), 60, "serial");
        assert_eq!(own((0, 100), &[(10, 50), (20, 60)]), 50, "parallel");
        assert_eq!(own((0, 100), &[(10, 90), (20, 30), (40, 50)]), 20, "nested");
        assert_eq!(own((0, 100), &[(0, 100)]), 0, "all of it");
        assert_eq!(own((10, 100), &[(0, 20), (90, 200)]), 70, "overhang is clipped");
        assert_eq!(own((10, 20), &[(0, 5), (30, 40)]), 10, "outside");
        assert_eq!(own((10, 10), &[(10, 10)]), 0, "empty");
    }
}
