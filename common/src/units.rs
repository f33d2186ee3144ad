//! Units of time. Sage counts whole microseconds everywhere: the unit of trace spans and of PSI totals.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A span of time in whole microseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Micros(u64);

impl Micros {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// `micros` microseconds.
    pub const fn new(micros: u64) -> Self {
        Self(micros)
    }

    /// `millis` milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// `secs` seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }

    /// The number of microseconds.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Milliseconds, with their fraction.
    pub fn as_millis_f64(self) -> f64 {
        self.0 as f64 / 1e3
    }

    /// Seconds, with their fraction.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// `self - earlier`, or zero when the two are out of order.
    pub const fn saturating_sub(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    /// `self` times `factor`, at most the largest value.
    pub const fn saturating_mul(self, factor: u64) -> Self {
        Self(self.0.saturating_mul(factor))
    }
}

impl From<Micros> for Duration {
    fn from(micros: Micros) -> Self {
        Self::from_micros(micros.0)
    }
}

impl From<Duration> for Micros {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }
}

impl Add for Micros {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Micros {
    /// The largest unit that keeps at least one digit before the point: `312us`, `48.0ms`, `10.0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            micros @ 0..1_000 => format!("{micros}us"),
            micros @ 1_000..1_000_000 => format!("{:.1}ms", micros as f64 / 1e3),
            micros => format!("{:.1}s", micros as f64 / 1e6),
        };
        f.pad(&text)
    }
}

/// Microseconds since the Unix epoch by one machine's wall clock. Clocks of two machines are never compared;
/// windows are aligned by it and otherwise keyed by (boot id, sequence).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// `micros` microseconds after the epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// `self - earlier`, or `None` when the two are out of order.
    pub fn since(self, earlier: Self) -> Option<Micros> {
        self.0.checked_sub(earlier.0).map(Micros)
    }

    /// The start of the interval of `length` that `self` falls in. A zero `length` leaves `self` as it is.
    pub fn aligned(self, length: Micros) -> Self {
        Self(self.0 - self.0.checked_rem(length.0).unwrap_or(0))
    }
}

impl Add<Micros> for Timestamp {
    type Output = Self;

    fn add(self, after: Micros) -> Self {
        Self(self.0.saturating_add(after.0))
    }
}

impl Sub<Micros> for Timestamp {
    type Output = Self;

    fn sub(self, before: Micros) -> Self {
        Self(self.0.saturating_sub(before.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_the_interval_start() {
        let length = Micros::from_secs(10);
        assert_eq!(Timestamp::from_micros(25_000_001).aligned(length), Timestamp::from_micros(20_000_000));
        assert_eq!(Timestamp::from_micros(20_000_000).aligned(length), Timestamp::from_micros(20_000_000));
        assert_eq!(Timestamp::from_micros(7).aligned(Micros::ZERO), Timestamp::from_micros(7));
    }

    #[test]
    fn micros_read_in_a_fitting_unit() {
        assert_eq!(Micros::new(312).to_string(), "312us");
        assert_eq!(Micros::from_millis(48).to_string(), "48.0ms");
        assert_eq!(Micros::from_secs(10).to_string(), "10.0s");
    }
}
