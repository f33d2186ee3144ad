//! One node: the agent's core, and what its driver does with a window that is due.

use std::collections::BTreeSet;

use sage_common::{
    BootId, LatencySeries, Metric, Micros, NodeId, NodeWindow, ServiceId, Skeleton, Span, Timestamp, WindowKey,
};
use sage_node_agent::{
    core::{
        telemetry::{Telemetry, TelemetryConfig, TelemetryCounters, WindowLatencies},
        usage::{Sweep, UsageWindows, WindowUsage},
    },
    driver::assemble::{assemble, encode},
};
use sage_protocol::EncodedWindow;

use super::{
    Place,
    metrics::{Metrics, Ready},
};

/// Between two sweeps of an agent's counters.
const SWEEP: Micros = Micros::from_secs(1);

/// A recording has one life of every agent.
const BOOT: BootId = BootId(1);

/// One agent without its process.
#[derive(Debug)]
pub(super) struct Node {
    id: NodeId,
    config: TelemetryConfig,
    telemetry: Option<Telemetry>, // begins with the first thing it hears
    usage: UsageWindows,
    metrics: Metrics,
    newest: Timestamp, // start of the newest window that a span opened
    seq: u64,
}

/// The parts of one node window that is due.
#[derive(Debug)]
pub(super) struct Delivery {
    key: WindowKey,
    parts: Option<(WindowLatencies, WindowUsage)>,
    start: Timestamp,
    is_silent: bool,
}

impl Node {
    pub fn new(id: NodeId, config: &TelemetryConfig) -> Self {
        Self {
            id,
            config: *config,
            telemetry: None,
            usage: UsageWindows::new(config.window, SWEEP),
            metrics: Metrics::default(),
            newest: Timestamp::default(),
            seq: 0,
        }
    }

    pub fn id(&self) -> &NodeId {
        &self.id
    }

    pub fn counters(&self) -> TelemetryCounters {
        self.telemetry.as_ref().map(Telemetry::counters).unwrap_or_default()
    }

    /// Start of the newest window that anything is known of.
    pub fn newest(&self) -> Option<Timestamp> {
        self.metrics.newest().max(self.telemetry.is_some().then_some(self.newest))
    }

    /// A span arrives at `now`, or when it ends if that is later. The node's clock shows at least the beginning of the
    /// newest window: it never goes back, and windows are all that it is for.
    pub fn span(&mut self, span: &Span, now: Timestamp) {
        let at = now.max(span.end()).max(self.newest);
        self.newest = at.aligned(self.config.window);
        self.telemetry(at).handle_span(span, at);
    }

    pub fn sweep(&mut self, at: Timestamp, sweep: &Sweep, now: Timestamp) {
        self.usage.handle_sweep(at, sweep);
        self.telemetry(now);
    }

    pub fn metric(&mut self, place: &Place, metric: Metric, start: Timestamp, value: f64, now: Timestamp) -> bool {
        self.telemetry(now);
        self.metrics.push(place, metric, start, value)
    }

    pub fn latency(
        &mut self,
        start: Timestamp,
        series: Vec<LatencySeries>,
        skeletons: Vec<Skeleton>,
        now: Timestamp,
    ) -> bool {
        self.telemetry(now);
        self.metrics.push_latency(start, series, skeletons)
    }

    /// The oldest window that is due at `now`.
    pub fn close_due(&mut self, now: Timestamp) -> Option<Delivery> {
        let latencies = self.telemetry.as_mut()?.handle_timeout(now)?;
        Some(self.delivery(latencies))
    }

    fn delivery(&mut self, mut latencies: WindowLatencies) -> Delivery {
        let start = latencies.start;
        let mut usage = self.usage.take(start).unwrap_or_default();
        let ready = self.metrics.take(start, &mut usage);
        add_missing(&mut latencies, ready);
        let is_silent = latencies.latencies.is_empty();
        let key = WindowKey { node: self.id.clone(), boot: BOOT, seq: self.seq };
        self.seq += 1;
        Delivery { key, parts: Some((latencies, usage)), start, is_silent }
    }

    fn telemetry(&mut self, now: Timestamp) -> &mut Telemetry {
        let config = self.config;
        // With the oldest window that is still open: what it hears first may be late.
        self.telemetry.get_or_insert_with(|| Telemetry::new(config, now - config.lateness))
    }
}

impl Delivery {
    pub fn start(&self) -> Timestamp {
        self.start
    }

    /// Whether it says nothing about latency.
    pub fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// The window as the aggregator reads it; `None` when it breaks a rule of the wire.
    pub fn send(&mut self) -> Option<NodeWindow> {
        let (latencies, usage) = self.parts.take()?;
        let encoded = encode(assemble(self.key.clone(), latencies, usage, Vec::new())).ok()?;
        EncodedWindow::decode(encoded.bytes()).ok()
    }
}

/// Adds what `ready` says of services that no span tells of.
fn add_missing(own: &mut WindowLatencies, ready: Ready) {
    let told: BTreeSet<ServiceId> = own.latencies.iter().map(|series| series.service.clone()).collect();
    own.latencies.extend(ready.latencies.into_iter().filter(|series| !told.contains(&series.service)));
    own.skeletons.extend(ready.skeletons.into_iter().filter(|skeleton| !told.contains(&skeleton.service)));
}
