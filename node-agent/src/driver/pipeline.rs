//! The task around the pure pipeline: spans and sweeps in, the parts of windows out.

use std::{
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use sage_common::{BootId, LinkName, Micros, NodeId, Timestamp, WindowKey};
use sage_protocol::EncodedWindow;
use tokio::sync::{mpsc, oneshot};

use super::{
    actuation::{ActuatorHandle, Request},
    assemble::{assemble, encode},
    board::Board,
    clock::{monotonic, wall},
    recent::Totals,
    sampling::{PERIOD, SamplerInput},
};
use crate::{
    core::{
        telemetry::{Telemetry, TelemetryConfig, TelemetryCounters, WINDOWS_OPEN_MAX, WindowLatencies},
        usage::{Hint, Sweep, UsageWindows, WindowUsage},
    },
    intake::SpanBatch,
    kernel::sample::{host::SelfUse, links::speed_bits},
    policy::{CgroupState, LinkState, PolicyInputs},
};

/// Windows between the pipeline and the uplink: as many as can close at once.
pub const WINDOWS_MAX: usize = WINDOWS_OPEN_MAX;
/// The longest wait for a deadline: the wall clock may be set back.
const WAIT_MAX: Micros = Micros::from_secs(1);
/// The shortest wait: a deadline in the past must not make the task spin.
const WAIT_MIN: Micros = Micros::from_millis(10);
/// How long a window waits for its offers before it goes without.
const OFFERS_WAIT: Duration = Duration::from_secs(2);

/// The parts of one window.
pub type Parts = (WindowLatencies, WindowUsage);

/// The pipeline with its surroundings.
pub struct Pipeline {
    telemetry: Telemetry,
    usage: UsageWindows,
    board: Arc<Board>,
    sampler: SyncSender<SamplerInput>,
    parts: mpsc::Sender<Parts>,
    next_look: Micros,
}

impl Pipeline {
    /// A pipeline that begins now.
    pub fn new(
        config: TelemetryConfig,
        board: Arc<Board>,
        sampler: SyncSender<SamplerInput>,
        parts: mpsc::Sender<Parts>,
    ) -> Self {
        let usage = UsageWindows::new(config.window, PERIOD);
        Self { telemetry: Telemetry::new(config, wall()), usage, board, sampler, parts, next_look: Micros::ZERO }
    }

    /// Runs until both inputs have closed, then closes every window, the one that still runs among them.
    pub async fn run(mut self, mut spans: mpsc::Receiver<SpanBatch>, mut sweeps: mpsc::Receiver<Sweep>) {
        let (mut has_spans, mut has_sweeps) = (true, true);
        while has_spans || has_sweeps {
            tokio::select! {
                batch = spans.recv(), if has_spans => match batch {
                    Some(batch) => self.take(&batch),
                    None => has_spans = false,
                },
                sweep = sweeps.recv(), if has_sweeps => match sweep {
                    Some(sweep) => self.usage.handle_sweep(wall(), &sweep),
                    None => has_sweeps = false,
                },
                () = tokio::time::sleep(self.wait().into()) => {}
            }
            self.close_due(wall());
            self.look_around();
        }
        self.close_due(all_closed(wall(), self.usage.length()));
    }

    fn take(&mut self, batch: &SpanBatch) {
        let now = wall();
        batch.iter().for_each(|span| self.telemetry.handle_span(span, now));
    }

    fn wait(&self) -> Micros {
        let deadline = self.telemetry.poll_timeout();
        deadline.since(wall()).unwrap_or_default().clamp(WAIT_MIN, WAIT_MAX)
    }

    fn close_due(&mut self, now: Timestamp) {
        // Ends: at most `WINDOWS_OPEN_MAX` windows are open.
        while let Some(latencies) = self.telemetry.handle_timeout(now) {
            let usage = self.usage.take(latencies.start).unwrap_or_default();
            let intake = latencies.intake;
            let is_lost = self.parts.try_send((latencies, usage)).is_err();
            let mut views = self.board.views();
            views.pipeline.last_window = intake;
            views.pipeline.windows_lost += u64::from(is_lost);
        }
    }

    /// Once a second: counters to the board, hints to the sampler.
    fn look_around(&mut self) {
        let now = monotonic();
        if now < self.next_look {
            return;
        }
        self.next_look = now + PERIOD;
        self.telemetry.handle_intake(self.board.intake().counters());
        let counters = self.telemetry.counters();
        let services = self.telemetry.observed();
        let mut hints = Vec::new();
        for seen in &services {
            let containers = seen.instances.iter().filter_map(|instance| Hint::container(instance.as_str()));
            let pids = seen.pids.iter().map(|pid| Hint::Pid(*pid));
            hints.extend(containers.chain(pids).map(|hint| (seen.service.clone(), hint)));
        }
        // A sampler that is busy learns it a second later.
        let _ = self.sampler.try_send(SamplerInput::Hints(hints));
        let own = SelfUse::read().unwrap_or_default();
        let shed = Board::shed(&self.board.intake().totals(), &counters);
        let mut views = self.board.views();
        let TelemetryCounters { spans, late, .. } = counters;
        let totals = Totals { spans, late, shed, cpu_s: own.cpu_s, drifts: views.actuation.drifts };
        views.recent.push(now, totals);
        views.memory_bytes = own.memory_bytes;
        views.pipeline.services = services;
        views.pipeline.counters = counters;
        views.pipeline.beat = now;
    }
}

/// A time at which every window that is open at `now` has closed.
fn all_closed(now: Timestamp, window: Micros) -> Timestamp {
    now + window.saturating_mul(WINDOWS_OPEN_MAX as u64 + 1)
}

/// Turns parts into windows: asks for the knobs on offer, numbers, encodes. A task of its own, so that the spans never
/// wait for the kernel.
pub struct Finisher {
    /// Name of this node.
    pub node: NodeId,
    /// This life of the agent.
    pub boot: BootId,
    /// Who knows the knobs.
    pub actuator: ActuatorHandle,
    /// The agent's own cgroup, never to be touched.
    pub own_cgroup: Option<sage_common::CgroupPath>,
    /// The board.
    pub board: Arc<Board>,
    /// Where windows go.
    pub windows: mpsc::Sender<EncodedWindow>,
}

impl Finisher {
    /// Runs until the pipeline has ended.
    pub async fn run(self, mut parts: mpsc::Receiver<Parts>) {
        let mut seq = 0;
        while let Some((latencies, usage)) = parts.recv().await {
            let offers = self.offers(&usage).await;
            let key = WindowKey { node: self.node.clone(), boot: self.boot, seq };
            match encode(assemble(key, latencies, usage, offers)) {
                Ok(window) => {
                    seq += 1;
                    if self.windows.send(window).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(error = crate::kernel::chain(&error), "a window cannot be sent");
                    self.board.views().pipeline.windows_lost += 1;
                }
            }
        }
    }

    async fn offers(&self, usage: &WindowUsage) -> Vec<sage_common::KnobOffer> {
        let (reply, answer) = oneshot::channel();
        let inputs = policy_inputs(usage, self.own_cgroup.clone());
        if self.actuator.send(Request::Offers(inputs, reply)).is_err() {
            return Vec::new();
        }
        match tokio::time::timeout(OFFERS_WAIT, answer).await {
            Ok(Ok(offers)) => offers,
            _ => Vec::new(),
        }
    }
}

/// What policy has to know about the node.
fn policy_inputs(usage: &WindowUsage, own_cgroup: Option<sage_common::CgroupPath>) -> PolicyInputs {
    let cgroup = |used: &crate::core::usage::CgroupUse| CgroupState {
        cgroup: used.cgroup.clone(),
        service: used.service.clone(),
        used_millicores: used.cores.map(|cores| (cores * 1e3) as u64),
    };
    let link = |used: &crate::core::usage::LinkUse| {
        let link = LinkName::try_from(used.name.clone()).ok()?;
        let used_bits = used.sent_per_s.map(|bytes| (bytes * 8.0) as u64);
        Some(LinkState { used_bits, speed_bits: speed_bits(&link), link })
    };
    PolicyInputs {
        cgroups: usage.cgroups.iter().map(cgroup).collect(),
        links: usage.links.iter().filter_map(link).collect(),
        capacity_millicores: usage.capacity_cores.map(|cores| (cores * 1e3) as u64),
        own_cgroup,
    }
}
