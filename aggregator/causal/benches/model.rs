//! How long the model takes: a training epoch against its matrix products, one diagnosis by graph size and by engine,
//! retraining after an update. `cargo bench -p sage-causal --features testing`.

#![expect(missing_docs, reason = "the harness's macro makes a public function without one")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use sage_causal::{
    Model, Policy, RetrainOptions, TrainOptions,
    observation::Observation,
    paper::{PaperModel, PaperOptions},
    retrain,
    testing::{Fault, TrainingProbe, World, in_worlds},
    train,
};
use sage_common::Slo;

/// Services of a social network, of the papers' large cluster, and of a large fleet.
const SIZES: [usize; 3] = [30, 188, 1_000];

fn linear() -> TrainOptions {
    TrainOptions { cvae_windows_min: usize::MAX, ..TrainOptions::default() }
}

/// A model, its objective, and five windows of which three miss it.
fn incident(size: usize, traces: usize) -> (Model, Slo, Vec<Observation>) {
    let world = World { rate: 60.0, traces_max: traces, ..World::generated(size) };
    let slo = world.slo();
    let history = world.windows(3, 0, 24, &[]);
    let (model, _) = train(&history, std::slice::from_ref(&slo), None, &linear()).expect("healthy windows");
    let factor = 1.5 * slo.target.get() as f64 / world.tiers[2].self_us;
    let mut recent = world.windows(3, 100, 2, &[]);
    recent.extend(world.windows(3, 102, 3, &[Fault::Cpu(2, factor), Fault::Slow(1, factor)]));
    assert!(!model.diagnose(&recent, &slo).culprits.is_empty(), "{size} services: nothing to measure");
    (model, slo, recent)
}

fn diagnosis(criterion: &mut Criterion) {
    for (engine, traces) in [("traces", 300), ("distributions", 0)] {
        let mut group = criterion.benchmark_group(format!("diagnosis from {engine}"));
        for size in SIZES {
            let (model, slo, recent) = incident(size, traces);
            group.bench_function(format!("{size} services"), |bencher| {
                bencher.iter(|| model.diagnose(black_box(&recent), &slo));
            });
        }
        group.finish();
    }
}

fn composition(criterion: &mut Criterion) {
    for (engine, traces) in [("traces", 300), ("distributions", 0)] {
        let mut group = criterion.benchmark_group(format!("composition from {engine}, one world"));
        for size in SIZES {
            let (model, slo, recent) = incident(size, traces);
            in_worlds(&model, &recent[2..], &slo, |world, services| {
                let culprits = [1, 2].map(|tier: usize| tier.min(services - 1));
                group
                    .bench_function(format!("{size} services"), |bencher| bencher.iter(|| world(black_box(&culprits))));
            });
        }
        group.finish();
    }
}

fn training(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("net of one service, 1,024 rows");
    // The columns of a service with two edges, 20 metrics of its own and 12 of its callers.
    let probe = TrainingProbe::new(1_024, 34, 48);
    let net = probe.train(1).expect("enough rows");
    group.bench_function("training epoch", |bencher| bencher.iter(|| probe.train(black_box(1)).expect("enough rows")));
    group.bench_function("its matrix products alone", |bencher| bencher.iter(|| probe.floor(black_box(&net))));
    group.bench_function("inference", |bencher| {
        bencher.iter(|| net.predict(black_box(&[0.1; 34])).expect("34 columns"));
    });
    group.finish();
}

fn retraining(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("retraining of 30 services");
    let before = World { traces_max: 50, ..World::generated(30) };
    let mut after = before.clone();
    after.tiers[6].self_us *= 5.0;
    let slo = after.slo();
    let mut history = before.windows(3, 0, 160, &[]);
    let options = |policy| RetrainOptions { policy, ..RetrainOptions::default() };
    let (model, _) =
        train(&history, std::slice::from_ref(&slo), None, &options(Policy::FromScratch).train).expect("healthy");
    history.extend(after.windows(3, 160, 3, &[]));
    for policy in [Policy::FromScratch, Policy::Incremental, Policy::PartialIncremental] {
        group.bench_function(format!("{policy:?}"), |bencher| {
            let again = || retrain(&history, std::slice::from_ref(&slo), &model, &options(policy));
            bencher.iter_batched(|| (), |()| again().expect("windows").expect("changed"), BatchSize::PerIteration);
        });
    }
    group.bench_function("looking for changes", |bencher| {
        bencher.iter(|| model.changes(black_box(&history[63..]), std::slice::from_ref(&slo)));
    });
    group.finish();
}

fn paper(criterion: &mut Criterion) {
    let world = World { traces_max: 0, ..World::generated(30) };
    let slo = world.slo();
    let mut history = world.windows(3, 0, 60, &[]);
    history.extend(world.windows(3, 60, 20, &[Fault::Cpu(2, 40.0)]));
    let options = PaperOptions::as_written();
    let options = PaperOptions { cvae: sage_causal::CvaeOptions { epochs: 3, ..options.cvae }, ..options };
    let (model, _) = PaperModel::train(&history, std::slice::from_ref(&slo), None, &options).expect("healthy windows");
    let recent = world.windows(3, 90, 1, &[Fault::Cpu(1, 60.0)]);
    criterion.bench_function("diagnosis as the papers write it, 30 services", |bencher| {
        bencher.iter(|| model.diagnose(black_box(&recent), &slo));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(3));
    targets = training, composition, diagnosis, retraining, paper
}
criterion_main!(benches);
