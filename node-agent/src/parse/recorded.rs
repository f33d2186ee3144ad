//! Spans of a recording: one pass over requests that somebody else has taken already, with the machine they came from.
//!
//! The same fields mean the same as on the wire. Unlike there, spans are handed out before the whole request is checked,
//! so the caller keeps them aside until it is: a recording is read at hundreds of thousands of spans a second.

use std::borrow::Cow;

use sage_common::{Span, Timestamp};

use super::{
    Fault, ParseError,
    cursor::Cursor,
    fields::{ATTRIBUTES_MAX, Builder, RawSpan, ResourceFields, Tally, Value, Visitor},
    otlp,
    otlp_json::{KINDS, STATUS_CODES, hex},
};

/// Who reported a span, as its resource says it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Origin<'a> {
    /// `service.name` as written, else what the platform calls it; empty without one.
    pub service: &'a str,
    /// `host.name`, else `k8s.node.name`.
    pub host: Option<&'a str>,
    /// Whether the span says its kind; one that does not comes as internal.
    pub has_kind: bool,
}

/// Hands every span of an `ExportTraceServiceRequest` in JSON to `sink`.
///
/// # Errors
///
/// [`ParseError`] at the first thing that does not read; `sink` has been called for what stands before it.
pub fn decode_json(request: &[u8], sink: impl FnMut(&Origin<'_>, Span)) -> Result<Tally, ParseError> {
    let text =
        std::str::from_utf8(request).map_err(|error| ParseError { fault: Fault::Utf8, at: error.valid_up_to() })?;
    let mut recorded = Recorded { builder: Builder::new(|_| {}), sink };
    let mut cursor = Cursor::new(text);
    cursor.object(|cursor, key| match key {
        "resourceSpans" | "resource_spans" => cursor.array(|cursor| resource_spans(cursor, &mut recorded)),
        _ => cursor.skip(),
    })?;
    cursor.end()?;
    Ok(recorded.builder.tally)
}

/// Hands every span of an `ExportTraceServiceRequest` in protobuf to `sink`.
///
/// # Errors
///
/// As for [`decode_json`].
pub fn decode_protobuf(request: &[u8], sink: impl FnMut(&Origin<'_>, Span)) -> Result<Tally, ParseError> {
    let mut recorded = Recorded { builder: Builder::new(|_| {}), sink };
    otlp::walk(request, &mut recorded)?;
    Ok(recorded.builder.tally)
}

/// Makes spans and says whose they are.
struct Recorded<B, F> {
    builder: Builder<B>,
    sink: F,
}

impl<B: FnMut(Span), F: FnMut(&Origin<'_>, Span)> Visitor for Recorded<B, F> {
    const READS: bool = true;

    fn resource(&mut self) {
        self.builder.resource();
    }

    fn span(&mut self, resource: &ResourceFields<'_>, raw: &RawSpan<'_>) {
        if let Some(span) = self.builder.make(resource, raw) {
            let origin = Origin {
                service: resource.service.get().unwrap_or_default(),
                host: resource.host.get(),
                has_kind: raw.has_kind,
            };
            (self.sink)(&origin, span);
        }
    }

    fn attributes_skipped(&mut self, count: u64) {
        self.builder.attributes_skipped(count);
    }
}

fn resource_spans(cursor: &mut Cursor<'_>, visitor: &mut impl Visitor) -> Result<(), ParseError> {
    let mut fields = None;
    let mut waiting = None; // spans that stand before their resource
    cursor.object(|cursor, key| match key {
        "resource" => {
            fields = Some(resource(cursor, visitor)?);
            visitor.resource();
            Ok(())
        }
        "scopeSpans" | "scope_spans" => match &fields {
            Some(fields) => scopes(cursor, fields, visitor),
            None => {
                waiting = Some(*cursor);
                cursor.skip()
            }
        },
        _ => cursor.skip(),
    })?;
    if let Some(mut behind) = waiting {
        visitor.resource();
        scopes(&mut behind, &fields.unwrap_or_default(), visitor)?;
    }
    Ok(())
}

fn resource<'a>(cursor: &mut Cursor<'a>, visitor: &mut impl Visitor) -> Result<ResourceFields<'a>, ParseError> {
    let mut fields = ResourceFields::default();
    cursor.object(|cursor, key| match key {
        "attributes" => attributes(cursor, visitor, |key, value| fields.set(key, value)),
        _ => cursor.skip(),
    })?;
    Ok(fields)
}

fn scopes(cursor: &mut Cursor<'_>, fields: &ResourceFields<'_>, visitor: &mut impl Visitor) -> Result<(), ParseError> {
    cursor.array(|cursor| {
        cursor.object(|cursor, key| match key {
            "spans" => cursor.array(|cursor| span(cursor, fields, visitor)),
            _ => cursor.skip(),
        })
    })
}

fn span(cursor: &mut Cursor<'_>, resource: &ResourceFields<'_>, visitor: &mut impl Visitor) -> Result<(), ParseError> {
    let mut raw = RawSpan::default();
    cursor.object(|cursor, key| {
        match key {
            "traceId" | "trace_id" => raw.trace = id(&cursor.scalar()?),
            "spanId" | "span_id" => raw.id = id(&cursor.scalar()?).map(u64::from_be_bytes),
            "parentSpanId" | "parent_span_id" => {
                let text = cursor.scalar()?;
                raw.parent = if text.is_empty() { Some(0) } else { id(&text).map(u64::from_be_bytes) };
            }
            "name" => raw.name = cursor.scalar()?,
            "kind" => {
                let kind = code(&cursor.scalar()?, &KINDS);
                (raw.side, raw.has_kind) = (otlp::side(kind), kind != 0);
            }
            "startTimeUnixNano" | "start_time_unix_nano" => raw.start = time(cursor)?,
            "endTimeUnixNano" | "end_time_unix_nano" => raw.end = time(cursor)?,
            "traceState" | "trace_state" => raw.tracestate = cursor.scalar()?,
            "status" => cursor.object(|cursor, key| match key {
                "code" => {
                    raw.is_error = otlp::is_error_code(code(&cursor.scalar()?, &STATUS_CODES));
                    Ok(())
                }
                _ => cursor.skip(),
            })?,
            "attributes" => attributes(cursor, visitor, |key, value| raw.fields.set(key, value))?,
            _ => cursor.skip()?,
        }
        Ok(())
    })?;
    visitor.span(resource, &raw);
    Ok(())
}

/// `N` bytes in hexadecimal, or in base 64 as tools write them that know protobuf and not OTLP.
fn id<const N: usize>(text: &str) -> Option<[u8; N]> {
    hex(text).or_else(|| base64(text.trim_end_matches('=')))
}

fn base64<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    };
    if text.len() != (8 * N).div_ceil(6) {
        return None;
    }
    let (mut bytes, mut bits, mut held, mut at) = ([0; N], 0_u32, 0_u32, 0);
    for byte in text.bytes() {
        (bits, held) = (bits << 6 | u32::from(digit(byte)?), held + 6);
        if held >= 8 {
            held -= 8;
            *bytes.get_mut(at)? = (bits >> held) as u8;
            at += 1;
        }
    }
    Some(bytes)
}

/// Nanoseconds, as digits or in a string.
fn time(cursor: &mut Cursor<'_>) -> Result<Timestamp, ParseError> {
    let at = cursor.at();
    let text = cursor.scalar()?;
    if text.is_empty() {
        return Ok(Timestamp::default());
    }
    let nanos = text.parse().map_err(|_| cursor.fault(at, "a time must be a number of nanoseconds"))?;
    Ok(otlp::micros(nanos))
}

/// The number, or the position of the name in `names`; zero for anything else.
fn code(text: &str, names: &[&str]) -> i32 {
    text.parse().unwrap_or_else(|_| names.iter().position(|known| *known == text).unwrap_or(0) as i32)
}

fn attributes<'a>(
    cursor: &mut Cursor<'a>,
    visitor: &mut impl Visitor,
    mut set: impl FnMut(&str, Value<'a>),
) -> Result<(), ParseError> {
    let mut count = 0;
    cursor.array(|cursor| {
        count += 1;
        if count > ATTRIBUTES_MAX {
            visitor.attributes_skipped(1);
            return cursor.skip();
        }
        let (mut name, mut value) = (Cow::Borrowed(""), Value::Other);
        cursor.object(|cursor, key| {
            match key {
                "key" => name = cursor.scalar()?,
                "value" => value = any_value(cursor)?,
                _ => cursor.skip()?,
            }
            Ok(())
        })?;
        set(&name, value);
        Ok(())
    })
}

fn any_value<'a>(cursor: &mut Cursor<'a>) -> Result<Value<'a>, ParseError> {
    let mut value = Value::Other;
    cursor.object(|cursor, key| {
        match key {
            "stringValue" | "string_value" => value = Value::Text(cursor.scalar()?),
            "intValue" | "int_value" => value = cursor.scalar()?.parse().map_or(Value::Other, Value::Int),
            "boolValue" | "bool_value" => value = Value::Bool(cursor.scalar()? == "true"),
            _ => cursor.skip()?,
        }
        Ok(())
    })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parse::otlp_json;

    const REQUEST: &str = r#"{"resourceSpans": [
        {"scopeSpans": [{"scope": {"name": "x"}, "spans": [
            {"traceId": "8b51e36eaee3265bec099d0c5c63fd37", "spanId": "69f0ab5eab6ab97b", "name": "a \"b\" \u00e4", "kind": 2,
             "startTimeUnixNano": "1661140339209875000", "endTimeUnixNano": 1661140339572328000, "status": {"code": 2}},
            {"trace_id": "8b51e36eaee3265bec099d0c5c63fd37", "span_id": "5AD88C3DC3137B99", "parentSpanId": "69f0ab5eab6ab97b",
             "name": "n", "kind": "SPAN_KIND_CLIENT", "start_time_unix_nano": "1661140339210020000",
             "endTimeUnixNano": "1661140339215094000", "traceState": "ot=th:8", "events": [{"x": [1, {"y": null}]}],
             "attributes": [{"key": "rpc.method", "value": {"stringValue": "Get"}}, {"key": "rpc.service", "value":
             {"stringValue": "shop.Cart"}}, {"key": "peer.service", "value": {"stringValue": "cart"}}]},
            {"traceId": "00", "spanId": "5ad88c3dc3137b99"}]}],
         "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "front"}},
            {"key": "process.pid", "value": {"intValue": "17"}}, {"key": "host.name", "value": {"stringValue": "node-5"}}]}},
        {"resource": null, "scopeSpans": null}], "other": true}"#;

    fn fast(request: &str) -> Result<(Vec<Span>, Tally), ParseError> {
        let mut spans = Vec::new();
        decode_json(request.as_bytes(), |_, span| spans.push(span)).map(|tally| (spans, tally))
    }

    fn careful(request: &str) -> Result<(Vec<Span>, Tally), ParseError> {
        let mut spans = Vec::new();
        otlp_json::decode(request.as_bytes(), |span| spans.push(span)).map(|tally| (spans, tally))
    }

    #[test]
    fn a_recording_reads_as_it_would_on_the_wire() {
        let (spans, tally) = fast(REQUEST).expect("valid");
        assert_eq!((spans.len(), tally.invalid_ids), (2, 1));
        assert_eq!(fast(REQUEST), careful(REQUEST));
        assert_eq!(spans[1].operation.as_str(), "shop.Cart/Get");
    }

    #[test]
    fn ids_read_in_base_64_as_well() {
        let text = REQUEST
            .replace("8b51e36eaee3265bec099d0c5c63fd37", "i1Hjbq7jJlvsCZ0MXGP9Nw==")
            .replace("69f0ab5eab6ab97b", "afCrXqtquXs=")
            .replace("5AD88C3DC3137B99", "WtiMPcMTe5k=");
        assert_eq!(fast(&text).expect("valid").0, fast(REQUEST).expect("valid").0);
        assert_eq!(base64::<8>("afCrXqtqu*s"), None);
        assert_eq!(id::<8>("69f0"), None);
    }

    #[test]
    fn the_machine_and_the_name_as_written_come_with_every_span() {
        let mut origins = Vec::new();
        let note = |origin: &Origin<'_>, _| origins.push((origin.service.to_owned(), origin.host.map(str::to_owned)));
        decode_json(REQUEST.as_bytes(), note).expect("valid");
        assert_eq!(origins, vec![("front".to_owned(), Some("node-5".to_owned())); 2]);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let deep = format!("{{\"x\": {}", "[".repeat(100_000));
        for text in ["", "[]", "{", "{\"resourceSpans\": 3}", "{\"resourceSpans\": [", "{} {}", "nul", &deep] {
            assert!(fast(text).is_err(), "{text:.40}");
        }
        let wrong_time = REQUEST.replace("\"1661140339210020000\"", "\"noon\"");
        assert!(fast(&wrong_time).is_err());
    }

    proptest! {
        #[test]
        fn damaged_requests_end_without_a_panic(
            cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = REQUEST.as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(cut.index(bytes.len()).max(at));
            let _ = decode_json(&bytes, |_, _| {});
        }
    }
}
