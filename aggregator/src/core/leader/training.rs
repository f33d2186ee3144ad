//! When to train, and which model to use.

use std::sync::Arc;

use sage_causal::observation::Observation;
use sage_common::{Generation, Timestamp};

use super::{Leader, Output, TrainJob, TrainScope};
use crate::core::{
    learning::Gate,
    oracle::Oracle,
    proposal::{ModelMeta, Proposal},
    slo,
    state::ClusterWindow,
};

/// Closed windows to wait after a training that failed, or whose model was no better.
const RETRY_WINDOWS: u64 = 10;
/// Closed windows between two looks for changes: a minute of ten-second windows.
const CHECK_WINDOWS: u64 = 6;
/// Newest healthy windows that a training of everything does not get, so that models are compared on what neither has seen;
/// at most this part of all.
const UNSEEN_WINDOWS: usize = 10;
const UNSEEN_SHARE: usize = 6;
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
        if self.is_training || self.healthy_windows() < self.rules.windows_min {
            return;
        }
        let Some(scope) = self.due_scope() else { return };
        let mut healthy = self.newest_healthy(TRAIN_WINDOWS);
        let is_whole = matches!(scope, TrainScope::Everything(_));
        if is_whole && self.state.model().is_some() {
            healthy.truncate(healthy.len() - UNSEEN_WINDOWS.min(healthy.len() / UNSEEN_SHARE));
        }
        let newest = self.healthy().next_back().map(|window| window.arrived);
        let job = TrainJob {
            generation: self.next_generation(),
            scope,
            newest_window: newest.unwrap_or(now),
            healthy,
            slos: self.state.slos().to_vec(),
            previous: self.state.model().map(|model| model.bytes.clone()),
            at: now,
        };
        self.is_training = true;
        self.checked_close = self.state.closes();
        if is_whole {
            self.trained_close = Some(self.state.closes());
            self.note(false, format!("training generation {} on {} windows", job.generation, job.healthy.len()));
        }
        self.outputs.push_back(Output::Train(job));
    }

    /// What is to be learnt now, if anything.
    fn due_scope(&self) -> Option<TrainScope> {
        let since = |close: u64| self.state.closes().saturating_sub(close);
        if self.state.closes() < self.rests_until {
            return None;
        }
        let gate = || Gate::new(&self.rules, &self.state);
        match self.state.model() {
            None => Some(TrainScope::Everything(gate())),
            // An incident needs the processor for other things, and its windows teach nothing.
            Some(_) if self.state.open_incidents().next().is_some() => None,
            Some(model) => {
                let last = self.trained_close.unwrap_or(model.close);
                let is_whole_due = since(last) >= self.rules.retrain_every_windows;
                let is_check_due = since(self.checked_close.max(model.close)) >= CHECK_WINDOWS;
                let partial = is_check_due.then(|| TrainScope::Changes(gate()));
                if is_whole_due { Some(TrainScope::Everything(gate())) } else { partial }
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
            self.rest();
            self.note(false, format!("generation {} is no better than the one in use", meta.generation));
            return;
        }
        self.counters.models_adopted += 1;
        self.trained = Some((meta.generation, oracle));
        self.propose(Proposal::Generation { meta, bytes });
    }

    /// The same windows would give the same again.
    fn rest(&mut self) {
        self.rests_until = self.state.closes() + RETRY_WINDOWS;
    }

    pub(super) fn training_failed(&mut self, reason: String) {
        self.is_training = false;
        self.counters.trainings_failed += 1;
        self.rest();
        self.note(true, format!("training failed: {reason}"));
        self.last_failure = Some(reason);
    }
}
