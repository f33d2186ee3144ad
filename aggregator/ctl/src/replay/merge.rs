//! Several files of one recording as one stream in time: decodes a request ahead of each file and takes the earliest.
//!
//! Within a file requests may be out of order as far as the fleet's lateness covers. A request that lies far ahead of the
//! one behind it in the same file has a broken clock and is left out: otherwise it would end the recording. Memory: two
//! decoded requests per file.

use std::collections::VecDeque;

use sage_causal::observation::Observation;
use sage_common::{Micros, Timestamp};
use sage_node_agent::parse::recorded;

use super::{
    feed::{Feed, LEAD, Placed},
    input::{Encoding, Input, InputError, Request},
    points::{self, Point, Resource},
};

/// A request that begins this much after its successor has a broken clock: exporters' batches overlap by seconds.
const AHEAD_MAX: Micros = Micros::from_secs(3_600);

/// Spans within a request that end this much after its middle one are of a broken clock: requests hold seconds.
const SPREAD_MAX: Micros = Micros::from_secs(3_600);

/// Bad requests whose place and fault are told; the rest is counted.
pub const PROBLEMS_MAX: usize = 20;

/// Between two moves of time within a request.
const STEP: Micros = Micros::from_millis(500);

/// What a file holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// `ExportTraceServiceRequest`.
    Traces,
    /// `ExportMetricsServiceRequest`.
    Metrics,
}

/// What was read and what could not be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ReadCounters {
    /// Requests.
    pub requests: u64,
    /// Of those, damaged ones, and files that end early.
    pub bad: u64,
    /// Spans.
    pub spans: u64,
    /// Spans without a usable id.
    pub invalid_ids: u64,
    /// Spans that end before they start, or last longer than anyone means; kept with another duration.
    pub odd_durations: u64,
    /// Spans and points far away from everything around them.
    pub broken_clocks: u64,
    /// Data points.
    pub points: u64,
    /// The first bad requests: file, line, fault.
    pub problems: Vec<String>,
}

/// One decoded request.
#[derive(Debug, Default)]
struct Batch {
    first: Timestamp,
    spans: Vec<Placed>,
    points: Vec<(Resource, Point)>,
}

struct Source {
    input: Input,
    content: Content,
    ahead: VecDeque<Batch>,
    is_over: bool,
}

/// The files of one recording.
pub struct Recording {
    sources: Vec<Source>,
    counters: ReadCounters,
    is_strict: bool,
}

impl Recording {
    /// A recording of nothing. A `is_strict` one fails at the first bad request.
    pub fn new(is_strict: bool) -> Self {
        Self { sources: Vec::new(), counters: ReadCounters::default(), is_strict }
    }

    /// Adds a file.
    pub fn add(&mut self, input: Input, content: Content) {
        self.sources.push(Source { input, content, ahead: VecDeque::new(), is_over: false });
    }

    /// What was read so far.
    pub fn counters(&self) -> &ReadCounters {
        &self.counters
    }

    /// Feeds the next request in time to `feed` and gives what that finishes; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ReadError`] when strict, at the first thing that is bad.
    pub fn step(&mut self, feed: &mut Feed) -> Result<Option<Vec<Observation>>, ReadError> {
        for at in 0..self.sources.len() {
            self.read_ahead(at, feed)?;
        }
        let due = |source: &Source| {
            let first = source.ahead.front()?.first;
            Some(if source.content == Content::Metrics { first - LEAD } else { first })
        };
        let next = (0..self.sources.len())
            .filter(|at| due(&self.sources[*at]).is_some())
            .min_by_key(|at| due(&self.sources[*at]));
        let Some(next) = next else { return Ok(None) };
        let at = due(&self.sources[next]).unwrap_or_default();
        let Some(batch) = self.sources[next].ahead.pop_front() else { return Ok(None) };
        let mut finished = feed.advance(at);
        feed.points(batch.points);
        let mut now = at;
        for placed in &batch.spans {
            let end = placed.span.end();
            if end > now + STEP {
                now = end;
                finished.extend(feed.advance(now));
            }
            feed.span(placed);
        }
        Ok(Some(finished))
    }

    /// Keeps two requests of the file at hand, and drops the first if the second lies far before it.
    fn read_ahead(&mut self, at: usize, feed: &mut Feed) -> Result<(), ReadError> {
        loop {
            let source = &mut self.sources[at];
            while source.ahead.len() < 2 && !source.is_over {
                match read(source, feed, &mut self.counters) {
                    Ok(Some(batch)) => source.ahead.push_back(batch),
                    Ok(None) => source.is_over = true,
                    Err(error) => {
                        source.is_over = matches!(error, ReadError::Input(_));
                        self.counters.bad += 1;
                        if self.is_strict {
                            return Err(error);
                        }
                        if self.counters.problems.len() < PROBLEMS_MAX {
                            self.counters.problems.push(error.to_string());
                        }
                    }
                }
            }
            let is_broken = source.ahead.len() > 1 && source.ahead[0].first > source.ahead[1].first + AHEAD_MAX;
            if !is_broken {
                return Ok(());
            }
            if let Some(broken) = source.ahead.pop_front() {
                self.counters.broken_clocks += (broken.spans.len() + broken.points.len()) as u64;
            }
        }
    }
}

/// Why a request gives nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file itself.
    #[error(transparent)]
    Input(#[from] InputError),
    /// One request.
    #[error("{path}: {place}: {fault}")]
    Request {
        /// The file.
        path: String,
        /// Where.
        place: super::input::Place,
        /// What is wrong.
        fault: String,
    },
}

/// The next request that holds anything.
fn read(source: &mut Source, feed: &mut Feed, counters: &mut ReadCounters) -> Result<Option<Batch>, ReadError> {
    loop {
        let (encoding, content) = (source.input.encoding(), source.content);
        let decoded = match source.input.next_request()? {
            None => return Ok(None),
            Some(Request::TooLong) => Err(format!("longer than {} bytes", super::input::REQUEST_BYTES_MAX)),
            Some(Request::Whole(bytes)) => match content {
                Content::Traces => spans(bytes, encoding, feed, counters),
                Content::Metrics => samples(bytes, encoding, counters),
            },
        };
        counters.requests += 1;
        match decoded {
            Ok(batch) if batch.spans.is_empty() && batch.points.is_empty() => {}
            Ok(batch) => return Ok(Some(batch)),
            Err(fault) => {
                let path = source.input.path().display().to_string();
                return Err(ReadError::Request { path, place: source.input.place(), fault });
            }
        }
    }
}

fn spans(bytes: &[u8], encoding: Encoding, feed: &mut Feed, counters: &mut ReadCounters) -> Result<Batch, String> {
    let mut spans: Vec<Placed> = Vec::new();
    let mut whose = (String::new(), None::<String>, None);
    let sink = |origin: &recorded::Origin<'_>, span| {
        if whose.2.is_none() || whose.0 != origin.service || whose.1.as_deref() != origin.host {
            feed.note_name(origin.service);
            let node = feed.node(origin.service, origin.host);
            whose = (origin.service.to_owned(), origin.host.map(str::to_owned), node);
        }
        if let Some(node) = whose.2 {
            spans.push(Placed { node: node as u32, span });
        }
    };
    let tally = match encoding {
        Encoding::Json => recorded::decode_json(bytes, sink),
        Encoding::Protobuf | Encoding::ProtobufVarint => recorded::decode_protobuf(bytes, sink),
    };
    let tally = tally.map_err(|error| error.to_string())?;
    counters.spans += tally.spans;
    counters.invalid_ids += tally.invalid_ids;
    counters.odd_durations += tally.reversed + tally.clamped;
    spans.sort_by_key(|placed| placed.span.end());
    let middle = spans.get(spans.len() / 2).map(|placed| placed.span.end()).unwrap_or_default();
    let before = spans.len();
    spans.retain(|placed| {
        let end = placed.span.end();
        end <= middle + SPREAD_MAX && end + SPREAD_MAX >= middle
    });
    counters.broken_clocks += (before - spans.len()) as u64;
    let first = spans.first().map(|placed| placed.span.end()).unwrap_or_default();
    Ok(Batch { first, spans, points: Vec::new() })
}

fn samples(bytes: &[u8], encoding: Encoding, counters: &mut ReadCounters) -> Result<Batch, String> {
    let mut points = Vec::new();
    let sink = |whose: &Resource, point| points.push((whose.clone(), point));
    match encoding {
        Encoding::Json => points::decode_json(bytes, sink),
        Encoding::Protobuf | Encoding::ProtobufVarint => points::decode_protobuf(bytes, sink),
    }
    .map_err(|error| error.to_string())?;
    counters.points += points.len() as u64;
    points.sort_by_key(|(_, point)| point.at);
    let middle = points.get(points.len() / 2).map(|(_, point)| point.at).unwrap_or_default();
    let before = points.len();
    points.retain(|(_, point)| point.at <= middle + SPREAD_MAX && point.at + SPREAD_MAX >= middle);
    counters.broken_clocks += (before - points.len()) as u64;
    let first = points.first().map(|(_, point)| point.at).unwrap_or_default();
    Ok(Batch { first, spans: Vec::new(), points })
}
