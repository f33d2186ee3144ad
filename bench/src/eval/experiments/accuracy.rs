//! Accuracy (figure 10 of the ASPLOS paper, figure 3 of the short one): every system on every application.

use anyhow::Result;

use crate::eval::{
    measure::Tally,
    results::Row,
    run::{Plan, table, tally},
    sources::Conditions,
};

const COLUMNS: [(&str, &str); 9] = [
    ("all", "top1"),
    ("single", "exact"),
    ("double", "acc"),
    ("all", "exact"),
    ("all", "fn"),
    ("all", "fp"),
    ("all", "resource"),
    ("expect:demand", "right"),
    ("all", "median_ms"),
];

/// Rows of `accuracy`.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let mut all = Tally::default();
    for app in &plan.apps {
        let source = plan.source(app, &Conditions::default())?;
        let systems = plan.trained(&*source, &plan.systems)?;
        tally(app, &systems, &plan.answered(&*source, &systems, Some), &mut all);
    }
    let rows = all.rows("accuracy", plan.seed);
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}
