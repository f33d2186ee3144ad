//! What this kernel can do, found out by trying where that has no side effect.
//!
//! Queueing disciplines are tried on the loopback link of a network namespace of a thread's own, which vanishes with
//! the thread. Trying one may load its module, as using it would.

use std::{fmt, io, thread};

use rustix::thread::UnshareFlags;
use sage_common::KnobKind;
use serde::Serialize;

use super::{
    KernelError, KernelOptions,
    cgroup::Layout,
    chain,
    tc::{self, Probe},
};

/// One thing that the agent can use.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Capability {
    /// What.
    pub name: &'static str,
    /// Whether it is there.
    pub state: CapabilityState,
}

/// Whether something can be used on this node.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CapabilityState {
    /// It can.
    Works,
    /// It cannot.
    Absent {
        /// What was found.
        why: String,
        /// What to do about it.
        how_to_enable: &'static str,
    },
}

impl fmt::Display for CapabilityState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.pad("works"),
            Self::Absent { why, how_to_enable } => write!(f, "absent: {why}; {how_to_enable}"),
        }
    }
}

const CPU: &str = "cgroup CPU quota and weight";
const CPUSET: &str = "cgroup cpuset";
const FREEZER: &str = "cgroup freezer";
const HTB: &str = "tc HTB";
const TBF: &str = "tc TBF";
const U32: &str = "tc u32 filters";

/// Everything that `doctor` reports about knobs.
pub fn capabilities(options: &KernelOptions) -> Vec<Capability> {
    let mut found = knobs(&Layout::detect(&options.cgroup_root));
    found.push(path_capability(
        "resctrl (cache and memory bandwidth)",
        "/sys/fs/resctrl/info",
        "on hardware that has it (Intel RDT, AMD QoS), mount -t resctrl resctrl /sys/fs/resctrl",
    ));
    found.push(path_capability(
        "cpufreq (frequency floor)",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq",
        "load the machine's cpufreq driver; virtual machines usually have none",
    ));
    found
}

/// What the knobs of [`KnobKind`] need.
pub(super) fn knobs(layout: &Layout) -> Vec<Capability> {
    let cgroup = |name, kind, how_to_enable| Capability { name, state: cgroup_state(layout, kind, how_to_enable) };
    let mut found = vec![
        cgroup(CPU, KnobKind::CpuQuota, "mount the cpu controller, or enable it in cgroup.subtree_control"),
        cgroup(CPUSET, KnobKind::Cpuset, "mount the cpuset controller, or enable it in cgroup.subtree_control"),
        cgroup(FREEZER, KnobKind::Freeze, "mount the freezer controller, or a unified hierarchy (Linux 5.2)"),
    ];
    found.extend(probe_links());
    found
}

/// Whether what `kind` needs is there.
pub(super) fn supports(capabilities: &[Capability], kind: KnobKind) -> Result<(), KernelError> {
    let works =
        |name: &str| capabilities.iter().any(|found| found.name == name && found.state == CapabilityState::Works);
    let needed: &[&'static str] = match kind {
        KnobKind::CpuQuota | KnobKind::CpuWeight => &[CPU],
        KnobKind::Cpuset => &[CPUSET],
        KnobKind::Freeze => &[FREEZER],
        KnobKind::EgressRate if works(TBF) => &[],
        KnobKind::EgressRate => &[HTB],
        KnobKind::EgressCeiling => &[HTB, U32],
    };
    let Some(missing) = needed.iter().find(|name| !works(name)) else { return Ok(()) };
    let state = capabilities.iter().find(|found| found.name == *missing).map(|found| found.state.to_string());
    Err(KernelError::Unavailable { feature: missing, why: state.unwrap_or_else(|| "it was not looked for".to_owned()) })
}

fn cgroup_state(layout: &Layout, kind: KnobKind, how_to_enable: &'static str) -> CapabilityState {
    let absent = |why: String| CapabilityState::Absent { why, how_to_enable };
    match layout.supports(kind) {
        Err(error) => absent(chain(&error)),
        Ok(mount) => match rustix::fs::access(mount.path(), rustix::fs::Access::WRITE_OK) {
            Ok(()) => CapabilityState::Works,
            Err(errno) => absent(format!("{} cannot be written: {}", mount.path().display(), io::Error::from(errno))),
        },
    }
}

fn path_capability(name: &'static str, path: &str, how_to_enable: &'static str) -> Capability {
    let state = if std::path::Path::new(path).exists() {
        CapabilityState::Works
    } else {
        CapabilityState::Absent { why: format!("{path} does not exist"), how_to_enable }
    };
    Capability { name, state }
}

/// Tries each kind of traffic control in a network namespace of its own.
fn probe_links() -> Vec<Capability> {
    // A panic in the thread is a defect of ours; the report then says that nothing is known, and nothing is used.
    let outcome = thread::spawn(|| own_namespace().and_then(|()| tc::probe())).join();
    let outcome = outcome.unwrap_or_else(|_| Err(io::Error::other("the probe failed")));
    let how_to_enable =
        "run as root (CAP_NET_ADMIN, CAP_SYS_ADMIN), on a kernel with it (module sch_htb, sch_tbf, cls_u32)";
    let absent = |why: String| CapabilityState::Absent { why, how_to_enable };
    let state = |pick: fn(&Probe) -> &Result<(), String>| match &outcome {
        Err(error) => absent(format!("it cannot be tried: {error}")),
        Ok(probe) => pick(probe).clone().map_or_else(absent, |()| CapabilityState::Works),
    };
    vec![
        Capability { name: HTB, state: state(|probe| &probe.htb) },
        Capability { name: TBF, state: state(|probe| &probe.tbf) },
        Capability { name: U32, state: state(|probe| &probe.u32) },
    ]
}

/// Moves this thread into a new network namespace, empty but for a loopback link.
#[expect(unsafe_code, reason = "rustix marks unshare as unsafe for the sake of file descriptor tables")]
pub(super) fn own_namespace() -> io::Result<()> {
    // SAFETY: only CLONE_FILES can take descriptors away from under other threads; the network namespace cannot.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knob_is_supported_only_with_all_that_it_needs() {
        let with = |names: &[&'static str]| -> Vec<Capability> {
            names.iter().map(|name| Capability { name, state: CapabilityState::Works }).collect()
        };
        assert!(supports(&with(&[TBF]), KnobKind::EgressRate).is_ok());
        assert!(supports(&with(&[HTB]), KnobKind::EgressRate).is_ok());
        assert!(supports(&with(&[HTB, U32]), KnobKind::EgressCeiling).is_ok());
        assert!(supports(&with(&[HTB, TBF]), KnobKind::EgressCeiling).is_err());
        assert!(supports(&[], KnobKind::CpuQuota).is_err());
    }

    #[test]
    fn what_is_absent_says_why_and_how_to_enable_it() {
        let root = tempfile::tempdir().expect("temporary directory");
        let options = KernelOptions { cgroup_root: root.path().to_owned(), proc_root: "/proc".into() };
        let found = capabilities(&options);
        let cpu = found.iter().find(|capability| capability.name == CPU).expect("reported").state.to_string();
        assert!(cpu.contains("absent") && cpu.contains("mount the cpu controller"), "{cpu}");
        assert_eq!(found.len(), 8);
    }
}
