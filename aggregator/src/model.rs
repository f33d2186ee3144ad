//! The real model, guarded: how one is trained from a [`TrainJob`], and a diagnosis that outlives a fault in the model.
//!
//! Pure but for the threads of [`run_all`]: the trainer's thread calls [`train`], the owner of the state the rest.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use sage_causal::{
    Change, Model, ModelCard, ModelError, Policy, RetrainOptions, TrainOptions, TrainingPlan, observation::Observation,
    verdict::Verdict,
};
use sage_common::{Generation, Slo, Timestamp};

use crate::{
    core::{Gate, ModelMeta, Oracle, TrainJob, TrainScope},
    trainer::run_all,
};

/// A model whose panics stay its own: an unanswered question is better than an aggregator that restarts for ever.
#[derive(Clone, Debug)]
pub struct GuardedModel(Model);

impl Oracle for GuardedModel {
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        <Model as Oracle>::decode(bytes).map(Self)
    }

    fn diagnose(&self, recent: &[Arc<Observation>], slo: &Slo, generation: Generation) -> Option<Verdict> {
        let asked = catch_unwind(AssertUnwindSafe(|| Oracle::diagnose(&self.0, recent, slo, generation)));
        asked.unwrap_or_else(|_| {
            tracing::error!(slo = slo.name, %generation, "the diagnosis panicked");
            None
        })
    }

    fn is_better_than(&self, previous: &Self, recent: &[Arc<Observation>]) -> bool {
        catch_unwind(AssertUnwindSafe(|| Oracle::is_better_than(&self.0, &previous.0, recent))).unwrap_or(false)
    }
}

/// What a training hands back.
#[derive(Debug)]
pub struct NewModel {
    /// The model.
    pub oracle: GuardedModel,
    /// The same as bytes.
    pub bytes: Vec<u8>,
    cards: Vec<ModelCard>,
    job: TrainJob,
}

impl NewModel {
    /// Its card, once it is known how long the training took and when it ended.
    pub fn meta(&self, train_seconds: f64, at: Timestamp) -> ModelMeta {
        ModelMeta::new(&self.job, self.cards.clone(), train_seconds, at)
    }
}

/// Newest windows in which changes are looked for; the whole history is read only when there are some.
const LOOK_WINDOWS: usize = 120;

/// Trains on `job`, on this thread and one more; `None` when only changes were to be learnt, and there are none that may be.
///
/// # Errors
///
/// A text for people: too few windows, or a service whose part could not be learnt.
pub fn train(job: TrainJob) -> Result<Option<NewModel>, String> {
    // A model that cannot be read any more is learnt anew.
    let previous = job.previous.as_ref().and_then(|bytes| Model::from_bytes(bytes).ok());
    let Some(plan) = plan(&job, previous.as_ref())? else { return Ok(None) };
    let fits = run_all(&plan.tasks(), |task| Ok(task.run()));
    let fits = fits.into_iter().collect::<Result<Vec<_>, String>>()?;
    let (model, report) = plan.finish(fits);
    for problem in &report.problems {
        tracing::warn!(problem, "part of the model could not be trained");
    }
    let model = model.with_generation(job.generation);
    Ok(Some(NewModel { bytes: model.to_bytes(), cards: model.cards(), oracle: GuardedModel(model), job }))
}

fn plan<'a>(job: &'a TrainJob, previous: Option<&'a Model>) -> Result<Option<TrainingPlan<'a>>, String> {
    let TrainJob { healthy, slos, .. } = job;
    let plan = match (previous, &job.scope) {
        (None, _) => TrainingPlan::new(healthy, slos, None, &TrainOptions::default()).map(Some),
        (Some(previous), TrainScope::Everything(gate)) => {
            let options = RetrainOptions { policy: Policy::FromScratch, is_forced: true, ..RetrainOptions::default() };
            retrain(job, previous, gate, &options)
        }
        (Some(previous), TrainScope::Changes(gate)) => {
            let newest = &healthy[healthy.len().saturating_sub(LOOK_WINDOWS)..];
            if previous.changes(newest, slos).is_empty() {
                return Ok(None);
            }
            retrain(job, previous, gate, &RetrainOptions::default())
        }
    };
    plan.map_err(|error| error.to_string())
}

fn retrain<'a>(
    job: &'a TrainJob,
    previous: &'a Model,
    gate: &Gate,
    options: &RetrainOptions,
) -> Result<Option<TrainingPlan<'a>>, ModelError> {
    let readiness = |change: &Change| gate.readiness(change, &job.healthy);
    TrainingPlan::retrain_when(&job.healthy, &job.slos, previous, options, readiness)
}
