//! How true the imagined worlds are (section 6.1): the predicted latency had a service been normal, against the same
//! arrivals run again without its fault. Reconstruction of windows never trained on is given beside it, for the papers'
//! model, because that is what the papers measure; it says little about causes.

use anyhow::Result;
use sage_common::ServiceId;

use crate::eval::{
    case::{CaseSource, Expected, Truth},
    interval,
    results::Row,
    run::{Answered, Plan, table},
    seeds::derived,
    sources::Conditions,
    system::{Answer, System},
    systems::{Paper, Sage, SageOptions},
};

/// A world is near the target within this factor either way.
const NEAR: f64 = 1.5;

/// Names of the systems, in the order in which they are trained.
const SYSTEMS: [&str; 2] = ["sage", "paper"];

const COLUMNS: [(&str, &str); 7] = [
    ("all", "butfor_error"),
    ("near", "butfor_error"),
    ("all", "side"),
    ("all", "r2"),
    ("all", "rmse_ms"),
    ("rebuilt", "r2"),
    ("clients", "r2"),
];

/// One world: predicted and true latency, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pair {
    predicted: f64,
    truth: f64,
}

/// Rows of `counterfactuals`.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for app in &plan.apps {
        let source = plan.source(app, &Conditions::default())?;
        let (slo, history) = (source.slo(), source.history(plan.windows));
        let mut sage = Sage::new(SageOptions { seed: derived(plan.seed, 7), without: None });
        let mut paper = Paper::as_written(derived(plan.seed, 7));
        sage.train(&history.windows, &slo, &[])?;
        paper.train(&history.windows, &slo, &[])?;
        rows.extend(rebuilt(plan, app, &sage, &paper, &*source));
        let systems: Vec<Box<dyn System>> = vec![Box::new(sage), Box::new(paper)];
        let answered = plan.answered(&*source, &systems, Some);
        for (place, system) in SYSTEMS.into_iter().enumerate() {
            rows.extend(judged(plan, app, system, place, &answered, slo.target.get() as f64));
        }
    }
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}

/// Rows of one system: errors of its worlds, and how often they fall on the right side of the target.
fn judged(plan: &Plan, app: &str, system: &str, place: usize, answered: &[Answered], target: f64) -> Vec<Row> {
    let culprits = answered.iter().filter(|one| one.case.truth.expected == Expected::Culprits);
    let pairs: Vec<Pair> = culprits.flat_map(|one| pairs(&one.case.truth, &one.told[place].answer)).collect();
    let near: Vec<Pair> = pairs.iter().copied().filter(|pair| (pair.truth / target).ln().abs() < NEAR.ln()).collect();
    let mut rows = Vec::new();
    let mut push = |slice: &str, measure: &str, n: usize, estimate: Option<interval::Estimate>| {
        rows.extend(estimate.map(|e| row(app, system, slice, measure, n, e)));
    };
    for (slice, pairs) in [("all", &pairs), ("near", &near)] {
        let errors: Vec<f64> = pairs.iter().map(|pair| (pair.predicted / pair.truth).ln().abs()).collect();
        let sides: Vec<f64> = pairs
            .iter()
            .map(|pair| f64::from(u8::from((pair.predicted <= target) == (pair.truth <= target))))
            .collect();
        push(slice, "butfor_error", errors.len(), interval::median(&errors, plan.seed));
        push(slice, "side", sides.len(), interval::mean(&sides, plan.seed));
    }
    if pairs.len() > 2 {
        let exactly = |value: f64| Some(interval::Estimate { value, low: value, high: value });
        push("all", "r2", pairs.len(), exactly(r2(&pairs)));
        push("all", "rmse_ms", pairs.len(), exactly(rmse_ms(&pairs)));
    }
    rows
}

/// Every world of `truth` that `answer` predicts: single services, and its set.
fn pairs(truth: &Truth, answer: &Answer) -> Vec<Pair> {
    let set: std::collections::BTreeSet<ServiceId> = answer.set.iter().map(|(name, _)| name.clone()).collect();
    let predicted = |repaired: &std::collections::BTreeSet<ServiceId>| {
        if *repaired == set && answer.counterfactual_us.is_some() {
            return answer.counterfactual_us;
        }
        let single = repaired.first().filter(|_| repaired.len() == 1)?;
        answer.singles_us.iter().find(|(name, _)| name == single).map(|(_, us)| *us)
    };
    let pair = |(repaired, us): &(std::collections::BTreeSet<ServiceId>, f64)| {
        Some(Pair { predicted: predicted(repaired)?.max(1.0), truth: us.max(1.0) })
    };
    truth.worlds.iter().filter_map(pair).collect()
}

/// The papers' measure on windows of another history: how well the objective is rebuilt from what explains it. The papers'
/// chain of CVAEs rebuilds it from metrics and latent variables; Sage composes it from self times and gaps, and every
/// client span beside (`clients`).
fn rebuilt(plan: &Plan, app: &str, sage: &Sage, paper: &Paper, source: &dyn CaseSource) -> Vec<Row> {
    let (Some(ours), Some(theirs)) = (sage.model(), paper.model()) else { return Vec::new() };
    let slo = source.slo();
    let windows: Vec<_> = (0..plan.cases as u64).filter_map(|number| source.case(number)?.recent.pop()).collect();
    let told = theirs.rebuild(&windows, &slo).into_iter().zip(&windows);
    let chained = told.filter_map(|(told, w)| Some((crate::eval::view::latency_us(w, &slo)?, told?))).collect();
    let composed: Vec<_> = windows.iter().filter_map(|window| ours.rebuild(window, &slo)).collect();
    let parts = [
        ("paper", "rebuilt", chained),
        ("sage", "rebuilt", composed.iter().map(|window| window.latency_us).collect()),
        ("sage", "clients", composed.into_iter().flat_map(|window| window.clients_us).collect()),
    ];
    parts.into_iter().flat_map(|(system, slice, pairs)| fit(app, system, slice, pairs)).collect()
}

/// R2 and RMSE of `pairs` of observed and predicted microseconds.
fn fit(app: &str, system: &str, slice: &str, pairs: Vec<(f64, f64)>) -> Vec<Row> {
    let pair = |(truth, predicted): (f64, f64)| Pair { predicted: predicted.max(1.0), truth: truth.max(1.0) };
    let pairs: Vec<Pair> = pairs.into_iter().map(pair).collect();
    if pairs.len() < 3 {
        return Vec::new();
    }
    let measures = [("r2", r2(&pairs)), ("rmse_ms", rmse_ms(&pairs))];
    let exactly = |value: f64| interval::Estimate { value, low: value, high: value };
    measures.map(|(name, value)| row(app, system, slice, name, pairs.len(), exactly(value))).to_vec()
}

/// `1 - sum (truth - predicted)² / sum (truth - mean)²`, of logs: latencies span three decades.
fn r2(pairs: &[Pair]) -> f64 {
    let mean = pairs.iter().map(|pair| pair.truth.ln()).sum::<f64>() / pairs.len() as f64;
    let left: f64 = pairs.iter().map(|pair| (pair.truth / pair.predicted).ln().powi(2)).sum();
    let all: f64 = pairs.iter().map(|pair| (pair.truth.ln() - mean).powi(2)).sum();
    1.0 - left / all.max(f64::MIN_POSITIVE)
}

/// Root mean square error, milliseconds.
fn rmse_ms(pairs: &[Pair]) -> f64 {
    let squares = pairs.iter().map(|pair| ((pair.truth - pair.predicted) / 1e3).powi(2));
    (squares.sum::<f64>() / pairs.len() as f64).sqrt()
}

fn row(app: &str, system: &str, slice: &str, measure: &str, n: usize, estimate: interval::Estimate) -> Row {
    Row {
        experiment: "counterfactuals".to_owned(),
        app: app.to_owned(),
        system: system.to_owned(),
        slice: slice.to_owned(),
        measure: measure.to_owned(),
        value: estimate.value,
        n,
        low: estimate.low,
        high: estimate.high,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goodness_of_fit_is_the_one_worked_out_by_hand() {
        let pair = |predicted: f64, truth: f64| Pair { predicted: predicted.exp(), truth: truth.exp() };
        // Truths 1, 2, 3, errors 0, 0.5, 0: 1 - 0.25 / 2.
        let pairs = [pair(1.0, 1.0), pair(2.5, 2.0), pair(3.0, 3.0)];
        assert!((r2(&pairs) - 0.875).abs() < 1e-12);
        let plain = [Pair { predicted: 3_000.0, truth: 0.0 }, Pair { predicted: 1_000.0, truth: 5_000.0 }];
        assert!((rmse_ms(&plain) - (12.5_f64).sqrt()).abs() < 1e-12);
    }
}
