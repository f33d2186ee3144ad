//! The calls a node has seen, and the guard that keeps their number bounded.
//!
//! A call is (service, side, operation, peer hint). Names that an application makes up without end (URLs with ids) end
//! in the service's `_OTHER`; names not seen for a while make room for new ones.

use std::collections::BTreeMap;

use sage_common::{OperationId, PeerHint, ServiceId, Side, Span};

/// Most services one node reports: ten times what a machine runs in practice. Spans of further ones are refused.
pub const SERVICES_MAX: usize = 256;

/// A service may take this part of all series, so that one that misbehaves does not push its neighbours out.
const SERVICE_SHARE: usize = 4;

/// Fewest series that a service may have, however small the whole is.
const SERVICE_SERIES_MIN: usize = 8;

/// Windows without a span after which a call gives its place away. More than any span waits for its parent.
const IDLE_WINDOWS: u64 = 128;

/// Handle of one [`Call`]; stays valid while spans of it are pending.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct CallId(u32);

/// Handle of one service; see [`CallId`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct ServiceIndex(u16);

/// One named call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub service: ServiceId,
    pub index: ServiceIndex,
    pub name: CallName,
    last_seen: u64,
}

impl Call {
    /// Bytes of its names on the wire.
    pub fn name_bytes(&self) -> usize {
        let peer = match &self.name.peer {
            Some(PeerHint::Service(name) | PeerHint::Address(name)) => name.as_str().len(),
            None => 0,
        };
        self.service.as_str().len() + self.name.operation.as_str().len() + peer
    }
}

/// What tells the calls of one service apart.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct CallName {
    pub side: Side,
    pub operation: OperationId,
    pub peer: Option<PeerHint>,
}

/// All calls of the node.
#[derive(Debug)]
pub(super) struct Registry {
    series_max: usize,
    series: usize,
    services: BTreeMap<ServiceId, Service>,
    calls: Vec<Option<Call>>,
}

#[derive(Debug)]
struct Service {
    index: ServiceIndex,
    series: usize,
    calls: BTreeMap<CallName, CallId>,
}

/// A call found, and whether the guard had to hide its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Found {
    pub call: CallId,
    pub is_other: bool,
}

impl Registry {
    pub fn new(series_max: usize) -> Self {
        Self { series_max, series: 0, services: BTreeMap::new(), calls: Vec::new() }
    }

    /// The call of `span`, seen in window `seq`. `None` when the node has too many services already.
    pub fn find(&mut self, span: &Span, seq: u64) -> Option<Found> {
        let index = self.service(&span.service)?;
        let name = CallName::of(span);
        if let Some(call) = self.known(&span.service, &name, seq) {
            return Some(Found { call, is_other: false });
        }
        let cost = name.cost();
        let own_max = (self.series_max / SERVICE_SHARE).max(SERVICE_SERIES_MIN);
        let own = self.services.get(&span.service).map_or(0, |service| service.series);
        if cost == 0 || (self.series + cost <= self.series_max && own + cost <= own_max) {
            return Some(Found { call: self.add(&span.service, index, name, cost, seq), is_other: false });
        }
        // At most one per service and side: bounded without being counted.
        let other = CallName { side: name.side, operation: OperationId::other(), peer: None };
        let call =
            self.known(&span.service, &other, seq).unwrap_or_else(|| self.add(&span.service, index, other, 0, seq));
        Some(Found { call, is_other: true })
    }

    pub fn get(&self, call: CallId) -> Option<&Call> {
        self.calls.get(call.0 as usize)?.as_ref()
    }

    /// The service behind `call`.
    pub fn service_of(&self, call: CallId) -> Option<ServiceIndex> {
        self.get(call).map(|call| call.index)
    }

    /// Forgets the calls and services that have been silent for [`IDLE_WINDOWS`].
    pub fn expire(&mut self, seq: u64) {
        let Self { calls, services, series, .. } = self;
        services.retain(|_, service| {
            service.calls.retain(|name, id| {
                let slot = &mut calls[id.0 as usize];
                let idle = slot.as_ref().is_none_or(|call| call.last_seen + IDLE_WINDOWS < seq);
                if idle {
                    *slot = None;
                    let cost = name.cost();
                    service.series -= cost;
                    *series -= cost;
                }
                !idle
            });
            !service.calls.is_empty()
        });
    }

    fn known(&mut self, service: &ServiceId, name: &CallName, seq: u64) -> Option<CallId> {
        let id = *self.services.get(service)?.calls.get(name)?;
        if let Some(call) = self.calls[id.0 as usize].as_mut() {
            call.last_seen = seq;
        }
        Some(id)
    }

    fn service(&mut self, name: &ServiceId) -> Option<ServiceIndex> {
        if let Some(service) = self.services.get(name) {
            return Some(service.index);
        }
        if self.services.len() >= SERVICES_MAX {
            return None;
        }
        let taken: Vec<u16> = self.services.values().map(|service| service.index.0).collect();
        let free = (0..SERVICES_MAX as u16).find(|index| !taken.contains(index))?;
        let index = ServiceIndex(free);
        self.services.insert(name.clone(), Service { index, series: 0, calls: BTreeMap::new() });
        Some(index)
    }

    fn add(&mut self, service: &ServiceId, index: ServiceIndex, name: CallName, cost: usize, seq: u64) -> CallId {
        let call = Call { service: service.clone(), index, name: name.clone(), last_seen: seq };
        let slot = self.calls.iter().position(Option::is_none).unwrap_or_else(|| {
            self.calls.push(None);
            self.calls.len() - 1
        });
        self.calls[slot] = Some(call);
        let id = CallId(slot as u32);
        self.series += cost;
        if let Some(service) = self.services.get_mut(service) {
            service.series += cost;
            service.calls.insert(name, id);
        }
        id
    }
}

impl CallName {
    /// Spans inside a process only link others, so their names are not kept.
    fn of(span: &Span) -> Self {
        match span.side {
            Side::Internal => Self { side: Side::Internal, operation: OperationId::other(), peer: None },
            Side::Server => Self { side: Side::Server, operation: span.operation.clone(), peer: None },
            side => Self { side, operation: span.operation.clone(), peer: span.peer.clone() },
        }
    }

    /// How many latency series it is counted as: server spans make one of their own and one of their self time; the
    /// bucket of the hidden names is free.
    fn cost(&self) -> usize {
        match self.side {
            _ if self.operation == OperationId::other() && self.peer.is_none() => 0,
            Side::Server => 2,
            Side::Client | Side::Producer => 1,
            Side::Internal => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::span;
    use super::*;

    fn named(service: &str, operation: &str) -> Span {
        Span { operation: OperationId::sanitized(operation), service: ServiceId::sanitized(service), ..span(1, 1, 0) }
    }

    #[test]
    fn names_without_end_go_to_other_and_leave_room_for_neighbours() {
        let mut registry = Registry::new(100);
        let others = (0..1000)
            .filter_map(|n| registry.find(&named("noisy", &format!("GET /user/{n}")), 0))
            .filter(|found| found.is_other)
            .count();
        assert_eq!(others, 1000 - 12, "a quarter of 100 series, two per server operation");
        let neighbour = registry.find(&named("quiet", "GET /"), 0).expect("room");
        assert!(!neighbour.is_other);
        assert!(registry.calls.len() < 20);
    }

    #[test]
    fn silent_names_make_room_for_new_ones() {
        let mut registry = Registry::new(16);
        for n in 0..10 {
            registry.find(&named("a", &n.to_string()), 0);
        }
        assert!(registry.find(&named("a", "new"), 1).expect("service").is_other);
        registry.expire(IDLE_WINDOWS + 5);
        assert!(!registry.find(&named("a", "new"), IDLE_WINDOWS + 5).expect("service").is_other);
    }

    #[test]
    fn services_beyond_the_bound_are_refused() {
        let mut registry = Registry::new(10_000);
        let kept = (0..300).filter(|n| registry.find(&named(&format!("s{n}"), "op"), 0).is_some()).count();
        assert_eq!(kept, SERVICES_MAX);
    }
}
