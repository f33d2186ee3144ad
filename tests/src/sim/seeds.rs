//! Runs a test on several seeds and says on which one it failed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs `test` on seeds 1 to `count`; on as many as `SAGE_SIM_SEEDS` says, or on the one in `SAGE_SIM_SEED` alone.
pub fn for_seeds(count: u64, test: impl Fn(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match (number("SAGE_SIM_SEED"), number("SAGE_SIM_SEEDS")) {
        (Some(only), _) => only..=only,
        (None, many) => 1..=many.unwrap_or(count),
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
            eprintln!("failed on seed {seed}; again with SAGE_SIM_SEED={seed}");
            resume_unwind(panic);
        }
    }
}
