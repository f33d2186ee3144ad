//! The demo's course: learn, break, watch, let go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

use super::{
    api::{Action, Incident, SloProposal, Status, VerdictRow, Window},
    fault::Fault,
    record::{ActionRecord, Around, FaultRecord, Point, VerdictRecord},
    screen::Screen,
    stage::{ClientLatency, Stage},
};

/// How often the aggregator is asked.
const POLL: Duration = Duration::from_millis(250);
/// How long every node may take to be there.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Windows before an objective is proposed from them.
const WINDOWS_BEFORE_SLO: usize = 12;
/// How long learning may take beyond its windows.
const LEARN_LIMIT: Duration = Duration::from_secs(240);
/// How long a fault may take to break the target.
const VIOLATION_LIMIT: f64 = 40.0;
/// How long a diagnosis, and then a recovery, may take.
const DIAGNOSIS_LIMIT: f64 = 40.0;
/// Windows to watch after recovery, or after the diagnosis of what cannot be repaired.
const WATCH_WINDOWS: f64 = 4.0;
/// How long the system may take to be calm again after a fault.
const CALM_LIMIT: f64 = 90.0;
/// Windows that must meet the target before the next fault.
const CALM_WINDOWS: usize = 6;

/// The demo in progress.
pub struct Play {
    stage: Stage,
    screen: Screen,
    began: Instant,
    /// When it began, Unix milliseconds.
    pub started_at_ms: u64,
    window_s: f64,
    stop: Arc<AtomicBool>,
    /// The objective, once there is one.
    pub slo: Option<SloProposal>,
    /// Latency as Sage sees it.
    pub timeline: Vec<Point>,
    /// Latency as clients see it.
    pub clients: Vec<Point>,
    is_up: bool,
}

impl Play {
    /// A demo on `stage`; `stop` ends it early.
    pub fn new(stage: Stage, window_s: f64, stop: Arc<AtomicBool>) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        Ok(Self {
            stage,
            screen: Screen::new(),
            began: Instant::now(),
            started_at_ms: u64::try_from(now.as_millis())?,
            window_s,
            stop,
            slo: None,
            timeline: Vec::new(),
            clients: Vec::new(),
            is_up: false,
        })
    }

    /// Seconds since the start.
    pub fn at(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    fn since_start(&self, unix_ms: u64) -> f64 {
        (unix_ms as f64 - self.started_at_ms as f64) / 1e3
    }

    fn target(&self) -> Option<f64> {
        self.slo.as_ref().map(|slo| slo.target_ms)
    }

    /// One turn: sleeps, looks whether all is well, takes in new windows and prints them.
    fn turn(&mut self) -> Result<()> {
        thread::sleep(POLL);
        if self.stop.load(Ordering::Relaxed) {
            bail!("stopped before the end");
        }
        self.stage.check()?;
        while let Ok(ClientLatency { at, p99_ms }) = self.stage.load.try_recv() {
            // The load is older than the play.
            if let Some(at) = at.checked_duration_since(self.began) {
                self.clients.push(Point { at: at.as_secs_f64(), latency_ms: p99_ms, calls: 0.0 });
            }
        }
        let windows: Vec<Window> = match self.stage.api.get("/api/v1/windows?last=8") {
            Ok(windows) => windows,
            Err(_) if !self.is_up => return Ok(()), // still starting
            Err(error) => return Err(error),
        };
        self.is_up = true;
        for window in windows {
            self.take(&window);
        }
        Ok(())
    }

    fn take(&mut self, window: &Window) {
        let at = self.since_start(window.start_at_ms) + window.length_ms / 1e3;
        let Some(objective) = window.objectives.first().filter(|objective| objective.calls > 0.0) else { return };
        if self.timeline.last().is_none_or(|last| at > last.at + 1e-6) {
            self.timeline.push(Point { at, latency_ms: objective.latency_ms, calls: objective.calls });
            self.screen.window(at, objective.latency_ms, self.target());
        }
    }

    /// Waits until all nodes send, an objective is set and the first model is there.
    pub fn learn(&mut self, entry: &str, percentile: f64, windows_min: u32) -> Result<()> {
        self.screen.title("Learning");
        let deadline = Instant::now() + CONNECT_LIMIT;
        let nodes = self.stage.layout.nodes.len();
        while self.status().map_or(0, |status| status.nodes.iter().filter(|node| node.connected).count()) < nodes {
            if Instant::now() > deadline {
                bail!(
                    "not all of the {nodes} agents reached the aggregator within {CONNECT_LIMIT:?}; see the logs directory"
                );
            }
            self.turn()?;
        }
        self.screen.event(self.at(), &format!("{nodes} agents are connected; learning takes {windows_min} windows"));
        self.screen
            .event(self.at(), &format!("meanwhile: nsenter --net=/run/netns/{} sagectl status", self.stage.hub()));
        let deadline = Instant::now() + LEARN_LIMIT;
        while self.slo.is_none() {
            if Instant::now() > deadline {
                bail!("no objective could be proposed within {LEARN_LIMIT:?}: is any load arriving? see logs/load.log");
            }
            self.turn()?;
            self.propose(entry, percentile)?;
        }
        while self.status().and_then(|status| status.model).is_none() {
            if Instant::now() > deadline {
                bail!("no model within {LEARN_LIMIT:?}; see logs/aggregator.log");
            }
            self.turn()?;
        }
        self.calm(self.target().unwrap_or(f64::MAX))
    }

    fn status(&self) -> Option<Status> {
        self.stage.api.get("/api/v1/status").ok()
    }

    /// Sets the objective that Sage itself proposes for the `entry`, once it has seen enough.
    fn propose(&mut self, entry: &str, percentile: f64) -> Result<()> {
        let assembled = self.status().map_or(0, |status| status.windows.assembled);
        if assembled < WINDOWS_BEFORE_SLO as u64 {
            return Ok(());
        }
        let proposals: Vec<SloProposal> =
            self.stage.api.get(&format!("/api/v1/slo/suggest?percentile={percentile}"))?;
        let entry_wide = proposals.iter().find(|slo| slo.operation.is_none() && slo.service == entry);
        if let Some(slo) = entry_wide {
            self.stage.api.set_slos(std::slice::from_ref(slo))?;
            let text = format!(
                "objective: p{} of {} under {:.1} ms, proposed from {assembled} windows",
                slo.percentile, slo.service, slo.target_ms
            );
            self.screen.event(self.at(), &text);
            self.slo = Some(slo.clone());
        }
        Ok(())
    }

    /// Injects `fault`, watches what Sage does about it, takes it away and waits for calm.
    pub fn run(&mut self, fault: &Fault) -> Result<FaultRecord> {
        let target = self.target().context("a fault needs an objective")?;
        let node = self.stage.layout.node_of(&fault.service).context("checked before")?.clone();
        let neighbours: Vec<String> = node.tiers.iter().map(|tier| tier.service.clone()).collect();
        let known = self.incidents()?.first().map_or(0, |incident| incident.id + 1);
        self.screen.title(&format!("Fault {fault}: {}", fault.in_words(&node.name)));
        let mut record = FaultRecord {
            kind: fault.kind.name().to_owned(),
            service: fault.service.clone(),
            injected_at: self.at(),
            ..FaultRecord::default()
        };
        self.stage.inject(fault, target)?;
        self.watch(fault, &mut record, known)?;
        record.withdrawn_at = Some(self.at());
        self.stage.withdraw(fault)?;
        self.screen.event(self.at(), "the demo takes the fault away");
        self.calm(target)?;
        self.finish(fault, &mut record, known, &neighbours)?;
        Ok(record)
    }

    /// Until recovered (or, where nothing can be repaired, diagnosed) and watched for a while, or out of time.
    fn watch(&mut self, fault: &Fault, record: &mut FaultRecord, known: u64) -> Result<()> {
        let target = self.target().unwrap_or(f64::MAX);
        let mut said = 0;
        let mut done_at = None;
        loop {
            self.turn()?;
            let now = self.at();
            self.read(record, known, &mut said)?;
            record.read_timeline(&self.timeline, target, now);
            let acts = record.action.as_ref().is_some_and(|action| action.applied_at.is_some());
            let done = if acts {
                record.recovered_at.is_some()
            } else {
                record.verdict.is_some() && !(fault.kind.is_of_resource() && self.stage.can_repair())
            };
            done_at = if done { done_at.or(Some(now)) } else { None };
            if done_at.is_some_and(|at| now - at > WATCH_WINDOWS * self.window_s) {
                return Ok(());
            }
            let limit = match (record.violation_at, record.diagnosed_at) {
                (None, _) => record.injected_at + VIOLATION_LIMIT,
                (Some(at), None) => at + DIAGNOSIS_LIMIT,
                (Some(_), Some(at)) => at + 2.0 * DIAGNOSIS_LIMIT,
            };
            if now > limit {
                return Ok(());
            }
        }
    }

    /// Waits until the target has been met for a while and no incident is open.
    fn calm(&mut self, target: f64) -> Result<()> {
        let from = self.at();
        loop {
            self.turn()?;
            let recent: Vec<&Point> = self.timeline.iter().rev().take(CALM_WINDOWS).collect();
            let met = recent.len() == CALM_WINDOWS
                && recent.iter().all(|point| point.latency_ms <= target && point.at > from);
            let open = self.status().map_or(1, |status| status.incidents_open);
            let held =
                self.actions()?.iter().any(|action| matches!(action.state.as_str(), "applied" | "kept" | "proposed"));
            if (met && open == 0 && !held) || self.at() - from > CALM_LIMIT {
                return Ok(());
            }
        }
    }

    fn incidents(&self) -> Result<Vec<Incident>> {
        self.stage.api.get("/api/v1/incidents")
    }

    fn actions(&self) -> Result<Vec<Action>> {
        self.stage.api.get("/api/v1/actions")
    }

    /// Takes over what the aggregator says about the incidents from number `known` on, and prints what is new.
    fn read(&self, record: &mut FaultRecord, known: u64, said: &mut usize) -> Result<()> {
        let incidents: Vec<Incident> = self.incidents()?.into_iter().filter(|incident| incident.id >= known).collect();
        let mut events: Vec<(u64, String)> = Vec::new();
        for incident in &incidents {
            events.push((incident.opened_at_ms, format!("incident {}: the target is broken", incident.id)));
            events.extend(incident.verdicts.iter().map(|row| (row.at_ms, verdict_in_words(row))));
        }
        let mut verdicts: Vec<&VerdictRow> = incidents.iter().flat_map(|incident| &incident.verdicts).collect();
        verdicts.sort_by_key(|row| row.at_ms);
        if let Some(row) = verdicts.iter().find(|row| !row.culprits.is_empty() && row.kind != "unknown") {
            record.diagnosed_at = Some(self.since_start(row.at_ms));
            record.verdict = Some(verdict_record(row));
        }
        let actions: Vec<Action> = self
            .actions()?
            .into_iter()
            .filter(|action| incidents.iter().any(|incident| incident.id == action.incident))
            .collect();
        for action in &actions {
            let applied = action
                .applied_at_ms
                .map(|at| (at, format!("action on {}: {} set to {}", action.node, action.knob, action.setting)));
            let reverted =
                action.reverted_at_ms.map(|at| (at, format!("action on {}: {} given back", action.node, action.knob)));
            events.extend(applied.into_iter().chain(reverted));
        }
        let applied = actions.iter().filter_map(|action| action.applied_at_ms);
        record.acted_at = applied.min().map(|at| self.since_start(at));
        record.action = self.choose(&actions, record.recovered_at);
        events.sort();
        for (at, text) in events.iter().skip(*said) {
            self.screen.event(self.since_start(*at), text);
        }
        *said = events.len().max(*said);
        Ok(())
    }

    /// The last action that took effect before `recovered_at`, or else the last of all.
    fn choose(&self, actions: &[Action], recovered_at: Option<f64>) -> Option<ActionRecord> {
        let is_in_time = |at: u64| recovered_at.is_none_or(|recovered| self.since_start(at) <= recovered);
        let rank = |action: &&Action| {
            (action.applied_at_ms.is_some_and(is_in_time), action.applied_at_ms.is_some(), action.applied_at_ms)
        };
        actions.iter().max_by_key(rank).map(|action| ActionRecord {
            knob: action.knob_kind.clone(),
            setting: action.setting.clone(),
            node: action.node.clone(),
            state: action.state.clone(),
            applied_at: action.applied_at_ms.map(|at| self.since_start(at)),
            reverted_at: action.reverted_at_ms.map(|at| self.since_start(at)),
        })
    }

    fn finish(&mut self, fault: &Fault, record: &mut FaultRecord, known: u64, neighbours: &[String]) -> Result<()> {
        let mut said = usize::MAX;
        self.read(record, known, &mut said)?;
        record.p99_ms = Around::default();
        record.read_timeline(&self.timeline, self.target().unwrap_or(f64::MAX), self.at());
        record.correct = record.verdict.as_ref().is_some_and(|verdict| {
            let resource = verdict.resource.clone().unwrap_or_default();
            let culprits: Vec<_> = verdict.services.iter().map(|service| (service.clone(), resource.clone())).collect();
            fault.is_named_by(&verdict.kind, &culprits, neighbours)
        });
        let word = match (record.correct, record.violation_at) {
            (true, _) => "the verdict was right",
            (false, Some(_)) => "the verdict was NOT right",
            (false, None) => "the target was never broken: the fault is too weak for this tier",
        };
        self.screen.event(self.at(), word);
        Ok(())
    }

    /// Windows trained, training seconds and version of the model in use.
    pub fn model(&self) -> (u64, f64, u64) {
        let model = self.status().and_then(|status| status.model);
        model.map_or((0, 0.0, 0), |model| (model.windows_trained, model.train_seconds, model.generation))
    }
}

fn verdict_in_words(row: &VerdictRow) -> String {
    let named: Vec<String> =
        row.culprits.iter().map(|culprit| format!("{} ({})", culprit.service, culprit.resource)).collect();
    let named = if named.is_empty() { "nobody".to_owned() } else { named.join(" and ") };
    format!(
        "verdict {}: {named}; had they been normal: {:.1} ms, P(target met) {:.2}",
        row.kind,
        row.counterfactual / 1e3,
        row.p_restored
    )
}

fn verdict_record(row: &VerdictRow) -> VerdictRecord {
    VerdictRecord {
        kind: row.kind.clone(),
        services: row.culprits.iter().map(|culprit| culprit.service.clone()).collect(),
        resource: row.culprits.first().map(|culprit| culprit.resource.clone()),
        p_restored: row.p_restored,
        counterfactual_ms: row.counterfactual / 1e3,
    }
}
