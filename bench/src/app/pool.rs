//! Connections of one caller to its callees: how many may be in use, how long to wait for one, which are kept.
//!
//! The limit ([`Gate`]) is one per process and edge. The kept connections ([`Idle`]) are one list per runtime, because a
//! socket belongs to the event loop it was registered with.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::gate::{Gate, UNLIMITED};
use crate::topology::PoolSpec;

/// What a caller knows of one callee.
#[derive(Debug)]
pub struct Edge {
    /// The callee's place in `Topology::services`.
    pub callee: usize,
    /// Where it listens.
    pub address: SocketAddr,
    /// Lets callers through while connections are free.
    pub gate: Arc<Gate>,
    /// The gate's limit without a fault.
    pub limit: usize,
    /// Longest wait for a free connection.
    pub wait: Duration,
    /// How long an idle connection is kept; `None`: for ever.
    pub keepalive: Option<Duration>,
    /// Connections opened at start and not closed for being idle.
    pub idle_min: usize,
    /// Idle connections kept.
    pub idle_max: usize,
}

/// No call of the applications takes longer when healthy; after this it has failed.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

impl Edge {
    /// The edge that `spec` describes. Where callers do not wait (`blocking: false`), `max` limits what is kept only;
    /// one multiplexed connection is played by as many single ones as there are calls at once.
    pub fn new(spec: &PoolSpec, callee: usize, address: SocketAddr) -> Self {
        let max = spec.max as usize;
        let is_multiplexed = !spec.blocking && max == 1;
        let limit = if spec.blocking { max } else { UNLIMITED };
        Self {
            callee,
            address,
            gate: Gate::new(limit),
            limit,
            wait: spec.timeout_ms.map_or(CALL_TIMEOUT, Duration::from_millis),
            keepalive: spec.keepalive_ms.map(Duration::from_millis),
            idle_min: spec.min as usize,
            idle_max: if is_multiplexed { MULTIPLEXED_IDLE_MAX } else { max },
        }
    }
}

/// Single connections kept in place of a multiplexed one: more calls at once than these are a flood.
const MULTIPLEXED_IDLE_MAX: usize = 128;

/// Connections nobody uses at the moment, the most recently used first.
#[derive(Debug)]
pub struct Idle<C> {
    kept: Mutex<Vec<(Instant, C)>>,
    keepalive: Option<Duration>,
    min: usize,
    max: usize,
}

impl<C> Idle<C> {
    /// An empty list for `edge`, one of `shares` such lists.
    pub fn new(edge: &Edge, shares: usize) -> Self {
        let share = |count: usize| count.div_ceil(shares.max(1));
        let (min, max) = (share(edge.idle_min), share(edge.idle_max).max(1));
        Self { kept: Mutex::new(Vec::new()), keepalive: edge.keepalive, min, max }
    }

    /// The most recently used one, if any; those idle for too long are closed on the way.
    pub fn take(&self, now: Instant) -> Option<C> {
        let mut kept = self.kept();
        if let Some(keepalive) = self.keepalive {
            // Oldest first: what lies before the first fresh one is stale.
            let stale = kept.iter().take_while(|(since, _)| now.saturating_duration_since(*since) > keepalive).count();
            let surplus = stale.min(kept.len().saturating_sub(self.min));
            kept.drain(..surplus);
        }
        kept.pop().map(|(_, connection)| connection)
    }

    /// Keeps `connection`, or closes it when enough are kept.
    pub fn put(&self, connection: C, now: Instant) {
        let mut kept = self.kept();
        if kept.len() < self.max {
            kept.push((now, connection));
        }
    }

    /// Closes all of them: the callee is not what it was.
    pub fn clear(&self) {
        self.kept().clear();
    }

    /// How many connections are to be opened before the first call.
    pub fn missing(&self) -> usize {
        self.min.saturating_sub(self.kept().len())
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, C)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an Instant has no other origin")]
mod tests {
    use super::*;

    fn idle(min: u32, max: u32) -> Idle<u32> {
        let spec = PoolSpec {
            from: "a".into(),
            to: "b".into(),
            protocol: "thrift".into(),
            min,
            max,
            timeout_ms: Some(100),
            keepalive_ms: Some(1_000),
            blocking: true,
            max_is: None,
            server_selection_timeout_ms: None,
            basis: String::new(),
        };
        Idle::new(&Edge::new(&spec, 0, ([127, 0, 0, 1], 1).into()), 1)
    }

    #[test]
    fn the_most_recently_used_connection_is_used_again_first() {
        let (idle, now) = (idle(0, 8), Instant::now());
        (1..=3).for_each(|connection| idle.put(connection, now));
        assert_eq!([idle.take(now), idle.take(now), idle.take(now), idle.take(now)], [Some(3), Some(2), Some(1), None]);
    }

    #[test]
    fn no_more_than_the_maximum_are_kept() {
        let (idle, now) = (idle(0, 2), Instant::now());
        (1..=3).for_each(|connection| idle.put(connection, now));
        assert_eq!(idle.kept().len(), 2);
    }

    #[test]
    fn connections_idle_for_too_long_are_closed_down_to_the_minimum() {
        let (idle, now) = (idle(1, 8), Instant::now());
        idle.put(1, now);
        idle.put(2, now);
        idle.put(3, now + Duration::from_millis(900));
        assert_eq!(idle.take(now + Duration::from_millis(1_500)), Some(3), "the only one that is fresh");
        assert!(idle.kept().is_empty());
        idle.put(4, now);
        assert_eq!(idle.take(now + Duration::from_secs(60)), Some(4), "the minimum stays open");
    }
}
