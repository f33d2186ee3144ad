//! What every part of the daemon knows about itself, in one place, for `status`, `/metrics` and the watchdog.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sage_common::{BootId, IntakeCounters, Micros, NodeId, ServiceId, Term};
use sage_protocol::message::HeldLease;

use super::{
    recent::{Recent, Trends},
    report::{IntakeReport, LeaseReport, SelfReport, ServiceReport, State, StatusReport, WindowCounts},
    spool::SpoolCounters,
};
use crate::{
    core::{
        actuation::{LeaseState, LeaseView},
        telemetry::{ObservedService, TelemetryCounters},
    },
    intake::{IntakeStats, IntakeTotals},
};

/// Windows that may wait for their acknowledgement before that is called spooling: what is usually under way.
const SPOOLED_USUAL: u64 = 3;
/// A part of the daemon that has not moved for this long stands still.
const STILL: Micros = Micros::from_secs(10);

/// The shared board. Every lock is held for a copy and never across an `.await`.
#[derive(Debug)]
pub struct Board {
    node: NodeId,
    boot: BootId,
    started: Micros,
    intake: Arc<IntakeStats>,
    views: Mutex<Views>,
}

/// The views that the parts keep up to date.
#[derive(Clone, Debug, Default)]
pub struct Views {
    /// Spans and windows.
    pub pipeline: PipelineView,
    /// Usage.
    pub sampling: SamplingView,
    /// Windows out, commands in.
    pub uplink: UplinkView,
    /// Leases.
    pub actuation: ActuationView,
    /// The last minute.
    pub recent: Recent,
    /// Resident memory of this process.
    pub memory_bytes: u64,
    /// What went wrong at start and stays so.
    pub lasting_problems: Vec<String>,
}

/// What the pipeline says.
#[derive(Clone, Debug, Default)]
pub struct PipelineView {
    /// Services seen lately.
    pub services: Vec<ObservedService>,
    /// Running totals.
    pub counters: TelemetryCounters,
    /// Intake of the last closed window.
    pub last_window: IntakeCounters,
    /// Windows that could not be encoded or queued.
    pub windows_lost: u64,
    /// When it last moved.
    pub beat: Micros,
}

/// What the sampler says.
#[derive(Clone, Debug, Default)]
pub struct SamplingView {
    /// Instances by service.
    pub instances: BTreeMap<ServiceId, usize>,
    /// Duration of the last sweep.
    pub sweep: Micros,
    /// Sweeps done.
    pub sweeps: u64,
    /// Sweeps that took longer than their period.
    pub overruns: u64,
    /// What cannot be seen.
    pub problems: Vec<String>,
    /// When it last moved.
    pub beat: Micros,
}

/// What the uplink says.
#[derive(Clone, Debug, Default)]
pub struct UplinkView {
    /// The leader's name, while connected.
    pub leader: Option<String>,
    /// Highest term that a leader has shown.
    pub term: Term,
    /// Windows of this life.
    pub windows: WindowCounts,
    /// Windows that aggregators refused for good.
    pub rejected: u64,
    /// What the spool lost.
    pub spool: SpoolCounters,
    /// Bytes on disk.
    pub spool_bytes: u64,
    /// Why windows are not on disk.
    pub spool_problem: Option<String>,
    /// Why there is no connection.
    pub link_problem: Option<String>,
}

/// What the actuator says.
#[derive(Clone, Debug, Default)]
pub struct ActuationView {
    /// Whether the brake is on.
    pub is_frozen: bool,
    /// Highest term obeyed.
    pub term: Term,
    /// Every lease.
    pub leases: Vec<LeaseView>,
    /// The leases in force, for the hello.
    pub held: Vec<HeldLease>,
    /// Knobs that somebody else changed, so far.
    pub drifts: u64,
    /// What is not in order.
    pub problems: Vec<String>,
    /// When it last moved; `None` while actuation is off.
    pub beat: Option<Micros>,
}

impl Board {
    /// An empty board.
    pub fn new(node: NodeId, boot: BootId, started: Micros, intake: Arc<IntakeStats>) -> Self {
        Self { node, boot, started, intake, views: Mutex::default() }
    }

    /// The views, to read or to update.
    pub fn views(&self) -> MutexGuard<'_, Views> {
        // A panic while a view was written leaves an old view, not a broken one.
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Totals of the listeners.
    pub fn intake(&self) -> &IntakeStats {
        &self.intake
    }

    /// Spans dropped so far because a bound was reached.
    pub fn shed(totals: &IntakeTotals, counters: &TelemetryCounters) -> u64 {
        totals.dropped_spans + counters.refused_services
    }

    /// Whether every thread has moved lately.
    pub fn is_alive(&self, now: Micros) -> bool {
        let views = self.views();
        let beats = [Some(views.pipeline.beat), Some(views.sampling.beat), views.actuation.beat];
        beats.into_iter().flatten().all(|beat| now.saturating_sub(beat) <= STILL)
    }

    /// Whether spans are taken and usage is read.
    pub fn is_ready(&self) -> bool {
        let views = self.views();
        views.sampling.sweeps > 0 && views.pipeline.beat > Micros::ZERO
    }

    /// The status at `now`.
    pub fn report(&self, now: Micros) -> StatusReport {
        let views = self.views();
        let Views { pipeline, uplink, actuation, .. } = &*views;
        let totals = self.intake.totals();
        let trends = views.recent.trends();
        let (problems, is_degraded) = problems(&views, &trends);
        let window = pipeline.last_window;
        StatusReport {
            node: self.node.to_string(),
            boot: format!("{:016x}", self.boot.0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: now.saturating_sub(self.started).get() / 1_000_000,
            leader: uplink.leader.clone(),
            // The actuator learns of a term with its first command, the link with its welcome.
            term: actuation.term.max(uplink.term).0,
            connected: uplink.leader.is_some(),
            windows: uplink.windows,
            intake: IntakeReport {
                spans: pipeline.counters.spans,
                spans_per_s: trends.spans_per_s,
                rejected_requests: totals.rejected_requests,
                dropped_spans: Self::shed(&totals, &pipeline.counters) + pipeline.counters.late,
                unpaired_ratio: ratio(window.unpaired_spans, window.spans),
            },
            services: services(&views),
            leases: actuation.leases.iter().map(lease).collect(),
            frozen: actuation.is_frozen,
            own: SelfReport { cpu_cores: trends.cpu_cores, memory_bytes: views.memory_bytes },
            state: if is_degraded { State::Degraded } else { State::Healthy },
            problems,
        }
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64).min(1.0) }
}

fn services(views: &Views) -> Vec<ServiceReport> {
    let measured = &views.sampling.instances;
    let mut all: BTreeMap<&str, ServiceReport> = BTreeMap::new();
    for (service, instances) in measured {
        let report = ServiceReport { name: service.to_string(), instances: *instances, ..ServiceReport::default() };
        all.insert(service.as_str(), report);
    }
    for seen in &views.pipeline.services {
        let claimed = seen.instances.len().max(seen.pids.len());
        let report = all.entry(seen.service.as_str()).or_default();
        report.name = seen.service.to_string();
        // Counters of a cgroup or process are better evidence than what spans claim.
        report.instances = if report.instances > 0 { report.instances } else { claimed };
        report.calls_per_s = seen.calls_per_s;
        report.p99_ms = seen.p99.map(Micros::as_millis_f64);
    }
    all.into_values().collect()
}

fn lease(view: &LeaseView) -> LeaseReport {
    let stuck = if matches!(view.state, LeaseState::Stuck { .. }) { " (cannot be given back yet)" } else { "" };
    LeaseReport {
        action: view.action.0,
        knob: view.knob.to_string(),
        setting: view.setting.to_string(),
        before: view.before.to_string(),
        remaining_ms: view.remaining.get() / 1_000,
        service: view.service.to_string(),
        reason: format!("{}{stuck}", view.reason),
    }
}

/// What is wrong, and whether any of it makes the agent degraded. The brake is a person's wish, not a fault.
fn problems(views: &Views, trends: &Trends) -> (Vec<String>, bool) {
    let Views { uplink, actuation, sampling, pipeline, lasting_problems, .. } = views;
    let mut found = lasting_problems.clone();
    if uplink.leader.is_none() {
        let why = uplink.link_problem.as_deref().unwrap_or("no aggregator has answered yet");
        found.push(format!("not connected: {why}"));
    }
    if uplink.windows.spooled > SPOOLED_USUAL {
        found.push(format!("{} windows wait for an acknowledgement", uplink.windows.spooled));
    }
    found.extend(uplink.spool_problem.clone());
    if uplink.spool.shed > 0 {
        found.push(format!("{} windows were shed because the spool is full: raise spool.bytes_max", uplink.spool.shed));
    }
    if trends.late > 0 {
        found.push(format!(
            "{} spans came after their window had closed, within the last minute: set window.lateness_ms above the batch \
             delay of your exporters (OpenTelemetry's default is 5 s)",
            trends.late
        ));
    }
    if trends.shed > 0 {
        found.push(format!("{} spans were dropped for lack of room within the last minute", trends.shed));
    }
    if trends.drifts > 0 {
        found.push(format!("somebody else changed {} knobs that were held, within the last minute", trends.drifts));
    }
    if pipeline.windows_lost > 0 {
        found.push(format!("{} windows could not be sent at all", pipeline.windows_lost));
    }
    if sampling.overruns > 0 {
        found.push(format!("{} readings of usage took longer than a second", sampling.overruns));
    }
    found.extend(sampling.problems.iter().cloned());
    found.extend(actuation.problems.iter().cloned());
    let is_degraded = !found.is_empty();
    if actuation.is_frozen {
        found.push("the brake is on: `sage-agent thaw` releases it".to_owned());
    }
    (found, is_degraded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::recent::Totals;

    fn board() -> Board {
        let node = "node-a".parse().expect("valid");
        Board::new(node, BootId(0xab), Micros::from_secs(100), Arc::new(IntakeStats::default()))
    }

    #[test]
    fn an_agent_without_aggregator_is_degraded_and_says_why() {
        let board = board();
        board.views().uplink.link_problem = Some("cannot read /etc/sage/pki/agent.key".to_owned());
        let report = board.report(Micros::from_secs(142));
        assert_eq!((report.state, report.uptime_s, report.connected), (State::Degraded, 42, false));
        assert!(report.problems[0].contains("agent.key"), "{:?}", report.problems);
    }

    #[test]
    fn a_connected_agent_is_healthy_even_under_the_brake() {
        let board = board();
        board.views().uplink.leader = Some("aggregator-1".to_owned());
        assert_eq!(board.report(Micros::from_secs(101)).state, State::Healthy);
        board.views().actuation.is_frozen = true;
        let report = board.report(Micros::from_secs(101));
        assert_eq!(report.state, State::Healthy);
        assert!(report.frozen && report.problems[0].contains("thaw"));
    }

    #[test]
    fn the_term_of_the_leader_shows_before_its_first_command() {
        let board = board();
        board.views().uplink.term = Term(3);
        assert_eq!(board.report(Micros::from_secs(101)).term, 3);
        board.views().actuation.term = Term(4);
        assert_eq!(board.report(Micros::from_secs(101)).term, 4);
    }

    #[test]
    fn late_spans_name_the_setting_that_helps() {
        let board = board();
        let mut views = board.views();
        views.recent.push(Micros::from_secs(1), Totals::default());
        views.recent.push(Micros::from_secs(2), Totals { late: 7, ..Totals::default() });
        drop(views);
        let problems = board.report(Micros::from_secs(101)).problems;
        assert!(problems.iter().any(|problem| problem.contains("7 spans") && problem.contains("window.lateness_ms")));
    }

    #[test]
    fn spooling_degrades_beyond_what_is_usually_under_way() {
        let board = board();
        board.views().uplink.leader = Some("a".to_owned());
        board.views().uplink.windows.spooled = SPOOLED_USUAL;
        assert_eq!(board.report(Micros::ZERO).state, State::Healthy);
        board.views().uplink.windows.spooled += 1;
        assert_eq!(board.report(Micros::ZERO).state, State::Degraded);
    }

    #[test]
    fn a_part_that_stands_still_is_noticed() {
        let board = board();
        let now = Micros::from_secs(500);
        board.views().pipeline.beat = now;
        board.views().sampling.beat = now;
        assert!(board.is_alive(now + STILL));
        board.views().actuation.beat = Some(Micros::from_secs(480));
        assert!(!board.is_alive(now));
    }

    #[test]
    fn services_join_what_spans_say_with_what_is_measured() {
        let board = board();
        let seen = |name: &str, pids: usize| ObservedService {
            service: name.parse().expect("valid"),
            instances: vec![],
            pids: (0..pids as u32).collect(),
            calls_per_s: 5.0,
            p99: Some(Micros::from_millis(12)),
        };
        board.views().pipeline.services = vec![seen("b", 3), seen("c", 2)];
        board.views().sampling.instances = [("a", 1), ("b", 1)].map(|(n, c)| (n.parse().expect("valid"), c)).into();
        let services = board.report(Micros::ZERO).services;
        let shown: Vec<_> = services.iter().map(|s| (s.name.as_str(), s.instances, s.p99_ms)).collect();
        assert_eq!(shown, [("a", 1, None), ("b", 1, Some(12.0)), ("c", 2, Some(12.0))]);
    }
}
