//! The demo's cgroups: one a node, whose CPU quota is the node's size, with a child for each tier and one for
//! best-effort jobs. cgroup v1 and v2.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::layout::{Layout, Node};

/// Where the hierarchies are mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// The v1 controllers that the demo uses.
const V1: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "blkio", "freezer"];
/// The v2 controllers that the demo uses.
const V2: &str = "+cpu +cpuset +memory +io";
/// Name of a node's best-effort cgroup.
pub const BATCH: &str = "batch";
/// The CFS period of a node and of its best-effort cgroup, microseconds: shorter than the default of 100 ms, so that a busy
/// node stutters finely, and long enough for a hog to keep its neighbours waiting for more than the target.
const PERIOD_US: f64 = 40_000.0;
/// How long to wait for killed processes to leave a cgroup before giving up on removing it.
const EMPTY_TRIES: u32 = 50;

/// The cgroup trees of one demo; dropping it removes them.
pub struct Cgroups {
    top: String,
    roots: Vec<PathBuf>,
    made: Vec<String>,
}

impl Cgroups {
    /// Makes the cgroups of `layout` below `top` in every hierarchy.
    pub fn build(top: &str, layout: &Layout) -> Result<Self> {
        let unified = Path::new(ROOT).join("cgroup.controllers").exists();
        let roots: Vec<PathBuf> = if unified {
            vec![PathBuf::from(ROOT)]
        } else {
            V1.iter().map(|controller| Path::new(ROOT).join(controller)).filter(|root| root.is_dir()).collect()
        };
        if roots.is_empty() {
            bail!("no cgroup hierarchy is mounted below {ROOT}");
        }
        let mut cgroups = Self { top: top.to_owned(), roots, made: Vec::new() };
        cgroups.make(top)?;
        for node in &layout.nodes {
            cgroups.make_node(node)?;
        }
        Ok(cgroups)
    }

    fn make_node(&mut self, node: &Node) -> Result<()> {
        let path = self.node(&node.name);
        self.make(&path)?;
        self.set_quota(&path, Some(node.cores))?;
        for tier in &node.tiers {
            self.make(&self.tier(&node.name, &tier.service))?;
        }
        let batch = self.batch(&node.name);
        self.make(&batch)?;
        self.set_quota(&batch, None)
    }

    /// Path of a node's cgroup below the hierarchy's root.
    pub fn node(&self, node: &str) -> String {
        format!("{}/{node}", self.top)
    }

    /// Path of a tier's cgroup.
    pub fn tier(&self, node: &str, service: &str) -> String {
        format!("{}/{node}/{service}", self.top)
    }

    /// Path of a node's best-effort cgroup.
    pub fn batch(&self, node: &str) -> String {
        format!("{}/{node}/{BATCH}", self.top)
    }

    /// The directories a process must join to be in `path`.
    pub fn directories(&self, path: &str) -> Vec<PathBuf> {
        self.roots.iter().map(|root| root.join(path)).collect()
    }

    fn make(&mut self, path: &str) -> Result<()> {
        for root in &self.roots {
            let directory = root.join(path);
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
            if root.ends_with("cpuset") {
                inherit_cpuset(&directory)?;
            }
            if root.as_path() == Path::new(ROOT)
                && let Some(parent) = directory.parent()
            {
                let _ = fs::write(parent.join("cgroup.subtree_control"), V2);
            }
        }
        self.made.push(path.to_owned());
        Ok(())
    }

    /// Limits a cgroup to `cores`, `None` for no limit, counted over the demo's period.
    fn set_quota(&self, path: &str, cores: Option<f64>) -> Result<()> {
        let quota = cores.map(|cores| (cores * PERIOD_US).round().to_string());
        let v2 = Path::new(ROOT).join(path).join("cpu.max");
        let v1 = Path::new(ROOT).join("cpu").join(path);
        let settings = if v2.exists() {
            vec![(v2, format!("{} {PERIOD_US}", quota.as_deref().unwrap_or("max")))]
        } else {
            vec![
                (v1.join("cpu.cfs_period_us"), PERIOD_US.to_string()),
                (v1.join("cpu.cfs_quota_us"), quota.unwrap_or_else(|| "-1".to_owned())),
            ]
        };
        settings.into_iter().try_for_each(|(file, text)| {
            fs::write(&file, text).with_context(|| format!("cannot set the node's size in {}", file.display()))
        })
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            for directory in self.directories(path) {
                remove(&directory);
            }
        }
    }
}

/// A v1 cpuset starts empty and refuses processes until it has CPUs and memory nodes.
fn inherit_cpuset(directory: &Path) -> Result<()> {
    let Some(parent) = directory.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value =
            fs::read_to_string(parent.join(file)).with_context(|| format!("cannot read {file} of the parent"))?;
        fs::write(directory.join(file), value.trim()).with_context(|| format!("cannot set {file}"))?;
    }
    Ok(())
}

/// Kills what is left in a cgroup and removes it, as far as the kernel lets us.
fn remove(directory: &Path) {
    let _ = fs::write(directory.join("freezer.state"), "THAWED");
    for _ in 0..EMPTY_TRIES {
        for pid in fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
            if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if fs::remove_dir(directory).is_ok() || !directory.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Removes what a demo that was killed left behind: trees `sage-demo-PID` whose process is gone.
pub fn sweep() {
    let mut roots: Vec<PathBuf> = V1.iter().map(|controller| Path::new(ROOT).join(controller)).collect();
    roots.push(PathBuf::from(ROOT));
    for root in roots {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            if super::is_left_behind(&entry.file_name().to_string_lossy()) {
                remove_tree(&entry.path());
            }
        }
    }
}

fn remove_tree(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    remove(directory);
}
