//! The real model, guarded: how one is trained from a [`TrainJob`], and a diagnosis that outlives a fault in the model.
//!
//! Pure but for the threads of [`run_all`]: the trainer's thread calls [`train`], the owner of the state the rest.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use sage_causal::{Model, ModelCard, TrainOptions, TrainingPlan, observation::Observation, verdict::Verdict};
use sage_common::{Generation, Slo, Timestamp};

use crate::{
    core::{ModelMeta, Oracle, TrainJob},
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

/// Trains on `job`, on this thread and one more.
///
/// # Errors
///
/// A text for people: too few windows, or a service whose part could not be learnt.
pub fn train(job: TrainJob) -> Result<NewModel, String> {
    let history: Vec<Observation> = job.healthy.iter().map(|window| window.as_ref().clone()).collect();
    // A model that cannot be read any more is learnt anew.
    let previous = job.previous.as_ref().and_then(|bytes| Model::from_bytes(bytes).ok());
    let plan = TrainingPlan::new(&history, &job.slos, previous.as_ref(), &TrainOptions::default())
        .map_err(|error| error.to_string())?;
    let fits = run_all(&plan.tasks(), |task| Ok(task.run()));
    let fits = fits.into_iter().collect::<Result<Vec<_>, String>>()?;
    let (model, report) = plan.finish(fits);
    for problem in &report.problems {
        tracing::warn!(problem, "part of the model could not be trained");
    }
    let model = model.with_generation(job.generation);
    Ok(NewModel { bytes: model.to_bytes(), cards: model.cards(), oracle: GuardedModel(model), job })
}
