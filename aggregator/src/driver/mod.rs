//! The runtime around the core: sockets, clock, threads and signals. It decides nothing.
//!
//! ```text
//!   agents ══ AggregatorListener ──events──► ┌───────┐ ──proposals──► SingleReplica (thread)
//!   sagectl ══ HTTP ──────────────questions─► │ Owner │ ◄──committed──
//!   signals ─────────────────────────────────►│ Leader│ ──jobs──► Trainer (thread) ──models──►
//!                                             └───────┘
//! ```
//!
//! One task owns the state, so there is no lock around it; everything reaches it through bounded queues.

mod answers;
mod clock;
mod owner;
mod welcome;

use std::{net::SocketAddr, time::Duration};

use sage_common::Term;
use sage_protocol::{
    quic::{AggregatorListener, LinkError, ListenerConfig, ListenerEvent, read_tls},
    session::Timing,
};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use self::{
    clock::Clock,
    owner::{Owner, Parts, REVOKE_MAX},
    welcome::Welcome,
};
use crate::{
    config::{Config, PlannerMode},
    core::{Leader, Replica, ReplicaError, ReplicaEvent, Rules, State, TrainJob, view::Identity},
    http::{self, Ask, Asker},
    model::{self, GuardedModel, NewModel},
    replica::{LockError, OpenError, SingleReplica, StateDir},
    trainer::{Trained, Trainer},
};

/// Why the aggregator does not run, or has stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The state directory cannot be had.
    #[error(transparent)]
    StateDir(#[from] LockError),
    /// The log cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The certificates cannot be used, or the QUIC address cannot be had.
    #[error("cannot serve agents (certificates are made by: sage-aggregator pki init, pki issue aggregator NAME)")]
    Agents(#[from] LinkError),
    /// The certificate is of another fleet than the configuration.
    #[error("the certificate is of fleet {certificate}, the configuration of fleet {configured}: make them one")]
    Fleet {
        /// The fleet in the certificate.
        certificate: String,
        /// The fleet in the configuration.
        configured: String,
    },
    /// The HTTP address cannot be had.
    #[error("cannot listen on http = {address}: is another aggregator running?")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A thread or a signal handler cannot be had.
    #[error("cannot start {what}")]
    Start {
        /// What.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The log takes no more entries.
    #[error("stopped serving")]
    LogWrite(#[source] ReplicaError),
    /// The log's disk has failed.
    #[error("stopped serving, because the log has failed: {0}; check the disk, then start again")]
    LogFailed(String),
    /// A part that should never end has ended.
    #[error("stopped serving, because {0} has ended")]
    Ended(&'static str),
}

/// Serves until SIGTERM or SIGINT: then settings are taken back from the nodes, and everything is written out.
///
/// # Errors
///
/// [`DriverError`]: what could not be had at start, or what made serving impossible.
pub async fn run(config: Config) -> Result<(), DriverError> {
    let cancel = stop_signal()?;
    let dir = StateDir::lock(&config.state_dir)?;
    let clock = Clock::start();
    let (replica, mut state) = SingleReplica::open(dir.path(), State::new(config.learning.windows_max))?;
    state.keep_windows(config.learning.windows_max);
    let (welcome, higher) = Welcome::new(&config.name, &state);
    let (listener, events) = listen(&config, welcome.clone())?;
    let (trainer, models) = start_trainer()?;
    // Ends after the owner has: questions are asked of it until then.
    let http = CancellationToken::new();
    let asks = serve_http(&config, http.clone()).await?;
    let leader = Leader::new(rules(&config), &config.name, config.slos.clone(), state);
    let identity = Identity {
        name: config.name.clone(),
        fleet: config.fleet.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime: clock.uptime(),
    };
    let mut parts = Parts { clock, replica, listener, trainer, welcome, identity };
    let log = subscribe(&mut parts.replica);
    let mut owner = Owner::new(leader, parts);
    let mut inputs = Inputs { events, log, models, asks, higher };
    notify(&[sd_notify::NotifyState::Ready]);
    let served = serve(&mut owner, &mut inputs, &cancel).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    http.cancel();
    if served.is_ok() {
        tracing::info!("stopping: taking settings back");
        give_back(&mut owner, &mut inputs).await?;
    }
    owner.close().await;
    drop(dir);
    served
}

/// Everything that reaches the owner.
struct Inputs {
    events: mpsc::Receiver<ListenerEvent>,
    log: mpsc::UnboundedReceiver<ReplicaEvent>,
    models: mpsc::Receiver<Ended>,
    asks: mpsc::Receiver<Ask>,
    higher: mpsc::Receiver<Term>,
}

async fn serve(
    owner: &mut Owner<GuardedModel>,
    inputs: &mut Inputs,
    cancel: &CancellationToken,
) -> Result<(), DriverError> {
    let mut watchdog = watchdog();
    loop {
        if let Some(failure) = owner.health().failure {
            return Err(DriverError::LogFailed(failure));
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            outcome = take_one(owner, inputs) => outcome?,
            () = tick(&mut watchdog) => notify(&[sd_notify::NotifyState::Watchdog]),
        }
    }
}

/// Waits for one thing and takes it in. May be dropped at any await: nothing is taken before it is handled.
async fn take_one(owner: &mut Owner<GuardedModel>, inputs: &mut Inputs) -> Result<(), DriverError> {
    let Inputs { events, log, models, asks, higher } = inputs;
    let clock = owner.clock();
    let deadline = owner.leader().poll_timeout();
    tokio::select! {
        event = events.recv() => owner.take_event(event.ok_or(DriverError::Ended("the QUIC listener"))?),
        // The thread ends when the log has failed, which its health says better.
        event = log.recv() => match event {
            Some(event) => owner.take_log(event),
            None => Err(DriverError::LogFailed(owner.health().failure.unwrap_or_else(|| "its thread has ended".into()))),
        },
        Some(model) = models.recv() => owner.take_model(model),
        ask = asks.recv() => owner.take_ask(ask.ok_or(DriverError::Ended("the HTTP server"))?),
        Some(seen) = higher.recv() => {
            owner.raise_term(seen);
            Ok(())
        }
        () = clock.sleep_until(deadline) => owner.take_timeout(),
    }
}

/// Revokes everything in force and waits, not for long, until the nodes say that it is done.
async fn give_back(owner: &mut Owner<GuardedModel>, inputs: &mut Inputs) -> Result<(), DriverError> {
    owner.begin_close();
    let clock = owner.clock();
    let deadline = clock.now() + REVOKE_MAX;
    while !owner.held().is_empty() {
        tokio::select! {
            () = clock.sleep_until(Some(deadline)) => {
                tracing::warn!(settings = owner.held().len(), "not all nodes have answered; their leases will run out");
                return Ok(());
            }
            event = inputs.events.recv() => owner.take_event(event.ok_or(DriverError::Ended("the QUIC listener"))?)?,
            event = inputs.log.recv() => owner.take_log(event.ok_or(DriverError::Ended("the log"))?)?,
        }
    }
    Ok(())
}

fn listen(
    config: &Config,
    welcome: Welcome,
) -> Result<(AggregatorListener, mpsc::Receiver<ListenerEvent>), DriverError> {
    let tls = read_tls(&config.tls.ca, &config.tls.cert, &config.tls.key)?;
    let fleet = &tls.identity().fleet;
    if *fleet != config.fleet {
        let (certificate, configured) = (fleet.to_string(), config.fleet.to_string());
        return Err(DriverError::Fleet { certificate, configured });
    }
    let listener = ListenerConfig { address: config.quic, timing: Timing::default() };
    let (listener, events) =
        AggregatorListener::bind(&listener, &tls, move |hello: &sage_protocol::message::Hello| welcome.answer(hello))?;
    let address = listener.local_address().unwrap_or(config.quic);
    tracing::info!(quic = %address, identity = %tls.identity(), "listening for agents");
    Ok((listener, events))
}

async fn serve_http(config: &Config, cancel: CancellationToken) -> Result<mpsc::Receiver<Ask>, DriverError> {
    let failed = |source| DriverError::Http { address: config.http, source };
    let listener = TcpListener::bind(config.http).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    if !address.ip().is_loopback() {
        tracing::warn!(http = %address, "the HTTP API has no login and is open to the network");
    }
    tracing::info!(http = %address, "listening for sagectl");
    let (asker, asks) = Asker::new();
    tokio::spawn(async move {
        if let Err(error) = http::serve(listener, asker, cancel).await {
            tracing::error!(%error, "the HTTP server has ended");
        }
    });
    Ok(asks)
}

/// What the training thread hands back: a model, nothing because nothing changed, or why not.
type Ended = Trained<Option<NewModel>>;

fn start_trainer() -> Result<(Trainer<TrainJob>, mpsc::Receiver<Ended>), DriverError> {
    // One job at a time, and the owner takes its result before it asks for another.
    let (done, models) = mpsc::channel(1);
    let tell = move |trained: Ended| {
        // Nobody listens any more when the process ends.
        let _ = done.blocking_send(trained);
    };
    let trainer = Trainer::start(model::train, tell)
        .map_err(|source| DriverError::Start { what: "the training thread", source })?;
    Ok((trainer, models))
}

/// The log's events as a queue. Unbounded as such: there are no more than entries proposed, whose bytes are bounded.
fn subscribe(replica: &mut SingleReplica) -> mpsc::UnboundedReceiver<ReplicaEvent> {
    let (sender, receiver) = mpsc::unbounded_channel();
    replica.subscribe(Box::new(move |event| {
        // Nobody listens any more when the process ends.
        let _ = sender.send(event);
    }));
    receiver
}

fn rules(config: &Config) -> Rules {
    Rules {
        window: config.window,
        lateness: config.lateness,
        windows_min: config.learning.windows_min,
        windows_max: config.learning.windows_max,
        retrain_every_windows: config.learning.retrain_every_windows,
        violated_windows: config.diagnosis.violated_windows,
        calls_min: config.diagnosis.calls_min as f64,
        is_auto: config.mode == PlannerMode::Auto,
        lease: config.lease,
        verify_windows: config.verify_windows,
        hold_windows: config.hold_windows,
        ..Rules::default()
    }
}

/// Cancelled by SIGTERM or SIGINT; a second signal ends the process as usual.
fn stop_signal() -> Result<CancellationToken, DriverError> {
    let failed = |source| DriverError::Start { what: "the signal handlers", source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
        stop.cancel();
        // Whoever asks twice does not want to wait.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("stopped at once; leases will run out by themselves");
        std::process::exit(1);
    });
    Ok(cancel)
}

/// Ticks at half the time that systemd allows between two signs of life, if it asks for them.
fn watchdog() -> Option<tokio::time::Interval> {
    let mut usec = 0;
    let is_wanted = sd_notify::watchdog_enabled(false, &mut usec);
    (is_wanted && usec > 1).then(|| tokio::time::interval(Duration::from_micros(usec / 2)))
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "systemd was not notified");
    }
}
