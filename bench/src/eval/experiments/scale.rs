//! Scale (figure 14): how long learning and diagnosis take as the graph grows, and in how much memory. Trees of services with
//! rare branches, so that a request visits a few dozen of them however many there are.
//!
//! A training over ten thousand windows reads the newest half of what it keeps whole, and as many evenly from before; the
//! windows that it would pass over are not drawn here.
#![expect(clippy::disallowed_methods, reason = "times are what is measured")]

use std::{hint::black_box, time::Instant};

use anyhow::Result;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use sage_causal::{
    Model, TrainOptions, TrainingPlan,
    observation::Observation,
    testing::{Fault, Tier, World, WorldCall},
};
use sage_common::Slo;

use crate::eval::{
    interval::{self, Estimate},
    parallel,
    results::Row,
    run::{Plan, progress, table},
    seeds::derived,
};

/// Numbers of services; the first is the papers' local cluster, the second about its containers on GCE.
const SIZES: [usize; 5] = [28, 188, 500, 1_000, 5_000];

/// Services up to which nets are trained as well: those of one application.
const NETS_MAX: usize = 188;

/// Services of the largest graph of a quick run.
const QUICK_MAX: usize = 500;

/// Calls of a service.
const FAN_OUT: usize = 4;

/// Services that a request visits on average.
const VISITED: f64 = 40.0;

/// Traces of a window, so that a history of the largest graph fits in memory.
const TRACES: usize = 60;

/// Windows of a history, and those of them that a training keeps.
const WINDOWS: u64 = 10_000;
const KEPT: u64 = 480;

/// The same in a quick run.
const QUICK_WINDOWS: (u64, u64) = (60, 60);

/// KiB of a MiB.
const MIB: f64 = 1024.0;

/// Diagnoses of which the median is taken.
const REPEATS: usize = 9;

const COLUMNS: [(&str, &str); 6] = [
    ("all", "train_seconds"),
    ("all", "ms_per_service"),
    ("all", "nets_seconds"),
    ("all", "peak_mib"),
    ("all", "diagnose_ms"),
    ("all", "right"),
];

/// Rows of `scale`: the application's name says how many services.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let sizes: Vec<usize> = SIZES.into_iter().filter(|size| !plan.is_quick || *size <= QUICK_MAX).collect();
    let bar = progress(sizes.len(), "scale");
    let mut rows = Vec::new();
    for size in sizes {
        let windows = if plan.is_quick { QUICK_WINDOWS } else { (WINDOWS, KEPT) };
        rows.extend(one(size, windows, derived(plan.seed, size as u64))?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}

fn one(size: usize, (windows, kept): (u64, u64), seed: u64) -> Result<Vec<Row>> {
    forget_peak();
    let world = tree(size, seed);
    let history = history(&world, seed, windows, kept);
    let slo = slo(&world, &history);
    // A tier that every request visits: the first callee of the entry.
    let mut recent = world.windows(seed, windows, 2, &[]);
    recent.extend(world.windows(seed, windows + 2, 3, &[Fault::Cpu(1, 80.0)]));
    let linear = TrainOptions { seed, cvae_windows_min: usize::MAX, ..TrainOptions::default() };
    let (model, trained) = timed(&history, &slo, &linear)?;
    let peak = peak_mib();
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
    let mut rows = vec![
        row(size, "train_seconds", 1, exactly(trained)),
        row(size, "ms_per_service", 1, exactly(1e3 * trained / size as f64)),
        row(size, "diagnose_ms", REPEATS, diagnosed),
        row(size, "right", 1, exactly(f64::from(u8::from(is_right)))),
    ];
    rows.extend(peak.map(|peak| row(size, "peak_mib", 1, exactly(peak))));
    if size <= NETS_MAX {
        let (_, seconds) = timed(&history, &slo, &TrainOptions { seed, ..TrainOptions::default() })?;
        rows.push(row(size, "nets_seconds", 1, exactly(seconds)));
    }
    Ok(rows)
}

/// The windows that a training over `windows` of them keeps: `kept`, half of them the newest, half evenly from before.
fn history(world: &World, seed: u64, windows: u64, kept: u64) -> Vec<Observation> {
    let newest = windows - kept / 2;
    let before = kept - kept / 2;
    let chosen = (0..before).map(|place| place * newest / before).chain(newest..windows);
    chosen.map(|index| world.observe(seed, index, &[])).collect()
}

/// Learns from scratch on every processor; how long that took, seconds.
fn timed(history: &[Observation], slo: &Slo, options: &TrainOptions) -> Result<(Model, f64)> {
    let begun = Instant::now();
    let plan = TrainingPlan::new(history, std::slice::from_ref(slo), None, options)?;
    let tasks = plan.tasks();
    let fits = parallel::map(tasks.len(), |task| tasks[task].run(), || ());
    let (model, _) = plan.finish(fits);
    Ok((model, begun.elapsed().as_secs_f64()))
}

/// Starts the peak of this process's memory anew: 5 resets it, proc(5). Where that is refused the peak is of the whole run.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most memory that this process held, MiB; `None` where the system does not say.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / MIB)
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
