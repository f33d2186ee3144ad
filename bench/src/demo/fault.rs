//! The faults a demo can inject, and what a right answer to each is.

use std::{fmt, str::FromStr};

use anyhow::{Error, bail};

/// What is broken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FaultKind {
    /// A best-effort job on the same node takes the processor.
    Cpu,
    /// A best-effort job on the same node fills its link.
    Network,
    /// A best-effort job on the same node keeps the disk busy.
    Disk,
    /// The tier serves fewer requests at once.
    Threads,
    /// The tier has a slow code path.
    Slow,
}

impl FaultKind {
    /// The resource a right verdict names.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Threads | Self::Slow => "software",
        }
    }

    /// Whether there is a resource to give back, so that the node can be repaired.
    pub fn is_of_resource(self) -> bool {
        !matches!(self, Self::Threads | Self::Slow)
    }

    /// Its name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Threads => "threads",
            Self::Slow => "slow",
        }
    }
}

/// One fault to inject.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// What is broken.
    pub kind: FaultKind,
    /// Of which tier.
    pub service: String,
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let Some((kind, service)) = text.split_once(':') else { bail!("want KIND:SERVICE, for example cpu:catalog") };
        let kind = match kind {
            "cpu" => FaultKind::Cpu,
            "network" => FaultKind::Network,
            "disk" => FaultKind::Disk,
            "threads" => FaultKind::Threads,
            "slow" => FaultKind::Slow,
            other => bail!("unknown fault kind {other:?}: want cpu, network, disk, threads or slow"),
        };
        if service.is_empty() {
            bail!("{kind}: names no service", kind = kind.name());
        }
        Ok(Self { kind, service: service.to_owned() })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.service)
    }
}

impl Fault {
    /// What the fault is, in a sentence's words.
    pub fn in_words(&self, node: &str) -> String {
        let service = &self.service;
        match self.kind {
            FaultKind::Cpu => format!("a best-effort job spins on {node}, where {service} runs"),
            FaultKind::Network => {
                format!("a best-effort job sends in bulk over the link of {node}, where {service} runs")
            }
            FaultKind::Disk => format!("a best-effort job writes in bulk on {node}, where {service} runs"),
            FaultKind::Threads => format!("{service} serves one request at a time"),
            FaultKind::Slow => format!("{service} takes a slow code path"),
        }
    }

    /// Whether a verdict is right: it names the tier first, the resource, and nobody but tiers of the broken node
    /// (`neighbours`), which a node's resource fault hurts as well.
    pub fn is_named_by(&self, kind: &str, culprits: &[(String, String)], neighbours: &[String]) -> bool {
        let Some((first, resource)) = culprits.first() else { return false };
        let is_tier = |service: &str| service == self.service;
        let is_hurt = |service: &str| self.kind.is_of_resource() && neighbours.iter().any(|tier| tier == service);
        kind == "culprit"
            && (is_tier(first) || is_hurt(first))
            && resource == self.kind.resource()
            && culprits.iter().all(|(service, _)| is_tier(service) || is_hurt(service))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(fault: &str, culprits: &[(&str, &str)], neighbours: &[&str]) -> bool {
        let culprits: Vec<_> = culprits.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let neighbours: Vec<_> = neighbours.iter().map(|name| (*name).to_owned()).collect();
        fault.parse::<Fault>().expect("well formed").is_named_by("culprit", &culprits, &neighbours)
    }

    #[test]
    fn a_verdict_is_right_only_with_the_tier_the_resource_and_nobody_innocent() {
        assert!(named("cpu:a", &[("a", "cpu")], &["a"]));
        assert!(!named("cpu:a", &[("a", "network")], &["a"]));
        assert!(!named("cpu:a", &[("b", "cpu")], &["a"]));
        assert!(!named("cpu:a", &[("a", "cpu"), ("b", "cpu")], &["a"]));
        assert!(named("cpu:a", &[("b", "cpu"), ("a", "cpu")], &["a", "b"]));
        assert!(!named("slow:a", &[("b", "software")], &["a", "b"]));
        assert!(!named("slow:a", &[], &["a"]));
    }

    #[test]
    fn malformed_faults_say_what_is_wanted() {
        for bad in ["cpu", "cpu:", "tornado:a"] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
        assert_eq!("disk:orders".parse::<Fault>().expect("well formed").to_string(), "disk:orders");
    }
}
