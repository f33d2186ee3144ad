//! Runs a [`LeaseTable`] against the kernel, the undo log and the audit. It decides nothing. Every call blocks until
//! what it led to has been done, so it belongs on a thread of its own.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use sage_common::{ActionId, Knob, KnobOffer, Micros, Setting, Term};
use sage_protocol::message::{Command, CommandResult, HeldLease, Outcome};
use serde_json::{Value, json};
use thiserror::Error;

use super::{Audit, KernelError, KernelInterface, UndoError, UndoLog, chain};
use crate::{
    core::actuation::{Before, Failure, Input, LeaseState, LeaseTable, LeaseView, Output},
    policy::{Policy, PolicyInputs},
};

/// Why the actuator cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ActuatorError {
    /// Without an undo log nothing may be changed.
    #[error(transparent)]
    Undo(#[from] UndoError),
    /// Without an audit nothing may be changed.
    #[error("cannot open the audit file {path}")]
    Audit {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The machine's boot cannot be told from others.
    #[error("cannot read the machine's boot id from {path}")]
    Boot {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Where the actuator keeps its files.
#[derive(Clone, Debug)]
pub struct ActuatorPaths {
    /// The directory of the undo log.
    pub state_dir: PathBuf,
    /// The audit file.
    pub audit_file: PathBuf,
    /// Mount point of procfs, for the machine's boot id.
    pub proc_root: PathBuf,
}

/// The leases of this node, with their effects.
#[derive(Debug)]
pub struct Actuator<K> {
    table: LeaseTable,
    kernel: K,
    undo: UndoLog,
    audit: Audit,
    drifts: u64,
    refreshed: Micros,
    problem: Option<String>,
}

/// How often packet filters are brought in step with sockets: a new connection is held back a second late at most.
const REFRESH_EVERY: Micros = Micros::from_secs(1);
/// How often a knob is tried to be given back at shutdown before it is left to the next start, and the wait between.
const CLOSE_ATTEMPTS: u32 = 5;
const CLOSE_WAIT: Duration = Duration::from_millis(200);

impl<K: KernelInterface> Actuator<K> {
    /// Opens the undo log and gives back what an earlier life had left, unless the machine was started anew since.
    /// `now` is the monotonic clock that every later call uses.
    ///
    /// # Errors
    ///
    /// [`ActuatorError`] if the undo log or the audit cannot be opened.
    pub fn open(
        paths: &ActuatorPaths,
        policy: Policy,
        mut kernel: K,
        now: Micros,
    ) -> Result<(Self, Vec<CommandResult>), ActuatorError> {
        let boot = machine_boot(&paths.proc_root)?;
        let audit = Audit::open(&paths.audit_file)
            .map_err(|source| ActuatorError::Audit { path: paths.audit_file.clone(), source })?;
        let (undo, opened) = UndoLog::open(&paths.state_dir)?;
        kernel.set_egress_rules(policy.egress());
        let live = opened.saved.live.len();
        let table = LeaseTable::recover(policy, &boot, opened.saved, now);
        let mut actuator = Self { table, kernel, undo, audit, drifts: 0, refreshed: now, problem: None };
        if opened.damaged_lines > 0 {
            let text = format!("{} damaged undo records; a copy was kept beside the log", opened.damaged_lines);
            tracing::error!(text);
            actuator.problem = Some(text);
        }
        let fields = [("changes_left", json!(live)), ("damaged_records", json!(opened.damaged_lines))];
        actuator.audit.write("start", fields);
        let results = actuator.pump(now);
        Ok((actuator, results))
    }

    /// Obeys, or says why not.
    pub fn command(&mut self, command: Command, now: Micros) -> Vec<CommandResult> {
        let order = serde_json::to_value(&command.order).unwrap_or(Value::Null);
        self.audit
            .write("command", [("action", json!(command.action)), ("term", json!(command.term)), ("order", order)]);
        self.input(now, Input::Command(command))
    }

    /// Ends what has run out, looks after what is held. Due at [`next_tick`](Self::next_tick), and at least each second.
    pub fn tick(&mut self, now: Micros) -> Vec<CommandResult> {
        self.table.handle_timeout(now);
        let results = self.pump(now);
        self.refresh(now);
        results
    }

    /// When [`tick`](Self::tick) is next due.
    pub fn next_tick(&self) -> Option<Micros> {
        self.table.poll_timeout()
    }

    /// Sets the brake: gives everything back and refuses what is new, until [`thaw`](Self::thaw). Outlasts restarts.
    pub fn freeze(&mut self, now: Micros) -> Vec<CommandResult> {
        self.audit.write("freeze", []);
        self.input(now, Input::Brake(true))
    }

    /// Releases the brake.
    pub fn thaw(&mut self, now: Micros) -> Vec<CommandResult> {
        self.audit.write("thaw", []);
        self.input(now, Input::Brake(false))
    }

    /// Gives everything back and takes nothing new. What the kernel will not take back now is left to the next start,
    /// and still listed by [`leases`](Self::leases).
    pub fn close(&mut self, now: Micros) -> Vec<CommandResult> {
        self.audit.write("stop", []);
        self.table.close();
        let mut results = self.pump(now);
        let mut at = now;
        for _ in 0..CLOSE_ATTEMPTS {
            if self.table.is_drained() {
                break;
            }
            wait(CLOSE_WAIT);
            // Retries wait for a deadline; at shutdown nothing is gained by waiting longer than this.
            at = self.table.poll_timeout().map_or(at, |next| next.max(at));
            self.table.handle_timeout(at);
            results.extend(self.pump(at));
        }
        results
    }

    /// Whether the brake is on.
    pub const fn is_frozen(&self) -> bool {
        self.table.is_frozen()
    }

    /// The highest term obeyed.
    pub const fn term(&self) -> Term {
        self.table.term()
    }

    /// Every lease, for people.
    pub fn leases(&self, now: Micros) -> Vec<LeaseView> {
        self.table.leases(now).collect()
    }

    /// The leases in force, for the hello.
    pub fn held(&self, now: Micros) -> Vec<HeldLease> {
        self.table.held(now).collect()
    }

    /// How often somebody else changed a knob that we held, in this life.
    pub const fn drifts(&self) -> u64 {
        self.drifts
    }

    /// What keeps actuation from being in order, for `status`.
    pub fn problems(&self, now: Micros) -> Vec<String> {
        let stuck = self.table.leases(now).filter_map(|lease| match lease.state {
            LeaseState::Stuck { attempts } => Some(format!("{} not given back in {attempts} attempts", lease.knob)),
            _ => None,
        });
        let undo = self.undo.is_poisoned().then(|| "the undo log has failed: nothing new is changed".to_owned());
        let audit = (self.audit.failures() > 0).then(|| format!("{} audit lines were lost", self.audit.failures()));
        self.problem.iter().cloned().chain(undo).chain(audit).chain(stuck).collect()
    }

    /// Another policy holds from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.kernel.set_egress_rules(policy.egress());
        self.table.set_policy(policy);
    }

    /// The policy in force.
    pub const fn policy(&self) -> &Policy {
        self.table.policy()
    }

    /// What is on the node now: whose cgroup is whose decides which rule covers it.
    pub fn set_inputs(&mut self, inputs: PolicyInputs) {
        self.table.set_inputs(inputs);
    }

    /// The knobs to offer, each with its present setting. What this kernel lacks is not offered.
    pub fn offers(&self, inputs: &PolicyInputs) -> Vec<KnobOffer> {
        let read = |knob: &Knob| {
            self.kernel.supports(knob.kind()).ok()?;
            self.kernel.read(knob).ok()
        };
        self.table.policy().offers(inputs, read)
    }

    /// The kernel it acts on.
    pub const fn kernel(&self) -> &K {
        &self.kernel
    }

    fn refresh(&mut self, now: Micros) {
        if now.saturating_sub(self.refreshed) < REFRESH_EVERY {
            return;
        }
        self.refreshed = now;
        let held: Vec<Knob> = self.table.knobs_in_force().cloned().collect();
        if let Err(error) = self.kernel.refresh(&held) {
            tracing::warn!(error = chain(&error), "packet filters could not be brought in step");
        }
    }

    fn input(&mut self, now: Micros, input: Input) -> Vec<CommandResult> {
        self.table.handle_input(now, input);
        self.pump(now)
    }

    /// Ends: a failed write comes back as a deadline, not as another output.
    fn pump(&mut self, now: Micros) -> Vec<CommandResult> {
        let mut results = Vec::new();
        while let Some(output) = self.table.poll_output() {
            if let Some(answer) = self.perform(output, &mut results) {
                self.table.handle_input(now, answer);
            }
        }
        results
    }

    fn perform(&mut self, output: Output, results: &mut Vec<CommandResult>) -> Option<Input> {
        match output {
            Output::PersistTerm(term) => Some(Input::TermPersisted(term, stored(self.undo.term(term)))),
            Output::Capture { action, knob } => Some(Input::Captured(action, self.capture(&knob))),
            Output::LogUndo(undo) => Some(Input::UndoLogged(undo.action, stored(self.undo.begin(*undo)))),
            Output::Write { action, knob, setting } => {
                let result = self.kernel.write(&knob, &setting);
                Some(Input::Written(action, self.read_back("write", action, &knob, &setting, result)))
            }
            Output::Read { action, knob } => Some(Input::Found(action, self.kernel.read(&knob).map_err(Failure::from))),
            Output::Restore { action, knob, before } => {
                let result = self.kernel.restore(&knob, &before);
                Some(Input::Restored(action, self.read_back("revert", action, &knob, &before.setting, result)))
            }
            Output::PersistBrake(is_on) => {
                if let Err(error) = self.undo.brake(is_on) {
                    self.problem = Some(format!("the brake will not outlast a restart: {}", chain(&error)));
                }
                None
            }
            Output::ForgetUndo { action, outcome } => {
                if let Err(error) = self.undo.end(action, outcome) {
                    tracing::warn!(error = chain(&error), "an undo record is kept longer than needed");
                }
                None
            }
            Output::Report(result) => {
                self.note(&result);
                results.push(result);
                None
            }
        }
    }

    fn capture(&self, knob: &Knob) -> Result<Before, Failure> {
        self.kernel.supports(knob.kind()).and_then(|()| self.kernel.capture(knob)).map_err(Failure::from)
    }

    fn read_back(
        &mut self,
        event: &str,
        action: ActionId,
        knob: &Knob,
        setting: &Setting,
        result: Result<(), KernelError>,
    ) -> Result<Setting, Failure> {
        let found = result.and_then(|()| self.kernel.read(knob)).map_err(Failure::from);
        self.audit.write(
            event,
            [
                ("action", json!(action)),
                ("knob", json!(knob.to_string())),
                ("setting", json!(setting.to_string())),
                ("read_back", json!(found.as_ref().ok().map(ToString::to_string))),
                ("error", json!(found.as_ref().err().map(|failure| &failure.text))),
            ],
        );
        found
    }

    fn note(&mut self, result: &CommandResult) {
        let CommandResult { action, outcome } = result;
        if let Outcome::Drifted { found } = outcome {
            self.drifts += 1;
            tracing::warn!(%action, %found, "somebody else changed a knob that we held");
        }
        let outcome = serde_json::to_value(outcome).unwrap_or(Value::Null);
        tracing::info!(%action, %outcome, "result");
        self.audit.write("result", [("action", json!(action)), ("outcome", outcome)]);
    }
}

fn stored(result: Result<(), UndoError>) -> Result<(), Failure> {
    result.map_err(|error| Failure::other(chain(&error)))
}

#[expect(clippy::disallowed_methods, reason = "driver: waits for the kernel at shutdown")]
fn wait(time: Duration) {
    std::thread::sleep(time);
}

#[expect(clippy::disallowed_methods, reason = "driver: reads procfs")]
fn machine_boot(proc_root: &Path) -> Result<String, ActuatorError> {
    let path = proc_root.join("sys/kernel/random/boot_id");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(ActuatorError::Boot { path, source }),
    }
}

#[cfg(test)]
mod tests;
