//! One message on its way: the hop, what the faults of both ends add, what is lost and sent again, and what TCP makes of it.

use super::{
    super::{model::Model, random::Key},
    Engine,
    call::Call,
};

/// The first retransmission comes after this, and each further one after twice the time before.
///
/// # Source
///
/// Linux `TCP_RTO_MIN`; RFC 6298, 5.5.
const RETRANSMISSION_NS: f64 = 200e6;
/// A message is lost so many times in a row at most: RFC 6298 would go on for minutes.
const LOSSES_MAX: u64 = 6;
/// What waits on a slow link is dropped beyond this.
const LINK_QUEUE_MAX_NS: f64 = 100e6;
/// A peer sends its acknowledgement along with its answer, or after this time (Linux `TCP_DELACK_MIN`; RFC 1122, 4.2.3.2).
const DELAYED_ACK_NS: f64 = 40e6;

/// How long a message takes.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The hop, delays and queues, nanoseconds.
    pub path_ns: f64,
    /// Waiting for retransmissions, nanoseconds.
    pub lost_ns: f64,
}

impl Way {
    /// Both, nanoseconds.
    pub const fn total_ns(self) -> f64 {
        self.path_ns + self.lost_ns
    }
}

impl Engine {
    /// Sends a message of `bytes`.
    pub(super) fn send(&mut self, from: usize, to: usize, key: Key, bytes: f64) -> Way {
        let (mu, sigma) = self.model.hop;
        let hop = (mu + sigma * key.child(HOP).normal()).exp() * 1e3;
        let (queued, is_dropped) = self.queue_on_link(from, bytes);
        let path_ns = hop + self.replicas[from].effects.delay_ns + queued;
        let losses = self.losses(from, to, key) + u64::from(is_dropped);
        let lost_ns = RETRANSMISSION_NS * ((1_u64 << losses.min(LOSSES_MAX)) - 1) as f64;
        let sender = &mut self.replicas[from].counters;
        sender.bytes_sent += bytes * (1 + losses) as f64;
        sender.messages += 1;
        sender.retransmits += losses;
        self.replicas[to].counters.bytes_received += bytes;
        self.replicas[to].counters.messages += 1;
        Way { path_ns, lost_ns }
    }

    /// An answer is on its way: the caller acknowledges it without anything to wait for.
    pub(super) fn hear_acknowledgement(&mut self, from: usize, to: usize, way: Way) {
        let back = self.way_back(&self.model, to);
        self.replicas[from].counters.add_round_trip(way.path_ns + back);
    }

    /// The caller has its answer: its request's acknowledgement came along with it, or before it when it took long.
    pub(super) fn hear_answer(&mut self, call: &Call) {
        let back = self.way_back(&self.model, call.callee as usize);
        let late = call.served_ns.min(DELAYED_ACK_NS);
        self.replicas[call.caller as usize].counters.add_round_trip(call.path_ns + back + late);
    }

    /// The way of an acknowledgement, which waits on a slow link like everything else.
    fn way_back(&self, model: &Model, from: usize) -> f64 {
        let replica = &self.replicas[from];
        let queued = replica.link_free_at.saturating_sub(self.now) as f64;
        model.hop_mean_ns + replica.effects.delay_ns + queued
    }

    /// Time on a slow link, and whether the message found its queue full.
    fn queue_on_link(&mut self, from: usize, bytes: f64) -> (f64, bool) {
        let now = self.now;
        let replica = &mut self.replicas[from];
        let Some(ns_per_byte) = replica.effects.ns_per_byte else { return (0.0, false) };
        let free_at = replica.link_free_at.max(now);
        let wait = (free_at - now) as f64;
        if wait > LINK_QUEUE_MAX_NS {
            replica.counters.drops += 1;
            return (wait, true);
        }
        let elapsed = bytes * ns_per_byte;
        replica.link_free_at = free_at + elapsed as u64;
        (wait + elapsed, false)
    }

    /// How often the message is lost.
    fn losses(&mut self, from: usize, to: usize, key: Key) -> u64 {
        let (at_sender, at_receiver) = (self.replicas[from].effects.loss, self.replicas[to].effects.loss);
        let p = 1.0 - (1.0 - at_sender) * (1.0 - at_receiver);
        if p <= 0.0 {
            return 0;
        }
        let losses = (0..LOSSES_MAX).take_while(|attempt| key.child(LOSS).child(*attempt).uniform() < p).count() as u64;
        let lossy = if at_sender >= at_receiver { from } else { to };
        self.replicas[lossy].counters.drops += losses;
        losses
    }
}

const HOP: u64 = 1;
const LOSS: u64 = 2;
