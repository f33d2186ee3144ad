//! The model as the leader sees it: something that answers for one objective. Tests put a script in its place.

use std::sync::Arc;

use sage_causal::{Model, observation::Observation, verdict::Verdict};
use sage_common::{Generation, Slo};

/// A trained model.
pub trait Oracle: Sized {
    /// Reads what [`Proposal::Generation`](crate::core::Proposal::Generation) carries; the text says what is wrong.
    ///
    /// # Errors
    ///
    /// A text for people when the bytes are not a model of this version.
    fn decode(bytes: &[u8]) -> Result<Self, String>;

    /// Answers for `slo` on `recent`, the newest cluster windows, oldest first. Takes milliseconds. `None` when the
    /// windows hold nothing of that objective.
    fn diagnose(&self, recent: &[Arc<Observation>], slo: &Slo, generation: Generation) -> Option<Verdict>;

    /// Whether this model should replace `previous`, by the newest healthy windows, `recent`.
    fn is_better_than(&self, previous: &Self, recent: &[Arc<Observation>]) -> bool;
}

impl Oracle for Model {
    fn decode(bytes: &[u8]) -> Result<Self, String> {
        Self::from_bytes(bytes).map_err(|error| error.to_string())
    }

    fn diagnose(&self, recent: &[Arc<Observation>], slo: &Slo, generation: Generation) -> Option<Verdict> {
        let recent: Vec<Observation> = recent.iter().map(|window| window.as_ref().clone()).collect();
        let verdict = Self::diagnose(self, &recent, slo);
        Some(Verdict { generation, ..verdict })
    }

    fn is_better_than(&self, previous: &Self, recent: &[Arc<Observation>]) -> bool {
        Self::is_better_than(self, previous, recent)
    }
}
