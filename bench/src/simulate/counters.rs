//! What one replica did in the running second.

/// Sums over one second, and what is remembered of those before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// CPU time used, nanoseconds.
    pub cpu_ns: f64,
    /// Time in which its threads were ready and had no core, nanoseconds.
    pub wait_ns: f64,
    /// Turns on a core.
    pub slices: u64,
    /// Disk operations finished.
    pub disk_operations: u64,
    /// Their time, waiting included, nanoseconds.
    pub disk_wait_ns: f64,
    /// Time that channels of the disk were busy, nanoseconds.
    pub disk_busy_ns: f64,
    /// Bytes sent, those sent again included.
    pub bytes_sent: f64,
    /// Bytes received.
    pub bytes_received: f64,
    /// Messages sent and received.
    pub messages: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Packets dropped by its link.
    pub drops: u64,
    round_trip_ns: f64,
    round_trips: u64,
    /// Connections to callees in use at the end of the second.
    pub outbound: u32,
    /// Connections of callers in use at the end of the second.
    pub inbound: u32,
    /// Connections that are open: those in use, and those that were and are kept for a while.
    open_outbound: f64,
    open_inbound: f64,
}

/// Of connections that are not used, this share is still open a second later: pools close them after about a minute.
const KEPT: f64 = 0.98;

impl Counters {
    /// A turn on a core: CPU used, and time lost to competitors and in the queue, nanoseconds.
    pub fn add_slice(&mut self, used_ns: f64, stolen_ns: f64, queued_ns: f64) {
        self.cpu_ns += used_ns;
        self.wait_ns += stolen_ns + queued_ns;
        self.slices += 1;
    }

    /// A measured round trip.
    pub fn add_round_trip(&mut self, ns: f64) {
        self.round_trip_ns += ns;
        self.round_trips += 1;
    }

    /// Mean round trip, milliseconds; `None` when nothing was measured.
    pub fn round_trip_ms(&self) -> Option<f64> {
        (self.round_trips > 0).then(|| self.round_trip_ns / self.round_trips as f64 / 1e6)
    }

    /// Open connections to callees.
    pub fn open_outbound(&self) -> f64 {
        self.open_outbound.max(f64::from(self.outbound))
    }

    /// Open connections of callers.
    pub fn open_inbound(&self) -> f64 {
        self.open_inbound.max(f64::from(self.inbound))
    }

    /// Begins the next second.
    pub fn next_second(&mut self) {
        *self = Self {
            open_outbound: self.open_outbound() * KEPT,
            open_inbound: self.open_inbound() * KEPT,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_kept_for_a_while_after_use() {
        let mut counters = Counters { outbound: 100, ..Counters::default() };
        counters.next_second();
        assert_eq!((counters.outbound, counters.open_outbound()), (0, 98.0));
        (0..120).for_each(|_| counters.next_second());
        assert!(counters.open_outbound() < 10.0);
    }

    #[test]
    fn no_round_trip_is_no_number() {
        let mut counters = Counters::default();
        assert_eq!(counters.round_trip_ms(), None);
        counters.add_round_trip(2e6);
        counters.add_round_trip(4e6);
        assert_eq!(counters.round_trip_ms(), Some(3.0));
    }
}
