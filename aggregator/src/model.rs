//! The real model behind the core's [`Oracle`]: [`sage_causal::Model`], and how one is trained from a [`TrainJob`].
//!
//! Pure but for the threads of [`run_all`]: the trainer's thread calls [`train`], the owner of the state the rest.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use sage_causal::{Model, TrainOptions, TrainingPlan, observation::Observation, verdict::Verdict};
use sage_common::{Generation, Slo, Timestamp};

use crate::{
    core::{ModelCard, ModelKind, ModelMeta, Oracle, TrainJob},
    trainer::run_all,
};

/// The newest windows that a new model is compared with the old one on: enough for a mean, few enough to be recent.
const COMPARED_WINDOWS: usize = 30;

/// Windows handed to a diagnosis; it pools as many of them as it needs.
const RECENT_WINDOWS: usize = 12;

/// A model, and how it compares with the one it was trained to replace.
#[derive(Clone, Debug)]
pub struct CausalOracle {
    model: Model,
    is_better: bool,
}

/// What a training hands back. The time it took is known to whoever ran it.
#[derive(Debug)]
pub struct NewModel {
    /// The model.
    pub oracle: CausalOracle,
    /// The same as bytes.
    pub bytes: Vec<u8>,
    /// Its card, the times still zero.
    pub meta: ModelMeta,
}

impl Oracle for CausalOracle {
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let model = Model::from_bytes(bytes).map_err(|error| error.to_string())?;
        Ok(Self { model, is_better: true })
    }

    fn diagnose(&self, recent: &[Arc<Observation>], slo: &Slo, generation: Generation) -> Option<Verdict> {
        let newest = &recent[recent.len().saturating_sub(RECENT_WINDOWS)..];
        let covers = |window: &Observation| window.objectives.iter().any(|own| own.slo == slo.name && own.calls > 0.0);
        if !newest.iter().any(|window| covers(window)) {
            return None;
        }
        let windows: Vec<Observation> = newest.iter().map(|window| window.as_ref().clone()).collect();
        // Serving outlives a fault in the model.
        match catch_unwind(AssertUnwindSafe(|| self.model.diagnose(&windows, slo))) {
            Ok(verdict) => Some(Verdict { generation, ..verdict }),
            Err(_) => {
                tracing::error!(slo = slo.name, %generation, "the diagnosis panicked");
                None
            }
        }
    }

    fn is_better_than(&self, _previous: &Self) -> bool {
        self.is_better
    }
}

/// Trains on `job`, on this thread and one more.
///
/// # Errors
///
/// A text for people: too few windows, or a service whose part could not be learnt.
pub fn train(job: TrainJob) -> Result<NewModel, String> {
    let TrainJob { generation, healthy, slos, previous, newest_window, .. } = job;
    let history: Vec<Observation> = healthy.iter().map(|window| window.as_ref().clone()).collect();
    drop(healthy);
    // A model that cannot be read any more is learnt anew.
    let previous = previous.and_then(|bytes| Model::from_bytes(&bytes).ok());
    let plan = TrainingPlan::new(&history, &slos, previous.as_ref(), &TrainOptions::default())
        .map_err(|error| error.to_string())?;
    let fits = run_all(&plan.tasks(), |task| Ok(task.run()));
    let fits = fits.into_iter().collect::<Result<Vec<_>, String>>()?;
    let (model, report) = plan.finish(fits);
    for problem in &report.problems {
        tracing::warn!(problem, "part of the model could not be trained");
    }
    let newest = &history[history.len().saturating_sub(COMPARED_WINDOWS)..];
    let is_better = previous.is_none_or(|previous| model.is_better_than(&previous, newest));
    let model = model.with_generation(generation);
    let meta = ModelMeta {
        generation,
        trained_at: Timestamp::default(),
        windows_trained: report.windows_used as u64,
        newest_window,
        train_seconds: 0.0,
        cards: model.cards().into_iter().map(card).collect(),
    };
    Ok(NewModel { bytes: model.to_bytes(), oracle: CausalOracle { model, is_better }, meta })
}

fn card(card: sage_causal::ModelCard) -> ModelCard {
    let sage_causal::ModelCard { service, windows, held_out_error, linear_error, kind, last_retrain, reason, .. } =
        card;
    ModelCard {
        service,
        windows: windows as u64,
        held_out_error,
        linear_error,
        kind: match kind {
            sage_causal::ModelKind::Linear => ModelKind::Linear,
            sage_causal::ModelKind::Cvae => ModelKind::Cvae,
        },
        last_retrain_at: last_retrain,
        reason,
    }
}
