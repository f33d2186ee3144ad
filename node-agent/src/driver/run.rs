//! `sage-agent run`: starts the parts, watches over them, ends them in order.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use sage_common::{BootId, Micros};
use thiserror::Error;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{
    actuation::{self, ActuatorHandle, NotTaken, Request},
    board::Board,
    clock::monotonic,
    control::{Control, ControlError, Socket},
    http, notify,
    pipeline::{self, Finisher, Pipeline},
    sampling::{self, SamplerInput},
    uplink::Uplink,
};
use crate::{
    config::Config,
    core::{telemetry::TelemetryConfig, usage::Glob},
    intake::{self, Intake, IntakeError, IntakeStats, Listeners},
    kernel::{Actuator, ActuatorError, ActuatorPaths, KernelOptions, LinuxKernel, UndoError, chain, sample},
    policy::{Policy, loader::load_dir},
};

/// How long the parts may take to end; what is not done by then is left to the next start.
const STOP_MAX: Duration = Duration::from_secs(8);
/// Threads of the runtime: the work is done by two threads of our own.
const WORKERS: usize = 2;

/// Why the agent ended otherwise than by a signal.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// Another agent has our state.
    #[error("another agent runs on this state directory")]
    Locked(#[source] ActuatorError),
    /// Spans cannot be taken.
    #[error("cannot take spans")]
    Intake(#[from] IntakeError),
    /// No control socket.
    #[error("cannot be reached by the other verbs")]
    Control(#[from] ControlError),
    /// `/metrics` cannot be served.
    #[error("cannot serve /metrics on {address} (http): change the address, or set it to \"\"")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The machine refuses a thread, a signal handler or random bytes.
    #[error("cannot {action}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A part ended or panicked. Everything was given back.
    #[error("{0} has ended: this is a defect, the log says more")]
    Part(&'static str),
}

/// Runs until SIGTERM or SIGINT, then gives everything back.
///
/// # Errors
///
/// [`RunError`]; whatever was in force is given back then too.
pub fn run(config: Config) -> Result<(), RunError> {
    let system = |action| move |source| RunError::System { action, source };
    let started = monotonic();
    let boot = random_boot().map_err(system("draw a boot id"))?;
    // What an earlier life left is undone before anything else, whatever state the rest of the configuration is in.
    let opened = open_actuator(&config, started)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?;
    let result = runtime.block_on(Daemon::start_and_watch(config, boot, started, opened));
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// The actuator with what it did at once, or why actuation is off.
struct Opened {
    actuator: Option<(Actuator<LinuxKernel>, Vec<sage_protocol::message::CommandResult>)>,
    watched: Vec<Glob>,
    problems: Vec<String>,
}

fn open_actuator(config: &Config, now: Micros) -> Result<Opened, RunError> {
    let mut problems = Vec::new();
    let policy = load_dir(&config.policy_dir).unwrap_or_else(|error| {
        problems.push(format!("policy is not in force, so nothing may be changed: {}", chain(&error)));
        Policy::default()
    });
    let watched = watched(&policy);
    let cgroup_root = config.kernel.cgroup_root.clone();
    let options = KernelOptions { cgroup_root, proc_root: config.kernel.proc_root.clone() };
    let paths = ActuatorPaths {
        state_dir: config.state_dir.clone(),
        audit_file: config.audit_file.clone(),
        proc_root: config.kernel.proc_root.clone(),
    };
    let opened = match LinuxKernel::open(&options) {
        Ok(kernel) => Actuator::open(&paths, policy, kernel, now).map_err(|error| match error {
            error @ ActuatorError::Undo(UndoError::Locked { .. }) => Err(RunError::Locked(error)),
            error => Ok(chain(&error)),
        }),
        Err(error) => Err(Ok(format!("no netlink socket: {error}"))),
    };
    let actuator = match opened {
        Ok(opened) => Some(opened),
        Err(Err(fatal)) => return Err(fatal),
        Err(Ok(why)) => {
            problems.push(format!("actuation is off: {why}"));
            None
        }
    };
    problems.iter().for_each(|problem| tracing::warn!(problem));
    Ok(Opened { actuator, watched, problems })
}

fn watched(policy: &Policy) -> Vec<Glob> {
    policy.best_effort().map(|pattern| Glob::new(pattern.as_str())).collect()
}

/// Everything that runs.
struct Daemon {
    config: Arc<Config>,
    board: Arc<Board>,
    parts: JoinSet<()>,
    names: HashMap<Id, &'static str>,
    actuator: ActuatorHandle,
    sampler: SyncSender<SamplerInput>,
    intake: Option<Intake>,
    cancel: CancellationToken,
}

impl Daemon {
    async fn start_and_watch(config: Config, boot: BootId, started: Micros, opened: Opened) -> Result<(), RunError> {
        let stats = Arc::new(IntakeStats::default());
        let board = Arc::new(Board::new(config.node.clone(), boot, started, Arc::clone(&stats)));
        board.views().lasting_problems = opened.problems;
        let mut signals = Signals::new()?;
        let mut daemon = Self::start(Arc::new(config), boot, board, stats, opened.actuator, opened.watched).await?;
        let ended = daemon.watch(&mut signals).await;
        notify::stopping();
        daemon.stop().await;
        ended.map_or(Ok(()), |name| Err(RunError::Part(name)))
    }

    async fn start(
        config: Arc<Config>,
        boot: BootId,
        board: Arc<Board>,
        stats: Arc<IntakeStats>,
        opened: Option<(Actuator<LinuxKernel>, Vec<sage_protocol::message::CommandResult>)>,
        patterns: Vec<Glob>,
    ) -> Result<Self, RunError> {
        let system = |action| move |source| RunError::System { action, source };
        // Whatever can refuse to start does so before the first thread runs.
        let socket = Socket::bind(&config.socket)?;
        let cancel = CancellationToken::new();
        let (batches, spans) = intake::channel();
        let intake = intake::spawn(listeners(&config), batches, stats, cancel.clone()).await?;
        tracing::info!(bound = ?intake.bound(), "spans are taken");
        let http = match config.http {
            Some(address) => Some(http::bind(address).await.map_err(|source| RunError::Http { address, source })?),
            None => None,
        };

        let mut parts = Parts::default();
        let (results, result_inbox) = mpsc::channel(actuation::RESULTS_MAX);
        let actuator = match opened {
            Some((actuator, first)) => {
                first.into_iter().for_each(|result| drop(results.try_send(result)));
                let (handle, thread) = actuation::spawn(actuator, Arc::clone(&board), results)
                    .map_err(system("start the actuator's thread"))?;
                parts.thread("the actuator", thread);
                handle
            }
            None => ActuatorHandle::off(),
        };
        let own_cgroup = sample::own_cgroup(&config.kernel);
        let sampler = sample::Sampler::new(config.kernel.clone(), config.rules.clone(), patterns);
        let (sweeps, sweep_inbox) = mpsc::channel(sampling::SWEEPS_MAX);
        let (sampler, thread) =
            sampling::spawn(sampler, Arc::clone(&board), sweeps).map_err(system("start the sampler's thread"))?;
        parts.thread("the sampler", thread);

        let (latencies, part_inbox) = mpsc::channel(pipeline::WINDOWS_MAX);
        let (windows, window_inbox) = mpsc::channel(pipeline::WINDOWS_MAX);
        let pipeline = Pipeline::new(telemetry(&config), Arc::clone(&board), sampler.clone(), latencies);
        parts.task("the pipeline", pipeline.run(spans, sweep_inbox));
        let node = config.node.clone();
        let finisher =
            Finisher { node, boot, actuator: actuator.clone(), own_cgroup, board: Arc::clone(&board), windows };
        parts.task("the window maker", finisher.run(part_inbox));
        let uplink = Uplink::new(Arc::clone(&config), boot, Arc::clone(&board), actuator.clone());
        parts.task("the uplink", uplink.run(window_inbox, result_inbox));
        let control = Control { config: Arc::clone(&config), board: Arc::clone(&board), actuator: actuator.clone() };
        parts.task("the control socket", async move { Arc::new(control).serve(&socket).await });
        if let Some(listener) = http {
            let board = Arc::clone(&board);
            parts.task("the metrics server", async move { drop(http::serve(listener, board).await) });
        }
        parts.task("the watchdog", notify::run(Arc::clone(&board)));
        let Parts { parts, names } = parts;
        Ok(Self { config, board, parts, names, actuator, sampler, intake: Some(intake), cancel })
    }

    /// Waits for a signal, or for a part that ends though it should not; then says which.
    async fn watch(&mut self, signals: &mut Signals) -> Option<&'static str> {
        loop {
            tokio::select! {
                is_stop = signals.next() => {
                    if is_stop {
                        return None;
                    }
                    self.reload();
                }
                Some(ended) = self.parts.join_next_with_id() => {
                    let id = match &ended {
                        Ok((id, ())) => *id,
                        Err(error) => error.id(),
                    };
                    let name = self.names.remove(&id).unwrap_or("a part");
                    tracing::error!(name, panicked = ended.is_err(), "a part has ended; giving everything back");
                    return Some(name);
                }
            }
        }
    }

    /// SIGHUP: another policy, if it can be used; else the one in force stays.
    fn reload(&self) {
        match load_dir(&self.config.policy_dir) {
            Ok(policy) => {
                let _ = self.sampler.try_send(SamplerInput::Watched(watched(&policy)));
                let is_taken = self.actuator.send(Request::Policy(Box::new(policy))).is_ok();
                self.board.views().lasting_problems.retain(|problem| !problem.starts_with("policy"));
                tracing::info!(is_taken, "policy is read anew");
            }
            Err(error) => tracing::error!(error = chain(&error), "the policy in force stays"),
        }
    }

    /// Asks for everything to be given back. Ends: a busy thread takes requests again, or is gone.
    async fn close_actuator(&self) {
        while self.actuator.send(Request::Close) == Err(NotTaken::Busy) {
            tokio::time::sleep(CLOSE_RETRY).await;
        }
    }

    /// Ends the parts from the sources to the sinks, so that nothing is lost on the way; gives everything back.
    async fn stop(mut self) {
        self.cancel.cancel();
        tracing::info!("stopping");
        let stop = async {
            self.close_actuator().await;
            if let Some(intake) = self.intake.take() {
                intake.join().await;
            }
            let _ = self.sampler.try_send(SamplerInput::Stop);
            drop(self.sampler);
            // These have no end of their own.
            let endless = ["the control socket", "the metrics server", "the watchdog"];
            let mut left = self.names.values().filter(|name| !endless.contains(name)).count();
            while left > 0 {
                let Some(ended) = self.parts.join_next_with_id().await else { return };
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                left -= usize::from(self.names.remove(&id).is_some_and(|name| !endless.contains(&name)));
            }
        };
        if tokio::time::timeout(STOP_MAX, stop).await.is_err() {
            tracing::error!("not every part has ended in time; what is still in force is undone at the next start");
        }
    }
}

/// Between two attempts to tell a busy actuator that the end is wanted.
const CLOSE_RETRY: Duration = Duration::from_millis(50);

/// Parts by name, so that the one that ends can be called by it.
#[derive(Default)]
struct Parts {
    parts: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Parts {
    fn task(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.names.insert(self.parts.spawn(part).id(), name);
    }

    fn thread(&mut self, name: &'static str, thread: std::thread::JoinHandle<()>) {
        let join = move || {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        };
        self.names.insert(self.parts.spawn_blocking(join).id(), name);
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> Result<Self, RunError> {
        let handle = |kind| signal(kind).map_err(|source| RunError::System { action: "handle signals", source });
        Ok(Self {
            terminate: handle(SignalKind::terminate())?,
            interrupt: handle(SignalKind::interrupt())?,
            reload: handle(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one; whether it asks for the end rather than for a reload.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
            _ = self.reload.recv() => false,
        }
    }
}

fn listeners(config: &Config) -> Listeners {
    let intake = &config.intake;
    Listeners { otlp_grpc: intake.otlp_grpc, otlp_http: intake.otlp_http, jaeger_udp: intake.jaeger_udp }
}

fn telemetry(config: &Config) -> TelemetryConfig {
    TelemetryConfig {
        window: config.window,
        lateness: config.lateness,
        sample_traces: config.intake.sample_traces,
        series_max: config.intake.series_max,
    }
}

#[expect(clippy::disallowed_methods, reason = "driver: the kernel's random bytes")]
fn random_boot() -> io::Result<BootId> {
    use std::io::Read;
    let mut bytes = [0; 8];
    std::fs::File::open(Path::new("/dev/urandom"))?.read_exact(&mut bytes)?;
    Ok(BootId(u64::from_ne_bytes(bytes)))
}
