//! One request, decoded: its spans or points in order of time, without those of a broken clock.

use std::collections::HashMap;

use sage_common::{Micros, Span, Timestamp};
use sage_node_agent::parse::recorded;

use super::{
    feed::{Feed, Placed},
    input::Encoding,
    points::{self, Point, Resource},
    rate::Rate,
};

/// Spans within a request that end this much from its middle one are of a broken clock: requests hold seconds.
const SPREAD_MAX: Micros = Micros::from_secs(3_600);

/// Spans that kept room is for: requests of a few MiB have fewer. About 180 bytes each.
const ROOM_MAX: usize = 65_536;

/// What was read and what could not be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ReadCounters {
    /// Requests.
    pub requests: u64,
    /// Of those, damaged ones, and files that end early.
    pub bad: u64,
    /// Requests that read and hold nothing for us: of another kind, or empty.
    pub empty: u64,
    /// Spans.
    pub spans: u64,
    /// Of those, spans that do not say their kind.
    pub kindless: u64,
    /// Spans without a usable id.
    pub invalid_ids: u64,
    /// Spans that end before they start, or last longer than anyone means; kept with another duration.
    pub odd_durations: u64,
    /// Spans and points far away from everything around them.
    pub broken_clocks: u64,
    /// Data points.
    pub points: u64,
    /// Data points that are no finite number, have no time, or are of a kind that is not read.
    pub unreadable_points: u64,
    /// The first bad requests: file, line, fault.
    pub problems: Vec<String>,
    /// Files that held nothing at all.
    pub useless: Vec<String>,
    /// When the earliest span or point was, and the latest.
    pub times: Option<(Timestamp, Timestamp)>,
}

impl ReadCounters {
    fn saw(&mut self, first: Timestamp, last: Timestamp) {
        let (from, to) = self.times.unwrap_or((first, last));
        self.times = Some((from.min(first), to.max(last)));
    }
}

/// One decoded request.
#[derive(Debug, Default)]
pub struct Batch {
    /// When its first span ends or its first point was taken, of those that are left.
    pub first: Timestamp,
    /// Points, by their time.
    pub points: Vec<(Resource, Point)>,
    spans: Vec<Placed>,
    order: Vec<(Timestamp, u32)>, // when spans end and where they stand: they themselves are large
    given: usize,
}

/// The room of a batch that is over, to be filled again.
#[derive(Debug, Default)]
pub struct Room {
    spans: Vec<Placed>,
    order: Vec<(Timestamp, u32)>,
}

impl Batch {
    /// Whether nothing is left of it.
    pub fn is_over(&self) -> bool {
        self.left() == 0
    }

    /// Spans and points that are left of it.
    pub fn left(&self) -> usize {
        self.order.len() - self.given + self.points.len()
    }

    /// The next span by its end, and when it ends.
    pub fn span(&self) -> Option<(Timestamp, &Placed)> {
        let (end, at) = *self.order.get(self.given)?;
        Some((end, self.spans.get(at as usize)?))
    }

    /// Steps behind the span that was handed over.
    pub fn step(&mut self) {
        self.given += 1;
    }

    /// Its room, emptied; `None` when it held nothing, or much more than usual.
    pub fn room(mut self) -> Option<Room> {
        let is_usual = (1..=ROOM_MAX).contains(&self.spans.capacity());
        self.spans.clear();
        self.order.clear();
        is_usual.then_some(Room { spans: self.spans, order: self.order })
    }

    /// Decodes a request of spans into `room`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn of_spans(
        bytes: &[u8],
        encoding: Encoding,
        feed: &mut Feed,
        counters: &mut ReadCounters,
        room: Room,
    ) -> Result<Self, String> {
        let Room { mut spans, mut order } = room;
        let mut whose = (String::new(), None::<String>, None);
        let mut kindless = 0;
        let sink = |origin: &recorded::Origin<'_>, span| {
            if whose.2.is_none() || whose.0 != origin.service || whose.1.as_deref() != origin.host {
                feed.note_name(origin.service);
                let node = feed.node(origin.service, origin.host);
                whose = (origin.service.to_owned(), origin.host.map(str::to_owned), node);
            }
            if let Some(node) = whose.2 {
                kindless += u64::from(!origin.has_kind);
                spans.push(Placed { node: node as u32, span, has_kind: origin.has_kind });
            }
        };
        let tally = match encoding {
            Encoding::Json => recorded::decode_json(bytes, sink),
            Encoding::Protobuf | Encoding::ProtobufVarint => recorded::decode_protobuf(bytes, sink),
        };
        let tally = tally.map_err(|error| error.to_string())?;
        counters.spans += tally.spans;
        counters.kindless += kindless;
        counters.invalid_ids += tally.invalid_ids;
        counters.odd_durations += tally.reversed + tally.clamped;
        order.extend(spans.iter().zip(0_u32..).map(|(placed, at)| (placed.span.end(), at)));
        order.sort_unstable();
        keep_near(&mut order, |(end, _)| *end, counters);
        let first = order.first().map(|(end, _)| *end).unwrap_or_default();
        Ok(Self { first, spans, order, ..Self::default() })
    }

    /// Decodes a request of metrics.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn of_points(bytes: &[u8], encoding: Encoding, counters: &mut ReadCounters) -> Result<Self, String> {
        let mut points = Vec::new();
        let sink = |whose: &Resource, point| points.push((whose.clone(), point));
        let unreadable = match encoding {
            Encoding::Json => points::decode_json(bytes, sink),
            Encoding::Protobuf | Encoding::ProtobufVarint => points::decode_protobuf(bytes, sink),
        };
        counters.unreadable_points += unreadable.map_err(|error| error.to_string())?;
        counters.points += points.len() as u64;
        points.sort_by_key(|(_, point)| point.at);
        keep_near(&mut points, |(_, point)| point.at, counters);
        let first = points.first().map(|(_, point)| point.at).unwrap_or_default();
        Ok(Self { first, points, ..Self::default() })
    }

    /// Adds the times between points of the same series to `apart`.
    pub fn intervals(&self, last: &mut HashMap<u64, Timestamp>, apart: &mut Vec<Micros>) {
        for (whose, point) in &self.points {
            let before = last.insert(point.series(whose), point.at);
            apart.extend(before.and_then(|before| point.at.since(before)).filter(|length| *length > Micros::ZERO));
        }
    }
}

/// Counts the spans of a request; what is damaged is somebody else's to tell.
pub fn count(bytes: &[u8], encoding: Encoding, rate: &mut Rate) {
    let sink = |origin: &recorded::Origin<'_>, span: Span| rate.add(&span, origin.has_kind);
    let _ = match encoding {
        Encoding::Json => recorded::decode_json(bytes, sink),
        Encoding::Protobuf | Encoding::ProtobufVarint => recorded::decode_protobuf(bytes, sink),
    };
}

/// Leaves out what lies far from the middle one of `sorted`.
fn keep_near<T>(sorted: &mut Vec<T>, at: impl Fn(&T) -> Timestamp, counters: &mut ReadCounters) {
    let Some(middle) = sorted.get(sorted.len() / 2).map(&at) else { return };
    let before = sorted.len();
    sorted.retain(|one| at(one) <= middle + SPREAD_MAX && at(one) + SPREAD_MAX >= middle);
    counters.broken_clocks += (before - sorted.len()) as u64;
    if let (Some(first), Some(last)) = (sorted.first(), sorted.last()) {
        counters.saw(at(first), at(last));
    }
}
