#![expect(clippy::disallowed_methods, reason = "a driver owns the clock")]
//! The clock of one life: one reading of the wall clock, carried on by the monotonic one, so that it never goes back and
//! no jump of the wall clock reaches a decision.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sage_common::{Micros, Timestamp};
use tokio::time::Instant;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_at: Timestamp,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), started_at: Timestamp::from_micros(Micros::from(since_epoch).get()) }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        self.started_at + self.uptime()
    }

    /// Time since it started.
    pub fn uptime(&self) -> Micros {
        self.started.elapsed().into()
    }

    /// Returns at `deadline`, or never when there is none.
    pub async fn sleep_until(&self, deadline: Option<Timestamp>) {
        match deadline {
            Some(at) => {
                let after = at.since(self.started_at).unwrap_or_default();
                tokio::time::sleep_until(self.started + Duration::from(after)).await;
            }
            None => std::future::pending().await,
        }
    }
}
