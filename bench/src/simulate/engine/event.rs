//! What is planned, in the order in which it happens.

use std::cmp::Ordering;

/// What happens at some time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Happens {
    /// A fibre's time on a core is over.
    CoreDone(u32),
    /// A fibre's disk operation is done.
    DiskDone(u32),
    /// A fibre's time with the lock is over.
    LockDone(u32),
    /// A fibre's stall is over.
    StallDone(u32),
    /// A call reaches the callee.
    Arrives(u32),
    /// Its answer reaches the caller.
    Replied(u32),
    /// A call has waited too long for a connection, if it is still the one of that serial number.
    PoolTimeout(u32, u64),
    /// A fault begins or ends.
    FaultsChange,
}

/// Something planned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// When, nanoseconds since the start of the world.
    pub at: u64,
    /// Of those at once, which was planned first.
    pub sequence: u64,
    /// What.
    pub happens: Happens,
}

impl Ord for Event {
    /// The earliest is the greatest, as a heap wants it; of two at once the one planned first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BinaryHeap;

    use super::*;

    #[test]
    fn a_heap_gives_the_earliest_first_and_of_two_at_once_the_one_planned_first() {
        let event = |at, sequence| Event { at, sequence, happens: Happens::FaultsChange };
        let mut heap: BinaryHeap<Event> = [event(5, 1), event(3, 2), event(3, 1), event(9, 0)].into();
        let order: Vec<(u64, u64)> =
            std::iter::from_fn(|| heap.pop()).map(|event| (event.at, event.sequence)).collect();
        assert_eq!(order, [(3, 1), (3, 2), (5, 1), (9, 0)]);
    }
}
