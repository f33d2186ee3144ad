//! How few traces suffice: the same application with a part of its requests traced, in training and in diagnosis.

use anyhow::Result;

use crate::eval::{
    measure::Tally,
    results::Row,
    run::{Plan, table},
    sources::Conditions,
};

/// Shares of the requests that are traced.
const SHARES: [f64; 5] = [1.0, 0.5, 0.2, 0.1, 0.05];

/// The same when it must be quick.
const QUICK_SHARES: [f64; 2] = [1.0, 0.1];

/// Systems compared: Sage, and the strongest simple rule.
const SYSTEMS: [&str; 2] = ["sage", "largest-owned-excess"];

const COLUMNS: [(&str, &str); 4] = [("all", "top1"), ("single", "exact"), ("double", "acc"), ("all", "exact")];

/// Rows of `sampling`: the system's name says the share.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let names: Vec<String> = SYSTEMS.map(str::to_owned).to_vec();
    let shares = if plan.is_quick { &QUICK_SHARES[..] } else { &SHARES };
    let mut all = Tally::default();
    for app in &plan.apps {
        for traced in shares.iter().copied() {
            let source = plan.source(app, &Conditions { traced, ..Conditions::default() })?;
            let systems = plan.trained(&*source, &names)?;
            for one in plan.answered(&*source, &systems, Some) {
                for told in &one.told {
                    let name = format!("{}@{}%", names[told.system], traced * 100.0);
                    all.add_answer(app, &name, &one.case, &told.answer, None);
                }
            }
        }
    }
    let rows = all.rows("sampling", plan.seed);
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}
