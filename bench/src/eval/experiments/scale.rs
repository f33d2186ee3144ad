//! Scale (figure 14): how long learning and diagnosis take as the graph grows. Trees of services with rare branches, so that
//! a request visits a few dozen of them however many there are.
#![expect(clippy::disallowed_methods, reason = "times are what is measured")]

use std::{hint::black_box, time::Instant};

use anyhow::Result;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use sage_causal::{
    TrainOptions,
    observation::Observation,
    testing::{Fault, Tier, World, WorldCall},
    train,
};
use sage_common::Slo;

use crate::eval::{
    interval::{self, Estimate},
    results::Row,
    run::{Plan, progress, table},
    seeds::derived,
};

/// Numbers of services; the first is the papers' local cluster, the second about its containers on GCE.
const SIZES: [usize; 4] = [28, 188, 500, 1_000];

/// Services of the largest graph of a quick run.
const QUICK_MAX: usize = 500;

/// Calls of a service.
const FAN_OUT: usize = 4;

/// Services that a request visits on average.
const VISITED: f64 = 40.0;

/// Traces of a window, so that a history of the largest graph fits in memory.
const TRACES: usize = 60;

/// Windows of history: what the linear prior needs. More cost memory here and nothing per window there.
const WINDOWS: u64 = 60;

/// Diagnoses of which the median is taken.
const REPEATS: usize = 9;

const COLUMNS: [(&str, &str); 3] = [("all", "train_seconds"), ("all", "diagnose_ms"), ("all", "right")];

/// Rows of `scale`: the application's name says how many services.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let sizes: Vec<usize> = SIZES.into_iter().filter(|size| !plan.is_quick || *size <= QUICK_MAX).collect();
    let bar = progress(sizes.len(), "scale");
    let mut rows = Vec::new();
    for size in sizes {
        rows.extend(one(size, derived(plan.seed, size as u64))?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}

fn one(size: usize, seed: u64) -> Result<Vec<Row>> {
    let world = tree(size, seed);
    let history = world.windows(seed, 0, WINDOWS, &[]);
    let slo = slo(&world, &history);
    // A tier that every request visits: the first callee of the entry.
    let mut recent = world.windows(seed, WINDOWS, 2, &[]);
    recent.extend(world.windows(seed, WINDOWS + 2, 3, &[Fault::Cpu(1, 80.0)]));
    let options = TrainOptions { seed, cvae_windows_min: usize::MAX, ..TrainOptions::default() };
    let begun = Instant::now();
    let (model, _) = train(&history, std::slice::from_ref(&slo), None, &options)?;
    let trained = begun.elapsed().as_secs_f64();
    let mut took = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        let begun = Instant::now();
        black_box(model.diagnose(black_box(&recent), &slo));
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let verdict = model.diagnose(&recent, &slo);
    let is_right = verdict.culprits.len() == 1 && verdict.culprits[0].service == world.service(1);
    let exactly = |value: f64| Estimate { value, low: value, high: value };
    let diagnosed = interval::median(&took, seed).unwrap_or(exactly(f64::NAN));
    Ok(vec![
        row(size, "train_seconds", 1, exactly(trained)),
        row(size, "diagnose_ms", REPEATS, diagnosed),
        row(size, "right", 1, exactly(f64::from(u8::from(is_right)))),
    ])
}

/// A tree of `size` tiers; a call into a subtree is as likely as keeps the visited tiers of a request at [`VISITED`].
fn tree(size: usize, seed: u64) -> World {
    let mut draw = SmallRng::seed_from_u64(seed);
    let mut world = World::chain();
    // One to four calls per tier: deeper tiers are reached through ever fewer requests.
    let depth = (size as f64).ln() / (FAN_OUT as f64).ln();
    let probability = ((VISITED.ln() / depth).exp() / FAN_OUT as f64).min(1.0);
    let callees = |tier: usize| (FAN_OUT * tier + 1)..(FAN_OUT * tier + 1 + FAN_OUT).min(size);
    world.tiers = (0..size)
        .map(|tier| Tier {
            // Names live as long as the program: a run makes a few thousand of them once.
            name: Box::leak(format!("service-{tier}").into_boxed_str()),
            self_us: draw.random_range(200.0..2_000.0),
            groups: callees(tier)
                .map(|callee| vec![WorldCall { callee, probability: if callee == 1 { 1.0 } else { probability } }])
                .collect(),
            replicas: 1,
        })
        .collect();
    world.traces_max = TRACES;
    world
}

/// A target above the healthy latency by half.
fn slo(world: &World, history: &[Observation]) -> Slo {
    let highest = history.iter().map(|window| window.objectives[0].latency_us).fold(0.0, f64::max);
    Slo { target: sage_common::Micros::new((1.5 * highest) as u64), service: world.service(0), ..World::chain().slo() }
}

fn row(size: usize, measure: &str, n: usize, estimate: Estimate) -> Row {
    Row {
        experiment: "scale".to_owned(),
        app: format!("tree-{size}"),
        system: "sage".to_owned(),
        slice: "all".to_owned(),
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
    fn a_request_visits_a_part_of_a_large_tree() {
        let world = tree(500, 3);
        let window = world.observe(3, 0, &[]);
        assert_eq!(world.tiers.len(), 500);
        let visits: f64 = window.edges.iter().map(|edge| edge.calls).sum();
        let roots = window.objectives[0].calls;
        assert!((10.0..100.0).contains(&(visits / roots)), "{}", visits / roots);
    }
}
