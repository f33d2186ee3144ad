//! Updates of synthetic worlds: what is noticed, what is learnt again, and how soon diagnosis is as good as before.

use std::collections::BTreeMap;

use sage_common::{Micros, ServiceId, Slo};

use crate::{
    ChangeKind, CvaeOptions, Model, Policy, Readiness, RetrainOptions, ServiceTask, TrainOptions, TrainingPlan,
    TrainingReport,
    normal::CurveNormal,
    observation::Observation,
    retrain,
    testing::{Fault, Tier, World, WorldCall},
    train,
};

const SEED: u64 = 17;
const BEFORE: u64 = 60;

fn linear() -> TrainOptions {
    TrainOptions { cvae_windows_min: usize::MAX, ..TrainOptions::default() }
}

/// A target that leaves room for a slower service.
fn lax(world: &World, factor: f64) -> Slo {
    let slo = world.slo();
    Slo { target: Micros::new((factor * slo.target.get() as f64) as u64), ..slo }
}

fn first(world: &World, slo: &Slo) -> (Model, Vec<Observation>) {
    let history = world.windows(SEED, 0, BEFORE, &[]);
    let model = train(&history, std::slice::from_ref(slo), None, &linear()).expect("healthy history").0;
    (model, history)
}

fn again(model: &Model, history: &[Observation], slo: &Slo, policy: Policy) -> Option<(Model, TrainingReport)> {
    let options = RetrainOptions { train: linear(), policy, ..RetrainOptions::default() };
    retrain(history, std::slice::from_ref(slo), model, &options).expect("windows")
}

/// The chain with one tier `factor` times as slow.
fn slower(tier: usize, factor: f64) -> World {
    let mut world = World::chain();
    world.tiers[tier].self_us *= factor;
    world
}

/// Exactly named among faults of every tier and three kinds, and of how many.
fn score(model: &Model, world: &World, slo: &Slo) -> (usize, usize) {
    let (mut exact, mut all) = (0, 0);
    for tier in 0..world.tiers.len() {
        let strength = 1.2 * slo.target.get() as f64;
        let factor = 1.0 + strength / world.tiers[tier].self_us;
        for fault in [Fault::Cpu(tier, factor), Fault::Slow(tier, factor), Fault::Disk(tier, factor)] {
            let mut recent = world.windows(SEED + 1, 900, 2, &[]);
            recent.extend(world.windows(SEED + 1, 902, 2, &[fault]));
            let verdict = model.diagnose(&recent, slo);
            all += 1;
            exact += usize::from(verdict.culprits.len() == 1 && verdict.culprits[0].service == world.service(tier));
        }
    }
    (exact, all)
}

fn names(report: &TrainingReport) -> Vec<(String, ChangeKind)> {
    report.changes.iter().map(|change| (change.service.to_string(), change.kind)).collect()
}

/// `service` must have changed, and besides it only services above it: their gaps follow how long it holds them.
fn must_be(report: &TrainingReport, service: &str, kind: ChangeKind, above: &[&str]) {
    let found = names(report);
    assert!(found.contains(&(service.to_owned(), kind)), "{found:?}");
    assert!(found.iter().all(|(name, _)| name == service || above.contains(&name.as_str())), "{found:?}");
}

#[test]
fn without_a_change_nothing_is_learnt_again() {
    let world = World::chain();
    let slo = lax(&world, 1.0);
    let (model, mut history) = first(&world, &slo);
    history.extend(world.windows(SEED, BEFORE, 20, &[]));
    for policy in [Policy::FromScratch, Policy::Incremental, Policy::PartialIncremental] {
        assert!(again(&model, &history, &slo, policy).is_none(), "{policy:?}");
    }
    assert!(model.changes(&history, &[slo]).is_empty());
}

#[test]
fn a_service_at_another_level_is_noticed_after_three_windows_and_learnt_with_those_above_it() {
    let (before, after) = (World::chain(), slower(2, 5.0));
    let slo = lax(&after, 1.0);
    let (model, mut history) = first(&before, &slo);
    history.extend(after.windows(SEED, BEFORE, 2, &[]));
    assert!(again(&model, &history, &slo, Policy::PartialIncremental).is_none(), "two windows may be chance");
    history.extend(after.windows(SEED, BEFORE + 2, 1, &[]));
    let (new, report) = again(&model, &history, &slo, Policy::PartialIncremental).expect("changed");
    must_be(&report, "logic", ChangeKind::Step, &["front", "auth"]);
    assert!(report.changes.iter().all(|change| change.since == Some(history[BEFORE as usize].start)), "{report:?}");
    assert_eq!(report.learnt, 3, "front, auth and logic");
    for kept in ["store", "disk"].map(ServiceId::sanitized) {
        assert_eq!(new.normals().services[&kept], model.normals().services[&kept]);
    }
    let cards: BTreeMap<String, String> =
        new.cards().iter().map(|card| (card.service.to_string(), card.reason.clone())).collect();
    assert!(cards["logic"].starts_with("new level: self time +"), "{cards:?}");
    assert!(cards["front"].starts_with("a service below it changed"), "{cards:?}");
    assert!(cards["store"].starts_with("first model"), "{cards:?}");
    assert!(again(&new, &history, &slo, Policy::PartialIncremental).is_none(), "learnt is learnt");
    assert!(new.is_better_than(&model, &history[40..]), "old windows must not speak against it");
    assert_eq!(Model::from_bytes(&new.to_bytes()).expect("own bytes").since, new.since);
}

#[test]
fn three_windows_after_an_update_diagnosis_is_as_good_as_in_steady_state() {
    let (mut steady, mut soon, mut stale, mut all) = (0, 0, 0, 0);
    for tier in [0, 2, 4] {
        let (before, after) = (World::chain(), slower(tier, 6.0));
        let slo = lax(&after, 1.0);
        let (model, mut history) = first(&before, &slo);
        history.extend(after.windows(SEED, BEFORE, 3, &[]));
        let (new, _) = again(&model, &history, &slo, Policy::PartialIncremental).expect("changed");
        let (settled, _) = first(&after, &slo);
        let (exact, cases) = score(&settled, &after, &slo);
        all += cases;
        steady += exact;
        soon += score(&new, &after, &slo).0;
        stale += score(&model, &after, &slo).0;
    }
    println!("steady {steady}, three windows after {soon}, stale {stale} of {all}");
    assert!(soon as f64 >= steady as f64 - 0.03 * all as f64, "{soon} against {steady} of {all}, stale {stale}");
}

#[test]
fn a_new_service_is_learnt_and_its_callers_structure_with_it() {
    let before = World::chain();
    let mut after = before.clone();
    after.tiers.push(Tier { name: "hashtag", self_us: 4_000.0, groups: vec![], replicas: 1 });
    after.tiers[1].groups[0].push(WorldCall { callee: 5, probability: 1.0 });
    let slo = lax(&after, 1.0);
    let (model, mut history) = first(&before, &slo);
    history.extend(after.windows(SEED, BEFORE, 3, &[]));
    let (new, report) = again(&model, &history, &slo, Policy::PartialIncremental).expect("changed");
    must_be(&report, "hashtag", ChangeKind::NewService, &["front", "auth"]);
    assert!(names(&report).contains(&("auth".to_owned(), ChangeKind::Calls)), "{report:?}");
    assert_eq!(report.learnt, 3, "front, auth and hashtag");
    let operation = (ServiceId::sanitized("auth"), sage_common::OperationId::sanitized("op"));
    let shapes = new.skeletons().of(&operation).expect("learnt");
    assert!(shapes.iter().all(|shape| shape.groups.iter().flatten().flatten().count() == 2), "{shapes:?}");
    let (exact, all) = score(&new, &after, &slo);
    assert!(exact + 1 >= all, "{exact} of {all}");
    // And away again.
    history.extend(before.windows(SEED, BEFORE + 3, 3, &[]));
    let (newest, report) = again(&new, &history, &slo, Policy::PartialIncremental).expect("changed");
    assert!(names(&report).contains(&("auth".to_owned(), ChangeKind::Calls)), "{report:?}");
    assert!(!newest.normals().services.contains_key(&ServiceId::sanitized("hashtag")));
    assert!(newest.cards().iter().all(|card| card.service.as_str() != "hashtag"));
    let (exact, all) = score(&newest, &before, &slo);
    assert!(exact + 1 >= all, "{exact} of {all}");
}

/// Learns what changed where `readiness` says so of its service.
fn when(model: &Model, history: &[Observation], slo: &Slo, readiness: impl Fn(&str) -> Readiness) -> Option<Model> {
    let options = RetrainOptions { train: linear(), ..RetrainOptions::default() };
    let decide = |change: &crate::Change| readiness(change.service.as_str());
    let slos = std::slice::from_ref(slo);
    let plan = TrainingPlan::retrain_when(history, slos, model, &options, decide).expect("windows")?;
    let fits = plan.tasks().iter().map(ServiceTask::run).collect();
    Some(plan.finish(fits).0)
}

#[test]
fn a_level_that_must_wait_teaches_nothing_while_another_is_learnt() {
    let before = World::fanout();
    let mut after = before.clone();
    after.tiers[1].self_us *= 4.0; // leaf-a
    after.tiers[5].self_us *= 4.0; // merge
    let slo = lax(&after, 1.0);
    let (model, mut history) = first(&before, &slo);
    history.extend(after.windows(SEED, BEFORE, 12, &[]));
    assert!(when(&model, &history, &slo, |_| Readiness::Early).is_none(), "everything waits");
    let but = |held: &'static str| move |name: &str| if name == held { Readiness::Barred } else { Readiness::Ready };
    let new = when(&model, &history, &slo, but("leaf-a")).expect("merge may be learnt");
    let level = |model: &Model, name: &str| {
        model.normals().services[&ServiceId::sanitized(name)].edges[0]
            .self_time
            .as_ref()
            .and_then(CurveNormal::level_us)
    };
    assert_eq!(level(&new, "leaf-a"), level(&model, "leaf-a"));
    assert!(level(&new, "merge") > level(&model, "merge").map(|us| 3.0 * us));
    let left: Vec<String> =
        new.changes(&history, std::slice::from_ref(&slo)).iter().map(|change| change.service.to_string()).collect();
    assert_eq!(left, ["leaf-a"], "it is still seen to have changed");
    // The root has a level of its own that follows: not to be learnt by itself, and with what is below it.
    let with = when(&model, &history, &slo, |name| if name == "root" { Readiness::Early } else { Readiness::Ready });
    assert!(with.expect("learnt").changes(&history, &[slo]).is_empty());
}

#[test]
fn an_edge_seen_once_is_learnt_when_it_is_seen_again() {
    let before = World::chain();
    let mut after = slower(3, 5.0);
    after.tiers.push(Tier { name: "hashtag", self_us: 4_000.0, groups: vec![], replicas: 1 });
    after.tiers[1].groups[0].push(WorldCall { callee: 5, probability: 1.0 });
    let slo = lax(&after, 1.0);
    let (model, mut history) = first(&before, &slo);
    history.extend(slower(3, 5.0).windows(SEED, BEFORE, 3, &[]));
    history.extend(after.windows(SEED, BEFORE + 3, 1, &[]));
    let (new, report) = again(&model, &history, &slo, Policy::PartialIncremental).expect("store changed");
    assert!(names(&report).contains(&("store".to_owned(), ChangeKind::Step)), "{report:?}");
    history.extend(after.windows(SEED, BEFORE + 4, 3, &[]));
    let (newer, report) = again(&new, &history, &slo, Policy::PartialIncremental).expect("more was seen");
    assert!(names(&report).contains(&("hashtag".to_owned(), ChangeKind::NewService)), "{report:?}");
    assert!(newer.normals().services.contains_key(&ServiceId::sanitized("hashtag")));
}

#[test]
fn a_forced_training_learns_everything_though_nothing_changed() {
    let world = World::chain();
    let slo = lax(&world, 1.0);
    let (model, mut history) = first(&world, &slo);
    history.extend(world.windows(SEED, BEFORE, 20, &[]));
    let options =
        RetrainOptions { train: linear(), policy: Policy::FromScratch, is_forced: true, ..RetrainOptions::default() };
    let (new, report) = retrain(&history, &[slo], &model, &options).expect("windows").expect("forced");
    assert_eq!((report.learnt, report.changes.len()), (5, 0));
    assert!(new.cards().iter().all(|card| card.windows == 80 && card.reason.starts_with("newer windows")));
}

#[test]
fn an_operator_may_accept_what_misses_the_target() {
    let (before, after) = (World::chain(), slower(3, 25.0));
    let slo = lax(&before, 1.0);
    let (model, mut history) = first(&before, &slo);
    history.extend(after.windows(SEED, BEFORE, 3, &[]));
    assert!(history[BEFORE as usize].objectives[0].latency_us > slo.target.get() as f64);
    assert!(again(&model, &history, &slo, Policy::PartialIncremental).is_none());
    let store = ServiceId::sanitized("store");
    let accepted = BTreeMap::from([(store.clone(), history[BEFORE as usize].start)]);
    let options = RetrainOptions { train: linear(), accepted, ..RetrainOptions::default() };
    let (new, report) =
        retrain(&history, std::slice::from_ref(&slo), &model, &options).expect("windows").expect("accepted");
    assert_eq!(names(&report), [("store".to_owned(), ChangeKind::Accepted)]);
    let lax = Slo { target: Micros::new(8 * slo.target.get()), ..slo.clone() };
    let (exact, all) = score(&new, &after, &lax);
    assert!(exact + 1 >= all, "{exact} of {all}");
    assert!(retrain(&history, &[slo], &new, &options).expect("windows").is_none(), "accepted once");
}

#[test]
fn a_young_normal_is_learnt_again_when_it_can_have_twice_the_windows() {
    let (before, after) = (World::chain(), slower(2, 5.0));
    let slo = lax(&after, 1.0);
    let (model, mut history) = first(&before, &slo);
    history.extend(after.windows(SEED, BEFORE, 3, &[]));
    let (new, _) = again(&model, &history, &slo, Policy::PartialIncremental).expect("changed");
    history.extend(after.windows(SEED, BEFORE + 3, 3, &[]));
    let (newer, report) = again(&new, &history, &slo, Policy::PartialIncremental).expect("more windows");
    must_be(&report, "logic", ChangeKind::Young, &["front", "auth"]);
    let logic = newer.cards().into_iter().find(|card| card.service.as_str() == "logic").expect("learnt");
    assert_eq!((logic.windows, report.learnt), (6, report.changes.len()));
}

#[test]
fn the_three_policies_agree_on_what_changed_and_differ_in_what_they_learn() {
    let (before, after) = (World::chain(), slower(4, 6.0));
    let slo = lax(&after, 1.0);
    let (model, mut history) = first(&before, &slo);
    history.extend(after.windows(SEED, BEFORE, 4, &[]));
    let learnt = [(Policy::FromScratch, 5), (Policy::Incremental, 5), (Policy::PartialIncremental, 5)];
    for (policy, services) in learnt {
        let (new, report) = again(&model, &history, &slo, policy).expect("changed");
        must_be(&report, "disk", ChangeKind::Step, &["front", "auth", "logic", "store"]);
        assert_eq!(report.learnt, services, "{policy:?}"); // the last of a chain has everyone above it
        let (exact, all) = score(&new, &after, &slo);
        assert!(exact + 1 >= all, "{policy:?}: {exact} of {all}");
    }
}

#[test]
fn nets_go_on_from_their_weights_where_their_service_is_the_same() {
    let (before, after) = (World::shop(), {
        let mut world = World::shop();
        world.tiers[4].self_us *= 4.0;
        world
    });
    let slo = lax(&after, 1.0);
    let cvae = CvaeOptions { epochs: 8, ..CvaeOptions::default() };
    let train_options = TrainOptions { seed: 3, cvae, cvae_windows_min: 40 };
    let mut history = before.windows(SEED, 0, 80, &[]);
    let (model, _) = train(&history, std::slice::from_ref(&slo), None, &train_options).expect("healthy");
    history.extend(after.windows(SEED, 80, 4, &[]));
    let options = RetrainOptions { train: train_options, ..RetrainOptions::default() };
    let (new, report) =
        retrain(&history, std::slice::from_ref(&slo), &model, &options).expect("windows").expect("changed");
    must_be(&report, "database", ChangeKind::Step, &["front", "shop"]);
    assert!(!new.normals().nets.contains_key(&ServiceId::sanitized("database")), "four windows make no net");
    for untouched in ["cache", "stock", "reviews", "user"].map(ServiceId::sanitized) {
        let bytes = |model: &Model| model.normals().nets.get(&untouched).map(|net| net.net.to_bytes());
        assert_eq!(bytes(&new), bytes(&model), "{untouched}");
    }
    let again = || retrain(&history, std::slice::from_ref(&slo), &model, &options).expect("windows").expect("changed");
    assert_eq!(again().0.to_bytes(), new.to_bytes(), "the same seed and history give the same model");
}
