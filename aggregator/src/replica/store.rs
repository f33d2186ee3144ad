//! The durable log on redb: sealed rows in three tables of one file.
//!
//! Every row carries its own checksum, so that a flipped bit is found when the row is read, and not when its value does
//! harm. A row that fails it is never served: opening stops with the row's name and what to do.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError, TableDefinition,
};
use sage_common::Term;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// Log entries by position.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// The newest snapshot, in chunks.
const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");
/// Numbers by name.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const FORMAT_KEY: &str = "format";
const TERM_KEY: &str = "term";
/// Position of the last entry that the snapshot holds.
const APPLIED_KEY: &str = "snapshot_applied";

/// The layout that this build writes. Reads the one before as well: it lacks what no entry of its log speaks of.
const FORMAT: u64 = 2;
const FORMAT_BEFORE: u64 = 1;

/// One row of a snapshot: small enough that a damaged page costs one precise message, large enough to be few.
const CHUNK_BYTES: usize = 4 << 20;

/// Memory that redb may use for caching: the log is written once and read once.
const CACHE_BYTES: usize = 16 << 20;

/// Why the durable log cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Bytes on disk are not what was written.
    #[error(
        "{path} is damaged: {what}; nothing is served from it. Move the file away and start again: agents resend what \
         they still hold, the rest of the history is lost (or put back a copy of the file)"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Which part, and how it shows.
        what: String,
    },
    /// Written by another release.
    #[error("{path} has layout {found}, this release reads layout {FORMAT}: start the release that wrote it")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u64,
    },
    /// Another process has it open.
    #[error("{path} is in use by another process: one aggregator per state_dir")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot {action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<redb::Error>,
    },
}

impl StoreError {
    /// Whether the cause is want of space: the one failure that passes without anybody's help to the store.
    pub fn is_disk_full(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        matches!(&**source, redb::Error::Io(error) if matches!(
            error.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
        ))
    }
}

/// What a store held when it was opened.
#[derive(Debug)]
pub struct Recovered {
    /// The newest snapshot with the position of its last entry.
    pub snapshot: Option<(u64, Vec<u8>)>,
    /// The entries after it, in order, with their positions.
    pub entries: Vec<(u64, Vec<u8>)>,
}

/// One open file.
#[derive(Debug)]
pub struct Store {
    database: Database,
    path: PathBuf,
}

impl Store {
    /// Opens the file, or makes an empty one; repairs what a crash left behind, and reads every page once to see that
    /// it is whole.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: damage, another layout, another user of the file, or the file system.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, true)
    }

    /// Opens a file again that this process has had open, without reading all of it.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn reopen(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, false)
    }

    fn open_with(path: &Path, is_checked: bool) -> Result<Self, StoreError> {
        // redb asserts its own invariants on open, so damage may show as a panic instead of an error.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            redb::Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(is_checked).create(path)
        }));
        let corrupt = |what: String| StoreError::Corrupt { path: path.to_owned(), what };
        let database = match opened {
            Err(_) => return Err(corrupt("the store's own structure does not hold together".into())),
            Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => return Err(StoreError::InUse { path: path.to_owned() }),
            Ok(Err(DatabaseError::Storage(StorageError::Corrupted(what)))) => return Err(corrupt(what)),
            Ok(Err(DatabaseError::UpgradeRequired(found))) => {
                return Err(StoreError::Format { path: path.to_owned(), found: found.into() });
            }
            // A file of another program has no magic number, which redb reports as invalid data.
            Ok(Err(DatabaseError::Storage(StorageError::Io(error))))
                if matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
            {
                return Err(corrupt(error.to_string()));
            }
            Ok(opened) => opened.map_err(|error| io_error("open", path, error))?,
        };
        let store = Self { database, path: path.to_owned() };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        match self.number(FORMAT_KEY)? {
            Some(FORMAT) => Ok(()),
            // From here on entries are written that the release before cannot read.
            Some(FORMAT_BEFORE) => self.write("prepare", |transaction| {
                transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
                Ok(())
            }),
            Some(found) => Err(StoreError::Format { path: self.path.clone(), found }),
            None => self.write("prepare", |transaction| {
                transaction.open_table(LOG)?;
                transaction.open_table(SNAPSHOT)?;
                transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
                Ok(())
            }),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let read = || -> Result<Option<u64>, redb::Error> {
            match self.database.begin_read()?.open_table(META) {
                Ok(table) => Ok(table.get(key)?.map(|value| value.value())),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        read().map_err(|error| io_error("read", &self.path, error))
    }

    /// Begins a period: one above every earlier one and above `seen`, durable before it is handed out.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn begin_term(&self, seen: Term) -> Result<Term, StoreError> {
        let term = self.number(TERM_KEY)?.unwrap_or(0).max(seen.0).saturating_add(1);
        self.write("write the term to", |transaction| {
            transaction.open_table(META)?.insert(TERM_KEY, term)?;
            Ok(())
        })?;
        Ok(Term(term))
    }

    /// Everything the store holds, each row checked.
    ///
    /// # Errors
    ///
    /// [`StoreError::Corrupt`] naming the first row that is damaged or missing.
    pub fn recover(&self) -> Result<Recovered, StoreError> {
        let applied = self.number(APPLIED_KEY)?;
        let (mut snapshot, mut entries) = (Vec::new(), Vec::new());
        for (position, row) in self.rows(SNAPSHOT)? {
            snapshot.extend(self.unseal("snapshot part", position, &row)?);
        }
        let first = applied.map_or(1, |applied| applied + 1);
        for (expected, (position, row)) in (first..).zip(self.rows(LOG)?) {
            if position != expected {
                return Err(self.corrupt(format!("log entry {expected} is missing, {position} follows")));
            }
            entries.push((position, self.unseal("log entry", position, &row)?));
        }
        Ok(Recovered { snapshot: applied.map(|applied| (applied, snapshot)), entries })
    }

    fn rows(&self, table: TableDefinition<'static, u64, &'static [u8]>) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let read = || -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
            let table = self.database.begin_read()?.open_table(table)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                rows.push((key.value(), value.value().to_vec()));
            }
            Ok(rows)
        };
        read().map_err(|error| io_error("read", &self.path, error))
    }

    /// Position of the last entry, durable ones only; that of the snapshot when none follows it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn last(&self) -> Result<u64, StoreError> {
        let read = || -> Result<Option<u64>, redb::Error> {
            Ok(self.database.begin_read()?.open_table(LOG)?.last()?.map(|(key, _)| key.value()))
        };
        let last = read().map_err(|error| io_error("read", &self.path, error))?;
        Ok(last.or(self.number(APPLIED_KEY)?).unwrap_or(0))
    }

    /// Bytes of the entries after the snapshot.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`].
    pub fn log_bytes(&self) -> Result<u64, StoreError> {
        let read =
            || -> Result<u64, redb::Error> { Ok(self.database.begin_read()?.open_table(LOG)?.stats()?.stored_bytes()) };
        read().map_err(|error| io_error("read", &self.path, error))
    }

    /// Appends `records` at `first` and after, all or none, durable when this returns.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`]; nothing was appended, and the store must be opened again.
    pub fn append(&self, first: u64, records: &[impl AsRef<[u8]>]) -> Result<(), StoreError> {
        self.write("append to", |transaction| {
            let mut log = transaction.open_table(LOG)?;
            for (position, record) in (first..).zip(records) {
                log.insert(position, seal(position, record.as_ref()).as_slice())?;
            }
            Ok(())
        })
    }

    /// Puts `snapshot`, which holds everything up to `applied`, in place of the older one and of those entries.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`]; the old snapshot and the entries stay, and the store must be opened again.
    pub fn put_snapshot(&self, applied: u64, snapshot: &[u8]) -> Result<(), StoreError> {
        self.write("write a snapshot to", |transaction| {
            let mut table = transaction.open_table(SNAPSHOT)?;
            table.retain(|_, _| false)?;
            for (position, chunk) in (0..).zip(snapshot.chunks(CHUNK_BYTES)) {
                table.insert(position, seal(position, chunk).as_slice())?;
            }
            transaction.open_table(LOG)?.retain_in(..=applied, |_, _| false)?;
            transaction.open_table(META)?.insert(APPLIED_KEY, applied)?;
            Ok(())
        })
    }

    fn write(
        &self,
        action: &'static str,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let attempt = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            change(&transaction)?;
            Ok(transaction.commit()?)
        };
        attempt().map_err(|error| io_error(action, &self.path, error))
    }

    fn unseal(&self, what: &str, position: u64, row: &[u8]) -> Result<Vec<u8>, StoreError> {
        let sum = row.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        let record = row.get(8..).unwrap_or_default();
        if sum == Some(checksum(position, record)) {
            Ok(record.to_vec())
        } else {
            Err(self.corrupt(format!("{what} {position} does not match its checksum")))
        }
    }

    /// An error that says `what` of this file is damaged.
    pub fn corrupt(&self, what: String) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), what }
    }
}

/// The row of `record`: its checksum, then itself.
fn seal(position: u64, record: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(record.len() + 8);
    row.extend_from_slice(&checksum(position, record).to_le_bytes());
    row.extend_from_slice(record);
    row
}

/// The position takes part, so that a row in another one's place is found as well.
fn checksum(position: u64, record: &[u8]) -> u64 {
    xxh3_64(record) ^ position.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn io_error(action: &'static str, path: &Path, error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(what) => StoreError::Corrupt { path: path.to_owned(), what },
        source => StoreError::Io { action, path: path.to_owned(), source: Box::new(source) },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "these tests are about files")]

    use super::*;

    fn record(n: u8) -> Vec<u8> {
        vec![n; 100 + usize::from(n)]
    }

    fn filled(path: &Path) -> Store {
        let store = Store::open(path).expect("new");
        store.append(1, &[record(1), record(2)]).expect("space");
        store.append(3, &[record(3)]).expect("space");
        store
    }

    #[test]
    fn what_was_appended_comes_back_in_order() {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().join("log");
        drop(filled(&path));
        let recovered = Store::open(&path).expect("whole").recover().expect("whole");
        assert!(recovered.snapshot.is_none());
        assert_eq!(recovered.entries, [(1, record(1)), (2, record(2)), (3, record(3))]);
    }

    #[test]
    fn a_snapshot_takes_the_place_of_its_entries() {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().join("log");
        let store = filled(&path);
        let large: Vec<u8> = (0..CHUNK_BYTES * 2 + 7).map(|i| i as u8).collect();
        store.put_snapshot(1, &record(9)).expect("space");
        store.put_snapshot(2, &large).expect("space");
        drop(store);
        let recovered = Store::open(&path).expect("whole").recover().expect("whole");
        assert_eq!(recovered.snapshot, Some((2, large)));
        assert_eq!(recovered.entries, [(3, record(3))]);
    }

    #[test]
    fn every_start_begins_a_higher_term() {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().join("log");
        let terms: Vec<u64> =
            (0..3).map(|_| Store::open(&path).expect("whole").begin_term(Term(0)).expect("space").0).collect();
        assert_eq!(terms, [1, 2, 3]);
        assert_eq!(Store::open(&path).expect("whole").begin_term(Term(9)).expect("space"), Term(10));
    }

    #[test]
    fn a_second_user_of_the_file_is_told_so() {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().join("log");
        let _first = Store::open(&path).expect("new");
        let error = Store::open(&path).expect_err("in use");
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    }

    #[test]
    fn a_file_of_the_release_before_is_taken_over() {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().join("log");
        let mark = |store: &Store, format: u64| {
            store.write("mark", |transaction| {
                transaction.open_table(META)?.insert(FORMAT_KEY, format)?;
                Ok(())
            })
        };
        mark(&filled(&path), FORMAT_BEFORE).expect("space");
        let store = Store::open(&path).expect("taken over");
        assert_eq!(store.number(FORMAT_KEY).expect("readable"), Some(FORMAT));
        assert_eq!(store.recover().expect("whole").entries.len(), 3);
        mark(&store, FORMAT + 1).expect("space");
        drop(store);
        assert!(matches!(Store::open(&path), Err(StoreError::Format { found, .. }) if found == FORMAT + 1));
    }

    #[test]
    fn a_missing_entry_is_damage() {
        let dir = tempfile::tempdir().expect("tmp");
        let store = filled(&dir.path().join("log"));
        store.append(5, &[record(5)]).expect("space");
        let error = store.recover().expect_err("hole").to_string();
        assert!(error.contains("log entry 4 is missing"), "{error}");
    }

    #[test]
    fn a_row_in_the_place_of_another_is_damage() {
        assert_ne!(seal(1, b"x"), seal(2, b"x"));
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().join("log");
        std::fs::write(&path, vec![7_u8; 9000]).expect("write");
        let error = Store::open(&path).expect_err("not ours").to_string();
        assert!(error.contains("is damaged") && error.contains("Move the file away"), "{error}");
        assert_eq!(std::fs::read(&path).expect("still there"), vec![7_u8; 9000]);
    }

    #[test]
    fn a_flipped_bit_never_changes_what_is_served() {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().join("log");
        drop(filled(&path));
        let whole = std::fs::read(&path).expect("read");
        let copy = dir.path().join("copy");
        let mut refused = 0;
        // The header byte by byte, every other page at least once.
        for at in (0..512).chain((512..whole.len()).step_by(4093)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&copy, &bytes).expect("write");
            match Store::open(&copy).and_then(|store| store.recover()) {
                Ok(found) => assert_eq!(found.entries, [(1, record(1)), (2, record(2)), (3, record(3))], "byte {at}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 0, "no flip touched anything that counts");
    }

    #[test]
    fn a_file_cut_short_is_refused_or_whole() {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().join("log");
        drop(filled(&path));
        let whole = std::fs::read(&path).expect("read");
        let copy = dir.path().join("copy");
        for len in (1..whole.len()).step_by(whole.len() / 37) {
            std::fs::write(&copy, &whole[..len]).expect("write");
            if let Ok(found) = Store::open(&copy).and_then(|store| store.recover()) {
                assert_eq!(found.entries, [(1, record(1)), (2, record(2)), (3, record(3))], "cut at {len}");
            }
        }
    }
}
