//! The walks against prost's full decoder: what both accept, both read the same.

use std::borrow::Cow;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value as Any},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status, span},
};
use proptest::prelude::*;
use prost::Message;
use sage_common::{InstanceId, Micros, OperationId, PeerHint, ServiceId, Side, Span, SpanId, Timestamp, TraceHash};
use serde_json::{Value as Json, json};

use super::*;

/// The reference: written from the documentation, over prost's structs.
fn reference(request: &ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource_spans in &request.resource_spans {
        let empty = Vec::new();
        let resource = resource_spans.resource.as_ref().map_or(&empty, |resource| &resource.attributes);
        let all = resource_spans.scope_spans.iter().flat_map(|scope_spans| &scope_spans.spans);
        spans.extend(all.filter_map(|span| reference_span(resource, span)));
    }
    spans
}

fn text<'a>(attributes: &'a [KeyValue], keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| {
        attributes.iter().take(ATTRIBUTES_MAX).rev().find_map(|attribute| {
            match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
                Some(Any::StringValue(text)) if attribute.key == *key && !text.is_empty() => Some(text.as_str()),
                _ => None,
            }
        })
    })
}

fn pid(attributes: &[KeyValue]) -> Option<u32> {
    let last = attributes.iter().take(ATTRIBUTES_MAX).rev().find_map(|attribute| {
        let value = attribute.value.as_ref()?.value.as_ref()?;
        match (attribute.key.as_str(), value) {
            ("process.pid", Any::IntValue(pid)) => Some(u32::try_from(*pid).ok()),
            ("process.pid", Any::StringValue(pid)) => Some(pid.parse().ok()),
            _ => None,
        }
    });
    last.flatten().filter(|pid| *pid > 0)
}

fn reference_operation<'a>(attributes: &'a [KeyValue], name: &'a str) -> Cow<'a, str> {
    let method = text(attributes, &["rpc.method"]);
    let route = text(attributes, &["http.route", "url.template"]);
    match (method, text(attributes, &["rpc.service"]), text(attributes, &["http.request.method", "http.method"])) {
        (Some(method), Some(service), _) if !method.contains('/') => format!("{service}/{method}").into(),
        (Some(method), _, _) => method.into(),
        (None, _, Some(verb)) if route.is_some() => format!("{verb} {}", route.unwrap_or_default()).into(),
        _ if route.is_some() => route.unwrap_or_default().into(),
        _ => text(attributes, &["messaging.destination.name", "messaging.destination"]).unwrap_or(name).into(),
    }
}

fn reference_span(resource: &[KeyValue], span: &OtlpSpan) -> Option<Span> {
    let trace: [u8; 16] = span.trace_id.clone().try_into().ok()?;
    let id = u64::from_be_bytes(span.span_id.clone().try_into().ok()?);
    let parent = match span.parent_span_id.as_slice() {
        [] => 0,
        bytes => u64::from_be_bytes(bytes.try_into().ok()?),
    };
    if trace == [0; 16] || id == 0 {
        return None;
    }
    let attributes = &span.attributes;
    let operation = reference_operation(attributes, &span.name);
    let side = match span.kind {
        2 | 5 => Side::Server,
        3 => Side::Client,
        4 => Side::Producer,
        _ => Side::Internal,
    };
    let address = [
        &["db.system.name", "db.system"][..],
        &["messaging.destination.name", "messaging.destination"],
        &["server.address", "net.peer.name"],
    ]
    .iter()
    .find_map(|keys| text(attributes, keys));
    let service = text(attributes, &["service.peer.name", "peer.service"]);
    let peer = service
        .map(|name| PeerHint::Service(ServiceId::sanitized(name)))
        .or(address.map(|name| PeerHint::Address(ServiceId::sanitized(name))))
        .filter(|_| matches!(side, Side::Client | Side::Producer));
    let pid = pid(resource);
    let instance = text(resource, &["container.id"]).or(text(resource, &["service.instance.id"])).map(str::to_owned);
    let (start, end) = (span.start_time_unix_nano / 1000, span.end_time_unix_nano / 1000);
    Some(Span {
        trace: TraceHash(xxhash_rust::xxh3::xxh3_64(&trace)),
        id: SpanId(id),
        parent: SpanId(parent),
        service: ServiceId::sanitized(text(resource, &["service.name"]).unwrap_or("unknown_service")),
        instance: instance.or(pid.map(|pid| format!("pid:{pid}"))).map(|name| InstanceId::sanitized(&name)),
        pid,
        operation: OperationId::sanitized(&operation),
        side,
        peer,
        start: Timestamp::from_micros(start),
        duration: Micros::new(end.saturating_sub(start)).min(DURATION_MAX),
        is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
        weight: match span.trace_state.as_str() {
            "ot=th:8" => 2.0,
            "x=y,ot=rv:1;th:c" => 4.0,
            _ => 1.0,
        },
    })
}

fn any_value() -> impl Strategy<Value = Option<AnyValue>> {
    let leaf = prop_oneof![
        4 => prop::sample::select(vec!["", "GET", "/a/{b}", "redis", "x.Y/Z", "17", "ä\"\\"]).prop_map(|text| Any::StringValue(text.into())),
        1 => any::<bool>().prop_map(Any::BoolValue),
        1 => prop::sample::select(vec![0, 17, -3, i64::MAX]).prop_map(Any::IntValue),
        1 => Just(Any::DoubleValue(1.5)),
        1 => Just(Any::BytesValue(vec![1, 2])),
        1 => Just(Any::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(Any::BoolValue(true)) }] })),
    ];
    prop::option::weighted(0.95, prop::option::weighted(0.95, leaf).prop_map(|value| AnyValue { value }))
}

fn attribute() -> impl Strategy<Value = KeyValue> {
    let keys = vec![
        "",
        "other",
        "rpc.method",
        "rpc.service",
        "http.request.method",
        "http.method",
        "http.route",
        "url.template",
        "messaging.destination.name",
        "messaging.destination",
        "service.peer.name",
        "peer.service",
        "db.system.name",
        "db.system",
        "server.address",
        "net.peer.name",
        "service.name",
        "service.instance.id",
        "container.id",
        "process.pid",
    ];
    (prop::sample::select(keys), any_value()).prop_map(|(key, value)| KeyValue {
        key: key.into(),
        value,
        ..KeyValue::default()
    })
}

fn otlp_span() -> impl Strategy<Value = OtlpSpan> {
    let id = |length: usize| prop::sample::select(vec![vec![7; length], vec![0; length], vec![9; length + 1], vec![]]);
    let time = prop::sample::select(vec![0, 1_700_000_000_123_456_789, 1_700_000_000_987_654_321, u64::MAX]);
    let state = prop::sample::select(vec!["", "ot=th:8", "x=y,ot=rv:1;th:c", "other=1"]);
    let status = prop::option::of((0..4).prop_map(|code| Status { code, message: "ä".into() }));
    (
        (prop::sample::select(vec![vec![5; 16], vec![6; 16], vec![0; 16], vec![1; 4]]), id(8), id(8)),
        (time.clone(), time, -1..8_i32, state, status),
        prop::collection::vec(attribute(), 0..6),
        prop::sample::select(vec!["", "name", "a name that ends"]),
    )
        .prop_map(|((trace_id, span_id, parent_span_id), (start, end, kind, state, status), attributes, name)| {
            OtlpSpan {
                trace_id,
                span_id,
                parent_span_id,
                trace_state: state.into(),
                name: name.into(),
                kind,
                start_time_unix_nano: start,
                end_time_unix_nano: end,
                attributes,
                status,
                events: vec![span::Event { name: "e".into(), ..span::Event::default() }],
                links: vec![span::Link { trace_id: vec![1; 16], ..span::Link::default() }],
                flags: 1,
                ..OtlpSpan::default()
            }
        })
}

fn request() -> impl Strategy<Value = ExportTraceServiceRequest> {
    let resource = prop::option::of(prop::collection::vec(attribute(), 0..4))
        .prop_map(|attributes| attributes.map(|attributes| Resource { attributes, ..Resource::default() }));
    let scope_spans = prop::collection::vec(otlp_span(), 0..4).prop_map(|spans| ScopeSpans {
        spans,
        schema_url: "s".into(),
        ..ScopeSpans::default()
    });
    let resource_spans = (resource, prop::collection::vec(scope_spans, 0..3))
        .prop_map(|(resource, scope_spans)| ResourceSpans { resource, scope_spans, schema_url: String::new() });
    prop::collection::vec(resource_spans, 0..3).prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

fn walked(bytes: &[u8]) -> Result<Vec<Span>, ParseError> {
    let mut spans = Vec::new();
    otlp::decode(bytes, |span| spans.push(span)).map(|tally| {
        assert_eq!(tally.spans, spans.len() as u64);
        spans
    })
}

/// The request as OTLP/JSON; `is_strict` as the specification wants it, else in every way that is also understood.
fn to_json(request: &ExportTraceServiceRequest, is_strict: bool) -> Json {
    let name = |camel: &'static str, snake: &'static str| if is_strict { camel } else { snake };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
    let number = |value: u64| if is_strict { json!(value.to_string()) } else { json!(value) };
    let value = |value: &AnyValue| match &value.value {
        None => json!({}),
        Some(Any::StringValue(text)) => json!({name("stringValue", "string_value"): text}),
        Some(Any::BoolValue(flag)) => json!({name("boolValue", "bool_value"): flag}),
        Some(Any::IntValue(int)) if is_strict => json!({"intValue": int.to_string()}),
        Some(Any::IntValue(int)) => json!({"int_value": int}),
        Some(Any::DoubleValue(double)) => json!({"doubleValue": double}),
        Some(_) => json!({"arrayValue": {"values": [{"boolValue": true}]}}),
    };
    let attributes = |attributes: &[KeyValue]| -> Vec<Json> {
        attributes.iter().map(|pair| json!({"key": pair.key, "value": pair.value.as_ref().map(value)})).collect()
    };
    let kind = |kind: i32| match kind {
        3 if !is_strict => json!("SPAN_KIND_CLIENT"),
        kind => json!(kind),
    };
    let code = |code: i32| if code == 2 && !is_strict { json!("STATUS_CODE_ERROR") } else { json!(code) };
    let span = |span: &OtlpSpan| {
        json!({
            name("traceId", "trace_id"): hex(&span.trace_id),
            name("spanId", "span_id"): hex(&span.span_id),
            name("parentSpanId", "parent_span_id"): hex(&span.parent_span_id),
            name("traceState", "trace_state"): span.trace_state,
            "name": span.name,
            "kind": kind(span.kind),
            name("startTimeUnixNano", "start_time_unix_nano"): number(span.start_time_unix_nano),
            name("endTimeUnixNano", "end_time_unix_nano"): number(span.end_time_unix_nano),
            "attributes": attributes(&span.attributes),
            "events": [{"name": "e", "attributes": []}],
            "status": span.status.as_ref().map(|status| json!({"code": code(status.code), "message": status.message})),
            "somethingNew": [1, {"a": null}],
        })
    };
    let resource_spans = request.resource_spans.iter().map(|resource_spans| {
        let scopes: Vec<Json> = resource_spans
            .scope_spans
            .iter()
            .map(|scope| json!({"spans": scope.spans.iter().map(span).collect::<Vec<_>>(), "scope": {}}))
            .collect();
        let resource = resource_spans.resource.as_ref().map(|one| json!({"attributes": attributes(&one.attributes)}));
        json!({"resource": resource, name("scopeSpans", "scope_spans"): scopes})
    });
    json!({name("resourceSpans", "resource_spans"): resource_spans.collect::<Vec<_>>()})
}

/// One change of the bytes.
fn mutation() -> impl Strategy<Value = (prop::sample::Index, u8, u8)> {
    (any::<prop::sample::Index>(), any::<u8>(), 0..5_u8)
}

fn mutate(bytes: &mut Vec<u8>, changes: &[(prop::sample::Index, u8, u8)]) {
    for (index, byte, how) in changes {
        if bytes.is_empty() {
            return;
        }
        let at = index.index(bytes.len());
        match how {
            0 => bytes[at] = *byte,
            1 => bytes[at] ^= 1 << (byte % 8),
            2 => bytes.insert(at, *byte),
            3 => drop(bytes.remove(at)),
            _ => bytes.truncate(at),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn protobuf_requests_read_as_prost_reads_them(request in request()) {
        prop_assert_eq!(walked(&request.encode_to_vec()), Ok(reference(&request)));
    }

    #[test]
    fn mutated_requests_never_panic_and_read_as_prost_reads_them_where_it_does(
        request in request(),
        changes in prop::collection::vec(mutation(), 1..6),
    ) {
        let mut bytes = request.encode_to_vec();
        mutate(&mut bytes, &changes);
        match (walked(&bytes), ExportTraceServiceRequest::decode(bytes.as_slice())) {
            (Ok(spans), Ok(request)) => prop_assert!(weightless(spans) == weightless(reference(&request))),
            (Err(error), Ok(_)) => prop_assert_eq!(error.fault, Fault::Group, "prost accepts it"),
            (Err(error), Err(_)) => prop_assert!(error.at <= bytes.len()),
            (Ok(_), Err(_)) => {} // wrong in a part that no span needs
        }
    }

    #[test]
    fn json_requests_read_as_protobuf_ones(request in request(), is_strict in any::<bool>()) {
        let mut spans = Vec::new();
        let json = to_json(&request, is_strict).to_string();
        let tally = otlp_json::decode(json.as_bytes(), |span| spans.push(span));
        prop_assert!(tally.is_ok(), "{:?}: {}", tally, json);
        prop_assert_eq!(spans, reference(&request));
    }

    #[test]
    fn mutated_json_never_panics(request in request(), changes in prop::collection::vec(mutation(), 1..6)) {
        let mut bytes = to_json(&request, true).to_string().into_bytes();
        mutate(&mut bytes, &changes);
        let mut count = 0;
        match otlp_json::decode(&bytes, |_| count += 1) {
            Ok(tally) => prop_assert_eq!(tally.spans, count),
            Err(_) => prop_assert_eq!(count, 0, "a rejected request has handed out nothing"),
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut count = 0;
        let results = [otlp::decode(&bytes, |_| count += 1), otlp_json::decode(&bytes, |_| count += 1)];
        if results.iter().all(Result::is_err) {
            prop_assert_eq!(count, 0);
        }
    }
}

/// A mutated tracestate may say anything; its own tests cover it.
fn weightless(spans: Vec<Span>) -> Vec<Span> {
    spans.into_iter().map(|span| Span { weight: 1.0, ..span }).collect()
}

fn wrapped(tag: u8, count: usize, inner: &[u8]) -> Vec<u8> {
    let mut element = vec![tag << 3 | 2];
    prost::encoding::encode_varint(inner.len() as u64, &mut element);
    element.extend_from_slice(inner);
    element.repeat(count)
}

fn good_span(attributes: Vec<KeyValue>) -> OtlpSpan {
    OtlpSpan { trace_id: vec![5; 16], span_id: vec![7; 8], name: "n".into(), attributes, ..OtlpSpan::default() }
}

fn request_of(span: OtlpSpan) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
}

#[test]
fn a_million_attributes_and_a_huge_name_keep_the_span() {
    let attribute = KeyValue { key: "k".into(), value: None, ..KeyValue::default() };
    let mut attributes = vec![attribute; 1_000_000];
    attributes.push(KeyValue {
        key: "rpc.method".into(),
        value: Some(AnyValue { value: Some(Any::StringValue("late".into())) }),
        ..KeyValue::default()
    });
    let span = OtlpSpan { name: "x".repeat(10 << 20), ..good_span(attributes) };
    let spans = walked(&request_of(span).encode_to_vec()).expect("accepted");
    assert_eq!(spans[0].operation.as_str().len(), OperationId::LEN_MAX);
    assert!(spans[0].operation.as_str().starts_with("xxx"), "the attribute stood beyond the bound");
}

#[test]
fn nesting_a_hundred_thousand_deep_is_stepped_over() {
    let mut nested = Vec::new(); // innermost last: lengths are known from inside out, so build backwards
    for level in 0..100_000 {
        let mut length = Vec::new();
        prost::encoding::encode_varint(nested.len() as u64, &mut length);
        // AnyValue.array_value (5) holding ArrayValue.values (1), alternating; written in reverse
        nested.extend(length.iter().rev());
        nested.push(if level % 2 == 1 { 5 << 3 | 2 } else { 1 << 3 | 2 });
    }
    nested.reverse();
    let value = wrapped(2, 1, &nested);
    let mut attribute = wrapped(1, 1, b"deep");
    attribute.extend(value);
    let mut span = good_span(Vec::new()).encode_to_vec();
    span.extend(wrapped(9, 1, &attribute));
    let bytes = wrapped(1, 1, &wrapped(2, 1, &wrapped(2, 1, &span)));
    assert_eq!(walked(&bytes).expect("accepted").len(), 1);
    assert!(ExportTraceServiceRequest::decode(bytes.as_slice()).is_err(), "prost gives up at a depth of 100");

    let json = format!("{{\"resourceSpans\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(otlp_json::decode(json.as_bytes(), drop).is_err());
}

#[test]
fn the_resource_may_stand_behind_its_spans() {
    let span = wrapped(2, 1, &wrapped(2, 1, &good_span(Vec::new()).encode_to_vec()));
    let name = KeyValue {
        key: "service.name".into(),
        value: Some(AnyValue { value: Some(Any::StringValue("geo".into())) }),
        ..KeyValue::default()
    };
    let resource = Resource { attributes: vec![name], ..Resource::default() };
    let mut bytes = span;
    bytes.extend(wrapped(1, 1, &resource.encode_to_vec()));
    assert_eq!(walked(&wrapped(1, 1, &bytes)).expect("accepted")[0].service.as_str(), "geo");
}

#[test]
fn a_bad_request_hands_out_nothing_and_says_where_it_broke() {
    let mut bytes = request_of(good_span(Vec::new())).encode_to_vec();
    let end = bytes.len();
    bytes.extend([0x0a, 0x7f]);
    let mut count = 0;
    let error = otlp::decode(&bytes, |_| count += 1).expect_err("truncated");
    assert_eq!((error.fault, error.at, count), (Fault::Length { length: 127, left: 0 }, end + 1, 0));
    let bad_name = wrapped(1, 1, &wrapped(2, 1, &wrapped(2, 1, &wrapped(5, 1, &[b'a', 0xff]))));
    assert_eq!(walked(&bad_name), Err(ParseError { fault: Fault::Utf8, at: bad_name.len() - 1 }));
}

#[test]
fn reversed_and_endless_spans_are_clamped_and_counted() {
    let timed = |start, end| OtlpSpan { start_time_unix_nano: start, end_time_unix_nano: end, ..good_span(Vec::new()) };
    for (span, expected, tally) in [
        (timed(2_000_000, 1_000_000), Micros::ZERO, Tally { spans: 1, reversed: 1, ..Tally::default() }),
        (timed(0, u64::MAX), DURATION_MAX, Tally { spans: 1, clamped: 1, ..Tally::default() }),
    ] {
        let mut durations = Vec::new();
        let found = otlp::decode(&request_of(span).encode_to_vec(), |span| durations.push(span.duration));
        assert_eq!((found, durations), (Ok(tally), vec![expected]));
    }
}
