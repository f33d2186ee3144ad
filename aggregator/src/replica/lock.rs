//! One aggregator per state directory: a lock file that the kernel releases with the process, however it ends.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Why the state directory cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another aggregator runs on it.
    #[error("{dir} is in use by another sage-aggregator (process {pid}): stop it, or give this one its own state_dir")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// What the other one wrote into the lock.
        pid: String,
    },
    /// The file system said no.
    #[error("cannot {action} {path}: {source}; is state_dir right, and writable by this user?")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Holds the directory until it is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory if need be, and takes its lock.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub fn lock(path: &Path) -> Result<Self, LockError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| LockError::Io { action, path, source }
        };
        std::fs::create_dir_all(path).map_err(io("create", path))?;
        let file_path = path.join("lock");
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&file_path).map_err(io("open", &file_path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The number only helps people; without it the message stands all the same.
                let _ = file.take(20).read_to_string(&mut pid);
                let pid = if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
                return Err(LockError::InUse { dir: path.to_owned(), pid });
            }
            Err(TryLockError::Error(source)) => {
                return Err(LockError::Io { action: "lock", path: file_path, source });
            }
        }
        file.set_len(0).map_err(io("write", &file_path))?;
        // On a full disk the lock holds without the number, and the aggregator can still report that.
        let _ = file.write_all(format!("{}\n", std::process::id()).as_bytes());
        Ok(Self { path: path.to_owned(), _lock: file })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_aggregator_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().expect("tmp");
        let first = StateDir::lock(dir.path()).expect("free");
        let error = StateDir::lock(first.path()).expect_err("held").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        assert!(StateDir::lock(dir.path()).is_ok());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let error = StateDir::lock(Path::new("/proc/nowhere")).expect_err("no such place").to_string();
        assert!(error.contains("cannot create /proc/nowhere"), "{error}");
    }
}
