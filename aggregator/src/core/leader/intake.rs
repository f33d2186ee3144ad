//! Windows: in, checked, placed on the fleet's time line, proposed in batches, acknowledged once committed, closed.

use std::collections::BTreeMap;

use sage_common::{BootId, Micros, NodeId, NodeWindow, Timestamp};

use super::{Leader, Output};
use crate::core::{
    assembly::{self, PENDING_MAX},
    oracle::Oracle,
    proposal::Proposal,
};

/// How long a window waits for others to share a log entry, which costs one write to disk.
const BATCH_DELAY: Micros = Micros::from_millis(50);
/// Windows of one entry: at 1 MiB at most each, an entry stays far under the record limit.
const BATCH_MAX: usize = 16;
/// After taking over, agents need this long to find the new leader; until then nobody counts as late.
const TAKEOVER_GRACE: Micros = Micros::from_secs(5);

/// When the windows of a waiting interval arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrivals {
    first: Timestamp,
    /// When more than half of the live nodes had delivered.
    most: Option<Timestamp>,
}

impl<O: Oracle> Leader<O> {
    pub(super) fn take_window(&mut self, now: Timestamp, mut window: NodeWindow) {
        self.counters.windows += 1;
        if self.term.is_none() {
            return;
        }
        if let Err(refused) = assembly::validate(&window, self.rules.window) {
            self.counters.refused += 1;
            self.last_refusal = Some((window.key.node.clone(), refused.to_string()));
            self.acknowledge(&[window]);
            return;
        }
        if self.state.is_settled(&window.key) {
            self.counters.repeated += 1;
            self.acknowledge(&[window]);
            return;
        }
        if !self.in_flight.insert(window.key.clone()) {
            self.counters.repeated += 1;
            return;
        }
        let start = self.clock.place(&window, now);
        self.counters.shifted += u64::from(start != window.start);
        window.start = start;
        self.inbox.push(window);
        self.inbox_due.get_or_insert(now + BATCH_DELAY);
        self.flush_inbox(now, self.inbox.len() >= BATCH_MAX);
    }

    pub(super) fn flush_inbox(&mut self, now: Timestamp, is_full: bool) {
        if is_full || self.inbox_due.is_some_and(|due| due <= now) {
            self.inbox_due = None;
            let windows = std::mem::take(&mut self.inbox);
            self.propose(Proposal::Windows { at: now, windows });
        }
    }

    /// Tells the agents of `windows` that they need not be sent again.
    pub(super) fn acknowledge(&mut self, windows: &[NodeWindow]) {
        let mut sequences: BTreeMap<(NodeId, BootId), Vec<u64>> = BTreeMap::new();
        for window in windows {
            self.in_flight.remove(&window.key);
            sequences.entry((window.key.node.clone(), window.key.boot)).or_default().push(window.key.seq);
        }
        if self.term.is_some() {
            let outputs =
                sequences.into_iter().map(|((node, boot), sequences)| Output::Acknowledge { node, boot, sequences });
            self.outputs.extend(outputs);
        }
    }

    pub(super) fn note_arrivals(&mut self, now: Timestamp) {
        let live = self.state.live_nodes();
        for (start, delivered) in self.state.assembly().pending() {
            let arrivals = self.arrivals.entry(start).or_insert(Arrivals { first: now, most: None });
            if 2 * delivered.len() > live.len() {
                arrivals.most.get_or_insert(now);
            }
        }
    }

    /// When the oldest waiting interval is closed without the nodes that are missing. One node whose clock is seconds
    /// ahead must not have it closed before the others have come, so time runs from the arrival of most of them.
    pub(super) fn close_deadline(&self) -> Option<Timestamp> {
        let (start, _) = self.state.assembly().pending().next()?;
        let arrived = match self.arrivals.get(&start) {
            Some(Arrivals { most: Some(most), .. }) => *most,
            Some(Arrivals { first, most: None }) => *first + self.rules.window,
            None => self.led_since,
        };
        Some((arrived + self.rules.lateness).max(self.led_since + TAKEOVER_GRACE))
    }

    /// The oldest interval, when it is complete or has waited long enough.
    pub(super) fn closable(&self, now: Timestamp) -> Option<Proposal> {
        let assembly = self.state.assembly();
        let (start, delivered) = assembly.pending().next()?;
        let is_complete = self.state.live_nodes().is_subset(&delivered);
        let is_due = self.close_deadline().is_some_and(|deadline| deadline <= now);
        let arrived = self.arrivals.get(&start).map_or(now, |arrivals| arrivals.first);
        (is_complete || is_due || assembly.pending_len() > PENDING_MAX).then_some(Proposal::Close {
            start,
            arrived,
            at: now,
        })
    }
}
