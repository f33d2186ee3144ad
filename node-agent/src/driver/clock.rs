//! The two clocks of the agent.

#![expect(clippy::disallowed_methods, reason = "driver: this is where time comes from")]

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use sage_common::{Micros, Timestamp};

/// Time since the machine started, suspended time included: what leases and rates are measured by. Never jumps.
pub fn monotonic() -> Micros {
    let now = clock_gettime(ClockId::Boottime);
    let (secs, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    Micros::from_secs(secs) + Micros::new(nanos / 1_000)
}

/// The wall clock, which may be set to anything: only to align windows and to tell people the time.
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
