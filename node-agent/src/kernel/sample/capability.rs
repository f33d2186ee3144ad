//! What of this kernel can be read, and how to get the rest: one line per source, for `doctor`.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    file::probe as probe_file, hierarchy::Hierarchy, links::LinkReader, node::pressure_files, processes::open_files,
    sockets::SocketReader,
};
use crate::config::KernelConfig;

/// One source of usage or one knob.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Capability {
    /// What it is called.
    pub name: String,
    /// Whether it works.
    pub works: bool,
    /// Where it is read, or why it is not.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<String>,
    /// Whether the agent is of little use without it; `doctor` fails only for these.
    #[serde(default)]
    pub needed: bool,
}

impl Capability {
    /// Something that works.
    pub fn works(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), works: true, detail: detail.into(), enable: None, needed: false }
    }

    /// Something that does not, and what to do.
    pub fn missing(name: &str, detail: impl Into<String>, enable: &str) -> Self {
        Self {
            name: name.to_owned(),
            works: false,
            detail: detail.into(),
            enable: Some(enable.to_owned()),
            needed: false,
        }
    }

    /// The same, as something that is needed.
    pub fn needed(self) -> Self {
        Self { needed: true, ..self }
    }

    fn of_file(name: &str, path: &Path, enable: &str) -> Self {
        match probe_file(path) {
            Ok(()) => Self::works(name, path.display().to_string()),
            Err(error) => Self::missing(name, format!("{}: {error}", path.display()), enable),
        }
    }
}

/// Tries every source once.
pub fn probe(config: &KernelConfig) -> Vec<Capability> {
    let hierarchy = Hierarchy::detect(&config.cgroup_root);
    let mut lines = cgroups(config, &hierarchy);
    lines.extend(procfs(config));
    for line in &mut lines {
        line.needed = NEEDED.contains(&line.name.as_str());
    }
    lines.push(open_files_line(config));
    lines.push(links(config));
    lines.push(sockets(config));
    lines.extend(node_cgroup(config, &hierarchy));
    lines.push(Capability::missing(
        "last-level cache misses",
        "no reader for perf events or resctrl in this version",
        "nothing to do: the model leaves the metric out",
    ));
    lines
}

/// Without these there is no processor use, and most of what the model reasons about is missing.
const NEEDED: [&str; 2] = [CGROUP_CPU, NODE_CPU];
const CGROUP_CPU: &str = "cgroup processor time";
const NODE_CPU: &str = "node processors";

fn cgroups(config: &KernelConfig, hierarchy: &Hierarchy) -> Vec<Capability> {
    let trees = [
        (CGROUP_CPU, &hierarchy.usage, "cpuacct"),
        ("cgroup throttling and limits", &hierarchy.cpu, "cpu"),
        ("cgroup memory", &hierarchy.memory, "memory"),
        ("cgroup block I/O", &hierarchy.io, "blkio"),
    ];
    let mut lines: Vec<Capability> = trees
        .into_iter()
        .map(|(name, tree, controller)| match tree {
            Some(tree) if tree.is_v2 => Capability::works(name, format!("v2 at {}", tree.root.display())),
            Some(tree) => Capability::works(name, format!("v1 at {}", tree.root.display())),
            None => Capability::missing(
                name,
                format!("no v2 root and no v1 {controller} controller below {}", config.cgroup_root.display()),
                "mount cgroup2 there, or set kernel.cgroup_root",
            ),
        })
        .collect();
    let psi = hierarchy.pressure.as_ref().map(|tree| tree.root.clone());
    let with_file = psi.filter(|_| probe_file(&pressure_files(config)[0]).is_ok());
    lines.push(match with_file {
        Some(root) if hierarchy.main().is_some_and(|tree| tree.is_v2) => {
            Capability::works("cgroup pressure", format!("v2 at {}", root.display()))
        }
        _ => Capability::missing(
            "cgroup pressure",
            "instances live in v1 hierarchies, or the kernel has no PSI",
            "boot with systemd.unified_cgroup_hierarchy=1 psi=1",
        ),
    });
    lines
}

fn procfs(config: &KernelConfig) -> Vec<Capability> {
    let root = &config.proc_root;
    let files: [(&str, PathBuf, &str); 7] = [
        (NODE_CPU, root.join("stat"), "mount procfs, or set kernel.proc_root"),
        ("node memory", root.join("meminfo"), "mount procfs, or set kernel.proc_root"),
        ("node disks", root.join("diskstats"), "mount procfs, or set kernel.proc_root"),
        ("run-queue wait and context switches", root.join("self/schedstat"), "a kernel with CONFIG_SCHED_INFO"),
        ("node processor pressure", pressure_files(config)[0].clone(), "boot with psi=1 (CONFIG_PSI)"),
        ("node memory pressure", pressure_files(config)[1].clone(), "boot with psi=1 (CONFIG_PSI)"),
        ("node I/O pressure", pressure_files(config)[2].clone(), "boot with psi=1 (CONFIG_PSI)"),
    ];
    files.iter().map(|(name, path, enable)| Capability::of_file(name, path, enable)).collect()
}

fn open_files_line(config: &KernelConfig) -> Capability {
    match open_files(&config.proc_root, &[std::process::id()]) {
        Some(count) if count > 0 => Capability::works("open files", "size of /proc/PID/fd"),
        _ => Capability::missing("open files", "the size of /proc/PID/fd is zero", "a kernel of 6.2 or later"),
    }
}

fn links(config: &KernelConfig) -> Capability {
    const NAME: &str = "links and queueing disciplines";
    match LinkReader::new(config.links.clone()).read() {
        Ok((links, _)) if links.is_empty() => Capability::missing(
            NAME,
            "none of the links to measure is in this network namespace",
            "set kernel.links to names that `ip link` shows",
        ),
        Ok((links, qdiscs)) => {
            let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
            Capability::works(NAME, format!("rtnetlink: {}; {} root qdiscs", names.join(", "), qdiscs.len()))
        }
        Err(error) => Capability::missing(NAME, format!("rtnetlink: {error}"), NETLINK_HINT),
    }
}

fn sockets(config: &KernelConfig) -> Capability {
    const NAME: &str = "TCP round trips and retransmits";
    // Process 1 is somebody else's: whoever can look into it can look into any service.
    let sees_others = std::fs::read_dir(config.proc_root.join("1/fd")).is_ok();
    match SocketReader::new(config.proc_root.clone()).read(&BTreeSet::from([std::process::id()])) {
        Ok(_) if sees_others => {
            Capability::works(NAME, "sock_diag, joined through /proc/PID/fd; this network namespace only")
        }
        Ok(_) => Capability::missing(
            NAME,
            "sock_diag answers, but other users' /proc/PID/fd are closed to us",
            "run as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
        ),
        Err(error) => {
            let enable = if error.kind() == io::ErrorKind::NotFound { "modprobe tcp_diag" } else { NETLINK_HINT };
            Capability::missing(NAME, format!("sock_diag: {error}"), enable)
        }
    }
}

const NETLINK_HINT: &str = "allow AF_NETLINK (systemd: RestrictAddressFamilies=)";

fn node_cgroup(config: &KernelConfig, hierarchy: &Hierarchy) -> Option<Capability> {
    let cgroup = config.node_cgroup.as_ref()?;
    let is_there = hierarchy.main().is_some_and(|tree| tree.directory(cgroup).is_dir());
    Some(if is_there {
        Capability::works("node cgroup", format!("{cgroup} stands for the node"))
    } else {
        Capability::missing("node cgroup", format!("{cgroup} does not exist"), "create it, or unset kernel.node_cgroup")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn what_does_not_work_says_what_to_do() {
        let mut settings = Settings::default();
        settings.kernel.cgroup_root = "/nonexistent".into();
        settings.kernel.node_cgroup = "a/b".to_owned();
        let lines = probe(&settings.validate("n").expect("valid").kernel);
        assert!(lines.iter().all(|line| line.works != line.enable.is_some()));
        let broken = |name: &str| lines.iter().any(|line| line.name == name && !line.works);
        assert!(broken("cgroup memory") && broken("node cgroup"));
        assert!(lines.iter().any(|line| line.name == "node processors" && line.works));
    }
}
