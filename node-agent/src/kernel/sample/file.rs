//! Files of `/proc` and the cgroup trees that are read every second: opened once, read at offset 0 ever after.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// The longest text taken from one file: `/proc/stat` of a machine with a thousand processors is shorter.
pub const TEXT_MAX: usize = 1 << 20;
/// Reads left out at most before a file that was not there is looked for again. It begins with one and doubles: a
/// cgroup's directories of several controllers are not made at once, but kernels do not grow features often.
const SKIPS_MAX: u32 = 32;

/// One file, kept open.
#[derive(Debug)]
pub struct KeptFile {
    path: PathBuf,
    file: Option<File>,
    skips: u32,
    skips_left: u32,
}

/// What came of a read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Text<'a> {
    /// The whole text.
    Is(&'a str),
    /// The file's cgroup or process is gone.
    Gone,
    /// This kernel or user has no such file.
    Absent,
}

impl<'a> Text<'a> {
    /// The text, if it could be read.
    pub const fn ok(self) -> Option<&'a str> {
        match self {
            Self::Is(text) => Some(text),
            Self::Gone | Self::Absent => None,
        }
    }
}

impl KeptFile {
    /// Names a file; it is opened at the first read.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, file: None, skips: 0, skips_left: 0 }
    }

    /// Reads the whole file, opened anew. cgroup v1 makes the list of `cgroup.procs` and `tasks` when the file is first
    /// read after it was opened, and keeps it as long as somebody reads on: a kept one would never show who left or came.
    pub fn read_anew<'a>(&mut self, buffer: &'a mut Vec<u8>) -> Text<'a> {
        self.file = None;
        self.read(buffer)
    }

    /// Reads the whole file into `buffer`.
    pub fn read<'a>(&mut self, buffer: &'a mut Vec<u8>) -> Text<'a> {
        if self.file.is_none() {
            if self.skips_left > 0 {
                self.skips_left -= 1;
                return Text::Absent;
            }
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &self.file else {
            self.skips = (self.skips * 2).clamp(1, SKIPS_MAX);
            self.skips_left = self.skips;
            return Text::Absent;
        };
        match read_at_start(file, buffer) {
            Ok(()) => std::str::from_utf8(buffer).map_or(Text::Absent, Text::Is),
            Err(error) => {
                self.file = None;
                if is_gone(&error) { Text::Gone } else { Text::Absent }
            }
        }
    }
}

/// Reads a file that is not worth keeping open.
pub fn read_once<'a>(path: &Path, buffer: &'a mut Vec<u8>) -> Option<&'a str> {
    read_at_start(&File::open(path).ok()?, buffer).ok()?;
    std::str::from_utf8(buffer).ok()
}

/// Why a file cannot be read, for `doctor`; `Ok` when it can.
///
/// # Errors
///
/// What opening or reading said.
pub fn probe(path: &Path) -> io::Result<()> {
    read_at_start(&File::open(path)?, &mut Vec::new())
}

/// What tells this cgroup from another one made later under the same name; `None` when there is none.
pub fn inode(directory: &Path) -> Option<u64> {
    std::fs::metadata(directory).ok().filter(std::fs::Metadata::is_dir).map(|metadata| metadata.ino())
}

fn read_at_start(file: &File, buffer: &mut Vec<u8>) -> io::Result<()> {
    /// Most files fit in one read of a page.
    const CHUNK: usize = 4096;
    buffer.clear();
    // Ends: by end of file or by `TEXT_MAX`.
    while buffer.len() < TEXT_MAX {
        let from = buffer.len();
        buffer.resize(from + CHUNK, 0);
        let count = match file.read_at(&mut buffer[from..], from as u64) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                buffer.truncate(from);
                continue;
            }
            Err(error) => {
                buffer.clear();
                return Err(error);
            }
        };
        buffer.truncate(from + count);
        // The kernel cuts between records, and none that we read is half a chunk long: so short a read is the last.
        if count < CHUNK / 2 {
            break;
        }
    }
    Ok(())
}

/// ENOENT, ENODEV and ESRCH: the cgroup was removed, the process ended.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(3 | 19))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_shows_its_newest_text() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("cpu.stat");
        std::fs::write(&path, "nr_periods 1\n").expect("writable");
        let (mut file, mut buffer) = (KeptFile::new(path.clone()), Vec::new());
        assert_eq!(file.read(&mut buffer), Text::Is("nr_periods 1\n"));
        std::fs::write(&path, "x".repeat(10_000)).expect("writable");
        assert_eq!(file.read(&mut buffer).ok().map(str::len), Some(10_000));
    }

    #[test]
    fn a_missing_file_is_absent_and_found_later() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("io.stat");
        let (mut file, mut buffer) = (KeptFile::new(path.clone()), Vec::new());
        assert_eq!(file.read(&mut buffer), Text::Absent);
        std::fs::write(&path, "ok").expect("writable");
        let misses = (0..3).take_while(|_| file.read(&mut buffer) == Text::Absent).count();
        assert_eq!(misses, 1, "a new cgroup's files are not given up for long");
    }

    #[test]
    fn a_file_that_stays_away_is_asked_for_ever_less_often() {
        let mut file = KeptFile::new(PathBuf::from("/nonexistent"));
        let mut buffer = Vec::new();
        (0..200).for_each(|_| assert_eq!(file.read(&mut buffer), Text::Absent));
        assert_eq!(file.skips, SKIPS_MAX);
    }
}
