//! Which controller is mounted where. Each is looked for by itself: hosts run version 1, version 2, or both at once.

use std::path::{Path, PathBuf};

use sage_common::{CgroupPath, KnobKind};

use super::{text, tree::Dir};
use crate::kernel::KernelError;

/// Where one controller's hierarchy is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mount {
    /// A hierarchy of version 1.
    V1(PathBuf),
    /// The unified hierarchy.
    V2(PathBuf),
}

/// Where the controllers are that our knobs belong to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Layout {
    cpu: Option<Mount>,
    cpuset: Option<Mount>,
    freezer: Option<Mount>,
}

impl Layout {
    /// What is mounted below `root` (usually `/sys/fs/cgroup`).
    pub fn detect(root: &Path) -> Self {
        let is_unified = |dir: &PathBuf| dir.join("cgroup.controllers").is_file();
        if is_unified(&root.to_owned()) {
            // Whatever lies below is an ordinary cgroup, even one called "cpu".
            return Self::of(|name| unified(root, name));
        }
        let hybrid = Some(root.join("unified")).filter(is_unified);
        Self::of(|name| {
            let legacy = root.join(name);
            if legacy.join("cgroup.procs").is_file() {
                return Some(Mount::V1(legacy));
            }
            hybrid.as_deref().and_then(|root| unified(root, name))
        })
    }

    fn of(find: impl Fn(&str) -> Option<Mount>) -> Self {
        Self { cpu: find("cpu"), cpuset: find("cpuset"), freezer: find("freezer") }
    }

    /// Where CPU quotas and weights are.
    pub(super) fn cpu(&self) -> Result<&Mount, KernelError> {
        self.cpu.as_ref().ok_or_else(|| missing("the cpu controller"))
    }

    /// Where cpusets are.
    pub(super) fn cpuset(&self) -> Result<&Mount, KernelError> {
        self.cpuset.as_ref().ok_or_else(|| missing("the cpuset controller"))
    }

    /// Where the freezer is.
    pub(super) fn freezer(&self) -> Result<&Mount, KernelError> {
        self.freezer.as_ref().ok_or_else(|| missing("the cgroup freezer"))
    }

    /// Every hierarchy that one of our controllers is in.
    pub(super) fn mounts(&self) -> impl Iterator<Item = &Mount> {
        [&self.cpu, &self.freezer, &self.cpuset].into_iter().flatten()
    }

    /// Whether the knobs of `kind` have a hierarchy.
    pub(in crate::kernel) fn supports(&self, kind: KnobKind) -> Result<&Mount, KernelError> {
        match kind {
            KnobKind::Cpuset => self.cpuset(),
            KnobKind::Freeze => self.freezer(),
            _ => self.cpu(),
        }
    }
}

impl Mount {
    /// The directory of the hierarchy.
    pub fn path(&self) -> &Path {
        match self {
            Self::V1(path) | Self::V2(path) => path,
        }
    }

    /// Opens `cgroup` in this hierarchy.
    pub(super) fn open(&self, cgroup: &CgroupPath) -> Result<Dir, KernelError> {
        Dir::open(self.path(), cgroup, matches!(self, Self::V2(_)))
    }
}

/// The unified hierarchy, if it has this controller. The freezer is not one: every cgroup but the root has it.
fn unified(root: &Path, name: &str) -> Option<Mount> {
    let is_there =
        name == "freezer" || text::read_list(&root.join("cgroup.controllers")).iter().any(|have| have == name);
    is_there.then(|| Mount::V2(root.to_owned()))
}

fn missing(feature: &'static str) -> KernelError {
    KernelError::Unavailable { feature, why: "no mounted cgroup hierarchy has it".to_owned() }
}
