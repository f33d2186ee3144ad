//! `sage-bench demo`: a real application on this machine, broken and repaired before your eyes.
//!
//! Nodes are network namespaces with a link and a cgroup each, tiers are processes in cgroups of their own, every node
//! runs its own `sage-agent`, one `sage-aggregator` learns and acts. Nothing is scripted but the faults.
#![allow(clippy::disallowed_methods, reason = "a demo runs in real time on real files")]

mod api;
mod cgroups;
mod fabric;
mod fault;
mod files;
mod layout;
mod play;
mod processes;
pub mod record;
mod screen;
mod shell;
mod stage;

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use clap::Args;

pub use self::fault::{Fault, FaultKind};
use self::{
    files::{Memory, Pace, Paths},
    layout::Layout,
    play::Play,
    record::{FaultRecord, Report, SloRecord},
    stage::{Script, Stage},
};
use crate::{
    report,
    topology::{self, Facts, Plan, Topology},
};

/// Set in the copy of the demo that runs in a user namespace.
const UNPRIVILEGED: &str = "SAGE_DEMO_UNPRIVILEGED";
/// Names of namespaces and cgroups start with this and the demo's process id.
const PREFIX: &str = "sage-demo";
/// Healthy windows before the first model.
const WINDOWS_MIN: u32 = 32;

/// Learn a real application, break it, watch Sage name the culprit and repair the node.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Topology file, or a built-in name: demo, chain, fanout, hotel_reservation, media_service, social_network
    #[arg(long, default_value = "demo")]
    topology: String,
    /// What to break: cpu, network, disk, threads or slow, and of which tier; may be given more than once
    #[arg(long = "fault", value_name = "KIND:SERVICE")]
    faults: Vec<Fault>,
    /// Seed of the load
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Directory for report.json, report.html, configuration and logs
    #[arg(long, default_value = "demo-out")]
    out: PathBuf,
    /// Requests per second; by default as many as the topology says and half the machine can carry
    #[arg(long)]
    rate: Option<f64>,
    /// Length of a window, milliseconds
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1000..=60_000))]
    window_ms: u64,
}

/// Runs the demo; the exit code is 0 only if every fault was diagnosed correctly and every resource fault recovered.
pub fn run(args: &DemoArgs) -> Result<ExitCode> {
    let privileged = std::env::var_os(UNPRIVILEGED).is_none();
    if !rustix::process::geteuid().is_root() {
        return again_in_user_namespace();
    }
    let topology = topology::load(&args.topology)?;
    let plan = Plan::new(&topology);
    let facts = Facts::new(&topology, &plan);
    let faults = if args.faults.is_empty() { default_faults(&topology, &facts) } else { args.faults.clone() };
    check(&faults, &topology, &facts)?;
    let prefix = format!("{PREFIX}-{}", std::process::id());
    Memory::sweep();
    let out = prepare(&args.out)?;
    let paths = Paths { out: out.clone(), bin: own_directory()?, state: Memory::new(&prefix, &out)? };
    if !privileged {
        println!(
            "Not root: cgroups cannot be made, so no setting is within Sage's reach: it names the causes and changes nothing."
        );
        shell::run("mount -t tmpfs tmpfs /run")?;
    } else {
        fabric::sweep();
        cgroups::sweep();
    }
    let layout = Layout::new(&topology, &facts, cores_for_the_application(), args.rate);
    introduce(&topology, &layout, &faults);
    let entry = entry(&topology)?;
    let script = Script {
        topology: args.topology.clone(),
        entry: entry.clone(),
        seed: args.seed,
        prefix,
        pace: Pace { window_ms: args.window_ms, windows_min: WINDOWS_MIN },
        privileged,
    };
    println!("\nStarting the application, then Sage …");
    let rate_qps = layout.rate;
    let stage = Stage::build(&script, layout, paths)?;
    let mut play = Play::new(stage, args.window_ms as f64 / 1e3, stop_on_signal()?)?;
    play.learn(&entry, topology.qos.percentile, WINDOWS_MIN)?;
    let records = faults.iter().map(|fault| play.run(fault)).collect::<Result<Vec<_>>>()?;
    let report = summarise(args, &topology, &play, records, privileged, rate_qps)?;
    let clients = std::mem::take(&mut play.clients);
    drop(play);
    report::write(&out, &report, &clients)?;
    conclude(&report, &out);
    Ok(if report.correct { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The same demo in a user namespace of its own, where network namespaces and links can be made without privilege.
fn again_in_user_namespace() -> Result<ExitCode> {
    if std::env::var_os(UNPRIVILEGED).is_some() {
        bail!("not root even in a user namespace of its own");
    }
    let error = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(UNPRIVILEGED, "1")
        .exec();
    Err(error)
        .context("not root, and cannot make a user namespace with `unshare` (Debian: util-linux): run the demo as root")
}

/// The absolute output directory, emptied of what an earlier demo wrote.
fn prepare(out: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let out = out.canonicalize().with_context(|| format!("cannot find {}", out.display()))?;
    for stale in ["aggregator", "logs", "pki"]
        .map(str::to_owned)
        .into_iter()
        .chain((b'a'..=b'f').map(|letter| format!("node-{}", char::from(letter))))
    {
        let path = out.join(stale);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(out)
}

fn own_directory() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    Ok(own.parent().context("this program has no directory")?.to_owned())
}

/// Half the machine, at most 1.2 cores: the rest is for agents, aggregator and load.
fn cores_for_the_application() -> f64 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (0.3 * cpus as f64).min(1.2)
}

/// The service that the mix enters through; a topology with several entries is measured at the commonest.
fn entry(topology: &Topology) -> Result<String> {
    let commonest =
        topology.requests.iter().max_by(|a, b| a.mix.total_cmp(&b.mix)).context("the topology has no requests")?;
    Ok(commonest.root.svc.clone())
}

/// One processor, one network and one software fault, on the tiers that work hardest behind the entry.
fn default_faults(topology: &Topology, facts: &Facts) -> Vec<Fault> {
    let mut tiers: Vec<usize> =
        facts.used.iter().copied().filter(|tier| facts.edges.iter().any(|(_, to)| to == tier)).collect();
    tiers.sort_by(|a, b| facts.work_us[*b].total_cmp(&facts.work_us[*a]));
    let pick = |index: usize, kind| {
        tiers.get(index % tiers.len().max(1)).map(|tier| Fault { kind, service: topology.services[*tier].id.clone() })
    };
    [pick(0, FaultKind::Cpu), pick(1, FaultKind::Network), pick(2, FaultKind::Slow)].into_iter().flatten().collect()
}

fn check(faults: &[Fault], topology: &Topology, facts: &Facts) -> Result<()> {
    let used: Vec<&str> = facts.used.iter().map(|tier| topology.services[*tier].id.as_str()).collect();
    for fault in faults {
        if !used.contains(&fault.service.as_str()) {
            bail!("fault {fault}: {} has no such tier in use; there are: {}", topology.name, used.join(", "));
        }
    }
    Ok(())
}

fn introduce(topology: &Topology, layout: &Layout, faults: &[Fault]) {
    println!(
        "{}: {} tiers on {} nodes, {:.0} requests per second",
        topology.title,
        layout.peers().len(),
        layout.nodes.len(),
        layout.rate
    );
    for node in &layout.nodes {
        let tiers: Vec<&str> = node.tiers.iter().map(|tier| tier.service.as_str()).collect();
        println!("  {} {} ({:.1} cores): {}", node.name, node.ip, node.cores, tiers.join(", "));
    }
    let faults: Vec<String> = faults.iter().map(Fault::to_string).collect();
    println!("then, in turn: {}", faults.join(", "));
}

fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot watch for signals")?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
            let terminated = async {
                match &mut terminate {
                    Some(signal) => drop(signal.recv().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                () = terminated => {}
            }
            flag.store(true, Ordering::Relaxed);
        });
    });
    Ok(stop)
}

fn summarise(
    args: &DemoArgs,
    topology: &Topology,
    play: &Play,
    faults: Vec<FaultRecord>,
    privileged: bool,
    rate_qps: f64,
) -> Result<Report> {
    let slo = play.slo.as_ref().context("the demo ended without an objective")?;
    let (windows_trained, train_seconds, model_generation) = play.model();
    let is_resource = |record: &FaultRecord| !matches!(record.kind.as_str(), "threads" | "slow");
    let correct = faults.iter().all(|record| record.correct && (!is_resource(record) || record.recovered_at.is_some()));
    Ok(Report {
        topology: topology.name.clone(),
        seed: args.seed,
        slo: SloRecord { percentile: slo.percentile, latency_ms: slo.target_ms },
        windows_trained,
        train_seconds,
        model_generation,
        faults,
        correct,
        mode: if privileged { "auto" } else { "recommend" },
        rate_qps,
        started_at_ms: play.started_at_ms,
        timeline: play.timeline.clone(),
    })
}

fn conclude(report: &Report, out: &Path) {
    println!("\n{:<24} {:>9} {:>9} {:>9}  verdict", "fault", "violation", "diagnosis", "recovery");
    for record in &report.faults {
        let after = |at: Option<f64>| at.map_or("-".to_owned(), |at| format!("{:.1} s", at - record.injected_at));
        let verdict = record.verdict.as_ref().map_or("none".to_owned(), |verdict| {
            format!("{} ({})", verdict.services.join(", "), verdict.resource.as_deref().unwrap_or("-"))
        });
        let mark = if record.correct { "right" } else { "WRONG" };
        println!(
            "{:<24} {:>9} {:>9} {:>9}  {verdict}: {mark}",
            format!("{}:{}", record.kind, record.service),
            after(record.violation_at),
            after(record.diagnosed_at),
            after(record.recovered_at)
        );
    }
    println!("{}: {}", if report.correct { "correct" } else { "NOT correct" }, out.join("report.html").display());
}

/// Whether `name` belongs to a demo whose process is gone.
fn is_left_behind(name: &str) -> bool {
    let pid = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix('-'))
        .map(|rest| rest.split('-').next().unwrap_or(rest));
    pid.and_then(|pid| pid.parse::<u32>().ok()).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}
