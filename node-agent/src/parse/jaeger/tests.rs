//! Packets built byte by byte, as thrift's compact protocol writes them.

use proptest::prelude::*;
use sage_common::{OperationId, PeerHint, ServiceId, SpanId, TraceHash};
use xxhash_rust::xxh3::xxh3_64;

use super::*;

/// Writes the compact protocol.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn zigzag(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    /// A field header in its long form, which any reader must take.
    fn header(&mut self, id: i16, kind: u8) {
        self.0.push(kind);
        self.zigzag(id.into());
    }

    fn int(&mut self, id: i16, value: i64) {
        self.header(id, 6);
        self.zigzag(value);
    }

    fn text(&mut self, id: i16, text: &str) {
        self.header(id, 8);
        self.varint(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    fn list(&mut self, id: i16, structs: &[Vec<u8>]) {
        self.header(id, 9);
        if structs.len() < 15 {
            self.0.push((structs.len() as u8) << 4 | 12);
        } else {
            self.0.push(0xf0 | 12);
            self.varint(structs.len() as u64);
        }
        structs.iter().for_each(|one| self.0.extend(one));
    }

    fn end(mut self) -> Vec<u8> {
        self.0.push(0);
        self.0
    }
}

enum Tag<'a> {
    Text(&'a str, &'a str),
    Bool(&'a str, bool),
    Long(&'a str, i64),
    Double(&'a str),
}

fn tag(tag: &Tag<'_>) -> Vec<u8> {
    let mut out = Writer::default();
    match tag {
        Tag::Text(key, value) => {
            out.text(1, key);
            out.int(2, 0);
            out.text(3, value);
        }
        Tag::Bool(key, value) => {
            out.text(1, key);
            out.int(2, 2);
            out.header(5, if *value { 1 } else { 2 });
        }
        Tag::Long(key, value) => {
            out.text(1, key);
            out.int(2, 3);
            out.int(6, *value);
        }
        Tag::Double(key) => {
            out.text(1, key);
            out.int(2, 1);
            out.header(4, 7);
            out.0.extend(1.5_f64.to_le_bytes());
        }
    }
    out.end()
}

fn reference(is_follows_from: bool, id: i64) -> Vec<u8> {
    let mut out = Writer::default();
    out.int(1, i64::from(is_follows_from));
    out.int(2, 2);
    out.int(3, 1);
    out.int(4, id);
    out.end()
}

struct Example<'a> {
    parent: i64,
    name: &'a str,
    references: Vec<Vec<u8>>,
    duration: i64,
    tags: Vec<Tag<'a>>,
}

impl Default for Example<'_> {
    fn default() -> Self {
        Self { parent: 0, name: "op", references: Vec::new(), duration: 250, tags: Vec::new() }
    }
}

fn span(example: &Example<'_>) -> Vec<u8> {
    let mut out = Writer::default();
    out.int(1, 2); // trace id, low
    out.int(2, 1); // trace id, high
    out.int(3, -2); // span id
    out.int(4, example.parent);
    out.text(5, example.name);
    out.list(6, &example.references);
    out.int(7, 1);
    out.int(8, 1_700_000_000_000_000);
    out.int(9, example.duration);
    out.list(10, &example.tags.iter().map(tag).collect::<Vec<_>>());
    out.list(
        11,
        &[{
            let mut log = Writer::default();
            log.int(1, 1);
            log.list(2, &[tag(&Tag::Text("event", "x"))]);
            log.end()
        }],
    );
    out.end()
}

fn packet(spans: &[Vec<u8>], is_process_last: bool) -> Vec<u8> {
    let mut process = Writer::default();
    process.text(1, "compose-post");
    let tags = [Tag::Text("hostname", "h"), Tag::Long("process.pid", 42), Tag::Text("service.name", "wrong")];
    process.list(2, &tags.iter().map(tag).collect::<Vec<_>>());
    let process = process.end();
    let mut batch = Writer::default();
    if !is_process_last {
        batch.header(1, 12);
        batch.0.extend(&process);
    }
    batch.list(2, spans);
    if is_process_last {
        batch.header(1, 12);
        batch.0.extend(&process);
    }
    let mut out = Writer(vec![0x82, 0x81]);
    out.varint(7);
    out.varint(9);
    out.0.extend(b"emitBatch");
    out.header(1, 12);
    out.0.extend(batch.end());
    out.end()
}

fn decoded(packet: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    decode(packet, |span| spans.push(span)).expect("well-formed");
    spans
}

fn one(example: &Example<'_>) -> Span {
    decoded(&packet(&[span(example)], false)).remove(0)
}

#[test]
fn a_packet_gives_its_spans_with_128_bit_ids_and_process_tags() {
    for is_process_last in [false, true] {
        let example = Example {
            parent: 7,
            tags: vec![
                Tag::Text("span.kind", "client"),
                Tag::Text("peer.service", "user"),
                Tag::Bool("error", true),
                Tag::Double("ratio"),
            ],
            ..Example::default()
        };
        let spans = decoded(&packet(&[span(&example)], is_process_last));
        let mut trace = [0; 16];
        (trace[7], trace[15]) = (1, 2);
        let expected = Span {
            trace: TraceHash(xxh3_64(&trace)), // as OTLP writes the same id
            id: SpanId(-2_i64 as u64),
            parent: SpanId(7),
            service: ServiceId::sanitized("compose-post"),
            instance: Some(sage_common::InstanceId::sanitized("pid:42")),
            pid: Some(42),
            operation: OperationId::sanitized("op"),
            side: Side::Client,
            peer: Some(PeerHint::Service(ServiceId::sanitized("user"))),
            start: Timestamp::from_micros(1_700_000_000_000_000),
            duration: Micros::new(250),
            is_error: true,
            weight: 1.0,
        };
        assert_eq!(spans, [expected]);
    }
}

#[test]
fn short_field_headers_read_like_long_ones() {
    // {1: 2, 2: 1, 3: -2, 8: 5, 9: 6}, each id one or more above the last.
    let span = vec![0x16, 4, 0x16, 2, 0x16, 3, 0x56, 10, 0x16, 12, 0];
    let [span] = &decoded(&packet(&[span], false))[..] else { panic!("one span") };
    assert_eq!((span.start, span.duration), (Timestamp::from_micros(5), Micros::new(6)));
}

#[test]
fn the_side_comes_from_the_tag_or_else_from_the_name() {
    let side = |name: &'static str, kind: Option<&'static str>| {
        one(&Example {
            name,
            tags: kind.map(|kind| Tag::Text("span.kind", kind)).into_iter().collect(),
            ..Example::default()
        })
        .side
    };
    assert_eq!(side("x", Some("server")), Side::Server);
    assert_eq!(side("x", Some("consumer")), Side::Server);
    assert_eq!(side("x", Some("producer")), Side::Producer);
    assert_eq!(side("x_client", Some("server")), Side::Server);
    assert_eq!(side("compose_post_client", None), Side::Client);
    assert_eq!(side("compose_post_server", None), Side::Server);
    assert_eq!(side("x", None), Side::Internal);
}

#[test]
fn references_give_the_parent_and_whether_it_waits() {
    let client = || vec![Tag::Text("span.kind", "client")];
    let child = one(&Example { references: vec![reference(false, 5)], tags: client(), ..Example::default() });
    assert_eq!((child.parent, child.side), (SpanId(5), Side::Client));
    let follower = one(&Example { references: vec![reference(true, 6)], tags: client(), ..Example::default() });
    assert_eq!((follower.parent, follower.side), (SpanId(6), Side::Producer));
    let both = [reference(true, 6), reference(false, 5)].to_vec();
    let both = one(&Example { references: both, tags: client(), ..Example::default() });
    assert_eq!((both.parent, both.side), (SpanId(5), Side::Client));
}

#[test]
fn a_negative_duration_is_zero_and_counted() {
    let bytes = packet(&[span(&Example { duration: -5, ..Example::default() })], false);
    let mut durations = Vec::new();
    let tally = decode(&bytes, |span| durations.push(span.duration)).expect("well-formed");
    assert_eq!((tally.reversed, durations), (1, vec![Micros::ZERO]));
}

#[test]
fn what_is_no_batch_is_refused_with_the_place() {
    let good = packet(&[span(&Example::default())], false);
    let fault = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        decode(&bytes, drop).expect_err("malformed").fault
    };
    assert!(matches!(fault(&|bytes| bytes[0] = 0x80), Fault::Protocol { .. }), "binary protocol");
    assert!(matches!(fault(&|bytes| bytes[4] = b'x'), Fault::Protocol { .. }), "other method");
    for length in 0..good.len() - 1 {
        let fault = fault(&|bytes| bytes.truncate(length));
        assert!(matches!(fault, Fault::Truncated | Fault::Length { .. }), "cut to {length}: {fault}");
    }
    assert_eq!(decode(&[], drop).expect_err("empty").fault, Fault::Truncated);
}

#[test]
fn declared_counts_and_depths_are_bounded() {
    // A span list that declares 2^40 elements.
    let mut out = Writer(vec![0x82, 0x81, 7, 9]);
    out.0.extend(b"emitBatch");
    out.header(1, 12);
    out.header(2, 9);
    out.0.push(0xfc);
    out.varint(1 << 40);
    let error = decode(&out.0, drop).expect_err("too many");
    assert_eq!(error.fault, Fault::Length { length: 1 << 40, left: 0 });
    // An unknown field that nests structures 10,000 deep.
    let mut out = Writer(vec![0x82, 0x81, 7, 9]);
    out.0.extend(b"emitBatch");
    out.header(1, 12);
    (0..10_000).for_each(|_| out.header(9, 12));
    assert_eq!(decode(&out.0, drop).expect_err("too deep").fault, Fault::Depth);
}

proptest! {
    #[test]
    fn mutated_packets_never_panic_and_hand_out_nothing_when_rejected(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..6),
    ) {
        let tags = vec![Tag::Text("span.kind", "client"), Tag::Long("n", 1)];
        let mut bytes = packet(&[span(&Example { tags, ..Example::default() })], false);
        for (index, byte, is_cut) in changes {
            let at = index.index(bytes.len().max(1));
            if is_cut && byte < 32 {
                bytes.truncate(at);
            } else if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
        }
        let mut count = 0;
        match decode(&bytes, |_| count += 1) {
            Ok(tally) => prop_assert_eq!(tally.spans, count),
            Err(error) => prop_assert!(count == 0 && error.at <= bytes.len()),
        }
    }
}
