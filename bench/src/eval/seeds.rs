//! What seeds are for. A constant chosen on a seed must not be reported on it.

/// Seeds on which thresholds and rules may be chosen: `eval tuning` takes these alone.
pub const DESIGN: [u64; 3] = [11, 12, 13];

/// Seeds for reports. Never looked at while anything is chosen; one whose answers were looked at is spent, and leaves.
pub const REPORTING: [u64; 3] = [102, 103, 104];

/// Seeds that were for reports until their answers were looked at.
pub const SPENT: [u64; 1] = [101];

/// What a seed is for, for people.
pub fn purpose(seed: u64) -> &'static str {
    if DESIGN.contains(&seed) {
        "design"
    } else if REPORTING.contains(&seed) {
        "reporting"
    } else if SPENT.contains(&seed) {
        "spent: looked at while constants were chosen"
    } else {
        "neither for design nor for reporting"
    }
}

/// A seed for part `part` of what has `seed`: neighbouring seeds and parts share nothing (splitmix64).
pub fn derived(seed: u64, part: u64) -> u64 {
    let mut z = seed.wrapping_add(part.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_seed_is_for_design_and_for_reporting() {
        assert!(DESIGN.iter().chain(&SPENT).all(|seed| !REPORTING.contains(seed)));
        assert_eq!((purpose(DESIGN[0]), purpose(REPORTING[0])), ("design", "reporting"));
        assert_ne!(derived(1, 2), derived(2, 1));
    }
}
