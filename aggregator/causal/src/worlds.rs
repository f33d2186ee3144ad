//! Synthetic unit worlds in, verdicts out: the cases whose answer is plain.

use sage_common::{Generation, Metric, Micros, ServiceId, Slo};

use crate::{
    CvaeOptions, Model, ModelError, TrainOptions,
    frame::Frame,
    gvae::ServiceNet,
    inputs::NetInputs,
    normals::PromotedNet,
    observation::Observation,
    pool,
    testing::{Fault, World},
    train,
    verdict::{Resource, Verdict, VerdictKind},
};

const SEEDS: [u64; 3] = [11, 23, 47];
const HEALTHY: u64 = 60;

fn linear() -> TrainOptions {
    TrainOptions { cvae_windows_min: usize::MAX, ..TrainOptions::default() }
}

fn trained(world: &World, seed: u64) -> (Model, Slo) {
    let slo = world.slo();
    let history = world.windows(seed, 0, HEALTHY, &[]);
    let (model, report) = train(&history, std::slice::from_ref(&slo), None, &linear()).expect("healthy history");
    assert!(report.windows_used >= 55, "{report:?}");
    (model, slo)
}

/// Two healthy windows and three under `faults`.
fn under(world: &World, seed: u64, faults: &[Fault]) -> Vec<Observation> {
    let mut recent = world.windows(seed, HEALTHY, 2, &[]);
    recent.extend(world.windows(seed, HEALTHY + 2, 3, faults));
    recent
}

fn names(verdict: &Verdict) -> Vec<&str> {
    let mut names: Vec<&str> = verdict.culprits.iter().map(|culprit| culprit.service.as_str()).collect();
    names.sort_unstable();
    names
}

fn explain(verdict: &Verdict) -> String {
    let Verdict { kind, observed, target, counterfactual, p_restored, missing, .. } = verdict;
    let mut text = format!("{kind:?} {observed} target {target} -> {counterfactual} p {p_restored:.2} {missing:?}");
    for c in &verdict.culprits {
        text += &format!("\n  * {} {:?} {:.2} {:?} {:?}", c.service, c.resource, c.p_resource, c.link_with, c.instance);
    }
    for c in &verdict.candidates {
        text += &format!("\n    {} -> {} p {:.2} ", c.service, c.counterfactual, c.p_restored);
        text += &format!("own {:.0} rank {:.3}", c.own_excess_us, c.null_rank);
    }
    text
}

/// Each tier's fault must be named with its resource, on every seed.
fn must_name(world: &World, fault: impl Fn(usize) -> Fault, tiers: &[usize], resource: Resource) {
    for seed in SEEDS {
        let (model, slo) = trained(world, seed);
        for tier in tiers {
            let verdict = model.diagnose(&under(world, seed, &[fault(*tier)]), &slo);
            let told = format!("seed {seed}, {}: {}", world.tiers[*tier].name, explain(&verdict));
            assert_eq!(verdict.kind, VerdictKind::Culprit, "{told}");
            assert_eq!(names(&verdict), [world.tiers[*tier].name], "{told}");
            assert_eq!(verdict.culprits[0].resource, resource, "{told}");
            assert!(verdict.counterfactual <= verdict.target && verdict.p_restored >= 0.5, "{told}");
            assert!(!verdict.culprits[0].evidence.is_empty() && verdict.generation == Generation(1), "{told}");
        }
    }
}

#[test]
fn a_starved_processor_is_named_in_every_application() {
    must_name(&World::chain(), |tier| Fault::Cpu(tier, 12.0), &[0, 1, 2, 3, 4], Resource::Cpu);
    must_name(&World::fanout(), |tier| Fault::Cpu(tier, 15.0), &[0, 1, 2, 3, 4, 5], Resource::Cpu);
    must_name(&World::shop(), |tier| Fault::Cpu(tier, 15.0), &[0, 1, 2, 4, 5], Resource::Cpu);
}

#[test]
fn a_slow_code_path_is_software() {
    must_name(&World::chain(), |tier| Fault::Slow(tier, 12.0), &[0, 1, 2, 3, 4], Resource::Software);
    must_name(&World::shop(), |tier| Fault::Slow(tier, 15.0), &[0, 1, 2, 4, 5], Resource::Software);
}

#[test]
fn a_slow_disk_and_scarce_memory_are_told_from_the_processor_they_load() {
    must_name(&World::chain(), |tier| Fault::Disk(tier, 12.0), &[2, 4], Resource::Disk);
    must_name(&World::shop(), |tier| Fault::Memory(tier, 15.0), &[4], Resource::Memory);
}

#[test]
fn a_slow_link_is_the_networks_and_belongs_to_the_service_all_of_whose_calls_it_slows() {
    must_name(&World::shop(), |tier| Fault::Network(tier, 15_000.0), &[2, 3, 5], Resource::Network);
    must_name(&World::fanout(), |tier| Fault::Network(tier, 15_000.0), &[0, 2, 5], Resource::Network);
    must_name(&World::chain(), |tier| Fault::Network(tier, 15_000.0), &[1, 2, 3], Resource::Network);
}

#[test]
fn a_queue_in_front_of_a_service_is_its_own_software() {
    must_name(&World::shop(), |tier| Fault::Queue(tier, 8_000.0), &[2, 3, 5], Resource::Software);
    must_name(&World::fanout(), |tier| Fault::Queue(tier, 8_000.0), &[1, 5], Resource::Software);
}

#[test]
fn where_nobody_else_calls_the_finding_is_the_link() {
    let world = World::chain();
    let (model, slo) = trained(&world, 5);
    let verdict = model.diagnose(&under(&world, 5, &[Fault::Queue(2, 12_000.0)]), &slo);
    let told = explain(&verdict);
    assert_eq!(names(&verdict), ["logic"], "{told}");
    assert_eq!(verdict.culprits[0].link_with, Some(ServiceId::sanitized("auth")), "{told}");
    let ranked: Vec<&str> = verdict.candidates[..2].iter().map(|c| c.service.as_str()).collect();
    assert_eq!(ranked, ["logic", "auth"], "{told}");
}

#[test]
fn two_culprits_in_a_row_and_side_by_side_are_both_named() {
    for seed in SEEDS {
        let chain = World::chain();
        let (model, slo) = trained(&chain, seed);
        let verdict = model.diagnose(&under(&chain, seed, &[Fault::Cpu(1, 14.0), Fault::Slow(3, 16.0)]), &slo);
        assert_eq!(names(&verdict), ["auth", "store"], "seed {seed}: {}", explain(&verdict));
        let fanout = World::fanout();
        let (model, slo) = trained(&fanout, seed);
        let verdict = model.diagnose(&under(&fanout, seed, &[Fault::Disk(1, 9.0), Fault::Slow(3, 9.0)]), &slo);
        assert_eq!(names(&verdict), ["leaf-a", "leaf-c"], "seed {seed}: {}", explain(&verdict));
        assert_eq!(verdict.kind, VerdictKind::Culprit, "seed {seed}: {}", explain(&verdict));
    }
}

#[test]
fn pressure_without_slowdown_accuses_nobody() {
    for seed in SEEDS {
        let world = World::shop();
        let (model, slo) = trained(&world, seed);
        let verdict = model.diagnose(&under(&world, seed, &[Fault::Slow(4, 15.0), Fault::Decoy(1)]), &slo);
        assert_eq!(names(&verdict), ["database"], "seed {seed}: {}", explain(&verdict));
        assert_eq!(verdict.culprits[0].resource, Resource::Software, "seed {seed}: {}", explain(&verdict));
    }
}

#[test]
fn a_slow_service_off_the_critical_path_is_not_blamed() {
    let world = World::fanout();
    let (model, slo) = trained(&world, 3);
    // leaf-d gains 6 ms behind leaves that are slower still because leaf-b is broken.
    let verdict = model.diagnose(&under(&world, 3, &[Fault::Slow(4, 3.0), Fault::Cpu(2, 25.0)]), &slo);
    assert_eq!(names(&verdict), ["leaf-b"], "{}", explain(&verdict));
}

#[test]
fn arrivals_above_anything_learnt_are_demand() {
    let world = World::chain();
    let (model, slo) = trained(&world, 9);
    let verdict = model.diagnose(&under(&world, 9, &[Fault::Surge(2.5)]), &slo);
    assert_eq!(verdict.kind, VerdictKind::Demand, "{}", explain(&verdict));
    assert!(!verdict.culprits.is_empty(), "{}", explain(&verdict));
}

#[test]
fn a_met_target_and_a_merely_tight_one_name_nobody() {
    for seed in SEEDS {
        let world = World::shop();
        let (model, mut slo) = trained(&world, seed);
        let healthy = world.windows(seed, HEALTHY, 5, &[]);
        let verdict = model.diagnose(&healthy, &slo);
        assert!(verdict.culprits.is_empty() && verdict.missing == ["the target is met"], "{}", explain(&verdict));
        slo.target = Micros::new(slo.target.get() / 4);
        let verdict = model.diagnose(&healthy, &slo);
        assert_eq!(verdict.kind, VerdictKind::Unknown, "seed {seed}: {}", explain(&verdict));
        assert!(verdict.culprits.is_empty() && !verdict.missing.is_empty(), "seed {seed}: {}", explain(&verdict));
    }
}

#[test]
fn without_metrics_the_service_is_still_named() {
    for seed in SEEDS {
        let world = World { has_metrics: false, ..World::shop() };
        let (model, slo) = trained(&world, seed);
        let verdict = model.diagnose(&under(&world, seed, &[Fault::Network(5, 15_000.0)]), &slo);
        assert_eq!(names(&verdict), ["stock"], "seed {seed}: {}", explain(&verdict));
        // The same shift at every quantile.
        assert_eq!(verdict.culprits[0].resource, Resource::Network, "seed {seed}: {}", explain(&verdict));
        assert!(verdict.missing.iter().any(|text| text.contains("metrics of stock")), "{}", explain(&verdict));
    }
}

#[test]
fn without_traces_distributions_are_composed_along_the_structures() {
    for seed in SEEDS {
        for (world, tier) in [(World::shop(), 4), (World::chain(), 3), (World::fanout(), 1)] {
            let world = World { traces_max: 0, ..world };
            let (model, slo) = trained(&world, seed);
            let verdict = model.diagnose(&under(&world, seed, &[Fault::Cpu(tier, 15.0)]), &slo);
            assert_eq!(names(&verdict), [world.tiers[tier].name], "seed {seed}: {}", explain(&verdict));
            assert!(verdict.missing.iter().any(|text| text.contains("distributions")), "{}", explain(&verdict));
        }
    }
}

#[test]
fn without_traces_and_structures_call_counts_stand_in() {
    let world = World { traces_max: 0, ..World::chain() };
    let bare = |mut windows: Vec<Observation>| {
        windows.iter_mut().for_each(|window| window.skeletons.clear());
        windows
    };
    let slo = world.slo();
    let history = bare(world.windows(7, 0, HEALTHY, &[]));
    let (model, _) = train(&history, std::slice::from_ref(&slo), None, &linear()).expect("healthy history");
    let verdict = model.diagnose(&bare(under(&world, 7, &[Fault::Slow(2, 15.0)])), &slo);
    assert_eq!(names(&verdict), ["logic"], "{}", explain(&verdict));
}

#[test]
fn a_tier_without_server_spans_is_judged_by_its_callers() {
    for seed in SEEDS {
        let world = World { silent: Some(4), ..World::shop() };
        let (model, slo) = trained(&world, seed);
        let verdict = model.diagnose(&under(&world, seed, &[Fault::Cpu(4, 15.0)]), &slo);
        assert_eq!(names(&verdict), ["database"], "seed {seed}: {}", explain(&verdict));
        let verdict = model.diagnose(&under(&world, seed, &[Fault::Slow(5, 20.0)]), &slo);
        assert_eq!(names(&verdict), ["stock"], "seed {seed}: {}", explain(&verdict));
    }
}

#[test]
fn both_engines_agree_with_the_world_in_which_the_fault_never_was() {
    for (traces_max, tolerance) in [(300, 0.2), (0, 0.25)] {
        for seed in SEEDS {
            let world = World { traces_max, ..World::shop() };
            let (model, slo) = trained(&world, seed);
            let faulty = under(&world, seed, &[Fault::Cpu(2, 12.0)]);
            let verdict = model.diagnose(&faulty, &slo);
            let truth = world.windows(seed, HEALTHY + 2, 3, &[]);
            let truth = truth.iter().map(|o| o.objectives[0].latency_us.ln()).sum::<f64>() / 3.0;
            let error = (verdict.counterfactual.get() as f64).ln() - truth;
            assert!(error.abs() < tolerance, "seed {seed}, {traces_max} traces: {error:.3} {}", explain(&verdict));
        }
    }
}

#[test]
fn a_bad_replica_is_named() {
    let mut world = World::chain();
    world.tiers[2].replicas = 3;
    let (model, slo) = trained(&world, 8);
    let mut recent = under(&world, 8, &[Fault::Slow(2, 14.0)]);
    let starved = under(&world, 8, &[Fault::Cpu(2, 14.0)]);
    for (window, starved) in recent.iter_mut().zip(&starved).skip(2) {
        let place = window.services.iter().position(|s| s.service.as_str() == "logic").expect("logic");
        window.services[place].instances[1] = starved.services[place].instances[1].clone();
    }
    let verdict = model.diagnose(&recent, &slo);
    assert_eq!(names(&verdict), ["logic"], "{}", explain(&verdict));
    let instance = verdict.culprits[0].instance.as_ref().map(sage_common::InstanceId::as_str);
    assert_eq!((verdict.culprits[0].resource, instance), (Resource::Cpu, Some("logic-1")), "{}", explain(&verdict));
}

#[test]
fn the_path_leads_from_the_entry_to_the_culprit() {
    let world = World::shop();
    let (model, slo) = trained(&world, 2);
    let verdict = model.diagnose(&under(&world, 2, &[Fault::Cpu(5, 15.0)]), &slo);
    let path: Vec<&str> = verdict.path.iter().map(|edge| edge.callee.as_str()).collect();
    assert_eq!(path, ["front", "shop", "stock"], "{}", explain(&verdict));
}

#[test]
fn a_service_nobody_learnt_is_reported_as_missing() {
    let world = World::chain();
    let (model, slo) = trained(&world, 4);
    let mut recent = under(&world, 4, &[Fault::Slow(2, 14.0)]);
    for window in &mut recent {
        let mut edge = window.edges[1].clone();
        edge.key.callee = ServiceId::sanitized("newcomer");
        window.edges.push(edge);
    }
    let verdict = model.diagnose(&recent, &slo);
    assert_eq!(names(&verdict), ["logic"], "{}", explain(&verdict));
    assert!(verdict.missing.iter().any(|text| text.contains("newcomer")), "{:?}", verdict.missing);
}

#[test]
fn the_same_seed_and_history_give_the_same_model_and_its_bytes_the_same_verdict() {
    let world = World { rate: 20.0, ..World::chain() };
    let slo = world.slo();
    let history = world.windows(6, 0, HEALTHY, &[]);
    let cvae = CvaeOptions { epochs: 3, ..CvaeOptions::default() };
    let options = TrainOptions { seed: 1, cvae, cvae_windows_min: 0 };
    let make = || train(&history, std::slice::from_ref(&slo), None, &options).expect("healthy history").0;
    let model = make().with_generation(Generation(7));
    let bytes = model.to_bytes();
    assert_eq!(bytes, make().with_generation(Generation(7)).to_bytes());
    let read = Model::from_bytes(&bytes).expect("own bytes");
    let recent = under(&world, 6, &[Fault::Cpu(3, 14.0)]);
    assert_eq!(read.diagnose(&recent, &slo), model.diagnose(&recent, &slo));
    assert_eq!(read.to_bytes(), bytes);
    assert_eq!((read.generation(), read.cards()), (Generation(7), model.cards()));
}

#[test]
fn a_promoted_net_takes_part_in_diagnosis_and_is_stored_with_the_model() {
    let world = World::chain();
    let slo = world.slo();
    let history = world.windows(31, 0, HEALTHY, &[]);
    let (mut model, _) = train(&history, std::slice::from_ref(&slo), None, &linear()).expect("healthy history");
    let linear = model.clone();
    let windows: Vec<&Observation> = history.iter().collect();
    let graph = pool::graph(&model.edges, &model.skeletons, &windows);
    let frames: Vec<Frame> = windows.iter().filter_map(|window| Frame::of(&graph, &[window])).collect();
    let frames: Vec<&Frame> = frames.iter().collect();
    for (number, service) in graph.services().iter().enumerate() {
        let inputs = NetInputs::of(&model.normals, &model.normals.services[service], &graph, number);
        let x = inputs.x(&model.normals, &graph, &frames).expect("rows fit");
        let y = inputs.y(&graph, &frames).expect("rows fit");
        let order: Vec<usize> = (0..frames.len()).collect();
        let net = ServiceNet::train(&x, &y, &order, None, &CvaeOptions::default()).expect("trains");
        model.normals.nets.insert(service.clone(), PromotedNet { inputs, net });
    }
    let recent = under(&world, 31, &[Fault::Cpu(2, 14.0)]);
    let verdict = model.diagnose(&recent, &slo);
    assert_eq!(names(&verdict), ["logic"], "{}", explain(&verdict));
    assert_ne!(verdict.candidates, linear.diagnose(&recent, &slo).candidates, "the nets were not asked");
    let read = Model::from_bytes(&model.to_bytes()).expect("own bytes");
    assert_eq!(read.diagnose(&recent, &slo), verdict);
}

#[test]
fn a_slow_code_path_does_not_take_over_the_queue_of_the_next_service() {
    for seed in SEEDS {
        let world = World::chain();
        let (model, slo) = trained(&world, seed);
        let verdict = model.diagnose(&under(&world, seed, &[Fault::Slow(1, 14.0), Fault::Queue(2, 12_000.0)]), &slo);
        assert_eq!(names(&verdict), ["auth", "logic"], "seed {seed}: {}", explain(&verdict));
    }
}

#[test]
fn damaged_and_foreign_bytes_are_refused() {
    let world = World { rate: 10.0, traces_max: 50, ..World::chain() };
    let slo = world.slo();
    let (model, _) = train(&world.windows(1, 0, 20, &[]), &[slo], None, &linear()).expect("healthy history");
    let bytes = model.to_bytes();
    for place in (0..bytes.len()).step_by(bytes.len() / 200) {
        let mut flipped = bytes.clone();
        flipped[place] ^= 0x10;
        assert!(Model::from_bytes(&flipped).is_err(), "byte {place}");
    }
    for length in [0, 7, 8, 9, 17, 40, bytes.len() - 1] {
        assert!(Model::from_bytes(&bytes[..length]).is_err(), "{length} bytes");
    }
    assert!(matches!(Model::from_bytes(b"something else"), Err(ModelError::Foreign)));
    let mut newer = bytes;
    newer[8] = 99;
    assert!(matches!(Model::from_bytes(&newer), Err(ModelError::Version { found: 99, .. })));
}

#[test]
fn numbers_that_are_none_change_nothing_but_what_they_stand_for() {
    let world = World::chain();
    let slo = world.slo();
    let mut history = world.windows(12, 0, HEALTHY, &[]);
    for window in &mut history[..6] {
        poison(window);
    }
    let (model, _) = train(&history, std::slice::from_ref(&slo), None, &linear()).expect("enough is left");
    assert!(model.held_out_error().is_finite());
    let mut recent = under(&world, 12, &[Fault::Slow(2, 14.0)]);
    poison(&mut recent[3]);
    let verdict = model.diagnose(&recent, &slo);
    assert_eq!(names(&verdict), ["logic"], "{}", explain(&verdict));
    assert!(verdict.p_restored.is_finite() && verdict.candidates.iter().all(|c| c.own_excess_us.is_finite()));
    assert!(Model::from_bytes(&model.to_bytes()).is_ok());
}

fn poison(window: &mut Observation) {
    window.offered_per_s = f64::NAN;
    window.edges[0].calls = f64::INFINITY;
    if let Some(quantiles) = &mut window.edges[1].client {
        quantiles.0[4] = f32::NAN;
    }
    for (metric, quantiles) in &mut window.services[0].instances[0].metrics {
        if *metric == Metric::CpuPressure {
            quantiles.0[2] = f32::NEG_INFINITY;
        }
    }
    for trace in window.traces.iter_mut().step_by(3) {
        trace.calls[1].server_us = Some(f32::NAN);
    }
}

#[test]
fn unlabelled_episodes_in_the_history_do_not_become_normal() {
    let world = World::shop();
    let slo = world.slo();
    let mut history = world.windows(21, 0, 50, &[]);
    history.extend(world.windows(21, 50, 12, &[Fault::Cpu(4, 15.0)])); // broken target: not learnt
    history.extend(world.windows(21, 62, 8, &[Fault::Slow(6, 2.0)])); // met target: learnt, and outvoted
    let (model, report) = train(&history, std::slice::from_ref(&slo), None, &linear()).expect("healthy history");
    assert!(report.windows_used <= 58, "{report:?}");
    let verdict = model.diagnose(&under(&world, 21, &[Fault::Cpu(4, 15.0)]), &slo);
    assert_eq!(names(&verdict), ["database"], "{}", explain(&verdict));
}

#[test]
fn too_little_history_gives_no_model() {
    let world = World { rate: 10.0, ..World::chain() };
    let refused = train(&world.windows(1, 0, 5, &[]), &[world.slo()], None, &linear());
    assert!(matches!(refused, Err(ModelError::TooFewWindows { have: 5, want: 10 })));
    assert!(matches!(
        train(&[] as &[Observation], &[], None, &linear()),
        Err(ModelError::TooFewWindows { have: 0, .. })
    ));
}

#[test]
fn a_generation_replaces_another_only_when_it_is_not_worse() {
    let world = World { rate: 20.0, ..World::chain() };
    let slo = world.slo();
    let slos = std::slice::from_ref(&slo);
    let good = train(&world.windows(3, 0, 40, &[]), slos, None, &linear()).expect("healthy").0;
    let again = train(&world.windows(3, 5, 45, &[]), slos, Some(&good), &linear()).expect("healthy").0;
    let other = World { tiers: world.tiers.iter().map(slower).collect(), ..world.clone() };
    let lax = Slo { target: Micros::from_secs(9), ..slo.clone() };
    let strange = train(&other.windows(3, 0, 40, &[]), &[lax], Some(&good), &linear()).expect("healthy").0;
    let held_out = world.windows(3, 60, 10, &[]);
    assert!(again.is_better_than(&good, &held_out));
    assert!(!strange.is_better_than(&good, &held_out));
    assert_eq!(again.generation(), Generation(2));
    assert!(again.cards()[0].reason.starts_with("newer windows"), "{:?}", again.cards()[0]);
}

fn slower(tier: &crate::testing::Tier) -> crate::testing::Tier {
    crate::testing::Tier { self_us: 1.5 * tier.self_us, ..tier.clone() }
}

#[test]
fn tasks_and_fits_may_cross_threads() {
    fn is_send<T: Send>() {}
    is_send::<crate::ServiceTask>();
    is_send::<crate::ServiceFit>();
    is_send::<Model>();
}
