//! First come, first served: so many at once, the others wait. Cores, disk channels, locks, threads and connections are
//! all of this kind.

use std::collections::VecDeque;

/// So many places, and who waits for one.
///
/// The line is bounded by what uses it: everybody in it belongs to a request in the system, and those are bounded.
#[derive(Clone, Debug)]
pub struct Queue {
    places: u32,
    taken: u32,
    /// The most that were taken at once since somebody asked.
    peak: u32,
    /// Who, and since when.
    line: VecDeque<(u32, u64)>,
}

/// As many places as anybody could want.
pub const UNLIMITED: u32 = u32::MAX;

impl Queue {
    /// A queue in front of `places` places, at least one.
    pub fn new(places: u32) -> Self {
        Self { places: places.max(1), taken: 0, peak: 0, line: VecDeque::new() }
    }

    /// Takes a place, or a place in the line: whether `who` is in.
    pub fn enter(&mut self, who: u32, now: u64) -> bool {
        if self.taken < self.places {
            self.taken += 1;
            self.peak = self.peak.max(self.taken);
            return true;
        }
        self.line.push_back((who, now));
        false
    }

    /// Gives a place back: who takes it, and since when they had waited.
    pub fn leave(&mut self) -> Option<(u32, u64)> {
        self.taken = self.taken.saturating_sub(1);
        self.admit()
    }

    /// The next of the line, if there is room. After [`resize`](Self::resize) call it until it returns `None`.
    pub fn admit(&mut self) -> Option<(u32, u64)> {
        if self.taken >= self.places {
            return None;
        }
        let next = self.line.pop_front()?;
        self.taken += 1;
        self.peak = self.peak.max(self.taken);
        Some(next)
    }

    /// Changes the number of places. Those inside stay.
    pub fn resize(&mut self, places: u32) {
        self.places = places.max(1);
    }

    /// Takes `who` out of the line: whether it was there.
    pub fn give_up(&mut self, who: u32) -> bool {
        let place = self.line.iter().position(|(waiting, _)| *waiting == who);
        place.and_then(|place| self.line.remove(place)).is_some()
    }

    /// How many places are taken.
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// The most places that were taken at once since this was last asked.
    pub fn take_peak(&mut self) -> u32 {
        std::mem::replace(&mut self.peak, self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_came_first_is_served_first() {
        let mut queue = Queue::new(2);
        assert!(queue.enter(1, 10) && queue.enter(2, 11));
        assert!(!queue.enter(3, 12) && !queue.enter(4, 13));
        assert_eq!(queue.leave(), Some((3, 12)));
        assert!(queue.give_up(4) && !queue.give_up(4));
        assert_eq!(queue.leave(), None);
        assert_eq!((queue.taken(), queue.line.len()), (1, 0));
    }

    #[test]
    fn a_queue_made_narrower_lets_nobody_in_until_enough_have_left() {
        let mut queue = Queue::new(3);
        assert!((0..3).all(|who| queue.enter(who, 0)));
        assert!(!queue.enter(9, 1));
        queue.resize(1);
        assert_eq!((queue.leave(), queue.leave()), (None, None));
        assert_eq!(queue.leave(), Some((9, 1)));
        queue.resize(2);
        assert!(queue.enter(10, 2));
    }
}
