//! Node windows waiting to become one cluster window, and what is let in at all.

use std::collections::{BTreeMap, BTreeSet};

use sage_common::{Micros, NodeId, NodeWindow, Timestamp, WindowKey};
use sage_protocol::{InvalidWindow, check_window};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Closed intervals whose node windows are kept, so that a late one can still be merged.
pub const LATE_MAX: usize = 3;
/// Intervals that may wait. Beyond it the oldest is closed at once: a fleet that comes back after an outage sends its
/// spools interval by interval, and the rest waits in the agents' spools.
pub const PENDING_MAX: usize = 128;

/// Why a window is refused for good. It is acknowledged all the same, because sending it again would not help.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum RefusedWindow {
    /// NaN, infinite, out of range, out of order, or too much of something.
    #[error(transparent)]
    Invalid(#[from] InvalidWindow),
    /// The agent uses another window length.
    #[error("windows of {found} where the fleet uses {want}")]
    Length {
        /// The agent's.
        found: Micros,
        /// Ours.
        want: Micros,
    },
}

/// Whether `window` can enter the model, and is of the fleet's `length`.
///
/// # Errors
///
/// [`RefusedWindow`]: the first thing that is wrong.
pub fn validate(window: &NodeWindow, length: Micros) -> Result<(), RefusedWindow> {
    if window.length != length {
        return Err(RefusedWindow::Length { found: window.length, want: length });
    }
    Ok(check_window(window)?)
}

/// What became of a window that reached the assembly.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Arrival {
    /// Waits for its interval to be closed.
    Pending,
    /// Its interval is closed; merged into it, so that interval must be observed anew.
    Merged,
    /// Its interval is closed for too long.
    Late,
}

type Interval = BTreeMap<WindowKey, NodeWindow>;

/// Intervals that wait, and the last closed ones.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Assembly {
    pending: BTreeMap<Timestamp, Interval>,
    closed: BTreeMap<Timestamp, Interval>,
    /// Nothing at or before this start may wait any more.
    closed_until: Option<Timestamp>,
}

impl Assembly {
    /// Puts `window` where it belongs. The caller has checked that it is new.
    pub fn insert(&mut self, window: NodeWindow) -> Arrival {
        let start = window.start;
        if self.closed_until.is_none_or(|until| start > until) {
            self.pending.entry(start).or_default().insert(window.key.clone(), window);
            return Arrival::Pending;
        }
        match self.closed.get_mut(&start) {
            Some(interval) => {
                interval.insert(window.key.clone(), window);
                Arrival::Merged
            }
            None => Arrival::Late,
        }
    }

    /// Intervals that wait, oldest first, with the nodes that have delivered.
    pub fn pending(&self) -> impl Iterator<Item = (Timestamp, BTreeSet<&NodeId>)> {
        self.pending.iter().map(|(start, interval)| (*start, interval.keys().map(|key| &key.node).collect()))
    }

    /// How many intervals wait.
    pub fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Closes the interval at `start`; `false` when nothing of it waits.
    pub fn close(&mut self, start: Timestamp) -> bool {
        let Some(interval) = self.pending.remove(&start) else { return false };
        self.closed.insert(start, interval);
        self.closed_until = self.closed_until.max(Some(start));
        while self.closed.len() > LATE_MAX {
            self.closed.pop_first();
        }
        true
    }

    /// The node windows of a closed interval that is still kept, in key order.
    pub fn closed(&self, start: Timestamp) -> Vec<&NodeWindow> {
        self.closed.get(&start).map(|interval| interval.values().collect()).unwrap_or_default()
    }

    /// Start of the newest closed interval.
    pub fn closed_until(&self) -> Option<Timestamp> {
        self.closed_until
    }

    /// Forgets what was closed, because the fleet's time line starts again before it.
    pub fn restart_time(&mut self) {
        self.closed_until = None;
        self.closed.clear();
    }
}
