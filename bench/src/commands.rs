//! The commands a person types: arguments in, lines out.
#![expect(clippy::disallowed_methods, reason = "placements and results are files")]

use std::{
    fs::File,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use sage_bench::{
    app::supervise::{App, AppSpec},
    load::{Load, LoadConfig},
    topology,
};
use tokio::signal::unix::{SignalKind, signal};

/// `sage-bench app`.
#[derive(Args, Debug)]
pub struct AppArgs {
    /// Built-in name (demo, chain, fanout, hotel_reservation, media_service, social_network) or path
    #[arg(long, default_value = "demo")]
    topology: String,
    /// Multiplies every service time of the file
    #[arg(long, default_value_t = 1.0)]
    scale_time: f64,
    /// Where spans go, e.g. http://127.0.0.1:4318; nowhere by default
    #[arg(long)]
    otlp: Option<String>,
    /// First port; 0 takes any that are free
    #[arg(long, default_value_t = 7100)]
    base_port: u16,
    /// Where single tiers run: JSON of service → {ip, port, otlp, netns, cgroups, work_dir}
    #[arg(long)]
    placement: Option<PathBuf>,
    /// Folder for control sockets, SERVICE.sock each
    #[arg(long)]
    control_dir: Option<PathBuf>,
    /// Where disk work writes; the temporary directory by default
    #[arg(long)]
    work_dir: Option<PathBuf>,
    /// Name the callee in client spans
    #[arg(long)]
    peer_names: bool,
}

/// `sage-bench load`.
#[derive(Args, Debug)]
pub struct LoadArgs {
    /// Built-in name or path of the topology
    #[arg(long, default_value = "demo")]
    topology: String,
    /// Where its entry tier listens
    #[arg(long)]
    target: SocketAddr,
    /// Requests a second; the topology's nominal rate by default
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds; until SIGINT by default
    #[arg(long)]
    duration: Option<f64>,
    /// Same seed, same requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where results go, a JSON line per window and one for all; - is standard output
    #[arg(long, default_value = "-")]
    out: String,
    /// Seconds of a window
    #[arg(long, default_value_t = 1.0)]
    window: f64,
    /// One of the file's alternative mixes
    #[arg(long)]
    mix: Option<String>,
    /// The rate swings by this part of itself
    #[arg(long, default_value_t = 0.0)]
    swing: f64,
    /// Seconds of one swing
    #[arg(long, default_value_t = 60.0)]
    swing_period: f64,
    /// Requests under way at most; more are refused, which counts as an error
    #[arg(long, default_value_t = 1024)]
    in_flight: usize,
    /// So many of the traces are sampled
    #[arg(long, default_value_t = 1.0)]
    sample_ratio: f64,
}

/// Runs an application until it is told to stop; fails if a tier died.
pub fn app(args: AppArgs) -> Result<ExitCode> {
    let placement = match &args.placement {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("no placement in {}", path.display()))?
        }
        None => std::collections::BTreeMap::new(),
    };
    // Before the first child, so that no signal finds children and nobody to stop them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut stop = runtime.block_on(async { Stop::new() })?;
    let mut app = App::start(AppSpec {
        program: std::env::current_exe().context("cannot find this program")?,
        topology: args.topology,
        scale_time: args.scale_time,
        otlp: args.otlp,
        base_port: args.base_port,
        placement,
        control_dir: args.control_dir,
        work_dir: args.work_dir,
        peer_names: args.peer_names,
    })?;
    for tier in app.tiers() {
        println!("{} {} pid {}", tier.service, tier.address, tier.pid);
    }
    println!("entry {}", app.entry());
    let mut died = false;
    while !runtime.block_on(stop.within(REAP_EVERY)) {
        for death in app.reap() {
            died = true;
            eprintln!("{} (pid {}) ended: {}", death.service, death.pid, death.status);
        }
    }
    app.stop();
    Ok(if died { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

const REAP_EVERY: Duration = Duration::from_millis(200);

struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Whether a signal came within `time`.
    async fn within(&mut self, time: Duration) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
            () = tokio::time::sleep(time) => false,
        }
    }
}

/// Sends load and writes what came back.
pub fn load(args: &LoadArgs) -> Result<ExitCode> {
    let seconds = |value: f64, what: &str| {
        Duration::try_from_secs_f64(value).with_context(|| format!("{what} of {value} seconds makes no sense"))
    };
    let topology = topology::load(&args.topology)?;
    let mut config = LoadConfig::new(topology, args.target);
    config.rate = args.rate.unwrap_or(config.rate);
    config.duration = args.duration.map(|duration| seconds(duration, "a duration")).transpose()?;
    config.window = seconds(args.window, "a window")?;
    config.swing_period = seconds(args.swing_period, "a swing")?;
    config.mix.clone_from(&args.mix);
    (config.seed, config.swing, config.sample_ratio) = (args.seed, args.swing, args.sample_ratio);
    config.in_flight_max = args.in_flight;
    let mut out: Box<dyn Write + Send> = match &*args.out {
        "-" => Box::new(io::stdout()),
        path => Box::new(File::create(path).with_context(|| format!("cannot write {path}"))?),
    };
    let mut windows: Box<dyn Write + Send> = match &*args.out {
        "-" => Box::new(io::stdout()),
        path => Box::new(File::options().append(true).open(path)?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut stop = runtime.block_on(async { Stop::new() })?;
    let load = Load::start(config, move |window| {
        // A reader that went away does not end the load; the summary's write reports it.
        let line = serde_json::to_string(&window).unwrap_or_default();
        drop(writeln!(windows, "{line}"));
    })?;
    while !load.is_finished() {
        if runtime.block_on(stop.within(REAP_EVERY)) {
            load.stop();
        }
    }
    let summary = load.join()?;
    writeln!(out, "{}", serde_json::json!({ "summary": summary })).context("cannot write the summary")?;
    Ok(if summary.total.completed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
