//! The papers' model on synthetic worlds: that it works, and how well.

use sage_common::Slo;

use crate::{
    ModelError,
    observation::Observation,
    paper::{PaperModel, PaperOptions},
    testing::{Fault, World},
    verdict::{Resource, VerdictKind},
};

const HEALTHY: u64 = 90;

/// Healthy windows with an unlabelled episode of every tier and kind in between.
fn history(world: &World, seed: u64) -> Vec<Observation> {
    let mut history = world.windows(seed, 0, HEALTHY, &[]);
    let mut at = HEALTHY;
    for tier in 0..world.tiers.len() {
        for fault in [Fault::Cpu(tier, 6.0), Fault::Disk(tier, 10.0), Fault::Network(tier, 9_000.0)] {
            history.extend(world.windows(seed, at, 4, &[fault]));
            history.extend(world.windows(seed, at + 4, 2, &[]));
            at += 6;
        }
    }
    history
}

fn trained(world: &World, seed: u64, options: &PaperOptions) -> (PaperModel, Slo) {
    let slo = world.slo();
    let history = history(world, seed);
    let (model, report) =
        PaperModel::train(&history, std::slice::from_ref(&slo), None, &options.with_seed(seed)).expect("history");
    assert!(report.problems.is_empty() && report.nets == world.tiers.len() && report.violated > 30, "{report:?}");
    (model, slo)
}

fn small() -> World {
    World { rate: 20.0, traces_max: 0, ..World::chain() }
}

/// Right services, right services and resources, all, over the resource faults of the chain.
fn score(options: &PaperOptions, seeds: &[u64]) -> (usize, usize, usize) {
    let (mut exact, mut resource, mut all) = (0, 0, 0);
    for seed in seeds {
        let world = small();
        let (model, slo) = trained(&world, *seed, options);
        for tier in 0..world.tiers.len() {
            let cases = [
                (Fault::Cpu(tier, 8.0), Resource::Cpu),
                (Fault::Disk(tier, 12.0), Resource::Disk),
                (Fault::Network(tier, 12_000.0), Resource::Network),
            ];
            for (fault, kind) in cases {
                let verdict = model.diagnose(&world.windows(*seed + 1_000, 400, 1, &[fault]), &slo);
                let is_exact = verdict.culprits.len() == 1 && verdict.culprits[0].service == world.service(tier);
                all += 1;
                exact += usize::from(is_exact);
                resource += usize::from(is_exact && verdict.culprits[0].resource == kind);
            }
        }
    }
    (exact, resource, all)
}

#[test]
fn resource_faults_of_the_chain_are_named_more_often_than_by_chance() {
    for (name, options) in [("as written", PaperOptions::as_written()), ("mended", PaperOptions::mended())] {
        let (exact, resource, all) = score(&options, &[3, 5]);
        println!("{name}: {exact} exact, {resource} with their resource, of {all}");
        assert!(exact * 5 > all, "{name}: {exact} of {all}; chance is one in five at best");
    }
}

#[test]
fn the_chain_rebuilds_latencies_that_it_has_not_seen() {
    let world = small();
    let (model, slo) = trained(&world, 8, &PaperOptions::as_written());
    let mut unseen = world.windows(9, 500, 20, &[]);
    for tier in 0..world.tiers.len() {
        unseen.extend(world.windows(9, 540, 4, &[Fault::Cpu(tier, 6.0)]));
    }
    let rebuilt = model.rebuild(&unseen, &slo);
    let pairs: Vec<(f64, f64)> =
        unseen.iter().zip(rebuilt).map(|(o, us)| (o.objectives[0].latency_us.ln(), us.expect("called").ln())).collect();
    let mean = pairs.iter().map(|(seen, _)| seen).sum::<f64>() / pairs.len() as f64;
    let left: f64 = pairs.iter().map(|(seen, rebuilt)| (seen - rebuilt).powi(2)).sum();
    let spread: f64 = pairs.iter().map(|(seen, _)| (seen - mean).powi(2)).sum();
    println!("R2 of ln p99: {:.3}", 1.0 - left / spread);
    assert!(1.0 - left / spread > 0.6, "R2 {:.3}", 1.0 - left / spread);
}

#[test]
fn the_same_seed_gives_the_same_model_and_its_bytes_the_same_verdict() {
    let world = small();
    let options = PaperOptions {
        cvae: crate::CvaeOptions { epochs: 3, ..PaperOptions::as_written().cvae },
        ..PaperOptions::as_written()
    };
    let (model, slo) = trained(&world, 4, &options);
    let bytes = model.to_bytes();
    assert_eq!(bytes, trained(&world, 4, &options).0.to_bytes());
    let read = PaperModel::from_bytes(&bytes).expect("own bytes");
    let recent = world.windows(4, 400, 2, &[Fault::Cpu(2, 9.0)]);
    assert_eq!(read.diagnose(&recent, &slo), model.diagnose(&recent, &slo));
    assert_eq!(read.to_bytes(), bytes);
    for place in (0..bytes.len()).step_by(bytes.len() / 100) {
        let mut flipped = bytes.clone();
        flipped[place] ^= 0x10;
        assert!(PaperModel::from_bytes(&flipped).is_err(), "byte {place}");
    }
    for length in [0, 7, 9, 40, bytes.len() - 1] {
        assert!(PaperModel::from_bytes(&bytes[..length]).is_err(), "{length} bytes");
    }
    assert!(matches!(crate::Model::from_bytes(&bytes), Err(ModelError::Foreign)));
}

#[test]
fn a_met_target_names_nobody_and_too_little_history_gives_no_model() {
    let world = small();
    let options = PaperOptions {
        cvae: crate::CvaeOptions { epochs: 2, ..PaperOptions::as_written().cvae },
        ..PaperOptions::as_written()
    };
    let (model, slo) = trained(&world, 6, &options);
    let verdict = model.diagnose(&world.windows(6, 400, 3, &[]), &slo);
    assert!(verdict.culprits.is_empty() && verdict.kind == VerdictKind::Unknown);
    let refused = PaperModel::train(&world.windows(1, 0, 5, &[]), &[slo], None, &options);
    assert!(matches!(refused, Err(ModelError::TooFewWindows { have: 5, want: 10 })));
}
