//! Windows that no aggregator has acknowledged: one file each, bounded in bytes, oldest shed first.
//!
//! A window is written under another name and renamed, and carries a checksum, so whatever a crash leaves is whole or
//! recognised. Files are not synced: a window is promised to nobody before it is acknowledged, and a slow disk must not
//! hold the agent up. Where the disk refuses, the newest windows wait in memory.

#![expect(clippy::disallowed_methods, reason = "driver: keeps files")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use sage_common::BootId;
use sage_protocol::EncodedWindow;
use xxhash_rust::xxh3::xxh3_64;

/// Windows kept at once, whatever their size: a week of ten-second windows; each costs about 100 bytes of index.
pub const WINDOWS_MAX: usize = 60_480;
/// Windows that wait in memory while the disk refuses them: a minute and a half of ten-second windows.
pub const IN_MEMORY_MAX: usize = 9;
/// First bytes of a file.
const MAGIC: &[u8; 8] = b"SAGEWIN1";
/// Magic, then the checksum of the rest.
const HEADER_LEN: usize = 16;
/// The largest file that is looked at: a window message and its header.
const FILE_BYTES_MAX: u64 = (sage_protocol::codec::MESSAGE_BYTES_MAX + HEADER_LEN) as u64;
const SUFFIX: &str = ".win";
const UNFINISHED: &str = ".tmp";

/// The spool.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    bytes_max: u64,
    bytes: u64,
    next: u64,
    entries: BTreeMap<u64, Entry>,
    counters: SpoolCounters,
    problem: Option<String>,
}

/// What became of windows that were not acknowledged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SpoolCounters {
    /// Shed for lack of room.
    pub shed: u64,
    /// Files that were not whole.
    pub damaged: u64,
}

#[derive(Debug)]
struct Entry {
    boot: BootId,
    seq: u64,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Disk { bytes: u64 },
    Memory(EncodedWindow),
}

impl Spool {
    /// Opens the spool in `directory`, with everything that earlier lives left. Never fails: without a usable
    /// directory, windows wait in memory and [`problem`](Self::problem) says why.
    pub fn open(directory: &Path, bytes_max: u64) -> Self {
        let mut spool = Self {
            directory: directory.to_owned(),
            bytes_max,
            bytes: 0,
            next: 0,
            entries: BTreeMap::new(),
            counters: SpoolCounters::default(),
            problem: None,
        };
        if let Err(error) = fs::create_dir_all(directory).and_then(|()| spool.scan()) {
            spool.fail("open", &error);
        }
        spool.make_room(0);
        spool
    }

    /// Takes a window in.
    pub fn push(&mut self, window: EncodedWindow) {
        let (boot, seq) = (window.key().boot, window.key().seq);
        let index = self.next;
        self.next += 1;
        let bytes = (HEADER_LEN + window.bytes().len()) as u64;
        self.make_room(bytes);
        let place = match self.write_shedding(index, boot, seq, window.bytes()) {
            Ok(()) => {
                self.problem = None;
                self.bytes += bytes;
                Place::Disk { bytes }
            }
            Err(error) => {
                self.fail("write to", &error);
                Place::Memory(window)
            }
        };
        self.entries.insert(index, Entry { boot, seq, place });
        self.trim_memory();
    }

    /// The first window after `cursor`, oldest first; the first of all without one. Files that are not whole are
    /// removed and counted.
    pub fn after(&mut self, cursor: Option<u64>) -> Option<(u64, EncodedWindow)> {
        // Ends: each round either returns or removes an entry.
        loop {
            let from = cursor.map_or(0, |cursor| cursor + 1);
            let (index, entry) = self.entries.range(from..).next()?;
            let index = *index;
            if let Place::Memory(window) = &entry.place {
                return Some((index, window.clone()));
            }
            match self.read(index, entry) {
                Some(window) => return Some((index, window)),
                None => {
                    self.counters.damaged += 1;
                    self.remove(index);
                }
            }
        }
    }

    /// Forgets windows that are committed, or that will never be taken.
    pub fn forget(&mut self, boot: BootId, sequences: &[u64]) -> usize {
        let sequences: BTreeSet<u64> = sequences.iter().copied().collect();
        self.forget_if(|entry| entry.boot == boot && sequences.contains(&entry.seq))
    }

    /// Forgets every window of `boot` below `seq`.
    pub fn forget_below(&mut self, boot: BootId, seq: u64) -> usize {
        self.forget_if(|entry| entry.boot == boot && entry.seq < seq)
    }

    /// Windows kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes on disk.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was lost, and why.
    pub const fn counters(&self) -> SpoolCounters {
        self.counters
    }

    /// Why windows wait in memory rather than on disk.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn scan(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(UNFINISHED) {
                // A crash came between writing and renaming.
                let _ = fs::remove_file(entry.path());
                continue;
            }
            let (Some((index, boot, seq)), Ok(metadata)) = (parse_name(name), entry.metadata()) else { continue };
            self.bytes += metadata.len();
            self.next = self.next.max(index.saturating_add(1));
            self.entries.insert(index, Entry { boot, seq, place: Place::Disk { bytes: metadata.len() } });
        }
        Ok(())
    }

    fn make_room(&mut self, bytes: u64) {
        while self.bytes + bytes > self.bytes_max || self.entries.len() >= WINDOWS_MAX {
            if !self.shed_oldest(|_| true) {
                return;
            }
        }
    }

    /// Writes a window; where the disk is full, sheds the oldest until it fits.
    fn write_shedding(&mut self, index: u64, boot: BootId, seq: u64, window: &[u8]) -> io::Result<()> {
        // Ends: each round sheds a window.
        loop {
            match self.write(index, boot, seq, window) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    if !self.shed_oldest(|entry| matches!(entry.place, Place::Disk { .. })) {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    fn write(&self, index: u64, boot: BootId, seq: u64, window: &[u8]) -> io::Result<()> {
        let path = self.path(index, boot, seq);
        let unfinished = path.with_extension("tmp");
        let mut bytes = Vec::with_capacity(HEADER_LEN + window.len());
        bytes.extend(MAGIC);
        bytes.extend(xxh3_64(window).to_le_bytes());
        bytes.extend(window);
        let result = fs::write(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, path));
        if result.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        result
    }

    fn read(&self, index: u64, entry: &Entry) -> Option<EncodedWindow> {
        let path = self.path(index, entry.boot, entry.seq);
        let bytes =
            fs::metadata(&path).ok().filter(|file| file.len() <= FILE_BYTES_MAX).and_then(|_| fs::read(path).ok())?;
        let (header, window) = bytes.split_at_checked(HEADER_LEN)?;
        let (magic, checksum) = header.split_at(MAGIC.len());
        let is_whole = magic == MAGIC && checksum == xxh3_64(window).to_le_bytes();
        let window = is_whole.then(|| EncodedWindow::from_bytes(window.to_vec()).ok())??;
        (window.key().boot == entry.boot && window.key().seq == entry.seq).then_some(window)
    }

    fn shed_oldest(&mut self, may_go: impl Fn(&Entry) -> bool) -> bool {
        let Some(index) = self.entries.iter().find(|(_, entry)| may_go(entry)).map(|(index, _)| *index) else {
            return false;
        };
        self.counters.shed += 1;
        self.remove(index);
        true
    }

    fn trim_memory(&mut self) {
        let in_memory = |entry: &Entry| matches!(entry.place, Place::Memory(_));
        while self.entries.values().filter(|entry| in_memory(entry)).count() > IN_MEMORY_MAX {
            self.shed_oldest(in_memory);
        }
    }

    fn forget_if(&mut self, is_done: impl Fn(&Entry) -> bool) -> usize {
        let done: Vec<u64> = self.entries.iter().filter(|(_, entry)| is_done(entry)).map(|(index, _)| *index).collect();
        done.iter().for_each(|index| self.remove(*index));
        done.len()
    }

    fn remove(&mut self, index: u64) {
        let Some(entry) = self.entries.remove(&index) else { return };
        if let Place::Disk { bytes } = entry.place {
            self.bytes = self.bytes.saturating_sub(bytes);
            let _ = fs::remove_file(self.path(index, entry.boot, entry.seq));
        }
    }

    fn path(&self, index: u64, boot: BootId, seq: u64) -> PathBuf {
        self.directory.join(format!("{index:016x}-{boot:016x}-{seq:016x}{SUFFIX}", boot = boot.0))
    }

    fn fail(&mut self, action: &str, error: &io::Error) {
        let text = format!("cannot {action} the spool {}: {error}", self.directory.display());
        if self.problem.as_deref() != Some(text.as_str()) {
            tracing::warn!(problem = text, "windows wait in memory");
        }
        self.problem = Some(text);
    }
}

/// Position, boot and sequence in a file's name.
fn parse_name(name: &str) -> Option<(u64, BootId, u64)> {
    let mut parts = name.strip_suffix(SUFFIX)?.split('-').map(|part| u64::from_str_radix(part, 16).ok());
    let parsed = (parts.next()??, BootId(parts.next()??), parts.next()??);
    parts.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use sage_common::{Micros, NodeWindow, Timestamp, WindowKey};

    use super::*;

    fn window(boot: u64, seq: u64) -> EncodedWindow {
        let length = Micros::from_secs(10);
        let window = NodeWindow {
            key: WindowKey { node: "node-a".parse().expect("valid"), boot: BootId(boot), seq },
            start: Timestamp::from_micros(seq * 10_000_000),
            length,
            latencies: vec![],
            usage: vec![],
            node_usage: vec![],
            stubs: vec![],
            skeletons: vec![],
            entries: vec![],
            offers: vec![],
            intake: sage_common::IntakeCounters::default(),
            stub_share: 1.0,
        };
        EncodedWindow::new(&window).expect("valid")
    }

    fn all(spool: &mut Spool) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut cursor = None;
        while let Some((index, window)) = spool.after(cursor) {
            found.push((window.key().boot.0, window.key().seq));
            cursor = Some(index);
        }
        found
    }

    #[test]
    fn windows_come_back_in_order_also_in_another_life() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut spool = Spool::open(directory.path(), 1 << 20);
        (0..3).for_each(|seq| spool.push(window(7, seq)));
        drop(spool);
        let mut spool = Spool::open(directory.path(), 1 << 20);
        spool.push(window(1, 0));
        assert_eq!(all(&mut spool), [(7, 0), (7, 1), (7, 2), (1, 0)]);
    }

    #[test]
    fn what_is_acknowledged_is_gone_for_good() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut spool = Spool::open(directory.path(), 1 << 20);
        (0..4).for_each(|seq| spool.push(window(7, seq)));
        assert_eq!(spool.forget_below(BootId(7), 1), 1);
        assert_eq!(spool.forget(BootId(7), &[2, 9]), 1);
        assert_eq!(spool.forget(BootId(8), &[1]), 0);
        assert_eq!(all(&mut Spool::open(directory.path(), 1 << 20)), [(7, 1), (7, 3)]);
    }

    #[test]
    fn beyond_its_bytes_the_oldest_are_shed_and_counted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let one = (HEADER_LEN + window(7, 4).bytes().len()) as u64;
        let mut spool = Spool::open(directory.path(), 3 * one);
        (0..5).for_each(|seq| spool.push(window(7, seq)));
        assert_eq!(all(&mut spool), [(7, 2), (7, 3), (7, 4)]);
        assert_eq!((spool.counters().shed, spool.bytes()), (2, 3 * one));
        let mut smaller = Spool::open(directory.path(), 2 * one);
        assert_eq!(all(&mut smaller), [(7, 3), (7, 4)]);
    }

    #[test]
    fn a_file_cut_at_any_byte_costs_only_itself() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let whole = {
            let mut spool = Spool::open(directory.path(), 1 << 20);
            (0..2).for_each(|seq| spool.push(window(7, seq)));
            spool.path(0, BootId(7), 0)
        };
        let bytes = fs::read(&whole).expect("written");
        for len in 0..bytes.len() {
            fs::write(&whole, &bytes[..len]).expect("writable");
            let mut spool = Spool::open(directory.path(), 1 << 20);
            assert_eq!(all(&mut spool), [(7, 1)], "cut at {len}");
            assert_eq!(spool.counters().damaged, 1);
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut spool = Spool::open(directory.path(), 1 << 20);
        spool.push(window(7, 0));
        let path = spool.path(0, BootId(7), 0);
        let bytes = fs::read(&path).expect("written");
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 0x10;
            fs::write(&path, flipped).expect("writable");
            assert!(all(&mut Spool::open(directory.path(), 1 << 20)).is_empty(), "byte {position}");
        }
    }

    #[test]
    fn foreign_and_unfinished_files_are_no_windows() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let unfinished = directory.path().join("0000000000000000-0000000000000007-0000000000000000.tmp");
        fs::write(&unfinished, "half").expect("writable");
        fs::write(directory.path().join("README"), "hello").expect("writable");
        assert!(Spool::open(directory.path(), 1 << 20).is_empty());
        assert!(!unfinished.exists());
        assert!(directory.path().join("README").exists());
    }

    #[test]
    fn without_a_directory_the_newest_windows_wait_in_memory() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let blocked = directory.path().join("file");
        fs::write(&blocked, "").expect("writable");
        let mut spool = Spool::open(&blocked.join("spool"), 1 << 20);
        (0..=IN_MEMORY_MAX as u64).for_each(|seq| spool.push(window(7, seq)));
        assert!(spool.problem().is_some());
        assert_eq!(spool.len(), IN_MEMORY_MAX);
        assert_eq!(all(&mut spool)[0], (7, 1));
    }

    mod root_tests {
        use std::process::Command;

        use super::*;

        struct Mounted(PathBuf);

        impl Drop for Mounted {
            fn drop(&mut self) {
                let _ = Command::new("umount").arg(&self.0).status();
            }
        }

        #[test]
        #[ignore = "needs root: make test-root"]
        fn a_full_disk_sheds_the_oldest_and_recovers_by_itself() {
            let directory = tempfile::tempdir().expect("temporary directory");
            let mount = Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
                .arg(directory.path())
                .status()
                .expect("mount is there");
            assert!(mount.success());
            let mounted = Mounted(directory.path().to_owned());
            let mut spool = Spool::open(&mounted.0, 1 << 30);
            (0..100).for_each(|seq| spool.push(window(7, seq)));
            assert!(spool.counters().shed > 0, "64 KiB hold fewer than 100 files");
            assert_eq!(all(&mut spool).last(), Some(&(7, 99)), "the newest is kept");

            fs::write(mounted.0.join("ballast"), vec![0; 4096]).unwrap_or_default();
            let kept = spool.len();
            spool.forget_below(BootId(7), 99);
            (100..104).for_each(|seq| spool.push(window(7, seq)));
            assert!(kept > 1 && spool.problem().is_none(), "space came back: {:?}", spool.problem());
        }
    }
}
