//! CPU quota and weight.
//!
//! | version | quota                                          | none  | weight       | default |
//! |---------|------------------------------------------------|-------|--------------|---------|
//! | 1       | `cpu.cfs_quota_us`, per `cpu.cfs_period_us`    | `-1`  | `cpu.shares` | 1024    |
//! | 2       | first word of `cpu.max`, per its second        | `max` | `cpu.weight` | 100     |
//!
//! The period is the cgroup's own and is kept. Shares are weights times 10.24, as systemd converts them: proportions
//! among siblings stay what they were, and so does the default.

use std::io;

use sage_common::{Knob, Setting};

use super::{text, tree::Dir};
use crate::{core::actuation::Before, kernel::KernelError};

/// The kernel's default period, in microseconds.
const PERIOD_DEFAULT: u64 = 100_000;
/// The smallest quota the kernel takes, in microseconds.
const QUOTA_MIN: u64 = 1_000;

/// A quota and its period, in microseconds; no quota is no limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Bandwidth {
    quota: Option<u64>,
    period: u64,
}

impl Bandwidth {
    fn read(dir: &Dir) -> Result<Self, KernelError> {
        if dir.is_v2 { Self::read_v2(dir) } else { Self::read_v1(dir) }
    }

    fn read_v1(dir: &Dir) -> Result<Self, KernelError> {
        let (quota, period) = (dir.read("cpu.cfs_quota_us")?, dir.read("cpu.cfs_period_us")?);
        let quota = text::limit(&quota).ok_or_else(|| dir.unknown("cpu.cfs_quota_us", &quota, "microseconds or -1"))?;
        match period.parse() {
            Ok(period) if period > 0 => Ok(Self { quota, period }),
            _ => Err(dir.unknown("cpu.cfs_period_us", &period, "microseconds")),
        }
    }

    fn read_v2(dir: &Dir) -> Result<Self, KernelError> {
        let text = dir.read("cpu.max")?;
        let mut words = text.split_ascii_whitespace();
        let quota = words.next().and_then(text::limit);
        let period = words.next().map_or(Some(PERIOD_DEFAULT), |word| word.parse().ok());
        match (quota, period) {
            (Some(quota), Some(period)) if period > 0 => Ok(Self { quota, period }),
            _ => Err(dir.unknown("cpu.max", &text, "a quota or max, and a period, in microseconds")),
        }
    }

    fn write(self, dir: &Dir, knob: &Knob) -> Result<(), KernelError> {
        if self.quota.is_some_and(|quota| quota < QUOTA_MIN) {
            let problem = "the cgroup's period is so short that the quota would be below the kernel's least, 1 ms";
            return Err(KernelError::State { knob: knob.clone(), problem });
        }
        let result = match (dir.is_v2, self.quota) {
            (true, Some(quota)) => dir.write("cpu.max", &format!("{quota} {}", self.period)),
            (true, None) => dir.write("cpu.max", &format!("max {}", self.period)),
            (false, Some(quota)) => dir.write("cpu.cfs_quota_us", &quota.to_string()),
            (false, None) => dir.write("cpu.cfs_quota_us", "-1"),
        };
        result.map_err(|error| self.explain(error, dir, knob))
    }

    /// EINVAL has two causes worth a word.
    fn explain(self, error: KernelError, dir: &Dir, knob: &Knob) -> KernelError {
        let is_invalid =
            matches!(&error, KernelError::File { source, .. } if source.kind() == io::ErrorKind::InvalidInput);
        if !is_invalid {
            return error;
        }
        let burst = if dir.is_v2 { "cpu.max.burst" } else { "cpu.cfs_burst_us" };
        let burst = dir.read(burst).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let problem = match self.quota {
            Some(quota) if burst > quota => "the cgroup's burst is larger than the new quota; lower the burst first",
            _ if !dir.is_v2 => "the quota does not fit between those of the cgroup's parent and children",
            _ => return error,
        };
        KernelError::State { knob: knob.clone(), problem }
    }
}

pub(super) fn read_quota(dir: &Dir) -> Result<Before, KernelError> {
    let Bandwidth { quota, period } = Bandwidth::read(dir)?;
    // To the nearest thousandth of a core. A period is at least 1000 us, so that this is exact for what we write.
    let millicores = |quota: u64| u32::try_from((quota.saturating_mul(1_000) + period / 2) / period).ok();
    let setting = Setting::Cores(quota.and_then(millicores));
    let exact = quota.map_or("max".to_owned(), |quota| quota.to_string());
    Ok(Before { setting, exact: Some(exact) })
}

pub(super) fn write_quota(dir: &Dir, knob: &Knob, millicores: Option<u32>) -> Result<(), KernelError> {
    let Bandwidth { period, .. } = Bandwidth::read(dir)?;
    let quota = millicores.map(|millicores| (u64::from(millicores).saturating_mul(period) + 500) / 1_000);
    Bandwidth { quota, period }.write(dir, knob)
}

/// `exact` is what [`read_quota`] found: a quota in microseconds, or `max`.
pub(super) fn restore_quota(dir: &Dir, knob: &Knob, exact: &str) -> Result<(), KernelError> {
    let Bandwidth { period, .. } = Bandwidth::read(dir)?;
    let quota = text::limit(exact).ok_or_else(|| dir.unknown("the undo record", exact, "a quota"))?;
    Bandwidth { quota, period }.write(dir, knob)
}

pub(super) fn read_weight(dir: &Dir, knob: &Knob) -> Result<Before, KernelError> {
    let (name, number) = read_share(dir)?;
    let weight = if dir.is_v2 { number } else { weight_of_shares(number) };
    match u16::try_from(weight) {
        // A cgroup with cpu.idle set says 0.
        Ok(0) => Err(KernelError::State { knob: knob.clone(), problem: "the cgroup has cpu.idle set" }),
        Ok(weight) if weight <= 10_000 => {
            Ok(Before { setting: Setting::Weight(weight), exact: Some(number.to_string()) })
        }
        _ => Err(dir.unknown(name, &number.to_string(), "1 to 10000")),
    }
}

pub(super) fn write_weight(dir: &Dir, weight: u16) -> Result<(), KernelError> {
    let number = if dir.is_v2 { u64::from(weight) } else { shares_of_weight(weight) };
    restore_weight(dir, &number.to_string())
}

/// `exact` is what [`read_weight`] found: shares in version 1, a weight in version 2.
pub(super) fn restore_weight(dir: &Dir, exact: &str) -> Result<(), KernelError> {
    dir.write(if dir.is_v2 { "cpu.weight" } else { "cpu.shares" }, exact)
}

fn read_share(dir: &Dir) -> Result<(&'static str, u64), KernelError> {
    let name = if dir.is_v2 { "cpu.weight" } else { "cpu.shares" };
    let text = dir.read(name)?;
    text.parse().map(|number| (name, number)).map_err(|_| dir.unknown(name, &text, "a number"))
}

fn shares_of_weight(weight: u16) -> u64 {
    (u64::from(weight) * 1_024 + 50) / 100
}

fn weight_of_shares(shares: u64) -> u64 {
    ((shares.saturating_mul(100) + 512) / 1_024).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_survives_the_way_through_shares() {
        assert_eq!((shares_of_weight(100), weight_of_shares(1_024)), (1_024, 100));
        // The least the kernel has, and the most.
        assert_eq!((weight_of_shares(2), weight_of_shares(262_144)), (1, 10_000));
        for weight in 1..=10_000 {
            assert_eq!(weight_of_shares(shares_of_weight(weight)), u64::from(weight));
        }
    }
}
