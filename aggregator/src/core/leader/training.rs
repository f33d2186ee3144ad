//! When to train, and which model to use.

use std::sync::Arc;

use sage_causal::observation::Observation;
use sage_common::{Generation, Timestamp};

use super::{Leader, Output, TrainJob};
use crate::core::{
    oracle::Oracle,
    proposal::{ModelMeta, Proposal},
    slo,
    state::ClusterWindow,
};

/// Closed windows to wait after a training that failed.
const RETRY_WINDOWS: u64 = 10;
/// Newest healthy windows on which two models are compared.
const COMPARE_WINDOWS: usize = 30;
/// Newest healthy windows that a training gets; the model's normals need no more.
const TRAIN_WINDOWS: usize = 600;

impl<O: Oracle> Leader<O> {
    /// Uses the model that the log says, from memory where this replica trained it.
    pub(super) fn load_model(&mut self) {
        let Some(stored) = self.state.model() else { return };
        let generation = stored.meta.generation;
        if self.oracle.as_ref().is_some_and(|(own, _)| *own == generation) {
            return;
        }
        if let Some((_, oracle)) = self.trained.take_if(|(own, _)| *own == generation) {
            self.oracle = Some((generation, oracle));
            return;
        }
        match O::decode(&stored.bytes) {
            Ok(oracle) => self.oracle = Some((generation, oracle)),
            Err(reason) => self.note(true, format!("model generation {generation} cannot be read: {reason}")),
        }
    }

    fn next_generation(&self) -> Generation {
        Generation(self.state.model().map_or(0, |model| model.meta.generation.0) + 1)
    }

    /// How many healthy windows there are to learn from.
    pub fn healthy_windows(&self) -> usize {
        self.healthy().count()
    }

    /// Healthy windows, oldest first.
    pub(super) fn healthy(&self) -> impl DoubleEndedIterator<Item = &ClusterWindow> {
        let (slos, calls_min) = (self.state.slos(), self.rules.calls_min);
        self.state.history().iter().filter(move |window| slo::is_healthy(slos, window, calls_min))
    }

    fn newest_healthy(&self, most: usize) -> Vec<Arc<Observation>> {
        let mut windows: Vec<Arc<Observation>> =
            self.healthy().rev().take(most).map(|window| window.observation.clone()).collect();
        windows.reverse();
        windows
    }

    pub(super) fn train(&mut self, now: Timestamp) {
        if self.is_training || !self.is_training_due() {
            return;
        }
        if self.healthy_windows() < self.rules.windows_min {
            return;
        }
        let newest = self.healthy().next_back().map(|window| window.arrived);
        let job = TrainJob {
            generation: self.next_generation(),
            newest_window: newest.unwrap_or(now),
            healthy: self.newest_healthy(TRAIN_WINDOWS),
            slos: self.state.slos().to_vec(),
            previous: self.state.model().map(|model| model.bytes.clone()),
            at: now,
        };
        self.is_training = true;
        self.trained_close = Some(self.state.closes());
        self.note(false, format!("training generation {} on {} windows", job.generation, job.healthy.len()));
        self.outputs.push_back(Output::Train(job));
    }

    fn is_training_due(&self) -> bool {
        let closes = self.state.closes();
        let since = |close: u64| closes.saturating_sub(close);
        let has_rested = self.trained_close.is_none_or(|close| since(close) >= RETRY_WINDOWS);
        match self.state.model() {
            None => has_rested,
            // An incident needs the processor for other things, and its windows teach nothing.
            Some(_) if self.state.open_incidents().next().is_some() => false,
            Some(model) => {
                let last = self.trained_close.unwrap_or(0).max(model.close);
                since(last) >= self.rules.retrain_every_windows
            }
        }
    }

    pub(super) fn take_model(&mut self, oracle: O, bytes: Vec<u8>, meta: ModelMeta) {
        self.is_training = false;
        self.last_failure = None;
        if self.term.is_none() || meta.generation != self.next_generation() {
            return;
        }
        let recent = self.newest_healthy(COMPARE_WINDOWS);
        let is_better = self.oracle.as_ref().is_none_or(|(_, previous)| oracle.is_better_than(previous, &recent));
        if !is_better {
            self.counters.models_rejected += 1;
            self.note(false, format!("generation {} is no better than the one in use", meta.generation));
            return;
        }
        self.counters.models_adopted += 1;
        self.trained = Some((meta.generation, oracle));
        self.propose(Proposal::Generation { meta, bytes });
    }

    pub(super) fn training_failed(&mut self, reason: String) {
        self.is_training = false;
        self.counters.trainings_failed += 1;
        self.note(true, format!("training failed: {reason}"));
        self.last_failure = Some(reason);
    }
}
