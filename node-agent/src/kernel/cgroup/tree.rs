//! Files of one cgroup, opened so that no path can lead out of its hierarchy.
#![expect(clippy::disallowed_methods, reason = "driver: waits for the kernel")]

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};
use sage_common::CgroupPath;

use crate::kernel::KernelError;

/// Far longer than the kernel needs to take away a cgroup's files.
const REMOVAL_WAIT: Duration = Duration::from_millis(1);

/// One cgroup in one hierarchy. It stays the same cgroup even if another takes its name.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    cgroup: CgroupPath,
    path: PathBuf,
    /// Whether the hierarchy is the unified one.
    pub is_v2: bool,
}

/// More than the longest of the files we read (a list of 8192 CPUs, one by one).
const FILE_BYTES_MAX: u64 = 64 << 10;

impl Dir {
    pub fn open(mount: &Path, cgroup: &CgroupPath, is_v2: bool) -> Result<Self, KernelError> {
        let path = mount.join(cgroup.as_str());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // The mount point comes from configuration and may be a link (`cpu` to `cpu,cpuacct`); what follows may not.
        let root = rustix::fs::open(mount, flags, Mode::empty()).map_err(|errno| KernelError::File {
            action: "open",
            path: mount.to_owned(),
            source: errno.into(),
        })?;
        match rustix::fs::openat2(&root, cgroup.as_str(), flags, Mode::empty(), beneath()) {
            Ok(fd) => Ok(Self { fd, cgroup: cgroup.clone(), path, is_v2 }),
            Err(Errno::NOENT) => Err(KernelError::NoCgroup { cgroup: cgroup.clone() }),
            Err(errno) => Err(KernelError::File { action: "open", path, source: errno.into() }),
        }
    }

    /// The text of one of the kernel's files, without white space around it.
    pub fn read(&self, name: &'static str) -> Result<String, KernelError> {
        let mut text = String::new();
        let file = self.file(name, OFlags::RDONLY)?;
        match file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
            Ok(_) => Ok(text.trim().to_owned()),
            Err(source) => Err(self.failed("read", name, source)),
        }
    }

    /// Writes `text` into one of the kernel's files, in one call: the kernel takes each as a whole.
    pub fn write(&self, name: &'static str, text: &str) -> Result<(), KernelError> {
        let mut file = self.file(name, OFlags::WRONLY | OFlags::TRUNC)?;
        // Never empty: a write of no bytes does not reach the kernel's parser.
        let line = format!("{text}\n");
        file.write(line.as_bytes()).map(drop).map_err(|source| self.failed("write", name, source))
    }

    /// The path of a file, for messages.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The text is not what we know.
    pub fn unknown(&self, name: &str, text: &str, want: &'static str) -> KernelError {
        KernelError::Text { path: self.path(name), text: text.chars().take(80).collect(), want }
    }

    fn file(&self, name: &'static str, flags: OFlags) -> Result<File, KernelError> {
        let opened = rustix::fs::openat2(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty(), beneath());
        match opened {
            Ok(fd) => Ok(File::from(fd)),
            Err(Errno::NOENT) if self.is_removed() => Err(KernelError::NoCgroup { cgroup: self.cgroup.clone() }),
            Err(Errno::NOENT) => Err(self.not_enabled(name)),
            Err(errno) => Err(self.failed("open", name, errno.into())),
        }
    }

    /// Whether the cgroup went away after it was opened: then it has no files at all. The kernel takes them away one by
    /// one, so that one more look is needed before a missing file is called missing.
    fn is_removed(&self) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let is_empty = || rustix::fs::openat2(&self.fd, "cgroup.procs", flags, Mode::empty(), beneath()).is_err();
        is_empty() || {
            thread::sleep(REMOVAL_WAIT);
            is_empty()
        }
    }

    fn not_enabled(&self, name: &str) -> KernelError {
        let why = format!("{} is missing", self.path(name).display());
        let hint = if self.is_v2 { "; enable its controller in the parent's cgroup.subtree_control" } else { "" };
        KernelError::Unavailable { feature: "this cgroup's file", why: format!("{why}{hint}") }
    }

    fn failed(&self, action: &'static str, name: &str, source: io::Error) -> KernelError {
        // The kernel's word for a cgroup that was removed while its file was open.
        if source.raw_os_error() == Some(Errno::NODEV.raw_os_error()) {
            return KernelError::NoCgroup { cgroup: self.cgroup.clone() };
        }
        KernelError::File { action, path: self.path(name), source }
    }
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}
