//! Several files of one recording as one stream in time: decodes a request ahead of each file and takes the earliest.
//!
//! Within a file requests may be out of order as far as the fleet's lateness covers. A request that lies far ahead of the
//! one behind it in the same file has a broken clock and is left out: otherwise it would end the recording. Memory: two
//! decoded requests per file, and a few more of metrics at the beginning.

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
};

use sage_common::{Micros, Timestamp};

pub use super::batch::ReadCounters;
use super::{
    batch::{self, Batch, Room},
    feed::LEAD,
    input::{Input, InputError, Place, REQUEST_BYTES_MAX, Request},
    rate::Rate,
    streams::{Finished, Streams},
};

/// A request that begins this much after its successor has a broken clock: exporters' batches overlap by seconds.
const AHEAD_MAX: Micros = Micros::from_secs(3_600);

/// Bad requests whose place and fault are told; the rest is counted.
pub const PROBLEMS_MAX: usize = 20;

/// Between two moves of time within a request.
const STEP: Micros = Micros::from_millis(500);

/// Requests of metrics looked at to find out how far samples are apart.
const PEEKED: usize = 4;

/// What a file holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// `ExportTraceServiceRequest`.
    Traces,
    /// `ExportMetricsServiceRequest`.
    Metrics,
}

struct Source {
    input: Input,
    content: Content,
    ahead: VecDeque<Batch>,
    usable: u64, // requests that held something
    is_over: bool,
}

impl Source {
    /// When its next request is due; metrics are read early.
    fn due(&self) -> Option<Timestamp> {
        let first = self.ahead.front()?.first;
        Some(if self.content == Content::Metrics { first - LEAD } else { first })
    }
}

impl Source {
    /// What to say of a file that held nothing at all.
    fn useless(&self) -> Option<String> {
        let path = self.input.path().display();
        let (wanted, other) = match self.content {
            Content::Traces => ("spans", "metrics"),
            Content::Metrics => ("data points", "traces"),
        };
        match (self.usable, self.input.place().0) {
            (0, 0) => Some(format!("{path} is empty")),
            (0, _) => Some(format!("{path} holds no {wanted} that can be used; is it a file of {other}?")),
            _ => None,
        }
    }
}

/// The files of one recording.
pub struct Recording {
    sources: Vec<Source>,
    counters: ReadCounters,
    is_strict: bool,
    room: Option<Room>, // of the newest request that is over
}

impl Recording {
    /// A recording of nothing. A `is_strict` one fails at the first bad request.
    pub fn new(is_strict: bool) -> Self {
        Self { sources: Vec::new(), counters: ReadCounters::default(), is_strict, room: None }
    }

    /// Adds a file.
    pub fn add(&mut self, input: Input, content: Content) {
        self.sources.push(Source { input, content, ahead: VecDeque::new(), usable: 0, is_over: false });
    }

    /// Opens a file and adds it. One that does not even begin is noted, and the rest is read.
    ///
    /// # Errors
    ///
    /// [`InputError::Open`] when it is not there; when strict, anything.
    pub fn open(&mut self, path: &Path, content: Content) -> Result<(), ReadError> {
        match Input::open(path) {
            Ok(input) => self.add(input, content),
            Err(error @ InputError::Open { .. }) => return Err(error.into()),
            Err(error) => self.problem(error.into())?,
        }
        Ok(())
    }

    /// How many files it has.
    pub fn files(&self) -> usize {
        self.sources.len()
    }

    /// What was read so far.
    pub fn counters(&self) -> &ReadCounters {
        &self.counters
    }

    /// Notes something that could not be read.
    ///
    /// # Errors
    ///
    /// `error` itself when strict.
    pub fn problem(&mut self, error: ReadError) -> Result<(), ReadError> {
        self.counters.bad += 1;
        if self.is_strict {
            return Err(error);
        }
        if self.counters.problems.len() < PROBLEMS_MAX {
            self.counters.problems.push(error.to_string());
        }
        Ok(())
    }

    /// How far samples of the same series are apart, by the first requests of metrics; the median.
    ///
    /// # Errors
    ///
    /// [`ReadError`] when strict, at the first thing that is bad.
    pub fn interval(&mut self) -> Result<Option<Micros>, ReadError> {
        let (mut last, mut apart) = (HashMap::new(), Vec::new());
        for at in 0..self.sources.len() {
            if self.sources[at].content == Content::Metrics {
                self.fill(at, PEEKED, None)?;
                self.sources[at].ahead.iter().for_each(|batch| batch.intervals(&mut last, &mut apart));
            }
        }
        apart.sort();
        Ok(apart.get(apart.len() / 2).copied())
    }

    /// How often entries are called, by the first requests of the first file in which traces begin. They are read again
    /// later.
    pub fn rate(&self) -> Rate {
        let traces = self.sources.iter().filter(|source| source.content == Content::Traces);
        let mut rates = traces.map(|source| rate(source.input.path()));
        rates.find(Rate::has_roots).unwrap_or_default()
    }

    /// Feeds what comes next in time to `streams` and gives what that finishes; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ReadError`] when strict, at the first thing that is bad.
    pub fn step(&mut self, streams: &mut Streams) -> Result<Option<Finished>, ReadError> {
        for at in 0..self.sources.len() {
            self.read_ahead(at, streams)?;
        }
        let due = |at: &usize| self.sources[*at].due();
        let next = (0..self.sources.len()).filter(|at| due(at).is_some()).min_by_key(due);
        let Some(next) = next else { return Ok(None) };
        let others = (0..self.sources.len()).filter(|at| *at != next);
        let until = others.filter_map(|at| due(&at)).min().unwrap_or(Timestamp::from_micros(u64::MAX));
        let Some(mut now) = due(&next) else { return Ok(None) };
        let source = &mut self.sources[next];
        let Some(batch) = source.ahead.front_mut() else { return Ok(None) };
        let mut finished = streams.advance(now);
        streams.points(&std::mem::take(&mut batch.points));
        while let Some((end, placed)) = batch.span() {
            if end > now + STEP {
                if end > until {
                    batch.first = end; // another file is first
                    return Ok(Some(finished));
                }
                now = end;
                finished.extend(streams.advance(now));
            }
            streams.span(placed);
            batch.step();
        }
        self.room = source.ahead.pop_front().and_then(Batch::room).or(self.room.take());
        Ok(Some(finished))
    }

    /// Keeps two requests of the file at hand, and drops the first if the second lies far before it.
    fn read_ahead(&mut self, at: usize, streams: &mut Streams) -> Result<(), ReadError> {
        loop {
            self.fill(at, 2, Some(streams))?;
            let ahead = &mut self.sources[at].ahead;
            let is_broken = ahead.len() > 1 && ahead[0].first > ahead[1].first + AHEAD_MAX;
            if !is_broken {
                return Ok(());
            }
            if let Some(broken) = ahead.pop_front() {
                self.counters.broken_clocks += broken.left() as u64;
            }
        }
    }

    /// Decodes until `count` requests of the file are at hand.
    fn fill(&mut self, at: usize, count: usize, mut streams: Option<&mut Streams>) -> Result<(), ReadError> {
        while self.sources[at].ahead.len() < count && !self.sources[at].is_over {
            match read(&mut self.sources[at], streams.as_deref_mut(), &mut self.counters, &mut self.room) {
                Ok(Some(batch)) => {
                    self.sources[at].usable += 1;
                    self.sources[at].ahead.push_back(batch);
                }
                Ok(None) => {
                    self.sources[at].is_over = true;
                    self.counters.useless.extend(self.sources[at].useless());
                }
                Err(error) => {
                    self.sources[at].is_over = matches!(error, ReadError::Input(_));
                    self.problem(error)?;
                }
            }
        }
        Ok(())
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
        place: Place,
        /// What is wrong.
        fault: String,
    },
}

fn rate(path: &Path) -> Rate {
    let mut rate = Rate::default();
    let Ok(mut input) = Input::open(path) else { return rate };
    let encoding = input.encoding();
    while let Ok(Some(request)) = input.next_request() {
        if let Request::Whole(bytes) = request {
            batch::count(bytes, encoding, &mut rate);
        }
        if rate.is_enough() {
            break;
        }
    }
    rate
}

/// The next request that holds anything. Without `streams` spans go nowhere, so only metrics are read.
fn read(
    source: &mut Source,
    mut streams: Option<&mut Streams>,
    counters: &mut ReadCounters,
    room: &mut Option<Room>,
) -> Result<Option<Batch>, ReadError> {
    loop {
        let encoding = source.input.encoding();
        let decoded = match (source.input.next_request()?, source.content, streams.as_deref_mut()) {
            (None, ..) => return Ok(None),
            (Some(Request::TooLong), ..) => Err(format!("longer than {REQUEST_BYTES_MAX} bytes")),
            (Some(Request::Whole(bytes)), Content::Traces, Some(streams)) => {
                Batch::of_spans(bytes, encoding, &mut streams.spans, counters, room.take().unwrap_or_default())
            }
            (Some(Request::Whole(bytes)), ..) => Batch::of_points(bytes, encoding, counters),
        };
        counters.requests += 1;
        match decoded {
            Ok(batch) if batch.is_over() => counters.empty += 1,
            Ok(batch) => return Ok(Some(batch)),
            Err(fault) => {
                let path = source.input.path().display().to_string();
                return Err(ReadError::Request { path, place: source.input.place(), fault });
            }
        }
    }
}
