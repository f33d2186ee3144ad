//! The decisions, one at a time: each is read off the state, proposed, and settled by its commit before the next.

use std::{collections::BTreeSet, sync::Arc};

use sage_causal::{
    observation::Observation,
    verdict::{Resource, VerdictKind},
};
use sage_common::{Micros, NodeId, Slo, Timestamp, Trust};

use super::Leader;
use crate::core::{
    action::{Action, ActionChange, ActionState, Ending},
    incident::{Incident, IncidentChange, IncidentId, Seen},
    oracle::Oracle,
    planner::{self, Candidate, Fleet},
    proposal::Proposal,
    slo::{self, SloState, Trail},
    state::ClusterWindow,
};

/// Newest cluster windows that the model may look at.
const RECENT_WINDOWS: usize = 12;
/// Violated windows after which an incident that is still open is diagnosed again.
const REDIAGNOSE_WINDOWS: u64 = 5;
/// An objective without calls for this many times the windows that resolve it is not violated any more.
const IDLE_FACTOR: u32 = 10;
/// An action that brings the percentile down to this share of what it was helps, even short of the target.
const HELPFUL_SHARE: f64 = 0.8;
/// Windows without a judgement, in multiples of those needed, after which an action counts as no help.
const VERIFY_PATIENCE: u64 = 4;
/// Windows before a knob that did not help may be tried again for another incident.
const COOL_DOWN_WINDOWS: u64 = 12;
/// Largest multiple of the configured hold: a violation that comes back at each give-back meets it ever more rarely.
const HOLD_FACTOR_MAX: u32 = 16;
/// Actions recommended per incident; a longer list helps nobody.
const RECOMMENDED_MAX: usize = 3;
/// Healthy windows that tell what services normally use.
const NORMAL_WINDOWS: usize = 60;
/// The span that the bound on actions speaks of.
const HOUR: Micros = Micros::from_secs(3_600);

impl<O: Oracle> Leader<O> {
    /// Takes the first decision that is due, if any.
    pub(super) fn decide(&mut self, now: Timestamp) {
        let decision = self
            .closable(now)
            .or_else(|| self.configure(now))
            .or_else(|| self.watch_objectives(now))
            .or_else(|| self.watch_actions(now))
            .or_else(|| self.diagnose(now))
            .or_else(|| self.plan(now));
        match decision {
            Some(proposal) => self.propose(proposal),
            None => self.train(now),
        }
    }

    /// Objectives of the configuration file, when they are not those taken over last.
    fn configure(&self, now: Timestamp) -> Option<Proposal> {
        let is_new = self.state.configured_slos() != Some(&self.configured[..]);
        is_new.then(|| Proposal::SetSlos { slos: self.configured.clone(), is_configured: true, at: now })
    }

    fn trail(&self, slo: &Slo) -> Trail {
        slo::trail(slo, self.state.history(), self.rules.calls_min)
    }

    fn watch_objectives(&self, now: Timestamp) -> Option<Proposal> {
        let need = self.rules.violated_windows.max(1);
        let incident = |id, change| Some(Proposal::Incident { id, at: now, change });
        for open in self.state.open_incidents() {
            let is_over = self.state.slo(&open.slo).is_none_or(|slo| {
                let trail = self.trail(slo);
                trail.met >= need || trail.quiet >= need.saturating_mul(IDLE_FACTOR)
            });
            if is_over {
                return incident(open.id, IncidentChange::Resolved);
            }
        }
        for slo in self.state.slos() {
            let trail = self.trail(slo);
            let is_open = self.state.open_incidents().any(|open| open.slo == slo.name);
            if !is_open && trail.now == SloState::Violated && trail.violated >= need {
                let latency = trail.latency.unwrap_or_default();
                let change = IncidentChange::Opened { slo: slo.name.clone(), latency, target: slo.target };
                return incident(self.state.next_incident(), change);
            }
        }
        None
    }

    fn watch_actions(&self, now: Timestamp) -> Option<Proposal> {
        let change = |action: &Action| match action.state {
            _ if action.ending.is_some() => None,
            ActionState::AwaitingApproval => self.stale(action),
            ActionState::Applied => self.verify(action),
            ActionState::Kept => self.give_back(action),
            _ => None,
        };
        self.state.actions().values().find_map(|action| {
            let change = change(action)?;
            Some(Proposal::Action { id: action.id, at: now, change })
        })
    }

    fn stale(&self, action: &Action) -> Option<ActionChange> {
        let is_open = self.state.incidents().get(&action.incident).is_some_and(Incident::is_open);
        (!is_open).then_some(ActionChange::Ending { why: Ending::Stale, measured: None })
    }

    /// Windows that lie wholly after the action was applied, by when they arrived here.
    fn clean(&self, action: &Action) -> impl Iterator<Item = &ClusterWindow> {
        let begin = action.applied_at.map(|at| at + self.rules.window + self.rules.lateness);
        self.state.history().iter().filter(move |window| begin.is_some_and(|begin| window.arrived >= begin))
    }

    fn verify(&self, action: &Action) -> Option<ActionChange> {
        let no_help = |measured| Some(ActionChange::Ending { why: Ending::NoHelp, measured });
        let Some(slo) = self.state.slo(&action.slo) else { return no_help(None) };
        let judged: Vec<(SloState, Micros)> = self
            .clean(action)
            .map(|window| (slo::judge(slo, window, self.rules.calls_min), slo::observed(slo, window)))
            .filter(|(state, _)| matches!(state, SloState::Met | SloState::Violated))
            .filter_map(|(state, seen)| Some((state, Micros::new(seen?.latency_us as u64))))
            .collect();
        let need = self.rules.verify_windows.max(1);
        if judged.len() >= need as usize {
            let (state, measured) = judged[judged.len() - 1];
            let is_better = measured.get() as f64 <= action.baseline.get() as f64 * HELPFUL_SHARE;
            return if state == SloState::Met || is_better {
                Some(ActionChange::Kept { measured })
            } else {
                no_help(Some(measured))
            };
        }
        let waited = self.state.closes().saturating_sub(action.changed_close);
        if waited > u64::from(need) * VERIFY_PATIENCE {
            no_help(judged.last().map(|(_, latency)| *latency))
        } else {
            None
        }
    }

    /// Gives a helpful action back once the target has been met for long enough: the newest first, one after another.
    fn give_back(&self, action: &Action) -> Option<ActionChange> {
        let quiet = self.state.slo(&action.slo).map_or(u32::MAX, |slo| self.trail(slo).quiet);
        let is_long_enough = quiet >= action.hold_windows;
        let of_same = || self.state.actions().values().filter(|other| other.slo == action.slo && other.id != action.id);
        let is_newest = of_same().all(|other| other.id < action.id || !other.is_in_force());
        let is_watching = of_same().any(|other| {
            other.ending == Some(Ending::GivenBack)
                && (other.is_in_force() || self.closes_since(other) <= u64::from(self.rules.hold_windows))
        });
        (is_long_enough && is_newest && !is_watching)
            .then_some(ActionChange::Ending { why: Ending::GivenBack, measured: None })
    }

    fn closes_since(&self, action: &Action) -> u64 {
        self.state.closes().saturating_sub(action.changed_close)
    }

    fn actions_of<'a>(&'a self, incident: &'a Incident) -> impl Iterator<Item = &'a Action> {
        incident.actions.iter().filter_map(|id| self.state.actions().get(id))
    }

    /// Whether an action for `incident` is still to show what it does, or is just being given back.
    fn is_in_trial(&self, incident: &Incident) -> bool {
        self.actions_of(incident).any(|action| action.is_in_trial() || action.is_in_force() && action.ending.is_some())
    }

    fn diagnose(&mut self, now: Timestamp) -> Option<Proposal> {
        let due: Vec<IncidentId> =
            self.state.open_incidents().filter(|open| self.needs_diagnosis(open)).map(|open| open.id).collect();
        for id in due {
            if self.asked.insert(id, self.state.closes()) == Some(self.state.closes()) {
                continue;
            }
            let incident = self.state.incidents().get(&id)?;
            let Some((generation, oracle)) = &self.oracle else {
                let reason = format!(
                    "the model is not trained yet: {} of {} healthy windows",
                    self.healthy_windows(),
                    self.rules.windows_min
                );
                let is_news = incident.waiting.is_none();
                if is_news {
                    return Some(Proposal::Incident { id, at: now, change: IncidentChange::Waiting(reason) });
                }
                continue;
            };
            let Some(slo) = self.state.slo(&incident.slo) else { continue };
            let windows = self.recent(slo);
            let recent = self.newest(slo);
            if let Some(verdict) = oracle.diagnose(&recent, slo, *generation) {
                let change = IncidentChange::Answered { verdict: Box::new(verdict), seen: self.seen(&windows) };
                return Some(Proposal::Incident { id, at: now, change });
            }
        }
        None
    }

    /// What a diagnosis for `slo` would look at now, oldest first.
    pub fn newest(&self, slo: &Slo) -> Vec<Arc<Observation>> {
        self.recent(slo).into_iter().map(|window| window.observation.clone()).collect()
    }

    fn seen(&self, windows: &[&ClusterWindow]) -> Seen {
        let number = |window: Option<&&ClusterWindow>| window.map_or(0, |window| window.close);
        Seen {
            applied: self.state.applied(),
            first: number(windows.first()),
            last: number(windows.last()),
            windows: windows.len() as u32,
        }
    }

    /// Newest windows for the model, oldest first. One that waits for a late node is left out where the one before is
    /// violated as well.
    fn recent(&self, slo: &Slo) -> Vec<&ClusterWindow> {
        let history = self.state.history();
        let unsettled = self.unsettled();
        let settled = history.len().saturating_sub(unsettled);
        let is_enough = |window: &ClusterWindow| slo::judge(slo, window, self.rules.calls_min) == SloState::Violated;
        let has_enough = settled.checked_sub(1).and_then(|at| history.get(at)).is_some_and(is_enough);
        let end = if has_enough { settled } else { history.len() };
        history.range(end.saturating_sub(RECENT_WINDOWS)..end).collect()
    }

    /// How many of the newest windows still wait for a late node: one at most, and only after a complete one.
    fn unsettled(&self) -> usize {
        let mut newest = self.state.history().iter().rev().map(|window| window.observation.completeness >= 1.0);
        usize::from(newest.next() == Some(false) && newest.next() == Some(true))
    }

    /// A verdict is due at first, after an action has shown what it does, and now and then; only while it is violated.
    fn needs_diagnosis(&self, incident: &Incident) -> bool {
        let is_violated = self.state.slo(&incident.slo).is_some_and(|slo| self.trail(slo).now == SloState::Violated);
        if !is_violated || self.is_in_trial(incident) {
            return false;
        }
        let Some(newest) = incident.newest() else { return true };
        let closes = self.state.closes();
        let has_acted = self.actions_of(incident).any(|action| action.changed_close > newest.close);
        newest.close < closes && (has_acted || closes - newest.close >= REDIAGNOSE_WINDOWS)
    }

    fn plan(&self, now: Timestamp) -> Option<Proposal> {
        let is_due = |open: &&Incident| !open.is_planned && open.newest().is_some() && !self.is_in_trial(open);
        let incident = self.state.open_incidents().find(is_due)?;
        let waiting = |reason: String| {
            Some(Proposal::Incident { id: incident.id, at: now, change: IncidentChange::Waiting(reason) })
        };
        if self.state.is_frozen() {
            return waiting("the brake is on".to_owned());
        }
        let mut blocked = BTreeSet::new();
        let mut best: Option<(Trust, Plan)> = None;
        for plan in self.relapse(incident).into_iter().chain(self.ranked(incident)) {
            let trust = if self.rules.is_auto { plan.candidate.trust } else { Trust::Recommend };
            match self.hindrance(incident, &plan.candidate, trust, now) {
                Some(reason) => {
                    blocked.insert(reason);
                }
                None if best.as_ref().is_none_or(|(other, _)| class(trust) > class(*other)) => {
                    best = Some((trust, plan));
                }
                None => {}
            }
        }
        match best {
            Some((trust, plan)) => Some(Proposal::Intent(Box::new(self.action(incident, plan, trust, now)))),
            None => waiting(self.nothing_to_do(incident, &blocked)),
        }
    }

    fn ranked(&self, incident: &Incident) -> Vec<Plan> {
        let newest = self.state.history().iter().rev().nth(self.unsettled());
        let (Some(record), Some(newest)) = (incident.newest(), newest) else { return Vec::new() };
        let healthy: Vec<&Observation> =
            self.healthy().rev().take(NORMAL_WINDOWS).map(|window| &*window.observation).collect();
        let fleet = Fleet { nodes: self.state.nodes(), newest: &newest.observation, healthy: &healthy };
        let hold_windows = self.rules.hold_windows;
        planner::candidates(&record.verdict, &fleet)
            .into_iter()
            .map(|candidate| Plan { candidate, hold_windows })
            .collect()
    }

    /// What was given back shortly before `incident` began, to be applied again for twice as long, when the newest
    /// verdict names the same service and resource: another fault may have begun at the same time.
    fn relapse(&self, incident: &Incident) -> Option<Plan> {
        let verdict = &incident.newest()?.verdict;
        let is_named = |action: &Action| {
            verdict
                .culprits
                .iter()
                .any(|culprit| culprit.service == action.service && culprit.resource == action.resource)
        };
        let is_soon = |action: &&Action| {
            let after = incident.opened_close.saturating_sub(action.changed_close);
            after <= u64::from(action.hold_windows) + u64::from(self.rules.violated_windows)
        };
        let given_back = |action: &&Action| {
            action.slo == incident.slo
                && action.state == ActionState::Reverted
                && action.ending == Some(Ending::GivenBack)
                && action.changed_close <= incident.opened_close
                && is_named(action)
        };
        let last = self.state.actions().values().rev().filter(given_back).find(is_soon)?;
        let node = self.state.nodes().get(&last.node)?;
        let offer = node.offers.iter().find(|offer| offer.knob == last.knob)?;
        let most = self.rules.hold_windows.saturating_mul(HOLD_FACTOR_MAX);
        Some(Plan {
            candidate: Candidate {
                node: last.node.clone(),
                knob: last.knob.clone(),
                setting: last.setting.clone(),
                before: offer.current.clone(),
                trust: offer.trust,
                service: last.service.clone(),
                resource: last.resource,
                reason: format!("the violation came back after action {} was given back", last.id),
                predicted: last.measured.unwrap_or(last.predicted),
            },
            hold_windows: last.hold_windows.saturating_mul(2).min(most),
        })
    }

    /// Why `candidate` cannot be taken now, for people; `None` when it can.
    fn hindrance(&self, incident: &Incident, candidate: &Candidate, trust: Trust, now: Timestamp) -> Option<String> {
        let Candidate { node, knob, .. } = candidate;
        let is_same = |action: &&Action| action.node == *node && action.knob == *knob;
        // What a lost lease or a brake has ended was no trial.
        let was_cut_short = |action: &Action| {
            action.is_over() && matches!(action.ending, Some(Ending::Lost | Ending::Unreachable | Ending::Frozen))
        };
        if self.actions_of(incident).any(|action| is_same(&action) && !was_cut_short(action)) {
            return Some(format!("{knob} on {node} was tried"));
        }
        if let Some(other) = self.state.actions().values().find(|action| is_same(action) && action.is_in_force()) {
            return Some(format!("action {} holds {knob} on {node}", other.id));
        }
        let is_cooling = |action: &&Action| {
            is_same(action)
                && (action.ending == Some(Ending::NoHelp) || matches!(action.state, ActionState::Drifted))
                && self.closes_since(action) < COOL_DOWN_WINDOWS
        };
        if self.state.actions().values().any(|action| is_cooling(&action)) {
            return Some(format!("{knob} on {node} did not help a moment ago"));
        }
        match class(trust) {
            Class::Auto => self.limit(node, now),
            Class::Approve => {
                let is_asking = self.actions_of(incident).any(|a| a.state == ActionState::AwaitingApproval);
                is_asking.then(|| "an action waits for approval".to_owned())
            }
            Class::Recommend => {
                let said = self.actions_of(incident).filter(|a| a.state == ActionState::Recommended).count();
                (said >= RECOMMENDED_MAX).then(|| "enough is recommended".to_owned())
            }
        }
    }

    /// The bounds on what the whole fleet does at once.
    fn limit(&self, node: &NodeId, now: Timestamp) -> Option<String> {
        let Some(agent) = self.agents.get(node).filter(|agent| agent.is_connected) else {
            return Some(format!("{node} is not connected"));
        };
        if agent.status.is_frozen {
            return Some(format!("the brake of {node} is on"));
        }
        let trials: BTreeSet<&NodeId> =
            self.state.actions().values().filter(|action| action.is_in_trial()).map(|action| &action.node).collect();
        let most = (self.state.live_nodes().len() as f64 * self.rules.blast_radius).floor().max(1.0) as usize;
        if !trials.contains(node) && trials.len() >= most {
            return Some(format!("{} of {most} nodes allowed at once are being tried", trials.len()));
        }
        let is_recent = |action: &&Action| {
            !matches!(action.state, ActionState::Recommended | ActionState::AwaitingApproval)
                && now.since(action.requested_at).is_some_and(|age| age < HOUR)
        };
        let recent = self.state.actions().values().filter(is_recent).count();
        (recent >= self.rules.actions_per_hour)
            .then(|| format!("{recent} actions within the last hour are the most allowed"))
    }

    fn action(&self, incident: &Incident, plan: Plan, trust: Trust, now: Timestamp) -> Action {
        let Plan { candidate, hold_windows } = plan;
        let state = match class(trust) {
            Class::Auto => ActionState::Proposed,
            Class::Approve => ActionState::AwaitingApproval,
            Class::Recommend => ActionState::Recommended,
        };
        let latency = self.state.slo(&incident.slo).and_then(|slo| self.trail(slo).latency);
        Action {
            id: self.state.next_action(),
            incident: incident.id,
            slo: incident.slo.clone(),
            node: candidate.node,
            knob: candidate.knob,
            setting: candidate.setting,
            before: Some(candidate.before),
            service: candidate.service,
            resource: candidate.resource,
            reason: candidate.reason,
            state,
            ending: None,
            answer: None,
            requested_at: now,
            applied_at: None,
            reverted_at: None,
            changed_close: self.state.closes(),
            baseline: latency.unwrap_or(incident.latency),
            predicted: candidate.predicted,
            measured: None,
            hold_windows,
        }
    }

    fn nothing_to_do(&self, incident: &Incident, blocked: &BTreeSet<String>) -> String {
        if !blocked.is_empty() {
            return blocked.iter().cloned().collect::<Vec<_>>().join("; ");
        }
        let Some(verdict) = incident.newest().map(|record| &record.verdict) else { return String::new() };
        let names: Vec<String> = verdict.culprits.iter().map(|culprit| culprit.service.to_string()).collect();
        match verdict.kind {
            VerdictKind::Unknown if verdict.missing.is_empty() => "no cause found".to_owned(),
            VerdictKind::Unknown => verdict.missing.join("; "),
            VerdictKind::Demand => format!("more arrivals than ever learnt: scale out {}", names.join(", ")),
            VerdictKind::Culprit | VerdictKind::Partial
                if verdict.culprits.iter().all(|culprit| culprit.resource == Resource::Software) =>
            {
                format!("not a resource of the machine: for the owner of {}", names.join(", "))
            }
            VerdictKind::Culprit | VerdictKind::Partial => {
                format!("no knob on offer helps {}", names.join(", "))
            }
        }
    }
}

/// A candidate, and how long to keep it once it helps.
struct Plan {
    candidate: Candidate,
    hold_windows: u32,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Class {
    Recommend,
    Approve,
    Auto,
}

const fn class(trust: Trust) -> Class {
    match trust {
        Trust::Observe | Trust::Recommend => Class::Recommend,
        Trust::Approve => Class::Approve,
        Trust::Auto => Class::Auto,
    }
}
