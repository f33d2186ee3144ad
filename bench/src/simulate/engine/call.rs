//! Calls between tiers: a connection from the pool, the way there and back, time-outs, further attempts.

use super::{
    super::{random::Key, slab::NONE},
    Engine, Happens,
    visit::Visit,
};
use crate::topology::count;

/// One attempt at one call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Tells it from others that had its number.
    pub serial: u64,
    /// The fibre that waits; `NONE`: nobody.
    pub fibre: u32,
    /// The visit that called.
    pub visit: u32,
    /// The call site.
    pub site: u32,
    /// The name of its draws.
    pub key: Key,
    /// Attempts before this one.
    pub attempt: u32,
    /// The replica that called.
    pub caller: u32,
    /// The replica that is called.
    pub callee: u32,
    /// The gate of its connection.
    pub gate: u32,
    /// When it was made.
    pub start: u64,
    /// The hash of the caller's trace.
    pub trace: u64,
    /// The caller's server span.
    pub parent: u64,
    /// How long the request was on its way, losses not counted, nanoseconds.
    pub path_ns: f64,
    /// How long the callee took, nanoseconds.
    pub served_ns: f64,
    /// Whether it has a connection.
    pub is_sent: bool,
    /// Whether the caller still waits.
    pub is_awaited: bool,
    /// Whether the callee failed.
    pub is_failed: bool,
    /// Whether the visit stays in mind because of it.
    pub is_detached: bool,
}

impl Call {
    /// The id of its client span.
    pub fn span_id(&self) -> u64 {
        self.key.child(CLIENT_SPAN).child(u64::from(self.attempt)).bits().max(1)
    }
}

/// Headers and arguments; each item adds some.
const REQUEST_BYTES: f64 = 400.0;
const ITEM_BYTES: f64 = 60.0;

impl Engine {
    /// `fibre` (or nobody) of `visit` makes a call.
    pub(super) fn call(&mut self, fibre: u32, visit: u32, site: u32, key: Key) {
        self.attempt(fibre, visit, site, key, 0, fibre == NONE);
    }

    fn attempt(&mut self, fibre: u32, visit: u32, site: u32, key: Key, attempt: u32, is_detached: bool) {
        let model = self.model.clone();
        let called = &model.sites[site as usize];
        let caller = self.visits[visit].replica;
        let Some(edge) = called.edge.map(|edge| &model.edges[edge]) else { return };
        let callees = &model.tiers[edge.callee];
        let ordinal = caller as usize - model.tiers[edge.caller].first;
        let spread = key.child(CALLEE).child(u64::from(attempt)).index(callees.replicas);
        self.sequence += 1;
        let serial = self.sequence;
        let gate = edge.first_gate + ordinal;
        let number = self.calls.insert(Call {
            serial,
            fibre,
            visit,
            site,
            key,
            attempt,
            caller,
            callee: (callees.first + spread) as u32,
            gate: gate as u32,
            start: self.now,
            trace: self.visits[visit].trace,
            parent: self.visits[visit].span_id(),
            path_ns: 0.0,
            served_ns: 0.0,
            is_sent: false,
            is_awaited: true,
            is_failed: false,
            is_detached,
        });
        let timeout = self.options.call_timeout.get().saturating_mul(1_000);
        self.deadlines.push_back((self.now + timeout, number, serial));
        if self.gates[gate].enter(number, self.now) {
            self.transmit(number);
        } else if edge.wait_ns < timeout {
            self.plan(self.now + edge.wait_ns, Happens::PoolTimeout(number, serial));
        }
    }

    /// The call has a connection.
    pub(super) fn transmit(&mut self, number: u32) {
        let call = &mut self.calls[number];
        call.is_sent = true;
        let Call { caller, callee, key, site, attempt, .. } = *call;
        let items = count(self.model.sites[site as usize].items, &mut key.child(ITEMS).rng());
        let bytes = REQUEST_BYTES + ITEM_BYTES * f64::from(items);
        let key = key.child(WAY).child(u64::from(attempt));
        let way = self.send(caller as usize, callee as usize, key, bytes);
        self.calls[number].path_ns = way.path_ns;
        self.plan_in(way.total_ns(), Happens::Arrives(number));
    }

    pub(super) fn call_arrives(&mut self, number: u32) {
        let call = self.calls[number];
        let is_traced = self.model.tiers[self.model.replicas[call.caller as usize].tier].is_traced;
        // A tier that is not instrumented passes no context on: whom it calls begins a trace of its own.
        let (trace, parent) = if is_traced { (call.trace, call.span_id()) } else { (call.key.child(LOST).bits(), 0) };
        let items = count(self.model.sites[call.site as usize].items, &mut call.key.child(ITEMS).rng());
        self.deliver(Visit {
            site: call.site,
            replica: call.callee,
            key: call.key.child(SERVED).child(u64::from(call.attempt)),
            trace,
            parent,
            call: number,
            start: None,
            arrived: self.now,
            own_ns: 0.0,
            items,
            open: 1,
            is_failed: false,
        });
    }

    pub(super) fn call_replied(&mut self, number: u32) {
        let call = self.calls[number];
        self.hear_answer(&call);
        if call.is_awaited {
            self.settle(number, call.is_failed);
        }
        self.calls.remove(number);
    }

    /// The caller stops waiting after the longest time that a call may take.
    pub(super) fn call_timed_out(&mut self, number: u32, serial: u64) {
        self.give_up(number, serial);
    }

    /// No connection became free in time.
    pub(super) fn pool_timed_out(&mut self, number: u32, serial: u64) {
        if !self.calls[number].is_sent {
            self.give_up(number, serial);
        }
    }

    fn give_up(&mut self, number: u32, serial: u64) {
        let call = self.calls[number];
        if call.serial != serial || !call.is_awaited {
            return;
        }
        if !call.is_sent {
            self.gates[call.gate as usize].give_up(number);
        }
        let has_more = call.attempt < self.options.retries;
        self.calls[number].is_awaited = false;
        self.trace_client(&call, true);
        self.free_connection(&call);
        if has_more {
            self.attempt(call.fibre, call.visit, call.site, call.key, call.attempt + 1, call.is_detached);
        } else {
            self.resume(&call, true);
        }
        if !call.is_sent {
            // Nobody will answer it.
            self.calls.remove(number);
        }
    }

    /// The caller has its answer.
    fn settle(&mut self, number: u32, is_failed: bool) {
        let call = &mut self.calls[number];
        call.is_awaited = false;
        let call = *call;
        self.trace_client(&call, is_failed);
        self.free_connection(&call);
        self.resume(&call, is_failed);
    }

    fn free_connection(&mut self, call: &Call) {
        if !call.is_sent {
            return;
        }
        if let Some((next, _)) = self.gates[call.gate as usize].leave() {
            self.transmit(next);
        }
    }

    fn resume(&mut self, call: &Call, is_failed: bool) {
        if call.is_detached {
            return self.close(call.visit);
        }
        self.fibres[call.fibre].is_failed |= is_failed;
        self.advance(call.fibre);
    }
}

const CLIENT_SPAN: u64 = 1;
const CALLEE: u64 = 2;
const WAY: u64 = 3;
const ITEMS: u64 = 4;
const SERVED: u64 = 5;
const LOST: u64 = 6;
