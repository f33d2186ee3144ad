//! How the constants of the simple systems were chosen: every rule of a small grid on the design seeds, whatever seed was
//! asked for. The rules in force are the best of these; nothing here is a result.

use anyhow::Result;

use crate::eval::{
    case::{Case, Expected},
    interval,
    measure::measures,
    parallel,
    results::Row,
    run::{Plan, progress},
    seeds::DESIGN,
    select::Selection,
    sources::Conditions,
    system::System,
};

/// Multiples of the least score in force.
const LEASTS: [f64; 3] = [0.5, 1.0, 2.0];

/// Least parts of the first one's score; above 1 only the first is named.
const SHARES: [f64; 8] = [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 2.0];

/// Rows of `tuning`: the slice says the rule, the application is that of the first design seed.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let mut scores = std::collections::BTreeMap::<(String, String), Vec<f64>>::new();
    for seed in DESIGN {
        let plan = Plan { seed, ..plan.clone() };
        for app in &plan.apps {
            let source = plan.source(app, &Conditions::default())?;
            let slo = source.slo();
            let mut systems = plan.trained(&*source, &plan.systems)?;
            let bar = progress(plan.cases, app);
            let cases = parallel::map(plan.cases, |number| source.case(number as u64), || bar.inc(1));
            bar.finish_and_clear();
            let cases: Vec<Case> =
                cases.into_iter().flatten().filter(|case| case.truth.expected == Expected::Culprits).collect();
            for system in &mut systems {
                for rule in grid(&mut **system) {
                    system.selection().into_iter().for_each(|own| *own = rule);
                    let exact = scores.entry((system.name().to_owned(), said(rule))).or_default();
                    for case in &cases {
                        let all = measures(&case.truth, &system.diagnose(&case.recent, &slo));
                        exact.extend(all.iter().filter(|(name, _)| *name == "exact").map(|(_, value)| *value));
                    }
                }
            }
        }
    }
    let rows: Vec<Row> = scores.into_iter().filter_map(|((system, rule), exact)| row(&system, &rule, &exact)).collect();
    rows.iter().for_each(|row| println!("{:24} {:32} {:.3} ({})", row.system, row.slice, row.value, row.n));
    Ok(rows)
}

fn grid(system: &mut dyn System) -> Vec<Selection> {
    let Some(own) = system.selection().copied() else { return Vec::new() };
    let rule = |times: f64, share: f64| Selection { least: own.least * times, share };
    LEASTS.into_iter().flat_map(|times| SHARES.into_iter().map(move |share| rule(times, share))).collect()
}

fn said(rule: Selection) -> String {
    format!("least {} share {}", rule.least, rule.share)
}

fn row(system: &str, rule: &str, exact: &[f64]) -> Option<Row> {
    let estimate = interval::mean(exact, DESIGN[0])?;
    Some(Row {
        experiment: "tuning".to_owned(),
        app: "all".to_owned(),
        system: system.to_owned(),
        slice: rule.to_owned(),
        measure: "exact".to_owned(),
        value: estimate.value,
        n: exact.len(),
        low: estimate.low,
        high: estimate.high,
    })
}
