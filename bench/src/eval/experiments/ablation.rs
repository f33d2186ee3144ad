//! What each part of Sage is worth: the model without it, on the same cases.

use anyhow::Result;

use crate::eval::{
    measure::Tally,
    results::Row,
    run::{Plan, table, tally},
    sources::Conditions,
    systems::Without,
};

const COLUMNS: [(&str, &str); 6] =
    [("all", "top1"), ("single", "exact"), ("double", "acc"), ("all", "exact"), ("all", "fp"), ("all", "resource")];

/// Systems beside the whole one: without one part each, with ownership but without the graph, and the papers' model with
/// and without the study's repairs (the CVAE alone).
fn systems() -> Vec<String> {
    let without = Without::ALL.map(Without::name);
    let others = ["largest-owned-excess", "largest-excess", "paper", "paper-mended"];
    ["sage"].into_iter().chain(without).chain(others).map(str::to_owned).collect()
}

/// Rows of `ablation`.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let mut all = Tally::default();
    for app in &plan.apps {
        let source = plan.source(app, &Conditions::default())?;
        let systems = plan.trained(&*source, &systems())?;
        tally(app, &systems, &plan.answered(&*source, &systems, Some), &mut all);
    }
    let rows = all.rows("ablation", plan.seed);
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}
