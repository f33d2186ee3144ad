//! Times as people write them: RFC 3339 in UTC or with an offset, or a number since 1970, whose size tells whether it is of
//! seconds, milliseconds, microseconds or nanoseconds. Pure.

use std::str::FromStr;

use sage_common::{Micros, Timestamp};
use thiserror::Error;

/// Not a time.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{0:?} is no time: want 2024-05-01T12:00:00Z, or seconds since 1970")]
pub struct InvalidTime(pub String);

/// Reads a time; one without an offset is in UTC.
///
/// # Errors
///
/// [`InvalidTime`].
pub fn parse(text: &str) -> Result<Timestamp, InvalidTime> {
    let invalid = || InvalidTime(text.chars().take(60).collect());
    if let Ok(seconds) = text.parse::<f64>() {
        let is_time = seconds.is_finite() && (0.0..1e20).contains(&seconds);
        // Seconds of the year 5138 are milliseconds of 1973.
        let micros = [(1e11, 1e6), (1e14, 1e3), (1e17, 1.0)].into_iter().find(|(below, _)| seconds < *below);
        let factor = micros.map_or(1e-3, |(_, factor)| factor);
        return is_time.then(|| Timestamp::from_micros((seconds * factor) as u64)).ok_or_else(invalid);
    }
    rfc3339(text).ok_or_else(invalid)
}

/// Writes a time as RFC 3339 in UTC, to the second.
pub fn format(at: Timestamp) -> String {
    let seconds = at.as_micros() / 1_000_000;
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn rfc3339(text: &str) -> Option<Timestamp> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok().filter(|number| *number >= 0);
    let bytes = text.as_bytes();
    let is_shaped = bytes.len() >= 19
        && [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')].iter().all(|(at, byte)| bytes[*at] == *byte)
        && matches!(bytes[10], b'T' | b't' | b' ');
    if !is_shaped {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let is_date = (1..=12).contains(&month) && (1..=31).contains(&day);
    if !is_date || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(19..)?;
    let digits = rest.strip_prefix('.').map_or(0, |tail| tail.bytes().take_while(u8::is_ascii_digit).count());
    let fraction: f64 = if digits > 0 { format!("0{}", &rest[..=digits]).parse().ok()? } else { 0.0 };
    let offset = offset_seconds(&rest[if digits > 0 { digits + 1 } else { 0 }..])?;
    let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    let micros = u64::try_from(seconds).ok()? * 1_000_000 + (fraction * 1e6).round() as u64;
    Some(Timestamp::from_micros(micros))
}

fn offset_seconds(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z" | " UTC" | "") {
        return Some(0);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let rest = text.get(1..)?;
    let (hours, minutes) = rest.split_once(':').or_else(|| rest.split_at_checked(2))?;
    let part = |text: &str| text.parse::<u8>().ok().map(i64::from);
    let minutes = if minutes.is_empty() { 0 } else { part(minutes)? };
    Some(sign * (part(hours)? * 3_600 + minutes * 60))
}

/// Days since 1970-01-01. Source: Howard Hinnant, *chrono-Compatible Low-Level Date Algorithms*.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// A stretch as `FROM..TO`.
pub fn words(period: &Period) -> String {
    format!("{}..{}", format(period.start), format(period.end))
}

/// What is between, before and behind `periods`, which are in order.
pub fn outside(periods: &[Period]) -> Vec<Period> {
    let mut free = Vec::new();
    let mut from = Timestamp::default();
    for period in periods {
        if from < period.start {
            free.push(Period { start: from, end: period.start });
        }
        from = from.max(period.end);
    }
    free.push(Period { start: from, end: Timestamp::from_micros(u64::MAX) });
    free
}

/// A stretch of time, its end not included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Period {
    /// Its start.
    pub start: Timestamp,
    /// Its end.
    pub end: Timestamp,
}

impl Period {
    /// Whether a window of `length` from `start` lies in it.
    pub fn holds(&self, start: Timestamp, length: Micros) -> bool {
        start >= self.start && start + length <= self.end
    }

    /// Whether a window of `length` from `start` has a part of it.
    pub fn touches(&self, start: Timestamp, length: Micros) -> bool {
        start < self.end && start + length > self.start
    }

    /// How far `other` is from it; zero where they meet.
    pub fn distance(&self, other: &Self) -> Micros {
        let gap = |from: Timestamp, to: Timestamp| to.since(from).unwrap_or_default();
        gap(self.end, other.start).max(gap(other.end, self.start))
    }
}

impl FromStr for Period {
    type Err = InvalidTime;

    /// `FROM..TO`.
    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        let (start, end) = text.split_once("..").ok_or_else(|| InvalidTime(text.to_owned()))?;
        let period = Self { start: parse(start)?, end: parse(end)? };
        if period.start < period.end { Ok(period) } else { Err(InvalidTime(text.to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_world_writes_them() {
        let at = Timestamp::from_micros(1_661_140_434_000_000);
        for text in [
            "2022-08-22T03:53:54Z",
            "2022-08-22 05:53:54+02:00",
            "2022-08-22T05:53:54+0200",
            "2022-08-22T05:53:54+02",
            "2022-08-21T23:53:54.000-04:00",
            "2022-08-22T03:53:54",
            "2022-08-22 03:53:54 UTC",
            "1661140434",
            "1661140434.0",
            "1661140434000",
            "1661140434000000000",
        ] {
            assert_eq!(parse(text), Ok(at), "{text}");
        }
        assert_eq!(parse("2022-08-22T03:53:54.25Z").map(Timestamp::as_micros), Ok(1_661_140_434_250_000));
        assert_eq!(format(at), "2022-08-22T03:53:54Z");
        assert_eq!(format(parse("2024-02-29T23:59:59Z").expect("a leap day")), "2024-02-29T23:59:59Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "now", "2022-13-01T00:00:00Z", "2022-08-22T03:53:54+", "-5", "1e300", "2022-08-22T25:00:00Z"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!("2022-08-22T04:00:00Z..2022-08-22T03:00:00Z".parse::<Period>().is_err());
    }

    #[test]
    fn periods_hold_touch_and_lie_apart() {
        let period: Period = "100..200".parse().expect("valid");
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        let five = Micros::from_secs(5);
        assert!(period.holds(at(195), five) && !period.holds(at(196), five) && period.touches(at(199), five));
        assert_eq!(period.distance(&"230..240".parse().expect("valid")), Micros::from_secs(30));
    }
}
