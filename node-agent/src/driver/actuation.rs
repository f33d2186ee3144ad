//! The thread that changes the kernel: drives the [`Actuator`], which decides nothing by itself either.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use sage_common::KnobOffer;
use sage_protocol::message::{Command, CommandResult, Outcome, Refusal};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::{
    board::{ActuationView, Board},
    clock::monotonic,
};
use crate::{
    kernel::{Actuator, KernelInterface},
    policy::{Policy, PolicyInputs},
};

/// Between two looks at deadlines and at the knobs that are held.
const TICK: Duration = Duration::from_millis(200);
/// Requests that wait while the kernel is busy: as many commands as a leader sends in minutes.
const REQUESTS_MAX: usize = 256;
/// Results that wait for the uplink.
pub const RESULTS_MAX: usize = 1_024;

/// What the thread can be asked.
#[derive(Debug)]
pub enum Request {
    /// Obey, or say why not.
    Command(Command),
    /// Which knobs are on offer?
    Offers(PolicyInputs, oneshot::Sender<Vec<KnobOffer>>),
    /// Set or release the brake.
    Brake(bool, oneshot::Sender<()>),
    /// Another policy holds.
    Policy(Box<Policy>),
    /// Give everything back and end.
    Close,
}

/// The way to the thread; without one, actuation is off.
#[derive(Clone, Debug)]
pub struct ActuatorHandle(Option<SyncSender<Request>>);

impl ActuatorHandle {
    /// A handle to nothing: `why` is on the board.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Hands a request over; never waits.
    ///
    /// # Errors
    ///
    /// [`NotTaken`].
    pub fn send(&self, request: Request) -> Result<(), NotTaken> {
        let Some(sender) = &self.0 else { return Err(NotTaken::Off) };
        sender.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => NotTaken::Busy,
            TrySendError::Disconnected(_) => NotTaken::Off,
        })
    }

    /// Hands a command over, or answers it.
    pub fn command(&self, command: Command) -> Option<CommandResult> {
        let action = command.action;
        let why = self.send(Request::Command(command)).err()?;
        Some(CommandResult { action, outcome: Outcome::Refused(Refusal::Unsupported(why.to_string())) })
    }
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum NotTaken {
    /// There is no thread, or it has ended.
    #[error("actuation is off on this node")]
    Off,
    /// Too many requests wait.
    #[error("the actuator is busy")]
    Busy,
}

/// Starts the thread. It ends at [`Request::Close`] or when every handle is gone, after giving everything back; then
/// `results` closes.
pub fn spawn<K: KernelInterface + Send + 'static>(
    actuator: Actuator<K>,
    board: Arc<Board>,
    results: mpsc::Sender<CommandResult>,
) -> std::io::Result<(ActuatorHandle, JoinHandle<()>)> {
    let (sender, requests) = sync_channel(REQUESTS_MAX);
    let driver = Driver { actuator, board, results };
    let thread = thread::Builder::new().name("sage-actuator".to_owned()).spawn(move || driver.run(&requests))?;
    Ok((ActuatorHandle(Some(sender)), thread))
}

struct Driver<K> {
    actuator: Actuator<K>,
    board: Arc<Board>,
    results: mpsc::Sender<CommandResult>,
}

impl<K: KernelInterface> Driver<K> {
    fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let results = match requests.recv_timeout(TICK) {
                Ok(Request::Close) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(request) => self.handle(request),
                Err(RecvTimeoutError::Timeout) => self.actuator.tick(monotonic()),
            };
            self.report(results);
            self.publish();
        }
        let results = self.actuator.close(monotonic());
        self.report(results);
        self.publish();
    }

    fn handle(&mut self, request: Request) -> Vec<CommandResult> {
        match request {
            Request::Command(command) => return self.actuator.command(command, monotonic()),
            Request::Offers(inputs, reply) => {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(self.actuator.offers(&inputs));
                self.actuator.set_inputs(inputs);
            }
            Request::Brake(is_on, reply) => {
                let now = monotonic();
                let results = if is_on { self.actuator.freeze(now) } else { self.actuator.thaw(now) };
                self.publish();
                let _ = reply.send(());
                return results;
            }
            Request::Policy(policy) => self.actuator.set_policy(*policy),
            Request::Close => {}
        }
        Vec::new()
    }

    fn report(&self, results: Vec<CommandResult>) {
        for result in results {
            if let Err(error) = self.results.try_send(result) {
                tracing::warn!(%error, "a result is not reported; the audit has it");
            }
        }
    }

    fn publish(&self) {
        let now = monotonic();
        self.board.views().actuation = ActuationView {
            is_frozen: self.actuator.is_frozen(),
            term: self.actuator.term(),
            leases: self.actuator.leases(now),
            held: self.actuator.held(now),
            drifts: self.actuator.drifts(),
            problems: self.actuator.problems(now),
            beat: Some(now),
        };
    }
}
