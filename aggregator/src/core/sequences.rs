//! Which windows of one agent's life have been counted: a watermark and a small set above it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Numbers remembered above the watermark. An agent's spool drops its oldest windows when it is full, so gaps stay;
/// once this many are seen above one, what is missing there counts as lost.
pub const AHEAD_MAX: usize = 1_024;

/// The sequence numbers seen, exactly once each.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Sequences {
    below: u64,
    ahead: BTreeSet<u64>,
}

impl Sequences {
    /// Every number below this one is settled: counted, or given up as lost.
    pub fn settled_below(&self) -> u64 {
        self.below
    }

    /// Whether `seq` is settled already.
    pub fn contains(&self, seq: u64) -> bool {
        seq < self.below || self.ahead.contains(&seq)
    }

    /// Settles `seq`; `false` when it was before.
    pub fn insert(&mut self, seq: u64) -> bool {
        if self.contains(seq) {
            return false;
        }
        self.ahead.insert(seq);
        if self.ahead.len() > AHEAD_MAX {
            self.below = self.ahead.first().copied().unwrap_or(self.below);
        }
        while self.ahead.remove(&self.below) {
            self.below = self.below.saturating_add(1);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gap_that_never_fills_is_given_up_and_memory_stays_bounded() {
        let mut sequences = Sequences::default();
        for seq in 5..5_000 {
            assert!(sequences.insert(seq));
            assert!(sequences.ahead.len() <= AHEAD_MAX);
        }
        assert_eq!(sequences.settled_below(), 5_000);
        assert!(!sequences.insert(3), "given up");
    }

    #[test]
    fn the_largest_number_does_not_overflow() {
        let mut sequences = Sequences::default();
        assert!(sequences.insert(u64::MAX));
        assert!(!sequences.insert(u64::MAX));
    }

    proptest! {
        #[test]
        fn every_number_counts_once_in_any_order(mut seqs in prop::collection::vec(0_u64..300, 0..600)) {
            let mut sequences = Sequences::default();
            let counted = seqs.iter().filter(|seq| sequences.insert(**seq)).count();
            seqs.sort_unstable();
            seqs.dedup();
            prop_assert_eq!(counted, seqs.len());
            prop_assert!(seqs.iter().all(|seq| sequences.contains(*seq)));
        }
    }
}
