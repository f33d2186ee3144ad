//! Knobs: the adjustable things of a node's kernel, and their settings. Typed, so that a hostile value has no way in.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{InvalidName, ServiceId};

/// A cgroup below the hierarchy's root: relative, 1 to 240 bytes, no `..`, no empty part, no control characters.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(String);

impl CgroupPath {
    /// The path as text, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `self` is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.strip_prefix(&other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl TryFrom<String> for CgroupPath {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        let is_part =
            |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(|b| b.is_ascii_graphic());
        if (1..=240).contains(&text.len()) && text.split('/').all(is_part) {
            Ok(Self(text))
        } else {
            Err(InvalidName {
                what: "cgroup path",
                text: text.chars().take(80).collect(),
                want: "a relative path of 1 to 240 printable characters without '..'",
            })
        }
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.0
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A network interface name: 1 to 15 bytes, no `/`, no white space (the kernel's own rule, `dev_valid_name`).
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

impl LinkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LinkName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        if (1..=15).contains(&text.len()) && text != "." && text != ".." && text.bytes().all(allowed) {
            Ok(Self(text))
        } else {
            Err(InvalidName {
                what: "link name",
                text: text.chars().take(80).collect(),
                want: "1 to 15 printable characters without '/' or ':'",
            })
        }
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> Self {
        name.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A set of CPUs, as the kernel lists them: sorted, without repeats, each below 8192 (the kernel's NR_CPUS limit).
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "Vec<u16>", into = "Vec<u16>")]
pub struct CpuList(Vec<u16>);

impl CpuList {
    /// The CPUs, ascending.
    pub fn cpus(&self) -> &[u16] {
        &self.0
    }
}

impl TryFrom<Vec<u16>> for CpuList {
    type Error = InvalidName;

    fn try_from(mut cpus: Vec<u16>) -> Result<Self, InvalidName> {
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.is_empty() || cpus.iter().any(|cpu| *cpu >= 8192) {
            return Err(InvalidName {
                what: "CPU list",
                text: format!("{cpus:.80?}"),
                want: "1 or more CPUs below 8192",
            });
        }
        Ok(Self(cpus))
    }
}

impl From<CpuList> for Vec<u16> {
    fn from(list: CpuList) -> Self {
        list.0
    }
}

impl fmt::Display for CpuList {
    /// Kernel list format: `0-2,5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for run in self.0.chunk_by(|a, b| a + 1 == *b) {
            let comma = if text.is_empty() { "" } else { "," };
            let (first, last) = (run[0], run[run.len() - 1]);
            text += &if first == last { format!("{comma}{first}") } else { format!("{comma}{first}-{last}") };
        }
        f.pad(&text)
    }
}

/// One adjustable thing in a node's kernel.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Knob {
    /// CPU time limit of a cgroup. Takes [`Setting::Cores`].
    CpuQuota {
        /// The cgroup.
        cgroup: CgroupPath,
    },
    /// CPU weight of a cgroup among its siblings. Takes [`Setting::Weight`].
    CpuWeight {
        /// The cgroup.
        cgroup: CgroupPath,
    },
    /// The CPUs a cgroup may run on. Takes [`Setting::Cpus`].
    Cpuset {
        /// The cgroup.
        cgroup: CgroupPath,
    },
    /// Whether a best-effort cgroup stands still. Takes [`Setting::Frozen`].
    Freeze {
        /// The cgroup.
        cgroup: CgroupPath,
    },
    /// Egress rate of a whole link (TBF). Takes [`Setting::Rate`].
    EgressRate {
        /// The link.
        link: LinkName,
    },
    /// Egress ceiling of what a best-effort cgroup sends through a link (HTB class). Takes [`Setting::Rate`].
    EgressCeiling {
        /// The link.
        link: LinkName,
        /// The cgroup whose traffic is held back.
        cgroup: CgroupPath,
    },
}

/// The kind of a [`Knob`], for policy and for people.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KnobKind {
    /// [`Knob::CpuQuota`].
    CpuQuota,
    /// [`Knob::CpuWeight`].
    CpuWeight,
    /// [`Knob::Cpuset`].
    Cpuset,
    /// [`Knob::Freeze`].
    Freeze,
    /// [`Knob::EgressRate`].
    EgressRate,
    /// [`Knob::EgressCeiling`].
    EgressCeiling,
}

impl Knob {
    /// Which kind it is.
    pub const fn kind(&self) -> KnobKind {
        match self {
            Self::CpuQuota { .. } => KnobKind::CpuQuota,
            Self::CpuWeight { .. } => KnobKind::CpuWeight,
            Self::Cpuset { .. } => KnobKind::Cpuset,
            Self::Freeze { .. } => KnobKind::Freeze,
            Self::EgressRate { .. } => KnobKind::EgressRate,
            Self::EgressCeiling { .. } => KnobKind::EgressCeiling,
        }
    }

    /// The cgroup it acts on, if any.
    pub const fn cgroup(&self) -> Option<&CgroupPath> {
        match self {
            Self::CpuQuota { cgroup }
            | Self::CpuWeight { cgroup }
            | Self::Cpuset { cgroup }
            | Self::Freeze { cgroup }
            | Self::EgressCeiling { cgroup, .. } => Some(cgroup),
            Self::EgressRate { .. } => None,
        }
    }
}

impl fmt::Display for KnobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::CpuQuota => "cpu_quota",
            Self::CpuWeight => "cpu_weight",
            Self::Cpuset => "cpuset",
            Self::Freeze => "freeze",
            Self::EgressRate => "egress_rate",
            Self::EgressCeiling => "egress_ceiling",
        })
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::EgressRate { link } => format!("egress_rate({link})"),
            Self::EgressCeiling { link, cgroup } => format!("egress_ceiling({link}, {cgroup})"),
            Self::CpuQuota { cgroup }
            | Self::CpuWeight { cgroup }
            | Self::Cpuset { cgroup }
            | Self::Freeze { cgroup } => {
                format!("{}({cgroup})", self.kind())
            }
        };
        f.pad(&text)
    }
}

/// The value of a knob.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// CPU limit in thousandths of a core; `None` is no limit.
    Cores(Option<u32>),
    /// CPU weight, 1 to 10000, 100 by default (cgroup v2 scale).
    Weight(u16),
    /// CPUs.
    Cpus(CpuList),
    /// Standing still or not.
    Frozen(bool),
    /// Bits per second; `None` is no limit.
    Rate(Option<u64>),
}

impl Setting {
    /// Whether this kind of setting belongs to `knob`, with a value in the kernel's range.
    pub const fn fits(&self, knob: &Knob) -> bool {
        match (knob.kind(), self) {
            (KnobKind::CpuQuota, Self::Cores(None))
            | (KnobKind::Cpuset, Self::Cpus(_))
            | (KnobKind::Freeze, Self::Frozen(_)) => true,
            // 1 ms per 100 ms is the smallest quota that CFS accepts; 8192 cores the most a kernel is built for.
            (KnobKind::CpuQuota, Self::Cores(Some(millicores))) => *millicores >= 10 && *millicores <= 8_192_000,
            (KnobKind::CpuWeight, Self::Weight(weight)) => *weight >= 1 && *weight <= 10_000,
            (KnobKind::EgressRate | KnobKind::EgressCeiling, Self::Rate(None)) => true,
            // Below 8 kbit/s not even one full packet a second leaves; above 1 Tbit/s is no link of ours.
            (KnobKind::EgressRate | KnobKind::EgressCeiling, Self::Rate(Some(bits))) => {
                *bits >= 8_000 && *bits <= 1_000_000_000_000
            }
            _ => false,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Cores(None) | Self::Rate(None) => "no limit".to_owned(),
            Self::Cores(Some(millicores)) => format!("{:.2} cores", f64::from(*millicores) / 1e3),
            Self::Weight(weight) => format!("weight {weight}"),
            Self::Cpus(cpus) => format!("cpus {cpus}"),
            Self::Frozen(true) => "frozen".to_owned(),
            Self::Frozen(false) => "running".to_owned(),
            Self::Rate(Some(bits)) if *bits >= 1_000_000 => format!("{:.1} Mbit/s", *bits as f64 / 1e6),
            Self::Rate(Some(bits)) => format!("{:.1} kbit/s", *bits as f64 / 1e3),
        };
        f.pad(&text)
    }
}

/// How far the node's policy lets the aggregator go.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// Measure only.
    Observe,
    /// Say what would be done, do nothing.
    #[default]
    Recommend,
    /// Do it once an operator has approved it.
    Approve,
    /// Do it.
    Auto,
}

/// On whose behalf a knob is offered.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OfferRole {
    /// The knob of a service's own instance.
    Service(ServiceId),
    /// The knob of a best-effort co-runner on this node.
    BestEffort,
    /// A knob of the node itself.
    Node,
}

/// One knob a node offers, with its state and the policy's bounds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KnobOffer {
    /// The knob.
    pub knob: Knob,
    /// Whose it is.
    pub role: OfferRole,
    /// The setting in force at the end of the window.
    pub current: Setting,
    /// The lowest setting that policy allows.
    pub lowest: Option<Setting>,
    /// The highest setting that policy allows.
    pub highest: Option<Setting>,
    /// How far the aggregator may go.
    pub trust: Trust,
    /// What the knob's owner used of the resource in the window: thousandths of a core, or bits per second.
    pub used: Option<u64>,
    /// How much the resource has on this node in all, in the same unit: cores, or the link's rate where it is known.
    pub capacity: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_paths_cannot_climb() {
        for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.", "a b", "a\n", &"x".repeat(241)] {
            assert!(CgroupPath::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        let path = |text: &str| CgroupPath::try_from(text.to_owned()).expect("valid");
        assert!(path("a/b").is_within(&path("a")));
        assert!(!path("ab").is_within(&path("a")));
    }

    #[test]
    fn cpu_lists_print_as_the_kernel_writes_them() {
        assert_eq!(CpuList::try_from(vec![5, 0, 2, 1, 1]).expect("valid").to_string(), "0-2,5");
        assert!(CpuList::try_from(vec![]).is_err());
        assert!(CpuList::try_from(vec![9000]).is_err());
    }

    #[test]
    fn settings_outside_the_kernels_range_do_not_fit() {
        let cgroup = CgroupPath::try_from("x".to_owned()).expect("valid");
        let quota = Knob::CpuQuota { cgroup };
        assert!(Setting::Cores(None).fits(&quota));
        assert!(!Setting::Cores(Some(1)).fits(&quota));
        assert!(!Setting::Frozen(true).fits(&quota));
    }
}
