//! The experiments of the papers, and a few of our own. Each turns a plan into rows.

mod ablation;
mod accuracy;
mod actuation;
mod counterfactuals;
mod instrumentation;
mod markov;
mod replicas;
mod retraining;
mod sampling;
mod scale;
mod tuning;

use anyhow::{Result, bail};

use super::{results::Row, run::Plan};

/// Every experiment that `all` runs. `tuning` is for the design seeds and by name alone.
pub const ALL: [&str; 10] = [
    "accuracy",
    "sampling",
    "instrumentation",
    "replicas",
    "ablation",
    "counterfactuals",
    "markov",
    "scale",
    "retraining",
    "actuation",
];

/// Runs one experiment and prints its table.
///
/// # Errors
///
/// When it is unknown, or an application or system of the plan is.
pub fn run(name: &str, plan: &Plan) -> Result<Vec<Row>> {
    match name {
        "accuracy" => accuracy::run(plan),
        "sampling" => sampling::run(plan),
        "instrumentation" => instrumentation::run(plan),
        "replicas" => replicas::run(plan),
        "ablation" => ablation::run(plan),
        "counterfactuals" => counterfactuals::run(plan),
        "markov" => markov::run(plan),
        "scale" => scale::run(plan),
        "retraining" => retraining::run(plan),
        "actuation" => actuation::run(plan),
        "tuning" => tuning::run(plan),
        other => bail!("no experiment is called {other}; there are {}, tuning and all", ALL.join(", ")),
    }
}
