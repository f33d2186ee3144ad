//! Where a cgroup's files are: one v2 tree, one v1 tree per controller, or both side by side.

use std::path::{Path, PathBuf};

use sage_common::CgroupPath;

/// One mounted tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tree {
    /// Where it is mounted.
    pub root: PathBuf,
    /// Whether its files are those of v2.
    pub is_v2: bool,
}

impl Tree {
    /// The directory of a cgroup.
    pub fn directory(&self, cgroup: &CgroupPath) -> PathBuf {
        self.root.join(cgroup.as_str())
    }
}

/// The trees that serve each controller, found once at start: mounts do not move under a running system.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hierarchy {
    /// Processor time: v1 `cpuacct`.
    pub usage: Option<Tree>,
    /// Bandwidth control: v1 `cpu`.
    pub cpu: Option<Tree>,
    /// Memory.
    pub memory: Option<Tree>,
    /// Block devices: v1 `blkio`.
    pub io: Option<Tree>,
    /// Pressure: v2 only.
    pub pressure: Option<Tree>,
}

impl Hierarchy {
    /// Looks at what is mounted below `root`.
    pub fn detect(root: &Path) -> Self {
        if root.join("cgroup.controllers").is_file() {
            let tree = Some(Tree { root: root.to_owned(), is_v2: true });
            return Self {
                usage: tree.clone(),
                cpu: tree.clone(),
                memory: tree.clone(),
                io: tree.clone(),
                pressure: tree,
            };
        }
        let unified = root.join("unified");
        Self {
            usage: v1(root, "cpuacct"),
            cpu: v1(root, "cpu"),
            memory: v1(root, "memory"),
            io: v1(root, "blkio"),
            pressure: unified.join("cgroup.controllers").is_file().then_some(Tree { root: unified, is_v2: true }),
        }
    }

    /// The tree in which instances are looked for and their processes listed.
    pub fn main(&self) -> Option<&Tree> {
        [&self.usage, &self.cpu, &self.memory, &self.pressure].into_iter().find_map(Option::as_ref)
    }

    /// How `/proc/PID/cgroup` calls the main tree; `None` for the unified one.
    pub fn main_controller(&self) -> Option<&'static str> {
        let trees = [(&self.usage, "cpuacct"), (&self.cpu, "cpu"), (&self.memory, "memory")];
        trees.into_iter().find_map(|(tree, name)| tree.as_ref().map(|tree| (!tree.is_v2).then_some(name)))?
    }
}

/// A v1 controller, mounted alone or with others.
fn v1(root: &Path, controller: &str) -> Option<Tree> {
    let candidates = [controller, "cpu,cpuacct", "cpuacct,cpu"];
    let together = if controller.starts_with("cpu") { &candidates[..] } else { &candidates[..1] };
    let mounted = together.iter().map(|name| root.join(name)).find(|path| path.join("cgroup.procs").is_file());
    mounted.map(|root| Tree { root, is_v2: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("temporary directory");
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
            std::fs::write(path, "").expect("writable");
        }
        root
    }

    #[test]
    fn a_v2_root_serves_every_controller() {
        let root = make(&["cgroup.controllers"]);
        let found = Hierarchy::detect(root.path());
        assert!(found.main().is_some_and(|tree| tree.is_v2) && found.pressure.is_some());
        assert_eq!(found.main_controller(), None);
    }

    #[test]
    fn v1_trees_are_found_one_by_one_and_pressure_beside_them() {
        let root = make(&["cpu,cpuacct/cgroup.procs", "memory/cgroup.procs", "unified/cgroup.controllers"]);
        let found = Hierarchy::detect(root.path());
        assert!(found.usage.as_ref().is_some_and(|tree| tree.root.ends_with("cpu,cpuacct") && !tree.is_v2));
        assert!(found.memory.is_some() && found.pressure.is_some() && found.io.is_none());
        assert_eq!(found.main_controller(), Some("cpuacct"));
    }

    #[test]
    fn an_empty_root_serves_none() {
        assert_eq!(Hierarchy::detect(make(&[]).path()), Hierarchy::default());
    }
}
