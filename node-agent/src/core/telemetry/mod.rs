//! From spans to what a node says about latency in one window.
//!
//! ```text
//!           ┌ registry: names and their bound ┐
//!   span ──►│ open window by its END time     │── window closes ──► percentiles, entry histograms
//!           │ pairing by trace                │                     self times, stubs, skeletons
//!           └─────────────────────────────────┘
//! ```
//!
//! Pure: the caller passes the time. The agent's `now` is the authority: a span whose end lies too far from it is counted
//! in the newest window and as skewed, and a jump of the clock closes the open windows and starts one new window.
//! Deterministic: the same calls give the same windows. Memory does not grow with the rate of spans or the number of
//! names; what does not fit is shed in whole traces and counted.

mod intervals;
mod observed;
mod pairing;
mod registry;
mod sample;
mod series;
mod skeleton;
mod window;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use sage_common::{EntryHistogram, IntakeCounters, LatencySeries, Micros, Skeleton, Span, Stub, Timestamp};

use self::{
    observed::Observed,
    pairing::{Admission, Pairing},
    registry::Registry,
    sample::Sample,
    window::OpenWindow,
};
pub use self::{
    observed::ObservedService,
    pairing::{PENDING_MAX, TRACE_SPANS_MAX},
    registry::SERVICES_MAX,
    sample::STUBS_MAX,
    skeleton::{SIGNATURES_MAX, SKELETONS_MAX},
    window::ENTRIES_MAX,
};

/// Windows open at once: the newest, and those whose lateness allowance runs. Longer allowances are cut to fit.
pub const WINDOWS_OPEN_MAX: usize = 12;

/// Latency series of a window at most, whatever the configuration says; see [`WINDOW_BYTES_MAX`].
pub const SERIES_MAX: usize = 5_000;

/// About how many bytes a window's latencies, entries, stubs and skeletons may take on the wire: three quarters of the
/// longest message, which leaves the rest to usage.
pub const WINDOW_BYTES_MAX: usize = 768 << 10;

/// Of those, the bytes kept for stubs and skeletons when names are long and many.
const SAMPLE_BYTES_MIN: usize = 128 << 10;

/// Longest names of an entry operation, with what surrounds them.
const ENTRY_NAME_BYTES: usize = 200;

/// How long a client span waits for its server span to end: requests that take longer are not paired.
const PATIENCE: Micros = Micros::from_secs(30);

/// Bounds on [`PATIENCE`] in windows: at least one whole window must pass, and no name may be forgotten meanwhile.
const PATIENCE_WINDOWS: (u64, u64) = (2, 100);

/// What the pipeline has to know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TelemetryConfig {
    /// Length of a window; at least a millisecond.
    pub window: Micros,
    /// How long after its end a window stays open. It must cover the delay of the applications' batching exporters.
    pub lateness: Micros,
    /// Traces whose stubs are kept per window.
    pub sample_traces: usize,
    /// Latency series per window; further operations go to `_OTHER`.
    pub series_max: usize,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { window: Micros::from_secs(10), lateness: Micros::from_secs(1), sample_traces: 512, series_max: 2000 }
    }
}

/// The latency part of a [`sage_common::NodeWindow`].
#[derive(Clone, Debug, PartialEq)]
pub struct WindowLatencies {
    /// Start of the window by this node's clock, aligned to `length`.
    pub start: Timestamp,
    /// Length of the window.
    pub length: Micros,
    /// Whether the agent missed part of it: it started meanwhile, or the clock jumped. Rates are too low then.
    pub is_partial: bool,
    /// Percentiles, ordered by name.
    pub latencies: Vec<LatencySeries>,
    /// The coherent sample, ordered by trace.
    pub stubs: Vec<Stub>,
    /// Call structures of the sampled server spans.
    pub skeletons: Vec<Skeleton>,
    /// Histograms of server spans without parent.
    pub entries: Vec<EntryHistogram>,
    /// What was taken and dropped.
    pub intake: IntakeCounters,
    /// Share of all traces that the stubs hold, 1 when nothing was sampled away: every trace whose hash is at most this
    /// share of the largest hash is complete here. Busier nodes have smaller shares, and keep a part of the same traces.
    pub stub_share: f32,
}

/// Running totals since the start of the agent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TelemetryCounters {
    /// Spans counted in some window.
    pub spans: u64,
    /// Spans that came after their window had closed; dropped.
    pub late: u64,
    /// Spans whose end lay too far from the agent's clock; counted in the newest window.
    pub clock_skewed: u64,
    /// Jumps of the agent's own clock.
    pub clock_jumps: u64,
    /// Spans delivered twice; dropped.
    pub duplicates: u64,
    /// Spans counted without self time, stub or skeleton, for lack of room.
    pub unpaired_for_room: u64,
    /// Client spans whose server span never came.
    pub orphans: u64,
    /// Spans counted under `_OTHER`.
    pub other_operations: u64,
    /// Spans of services beyond [`SERVICES_MAX`]; dropped.
    pub refused_services: u64,
    /// Windows given up because nobody took them.
    pub windows_discarded: u64,
}

/// The pipeline of one node.
#[derive(Debug)]
pub struct Telemetry {
    config: TelemetryConfig,
    windows: VecDeque<OpenWindow>, // never empty; the newest is last
    registry: Registry,
    pairing: Pairing,
    observed: Observed,
    counters: TelemetryCounters,
    /// Totals of the drivers at the last look.
    intake: IntakeCounters,
}

impl Telemetry {
    /// A pipeline whose first window is the one that `now` falls in.
    pub fn new(config: TelemetryConfig, now: Timestamp) -> Self {
        let window = config.window.max(Micros::from_millis(1));
        let lateness = config.lateness.min(window.saturating_mul(WINDOWS_OPEN_MAX as u64 - 2));
        let (least, most) = PATIENCE_WINDOWS;
        let pairing = Pairing::new(PATIENCE.get().div_ceil(window.get()).clamp(least, most));
        let mut windows = VecDeque::with_capacity(WINDOWS_OPEN_MAX);
        windows.push_back(OpenWindow::new(0, now.aligned(window), true, pairing.limit()));
        Self {
            config: TelemetryConfig { window, lateness, ..config },
            windows,
            registry: Registry::new(config.series_max.min(SERIES_MAX)),
            pairing,
            observed: Observed::default(),
            counters: TelemetryCounters::default(),
            intake: IntakeCounters::default(),
        }
    }

    /// Counts one span that arrived at `now`.
    pub fn handle_span(&mut self, span: &Span, now: Timestamp) {
        self.advance(now);
        let newest = self.newest().seq;
        let Some(at) = self.place(span.end(), now) else {
            self.counters.late += 1;
            self.newest_mut().dropped += 1;
            return;
        };
        let Some(found) = self.registry.find(span, newest) else {
            self.counters.refused_services += 1;
            self.newest_mut().dropped += 1;
            return;
        };
        let Some(service) = self.registry.service_of(found.call) else { return };
        match self.pairing.admit(span, found.call, service, self.windows[at].seq, newest) {
            Admission::Duplicate => {
                self.counters.duplicates += 1;
                return;
            }
            Admission::Shed => self.counters.unpaired_for_room += 1,
            Admission::Kept => {}
        }
        self.counters.spans += 1;
        self.counters.other_operations += u64::from(found.is_other);
        self.windows[at].record(span, found.call);
        self.observed.note(span, newest);
        self.lower_limits();
    }

    /// Takes over the running totals of the intake drivers: what they rejected and dropped since the last call is
    /// counted in the newest window. `spans` and `unpaired_spans` are ignored: this pipeline counts them itself.
    pub fn handle_intake(&mut self, totals: IntakeCounters) {
        let before = std::mem::replace(&mut self.intake, totals);
        let newest = self.newest_mut();
        newest.rejected += totals.rejected_requests.saturating_sub(before.rejected_requests);
        newest.dropped += totals.dropped_spans.saturating_sub(before.dropped_spans);
    }

    /// Opens and closes windows as `now` demands. Call it until it returns `None`.
    pub fn handle_timeout(&mut self, now: Timestamp) -> Option<WindowLatencies> {
        self.advance(now);
        let oldest = self.windows.front()?;
        let is_due = oldest.is_closed || oldest.start + self.config.window + self.config.lateness <= now;
        if !is_due || self.windows.len() < 2 {
            return None;
        }
        let window = self.windows.pop_front()?;
        Some(self.close(window))
    }

    /// When [`handle_timeout`](Self::handle_timeout) next has something to do. Wake up once a second at least besides:
    /// the wall clock may be set back.
    pub fn poll_timeout(&self) -> Timestamp {
        let Self { config, windows, .. } = self;
        let opens = self.newest().start + config.window;
        match windows.front() {
            Some(oldest) if windows.len() > 1 && oldest.is_closed => Timestamp::default(),
            Some(oldest) => opens.min(oldest.start + config.window + config.lateness),
            None => opens,
        }
    }

    /// Running totals.
    pub fn counters(&self) -> TelemetryCounters {
        self.counters
    }

    /// The services seen lately, ordered by name.
    pub fn observed(&self) -> Vec<ObservedService> {
        self.observed.services()
    }

    /// Which open window a span belongs to that ended at `end` and arrived at `now`; `None` when that one has closed.
    fn place(&mut self, end: Timestamp, now: Timestamp) -> Option<usize> {
        let TelemetryConfig { window, lateness, .. } = self.config;
        let newest = self.windows.len() - 1;
        if end + window + lateness < now || end > now + window {
            self.counters.clock_skewed += 1;
            return Some(newest);
        }
        let start = self.windows[newest].start;
        // The clock may have been set back a little: then the newest window is all there is.
        if end >= start || now < start {
            return Some(newest);
        }
        self.windows.iter().position(|open| !open.is_closed && open.start <= end && end < open.start + window)
    }

    /// Makes the newest window the one that `now` falls in.
    fn advance(&mut self, now: Timestamp) {
        let window = self.config.window;
        let start = self.newest().start;
        let is_ahead = now >= start + window.saturating_mul(WINDOWS_OPEN_MAX as u64);
        if is_ahead || now + window < start {
            self.counters.clock_jumps += 1;
            for open in &mut self.windows {
                open.is_closed = true;
            }
            self.newest_mut().is_partial = true;
            self.open(now.aligned(window), true);
            return;
        }
        let mut next = start + window;
        while next <= now {
            self.open(next, false); // ends: fewer than WINDOWS_OPEN_MAX windows lie between
            next = next + window;
        }
    }

    fn open(&mut self, start: Timestamp, is_partial: bool) {
        let seq = self.newest().seq + 1;
        if self.windows.len() >= WINDOWS_OPEN_MAX {
            // Nobody has called `handle_timeout` for long, or the clock jumps to and fro.
            if let Some(given_up) = self.windows.pop_front() {
                self.counters.windows_discarded += 1;
                self.newest_mut().dropped += given_up.spans + given_up.dropped;
                self.newest_mut().rejected += given_up.rejected;
            }
        }
        self.windows.push_back(OpenWindow::new(seq, start, is_partial, self.pairing.limit()));
    }

    fn close(&mut self, mut window: OpenWindow) -> WindowLatencies {
        let Self { config, registry, pairing, .. } = self;
        let entries = window.entries(registry);
        let entry_bytes: usize = entries.iter().map(|entry| entry.v2.len() + ENTRY_NAME_BYTES).sum();
        let series_bytes_max = WINDOW_BYTES_MAX.saturating_sub(SAMPLE_BYTES_MIN + entry_bytes);
        let series_bytes = window.series_bytes(registry).min(series_bytes_max);
        let sample_bytes = WINDOW_BYTES_MAX.saturating_sub(entry_bytes + series_bytes);
        let mut sample = Sample::new(window.start, config.sample_traces, window.limit, sample_bytes);
        let scale = u64::MAX as f64 / (window.limit.0 as f64).max(1.0);
        let (seq, limit) = (window.seq, window.limit);
        let unfinished = pairing.close(seq, |span| {
            if span.trace <= limit {
                sample.add(&span, registry);
                if span.side == sage_common::Side::Server {
                    window.record_self(&span, scale);
                }
            }
        });
        let (stubs, skeletons, stub_share) = sample.finish(registry);
        self.counters.orphans += unfinished.orphans;
        self.counters.unpaired_for_room += unfinished.oversized;
        self.observed.close(&window, self.config.window, &self.registry);
        let latencies = WindowLatencies {
            start: window.start,
            length: self.config.window,
            is_partial: window.is_partial,
            latencies: window.latencies(&self.registry, series_bytes_max),
            stubs,
            skeletons,
            entries,
            intake: IntakeCounters {
                spans: window.spans,
                rejected_requests: window.rejected,
                dropped_spans: window.dropped,
                unpaired_spans: unfinished.orphans + unfinished.oversized,
            },
            stub_share,
        };
        self.registry.expire(seq);
        latencies
    }

    /// A trace that is given up now is incomplete in every window that is open.
    fn lower_limits(&mut self) {
        let limit = self.pairing.limit();
        for open in &mut self.windows {
            open.limit = open.limit.min(limit);
        }
    }

    fn newest(&self) -> &OpenWindow {
        &self.windows[self.windows.len() - 1]
    }

    fn newest_mut(&mut self) -> &mut OpenWindow {
        let last = self.windows.len() - 1;
        &mut self.windows[last]
    }
}
