//! The undo log: what to give back after a crash. Append-only, one line per record, durable before the kernel is
//! touched.
//!
//! A line is the XXH3 checksum of the rest in 16 hexadecimal digits, a space, and the record as JSON; so a damaged
//! record costs itself alone. A torn last line is what a crash leaves and is dropped; damage anywhere else is reported,
//! and what is whole is used. The file is locked: two agents on one state directory would undo each other.
#![expect(clippy::disallowed_methods, reason = "driver: keeps a file")]

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use sage_common::{ActionId, Term};
use sage_protocol::message::Outcome;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::core::actuation::{FINISHED_MAX, Saved, UndoRecord};

/// Why the undo log cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UndoError {
    /// The file system said no.
    #[error("cannot {action} {path}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use: another agent runs on this state directory")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// An earlier write was not made durable, so nothing after it can be trusted until a restart.
    #[error("the undo log {path} has failed before; restart the agent once its disk is well")]
    Poisoned {
        /// The file.
        path: PathBuf,
    },
}

/// One line of the log.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Term(Term),
    Brake(bool),
    Begin(Box<UndoRecord>),
    End { action: ActionId, outcome: Outcome },
}

/// What was found when the log was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Opened {
    /// What the earlier life left.
    pub saved: Saved,
    /// Damaged lines before the last one. Each may have been a change that will not be given back.
    pub damaged_lines: usize,
    /// Whether the last line was torn by a crash.
    pub is_tail_torn: bool,
}

/// An open undo log.
#[derive(Debug)]
pub struct UndoLog {
    path: PathBuf,
    file: File,
    state: State,
    appended: usize,
    is_poisoned: bool,
    _lock: File,
}

/// What the records so far amount to.
#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    term: Term,
    is_frozen: bool,
    live: BTreeMap<ActionId, UndoRecord>,
    finished: VecDeque<(ActionId, Outcome)>,
}

/// With nothing in force the log is rewritten after this many records: often enough to stay small.
const COMPACT_IDLE: usize = 64;
/// In any case it is rewritten after this many: what must stay is at most `LEASES_MAX + FINISHED_MAX + 2`.
const COMPACT_ALWAYS: usize = 2_048;
/// More than a log of `COMPACT_ALWAYS` records of the largest size, which is bounded by a message's.
const FILE_BYTES_MAX: u64 = 64 << 20;

impl State {
    fn take(&mut self, record: Record) {
        match record {
            Record::Term(term) => self.term = self.term.max(term),
            Record::Brake(is_on) => self.is_frozen = is_on,
            Record::Begin(undo) => {
                // Salvage: a lost term record must not let an older leader in.
                self.term = self.term.max(undo.term);
                self.live.insert(undo.action, *undo);
            }
            Record::End { action, outcome } => {
                self.live.remove(&action);
                if self.finished.len() >= FINISHED_MAX {
                    self.finished.pop_front();
                }
                self.finished.push_back((action, outcome));
            }
        }
    }

    fn records(&self) -> impl Iterator<Item = Record> {
        let ended = self.finished.iter().cloned().map(|(action, outcome)| Record::End { action, outcome });
        [Record::Term(self.term), Record::Brake(self.is_frozen)]
            .into_iter()
            .chain(ended)
            .chain(self.live.values().cloned().map(|undo| Record::Begin(Box::new(undo))))
    }

    fn saved(&self) -> Saved {
        Saved {
            term: self.term,
            is_frozen: self.is_frozen,
            live: self.live.values().cloned().collect(),
            finished: self.finished.iter().cloned().collect(),
        }
    }
}

impl UndoLog {
    /// Opens `undo.log` in `dir`, both made if need be, and rewrites it without what is over.
    ///
    /// # Errors
    ///
    /// [`UndoError`] if it cannot be locked, read or written. Without a log the agent must not change anything.
    pub fn open(dir: &Path) -> Result<(Self, Opened), UndoError> {
        fs::create_dir_all(dir).map_err(|source| failed("create", dir, source))?;
        let lock = lock(&dir.join("undo.lock"))?;
        let path = dir.join("undo.log");
        let bytes = read(&path)?;
        let (state, damaged_lines, is_tail_torn) = parse(&bytes);
        if damaged_lines > 0 {
            let kept = path.with_extension("log.damaged");
            fs::copy(&path, &kept).map_err(|source| failed("copy", &kept, source))?;
        }
        let file = rewrite(&path, &state)?;
        let opened = Opened { saved: state.saved(), damaged_lines, is_tail_torn };
        Ok((Self { path, file, state, appended: 0, is_poisoned: false, _lock: lock }, opened))
    }

    /// Makes `term` durable as the highest obeyed.
    ///
    /// # Errors
    ///
    /// [`UndoError`] if it is not durable.
    pub fn term(&mut self, term: Term) -> Result<(), UndoError> {
        self.append(Record::Term(term))
    }

    /// Makes it durable whether the brake is on.
    ///
    /// # Errors
    ///
    /// [`UndoError`] if it is not durable.
    pub fn brake(&mut self, is_on: bool) -> Result<(), UndoError> {
        self.append(Record::Brake(is_on))
    }

    /// Makes it durable how to undo a change, before it is made.
    ///
    /// # Errors
    ///
    /// [`UndoError`] if it is not durable: then the change must not be made.
    pub fn begin(&mut self, undo: UndoRecord) -> Result<(), UndoError> {
        self.append(Record::Begin(Box::new(undo)))
    }

    /// Makes it durable that a change is over.
    ///
    /// # Errors
    ///
    /// [`UndoError`] if it is not durable. Harmless: the next start finds that there is nothing to undo.
    pub fn end(&mut self, action: ActionId, outcome: Outcome) -> Result<(), UndoError> {
        self.append(Record::End { action, outcome })
    }

    /// Whether a write has failed, so that no change can be made any more in this life.
    pub const fn is_poisoned(&self) -> bool {
        self.is_poisoned
    }

    fn append(&mut self, record: Record) -> Result<(), UndoError> {
        if self.is_poisoned {
            return Err(UndoError::Poisoned { path: self.path.clone() });
        }
        let written = self.file.write_all(&line(&record)).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // The kernel may have dropped the dirty page: a second fsync would claim a success that is none.
            self.is_poisoned = true;
            return Err(failed("write", &self.path, source));
        }
        self.state.take(record);
        self.appended += 1;
        if self.appended >= COMPACT_ALWAYS || (self.state.live.is_empty() && self.appended >= COMPACT_IDLE) {
            self.compact();
        }
        Ok(())
    }

    /// Leaves out what is over. If that fails, the log as it is stays valid, and the next attempt comes later.
    fn compact(&mut self) {
        self.appended = 0;
        match rewrite(&self.path, &self.state) {
            Ok(file) => self.file = file,
            Err(error) => tracing::warn!(error = super::chain(&error), "the undo log could not be compacted"),
        }
    }
}

fn lock(path: &Path) -> Result<File, UndoError> {
    let file = options().read(true).open(path).map_err(|source| failed("open", path, source))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(UndoError::Locked { path: path.to_owned() }),
        Err(errno) => Err(failed("lock", path, errno.into())),
    }
}

/// Only root and the agent may know or change what is given back.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options
}

fn read(path: &Path) -> Result<Vec<u8>, UndoError> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(failed("open", path, source)),
        Ok(file) => {
            file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|source| failed("read", path, source))?;
        }
    }
    Ok(bytes)
}

/// The state that the whole lines amount to, how many others there are, and whether the last one is torn.
fn parse(bytes: &[u8]) -> (State, usize, bool) {
    let mut state = State::default();
    let mut damaged = 0;
    let mut is_torn = false;
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').peekable();
    while let Some(text) = lines.next() {
        match record(text) {
            Some(record) => state.take(record),
            None if lines.peek().is_none() => is_torn = true,
            None => damaged += 1,
        }
    }
    (state, damaged, is_torn)
}

fn line(record: &Record) -> Vec<u8> {
    // A record is plain data with text keys, which JSON can always express.
    let json = serde_json::to_string(record).unwrap_or_default();
    format!("{:016x} {json}\n", xxh3_64(json.as_bytes())).into_bytes()
}

fn record(line: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (checksum, json) = text.split_once(' ')?;
    let is_whole = checksum.len() == 16 && u64::from_str_radix(checksum, 16) == Ok(xxh3_64(json.as_bytes()));
    if is_whole { serde_json::from_str(json).ok() } else { None }
}

/// Replaces the log by one with `state` alone: a new file, durable before it takes the name.
fn rewrite(path: &Path, state: &State) -> Result<File, UndoError> {
    let new = path.with_extension("log.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &new, error)),
        _ => {}
    }
    let mut file = options().open(&new).map_err(|source| failed("create", &new, source))?;
    let bytes: Vec<u8> = state.records().flat_map(|record| line(&record)).collect();
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(|source| failed("write", &new, source))?;
    fs::rename(&new, path).map_err(|source| failed("rename", &new, source))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| failed("sync", dir, source))?;
    Ok(file)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> UndoError {
    UndoError::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sage_common::{CgroupPath, Knob, Setting};
    use sage_protocol::message::RevertReason;

    use super::*;

    fn undo(action: u64, term: u64) -> UndoRecord {
        let cgroup = CgroupPath::try_from(format!("app/{action}")).expect("valid");
        UndoRecord {
            action: ActionId(action),
            term: Term(term),
            machine_boot: "boot".to_owned(),
            knob: Knob::CpuQuota { cgroup },
            before: Setting::Cores(None).into(),
            setting: Setting::Cores(Some(500)),
            service: "geo".parse().expect("valid"),
            reason: "a\nreason".to_owned(),
        }
    }

    const OVER: Outcome = Outcome::Reverted(RevertReason::Expired);

    fn filled(dir: &Path) -> Vec<u8> {
        let (mut log, opened) = UndoLog::open(dir).expect("open");
        assert_eq!(opened, Opened::default());
        log.term(Term(7)).expect("term");
        log.begin(undo(1, 7)).expect("begin");
        log.brake(true).expect("brake");
        log.begin(undo(2, 7)).expect("begin");
        log.end(ActionId(1), OVER).expect("end");
        fs::read(dir.join("undo.log")).expect("read")
    }

    #[test]
    fn what_was_logged_is_found_by_the_next_life() {
        let dir = tempfile::tempdir().expect("temporary directory");
        filled(dir.path());
        let (_log, opened) = UndoLog::open(dir.path()).expect("open");
        let saved =
            Saved { term: Term(7), is_frozen: true, live: vec![undo(2, 7)], finished: vec![(ActionId(1), OVER)] };
        assert_eq!(opened, Opened { saved, damaged_lines: 0, is_tail_torn: false });
    }

    #[test]
    fn a_second_agent_on_the_same_state_is_turned_away() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let _first = UndoLog::open(dir.path()).expect("open");
        assert!(matches!(UndoLog::open(dir.path()), Err(UndoError::Locked { .. })));
    }

    #[test]
    fn a_log_cut_at_any_byte_gives_a_prefix_of_its_records() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let bytes = filled(dir.path());
        for cut in 0..=bytes.len() {
            let (state, damaged, is_torn) = parse(&bytes[..cut]);
            assert_eq!(damaged, 0, "cut at {cut}");
            assert_eq!(is_torn, cut > 0 && bytes[cut - 1] != b'\n', "cut at {cut}");
            let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
            // Lines 1 and 2 are the empty head; then term, begin, brake, begin, end.
            assert_eq!(state.live.len(), [0, 0, 0, 0, 1, 1, 2, 1][whole], "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_byte_costs_its_own_record_and_is_seen() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let whole = filled(dir.path());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            // A digit stays a digit, a letter a letter, so that the checksum alone can tell.
            bytes[at] ^= 1;
            let (state, damaged, is_torn) = parse(&bytes);
            assert!(damaged > 0 || is_torn, "byte {at}");
            assert!(state.live.len() <= 2, "byte {at}");
            assert_eq!(state.term, Term(7), "byte {at}: the term is in every begin as well");
        }
    }

    #[test]
    fn a_damaged_log_is_kept_beside_the_salvaged_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut bytes = filled(dir.path());
        bytes[20] ^= 1;
        fs::write(dir.path().join("undo.log"), &bytes).expect("write");
        let (_log, opened) = UndoLog::open(dir.path()).expect("open");
        assert_eq!((opened.damaged_lines, opened.saved.live), (1, vec![undo(2, 7)]));
        assert_eq!(fs::read(dir.path().join("undo.log.damaged")).expect("kept"), bytes);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let (state, ..) = parse(&bytes);
            prop_assert_eq!(state, State::default());
        }
    }

    #[test]
    fn a_log_with_nothing_in_force_stays_small() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mut log, _) = UndoLog::open(dir.path()).expect("open");
        let mut largest = 0;
        for action in 0..300 {
            log.begin(undo(action, 1)).expect("begin");
            log.end(ActionId(action), OVER).expect("end");
            largest = largest.max(fs::metadata(dir.path().join("undo.log")).expect("metadata").len());
        }
        assert!(largest < 96 << 10, "{largest} bytes");
        drop(log);
        let (_log, opened) = UndoLog::open(dir.path()).expect("open");
        assert_eq!((opened.saved.live.len(), opened.saved.finished.len()), (0, FINISHED_MAX));
    }
}
