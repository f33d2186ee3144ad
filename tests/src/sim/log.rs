//! The replicated log of one member, in memory: what is synced outlasts its process, what is not may be lost.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sage_aggregator::core::{Proposal, Replica, ReplicaError, ReplicaEvent, State, replica::Sink};
use sage_common::{Micros, Term, WindowKey};
use sage_protocol::codec;

use super::draw::Draw;

/// What is on the aggregator's disk, in the bytes of the real store.
#[derive(Clone, Debug, Default)]
pub struct LogDisk {
    snapshot: Option<Vec<u8>>,
    entries: Vec<(u64, Vec<u8>)>,
    last: u64,
    term: Term,
    /// Every window that was ever made durable: what the state must count, each once.
    pub windows: BTreeSet<WindowKey>,
}

impl LogDisk {
    /// The state that the disk holds.
    pub fn state(&self, empty: State) -> State {
        let mut state = self.snapshot.as_ref().map_or(empty, |bytes| State::from_snapshot(bytes).expect("own bytes"));
        for (index, bytes) in &self.entries {
            let proposal: Proposal = codec::decode_record(bytes).expect("own bytes");
            assert!(!state.apply(*index, &proposal).is_repeated, "entry {index} is in the snapshot already");
        }
        state
    }

    fn append(&mut self, proposal: &Proposal, bytes: Vec<u8>) -> u64 {
        self.last += 1;
        self.entries.push((self.last, bytes));
        if let Proposal::Windows { windows, .. } = proposal {
            self.windows.extend(windows.iter().map(|window| window.key.clone()));
        }
        self.last
    }
}

/// A proposal and its bytes.
type Entry = (Proposal, Vec<u8>);

/// The log of a process that runs.
pub(super) struct MemoryLog {
    disk: Arc<Mutex<LogDisk>>,
    term: Term,
    sink: Option<Sink>,
    waiting: VecDeque<Entry>,
    /// The entries of the sync under way, and when it is done.
    syncing: Option<(Vec<Entry>, Micros)>,
    /// Another process has taken the disk over: nothing becomes durable any more.
    pub is_fenced: bool,
    now: Micros,
    draw: Draw,
}

impl MemoryLog {
    /// Opens `disk` and begins a new term.
    pub fn open(disk: Arc<Mutex<LogDisk>>, now: Micros, draw: Draw) -> Self {
        let term = {
            let mut disk = lock(&disk);
            disk.term = Term(disk.term.0 + 1);
            disk.term
        };
        Self { disk, term, sink: None, waiting: VecDeque::new(), syncing: None, is_fenced: false, now, draw }
    }

    /// Begins a term above `seen`.
    pub fn raise_term(&mut self, seen: Term) {
        let mut disk = lock(&self.disk);
        disk.term = Term(disk.term.max(seen).0 + 1);
        self.term = disk.term;
        drop(disk);
        self.tell(ReplicaEvent::Leading(self.term));
    }

    /// The time from here on.
    pub fn set_now(&mut self, now: Micros) {
        self.now = now;
    }

    /// When [`sync`](Self::sync) has something to do.
    pub fn due(&self) -> Option<Micros> {
        self.syncing.as_ref().filter(|_| !self.is_fenced).map(|(_, at)| *at)
    }

    /// Ends the sync that is due, and begins the next.
    pub fn sync(&mut self) {
        if self.due().is_some_and(|at| at <= self.now)
            && let Some((batch, _)) = self.syncing.take()
        {
            self.store(batch);
            self.begin_sync();
        }
    }

    /// The process ends here: the sync under way has reached the disk or not, what waits has not.
    pub fn crash(mut self) {
        if let Some((batch, _)) = self.syncing.take()
            && !self.is_fenced
            && self.draw.chance(0.5)
        {
            self.sink = None;
            self.store(batch);
        }
    }

    fn store(&mut self, batch: Vec<(Proposal, Vec<u8>)>) {
        for (proposal, bytes) in batch {
            let index = lock(&self.disk).append(&proposal, bytes);
            self.tell(ReplicaEvent::Committed { index, proposal });
        }
    }

    fn begin_sync(&mut self) {
        if self.syncing.is_none() && !self.waiting.is_empty() {
            let done = self.now + self.draw.millis(1..=25);
            self.syncing = Some((self.waiting.drain(..).collect(), done));
        }
    }

    fn tell(&mut self, event: ReplicaEvent) {
        if let Some(sink) = &mut self.sink {
            sink(event);
        }
    }
}

impl Replica for MemoryLog {
    fn propose(&mut self, proposal: Proposal) -> Result<(), ReplicaError> {
        let bytes = codec::encode_record(&proposal)
            .map_err(|error| ReplicaError::Store { attempted: "encode an entry of", source: error.into() })?;
        self.waiting.push_back((proposal, bytes));
        self.begin_sync();
        Ok(())
    }

    fn subscribe(&mut self, mut sink: Sink) {
        sink(ReplicaEvent::Leading(self.term));
        self.sink = Some(sink);
    }

    fn compact(&mut self, state: &State) -> Result<(), ReplicaError> {
        let bytes = codec::encode_snapshot(state)
            .map_err(|error| ReplicaError::Store { attempted: "encode a snapshot of", source: error.into() })?;
        let mut disk = lock(&self.disk);
        if !self.is_fenced {
            disk.snapshot = Some(bytes);
            disk.entries.retain(|(index, _)| *index > state.applied());
        }
        Ok(())
    }
}

/// A panic elsewhere ends the test anyway.
pub(super) fn lock(disk: &Mutex<LogDisk>) -> MutexGuard<'_, LogDisk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}
