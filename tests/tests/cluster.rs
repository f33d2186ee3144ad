//! The whole cluster in one deterministic run: the real cores of three agents and an aggregator, a simulated application on
//! simulated machines, a seed. `SAGE_SIM_SEED=7` runs a test on that seed alone.

use std::collections::{BTreeMap, BTreeSet};

use sage_aggregator::core::{Action, ActionState, Ending, OperatorRequest, State};
use sage_causal::verdict::{Resource, VerdictKind};
use sage_common::{KnobKind, Micros, ServiceId, Timestamp};
use sage_protocol::message::{Outcome, Refusal};
use sage_tests::sim::{CGROUP_HOG, Cluster, Crash, Fuse, Hog, Weather, for_seeds};

fn state(cluster: &Cluster) -> &State {
    cluster.state().expect("the aggregator is up")
}

fn newest(cluster: &Cluster) -> Option<&Action> {
    cluster.state()?.actions().values().next_back()
}

/// Whether the target is met in the newest windows that say so; the newest of all may wait for a late node.
fn is_met(cluster: &Cluster) -> bool {
    let windows = cluster.state().into_iter().flat_map(|state| state.history().iter().rev().take(2));
    let latencies: Vec<f64> = windows.flat_map(|one| &one.observation.objectives).map(|one| one.latency_us).collect();
    !latencies.is_empty() && latencies.iter().all(|latency| *latency <= Cluster::slo().target.get() as f64)
}

fn has_open_incident(cluster: &Cluster) -> bool {
    cluster.state().is_some_and(|state| state.open_incidents().next().is_some())
}

fn is_all_over(cluster: &Cluster) -> bool {
    let holds_nothing = |state: &State| state.actions().values().all(|action| !action.is_in_force());
    !has_open_incident(cluster) && is_met(cluster) && cluster.state().is_some_and(holds_nothing)
}

/// The services that run on a machine.
fn services_on(cluster: &Cluster, machine: usize) -> BTreeSet<&str> {
    let tiers = cluster.application.tiers.iter();
    tiers.filter(|tier| tier.machine == machine).map(|tier| tier.service.as_str()).collect()
}

fn assert_right_culprit(cluster: &Cluster, machine: usize, resource: Resource) {
    let incident = state(cluster).open_incidents().next().expect("open");
    let verdict = &incident.newest().expect("diagnosed").verdict;
    let here = services_on(cluster, machine);
    assert_eq!(verdict.kind, VerdictKind::Culprit, "{}", cluster.story());
    for culprit in &verdict.culprits {
        assert!(here.contains(culprit.service.as_str()), "{} is innocent:{}", culprit.service, cluster.story());
        assert_eq!(culprit.resource, resource, "{}", cluster.story());
    }
}

fn assert_only_touched(cluster: &Cluster, machine: usize) {
    for (number, other) in cluster.machines.iter().enumerate() {
        assert_eq!(other.kernel.writes.is_empty(), number != machine, "{}:{}", other.node, cluster.story());
    }
}

#[test]
fn a_hog_is_found_held_back_on_its_own_machine_and_released_when_it_is_done() {
    for_seeds(9, |seed| {
        let mut cluster = Cluster::learned(seed);
        let machine = (seed % 3) as usize;
        cluster.machines[machine].hog = Some(Hog::Processor);
        cluster.run_until("applied action", 6, |c| newest(c).is_some_and(|action| action.applied_at.is_some()));
        assert_right_culprit(&cluster, machine, Resource::Cpu);
        assert_only_touched(&cluster, machine);
        let knobs = cluster.machines[machine].changed();
        assert_eq!(knobs.len(), 1);
        assert_eq!(knobs[0].cgroup().map(sage_common::CgroupPath::as_str), Some(CGROUP_HOG));

        cluster.run_until("recovery", 5, |c| newest(c).is_some_and(|action| action.state == ActionState::Kept));
        assert_eq!(cluster.machines[machine].changed(), knobs, "the hog is still there, and held");
        assert!(is_met(&cluster) && !has_open_incident(&cluster), "{}", cluster.story());

        cluster.machines[machine].hog = None;
        cluster.run_until("end", 12, is_all_over);
        cluster.run_windows(4);
        assert!(!has_open_incident(&cluster) && is_met(&cluster), "{}", cluster.story());
        assert_only_touched(&cluster, machine);
        cluster.assert_as_found();
        cluster.assert_each_window_counts_once();
    });
}

#[test]
fn what_does_not_help_is_given_back_and_the_next_is_tried() {
    for_seeds(4, |seed| {
        let mut cluster = Cluster::learned(seed);
        let machine = 1 + (seed % 2) as usize;
        cluster.machines[machine].hog = Some(Hog::Stubborn);
        cluster.run_until("freeze that helps", 20, |c| {
            newest(c).is_some_and(|action| action.knob.kind() == KnobKind::Freeze && action.state == ActionState::Kept)
        });
        let first = state(&cluster).actions().values().next().expect("the quota was tried first");
        assert_eq!((first.knob.kind(), first.ending), (KnobKind::CpuQuota, Some(Ending::NoHelp)));
        assert_eq!(cluster.machines[machine].changed().len(), 1, "the quota is as it was");
        cluster.machines[machine].hog = None;
        cluster.run_until("end", 12, is_all_over);
        cluster.assert_as_found();
    });
}

#[test]
fn a_hog_that_stays_is_probed_ever_more_rarely() {
    for_seeds(1, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.machines[1].hog = Some(Hog::Processor);
        cluster.run_windows(90);
        let holds: Vec<u32> = state(&cluster).actions().values().map(|action| action.hold_windows).collect();
        assert!(holds.windows(2).all(|pair| pair[1] == 2 * pair[0]), "{holds:?}");
        assert!((3..=6).contains(&holds.len()), "{holds:?}");
    });
}

/// A run with something of everything.
fn eventful(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(seed);
    cluster.learn();
    cluster.set_weather(2, Weather::stormy());
    cluster.machines[1].hog = Some(Hog::Processor);
    cluster.run_windows(3);
    cluster.crash_aggregator();
    cluster.start_aggregator_in(Micros::from_secs(7));
    cluster.run_windows(3);
    cluster.crash_agent(1);
    cluster.start_agent_in(1, Micros::from_secs(3));
    cluster.run_windows(3);
    cluster
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let hashes: Vec<_> = [5, 5, 6].map(|seed| eventful(seed).hash()).to_vec();
    assert_eq!(hashes[0], hashes[1]);
    assert_ne!(hashes[0], hashes[2]);
    assert!(hashes[0].0 > 5_000, "{} events", hashes[0].0);
}

#[test]
fn an_aggregator_that_dies_anywhere_loses_nothing_and_goes_on_where_it_was() {
    for_seeds(8, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.machines[1].hog = Some(Hog::Processor);
        for _ in 0..6 {
            let crash = match cluster.choose(0..=3) {
                0 => Crash::IntentDurable,
                1 => Crash::IntentTold,
                _ => Crash::AfterOutputs(cluster.choose(0..=30) as u32),
            };
            cluster.let_aggregator_crash(crash);
            cluster.run_until_or(3, |c| c.aggregators.is_empty());
            cluster.crash_aggregator();
            cluster.assert_each_window_counts_once();
            let pause = cluster.choose_millis(100..=20_000);
            cluster.start_aggregator_in(pause);
            cluster.run_until("restart", 3, |c| !c.aggregators.is_empty());
            let open: Vec<_> = state(&cluster).open_incidents().map(|incident| incident.id).collect();
            assert!(open.len() <= 1, "{open:?}:{}", cluster.story());
        }
        cluster.run_until("recovery", 20, |c| newest(c).is_some_and(|action| action.state == ActionState::Kept));
        cluster.machines[1].hog = None;
        cluster.run_until("end", 20, is_all_over);
        assert_only_touched(&cluster, 1);
        cluster.assert_as_found();
        cluster.assert_each_window_counts_once();
        cluster.assert_the_disk_says_the_same();
    });
}

#[test]
fn without_an_aggregator_every_setting_is_gone_when_its_lease_is() {
    for_seeds(3, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.machines[2].hog = Some(Hog::Processor);
        cluster.run_until("applied action", 6, |c| !c.machines[2].changed().is_empty());
        match seed {
            1 => cluster.partition(2, true, false),
            2 => cluster.partition(2, true, true),
            _ => cluster.crash_aggregator(),
        }
        cluster.run_windows(4);
        assert_eq!(cluster.machines[2].changed().len(), 1, "the lease runs");
        cluster.run_windows(3);
        cluster.assert_as_found();
    });
}

#[test]
fn a_higher_term_fences_an_older_process_that_lives_on() {
    for_seeds(4, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.machines[1].hog = Some(Hog::Processor);
        cluster.run_until("applied action", 6, |c| !c.machines[1].changed().is_empty());
        cluster.start_another_aggregator();
        let (old, new) = (cluster.aggregators[0].term(), cluster.aggregators[1].term());
        assert!(old < new, "{old:?} {new:?}");
        let is_new = |c: &Cluster| c.aggregators[1].sent.iter().any(|(_, command)| Some(command.term) == new);
        cluster.run_until("command of the new term", 6, is_new);
        cluster.run_windows(1);
        let late: Vec<_> = cluster.aggregators[0].sent.iter().cloned().collect();
        assert!(!late.is_empty());
        let before = cluster.machines[1].kernel.settings.clone();
        for (node, command) in late {
            for result in cluster.command_late(&node, command) {
                assert!(matches!(result.outcome, Outcome::Refused(Refusal::StaleTerm(_))), "{result:?}");
            }
        }
        assert_eq!(cluster.machines[1].kernel.settings, before);
        cluster.machines[1].hog = None;
        cluster.run_until("end", 20, is_all_over);
        cluster.assert_as_found();
        cluster.assert_each_window_counts_once();
    });
}

#[test]
fn an_agent_that_dies_anywhere_finds_its_knobs_in_its_undo_log() {
    for_seeds(10, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.machines[1].hog = Some(Hog::Processor);
        for _ in 0..4 {
            let fuse = Fuse { effects: cluster.choose(0..=9) as u32, is_last_done: cluster.choose(0..=1) == 1 };
            cluster.agents[1].fuse = Some(fuse);
            cluster.run_until_or(5, |c| !c.agents[1].is_up());
            match cluster.choose(0..=4) {
                0 => cluster.reboot(1),
                _ => cluster.crash_agent(1),
            }
            let pause = cluster.choose_millis(100..=40_000);
            cluster.run_until_or(1, |c| c.aggregators.is_empty());
            cluster.start_agent_in(1, pause);
            cluster.run_until("restart", 6, |c| c.agents[1].is_up());
            assert!(cluster.machines[1].changed().is_empty(), "given back at once:{}", cluster.story());
        }
        cluster.machines[1].hog = None;
        cluster.run_until("end", 30, is_all_over);
        cluster.assert_as_found();
        cluster.assert_each_window_counts_once();
    });
}

#[test]
fn a_stopped_agent_leaves_its_machine_as_it_found_it() {
    for_seeds(2, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.machines[1].hog = Some(Hog::Processor);
        cluster.run_until("applied action", 6, |c| !c.machines[1].changed().is_empty());
        cluster.stop_agent(1);
        cluster.assert_as_found();
        cluster.run_windows(3);
        cluster.start_agent(1);
        cluster.run_until("applied action", 20, |c| !c.machines[1].changed().is_empty());
    });
}

/// Lets something happen to a network.
fn trouble(cluster: &mut Cluster) {
    let number = cluster.choose(0..=2) as usize;
    match cluster.choose(0..=5) {
        0 | 1 => cluster.cut(number),
        2 => cluster.partition(number, true, false),
        3 => cluster.partition(number, false, true),
        4 => cluster.partition(number, true, true),
        _ => (0..3).for_each(|other| cluster.heal(other)),
    }
}

fn calm(cluster: &mut Cluster) {
    for number in 0..3 {
        cluster.heal(number);
        cluster.set_weather(number, Weather::default());
    }
}

/// Everything that was made is safe, but for what is just on its way.
fn assert_nothing_waits(cluster: &Cluster) {
    for (number, agent) in cluster.agents.iter().enumerate() {
        assert!(agent.spooled() <= 1, "{} windows wait at {number}:{}", agent.spooled(), cluster.story());
    }
    let waiting = cluster.ledger.made() - cluster.ledger.acknowledged();
    assert!(waiting <= 3, "{waiting} windows are not acknowledged:{}", cluster.story());
}

#[test]
fn whatever_the_network_does_every_window_counts_once() {
    for_seeds(8, |seed| {
        let mut cluster = Cluster::learned(seed);
        (0..3).for_each(|number| cluster.set_weather(number, Weather::stormy()));
        cluster.machines[2].hog = (seed % 2 == 0).then_some(Hog::Processor);
        for _ in 0..25 {
            trouble(&mut cluster);
            let end = cluster.now + cluster.choose_millis(1_000..=15_000);
            while cluster.now < end {
                cluster.step();
            }
            cluster.assert_each_window_counts_once();
        }
        cluster.machines[2].hog = None;
        calm(&mut cluster);
        cluster.run_until("end", 30, is_all_over);
        cluster.run_windows(1);
        assert_nothing_waits(&cluster);
        cluster.assert_as_found();
        cluster.assert_each_window_counts_once();
        cluster.assert_the_disk_says_the_same();
    });
}

#[test]
fn a_clock_that_jumps_an_hour_stops_nothing_and_nobody_else() {
    for_seeds(6, |seed| {
        let mut cluster = Cluster::learned(seed);
        let (machine, is_back) = ((seed % 3) as usize, seed % 2 == 0);
        let hour = Micros::from_secs(3_600) + cluster.choose_millis(0..=9_999);
        for is_back in [is_back, !is_back] {
            cluster.machines[machine].jump(hour, is_back);
            let before = state(&cluster).closes();
            cluster.run_windows(10);
            let after = state(&cluster);
            assert!((9..=12).contains(&(after.closes() - before)), "{}:{}", after.closes() - before, cluster.story());
            // The newest may still wait for a window that is a fraction of a window late.
            let settled = after.history().iter().rev().nth(1).expect("closed");
            assert_eq!(settled.observation.completeness, 1.0, "{}", cluster.story());
            assert!(is_met(&cluster) && !has_open_incident(&cluster), "{}", cluster.story());
            assert_nothing_waits(&cluster);
            if machine != 1 {
                cluster.machines[1].hog = Some(Hog::Processor);
                cluster.run_until("applied action", 8, |c| !c.machines[1].changed().is_empty());
                assert_right_culprit(&cluster, 1, Resource::Cpu);
                cluster.machines[1].hog = None;
                cluster.run_until("end", 20, is_all_over);
            }
        }
        cluster.assert_as_found();
        cluster.assert_each_window_counts_once();
    });
}

#[test]
fn a_service_that_is_renamed_removed_or_restarted_leaves_the_others_diagnosis_right() {
    for_seeds(3, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.application.tier("cart").service = ServiceId::sanitized("basket");
        cluster.application.tier("audit").is_called = false;
        cluster.application.tier("search").life += 1;
        cluster.run_windows(3);
        for machine in [1, 2] {
            cluster.machines[machine].hog = Some(Hog::Processor);
            cluster.run_until("applied action", 8, |c| !c.machines[machine].changed().is_empty());
            assert_right_culprit(&cluster, machine, Resource::Cpu);
            cluster.machines[machine].hog = None;
            cluster.run_until("end", 20, is_all_over);
        }
        cluster.assert_as_found();
    });
}

#[test]
fn a_renamed_service_is_found_guilty_once_its_new_name_is_learnt() {
    for_seeds(2, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.application.tier("search").service = ServiceId::sanitized("finder");
        let first = state(&cluster).model().map(|model| model.meta.generation);
        cluster.run_until("new model", 60, |c| state(c).model().map(|model| model.meta.generation) > first);
        for machine in [1, 2] {
            cluster.machines[machine].hog = Some(Hog::Processor);
            cluster.run_until("applied action", 8, |c| !c.machines[machine].changed().is_empty());
            assert_right_culprit(&cluster, machine, Resource::Cpu);
            cluster.machines[machine].hog = None;
            cluster.run_until("end", 20, is_all_over);
        }
    });
}

/// Why each service was last learnt, and on windows up to when.
fn lessons(cluster: &Cluster) -> BTreeMap<String, (String, Timestamp)> {
    let cards = state(cluster).model().into_iter().flat_map(|model| &model.meta.cards);
    cards.map(|card| (card.service.to_string(), (card.reason.clone(), card.last_retrain))).collect()
}

fn is_at_another_level(cluster: &Cluster, service: &str) -> bool {
    lessons(cluster)[service].0.starts_with("new level")
}

#[test]
fn a_slower_release_is_learnt_with_those_above_it_alone_and_a_later_fault_there_is_named() {
    for_seeds(2, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.run_windows(20); // by then everything has been learnt on twice the windows
        let before = lessons(&cluster);
        let search = cluster.application.tier("search");
        (search.pace, search.life) = (2.0, search.life + 1);
        cluster.run_until("the new level", 15, |c| is_at_another_level(c, "search"));
        assert!(state(&cluster).incidents().is_empty() && is_met(&cluster), "{}", cluster.story());
        let after = lessons(&cluster);
        for untouched in ["audit", "cart", "stock"] {
            assert_eq!(after[untouched], before[untouched], "{}", cluster.story());
        }
        assert_eq!(after["front"].1, after["search"].1, "it waits for search:{}", cluster.story());
        assert!(after["front"].1 > before["front"].1, "{after:?}");
        cluster.machines[1].hog = Some(Hog::Processor);
        cluster.run_until("applied action", 8, |c| !c.machines[1].changed().is_empty());
        assert_right_culprit(&cluster, 1, Resource::Cpu);
        cluster.machines[1].hog = None;
        cluster.run_until("end", 20, is_all_over);
        cluster.assert_as_found();
    });
}

#[test]
fn a_mild_fault_below_the_target_is_not_taken_for_normal_and_named_when_it_grows() {
    for_seeds(2, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.run_windows(16);
        cluster.application.tier("search").pace = 2.0;
        cluster.run_windows(18);
        assert!(state(&cluster).incidents().is_empty(), "{}", cluster.story());
        assert!(!is_at_another_level(&cluster, "search"), "{}", cluster.story());
        cluster.application.tier("search").pace = 10.0;
        let is_answered = |c: &Cluster| state(c).open_incidents().any(|incident| incident.newest().is_some());
        cluster.run_until("a verdict", 6, is_answered);
        assert_right_culprit(&cluster, 1, Resource::Software);
        // Named by a verdict, it teaches nothing for an hour after.
        cluster.application.tier("search").pace = 2.0;
        cluster.run_windows(30);
        assert!(!has_open_incident(&cluster) && !is_at_another_level(&cluster, "search"), "{}", cluster.story());
    });
}

#[test]
fn a_service_that_is_gone_leaves_the_graph_after_an_hour() {
    for_seeds(1, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.application.tier("search").service = ServiceId::sanitized("finder");
        cluster.run_windows(2);
        cluster.application.rate = 0.5;
        cluster.run_windows(365);
        let graph: BTreeSet<_> = state(&cluster).graph().services().map(|(name, _)| name.as_str()).collect();
        assert!(graph.contains("finder") && !graph.contains("search"), "{graph:?}");
        let edges: Vec<_> = state(&cluster).graph().edges().map(|(key, _)| key.callee.as_str()).collect();
        assert!(!edges.contains(&"search"), "{edges:?}");
        cluster.assert_each_window_counts_once();
    });
}

#[test]
fn the_brake_of_one_node_gives_back_what_it_holds_and_refuses_more_until_it_is_released() {
    for_seeds(3, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.machines[1].hog = Some(Hog::Processor);
        cluster.run_until("applied action", 6, |c| !c.machines[1].changed().is_empty());
        cluster.brake(1, true);
        assert!(cluster.machines[1].changed().is_empty(), "at once, and without the aggregator");
        let writes = cluster.machines[1].kernel.writes.len();
        if seed == 2 {
            cluster.crash_agent(1);
            cluster.start_agent(1);
        }
        cluster.run_windows(10);
        assert_eq!(cluster.machines[1].kernel.writes.len(), writes, "{}", cluster.story());
        assert!(cluster.agents[1].is_frozen() && !cluster.agents[0].is_frozen() && has_open_incident(&cluster));
        cluster.brake(1, false);
        cluster.run_until("applied action", 12, |c| !c.machines[1].changed().is_empty());
        cluster.machines[1].hog = None;
        cluster.run_until("end", 20, is_all_over);
        cluster.assert_as_found();
    });
}

#[test]
fn the_brake_of_the_fleet_gives_everything_back_and_starts_nothing_until_it_is_released() {
    for_seeds(3, |seed| {
        let mut cluster = Cluster::learned(seed);
        cluster.machines[1].hog = Some(Hog::Processor);
        cluster.run_until("applied action", 6, |c| !c.machines[1].changed().is_empty());
        if seed == 2 {
            cluster.crash_agent(2);
        }
        cluster.order(OperatorRequest::Freeze);
        cluster.run_windows(1);
        cluster.assert_as_found();
        if seed == 3 {
            cluster.crash_aggregator();
            cluster.start_aggregator();
        }
        cluster.start_agent(2);
        let writes = cluster.machines[1].kernel.writes.len();
        cluster.run_windows(8);
        assert!(cluster.agents.iter().all(sage_tests::sim::Agent::is_frozen), "{}", cluster.story());
        assert_eq!(cluster.machines[1].kernel.writes.len(), writes, "{}", cluster.story());
        assert!(has_open_incident(&cluster), "it is still hurt");
        cluster.order(OperatorRequest::Thaw);
        cluster.run_until("applied action", 12, |c| !c.machines[1].changed().is_empty());
        cluster.machines[1].hog = None;
        cluster.run_until("end", 20, is_all_over);
        cluster.assert_as_found();
    });
}

/// Lets anything happen to anybody.
fn disaster(cluster: &mut Cluster) {
    let number = cluster.choose(0..=2) as usize;
    match cluster.choose(0..=9) {
        0 => {
            let crash = Crash::AfterOutputs(cluster.choose(0..=60) as u32);
            cluster.let_aggregator_crash(crash);
        }
        1 => cluster.crash_aggregator(),
        2 => {
            let fuse = Fuse { effects: cluster.choose(0..=9) as u32, is_last_done: cluster.choose(0..=1) == 1 };
            cluster.agents[number].fuse = Some(fuse);
        }
        3 => cluster.crash_agent(number),
        4 => cluster.reboot(number),
        5 => {
            let is_on = cluster.choose(0..=3) == 0;
            cluster.brake(number, is_on);
        }
        6 => cluster.machines[number].hog = Some(Hog::Processor),
        7 => cluster.machines[number].hog = None,
        _ => trouble(cluster),
    }
    for other in 0..3 {
        let pause = cluster.choose_millis(500..=40_000);
        cluster.start_agent_in(other, pause);
    }
    let pause = cluster.choose_millis(500..=30_000);
    cluster.start_aggregator_in(pause);
}

/// Ends all trouble.
fn recover(cluster: &mut Cluster) {
    calm(cluster);
    cluster.crash_aggregator();
    cluster.start_aggregator();
    for number in 0..3 {
        cluster.machines[number].hog = None;
        cluster.agents[number].fuse = None;
        if !cluster.agents[number].is_up() {
            cluster.start_agent(number);
        }
        cluster.brake(number, false);
    }
}

#[test]
fn after_any_disaster_the_cluster_comes_to_rest_as_it_was_found() {
    for_seeds(8, |seed| {
        let mut cluster = Cluster::learned(seed);
        (0..3).for_each(|number| cluster.set_weather(number, Weather::stormy()));
        for _ in 0..20 {
            disaster(&mut cluster);
            let end = cluster.now + cluster.choose_millis(1_000..=25_000);
            while cluster.now < end {
                cluster.step();
            }
            cluster.assert_each_window_counts_once();
        }
        recover(&mut cluster);
        cluster.run_windows(5);
        cluster.run_until("end", 40, is_all_over);
        cluster.run_windows(1);
        assert_nothing_waits(&cluster);
        cluster.assert_as_found();
        cluster.assert_each_window_counts_once();
        cluster.assert_the_disk_says_the_same();
    });
}

#[test]
fn a_clock_some_seconds_off_spoils_no_diagnosis() {
    for_seeds(8, |seed| {
        let mut cluster = Cluster::learned(seed);
        let by = Micros::from_secs(1 + seed % 4);
        cluster.machines[(seed % 3) as usize].jump(by, seed > 4);
        cluster.run_windows(4);
        for machine in [1, 2] {
            cluster.machines[machine].hog = Some(Hog::Processor);
            cluster.run_until("applied action", 8, |c| !c.machines[machine].changed().is_empty());
            assert_right_culprit(&cluster, machine, Resource::Cpu);
            cluster.machines[machine].hog = None;
            cluster.run_until("end", 20, is_all_over);
        }
    });
}
