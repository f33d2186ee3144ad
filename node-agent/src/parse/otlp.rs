//! OTLP protobuf: a walk of `ExportTraceServiceRequest` in place, with a constant stack.
//!
//! Only fields that a span needs are read; events, links, scopes and nested attribute values are stepped over by their
//! length, so nesting costs nothing. Hence more is accepted than a full decoder would: what is not read is not checked.
//! Group fields, which no length bounds, are refused everywhere.

use std::borrow::Cow;

use sage_common::{Side, Span, Timestamp};

use super::{
    ParseError,
    fields::{ATTRIBUTES_MAX, Builder, Check, RawSpan, ResourceFields, Tally, Value, Visitor},
    wire::{Field, Reader},
};

/// Hands every span of the request to `sink`.
///
/// # Errors
///
/// [`ParseError`] when the request is malformed; `sink` has not been called then.
pub fn decode(request: &[u8], sink: impl FnMut(Span)) -> Result<Tally, ParseError> {
    walk(request, &mut Check)?;
    let mut builder = Builder::new(sink);
    walk(request, &mut builder)?;
    Ok(builder.tally)
}

pub(super) fn walk(request: &[u8], visitor: &mut impl Visitor) -> Result<(), ParseError> {
    let mut reader = Reader::new(request);
    while let Some(field) = reader.field()? {
        match field.number {
            1 => resource_spans(reader.message_of(field)?, visitor)?,
            _ => reader.skip(field)?,
        }
    }
    Ok(())
}

/// The resource may stand behind its spans: one pass for each.
fn resource_spans(message: Reader<'_>, visitor: &mut impl Visitor) -> Result<(), ParseError> {
    let mut fields = ResourceFields::default();
    let mut attributes = 0;
    let mut reader = message;
    while let Some(field) = reader.field()? {
        match field.number {
            1 => resource(reader.message_of(field)?, &mut fields, &mut attributes)?,
            _ => reader.skip(field)?,
        }
    }
    visitor.attributes_skipped(skipped(attributes));
    visitor.resource();
    let mut reader = message;
    while let Some(field) = reader.field()? {
        match field.number {
            2 => scope_spans(reader.message_of(field)?, &fields, visitor)?,
            _ => reader.skip(field)?,
        }
    }
    Ok(())
}

fn resource<'a>(
    mut reader: Reader<'a>,
    fields: &mut ResourceFields<'a>,
    attributes: &mut usize,
) -> Result<(), ParseError> {
    while let Some(field) = reader.field()? {
        match field.number {
            1 => {
                if let Some((key, value)) = attribute(&mut reader, field, attributes)? {
                    fields.set(key, value);
                }
            }
            _ => reader.skip(field)?,
        }
    }
    Ok(())
}

fn scope_spans(
    mut reader: Reader<'_>,
    resource: &ResourceFields<'_>,
    visitor: &mut impl Visitor,
) -> Result<(), ParseError> {
    while let Some(field) = reader.field()? {
        match field.number {
            2 => span(reader.message_of(field)?, resource, visitor)?,
            _ => reader.skip(field)?,
        }
    }
    Ok(())
}

fn span<V: Visitor>(mut reader: Reader<'_>, resource: &ResourceFields<'_>, visitor: &mut V) -> Result<(), ParseError> {
    let mut span = RawSpan::default();
    let mut attributes = 0;
    while let Some(field) = reader.field()? {
        match field.number {
            1 => span.trace = reader.bytes_of(field)?.try_into().ok(),
            2 => span.id = id(reader.bytes_of(field)?),
            3 => span.tracestate = Cow::Borrowed(reader.text_of(field)?),
            4 => span.parent = parent(reader.bytes_of(field)?),
            5 => span.name = Cow::Borrowed(reader.text_of(field)?),
            6 => {
                let kind = reader.varint_of(field)? as i32;
                (span.side, span.has_kind) = (side(kind), kind != 0);
            }
            7 => span.start = micros(reader.fixed64_of(field)?),
            8 => span.end = micros(reader.fixed64_of(field)?),
            9 => {
                if let Some((key, value)) = attribute(&mut reader, field, &mut attributes)?
                    && V::READS
                {
                    span.fields.set(key, value);
                }
            }
            15 => status(reader.message_of(field)?, &mut span.is_error)?,
            _ => reader.skip(field)?,
        }
    }
    visitor.attributes_skipped(skipped(attributes));
    visitor.span(resource, &span);
    Ok(())
}

fn status(mut reader: Reader<'_>, is_error: &mut bool) -> Result<(), ParseError> {
    while let Some(field) = reader.field()? {
        match field.number {
            3 => *is_error = is_error_code(reader.varint_of(field)? as i32),
            _ => reader.skip(field)?,
        }
    }
    Ok(())
}

/// The next attribute, or `None` once [`ATTRIBUTES_MAX`] have been read.
fn attribute<'a>(
    reader: &mut Reader<'a>,
    field: Field,
    count: &mut usize,
) -> Result<Option<(&'a str, Value<'a>)>, ParseError> {
    *count += 1;
    let mut message = reader.message_of(field)?;
    if *count > ATTRIBUTES_MAX {
        return Ok(None);
    }
    let (mut key, mut value) = ("", Value::Other);
    while let Some(field) = message.field()? {
        match field.number {
            1 => key = message.text_of(field)?,
            2 => any_value(message.message_of(field)?, &mut value)?,
            _ => message.skip(field)?,
        }
    }
    Ok(Some((key, value)))
}

fn any_value<'a>(mut reader: Reader<'a>, value: &mut Value<'a>) -> Result<(), ParseError> {
    while let Some(field) = reader.field()? {
        match field.number {
            1 => *value = Value::Text(Cow::Borrowed(reader.text_of(field)?)),
            2 => *value = Value::Bool(reader.varint_of(field)? != 0),
            3 => *value = Value::Int(reader.varint_of(field)? as i64),
            4..=8 => {
                reader.skip(field)?;
                *value = Value::Other;
            }
            _ => reader.skip(field)?,
        }
    }
    Ok(())
}

fn skipped(attributes: usize) -> u64 {
    attributes.saturating_sub(ATTRIBUTES_MAX) as u64
}

fn id(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// No bytes at all mean no parent.
fn parent(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() { Some(0) } else { id(bytes) }
}

/// Both ends of a span are rounded down, so children stay inside their parents.
pub(super) fn micros(nanos: u64) -> Timestamp {
    Timestamp::from_micros(nanos / 1_000)
}

/// Side of `SpanKind` as OTLP numbers it.
pub(super) fn side(kind: i32) -> Side {
    match kind {
        2 | 5 => Side::Server,
        3 => Side::Client,
        4 => Side::Producer,
        _ => Side::Internal,
    }
}

/// Whether `Status.code` is `STATUS_CODE_ERROR`.
pub(super) fn is_error_code(code: i32) -> bool {
    code == 2
}
