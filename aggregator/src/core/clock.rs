//! Puts windows of nodes whose clock is off onto the fleet's time line.
//!
//! Clocks of two machines are never compared. What is compared is how long after a window's nominal end it arrives
//! here: agents send a window as soon as it closes, so this lag is the same small number on all nodes whose clocks are
//! right. A spool that is drained after an outage arrives in a burst and says nothing about its node's clock.

use std::collections::BTreeMap;

use sage_common::{Micros, NodeId, NodeWindow, Timestamp};

/// A start this many windows ahead of the others' is a wrong clock: nothing arrives before it has ended.
const AHEAD_WINDOWS: i64 = 3;
/// So much behind, and at least as many windows as ahead, is a wrong clock too: less can be a slow or starved agent, whose
/// windows are merged or dropped as late ones and must not be given a wrong time.
const BEHIND: Micros = Micros::from_secs(30);

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
    /// A shift that one live window asked for, and its start; the next one confirms it.
    candidate: Option<(i64, Timestamp)>,
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
        let off = div_round(lag.saturating_sub(self.reference(&window.key.node, lag)), length);
        let off_here = div_round(lag.saturating_sub(self.nominal_lag), length);
        let half = Micros::new(self.length.get() / 2);
        let behind_max = signed(BEHIND.get().div_ceil(self.length.get())).max(AHEAD_WINDOWS);
        let node = self.nodes.entry(window.key.node.clone()).or_default();
        let gap = node.last_arrival.and_then(|last| now.since(last));
        let is_live = node.last_arrival.is_none() || gap.is_some_and(|gap| gap >= half);
        // A wrong clock is off by the same time at each window. A spool that is drained slowly, or in pieces, is not.
        let quarter = self.length.get() / 4;
        let is_in_step = gap.is_some_and(|gap| gap.get().abs_diff(self.length.get()) <= quarter);
        node.candidate = node.candidate.filter(|(_, start)| is_in_step && *start + self.length == window.start);
        node.last_arrival = Some(now);
        // A window cannot arrive before it has ended. One that does, by this machine's clock as well, needs no second
        // one, and may be part of a burst: the first after a jump follows the one that the jump cut short.
        let is_future = off.max(off_here) - node.shift < -AHEAD_WINDOWS;
        // While a spool is drained the lag shrinks towards what it is.
        node.lag = Some(if is_live { lag } else { node.lag.map_or(lag, |before| before.min(lag)) });
        if is_live || is_future {
            node.judge(off, window.start, behind_max, is_future);
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

    /// The lag of a node whose clock is right: the median of all, with what this machine expects where their number is
    /// even. Of two nodes that disagree this machine tells which is right.
    fn reference(&self, node: &NodeId, lag: i64) -> i64 {
        let others = self.nodes.iter().filter(|(id, _)| *id != node);
        let mut lags: Vec<i64> = others.filter_map(|(_, other)| other.lag).collect();
        let tolerance = signed(self.length.get()).saturating_mul(AHEAD_WINDOWS);
        match lags[..] {
            [] => return self.nominal_lag,
            [other] => return if (other - self.nominal_lag).abs() <= tolerance { other } else { self.nominal_lag },
            _ => lags.push(lag),
        }
        if lags.len().is_multiple_of(2) {
            lags.push(self.nominal_lag);
        }
        lags.sort_unstable();
        lags[lags.len() / 2]
    }
}

impl NodeClock {
    /// `off`: windows that the newest live window seems behind, where up to `behind_max` mean nothing.
    fn judge(&mut self, off: i64, start: Timestamp, behind_max: i64, is_future: bool) {
        let is_small = |off: i64| off >= -AHEAD_WINDOWS && off <= behind_max;
        if is_small(off - self.shift) {
            self.candidate = None;
            return;
        }
        let is_confirmed = is_future || self.candidate.is_some_and(|(first, _)| (first - off).abs() <= 1);
        if is_confirmed || is_small(off) {
            self.shift = if is_small(off) { 0 } else { off };
            self.candidate = None;
        } else {
            self.candidate = Some((off, start));
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

#[cfg(test)]
mod tests {
    use sage_common::{BootId, IntakeCounters, WindowKey};

    use super::*;

    const LENGTH: Micros = Micros::from_secs(10);
    const HOUR: u64 = 360;

    fn window(node: &str, start: Timestamp) -> NodeWindow {
        NodeWindow {
            key: WindowKey { node: NodeId::sanitized(node), boot: BootId(1), seq: 0 },
            start,
            length: LENGTH,
            latencies: Vec::new(),
            usage: Vec::new(),
            node_usage: Vec::new(),
            stubs: Vec::new(),
            skeletons: Vec::new(),
            entries: Vec::new(),
            offers: Vec::new(),
            intake: IntakeCounters::default(),
            stub_share: 1.0,
        }
    }

    fn at(window: u64) -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000).aligned(LENGTH) + LENGTH.saturating_mul(window)
    }

    /// Windows `from..to` of a node whose clock is `behind` windows behind; where they are put, in windows.
    fn live(clock: &mut FleetClock, node: &str, range: std::ops::Range<u64>, behind: i64) -> Vec<i64> {
        let place = |number: u64| {
            let start = shifted(at(number), -behind * signed(LENGTH.get()));
            let placed = clock.place(&window(node, start), at(number + 1) + Micros::from_secs(1));
            (signed(placed.as_micros()) - signed(at(0).as_micros())) / signed(LENGTH.get())
        };
        range.map(place).collect()
    }

    #[test]
    fn a_clock_behind_is_believed_from_the_second_window_on() {
        let mut clock = FleetClock::new(LENGTH, Micros::from_secs(2));
        assert_eq!(live(&mut clock, "a", 0..3, 0), [0, 1, 2]);
        assert_eq!(live(&mut clock, "b", 0..4, HOUR as i64), [-360, 1, 2, 3]);
        assert_eq!(clock.shifted().collect::<Vec<_>>(), [(&NodeId::sanitized("b"), 360)]);
        assert_eq!(live(&mut clock, "b", 4..7, 0), [4, 5, 6], "set right again");
        assert_eq!(clock.shifted().count(), 0);
    }

    #[test]
    fn a_window_from_the_future_is_put_right_at_once() {
        let mut clock = FleetClock::new(LENGTH, Micros::from_secs(2));
        assert_eq!(live(&mut clock, "b", 0..3, -(HOUR as i64)), [0, 1, 2]);
    }

    #[test]
    fn an_agent_that_lags_by_some_windows_keeps_its_starts() {
        let mut clock = FleetClock::new(Micros::from_secs(1), Micros::from_secs(2));
        for number in 0..20 {
            let start = at(0) + Micros::from_secs(number);
            let mut late = window("a", start);
            late.length = Micros::from_secs(1);
            assert_eq!(clock.place(&late, start + Micros::from_secs(20)), start);
        }
    }

    #[test]
    fn one_clock_of_three_that_jumps_ahead_in_the_middle_of_a_window_moves_nobody_else() {
        let mut clock = FleetClock::new(LENGTH, Micros::from_secs(2));
        for node in ["a", "b", "c"] {
            live(&mut clock, node, 0..3, 0);
        }
        // The jump ends a window early; the next one ends soon after it by the new clock.
        let soon = at(3) + Micros::from_secs(5);
        let hour = LENGTH.saturating_mul(HOUR);
        assert_eq!(clock.place(&window("b", at(3)), soon), at(3));
        assert_eq!(clock.place(&window("b", at(3) + hour), soon + Micros::from_secs(3)), at(3));
        for number in 3..8 {
            assert_eq!(live(&mut clock, "a", number..number + 1, 0), [number as i64]);
            assert_eq!(live(&mut clock, "b", number..number + 1, -(HOUR as i64)), [number as i64]);
            assert_eq!(live(&mut clock, "c", number..number + 1, 0), [number as i64]);
        }
        assert_eq!(live(&mut clock, "b", 8..10, 0), [8, 9], "set right again");
    }

    #[test]
    fn after_an_outage_whoever_is_first_to_have_drained_its_spool_is_not_ahead() {
        let mut clock = FleetClock::new(LENGTH, Micros::from_secs(2));
        let now = at(HOUR);
        for node in ["a", "b", "c"] {
            assert_eq!(clock.place(&window(node, at(0)), now), at(0));
        }
        for number in 1..HOUR {
            assert_eq!(clock.place(&window("a", at(number)), now), at(number));
        }
        assert_eq!(live(&mut clock, "a", HOUR..HOUR + 1, 0), [HOUR as i64]);
        for node in ["b", "c"] {
            for number in 1..HOUR {
                assert_eq!(clock.place(&window(node, at(number)), at(HOUR + 1)), at(number));
            }
        }
        for node in ["a", "b", "c"] {
            assert_eq!(live(&mut clock, node, HOUR + 2..HOUR + 4, 0), [HOUR as i64 + 2, HOUR as i64 + 3]);
        }
        assert_eq!(clock.shifted().count(), 0);
    }

    #[test]
    fn a_spool_drained_slowly_or_in_pieces_keeps_its_starts() {
        let mut clock = FleetClock::new(LENGTH, Micros::from_secs(2));
        for node in ["a", "b", "c"] {
            live(&mut clock, node, 0..3, 0);
        }
        // Two pieces with the same lag, a minute apart; then one window every six seconds.
        assert_eq!(clock.place(&window("a", at(3)), at(13)), at(3));
        assert_eq!(clock.place(&window("a", at(9)), at(19)), at(9));
        for number in 0..30 {
            let now = at(40) + Micros::from_secs(6 * number);
            assert_eq!(clock.place(&window("a", at(10 + number)), now), at(10 + number), "{number}");
        }
    }

    #[test]
    fn a_spool_drained_in_a_burst_keeps_its_starts() {
        let mut clock = FleetClock::new(LENGTH, Micros::from_secs(2));
        live(&mut clock, "a", 0..3, 0);
        let now = at(100);
        for number in 3..99 {
            assert_eq!(clock.place(&window("a", at(number)), now), at(number));
        }
        assert_eq!(clock.place(&window("a", at(100)), at(101)), at(100));
        assert_eq!(clock.shifted().count(), 0);
    }

    #[test]
    fn when_all_others_agree_it_is_this_machines_clock_that_is_off() {
        let mut clock = FleetClock::new(LENGTH, Micros::from_secs(2));
        for node in ["a", "b", "c"] {
            live(&mut clock, node, 0..2, HOUR as i64);
        }
        for node in ["a", "b", "c"] {
            let behind = live(&mut clock, node, 2..8, HOUR as i64);
            assert!(behind.is_sorted() && behind.len() == 6, "{behind:?}");
        }
        let placed: Vec<i64> = ["a", "b", "c"].map(|node| live(&mut clock, node, 8..9, HOUR as i64)[0]).to_vec();
        assert!(placed.iter().all(|one| *one == placed[0]), "together all the same: {placed:?}");
    }
}
