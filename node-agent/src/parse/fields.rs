//! What the attributes of a span and its resource mean, whatever format they came in.
//!
//! Old and new OpenTelemetry names are accepted; the new one wins where both are given, and the last where one is given
//! twice.

use std::borrow::Cow;

use sage_common::{InstanceId, Micros, OperationId, PeerHint, ServiceId, Side, Span, SpanId, Timestamp, TraceHash};
use xxhash_rust::xxh3::xxh3_64;

use super::{recent::Recent, tracestate};

/// Attributes read per span and per resource; further ones are stepped over and counted. The limit of OpenTelemetry's
/// own SDKs.
pub const ATTRIBUTES_MAX: usize = 128;

/// Longest believable span. A clock set forward during a request makes longer ones.
pub const DURATION_MAX: Micros = Micros::from_secs(3600);

/// The name that OpenTelemetry's SDKs give to a service without one, or its beginning.
const NAMELESS: &str = "unknown_service";

/// What a decoder came across.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Spans handed out.
    pub spans: u64,
    /// Spans left out because an id was zero or of a wrong length.
    pub invalid_ids: u64,
    /// Spans that end before they start: their duration became zero.
    pub reversed: u64,
    /// Spans longer than [`DURATION_MAX`]: cut to it.
    pub clamped: u64,
    /// Attributes stepped over because of [`ATTRIBUTES_MAX`].
    pub attributes_skipped: u64,
}

/// An attribute's value, as far as anything here needs it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    Int(i64),
    Bool(bool),
    Other,
}

/// A value that may be given under several names of different standing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Slot<'a> {
    text: Option<Cow<'a, str>>,
    rank: u8,
}

impl<'a> Slot<'a> {
    fn set(&mut self, text: Cow<'a, str>, rank: u8) {
        if !text.is_empty() && (self.text.is_none() || rank <= self.rank) {
            *self = Self { text: Some(text), rank };
        }
    }

    pub fn get(&self) -> Option<&str> {
        self.text.as_deref()
    }
}

/// Attributes of a span that name its operation and its peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SpanFields<'a> {
    rpc_method: Slot<'a>,
    rpc_service: Slot<'a>,
    http_method: Slot<'a>,
    http_route: Slot<'a>,
    destination: Slot<'a>,
    peer_service: Slot<'a>,
    db_system: Slot<'a>,
    server_address: Slot<'a>,
}

impl<'a> SpanFields<'a> {
    pub fn set(&mut self, key: &str, value: Value<'a>) {
        let Value::Text(text) = value else { return };
        let (slot, rank) = match key {
            "rpc.method" => (&mut self.rpc_method, 0),
            "rpc.service" => (&mut self.rpc_service, 0),
            "http.request.method" => (&mut self.http_method, 0),
            "http.method" => (&mut self.http_method, 1),
            "http.route" => (&mut self.http_route, 0),
            "url.template" => (&mut self.http_route, 1),
            "messaging.destination.name" => (&mut self.destination, 0),
            "messaging.destination" => (&mut self.destination, 1),
            "service.peer.name" => (&mut self.peer_service, 0),
            "peer.service" => (&mut self.peer_service, 1),
            "db.system.name" => (&mut self.db_system, 0),
            "db.system" => (&mut self.db_system, 1),
            "server.address" => (&mut self.server_address, 0),
            "net.peer.name" => (&mut self.server_address, 1),
            _ => return,
        };
        slot.set(text, rank);
    }

    fn operation<'b>(&'b self, name: &'b str) -> Cow<'b, str> {
        if let Some(method) = self.rpc_method.get() {
            return match self.rpc_service.get() {
                Some(service) if !method.contains('/') => format!("{service}/{method}").into(),
                _ => method.into(),
            };
        }
        match (self.http_method.get(), self.http_route.get()) {
            (Some(method), Some(route)) => format!("{method} {route}").into(),
            (None, Some(route)) => route.into(),
            (_, None) => self.destination.get().unwrap_or(name).into(),
        }
    }

    fn peer(&self, side: Side, names: &mut Recent<ServiceId>) -> Option<PeerHint> {
        if !matches!(side, Side::Client | Side::Producer) {
            return None;
        }
        if let Some(service) = self.peer_service.get() {
            return Some(PeerHint::Service(names.get(service)));
        }
        let address = self.db_system.get().or(self.destination.get()).or(self.server_address.get())?;
        Some(PeerHint::Address(names.get(address)))
    }
}

/// Attributes of a resource that name the service and the replica.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ResourceFields<'a> {
    /// `service.name`, else what the platform calls it.
    pub service: Slot<'a>,
    container: Option<Cow<'a, str>>,
    instance: Option<Cow<'a, str>>,
    /// The machine, which only recordings need: an agent's spans are of its own.
    pub host: Slot<'a>,
    pid: Option<u32>,
}

impl<'a> ResourceFields<'a> {
    pub fn set(&mut self, key: &str, value: Value<'a>) {
        match (key, value) {
            ("process.pid", Value::Int(pid)) => self.pid = u32::try_from(pid).ok().filter(|pid| *pid > 0),
            ("process.pid", Value::Text(pid)) => self.pid = pid.parse().ok().filter(|pid| *pid > 0),
            (_, Value::Text(text)) if !text.is_empty() => match key {
                // The SDKs' own name for a service without one says less than the platform's.
                "service.name" => {
                    let rank = if text.starts_with(NAMELESS) { 9 } else { 0 };
                    self.service.set(text, rank);
                }
                "k8s.deployment.name" => self.service.set(text, 1),
                "k8s.statefulset.name" => self.service.set(text, 2),
                "k8s.daemonset.name" => self.service.set(text, 3),
                "k8s.container.name" => self.service.set(text, 4),
                "container.id" => self.container = Some(text),
                "service.instance.id" => self.instance = Some(text),
                "host.name" => self.host.set(text, 0),
                "k8s.node.name" => self.host.set(text, 1),
                _ => {}
            },
            _ => {}
        }
    }
}

/// Who reported the spans that follow.
#[derive(Clone, Debug)]
struct Reporter {
    service: ServiceId,
    instance: Option<InstanceId>,
    pid: Option<u32>,
}

impl Reporter {
    fn of(fields: &ResourceFields<'_>) -> Self {
        let named = fields.container.as_deref().or(fields.instance.as_deref()).map(InstanceId::sanitized);
        Self {
            service: ServiceId::sanitized(fields.service.get().unwrap_or(NAMELESS)),
            instance: named.or_else(|| fields.pid.map(|pid| InstanceId::sanitized(&format!("pid:{pid}")))),
            pid: fields.pid,
        }
    }
}

/// A span as a decoder found it.
#[derive(Clone, Debug)]
pub(super) struct RawSpan<'a> {
    /// `None` when it is not of 16 bytes.
    pub trace: Option<[u8; 16]>,
    /// `None` when it is not of 8 bytes.
    pub id: Option<u64>,
    /// Zero for none; `None` when it is not of 8 bytes.
    pub parent: Option<u64>,
    pub name: Cow<'a, str>,
    pub side: Side,
    /// Whether `side` was said, which only recordings ask.
    pub has_kind: bool,
    pub start: Timestamp,
    pub end: Timestamp,
    pub tracestate: Cow<'a, str>,
    pub is_error: bool,
    pub fields: SpanFields<'a>,
}

impl Default for RawSpan<'_> {
    fn default() -> Self {
        Self {
            trace: None,
            id: None,
            parent: Some(0),
            name: Cow::Borrowed(""),
            side: Side::Internal,
            has_kind: false,
            start: Timestamp::default(),
            end: Timestamp::default(),
            tracestate: Cow::Borrowed(""),
            is_error: false,
            fields: SpanFields::default(),
        }
    }
}

/// Where a decoder puts what it finds.
pub(super) trait Visitor {
    /// Whether anybody looks at the attributes.
    const READS: bool;

    /// A new resource begins.
    fn resource(&mut self);
    /// A span of `resource`.
    fn span(&mut self, resource: &ResourceFields<'_>, span: &RawSpan<'_>);
    fn attributes_skipped(&mut self, count: u64);
}

/// Visits nothing: for the pass that only checks.
pub(super) struct Check;

impl Visitor for Check {
    const READS: bool = false;

    fn resource(&mut self) {}
    fn span(&mut self, _: &ResourceFields<'_>, _: &RawSpan<'_>) {}
    fn attributes_skipped(&mut self, _: u64) {}
}

/// Makes [`Span`]s and hands them to `sink`.
pub(super) struct Builder<F> {
    sink: F,
    reporter: Option<Reporter>, // made for the first span of a resource: most of a bomb's resources have none
    operations: Recent<OperationId>,
    peers: Recent<ServiceId>,
    pub tally: Tally,
}

impl<F: FnMut(Span)> Builder<F> {
    pub fn new(sink: F) -> Self {
        Self { sink, reporter: None, operations: Recent::default(), peers: Recent::default(), tally: Tally::default() }
    }

    /// The span; `None` when it cannot be one, which is counted.
    pub fn make(&mut self, resource: &ResourceFields<'_>, raw: &RawSpan<'_>) -> Option<Span> {
        let ids = (raw.trace.filter(|trace| *trace != [0; 16]), raw.id.filter(|id| *id != 0), raw.parent);
        let (Some(trace), Some(id), Some(parent)) = ids else {
            self.tally.invalid_ids += 1;
            return None;
        };
        let duration = self.duration(raw);
        let Reporter { service, instance, pid } = self.reporter.get_or_insert_with(|| Reporter::of(resource)).clone();
        self.tally.spans += 1;
        Some(Span {
            trace: TraceHash(xxh3_64(&trace)),
            id: SpanId(id),
            parent: SpanId(parent),
            service,
            instance,
            pid,
            operation: self.operations.get(&raw.fields.operation(&raw.name)),
            side: raw.side,
            peer: raw.fields.peer(raw.side, &mut self.peers),
            start: raw.start,
            duration,
            is_error: raw.is_error,
            weight: tracestate::weight(&raw.tracestate),
        })
    }

    fn duration(&mut self, raw: &RawSpan<'_>) -> Micros {
        let Some(duration) = raw.end.since(raw.start) else {
            self.tally.reversed += 1;
            return Micros::ZERO;
        };
        if duration > DURATION_MAX {
            self.tally.clamped += 1;
        }
        duration.min(DURATION_MAX)
    }
}

impl<F: FnMut(Span)> Visitor for Builder<F> {
    const READS: bool = true;

    fn resource(&mut self) {
        self.reporter = None;
    }

    fn span(&mut self, resource: &ResourceFields<'_>, raw: &RawSpan<'_>) {
        if let Some(span) = self.make(resource, raw) {
            (self.sink)(span);
        }
    }

    fn attributes_skipped(&mut self, count: u64) {
        self.tally.attributes_skipped += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &'static str)]) -> SpanFields<'static> {
        let mut fields = SpanFields::default();
        for (key, text) in pairs {
            fields.set(key, Value::Text((*text).into()));
        }
        fields
    }

    #[test]
    fn the_operation_is_method_then_route_then_destination_then_name() {
        let operation = |pairs: &[(&str, &'static str)]| fields(pairs).operation("span name").into_owned();
        assert_eq!(operation(&[]), "span name");
        assert_eq!(operation(&[("rpc.method", "geo.Geo/Nearby"), ("rpc.service", "x")]), "geo.Geo/Nearby");
        assert_eq!(operation(&[("rpc.method", "Nearby"), ("rpc.service", "geo.Geo")]), "geo.Geo/Nearby");
        assert_eq!(operation(&[("http.request.method", "GET"), ("http.route", "/hotels/{id}")]), "GET /hotels/{id}");
        assert_eq!(operation(&[("http.method", "GET"), ("http.route", "/old")]), "GET /old");
        assert_eq!(operation(&[("http.request.method", "GET")]), "span name", "a method alone names nothing");
        assert_eq!(operation(&[("messaging.destination.name", "orders")]), "orders");
    }

    #[test]
    fn a_service_without_a_name_has_its_platforms() {
        let service = |pairs: &[(&str, &'static str)]| {
            let mut fields = ResourceFields::default();
            pairs.iter().for_each(|(key, text)| fields.set(key, Value::Text((*text).into())));
            Reporter::of(&fields).service.to_string()
        };
        assert_eq!(service(&[]), "unknown_service");
        assert_eq!(service(&[("k8s.container.name", "server"), ("k8s.deployment.name", "cart")]), "cart");
        assert_eq!(service(&[("service.name", "unknown_service_java"), ("k8s.deployment.name", "cart")]), "cart");
        assert_eq!(service(&[("service.name", "shop"), ("k8s.deployment.name", "cart")]), "shop");
    }

    #[test]
    fn new_names_win_over_old_ones_in_any_order() {
        for pairs in [
            [("peer.service", "old"), ("service.peer.name", "new")],
            [("service.peer.name", "new"), ("peer.service", "old")],
        ] {
            let peer = fields(&pairs).peer(Side::Client, &mut Recent::default());
            assert_eq!(peer, Some(PeerHint::Service(ServiceId::sanitized("new"))));
        }
    }

    #[test]
    fn only_callers_have_peers() {
        let fields = fields(&[("db.system", "redis"), ("server.address", "10.0.0.1")]);
        let redis = PeerHint::Address(ServiceId::sanitized("redis"));
        assert_eq!(fields.peer(Side::Client, &mut Recent::default()), Some(redis.clone()));
        assert_eq!(fields.peer(Side::Producer, &mut Recent::default()), Some(redis));
        assert_eq!(fields.peer(Side::Server, &mut Recent::default()), None);
    }
}
