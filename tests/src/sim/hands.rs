//! The effects of a lease table: the kernel in memory, and an undo log that outlasts the agent's process.

use std::collections::{BTreeMap, VecDeque};

use sage_common::{ActionId, Knob, Micros, Setting, Term};
use sage_node_agent::{
    core::actuation::{Before, Failure, Input, LeaseTable, Output, Saved, UndoRecord},
    kernel::{KernelError, KernelInterface},
    policy::Policy,
};
use sage_protocol::message::{CommandResult, Outcome};

use super::machine::Machine;

/// The undo log on its disk. Every record is durable when it is written, as the real one's are.
#[derive(Clone, Debug, Default)]
pub(super) struct UndoDisk {
    pub term: Term,
    pub is_frozen: bool,
    pub live: BTreeMap<ActionId, UndoRecord>,
    finished: VecDeque<(ActionId, Outcome)>,
    /// The highest term in which a change was ever ordered.
    changed_in: Term,
}

impl UndoDisk {
    fn saved(&self) -> Saved {
        Saved {
            term: self.term,
            is_frozen: self.is_frozen,
            live: self.live.values().cloned().collect(),
            finished: self.finished.iter().cloned().collect(),
        }
    }

    fn begin(&mut self, undo: UndoRecord) {
        assert!(undo.term >= self.changed_in, "term {} changes a knob after term {}", undo.term, self.changed_in);
        assert!(undo.term <= self.term, "a change of term {}, of which only {} is durable", undo.term, self.term);
        self.changed_in = undo.term;
        self.live.insert(undo.action, undo);
    }
}

/// Ends the agent's process in the middle of what it does.
#[derive(Clone, Copy, Debug)]
pub struct Fuse {
    /// Effects that still happen.
    pub effects: u32,
    /// Whether the one at which it ends happens too, and only its answer is lost.
    pub is_last_done: bool,
}

/// The agent's process has ended.
#[derive(Debug)]
pub(super) struct Crashed;

/// A lease table with what it acts on.
#[derive(Debug)]
pub(super) struct Hands {
    pub table: LeaseTable,
}

/// What a lease table acts on.
pub(super) struct World<'a> {
    pub machine: &'a mut Machine,
    pub undo: &'a mut UndoDisk,
    pub fuse: &'a mut Option<Fuse>,
}

impl Hands {
    /// A table that goes on from what an earlier life left.
    pub fn recover(policy: Policy, now: Micros, world: &World<'_>) -> Self {
        let boot = format!("boot {}", world.machine.boot);
        Self { table: LeaseTable::recover(policy, &boot, world.undo.saved(), now) }
    }

    /// Takes `input` in and does what comes of it.
    pub fn take(&mut self, now: Micros, input: Input, world: &mut World<'_>) -> Result<Vec<CommandResult>, Crashed> {
        self.table.handle_input(now, input);
        self.pump(now, world)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Micros, world: &mut World<'_>) -> Result<Vec<CommandResult>, Crashed> {
        self.table.handle_timeout(now);
        self.pump(now, world)
    }

    /// Carries out whatever the table wants.
    pub fn pump(&mut self, now: Micros, world: &mut World<'_>) -> Result<Vec<CommandResult>, Crashed> {
        let mut results = Vec::new();
        while let Some(output) = self.table.poll_output() {
            let is_last = world.is_blown();
            if is_last.is_some_and(|is_done| !is_done) {
                return Err(Crashed);
            }
            let answer = world.perform(output, &mut results);
            if is_last.is_some() {
                return Err(Crashed);
            }
            if let Some(answer) = answer {
                self.table.handle_input(now, answer);
            }
        }
        Ok(results)
    }
}

impl World<'_> {
    /// Burns the fuse by one effect; at its end, whether that effect still happens.
    fn is_blown(&mut self) -> Option<bool> {
        let fuse = self.fuse.as_mut()?;
        if fuse.effects > 0 {
            fuse.effects -= 1;
            return None;
        }
        self.fuse.take().map(|fuse| fuse.is_last_done)
    }

    fn perform(&mut self, output: Output, results: &mut Vec<CommandResult>) -> Option<Input> {
        let Self { machine, undo, .. } = self;
        let kernel = &mut machine.kernel;
        match output {
            Output::PersistTerm(term) => {
                undo.term = undo.term.max(term);
                Some(Input::TermPersisted(term, Ok(())))
            }
            Output::Capture { action, knob } => {
                let captured: Result<Before, Failure> = kernel.capture(&knob).map_err(Failure::from);
                Some(Input::Captured(action, captured))
            }
            Output::LogUndo(record) => {
                let action = record.action;
                undo.begin(*record);
                Some(Input::UndoLogged(action, Ok(())))
            }
            Output::Write { action, knob, setting } => {
                assert!(undo.live.contains_key(&action), "{knob} is changed without a durable undo record");
                let written = kernel.write(&knob, &setting);
                Some(Input::Written(action, read_back(kernel, &knob, written)))
            }
            Output::Read { action, knob } => Some(Input::Found(action, kernel.read(&knob).map_err(Failure::from))),
            Output::Restore { action, knob, before } => {
                let restored = kernel.restore(&knob, &before);
                Some(Input::Restored(action, read_back(kernel, &knob, restored)))
            }
            Output::PersistBrake(is_on) => {
                undo.is_frozen = is_on;
                None
            }
            Output::ForgetUndo { action, outcome } => {
                undo.live.remove(&action);
                undo.finished.push_back((action, outcome));
                None
            }
            Output::Report(result) => {
                results.push(result);
                None
            }
        }
    }
}

fn read_back(kernel: &impl KernelInterface, knob: &Knob, done: Result<(), KernelError>) -> Result<Setting, Failure> {
    done.and_then(|()| kernel.read(knob)).map_err(Failure::from)
}
