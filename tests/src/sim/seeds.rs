//! Runs a test on several seeds and says on which one it failed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs `test` on seeds 1 to `count`, or on the one in `SAGE_SIM_SEED` alone.
pub fn for_seeds(count: u64, test: impl Fn(u64)) {
    let only = std::env::var("SAGE_SIM_SEED").ok().and_then(|text| text.parse().ok());
    let seeds: Vec<u64> = only.map_or_else(|| (1..=count).collect(), |seed| vec![seed]);
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
            eprintln!("failed on seed {seed}; again with SAGE_SIM_SEED={seed}");
            resume_unwind(panic);
        }
    }
}
