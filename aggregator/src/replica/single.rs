//! A replica without peers: one thread that owns the store and commits whatever has gathered in one transaction.
//!
//! ```text
//!              propose                 append, fsync              sink
//!   owner ───────────────► pending ───────────────────► durable ─────────► Committed
//!                             ▲            │ disk full
//!                             └── wait ◄───┘ any other failure: stop for good
//! ```
//!
//! A full disk passes by itself, so the pending entries wait for it, unacknowledged. After any other failure of the disk
//! nothing that it says can be trusted (a repeated `fsync` may report success for lost data), so the process has to end
//! and read back what is really there.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::Duration,
};

use sage_common::Term;
use sage_protocol::{CodecError, codec};
use thiserror::Error;
use tokio::sync::watch;

use super::store::{Store, StoreError};
use crate::core::{Proposal, Replica, ReplicaError, ReplicaEvent, State, replica::Sink};

/// Most entries of one transaction: what arrives during one `fsync` of a busy fleet.
const BATCH_ENTRIES_MAX: usize = 256;

/// Most bytes of one transaction, so that its pages fit redb's write buffer.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// Time between two attempts on a full disk.
const RETRY: Duration = Duration::from_secs(1);

/// Below this a log is never worth a snapshot.
const LOG_BYTES_MIN: u64 = 4 << 20;

/// Why the log cannot be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The thread could not be started.
    #[error("cannot start the thread of the log")]
    Thread(#[source] std::io::Error),
}

/// How the log is doing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// What keeps entries from becoming durable at present, for people.
    pub problem: Option<String>,
    /// Why the log has stopped for good.
    pub failure: Option<String>,
    /// Position of the last durable entry.
    pub last: u64,
    /// Bytes of the entries after the snapshot.
    pub log_bytes: u64,
    /// Bytes of the snapshot.
    pub snapshot_bytes: u64,
    /// Transactions so far.
    pub commits: u64,
}

impl Health {
    /// Whether a snapshot is due: the log has outgrown it, so that writing snapshots at most doubles what is written.
    pub fn is_snapshot_due(&self) -> bool {
        self.log_bytes > self.snapshot_bytes.max(LOG_BYTES_MIN)
    }
}

enum Job {
    Subscribe(Sink),
    Append(Entry),
    Snapshot { applied: u64, bytes: Vec<u8> },
    Raise(Term),
}

/// What both ends of the queue count.
#[derive(Debug, Default)]
struct Shared {
    /// Bytes of entries that are not durable yet.
    pending_bytes: AtomicUsize,
    /// Whether a snapshot waits to be written.
    is_compacting: AtomicBool,
}

struct Entry {
    proposal: Proposal,
    record: Vec<u8>,
}

/// The handle of the log. Dropping it writes out what was proposed, if the disk allows, and ends the thread.
pub struct SingleReplica {
    /// Unbounded as such; the driver stops taking windows while too many bytes are pending.
    jobs: Option<Sender<Job>>,
    health: watch::Receiver<Health>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl SingleReplica {
    /// Opens the log in `dir`, replays it onto `empty`, and begins a new term.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: damage, another layout, another user of the file, or the file system.
    pub fn open(dir: &Path, empty: State) -> Result<(Self, State), OpenError> {
        let path = dir.join("log.redb");
        let store = Store::open(&path)?;
        let (state, health) = replay(&store, empty)?;
        let term = store.begin_term(Term(0))?;
        let (jobs, inbox) = mpsc::channel();
        let (report, health) = watch::channel(health);
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            path,
            store: Some(store),
            inbox,
            report,
            shared: Arc::clone(&shared),
            term,
            raise: None,
            sink: None,
            pending: VecDeque::new(),
            snapshot: None,
        };
        let thread =
            std::thread::Builder::new().name("log".into()).spawn(move || worker.run()).map_err(OpenError::Thread)?;
        Ok((Self { jobs: Some(jobs), health, shared, thread: Some(thread) }, state))
    }

    /// Begins a term above `seen`, which somebody has heard of: the store that counted up to it is lost.
    pub fn raise_term(&self, seen: Term) {
        // A log that has failed already says so on the next proposal.
        let _ = self.send("raise the term of", Job::Raise(seen));
    }

    /// Bytes of entries that are not durable yet.
    pub fn pending_bytes(&self) -> usize {
        self.shared.pending_bytes.load(Ordering::Relaxed)
    }

    /// Whether [`compact`](Replica::compact) is worth its while now.
    pub fn is_compaction_due(&self) -> bool {
        let health = self.health.borrow();
        health.is_snapshot_due() && health.problem.is_none() && !self.shared.is_compacting.load(Ordering::Relaxed)
    }

    /// How the log is doing; changes are seen by waiting on the receiver.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    fn send(&self, attempted: &'static str, job: Job) -> Result<(), ReplicaError> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent {
            return Ok(());
        }
        let why = self.health.borrow().failure.clone().unwrap_or_else(|| "its thread has ended".into());
        Err(ReplicaError::Store { attempted, source: why.into() })
    }
}

impl Replica for SingleReplica {
    fn propose(&mut self, proposal: Proposal) -> Result<(), ReplicaError> {
        let record = codec::encode_record(&proposal)
            .map_err(|error| ReplicaError::Store { attempted: "encode an entry of", source: error.into() })?;
        self.shared.pending_bytes.fetch_add(record.len(), Ordering::Relaxed);
        self.send("append to", Job::Append(Entry { proposal, record }))
    }

    fn subscribe(&mut self, sink: Sink) {
        // A log that has failed already says so on the next proposal.
        let _ = self.send("subscribe to", Job::Subscribe(sink));
    }

    fn compact(&mut self, state: &State) -> Result<(), ReplicaError> {
        let bytes = codec::encode_snapshot(state)
            .map_err(|error| ReplicaError::Store { attempted: "encode a snapshot of", source: error.into() })?;
        self.shared.is_compacting.store(true, Ordering::Relaxed);
        self.send("compact", Job::Snapshot { applied: state.applied(), bytes })
    }
}

impl Drop for SingleReplica {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// The state that the store's snapshot and entries make.
fn replay(store: &Store, empty: State) -> Result<(State, Health), StoreError> {
    let found = store.recover()?;
    let undecodable = |what: String, error: CodecError| store.corrupt(format!("{what}: {error}"));
    let mut health = Health::default();
    let mut state = empty;
    if let Some((applied, bytes)) = found.snapshot {
        health.snapshot_bytes = bytes.len() as u64;
        health.last = applied;
        state = State::from_snapshot(&bytes).map_err(|error| undecodable("snapshot".into(), error))?;
    }
    for (position, record) in found.entries {
        let proposal: Proposal =
            codec::decode_record(&record).map_err(|error| undecodable(format!("log entry {position}"), error))?;
        state.apply(position, &proposal);
        health.log_bytes += record.len() as u64;
        health.last = position;
    }
    Ok((state, health))
}

/// The thread that owns the store.
struct Worker {
    path: PathBuf,
    /// Absent while the disk is full: redb refuses further work after a failure, until it is opened again.
    store: Option<Store>,
    inbox: Receiver<Job>,
    report: watch::Sender<Health>,
    shared: Arc<Shared>,
    term: Term,
    /// A term that a higher one is to begin above.
    raise: Option<Term>,
    sink: Option<Sink>,
    pending: VecDeque<Entry>,
    snapshot: Option<(u64, Vec<u8>)>,
}

impl Worker {
    fn run(mut self) {
        while self.gather() {
            if let Err(error) = self.write_all() {
                let text = chain(&error);
                tracing::error!(error = %text, "the log has failed");
                self.report.send_modify(|health| health.failure = Some(text));
                return;
            }
        }
        if let Err(error) = self.write_all() {
            tracing::error!(error = %chain(&error), "the log has failed while closing");
        }
    }

    /// Waits for work and takes all there is, up to a batch; `false` once the handle is gone.
    fn gather(&mut self) -> bool {
        let is_waiting = self.is_behind();
        let first = if is_waiting {
            match self.inbox.recv_timeout(RETRY) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        } else {
            let Ok(job) = self.inbox.recv() else { return false };
            Some(job)
        };
        if let Some(job) = first {
            self.take(job);
        }
        while self.pending.len() < BATCH_ENTRIES_MAX {
            let Ok(job) = self.inbox.try_recv() else { break };
            self.take(job);
        }
        true
    }

    fn is_behind(&self) -> bool {
        !self.pending.is_empty() || self.snapshot.is_some() || self.raise.is_some()
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Append(entry) => self.pending.push_back(entry),
            // A newer snapshot says everything that an older one does.
            Job::Snapshot { applied, bytes } => self.snapshot = Some((applied, bytes)),
            Job::Raise(seen) => self.raise = self.raise.max(Some(seen)),
            Job::Subscribe(mut sink) => {
                sink(ReplicaEvent::Leading(self.term));
                self.sink = Some(sink);
            }
        }
    }

    /// Writes everything that is pending. A full disk leaves it pending; any other failure is handed back.
    fn write_all(&mut self) -> Result<(), StoreError> {
        while self.is_behind() {
            let outcome = self.reopen().and_then(|()| self.write_some());
            match outcome {
                Ok(()) => self.report(None),
                Err(error) if error.is_disk_full() => {
                    self.store = None;
                    // Entries may fit where a snapshot does not; another one follows once there is space.
                    self.drop_snapshot();
                    let dir = self.path.parent().unwrap_or(&self.path).display();
                    self.report(Some(format!(
                        "no space left in {dir}: windows are not acknowledged and agents keep them; free some space"
                    )));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens the store again after a full disk. What the failed transaction wrote is either whole or absent; when it is
    /// whole, its entries are committed after all.
    fn reopen(&mut self) -> Result<(), StoreError> {
        if self.store.is_some() {
            return Ok(());
        }
        let store = Store::reopen(&self.path)?;
        let found = store.last()?;
        self.store = Some(store);
        let known = self.report.borrow().last;
        self.committed(usize::try_from(found.saturating_sub(known)).unwrap_or(usize::MAX));
        Ok(())
    }

    fn write_some(&mut self) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        if let Some(seen) = self.raise {
            self.term = store.begin_term(seen)?;
            self.raise = None;
            if let Some(sink) = &mut self.sink {
                sink(ReplicaEvent::Leading(self.term));
            }
        }
        if let Some((applied, bytes)) = &self.snapshot {
            store.put_snapshot(*applied, bytes)?;
            let (snapshot_bytes, log_bytes) = (bytes.len() as u64, store.log_bytes()?);
            self.report.send_modify(|health| {
                health.snapshot_bytes = snapshot_bytes;
                health.log_bytes = log_bytes;
            });
            self.drop_snapshot();
        }
        self.append_some()
    }

    fn drop_snapshot(&mut self) {
        self.snapshot = None;
        self.shared.is_compacting.store(false, Ordering::Relaxed);
    }

    fn append_some(&mut self) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        let mut bytes = 0;
        let batch: Vec<&[u8]> = self
            .pending
            .iter()
            .map(|entry| entry.record.as_slice())
            .take(BATCH_ENTRIES_MAX)
            .take_while(|record| {
                let is_first = bytes == 0;
                bytes += record.len();
                is_first || bytes <= BATCH_BYTES_MAX
            })
            .collect();
        if batch.is_empty() {
            return Ok(());
        }
        let next = self.report.borrow().last + 1;
        store.append(next, &batch)?;
        let count = batch.len();
        self.committed(count);
        Ok(())
    }

    /// The first `count` pending entries are durable.
    fn committed(&mut self, count: usize) {
        for entry in self.pending.drain(..count.min(self.pending.len())) {
            let mut index = 0;
            self.shared.pending_bytes.fetch_sub(entry.record.len(), Ordering::Relaxed);
            self.report.send_modify(|health| {
                health.last += 1;
                health.log_bytes += entry.record.len() as u64;
                index = health.last;
            });
            if let Some(sink) = &mut self.sink {
                sink(ReplicaEvent::Committed { index, proposal: entry.proposal });
            }
        }
        if count > 0 {
            self.report.send_modify(|health| health.commits += 1);
        }
    }

    fn report(&self, problem: Option<String>) {
        let is_news = self.report.borrow().problem != problem;
        if is_news {
            match &problem {
                Some(problem) => tracing::error!(problem, "the log waits"),
                None => tracing::info!("the log writes again"),
            }
            self.report.send_modify(|health| health.problem = problem);
        }
    }
}

/// An error with all its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
