//! Jaeger agent packets: `emitBatch` in thrift's compact protocol, walked in place.
//!
//! The side comes from `span.kind`. Older instrumentation has no such tag and ends its span names in `_client` or
//! `_server` instead (DeathStarBench does); without either a span is internal. A span that only follows from another is
//! not waited for. Sampling probability is not in the packet, so every span counts once.

use std::borrow::Cow;

use sage_common::{Micros, Side, Span, Timestamp};

use super::{
    Fault, ParseError,
    fields::{ATTRIBUTES_MAX, Builder, Check, RawSpan, ResourceFields, Tally, Value, Visitor},
    thrift::{Kind, Reader},
};

/// Compact protocol, version 1; call and one-way message types.
const PROTOCOL: u8 = 0x82;
const VERSION: u8 = 1;
const MESSAGES: [u8; 2] = [1, 4];

/// Hands every span of the packet to `sink`.
///
/// # Errors
///
/// [`ParseError`] when the packet is malformed or no `emitBatch`; `sink` has not been called then.
pub fn decode(packet: &[u8], sink: impl FnMut(Span)) -> Result<Tally, ParseError> {
    let batch = batch(packet)?;
    walk(batch, &mut Check)?;
    let mut builder = Builder::new(sink);
    walk(batch, &mut builder)?;
    Ok(builder.tally)
}

/// The batch inside the packet.
fn batch(packet: &[u8]) -> Result<Reader<'_>, ParseError> {
    let mut reader = Reader::new(packet);
    let fail = |at| ParseError { fault: Fault::Protocol { wanted: "an emitBatch of the compact protocol" }, at };
    if reader.byte()? != PROTOCOL {
        return Err(fail(0));
    }
    let kind = reader.byte()?;
    if kind & 0x1f != VERSION || !MESSAGES.contains(&(kind >> 5)) {
        return Err(fail(1));
    }
    reader.int()?; // sequence number
    if reader.text()? != "emitBatch" {
        return Err(fail(2));
    }
    let mut last = 0;
    while let Some(field) = reader.field(&mut last)? {
        if (field.id, field.kind) == (1, Kind::Struct) {
            return Ok(reader);
        }
        reader.skip(field.kind)?;
    }
    Err(fail(2))
}

/// The process may stand behind its spans: one pass for each.
fn walk(batch: Reader<'_>, visitor: &mut impl Visitor) -> Result<(), ParseError> {
    let mut fields = ResourceFields::default();
    let mut skipped = 0;
    let (mut reader, mut last) = (batch, 0);
    while let Some(field) = reader.field(&mut last)? {
        match (field.id, field.kind) {
            (1, Kind::Struct) => process(&mut reader, &mut fields, &mut skipped)?,
            _ => reader.skip(field.kind)?,
        }
    }
    visitor.attributes_skipped(skipped);
    visitor.resource();
    let (mut reader, mut last) = (batch, 0);
    while let Some(field) = reader.field(&mut last)? {
        match (field.id, field.kind) {
            (2, Kind::List) => structs(&mut reader, |reader| span(reader, &fields, visitor))?,
            _ => reader.skip(field.kind)?,
        }
    }
    Ok(())
}

/// Calls `read` for each structure of a list; other elements are stepped over.
fn structs<'a>(
    reader: &mut Reader<'a>,
    mut read: impl FnMut(&mut Reader<'a>) -> Result<(), ParseError>,
) -> Result<(), ParseError> {
    let (count, kind) = reader.list()?;
    if kind != Kind::Struct {
        return reader.skip_elements(count, kind, 0);
    }
    for _ in 0..count {
        read(reader)?;
    }
    Ok(())
}

fn process<'a>(reader: &mut Reader<'a>, fields: &mut ResourceFields<'a>, skipped: &mut u64) -> Result<(), ParseError> {
    let mut last = 0;
    while let Some(field) = reader.field(&mut last)? {
        match (field.id, field.kind) {
            (1, Kind::Binary) => fields.set("service.name", Value::Text(Cow::Borrowed(reader.text()?))),
            // The service's own name was given apart; a tag of that name must not replace it.
            (2, Kind::List) => tags(reader, skipped, |key, value| {
                if key != "service.name" {
                    fields.set(key, value);
                }
            })?,
            _ => reader.skip(field.kind)?,
        }
    }
    Ok(())
}

#[derive(Default)]
struct Members<'a> {
    raw: RawSpan<'a>,
    trace_low: i64,
    trace_high: i64,
    references: References,
    duration: i64,
    kind: Option<&'a str>,
    skipped: u64,
}

/// Parents as references give them; zero for none.
#[derive(Clone, Copy, Debug, Default)]
struct References {
    child_of: i64,
    follows_from: i64,
}

fn span<'a>(
    reader: &mut Reader<'a>,
    resource: &ResourceFields<'_>,
    visitor: &mut impl Visitor,
) -> Result<(), ParseError> {
    let mut span = Members::default();
    let (mut parent, mut start) = (0, 0);
    let mut last = 0;
    while let Some(field) = reader.field(&mut last)? {
        match (field.id, field.kind) {
            (1, Kind::Int) => span.trace_low = reader.int()?,
            (2, Kind::Int) => span.trace_high = reader.int()?,
            (3, Kind::Int) => span.raw.id = Some(reader.int()? as u64),
            (4, Kind::Int) => parent = reader.int()?,
            (5, Kind::Binary) => span.raw.name = Cow::Borrowed(reader.text()?),
            (6, Kind::List) => structs(reader, |reader| reference(reader, &mut span.references))?,
            (8, Kind::Int) => start = reader.int()?,
            (9, Kind::Int) => span.duration = reader.int()?,
            (10, Kind::List) => {
                let Members { raw, kind, skipped, .. } = &mut span;
                tags(reader, skipped, |key, value| tag(raw, kind, key, value))?;
            }
            _ => reader.skip(field.kind)?,
        }
    }
    span.raw.start = Timestamp::from_micros(u64::try_from(start).unwrap_or(0));
    visitor.attributes_skipped(span.skipped);
    visitor.span(resource, &span.finish(parent));
    Ok(())
}

impl<'a> Members<'a> {
    fn finish(self, parent: i64) -> RawSpan<'a> {
        let Self { mut raw, trace_low, trace_high, references, duration, kind, .. } = self;
        let mut trace = [0; 16];
        trace[..8].copy_from_slice(&trace_high.to_be_bytes());
        trace[8..].copy_from_slice(&trace_low.to_be_bytes());
        raw.trace = Some(trace);
        let References { child_of, follows_from } = references;
        let parent = [parent, child_of, follows_from].into_iter().find(|id| *id != 0).unwrap_or(0);
        raw.parent = Some(parent as u64);
        raw.side = side(kind, &raw.name);
        if raw.side == Side::Client && follows_from != 0 && child_of == 0 {
            raw.side = Side::Producer;
        }
        // A negative duration ends before it starts: counted as such, then zero.
        raw.end = match u64::try_from(duration) {
            Ok(duration) => raw.start + Micros::new(duration),
            Err(_) => raw.start - Micros::new(1),
        };
        raw
    }
}

fn side(kind: Option<&str>, name: &str) -> Side {
    match kind {
        Some("server" | "consumer") => Side::Server,
        Some("client") => Side::Client,
        Some("producer") => Side::Producer,
        Some(_) => Side::Internal,
        None if name.ends_with("_server") => Side::Server,
        None if name.ends_with("_client") => Side::Client,
        None => Side::Internal,
    }
}

fn reference(reader: &mut Reader<'_>, references: &mut References) -> Result<(), ParseError> {
    let (mut is_follows_from, mut id) = (false, 0);
    let mut last = 0;
    while let Some(field) = reader.field(&mut last)? {
        match (field.id, field.kind) {
            (1, Kind::Int) => is_follows_from = reader.int()? == 1,
            (4, Kind::Int) => id = reader.int()?,
            _ => reader.skip(field.kind)?,
        }
    }
    let slot = if is_follows_from { &mut references.follows_from } else { &mut references.child_of };
    if *slot == 0 {
        *slot = id;
    }
    Ok(())
}

fn tag<'a>(raw: &mut RawSpan<'a>, kind: &mut Option<&'a str>, key: &str, value: Value<'a>) {
    match (key, value) {
        ("span.kind", Value::Text(Cow::Borrowed(text))) => *kind = Some(text),
        ("error", Value::Bool(flag)) => raw.is_error = flag,
        ("error", Value::Text(text)) => raw.is_error = text == "true",
        ("otel.status_code", Value::Text(text)) => raw.is_error |= text == "ERROR",
        (key, value) => raw.fields.set(key, value),
    }
}

/// Calls `visit` for the first [`ATTRIBUTES_MAX`] tags of a list and counts the rest.
fn tags<'a>(
    reader: &mut Reader<'a>,
    skipped: &mut u64,
    mut visit: impl FnMut(&'a str, Value<'a>),
) -> Result<(), ParseError> {
    let mut count = 0;
    structs(reader, |reader| {
        let (mut key, mut value) = ("", Value::Other);
        let mut last = 0;
        while let Some(field) = reader.field(&mut last)? {
            match (field.id, field.kind) {
                (1, Kind::Binary) => key = reader.text()?,
                (3, Kind::Binary) => value = Value::Text(Cow::Borrowed(reader.text()?)),
                (5, Kind::True) => value = Value::Bool(true),
                (5, Kind::False) => value = Value::Bool(false),
                (6, Kind::Int) => value = Value::Int(reader.int()?),
                _ => reader.skip(field.kind)?,
            }
        }
        count += 1;
        if count > ATTRIBUTES_MAX {
            *skipped += 1;
        } else {
            visit(key, value);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests;
