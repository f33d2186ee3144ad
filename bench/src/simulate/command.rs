//! `sage-bench simulate`.
#![expect(clippy::disallowed_methods, reason = "the speed of a run is measured by the clock")]

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use sage_common::Micros;

use super::{
    arrivals::LoadShape,
    engine::EngineOptions,
    fault::FaultPlan,
    replay::Replay,
    scale,
    world::{WindowLatency, World, WorldOptions},
};
use crate::topology;

/// `sage-bench simulate`.
#[derive(Args, Debug)]
pub struct SimulateArgs {
    /// Built-in name (demo, chain, fanout, hotel_reservation, media_service, social_network) or path
    #[arg(long, default_value = "social_network", conflicts_with = "scale")]
    topology: String,
    /// A generated application of so many services instead
    #[arg(long)]
    scale: Option<usize>,
    /// Same seed, same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long, e.g. 90s or 10m
    #[arg(long, default_value = "60s", value_parser = duration)]
    duration: Micros,
    /// Where in the world's time it begins
    #[arg(long, default_value = "3s", value_parser = duration)]
    from: Micros,
    /// Whole seconds of a window
    #[arg(long, default_value_t = 3)]
    window: u64,
    /// `KIND:SERVICE[>CALLEE][#REPLICA][@START..END[xSEVERITY]][!decoy]`, seconds since the start of the world; may be
    /// given again
    #[arg(long = "fault")]
    faults: Vec<FaultPlan>,
    /// Simulate once more without fault number I (from 1, in the order given), on the same arrivals; may be given again
    #[arg(long = "drop")]
    dropped: Vec<usize>,
    /// Mean load over the nominal one
    #[arg(long)]
    level: Option<f64>,
    /// Nominal load for ever: no swing, no noise, no bursts
    #[arg(long)]
    steady: bool,
    /// Instances on one machine
    #[arg(long, default_value_t = 1)]
    per_machine: usize,
    /// Share of the traces that is recorded
    #[arg(long, default_value_t = 1.0)]
    sampling: f64,
    /// Run through the agents' and the aggregator's cores as well, and say what they observe
    #[arg(long)]
    observe: bool,
    /// Write a recording into this folder instead
    #[arg(long)]
    out: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Micros, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(number) => (number, 60.0),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let seconds = number.parse::<f64>().map_err(|_| format!("{text:?} is no time"))? * unit;
    let is_sound = (0.0..=DURATION_MAX_S).contains(&seconds);
    if is_sound { Ok(Micros::new((seconds * 1e6) as u64)) } else { Err(format!("{text:?} makes no sense")) }
}

/// A month.
const DURATION_MAX_S: f64 = 2_678_400.0;

/// Runs a simulated application and prints its windows, or records it.
///
/// # Errors
///
/// For a topology, fault or number that makes no sense, and files that cannot be written.
pub fn run(args: &SimulateArgs) -> Result<ExitCode> {
    let world = world(args)?;
    for fault in &args.faults {
        let is_known = fault.kind == super::FaultKind::Surge || world.model().tier(&fault.service).is_some();
        ensure!(is_known, "{fault}: the mix never reaches a service {:?}", fault.service);
    }
    match &args.out {
        Some(dir) => record(&world, args, dir),
        None if args.observe => observe(&world, args),
        None => table(&world, args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn world(args: &SimulateArgs) -> Result<World> {
    let topology = match args.scale {
        Some(services) => scale::generate(services, args.seed)?,
        None => topology::load(&args.topology)?,
    };
    ensure!((1..=600).contains(&args.window), "a window has 1 to 600 seconds");
    ensure!(args.sampling > 0.0 && args.sampling <= 1.0, "the share of traces lies above 0 and up to 1");
    let mut shape = if args.steady { LoadShape::steady() } else { LoadShape::default() };
    shape.level = args.level.unwrap_or(shape.level);
    ensure!(shape.level > 0.0 && shape.level <= 100.0, "the level lies above 0 and up to 100");
    let engine = EngineOptions { seed: args.seed, shape, sampling: args.sampling, ..EngineOptions::default() };
    let mut options = WorldOptions { engine, window: Micros::from_secs(args.window), ..WorldOptions::default() };
    options.placement.per_machine = args.per_machine.max(1);
    Ok(World::new(&topology, options))
}

fn windows(args: &SimulateArgs) -> u64 {
    (args.duration.get() / (args.window * 1_000_000)).max(1)
}

fn from(args: &SimulateArgs) -> Micros {
    Micros::from_secs(args.from.get() / (args.window * 1_000_000) * args.window)
}

fn table(world: &World, args: &SimulateArgs) -> Result<()> {
    let begun = Instant::now();
    let lines = world.latencies(&args.faults, from(args), windows(args));
    let elapsed = begun.elapsed().as_secs_f64();
    let without: Option<Vec<WindowLatency>> = match args.dropped.as_slice() {
        [] => None,
        dropped => Some(world.latencies(&kept(&args.faults, dropped)?, from(args), windows(args))),
    };
    let dropped = if without.is_some() { "  without" } else { "" };
    println!("{:>8} {:>8} {:>7} {:>9}{dropped}  faults", "start s", "calls", "errors", "p99 ms");
    for (number, line) in lines.iter().enumerate() {
        let without = without.as_ref().map(|all| format!("{:>9.2}", all[number].latency_us / 1e3)).unwrap_or_default();
        let end = line.start + world.window();
        let active: Vec<String> = args
            .faults
            .iter()
            .filter(|fault| fault.overlaps(line.start, end))
            .map(|fault| format!("{}:{}", fault.kind, fault.service))
            .collect();
        let WindowLatency { start, calls, errors, latency_us } = line;
        let (start, latency) = (start.as_secs_f64(), latency_us / 1e3);
        println!("{start:>8.0} {calls:>8} {errors:>7} {latency:>9.2}{without}  {}", active.join(" "));
    }
    report_speed(args, elapsed);
    Ok(())
}

fn kept(faults: &[FaultPlan], dropped: &[usize]) -> Result<Vec<FaultPlan>> {
    for number in dropped {
        ensure!((1..=faults.len()).contains(number), "there is no fault number {number}");
    }
    let is_kept = |number: usize| !dropped.contains(&(number + 1));
    Ok(faults.iter().enumerate().filter(|(number, _)| is_kept(*number)).map(|(_, fault)| fault.clone()).collect())
}

fn observe(world: &World, args: &SimulateArgs) -> Result<()> {
    let slo = world.slo();
    println!("target {} at p{}", slo.target, slo.percentile);
    let begun = Instant::now();
    let mut session = world.session(&args.faults, from(args));
    println!("{:>8} {:>9} {:>9} {:>7} {:>7} {:>9}", "start s", "p99 ms", "offered/s", "edges", "traces", "instances");
    for _ in 0..windows(args) {
        let start = session.at().as_secs_f64();
        let Some(seen) = session.next_window() else { continue };
        let latency = seen.objectives.first().map_or(0.0, |objective| objective.latency_us / 1e3);
        let instances: usize = seen.services.iter().map(|service| service.instances.len()).sum();
        let (offered, edges, traces) = (seen.offered_per_s, seen.edges.len(), seen.traces.len());
        println!("{start:>8.0} {latency:>9.2} {offered:>9.1} {edges:>7} {traces:>7} {instances:>9}");
    }
    report_speed(args, begun.elapsed().as_secs_f64());
    Ok(())
}

fn record(world: &World, args: &SimulateArgs, dir: &std::path::Path) -> Result<()> {
    let faults = kept(&args.faults, &args.dropped)?;
    let (begin, end) = (from(args), from(args) + args.duration);
    let begun = Instant::now();
    let mut replay = Replay::create(dir, world.model())?;
    world.engine(&faults, begin).run_until(end, &mut replay);
    replay.finish(&faults, begin, end).with_context(|| format!("the recording in {} is not whole", dir.display()))?;
    report_speed(args, begun.elapsed().as_secs_f64());
    Ok(())
}

fn report_speed(args: &SimulateArgs, elapsed_s: f64) {
    let simulated = (windows(args) * args.window) as f64;
    eprintln!("{simulated:.0} s in {elapsed_s:.2} s: {:.0} times real time", simulated / elapsed_s.max(1e-9));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_minutes() {
        assert_eq!(duration("90s"), Ok(Micros::from_secs(90)));
        assert_eq!(duration("1.5m"), Ok(Micros::from_secs(90)));
        assert_eq!(duration("7"), Ok(Micros::from_secs(7)));
        assert!(duration("soon").is_err() && duration("-1s").is_err());
    }

    #[test]
    fn dropped_faults_are_counted_from_one() {
        let faults: Vec<FaultPlan> = ["cpu:a", "cpu:b", "cpu:c"].map(|text| text.parse().expect("valid")).to_vec();
        let left = kept(&faults, &[2]).expect("there are three");
        assert_eq!(left.iter().map(|fault| fault.service.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        assert!(kept(&faults, &[4]).is_err() && kept(&faults, &[0]).is_err());
    }
}
