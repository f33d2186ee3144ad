//! The processes of a cgroup and of those below it.
#![expect(clippy::disallowed_methods, reason = "driver: reads cgroup files")]

use std::{fs, path::PathBuf};

use sage_common::CgroupPath;

use super::Layout;
use crate::kernel::KernelError;

/// The most processes of one cgroup that are looked at: more is a whole machine's.
const PROCESSES_MAX: usize = 4_096;
/// The most cgroups below one that are looked into: a pod has a handful.
const CGROUPS_MAX: usize = 256;

/// The processes in `cgroup` and below it, in no order, at most 4096.
pub(in crate::kernel) fn processes(layout: &Layout, cgroup: &CgroupPath) -> Result<Vec<u32>, KernelError> {
    let gone = || KernelError::NoCgroup { cgroup: cgroup.clone() };
    let top =
        layout.mounts().map(|mount| mount.path().join(cgroup.as_str())).find(|path| path.is_dir()).ok_or_else(gone)?;
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = vec![top];
    let mut seen = 0;
    while let Some(dir) = waiting.pop() {
        seen += 1;
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.trim().parse::<u32>().ok()));
        if found.len() >= PROCESSES_MAX || seen >= CGROUPS_MAX {
            break;
        }
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        waiting.extend(entries.flatten().filter(is_dir).map(|entry| entry.path()));
    }
    found.truncate(PROCESSES_MAX);
    Ok(found)
}
