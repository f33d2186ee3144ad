//! Puts windows of nodes whose clock is off onto the fleet's time line.
//!
//! Clocks of two machines are never compared. What is compared is how long after a window's nominal end it arrives
//! here: agents send a window as soon as it closes, so this lag is the same small number on all nodes whose clocks are
//! right. A spool that is drained after an outage arrives in a burst and says nothing about its node's clock.

use std::collections::BTreeMap;

use sage_common::{Micros, NodeId, NodeWindow, Timestamp};

/// A start this many windows off the others' is a wrong clock: fewer can be a slow link, and can still be merged late.
const TOLERANCE_WINDOWS: i64 = 3;

/// How late each node's windows arrive, and by how much they are shifted.
#[derive(Clone, Debug)]
pub struct FleetClock {
    length: Micros,
    nominal_lag: i64,
    nodes: BTreeMap<NodeId, NodeClock>,
}

#[derive(Clone, Copy, Debug, Default)]
struct NodeClock {
    last_arrival: Option<Timestamp>,
    lag: Option<i64>,
    /// A shift that one live window asked for; the next one confirms it.
    candidate: Option<i64>,
    /// Whole windows added to every start of this node.
    shift: i64,
}

impl FleetClock {
    /// For windows of `length` that are expected about `lateness` after their end.
    pub fn new(length: Micros, lateness: Micros) -> Self {
        Self { length: length.max(Micros::new(1)), nominal_lag: signed(lateness.get()), nodes: BTreeMap::new() }
    }

    /// The start of `window`, which arrives at `now`, on the fleet's time line.
    pub fn place(&mut self, window: &NodeWindow, now: Timestamp) -> Timestamp {
        let length = signed(self.length.get());
        let lag = signed(now.as_micros()) - signed((window.start + window.length).as_micros());
        let off = div_round(lag.saturating_sub(self.reference(&window.key.node)), length);
        let half = Micros::new(self.length.get() / 2);
        let node = self.nodes.entry(window.key.node.clone()).or_default();
        let is_live = node.last_arrival.is_none_or(|last| now.since(last).is_some_and(|gap| gap >= half));
        node.last_arrival = Some(now);
        if is_live {
            node.lag = Some(lag);
            node.judge(off);
        } else {
            node.candidate = None;
        }
        shifted(window.start, node.shift.saturating_mul(length))
    }

    /// Nodes whose windows are shifted, with the shift in whole windows.
    pub fn shifted(&self) -> impl Iterator<Item = (&NodeId, i64)> {
        self.nodes.iter().filter(|(_, node)| node.shift != 0).map(|(id, node)| (id, node.shift))
    }

    /// Forgets nodes that `is_known` does not know.
    pub fn retain(&mut self, is_known: impl Fn(&NodeId) -> bool) {
        self.nodes.retain(|id, _| is_known(id));
    }

    /// The lag of a node whose clock is right, as the others of them tell it: the median of the others, unless there
    /// is only one and it disagrees with this machine; then this machine decides.
    fn reference(&self, node: &NodeId) -> i64 {
        let mut lags: Vec<i64> =
            self.nodes.iter().filter(|(id, _)| *id != node).filter_map(|(_, other)| other.lag).collect();
        lags.sort_unstable();
        let tolerance = signed(self.length.get()).saturating_mul(TOLERANCE_WINDOWS);
        match lags.get(lags.len().saturating_sub(1) / 2) {
            Some(median) if lags.len() > 1 || (median - self.nominal_lag).abs() <= tolerance => *median,
            _ => self.nominal_lag,
        }
    }
}

impl NodeClock {
    fn judge(&mut self, off: i64) {
        if (off - self.shift).abs() <= TOLERANCE_WINDOWS {
            self.candidate = None;
            return;
        }
        // A window cannot arrive before it has ended, so one from the future needs no second one.
        let is_confirmed = off < -TOLERANCE_WINDOWS || self.candidate.is_some_and(|first| (first - off).abs() <= 1);
        if is_confirmed || off.abs() <= TOLERANCE_WINDOWS {
            self.shift = if off.abs() <= TOLERANCE_WINDOWS { 0 } else { off };
            self.candidate = None;
        } else {
            self.candidate = Some(off);
        }
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn div_round(value: i64, by: i64) -> i64 {
    value.saturating_add(by / 2).div_euclid(by)
}

fn shifted(start: Timestamp, by: i64) -> Timestamp {
    let by_abs = Micros::new(by.unsigned_abs());
    if by < 0 { start - by_abs } else { start + by_abs }
}
