//! Sends arrivals when they are due: one thread that only waits and hands over, one that talks to the application.
#![expect(clippy::disallowed_methods, reason = "requests are due by the clock")]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{net::TcpStream, sync::mpsc};

use super::{
    arrivals::{Arrival, Arrivals},
    windows::{Summary, WindowReport, Windows},
};
use crate::{
    app::{CallError, connect, exchange},
    topology::Topology,
};

/// What to send, where, and for how long.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// The application's kinds of request and their mix.
    pub topology: Topology,
    /// One of the file's alternative mixes; its own by default.
    pub mix: Option<String>,
    /// Where its entry tier listens.
    pub target: SocketAddr,
    /// Requests a second.
    pub rate: f64,
    /// How long; `None`: until stopped.
    pub duration: Option<Duration>,
    /// Same seed, same requests.
    pub seed: u64,
    /// Length of a reported window.
    pub window: Duration,
    /// The rate swings by this part of itself.
    pub swing: f64,
    /// How long one swing takes.
    pub swing_period: Duration,
    /// Requests under way at most; more are refused, which counts as an error.
    pub in_flight_max: usize,
    /// So many of the traces are sampled.
    pub sample_ratio: f64,
}

impl LoadConfig {
    /// The topology's nominal rate until stopped, in windows of one second.
    pub fn new(topology: Topology, target: SocketAddr) -> Self {
        Self {
            rate: topology.load.nominal_qps,
            topology,
            mix: None,
            target,
            duration: None,
            seed: 1,
            window: Duration::from_secs(1),
            swing: 0.0,
            swing_period: Duration::from_secs(60),
            in_flight_max: 1_024,
            sample_ratio: 1.0,
        }
    }
}

/// A running load. Stops when dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    pacer: Option<JoinHandle<Result<Summary>>>,
}

/// Runs `config` to its end; `on_window` gets each window as it closes.
///
/// # Errors
///
/// As [`Load::start`] and [`Load::join`].
pub fn run(config: LoadConfig, on_window: impl FnMut(WindowReport) + Send + 'static) -> Result<Summary> {
    Load::start(config, on_window)?.join()
}

#[derive(Debug)]
struct Shared {
    windows: Mutex<Windows>,
    in_flight: AtomicUsize,
    is_stopping: AtomicBool,
    /// `f64` bits, requests a second.
    rate: AtomicU64,
}

impl Shared {
    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pacer looks up at least so often, to close windows and to stop.
const PACE_MAX: Duration = Duration::from_millis(20);
/// After the last request, answers are awaited for so long.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Handed over and not yet taken: the talker takes them at once unless the machine is stalled for seconds.
const HANDOVER_MAX: usize = 16_384;

impl Load {
    /// Starts two threads and returns.
    ///
    /// # Errors
    ///
    /// For a rate, window or mix that makes no sense.
    pub fn start(config: LoadConfig, on_window: impl FnMut(WindowReport) + Send + 'static) -> Result<Self> {
        ensure!(config.rate > 0.0 && config.rate.is_finite(), "the rate must be positive");
        ensure!(!config.window.is_zero(), "a window needs a length");
        let arrivals = Arrivals::new(&config.topology, config.mix.as_deref(), config.seed)
            .context("the topology has no such mix")?
            .with_swing(config.swing, config.swing_period.as_secs_f64())
            .with_sample_ratio(config.sample_ratio);
        let shared = Arc::new(Shared {
            windows: Mutex::new(Windows::new(config.topology.requests.iter().map(|request| request.id.clone()))),
            in_flight: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            rate: AtomicU64::new(config.rate.to_bits()),
        });
        let (handover, jobs) = mpsc::channel(HANDOVER_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let talker = Arc::new(Talker { target: config.target, shared: shared.clone(), idle: Mutex::new(Vec::new()) });
        let talking =
            thread::Builder::new().name("load-talk".to_owned()).spawn(move || runtime.block_on(talk(talker, jobs)))?;
        let pacer = Pacer { config, shared: shared.clone(), handover, on_window, next_window: 1 };
        let pacer = thread::Builder::new().name("load-pace".to_owned()).spawn(move || {
            let summary = pacer.run(arrivals);
            ensure!(talking.join().is_ok(), "the load's talker panicked");
            Ok(summary)
        })?;
        Ok(Self { shared, pacer: Some(pacer) })
    }

    /// Changes the rate from the next request on; a rate that is not positive is ignored.
    pub fn set_rate(&self, rate: f64) {
        if rate > 0.0 && rate.is_finite() {
            self.shared.rate.store(rate.to_bits(), Ordering::Relaxed);
        }
    }

    /// No more requests; answers under way are still awaited.
    pub fn stop(&self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Whether it has come to its end.
    pub fn is_finished(&self) -> bool {
        self.pacer.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end; the whole run's results.
    ///
    /// # Errors
    ///
    /// When one of its threads panicked.
    pub fn join(mut self) -> Result<Summary> {
        let pacer = self.pacer.take().context("joined twice")?;
        pacer.join().map_err(|_| anyhow::anyhow!("the load's pacer panicked"))?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Pacer<F> {
    config: LoadConfig,
    shared: Arc<Shared>,
    handover: mpsc::Sender<(Instant, Arrival)>,
    on_window: F,
    next_window: u32,
}

impl<F: FnMut(WindowReport)> Pacer<F> {
    fn run(mut self, mut arrivals: Arrivals) -> Summary {
        let start = Instant::now();
        let end = self.config.duration.map(|duration| start + duration);
        while !self.shared.is_stopping.load(Ordering::Relaxed) {
            let rate = f64::from_bits(self.shared.rate.load(Ordering::Relaxed));
            let arrival = arrivals.next(rate);
            let due = start + Duration::from_secs_f64(arrival.due_s);
            let until = end.map_or(due, |end| due.min(end));
            if !self.wait(start, until) || until < due {
                break;
            }
            self.send(due, arrival);
        }
        let duration_s = start.elapsed().as_secs_f64();
        let drained = Instant::now() + DRAIN_MAX;
        while self.shared.in_flight.load(Ordering::Acquire) > 0 && Instant::now() < drained {
            thread::sleep(Duration::from_millis(1));
            self.close_windows(start);
        }
        let last = self.shared.windows().close(start.elapsed().as_secs_f64());
        if last.sent + last.completed + last.errors > 0 {
            (self.on_window)(last);
        }
        self.shared.windows().summary(duration_s)
    }

    /// Waits until `until`, closing windows on the way; false once told to stop.
    fn wait(&mut self, start: Instant, until: Instant) -> bool {
        loop {
            let window_end = self.close_windows(start);
            if self.shared.is_stopping.load(Ordering::Relaxed) {
                return false;
            }
            let now = Instant::now();
            if now >= until {
                return true;
            }
            thread::sleep(until.min(window_end).min(now + PACE_MAX).saturating_duration_since(now));
        }
    }

    /// Reports every window that has ended; the end of the one that has not.
    fn close_windows(&mut self, start: Instant) -> Instant {
        loop {
            let window_end = start + self.config.window * self.next_window;
            if Instant::now() < window_end {
                return window_end;
            }
            let report = self.shared.windows().close((window_end - start).as_secs_f64());
            (self.on_window)(report);
            self.next_window += 1;
        }
    }

    fn send(&self, due: Instant, arrival: Arrival) {
        self.shared.windows().sent();
        let is_refused = self.shared.in_flight.fetch_add(1, Ordering::AcqRel) >= self.config.in_flight_max;
        if is_refused || self.handover.try_send((due, arrival)).is_err() {
            self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
            self.shared.windows().finished(arrival.kind, None);
        }
    }
}

struct Talker {
    target: SocketAddr,
    shared: Arc<Shared>,
    /// Connections nobody uses; never more than requests were under way.
    idle: Mutex<Vec<TcpStream>>,
}

/// Ends when the pacer has gone and what it handed over is under way; requests still unanswered then are given up.
async fn talk(talker: Arc<Talker>, mut jobs: mpsc::Receiver<(Instant, Arrival)>) {
    while let Some((due, arrival)) = jobs.recv().await {
        let talker = talker.clone();
        tokio::spawn(async move {
            let is_ok = talker.call(arrival).await.is_ok();
            let latency = Instant::now().saturating_duration_since(due).as_micros();
            let latency = is_ok.then(|| u64::try_from(latency).unwrap_or(u64::MAX));
            talker.shared.windows().finished(arrival.kind, latency);
            talker.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

impl Talker {
    async fn call(&self, arrival: Arrival) -> Result<(), CallError> {
        let frame = arrival.request.to_frame();
        let kept = self.idle().pop();
        if let Some(mut kept) = kept {
            if let Ok(response) = exchange(&mut kept, &frame).await {
                self.idle().push(kept);
                return if response.is_ok { Ok(()) } else { Err(CallError::Remote) };
            }
            // The entry tier was restarted: none of the others is better.
            self.idle().clear();
        }
        let mut fresh = connect(self.target).await?;
        let response = exchange(&mut fresh, &frame).await?;
        self.idle().push(fresh);
        if response.is_ok { Ok(()) } else { Err(CallError::Remote) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
