//! Which changes of the application are learnt as normal, and when. A graph that changed is learnt at once: there is nothing
//! else to go by. A service at another level may as well be mildly at fault, and a fault that is learnt is never found:
//!
//! | the service                                   | its level is learnt after                   |
//! |-----------------------------------------------|---------------------------------------------|
//! | was named by a verdict within the last hour   | that hour at the earliest                   |
//! | had all its replicas replaced at that time    | a `REPLACED_SHARE`th of a settled span    |
//! | lacks a resource that it had                  | `PRESSED_FACTOR` settled spans            |
//! | else                                          | a settled span ([`Rules::settled_windows`]) |
//!
//! Only windows count that met every target while no incident was open and no action in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sage_causal::{Change, Readiness, observation::Observation, verdict::VerdictKind};
use sage_common::{InstanceId, Micros, ServiceId, Timestamp};

use crate::core::{incident::Incident, rules::Rules, state::State};

/// A level for which a scarce resource is to blame is learnt after this many settled spans: by then it is how things are.
const PRESSED_FACTOR: usize = 6;
/// New replicas at the beginning of a level say that it was rolled out: this part of a settled span is enough.
const REPLACED_SHARE: usize = 5;
/// Newest windows that tell which replicas run, and the least that a level must hold.
const REPLACED_WINDOWS_MIN: usize = 3;
/// Windows next to the beginning of a level that may hold replicas of both sides: one starts within a window.
const ROLLOUT_WINDOWS: usize = 2;
/// Windows before a new level whose replicas are those that ran before.
const BEFORE_WINDOWS: usize = 6;
/// What a verdict named is left alone for so long after.
const QUARANTINE: Micros = Micros::from_secs(3_600);

/// What decides over changes; see the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gate {
    /// Windows at a new level after which it is learnt.
    settled_windows: usize,
    /// Start of the newest window for which a verdict named a service.
    named: BTreeMap<ServiceId, Timestamp>,
}

impl Gate {
    /// By what `state` knows of incidents. An operator's label stands above the verdicts of its incident.
    pub fn new(rules: &Rules, state: &State) -> Self {
        let mut gate = Self { settled_windows: rules.settled_windows.max(1), named: BTreeMap::new() };
        for incident in state.incidents().values() {
            let label = state.casebook().label(incident.id);
            let labelled = label.map(|label| label.causes.iter().map(|cause| &cause.service).collect());
            gate.note(incident, labelled.as_ref());
        }
        gate
    }

    fn note(&mut self, incident: &Incident, labelled: Option<&BTreeSet<&ServiceId>>) {
        let accuses = |kind| matches!(kind, VerdictKind::Culprit | VerdictKind::Partial);
        for verdict in incident.verdicts.iter().map(|record| &record.verdict).filter(|verdict| accuses(verdict.kind)) {
            let named = verdict.culprits.iter().map(|culprit| &culprit.service);
            for service in named.filter(|service| labelled.is_none_or(|labelled| labelled.contains(service))) {
                let newest = self.named.entry(service.clone()).or_insert(verdict.window);
                *newest = verdict.window.max(*newest);
            }
        }
    }

    /// Whether `change` may be learnt, by the windows that teach, oldest first.
    pub fn readiness(&self, change: &Change, healthy: &[Arc<Observation>]) -> Readiness {
        let Some(since) = change.since else { return Readiness::Ready };
        let newest = healthy.last().map(|window| window.start).unwrap_or_default();
        let is_recent = |named: &Timestamp| newest < *named + QUARANTINE;
        if self.named.get(&change.service).is_some_and(is_recent) {
            return Readiness::Barred;
        }
        let first = healthy.partition_point(|window| window.start < since);
        let (need, otherwise) = if is_replaced(&change.service, &healthy[..first], &healthy[first..]) {
            (self.settled_windows.div_ceil(REPLACED_SHARE).max(REPLACED_WINDOWS_MIN), Readiness::Early)
        } else if change.pressed.is_some() {
            (self.settled_windows * PRESSED_FACTOR, Readiness::Barred)
        } else {
            (self.settled_windows, Readiness::Early)
        };
        if healthy.len() - first >= need { Readiness::Ready } else { otherwise }
    }
}

/// Whether no replica of `service` that ran before is left.
fn is_replaced(service: &ServiceId, before: &[Arc<Observation>], after: &[Arc<Observation>]) -> bool {
    let replicas = |windows: &[Arc<Observation>]| -> BTreeSet<InstanceId> {
        let own = windows.iter().flat_map(|window| &window.services).filter(|seen| seen.service == *service);
        own.flat_map(|seen| seen.instances.iter().map(|one| one.instance.clone())).collect()
    };
    let until = before.len().saturating_sub(ROLLOUT_WINDOWS);
    let old = replicas(&before[until.saturating_sub(BEFORE_WINDOWS)..until]);
    let new = replicas(&after[after.len().saturating_sub(REPLACED_WINDOWS_MIN)..]);
    !old.is_empty() && !new.is_empty() && old.is_disjoint(&new)
}

#[cfg(test)]
mod tests {
    use sage_causal::{ChangeKind, testing::World};
    use sage_common::MetricGroup;

    use super::*;
    use crate::core::{
        incident::{IncidentChange, IncidentId},
        proposal::Proposal,
        testing::{slo, verdict},
    };

    const SETTLED: usize = 20;

    fn service() -> ServiceId {
        ServiceId::sanitized("logic")
    }

    fn gate() -> Gate {
        Gate { settled_windows: SETTLED, named: BTreeMap::new() }
    }

    /// Forty windows, and those after a change.
    fn history(after: u64, is_replaced: bool) -> Vec<Arc<Observation>> {
        let world = World { rate: 1.0, traces_max: 0, ..World::chain() };
        let mut windows = world.windows(1, 0, 40 + after, &[]);
        // They start in the last window of the old level.
        for seen in windows[39..].iter_mut().flat_map(|window| &mut window.services).filter(|_| is_replaced) {
            for one in seen.instances.iter_mut().filter(|_| seen.service == service()) {
                one.instance = InstanceId::sanitized("another");
            }
        }
        windows.into_iter().map(Arc::new).collect()
    }

    fn step(history: &[Arc<Observation>]) -> Change {
        Change {
            service: service(),
            kind: ChangeKind::Step,
            since: Some(history[40].start),
            pressed: None,
            detail: String::new(),
        }
    }

    #[test]
    fn a_level_is_learnt_once_it_has_held_and_sooner_with_new_replicas() {
        let cases = [
            (SETTLED as u64 - 1, false, Readiness::Early),
            (SETTLED as u64, false, Readiness::Ready),
            (3, true, Readiness::Early),
            (4, true, Readiness::Ready),
        ];
        for (after, is_replaced, want) in cases {
            let history = history(after, is_replaced);
            assert_eq!(gate().readiness(&step(&history), &history), want, "{after} windows, replaced {is_replaced}");
        }
    }

    #[test]
    fn a_graph_that_changed_is_learnt_at_once() {
        let history = history(3, false);
        let change = Change { since: None, kind: ChangeKind::NewService, ..step(&history) };
        assert_eq!(gate().readiness(&change, &history), Readiness::Ready);
    }

    #[test]
    fn a_level_for_which_a_resource_is_to_blame_waits_much_longer() {
        let all = history((SETTLED * PRESSED_FACTOR) as u64, false);
        let change = Change { pressed: Some(MetricGroup::Cpu), ..step(&all) };
        assert_eq!(gate().readiness(&change, &all[..all.len() - 1]), Readiness::Barred);
        assert_eq!(gate().readiness(&change, &all), Readiness::Ready);
    }

    #[test]
    fn what_a_verdict_named_is_left_alone_for_an_hour() {
        let all = history(400, false);
        let change = step(&all);
        let named = all[45].start;
        let gate = Gate { named: BTreeMap::from([(service(), named)]), ..gate() };
        let until = all.iter().position(|window| window.start >= named + QUARANTINE).expect("within the history");
        assert_eq!(gate.readiness(&change, &all[..until]), Readiness::Barred);
        assert_eq!(gate.readiness(&change, &all[..=until]), Readiness::Ready);
        let other = Change { service: ServiceId::sanitized("store"), ..change };
        assert_eq!(gate.readiness(&other, &all[..until]), Readiness::Ready);
    }

    #[test]
    fn verdicts_name_and_an_operators_label_stands_above_them() {
        let mut state = State::new(10);
        let at = Timestamp::from_micros(9);
        let mut apply = |id: IncidentId, change: IncidentChange| {
            let index = state.applied() + 1;
            state.apply(index, &Proposal::Incident { id, at, change });
            Gate::new(&Rules::default(), &state).named
        };
        let opened = IncidentChange::Opened { slo: slo().name, latency: slo().target, target: slo().target };
        assert!(apply(1, opened).is_empty());
        let resource = sage_causal::verdict::Resource::Cpu;
        let answer = verdict(&slo(), &service(), resource, 1e5, sage_common::Generation(1), at);
        assert_eq!(apply(1, IncidentChange::Diagnosed(Box::new(answer))), BTreeMap::from([(service(), at)]));
        let cause = crate::core::TrueCause { service: ServiceId::sanitized("store"), resource: None };
        let label = crate::core::Label::new(vec![cause], at).expect("one cause");
        assert!(apply(1, IncidentChange::Labelled(Some(label))).is_empty());
    }
}
