//! Spans of what happened, as the tiers' instrumentation would report them.

use sage_common::{Micros, OperationId, PeerHint, ServiceId, Side, Span, SpanId, TraceHash};

use super::{super::random::Key, Engine, call::Call, visit::Visit, wall};

/// A refusal takes the front end this long.
const REFUSAL: Micros = Micros::new(200);

/// Which span of a visit.
struct Named<'a> {
    replica: u32,
    trace: u64,
    id: u64,
    parent: u64,
    operation: &'a OperationId,
    side: Side,
    peer: Option<&'a PeerHint>,
    start: u64,
    duration: Micros,
    is_error: bool,
}

impl Engine {
    pub(super) fn trace_server(&mut self, visit: &Visit) {
        let duration = self.since(visit.start.unwrap_or(self.now));
        self.trace_visit(visit, duration, visit.is_failed);
    }

    pub(super) fn trace_refusal(&mut self, visit: &Visit) {
        self.trace_visit(visit, REFUSAL, true);
    }

    fn trace_visit(&mut self, visit: &Visit, duration: Micros, is_error: bool) {
        let is_root = visit.parent == 0 && visit.call == super::super::slab::NONE;
        if !(self.is_traced || is_root) {
            return;
        }
        let model = self.model.clone();
        self.emit(&Named {
            replica: visit.replica,
            trace: visit.trace,
            id: visit.span_id(),
            parent: visit.parent,
            operation: &model.sites[visit.site as usize].operation,
            side: Side::Server,
            peer: None,
            start: visit.start.unwrap_or(self.now),
            duration,
            is_error,
        });
    }

    pub(super) fn trace_client(&mut self, call: &Call, is_error: bool) {
        if !self.is_traced {
            return;
        }
        let model = self.model.clone();
        let site = &model.sites[call.site as usize];
        self.emit(&Named {
            replica: call.caller,
            trace: call.trace,
            id: call.span_id(),
            parent: call.parent,
            operation: &site.operation,
            side: Side::Client,
            peer: self.options.has_peer_names.then_some(&model.tiers[site.tier].peer),
            start: call.start,
            duration: self.since(call.start),
            is_error,
        });
    }

    fn emit(&mut self, named: &Named<'_>) {
        let replica = &self.model.replicas[named.replica as usize];
        let tier = &self.model.tiers[replica.tier];
        let is_sampled = Key::new(named.trace).uniform() < self.options.sampling;
        if !tier.is_traced || !is_sampled {
            return;
        }
        let service: ServiceId = tier.service.clone();
        let span = Span {
            trace: TraceHash(named.trace),
            id: SpanId(named.id),
            parent: SpanId(named.parent),
            service,
            instance: Some(replica.instance.clone()),
            pid: None,
            operation: named.operation.clone(),
            side: named.side,
            peer: named.peer.cloned(),
            start: wall(named.start),
            duration: named.duration,
            is_error: named.is_error,
            weight: (1.0 / self.options.sampling) as f32,
        };
        self.spans.push((replica.machine, span));
    }
}
