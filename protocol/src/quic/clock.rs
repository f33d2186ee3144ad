//! The clocks of this driver: a monotonic one for sessions, the wall clock for the validity of our own certificate.

#![expect(clippy::disallowed_methods, reason = "a driver owns its clocks")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sage_common::{Micros, Timestamp};
use tokio::time::{Instant, sleep_until};

/// Microseconds since this clock was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Micros {
        self.0.elapsed().into()
    }

    /// Returns at `deadline`, or never when there is none.
    pub(super) async fn sleep_until(self, deadline: Option<Micros>) {
        match deadline.and_then(|at| self.0.checked_add(Duration::from(at))) {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// The wall clock; the epoch itself if it stands before that.
pub(super) fn wall_clock() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(Micros::from(since_epoch).get())
}
