//! One bad replica among several: is its tier named, and is it?

use anyhow::Result;

use crate::eval::{
    measure::Tally,
    results::Row,
    run::{self, Plan, table},
    sources::Conditions,
};

/// Replicas of every tier.
const REPLICAS: u32 = 3;

/// Systems compared: Sage, and the strongest simple rule, which names no replica.
const SYSTEMS: [&str; 2] = ["sage", "largest-owned-excess"];

const COLUMNS: [(&str, &str); 4] = [("single", "exact"), ("double", "acc"), ("all", "resource"), ("all", "instance")];

/// Rows of `replicas`: every tier has [`REPLICAS`], and a fault strikes one of them.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let names: Vec<String> = SYSTEMS.map(str::to_owned).to_vec();
    let mut all = Tally::default();
    for app in &plan.apps {
        let source = plan.source(app, &Conditions { replicas: REPLICAS, ..Conditions::default() })?;
        let systems = plan.trained(&*source, &names)?;
        let answered = plan.answered(&*source, &systems, Some);
        run::tally(app, &systems, &answered, &mut all);
    }
    let rows = all.rows("replicas", plan.seed);
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}
