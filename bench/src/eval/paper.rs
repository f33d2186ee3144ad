//! What the papers report, to stand beside our figures: Gan et al., *Sage*, ASPLOS 2021, and its short form.

/// One figure of the papers.
pub struct Reported {
    /// Our experiment that measures the same.
    pub experiment: &'static str,
    /// What it is.
    pub what: &'static str,
    /// As reported.
    pub value: &'static str,
    /// The measures and slices of ours that stand beside it: (system, slice, measure).
    pub ours: &'static [(&'static str, &'static str, &'static str)],
}

/// Every figure that we have an experiment for.
pub const REPORTED: [Reported; 9] = [
    Reported {
        experiment: "accuracy",
        what: "accuracy over five applications (figure 10; figure 3)",
        value: "over 93 %",
        ours: &[
            ("sage", "all", "acc"),
            ("sage", "single", "exact"),
            ("sage", "double", "acc"),
            ("paper", "all", "acc"),
        ],
    },
    Reported {
        experiment: "accuracy",
        what: "false negatives, all of them with several culprits",
        value: "3-4 %",
        ours: &[("sage", "all", "fn"), ("sage", "single", "fn"), ("sage", "double", "fn")],
    },
    Reported { experiment: "accuracy", what: "false positives", value: "3-5 %", ours: &[("sage", "all", "fp")] },
    Reported {
        experiment: "counterfactuals",
        what: "R2 of reconstructed latencies (6.1): every call (clients), end to end (rebuilt); of but-for worlds (all)",
        value: "over 0.91",
        ours: &[
            ("sage", "clients", "r2"),
            ("sage", "rebuilt", "r2"),
            ("paper", "rebuilt", "r2"),
            ("sage", "all", "r2"),
            ("sage", "near", "butfor_error"),
        ],
    },
    Reported {
        experiment: "counterfactuals",
        what: "RMSE of reconstructed latencies (Chain, Fanout, Social Network)",
        value: "7.8 / 5.1 / 3.2",
        ours: &[("sage", "rebuilt", "rmse_ms"), ("paper", "rebuilt", "rmse_ms"), ("sage", "all", "rmse_ms")],
    },
    Reported {
        experiment: "instrumentation",
        what: "accuracy with 5 / 10 / 20 / 50 % of the tiers not instrumented, Social Network: Sage",
        value: "94 / 94 / 94 / 94 %",
        ours: &[
            ("sage@0%silent", "all", "acc"),
            ("sage@5%silent", "all", "acc"),
            ("sage@10%silent", "all", "acc"),
            ("sage@20%silent", "all", "acc"),
            ("sage@50%silent", "all", "acc"),
        ],
    },
    Reported {
        experiment: "instrumentation",
        what: "the same: Seer",
        value: "90 / 74 / 66 / 34 %",
        ours: &[
            ("seer@0%silent", "all", "acc"),
            ("seer@5%silent", "all", "acc"),
            ("seer@10%silent", "all", "acc"),
            ("seer@20%silent", "all", "acc"),
            ("seer@50%silent", "all", "acc"),
        ],
    },
    Reported {
        experiment: "scale",
        what: "training from scratch, 28 and 188 containers, two 44-core processors",
        value: "124 and 148 min",
        ours: &[("sage", "all", "train_seconds")],
    },
    Reported {
        experiment: "scale",
        what: "inference, 28 and 188 containers",
        value: "49 and 62 ms",
        ours: &[("sage", "all", "diagnose_ms")],
    },
];
