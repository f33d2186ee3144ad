//! Unit worlds whose answer is plain.

use sage_common::Slo;

use super::*;
use crate::{
    TrainOptions,
    testing::{Fault, World as Application},
    train,
};

fn broken(faults: &[Fault]) -> (Model, Slo, Vec<Observation>) {
    let world = Application::chain();
    let slo = world.slo();
    let options = TrainOptions { cvae_windows_min: usize::MAX, ..TrainOptions::default() };
    let (model, _) =
        train(&world.windows(11, 0, 60, &[]), std::slice::from_ref(&slo), None, &options).expect("healthy history");
    let mut recent = world.windows(11, 60, 2, &[]);
    recent.extend(world.windows(11, 62, 3, faults));
    (model, slo, recent)
}

fn set(text: &str) -> Vec<Setting> {
    vec![text.parse().expect("a setting")]
}

fn own(answer: &WhatIf) -> Percentile {
    let is_own = |one: &&Percentile| one.percentile.total_cmp(&answer.percentile).is_eq();
    *answer.distribution.iter().find(is_own).expect("the objective's own")
}

#[test]
fn a_culprit_set_to_normal_gives_the_verdicts_own_numbers() {
    let (model, slo, recent) = broken(&[Fault::Cpu(2, 12.0)]);
    let verdict = model.diagnose(&recent, &slo);
    let answer = model.what_if(&recent, &slo, &set("logic=normal")).expect("known");
    assert_eq!(verdict.culprits.len(), 1, "{verdict:?}");
    assert_eq!((own(&answer).observed_us, own(&answer).counterfactual_us), (verdict.observed, verdict.counterfactual));
    assert_eq!(answer.p_met.to_bits(), verdict.p_restored.to_bits());
    assert!(answer.p_met > 0.9 && answer.p_met_observed < 0.1, "{answer:?}");
}

#[test]
fn a_distribution_never_falls_and_is_never_worse_than_observed() {
    let (model, slo, recent) = broken(&[Fault::Network(3, 30_000.0)]);
    let answer = model.what_if(&recent, &slo, &set("store=normal")).expect("known");
    assert!(answer.distribution.is_sorted_by_key(|one| one.observed_us), "{answer:?}");
    assert!(answer.distribution.is_sorted_by_key(|one| one.counterfactual_us), "{answer:?}");
    assert!(answer.distribution.iter().all(|one| one.counterfactual_us <= one.observed_us), "{answer:?}");
}

#[test]
fn an_innocent_service_changes_next_to_nothing() {
    let (model, slo, recent) = broken(&[Fault::Cpu(2, 12.0)]);
    let answer = model.what_if(&recent, &slo, &set("auth=normal")).expect("known");
    assert!(own(&answer).counterfactual_us.get() as f64 > 0.9 * own(&answer).observed_us.get() as f64, "{answer:?}");
}

#[test]
fn the_resource_at_fault_and_its_metric_help_and_others_do_not() {
    let (model, slo, recent) = broken(&[Fault::Cpu(2, 12.0)]);
    let at = |text: &str| own(&model.what_if(&recent, &slo, &set(text)).expect(text)).counterfactual_us.get();
    let observed = own(&model.what_if(&recent, &slo, &[]).expect("nothing set")).observed_us.get();
    let (whole, cpu, disk) = (at("logic=normal"), at("logic.cpu=normal"), at("logic.disk=normal"));
    assert!(whole <= cpu && cpu < disk && disk <= observed, "{whole} {cpu} {disk} {observed}");
    let scores = |p: u32| at(&format!("logic.cpu_throttled=p{p}"));
    assert!(cpu <= scores(50) && scores(50) <= scores(99) && scores(99) <= observed, "{} {}", scores(50), scores(99));
}

#[test]
fn nothing_set_changes_nothing() {
    let (model, slo, recent) = broken(&[Fault::Cpu(2, 12.0)]);
    let answer = model.what_if(&recent, &slo, &[]).expect("nothing unknown");
    assert!(answer.distribution.iter().all(|one| one.counterfactual_us == one.observed_us), "{answer:?}");
    assert_eq!(answer.p_met.to_bits(), answer.p_met_observed.to_bits());
}

#[test]
fn unknown_names_come_back_with_near_ones() {
    let (model, slo, recent) = broken(&[Fault::Cpu(2, 12.0)]);
    let error = |text: &str| model.what_if(&recent, &slo, &set(text)).expect_err(text).to_string();
    assert!(error("logik=normal").contains("no service \"logik\"; did you mean logic?"), "{}", error("logik=normal"));
    assert!(
        error("logic.cpu_throtled=p50").contains("did you mean cpu_throttled"),
        "{}",
        error("logic.cpu_throtled=p50")
    );
    assert!(error("logic=p50").contains("metric or resource of logic"), "{}", error("logic=p50"));
    assert!(error("lgic.cpu=normal").contains("did you mean logic?"), "{}", error("lgic.cpu=normal"));
}

#[test]
fn the_smallest_repair_of_one_fault_is_its_service() {
    let (model, slo, recent) = broken(&[Fault::Cpu(2, 12.0)]);
    let fix = model.minimum_fix(&recent, &slo, 0.5).expect("calls");
    let names: Vec<&str> = fix.parts.iter().map(|part| part.service.as_str()).collect();
    assert!(fix.is_enough && names == ["logic"], "{fix:?}");
    assert!(fix.outcome.p_met >= 0.5);
}

#[test]
fn two_faults_need_two_repairs_and_a_healthy_application_none() {
    let (model, slo, recent) = broken(&[Fault::Cpu(1, 14.0), Fault::Disk(4, 14.0)]);
    let fix = model.minimum_fix(&recent, &slo, 0.5).expect("calls");
    let mut names: Vec<&str> = fix.parts.iter().map(|part| part.service.as_str()).collect();
    names.sort_unstable();
    assert!(fix.is_enough && names == ["auth", "disk"], "{fix:?}");
    let (model, slo, recent) = broken(&[]);
    let fix = model.minimum_fix(&recent, &slo, 0.5).expect("calls");
    assert!(fix.is_enough && fix.parts.is_empty(), "{fix:?}");
}

#[test]
fn windows_without_calls_have_no_answer() {
    let (model, slo, _) = broken(&[]);
    assert_eq!(model.what_if(&[], &slo, &[]), Err(WhatIfError::NoCalls(slo.name.clone())));
}
