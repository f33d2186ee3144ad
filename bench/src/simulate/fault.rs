//! What can go wrong in a simulated application: kinds, where, when, how badly.

use std::{fmt, str::FromStr};

use sage_causal::verdict::Resource;
use sage_common::Micros;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A kind of fault. Its severity has the meaning given here and grows with the harm.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Competition for the tier's cores: CPU time takes so many times as long.
    Cpu,
    /// Competition for memory bandwidth and cache: memory time takes so many times as long.
    Mem,
    /// Competition for the tier's disk: disk time takes so many times as long.
    Disk,
    /// Everything that leaves the tier's node takes so many milliseconds longer.
    NetDelay,
    /// So many percent of what enters and leaves the tier's node are lost.
    NetLoss,
    /// What leaves the tier's node goes through a link so many times slower than 1 Gbit/s.
    NetBw,
    /// The tier serves so many times fewer requests at once than its limit (or than 64).
    Threads,
    /// The tier has so many times fewer connections to a callee than its pool's limit (or than 64).
    Pool,
    /// Every request holds one lock of the tier for so many times its own time.
    Lock,
    /// A code path that waits: own time takes so many times as long, without a core.
    Slow,
    /// A code path that waits so many milliseconds in every request.
    Stall,
    /// So many times the load, on the whole application.
    Surge,
}

impl FaultKind {
    /// Every kind that has a culprit.
    pub const FAULTS: [Self; 11] = [
        Self::Cpu,
        Self::Mem,
        Self::Disk,
        Self::NetDelay,
        Self::NetLoss,
        Self::NetBw,
        Self::Threads,
        Self::Pool,
        Self::Lock,
        Self::Slow,
        Self::Stall,
    ];

    /// Its name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Mem => "mem",
            Self::Disk => "disk",
            Self::NetDelay => "net_delay",
            Self::NetLoss => "net_loss",
            Self::NetBw => "net_bw",
            Self::Threads => "threads",
            Self::Pool => "pool",
            Self::Lock => "lock",
            Self::Slow => "slow",
            Self::Stall => "stall",
            Self::Surge => "surge",
        }
    }

    /// The resource that a right diagnosis names; `None` for a surge, which is no fault.
    pub const fn resource(self) -> Option<Resource> {
        match self {
            Self::Cpu => Some(Resource::Cpu),
            Self::Mem => Some(Resource::Memory),
            Self::Disk => Some(Resource::Disk),
            Self::NetDelay | Self::NetLoss | Self::NetBw => Some(Resource::Network),
            Self::Threads | Self::Pool | Self::Lock | Self::Slow | Self::Stall => Some(Resource::Software),
            Self::Surge => None,
        }
    }

    /// Whether it is competition for a resource of the machine.
    pub const fn is_contention(self) -> bool {
        matches!(self, Self::Cpu | Self::Mem | Self::Disk)
    }

    /// A severity that can be felt in most tiers.
    pub const fn default_severity(self) -> f64 {
        match self {
            Self::Cpu | Self::Mem | Self::Lock | Self::Slow => 4.0,
            Self::Disk | Self::Threads | Self::Pool => 32.0,
            Self::NetDelay | Self::Stall => 20.0,
            Self::NetLoss => 3.0,
            Self::NetBw => 50.0,
            Self::Surge => 2.0,
        }
    }

    /// Severities that are looked at: from hardly any harm to more than a real machine is ever harmed.
    pub const fn severities(self) -> (f64, f64) {
        match self {
            Self::Cpu | Self::Mem => (1.05, 200.0),
            Self::Disk => (1.05, 1_000.0),
            Self::NetDelay | Self::Stall => (0.05, 2_000.0),
            Self::NetLoss => (0.02, 30.0),
            Self::NetBw => (1.5, 20_000.0),
            Self::Threads | Self::Pool => (1.0, 64.0),
            Self::Lock => (0.02, 500.0),
            Self::Slow => (1.05, 2_000.0),
            Self::Surge => (1.0, 10.0),
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a planned fault is there for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It hurts.
    #[default]
    Real,
    /// It moves its metrics and slows nothing.
    Decoy,
}

/// One planned fault. Times are counted from the start of the world.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct FaultPlan {
    /// What.
    pub kind: FaultKind,
    /// The tier; for a pool the one that calls.
    pub service: String,
    /// For a pool: the tier that is called; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callee: Option<String>,
    /// One replica of the tier; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<u32>,
    /// When it begins.
    pub start: Micros,
    /// When it ends.
    pub end: Micros,
    /// How bad, as [`FaultKind`] says.
    pub severity: f64,
    /// Whether it hurts.
    #[serde(default)]
    pub role: Role,
}

impl FaultPlan {
    /// Whether any part of it lies between two times.
    pub fn overlaps(&self, from: Micros, to: Micros) -> bool {
        self.start < to && from < self.end
    }

    /// Whether it is in force then.
    pub fn is_active(&self, at: Micros) -> bool {
        self.start <= at && at < self.end
    }
}

impl fmt::Display for FaultPlan {
    /// As [`FromStr`] reads it, with whole seconds where they are whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.service)?;
        if let Some(callee) = &self.callee {
            write!(f, ">{callee}")?;
        }
        if let Some(replica) = self.replica {
            write!(f, "#{replica}")?;
        }
        write!(f, "@{}..{}x{:.4}", self.start.as_secs_f64(), self.end.as_secs_f64(), self.severity)?;
        if self.role == Role::Decoy { write!(f, "!decoy") } else { Ok(()) }
    }
}

/// A fault that cannot be read.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{text:?} is no fault ({problem}): want KIND:SERVICE[>CALLEE][#REPLICA][@START..END[xSEVERITY]][!decoy]")]
pub struct InvalidFault {
    text: String,
    problem: &'static str,
}

/// As long as a world may last: a fault without times is always there.
pub const FOREVER: Micros = Micros::from_secs(1 << 32);

impl FromStr for FaultPlan {
    type Err = InvalidFault;

    /// `KIND:SERVICE[>CALLEE][#REPLICA][@START..END[xSEVERITY]][!decoy]`, times in seconds.
    fn from_str(text: &str) -> Result<Self, InvalidFault> {
        parse(text).map_err(|problem| InvalidFault { text: text.to_owned(), problem })
    }
}

fn parse(text: &str) -> Result<FaultPlan, &'static str> {
    let (text, role) = text.strip_suffix("!decoy").map_or((text, Role::Real), |rest| (rest, Role::Decoy));
    let (kind, rest) = text.split_once(':').ok_or("no kind")?;
    let kinds = FaultKind::FAULTS.into_iter().chain([FaultKind::Surge]);
    let kind = kinds.into_iter().find(|known| known.name() == kind).ok_or("unknown kind")?;
    let (place, when) = rest.split_once('@').map_or((rest, None), |(place, when)| (place, Some(when)));
    let (place, replica) = place.split_once('#').map_or((place, None), |(place, number)| (place, Some(number)));
    let replica = replica.map(|number| number.parse().map_err(|_| "the replica is no number")).transpose()?;
    let (service, callee) =
        place.split_once('>').map_or((place, None), |(service, callee)| (service, Some(callee.to_owned())));
    if service.is_empty() {
        return Err("no service");
    }
    let (mut start, mut end, mut severity) = (Micros::ZERO, FOREVER, kind.default_severity());
    if let Some(when) = when {
        let (times, level) = when.split_once('x').map_or((when, None), |(times, level)| (times, Some(level)));
        let (from, to) = times.split_once("..").ok_or("no ..")?;
        (start, end) = (seconds(from)?, if to.is_empty() { FOREVER } else { seconds(to)? });
        severity = level.map_or(Ok(severity), |level| level.parse().map_err(|_| "the severity is no number"))?;
    }
    if !(severity > 0.0 && severity.is_finite()) {
        return Err("the severity is not positive");
    }
    if start >= end {
        return Err("it ends before it starts");
    }
    Ok(FaultPlan { kind, service: service.to_owned(), callee, replica, start, end, severity, role })
}

fn seconds(text: &str) -> Result<Micros, &'static str> {
    let text = text.strip_suffix('s').unwrap_or(text);
    let seconds: f64 = text.parse().map_err(|_| "a time is no number of seconds")?;
    let is_sound = (0.0..=FOREVER.as_secs_f64()).contains(&seconds);
    if is_sound { Ok(Micros::new((seconds * 1e6).round() as u64)) } else { Err("a time makes no sense") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_back_as_it_is_written() {
        for text in [
            "cpu:leaf_0@30..60x4",
            "pool:search>geo#1@0.5..90x16",
            "net_loss:user@1..2x0.5!decoy",
            "slow:text-service@10..20x12.25",
        ] {
            let plan: FaultPlan = text.parse().expect("valid");
            assert_eq!(plan.to_string().parse::<FaultPlan>(), Ok(plan), "{text}");
        }
        let bare: FaultPlan = "disk:orders-db".parse().expect("valid");
        assert_eq!((bare.start, bare.end, bare.severity), (Micros::ZERO, FOREVER, 32.0));
        let open: FaultPlan = "cpu:a@5s..".parse().expect("valid");
        assert_eq!((open.start, open.end), (Micros::from_secs(5), FOREVER));
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        for (text, reason) in [
            ("leaf_0", "no kind"),
            ("heat:leaf_0", "unknown kind"),
            ("cpu:", "no service"),
            ("cpu:a@3", "no .."),
            ("cpu:a@9..3", "ends before"),
            ("cpu:a@1..3x-1", "not positive"),
            ("cpu:a@-1..3", "makes no sense"),
        ] {
            let error = text.parse::<FaultPlan>().expect_err(text).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
