//! Incidents of the simulated cluster as files: given again bit for bit, labelled, asked what would have been.

use sage_aggregator::{
    core::{IncidentId, Label, OperatorRequest, State, TrueCause},
    incident_file::{Author, IncidentFile, format, replay::replay},
};
use sage_causal::{Model, observation::Observation, verdict::VerdictKind, whatif::Setting};
use sage_common::{Micros, Timestamp};
use sage_tests::sim::{Cluster, Hog, for_seeds};

fn state(cluster: &Cluster) -> &State {
    cluster.state().expect("the aggregator is up")
}

/// A cluster with a hog on one machine and a verdict about it.
fn diagnosed(seed: u64) -> (Cluster, IncidentId) {
    let mut cluster = Cluster::learned(seed);
    cluster.machines[(seed % 3) as usize].hog = Some(Hog::Processor);
    let has_verdict = |c: &Cluster| c.state().is_some_and(|s| s.incidents().values().any(|one| one.newest().is_some()));
    cluster.run_until("verdict", 6, has_verdict);
    let id = *state(&cluster).incidents().keys().next_back().expect("an incident");
    (cluster, id)
}

/// What an export of the incident reads as.
fn exported(state: &State, id: IncidentId) -> IncidentFile {
    let author = Author { made_by: "simulation".into(), fleet: "sim".into(), at: Timestamp::from_micros(1) };
    let file = IncidentFile::of_incident(state, id, author).expect("kept");
    format::read(format::write(&file).expect("short").as_slice()).expect("own bytes")
}

fn assert_same(cluster: &Cluster, id: IncidentId) {
    let file = exported(state(cluster), id);
    let replayed = replay(&file).expect("a model and windows");
    assert!(replayed.is_same(), "{:#?}{}", replayed.differences, cluster.story());
    let newest = state(cluster).incidents()[&id].newest().expect("diagnosed");
    assert_eq!(replayed.recorded, newest.verdict, "the newest verdict is the one in the file");
}

#[test]
fn an_exported_incident_replays_to_the_same_verdict_while_it_is_open_and_long_after() {
    for_seeds(6, |seed| {
        let (mut cluster, id) = diagnosed(seed);
        assert_same(&cluster, id);
        let generation = state(&cluster).model().expect("learnt").meta.generation;
        cluster.machines[(seed % 3) as usize].hog = None;
        cluster.run_windows(75);
        assert_same(&cluster, id);
        let opened = state(&cluster).incidents()[&id].opened_close;
        assert!(state(&cluster).history().front().expect("some").close > opened, "its windows have left the history");
        let now = state(&cluster).model().expect("learnt").meta.generation;
        assert!(now > generation, "its model has been replaced");
    });
}

#[test]
fn a_changed_window_replays_to_another_verdict_and_says_where() {
    let (cluster, id) = diagnosed(1);
    let mut file = exported(state(&cluster), id);
    let newest = std::sync::Arc::make_mut(file.windows.last_mut().expect("some"));
    newest.objectives.iter_mut().for_each(|objective| objective.latency_us *= 1.5);
    let replayed = replay(&file).expect("a model and windows");
    assert!(replayed.differences.iter().any(|one| one.place == "observed"), "{:#?}", replayed.differences);
}

#[test]
fn a_label_survives_a_crash_and_is_exported_with_its_incident() {
    for_seeds(3, |seed| {
        let (mut cluster, id) = diagnosed(seed);
        let culprit = state(&cluster).incidents()[&id].newest().expect("diagnosed").verdict.culprits[0].clone();
        let cause = TrueCause { service: culprit.service.clone(), resource: Some(culprit.resource) };
        let label = Label::new(vec![cause.clone()], Timestamp::default()).expect("one");
        cluster.order(OperatorRequest::Label(id, Some(label)));
        cluster.run_until("label", 2, |c| c.state().is_some_and(|state| state.casebook().label(id).is_some()));
        cluster.crash_aggregator();
        cluster.start_aggregator_in(Micros::from_secs(3));
        cluster.run_until("restart", 3, |c| !c.aggregators.is_empty());
        assert_eq!(state(&cluster).casebook().label(id).expect("kept").causes, [cause]);
        let story = exported(state(&cluster), id).story.expect("an incident");
        assert_eq!(story.label.expect("labelled").causes[0].service, culprit.service);
        assert_same(&cluster, id);
        cluster.assert_the_disk_says_the_same();
    });
}

#[test]
fn with_the_culprit_normal_the_target_is_met_and_it_is_the_smallest_repair() {
    for_seeds(6, |seed| {
        let (cluster, id) = diagnosed(seed);
        let file = exported(state(&cluster), id);
        let verdict = &file.story.as_ref().expect("an incident").verdict;
        assert_eq!(verdict.kind, VerdictKind::Culprit, "{}", cluster.story());
        let model = Model::from_bytes(&file.model).expect("its own bytes");
        let recent: Vec<Observation> = file.windows.iter().map(|window| window.as_ref().clone()).collect();
        let set = |name: &str| format!("{name}=normal").parse::<Setting>().expect("a setting");
        let settings: Vec<Setting> = verdict.culprits.iter().map(|culprit| set(culprit.service.as_str())).collect();
        let answer = model.what_if(&recent, &file.slo, &settings).expect("known services");
        let own = answer.distribution.iter().find(|one| one.percentile == file.slo.percentile).expect("its own");
        assert!(own.observed_us > file.slo.target && own.counterfactual_us <= file.slo.target, "{answer:#?}");
        assert_eq!(
            (own.counterfactual_us, answer.p_met.to_bits()),
            (verdict.counterfactual, verdict.p_restored.to_bits())
        );
        let fix = model.minimum_fix(&recent, &file.slo, 0.5).expect("calls");
        assert!(fix.is_enough && fix.parts.len() <= verdict.culprits.len(), "{fix:#?}");
    });
}
