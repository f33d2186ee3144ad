//! Updates A to F (figure 13, 5b): how good the model is a few windows after each, under three policies of retraining and
//! without any, and what each costs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};
use sage_causal::{Model, Policy, RetrainOptions, TrainOptions, observation::Observation, retrain, train};
use sage_common::{Micros, Slo};

use crate::eval::{
    case::{Case, CaseSource, Expected},
    measure::Tally,
    parallel,
    results::Row,
    run::{Plan, progress, table},
    seeds::derived,
    simulated::SimulatedSource,
    sources::Conditions,
    systems::answer,
    updates::{Stage, stages},
};

/// Policies and their names in results; the last is what an update costs when nothing is done.
const POLICIES: [(&str, Option<Policy>); 4] = [
    ("from-scratch", Some(Policy::FromScratch)),
    ("incremental", Some(Policy::Incremental)),
    ("partial-incremental", Some(Policy::PartialIncremental)),
    ("stale", None),
];

/// Windows after an update at which the model is retrained and tried.
const WAITS: [usize; 3] = [3, 10, 30];

/// Windows from one update to the next, in the time of the application.
const BETWEEN: u64 = 200;

/// Windows that a retraining sees at most.
const MEMORY: usize = 240;

/// Cases per stage, at most: a stage is tried a dozen times.
const CASES_MAX: usize = 40;

const COLUMNS: [(&str, &str); 5] =
    [("after:3", "acc"), ("after:10", "acc"), ("after:30", "acc"), ("all", "seconds"), ("all", "times_less")];

/// Rows of `retraining`: the application's name says the update, the slice how many windows ago it was.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let stages = stages()?;
    let target = common_target(&stages, plan.seed);
    let mut run = Run::new(plan, &stages, target)?;
    let bar = progress(stages.len(), "retraining");
    let mut all = Tally::default();
    for number in 0..stages.len() {
        if number == 1 {
            run.took.clear(); // what came before is no update
        }
        run.stage(number, &mut all)?;
        bar.inc(1);
    }
    run.compare(&mut all);
    bar.finish_and_clear();
    let rows = all.rows("retraining", plan.seed);
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}

/// A target that every stage meets: an update is to be learnt, not to be a violation for ever.
fn common_target(stages: &[Stage], seed: u64) -> Micros {
    let of = |number: usize| {
        SimulatedSource::of("", &stages[number].topology, seed, &Conditions::default(), None).slo().target
    };
    parallel::map(stages.len(), of, || ()).into_iter().max().unwrap_or_default()
}

/// The models of all policies on their way through the stages.
struct Run<'a> {
    plan: &'a Plan,
    stages: &'a [Stage],
    target: Micros,
    /// Everything observed so far, oldest first.
    past: Vec<Observation>,
    models: Vec<Model>,
    /// Processor time of each policy since the first update, seconds.
    took: BTreeMap<&'static str, f64>,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, stages: &'a [Stage], target: Micros) -> Result<Self> {
        let first = stages.first().context("there is a stage before the first update")?;
        let source = SimulatedSource::of(first.name, &first.topology, plan.seed, &Conditions::default(), Some(target));
        let past = source.world().run(&[], Micros::ZERO, BETWEEN.min(plan.windows as u64));
        let options = options(plan.seed);
        let (model, _) = train(&past, std::slice::from_ref(&source.slo()), None, &options)?;
        Ok(Self { plan, stages, target, past, models: vec![model; POLICIES.len()], took: BTreeMap::new() })
    }

    /// Windows after update number `number`, retraining, and cases.
    fn stage(&mut self, number: usize, all: &mut Tally) -> Result<()> {
        let Stage { name, topology } = &self.stages[number];
        let app = format!("social_network+{name}");
        let source = SimulatedSource::of(&app, topology, self.plan.seed, &Conditions::default(), Some(self.target));
        let slo = source.slo();
        let count = self.plan.cases.min(CASES_MAX);
        let cases: Vec<Case> =
            parallel::map(count, |case| source.case(case as u64), || ()).into_iter().flatten().collect();
        let start = source.world().start_of(BETWEEN * (number as u64 + 1));
        let mut windows = source.world().run(&[], start, WAITS[WAITS.len() - 1] as u64).into_iter();
        let mut seen = 0;
        for wait in WAITS {
            self.past.extend(windows.by_ref().take(wait - seen));
            seen = wait;
            let forgotten = self.past.len().saturating_sub(MEMORY);
            self.past.drain(..forgotten);
            self.retrained(&app, &slo, all)?;
            self.tried(&app, &slo, &cases, wait, all);
        }
        Ok(())
    }

    fn retrained(&mut self, app: &str, slo: &Slo, all: &mut Tally) -> Result<()> {
        for ((name, policy), model) in POLICIES.iter().zip(&mut self.models) {
            let Some(policy) = *policy else { continue };
            let train = options(self.plan.seed);
            let options = RetrainOptions { train, policy, ..RetrainOptions::default() };
            let begun = cpu_seconds();
            let learnt = retrain(&self.past, std::slice::from_ref(slo), model, &options)?;
            let took = cpu_seconds() - begun;
            all.add(app, name, "all", "seconds", took);
            *self.took.entry(name).or_default() += took;
            if let Some((learnt, _)) = learnt {
                *model = learnt;
            }
        }
        Ok(())
    }

    /// How many times less processor time than from scratch each policy took, over all updates.
    fn compare(&self, all: &mut Tally) {
        let scratch = self.took.get(POLICIES[0].0).copied().unwrap_or(f64::NAN);
        for (name, took) in &self.took {
            all.add("social_network+A-F", name, "all", "seconds", *took);
            all.add("social_network+A-F", name, "all", "times_less", scratch / took);
        }
    }

    fn tried(&self, app: &str, slo: &Slo, cases: &[Case], wait: usize, all: &mut Tally) {
        let culprits: Vec<&Case> = cases.iter().filter(|case| case.truth.expected == Expected::Culprits).collect();
        for ((name, _), model) in POLICIES.iter().zip(&self.models) {
            let told =
                parallel::map(culprits.len(), |case| answer(&model.diagnose(&culprits[case].recent, slo)), || ());
            for (case, answer) in culprits.iter().zip(&told) {
                for (measure, value) in crate::eval::measure::measures(&case.truth, answer) {
                    all.add(app, name, &format!("after:{wait}"), measure, value);
                    all.add(app, name, "all", measure, value);
                }
            }
        }
    }
}

/// Processor time of this thread: a busy machine makes learning slower, not dearer.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn options(seed: u64) -> TrainOptions {
    TrainOptions { seed: derived(seed, 7), ..TrainOptions::default() }
}
