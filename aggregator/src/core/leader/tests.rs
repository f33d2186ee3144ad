//! The closed loop against a fleet in memory, with a script in the place of the model.

use proptest::prelude::*;
use sage_common::{ActionId, KnobKind, Micros, Term, Trust};

use super::*;
use crate::core::{
    action::{Action, ActionState, Ending},
    label::TrueCause,
    slo::{self, SloState},
    testing::{Agent, Fault, Fleet, Script, node, rules, service, slo},
    view,
};

fn only(fleet: &Fleet<Script>) -> &Action {
    let actions = fleet.leader.state().actions();
    assert_eq!(actions.len(), 1, "{actions:#?}");
    actions.values().next().expect("one")
}

fn find(fleet: &Fleet<Script>, id: u64) -> &Action {
    &fleet.leader.state().actions()[&ActionId(id)]
}

fn is_met(state: &State) -> bool {
    state.history().back().is_some_and(|window| slo::judge(&slo(), window, 20.0) == SloState::Met)
}

#[test]
fn a_quiet_fleet_learns_and_does_nothing_else() {
    let mut fleet = Fleet::learned(rules());
    fleet.run(20);
    let state = fleet.leader.state();
    assert!(state.incidents().is_empty() && state.actions().is_empty());
    assert_eq!(state.counters().closed, state.counters().complete);
    assert_eq!(state.model().expect("adopted").meta.generation, Generation(1));
    fleet.check_replay();
}

#[test]
fn a_violation_is_diagnosed_repaired_watched_and_given_back() {
    let mut fleet = Fleet::learned(rules());
    fleet.run(5);
    fleet.fault = Some(Fault::Hog);
    fleet.run_until(8, |state| state.actions().len() == 1);
    let action = only(&fleet);
    assert_eq!((action.state, action.knob.kind()), (ActionState::Applied, KnobKind::CpuQuota));
    assert_eq!((action.node.as_str(), action.service.as_str()), ("b", "geo"));
    assert!(
        matches!(action.setting, sage_common::Setting::Cores(Some(limit)) if limit < 1_600),
        "{:?}",
        action.setting
    );

    fleet.run_until(6, |state| state.actions().values().any(|action| action.state == ActionState::Kept));
    fleet.fault = None;
    fleet.run_until(4, |state| state.open_incidents().next().is_none());
    assert_eq!(fleet.leases(), 1, "kept for a while after the target is met");
    fleet.run_until(10, |state| state.actions().values().all(|action| action.state == ActionState::Reverted));
    let action = only(&fleet);
    assert_eq!(action.ending, Some(Ending::GivenBack));
    assert!(action.measured.expect("judged") < slo().target && action.baseline > slo().target);
    assert_eq!(fleet.leases(), 0);
    fleet.run(20);
    only(&fleet);
    fleet.check_replay();
}

#[test]
fn what_does_not_help_is_given_back_and_the_next_is_tried() {
    let mut fleet = Fleet::learned(rules());
    fleet.fault = Some(Fault::StubbornHog);
    fleet.run_until(20, |state| state.actions().values().any(|action| action.state == ActionState::Kept));
    let (first, second) = (find(&fleet, 1), find(&fleet, 2));
    assert_eq!((first.state, first.ending), (ActionState::Reverted, Some(Ending::NoHelp)));
    assert!(first.measured.expect("judged") > slo().target);
    assert_eq!(second.knob.kind(), KnobKind::Freeze);
    assert_eq!(fleet.leases(), 1);
    fleet.check_replay();
}

#[test]
fn a_full_link_gets_a_ceiling_for_best_effort() {
    let mut fleet = Fleet::learned(rules());
    fleet.fault = Some(Fault::Sender);
    fleet.run_until(12, |state| state.actions().values().any(|action| action.state == ActionState::Kept));
    assert_eq!(only(&fleet).knob.kind(), KnobKind::EgressCeiling);
}

#[test]
fn a_software_fault_is_reported_and_no_knob_is_touched() {
    let mut fleet = Fleet::learned(rules());
    fleet.fault = Some(Fault::Slow);
    fleet.run(30);
    let state = fleet.leader.state();
    let incident = state.open_incidents().next().expect("open");
    assert!(state.actions().is_empty());
    assert!(incident.verdicts.len() > 1, "asked again now and then");
    assert!(incident.waiting.as_deref().is_some_and(|why| why.contains("owner of geo")), "{:?}", incident.waiting);
}

#[test]
fn a_violation_that_returns_at_each_give_back_meets_ever_longer_holds() {
    let mut fleet = Fleet::learned(rules());
    fleet.fault = Some(Fault::Hog);
    fleet.run(400);
    let holds: Vec<u32> = fleet.leader.state().actions().values().map(|action| action.hold_windows).collect();
    assert!(holds.len() >= 5 && holds.len() <= 12, "{holds:?}");
    assert!(holds.is_sorted() && holds.starts_with(&[6, 12, 24, 48]), "{holds:?}");
    assert!(holds.iter().all(|hold| *hold <= 96), "{holds:?}");
    fleet.check_replay();
}

#[test]
fn policy_and_mode_bound_what_is_done() {
    let cases = [
        (Trust::Observe, true, ActionState::Recommended),
        (Trust::Recommend, true, ActionState::Recommended),
        (Trust::Approve, true, ActionState::AwaitingApproval),
        (Trust::Auto, false, ActionState::Recommended),
    ];
    for (trust, is_auto, want) in cases {
        let mut fleet = Fleet::learned(Rules { is_auto, ..rules() });
        fleet.trust = trust;
        fleet.fault = Some(Fault::Hog);
        fleet.run(12);
        let actions = fleet.leader.state().actions();
        assert!((1..=3).contains(&actions.len()), "{trust:?}: {actions:#?}");
        assert!(actions.values().all(|action| action.state == want), "{trust:?}: {actions:#?}");
        assert_eq!(fleet.leases(), 0);
    }
}

#[test]
fn an_approved_action_is_taken_and_an_unapproved_one_lapses_with_its_incident() {
    let mut fleet = Fleet::learned(rules());
    fleet.trust = Trust::Approve;
    fleet.fault = Some(Fault::Hog);
    fleet.run(6);
    fleet.give(Input::Operator(OperatorRequest::Approve(ActionId(1))));
    assert_eq!((only(&fleet).state, fleet.leases()), (ActionState::Applied, 1));

    let mut fleet = Fleet::learned(rules());
    fleet.trust = Trust::Approve;
    fleet.fault = Some(Fault::Hog);
    fleet.run(6);
    fleet.fault = None;
    fleet.run(6);
    assert_eq!((only(&fleet).state, only(&fleet).ending), (ActionState::Recommended, Some(Ending::Stale)));
    fleet.give(Input::Operator(OperatorRequest::Approve(ActionId(1))));
    assert_eq!(fleet.leases(), 0);
}

#[test]
fn the_brake_gives_everything_back_and_holds_until_thawed() {
    let mut fleet = Fleet::learned(rules());
    fleet.fault = Some(Fault::Hog);
    fleet.run_until(8, |state| !state.actions().is_empty());
    fleet.give(Input::Operator(OperatorRequest::Freeze));
    assert_eq!(fleet.leases(), 0);
    assert_eq!((only(&fleet).state, only(&fleet).ending), (ActionState::Reverted, Some(Ending::Frozen)));
    fleet.run(12);
    only(&fleet);
    fleet.restart();
    assert!(fleet.leader.state().is_frozen(), "a brake survives a restart");
    fleet.give(Input::Operator(OperatorRequest::Thaw));
    fleet.run(20);
    assert_eq!(fleet.leases(), 1, "{:#?}", fleet.notes);
    fleet.check_replay();
}

#[test]
fn a_lost_agent_loses_its_lease_and_its_next_life_is_helped_again() {
    let mut fleet = Fleet::learned(rules());
    fleet.fault = Some(Fault::Hog);
    fleet.run_until(12, |state| state.actions().values().any(|action| action.state == ActionState::Kept));
    fleet.restart_agent("b");
    assert_eq!((find(&fleet, 1).state, find(&fleet, 1).ending), (ActionState::Reverted, Some(Ending::Lost)));
    fleet.run(20);
    assert_eq!(fleet.leases(), 1, "{:#?}", fleet.notes);
}

#[test]
fn a_node_that_vanishes_lets_its_lease_run_out_and_stops_counting_as_missing() {
    let mut fleet = Fleet::learned(rules());
    fleet.fault = Some(Fault::Hog);
    fleet.run_until(12, |state| state.actions().values().any(|action| action.state == ActionState::Kept));
    fleet.stop_agent("b");
    fleet.run(12);
    assert_eq!((find(&fleet, 1).state, find(&fleet, 1).ending), (ActionState::Reverted, Some(Ending::Unreachable)));
    let newest = &fleet.leader.state().history().back().expect("windows go on").observation;
    assert_eq!(newest.completeness, 1.0);
    assert!(newest.edges.iter().any(|edge| edge.key.callee.as_str() == "geo"), "known from its caller");
}

#[test]
fn a_node_that_does_not_answer_is_given_up_and_told_so_when_it_speaks_again() {
    let mut fleet = Fleet::learned(rules());
    fleet.fault = Some(Fault::Hog);
    fleet.is_deaf = true;
    fleet.run_until(12, |state| state.actions().values().any(|action| action.state == ActionState::Failed));
    let late = CommandResult {
        action: ActionId(1),
        outcome: sage_protocol::message::Outcome::Applied {
            before: sage_common::Setting::Cores(None),
            now: sage_common::Setting::Cores(Some(500)),
        },
    };
    fleet.give(Input::CommandResult { node: node("b"), result: late });
    let sent = fleet.leader.counters().commands;
    assert!(sent >= 4, "three times the order, then its end: {sent}");
    assert_eq!(find(&fleet, 1).state, ActionState::Failed);
}

#[test]
fn a_setting_nobody_knows_of_is_revoked_when_its_agent_connects() {
    let mut fleet = Fleet::learned(rules());
    let agent: &mut Agent = fleet.agents.get_mut(&node("b")).expect("known");
    let knob = sage_common::Knob::Freeze { cgroup: crate::core::testing::cgroup("batch/hog") };
    let until = fleet.now + Micros::from_secs(50);
    agent.leases.insert(ActionId(77), (knob, sage_common::Setting::Frozen(true), until));
    fleet.restart();
    assert_eq!(fleet.leases(), 0);
}

#[test]
fn nobody_leads_and_nothing_is_said() {
    let mut leader: Leader<Script> = Leader::new(rules(), "two", vec![slo()], State::new(10));
    leader.handle_input(Timestamp::from_micros(1), Input::Operator(OperatorRequest::Freeze));
    assert!(leader.poll_output().is_none() && leader.poll_timeout().is_none());
    leader.handle_input(
        Timestamp::from_micros(2),
        Input::Committed { index: 1, proposal: Proposal::Freeze { at: Timestamp::from_micros(1) } },
    );
    assert!(leader.state().is_frozen(), "a standby applies");
    assert!(leader.poll_output().is_none());
}

#[test]
fn windows_that_cannot_be_are_refused_counted_and_not_sent_again() {
    let mut fleet = Fleet::learned(rules());
    let agent = fleet.agents.get_mut(&node("a")).expect("known");
    let mut bad =
        fleet.leader.state().assembly().closed(fleet.leader.state().assembly().closed_until().expect("closed"))[0]
            .clone();
    bad.key.seq = 9_999;
    bad.latencies[0].calls = f32::NAN;
    agent.unacknowledged.insert(bad.key.seq, bad.clone());
    let before = fleet.leader.state().clone();
    fleet.give(Input::Window(bad));
    assert_eq!(fleet.leader.state(), &before);
    assert_eq!(fleet.leader.counters().refused, 1);
    assert!(fleet.agents[&node("a")].unacknowledged.is_empty());
    assert!(fleet.leader.problems().iter().any(|problem| problem.contains("refused")));
}

#[test]
fn a_clock_an_hour_off_costs_two_windows_and_is_reported() {
    for clock_off in [-360, 360] {
        let mut fleet = Fleet::learned(rules());
        fleet.run(5);
        fleet.agents.get_mut(&node("b")).expect("known").clock_off = clock_off;
        fleet.run(20);
        let state = fleet.leader.state();
        let newest: Vec<f32> =
            state.history().iter().rev().take(15).map(|window| window.observation.completeness).collect();
        assert!(newest.iter().all(|share| *share == 1.0), "{clock_off}: {newest:?}");
        assert!(fleet.leader.problems().iter().any(|problem| problem.contains("clock of b")));
        fleet.agents.get_mut(&node("b")).expect("known").clock_off = 0;
        fleet.run(10);
        assert!(fleet.leader.problems().is_empty(), "{:?}", fleet.leader.problems());
        assert!(fleet.leader.state().history().back().expect("closed").observation.completeness == 1.0);
    }
}

#[test]
fn no_acknowledged_window_is_lost_and_none_counts_twice_over_restarts() {
    let mut fleet = Fleet::learned(rules());
    for _ in 0..10 {
        fleet.run(2);
        let again: Vec<NodeWindow> = fleet
            .leader
            .state()
            .assembly()
            .closed(fleet.leader.state().assembly().closed_until().expect("closed"))
            .into_iter()
            .cloned()
            .collect();
        for window in again {
            fleet.give(Input::Window(window));
        }
        fleet.restart();
    }
    fleet.run(2);
    let sent: u64 = fleet.agents.values().map(|agent| agent.next_seq).sum();
    let kept: usize = fleet.agents.values().map(|agent| agent.unacknowledged.len()).sum();
    assert_eq!(fleet.leader.state().counters().windows, sent - kept as u64);
    fleet.check_replay();
}

/// Runs a fault from its beginning to its end; the aggregator dies as `disturb` says.
fn whole_story(disturb: impl Fn(&mut Fleet<Script>, u32)) -> Fleet<Script> {
    let mut fleet = Fleet::learned(rules());
    fleet.run(2);
    fleet.fault = Some(Fault::StubbornHog);
    for window in 0..11 {
        disturb(&mut fleet, window);
        fleet.run(1);
    }
    fleet.fault = None;
    for window in 11..40 {
        disturb(&mut fleet, window);
        fleet.run(1);
    }
    fleet
}

#[test]
fn a_restart_in_any_window_changes_nothing_of_the_story() {
    for at in 0..40 {
        let fleet = whole_story(|fleet, window| {
            if window == at {
                fleet.restart();
            }
        });
        let actions = fleet.leader.state().actions();
        let endings: Vec<Option<Ending>> = actions.values().map(|action| action.ending).collect();
        assert_eq!(endings[..2], [Some(Ending::NoHelp), Some(Ending::GivenBack)], "restart at {at}: {actions:#?}");
        assert_eq!((actions.len(), fleet.leases()), (2, 0), "restart at {at}");
        assert!(is_met(fleet.leader.state()));
        fleet.check_replay();
    }
}

#[test]
fn views_are_json_with_the_agreed_keys() {
    let mut fleet = Fleet::learned(rules());
    fleet.run(6);
    fleet.fault = Some(Fault::Hog);
    fleet.run(7);
    let identity =
        view::Identity { name: "one".into(), fleet: "test".into(), version: "0".into(), uptime: Micros::from_secs(1) };
    let status = serde_json::to_value(view::status(&fleet.leader, &identity)).expect("plain");
    assert_eq!(status["slos"][0]["state"], "met");
    assert_eq!(status["model"]["generation"], 1);
    assert_eq!(status["nodes"][1]["leases"], 1);
    let incidents = serde_json::to_value(view::incidents(fleet.leader.state())).expect("plain");
    assert_eq!(incidents[0]["verdicts"][0]["culprits"][0]["service"], "geo");
    assert!(incidents[0]["verdicts"][0]["at_ms"].as_u64().is_some_and(|at| at > 1_700_000_000_000));
    let actions = serde_json::to_value(view::actions(fleet.leader.state())).expect("plain");
    assert_eq!((&actions[0]["state"], &actions[0]["knob_kind"]), (&"kept".into(), &"cpu_quota".into()));
    let graph = serde_json::to_value(view::graph(fleet.leader.state())).expect("plain");
    assert_eq!(graph["edges"].as_array().map(Vec::len), Some(3), "{graph:#}");
    assert!(graph["edges"][0]["caller"].is_null());
    assert!(view::explain(&fleet.leader, 1).is_some_and(|story| story.actions.len() == 1));
    let windows = view::windows(&fleet.leader, 3);
    assert_eq!(windows.len(), 3);
    let suggested = view::suggestions(&fleet.leader, 99.0);
    assert!(suggested.iter().any(|one| one.service.as_str() == "front" && one.operation.is_none()), "{suggested:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_crash_between_any_two_outputs_changes_nothing_of_the_end(after in 0_usize..160, at in 0_u32..30) {
        let fleet = whole_story(|fleet, window| {
            if window == at {
                fleet.crash_after = Some(after);
            }
        });
        prop_assert_eq!(fleet.leases(), 0);
        prop_assert!(is_met(fleet.leader.state()));
        let actions = fleet.leader.state().actions();
        prop_assert!(actions.len() <= 3, "{:#?}", actions);
        prop_assert!(actions.values().all(Action::is_over), "{:#?}", actions);
        fleet.check_replay();
    }

    #[test]
    fn any_order_of_windows_and_any_repeats_give_the_same_state(
        order in Just((0..24_usize).collect::<Vec<_>>()).prop_shuffle(),
        repeats in prop::collection::vec(0_usize..24, 0..12),
    ) {
        let fleet = {
            let mut fleet = Fleet::<Script>::new(rules());
            fleet.run(13);
            fleet
        };
        let windows: Vec<NodeWindow> = fleet.log.iter().filter_map(|entry| match entry {
            Proposal::Windows { windows, .. } => Some(windows.clone()),
            _ => None,
        }).flatten().take(24).collect();
        let build = |order: &[usize]| {
            let mut state = State::new(100);
            let at = fleet.now;
            for (index, number) in order.iter().enumerate() {
                state.apply(index as u64 + 1, &Proposal::Windows { at, windows: vec![windows[*number].clone()] });
            }
            let starts: Vec<Timestamp> = state.assembly().pending().map(|(start, _)| start).collect();
            for (index, start) in starts.into_iter().enumerate() {
                state.apply(100 + index as u64, &Proposal::Close { start, arrived: at, at });
            }
            state
        };
        let straight = build(&(0..24).collect::<Vec<_>>());
        let shuffled = build(&order);
        let repeated = build(&order.iter().chain(&repeats).copied().collect::<Vec<_>>());
        prop_assert_eq!(straight.history(), shuffled.history());
        prop_assert_eq!(straight.graph(), shuffled.graph());
        prop_assert_eq!(straight.history(), repeated.history());
        prop_assert_eq!(repeated.counters().duplicates, repeats.len() as u64);
        prop_assert_eq!(straight.counters().windows, repeated.counters().windows);
    }
}

#[test]
fn a_higher_term_forgets_what_was_on_its_way() {
    let mut fleet = Fleet::learned(rules());
    fleet.give(Input::Following);
    assert!(fleet.leader.leading().is_none());
    fleet.run(3);
    assert!(fleet.agents.values().all(|agent| agent.unacknowledged.len() == 3), "nobody acknowledges");
    fleet.restart();
    assert_eq!(fleet.leader.leading(), Some(Term(2)));
    fleet.tick();
    assert!(fleet.agents.values().all(|agent| agent.unacknowledged.is_empty()));
    fleet.check_replay();
}

/// Trains the real model whenever it is asked for.
fn real(fault: Fault) -> Fleet<sage_causal::Model> {
    let mut fleet = Fleet::<sage_causal::Model>::new(Rules { windows_min: 40, ..rules() });
    for _ in 0..50 {
        fleet.run(1);
        let Some(job) = fleet.jobs.pop_front() else { continue };
        if job.previous.is_some() {
            fleet.give(Input::Unchanged);
            continue;
        }
        let history: Vec<Observation> = job.healthy.iter().map(|window| window.as_ref().clone()).collect();
        let (model, _) = sage_causal::train(&history, &job.slos, None, &Default::default()).expect("enough windows");
        let meta = ModelMeta::new(&job, model.cards(), 0.1, fleet.now);
        let oracle = model.with_generation(job.generation);
        let bytes = oracle.to_bytes();
        fleet.give(Input::Trained { oracle, bytes, meta });
    }
    fleet.fault = Some(fault);
    fleet.run(8);
    fleet
}

#[test]
fn the_real_model_names_the_victim_of_a_hog_and_the_hog_is_limited() {
    let fleet = real(Fault::Hog);
    let incident = fleet.leader.state().incidents().values().next().expect("opened");
    let verdict = &incident.verdicts.first().expect("diagnosed").verdict;
    assert_eq!(verdict.culprits[0].service.as_str(), "geo", "{verdict:#?}");
    assert_eq!(verdict.culprits[0].resource, sage_causal::verdict::Resource::Cpu, "{verdict:#?}");
    let action = fleet.leader.state().actions().values().next().expect("acted");
    assert_eq!(action.knob.kind(), KnobKind::CpuQuota);
    assert!(action.measured.expect("judged") < slo().target, "{action:#?}");
}

#[test]
fn the_real_model_sees_a_full_link_and_best_effort_gets_a_ceiling() {
    let fleet = real(Fault::Sender);
    let incident = fleet.leader.state().incidents().values().next().expect("opened");
    let verdict = &incident.verdicts.first().expect("diagnosed").verdict;
    assert_eq!(verdict.culprits[0].resource, sage_causal::verdict::Resource::Network, "{verdict:#?}");
    let action = fleet.leader.state().actions().values().next().expect("acted");
    assert_eq!(action.knob.kind(), KnobKind::EgressCeiling);
}

#[test]
fn the_real_model_calls_a_slow_service_software() {
    let fleet = real(Fault::Slow);
    let incident = fleet.leader.state().open_incidents().next().expect("open");
    let verdict = &incident.verdicts.first().expect("diagnosed").verdict;
    assert_eq!(verdict.culprits[0].service.as_str(), "geo", "{verdict:#?}");
    assert_eq!(verdict.culprits[0].resource, sage_causal::verdict::Resource::Software, "{verdict:#?}");
    assert!(fleet.leader.state().actions().is_empty());
}

fn label(name: &str) -> Label {
    let cause = TrueCause { service: service(name), resource: None };
    Label::new(vec![cause], Timestamp::default()).expect("one")
}

#[test]
fn a_label_is_kept_with_its_time_until_it_is_taken_back() {
    let mut fleet = Fleet::learned(rules());
    fleet.fault = Some(Fault::Hog);
    fleet.run_until(8, |state| state.incidents().contains_key(&1));
    fleet.give(Input::Operator(OperatorRequest::Label(1, Some(label("geo")))));
    fleet.give(Input::Operator(OperatorRequest::Label(9, Some(label("geo")))));
    fleet.restart();
    let state = fleet.leader.state();
    let kept = state.casebook().label(1).expect("kept");
    assert_eq!((kept.causes[0].service.as_str(), kept.at), ("geo", fleet.now));
    assert_eq!(state.casebook().label(9), None, "there is no such incident");
    assert_eq!(view::incident(state, 1).and_then(|one| one.label).expect("shown").causes, kept.causes);
    fleet.check_replay();
    fleet.give(Input::Operator(OperatorRequest::Label(1, None)));
    assert_eq!(fleet.leader.state().casebook().label(1), None);
}

#[test]
fn what_the_newest_verdict_was_read_from_is_kept_beyond_the_history() {
    let mut fleet = Fleet::learned(Rules { windows_max: 14, ..rules() });
    fleet.fault = Some(Fault::Slow);
    fleet.run_until(8, |state| state.incidents().get(&1).is_some_and(|incident| incident.newest().is_some()));
    let newest = fleet.leader.newest(&slo());
    let (close, evidence) = fleet.leader.state().casebook().evidence(1).expect("kept");
    assert_eq!(close, fleet.leader.state().closes());
    assert_eq!((&evidence.windows, &evidence.slo), (&newest, &slo()));
    fleet.fault = None;
    fleet.run(30);
    assert!(fleet.leader.state().history().iter().all(|window| window.close > close), "all of it is gone");
    let (newer, kept) = fleet.leader.state().casebook().evidence(1).expect("kept");
    let verdict = &fleet.leader.state().incidents()[&1].newest().expect("diagnosed").verdict;
    assert!(newer >= close && kept.windows.last().expect("some").start == verdict.window);
    fleet.restart();
    assert_eq!(fleet.leader.state().casebook().evidence(1).expect("kept").1, kept);
    fleet.check_replay();
}

#[test]
fn a_verdict_of_windows_that_a_late_node_has_changed_since_keeps_nothing() {
    let mut fleet = Fleet::learned(rules());
    fleet.fault = Some(Fault::Slow);
    fleet.run_until(8, |state| state.incidents().get(&1).is_some_and(|incident| incident.newest().is_some()));
    let mut state = fleet.leader.state().clone();
    let before = state.casebook().evidence(1).expect("kept");
    let newest = state.history().back().expect("closed").close;
    let verdict = Box::new(state.incidents()[&1].newest().expect("diagnosed").verdict.clone());
    let applied = state.applied();
    let mut late = fleet
        .log
        .iter()
        .rev()
        .find_map(|entry| if let Proposal::Windows { windows, .. } = entry { windows.first().cloned() } else { None })
        .expect("windows came");
    late.key.seq += 1_000;
    let mut apply = |proposal: &Proposal| state.apply(state.applied() + 1, proposal);
    assert_eq!(apply(&Proposal::Windows { at: fleet.now, windows: vec![late] }).counted.len(), 1);
    let answered = |applied| Proposal::Incident {
        id: 1,
        at: fleet.now,
        change: IncidentChange::Answered {
            verdict: verdict.clone(),
            seen: crate::core::incident::Seen { applied, first: newest, last: newest, windows: 1 },
        },
    };
    apply(&answered(applied));
    assert_eq!(state.casebook().evidence(1), Some(before.clone()), "seen before the late window came");
    state.apply(applied + 3, &answered(applied + 2));
    assert_ne!(state.casebook().evidence(1), Some(before), "seen after it");
}
