//! One generation of the model: everything learnt, ready to diagnose.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
};

use sage_common::{Generation, Micros, ServiceId, Slo, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    bytes,
    change::{self, Change, STEP_WINDOWS},
    diagnose::{self, diagnose, diagnose_period},
    error::mean_error_where,
    frame::Frame,
    normals::Normals,
    null::{GroupNull, Null},
    observation::{EdgeKey, Observation},
    pool,
    rebuild::{Rebuilt, rebuild},
    skeleton::Skeletons,
    train::is_healthy,
    verdict::{Resource, Verdict},
};

/// A new generation may be worse by this factor: the noise of a held-out error of a few dozen windows.
const WORSE_MAX: f64 = 1.05;

/// Why there is no model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Not enough windows that met their targets.
    #[error("{have} windows met their targets, {want} are needed")]
    TooFewWindows {
        /// How many there are.
        have: usize,
        /// How many are needed.
        want: usize,
    },
    /// No window shows a single call.
    #[error("no calls were observed")]
    NoCalls,
    /// The bytes are not a model.
    #[error("not a stored model")]
    Foreign,
    /// A model of another version of the format.
    #[error("stored model has format {found}, this program reads {want}")]
    Version {
        /// What the bytes say.
        found: u16,
        /// What this build reads.
        want: u16,
    },
    /// A model over other metrics or percentiles.
    #[error("stored model was learnt over other metrics or percentiles")]
    Schema,
    /// Cut, flipped or otherwise damaged bytes.
    #[error("stored model is damaged: {0}")]
    Damaged(String),
}

/// Where a service's latency normal comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// The robust linear prior.
    Linear,
    /// The service's CVAE, which beat the linear prior on windows it was not trained on.
    Cvae,
}

/// What one service's part of the model was learnt from and how good it is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ModelCard {
    /// The service.
    pub service: ServiceId,
    /// Windows it was learnt from.
    pub windows: usize,
    /// End of the newest of them.
    pub newest: Timestamp,
    /// Mean absolute error of its latencies on left-out healthy windows, in logs; `None` without left-out windows.
    pub held_out_error: Option<f64>,
    /// The same for the linear prior.
    pub linear_error: Option<f64>,
    /// Where its latency normal comes from.
    pub kind: ModelKind,
    /// End of the newest window at its last retraining.
    pub last_retrain: Timestamp,
    /// Why it was retrained, or why a net was not promoted; for people.
    pub reason: String,
}

/// A trained model. Immutable; shared freely between threads.
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) generation: Generation,
    pub(crate) edges: BTreeSet<EdgeKey>,
    pub(crate) skeletons: Skeletons,
    pub(crate) normals: Normals,
    pub(crate) nulls: BTreeMap<String, Null>,
    pub(crate) groups: GroupNull,
    pub(crate) offered_max: Option<f64>,
    pub(crate) newest: Timestamp,
    pub(crate) cards: Vec<ModelCard>,
    pub(crate) held_out_error: f64,
    /// Services whose present normal began after the model's history did.
    pub(crate) since: BTreeMap<ServiceId, Timestamp>,
}

impl Model {
    /// Which version this is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The same model under another version number: whoever commits a model numbers it.
    pub fn with_generation(self, generation: Generation) -> Self {
        Self { generation, ..self }
    }

    /// Diagnoses the newest violation of `slo` in `recent`, oldest window first. Pools as many violated windows as the
    /// objective and the edges that carry the excess need; a dozen is plenty to hand over.
    pub fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Verdict {
        diagnose(self, recent, slo)
    }

    /// Diagnoses a period, oldest window first, in which somebody says that something was wrong: all of its windows are pooled,
    /// those that met the target as well.
    pub fn diagnose_period(&self, period: &[Observation], slo: &Slo) -> Verdict {
        diagnose_period(self, period, slo)
    }

    /// What composition alone makes of the self times and gaps of `window`, against what was observed; `None` where the window
    /// holds nothing of the objective. Says how well latencies add up along the graph, not how well causes are found.
    pub fn rebuild(&self, window: &Observation, slo: &Slo) -> Option<Rebuilt> {
        rebuild(self, window, slo)
    }

    /// What the usage of every service says in `period`, whoever is named: its resource that left what healthy windows
    /// reach, else [`Resource::Software`]; and P(right) of that.
    pub fn findings(&self, period: &[Observation], slo: &Slo) -> Vec<(ServiceId, Resource, f64)> {
        diagnose::findings(self, period, slo)
    }

    /// One card per service, ordered by name.
    pub fn cards(&self) -> Vec<ModelCard> {
        self.cards.clone()
    }

    /// Mean absolute error of latencies on left-out healthy windows, in logs, over all services.
    pub fn held_out_error(&self) -> f64 {
        self.held_out_error
    }

    /// Whether this generation may replace `old`: finite and not worse on `held_out`, healthy windows that neither has
    /// seen, or the most recent ones. What a service did before its present normal began does not count, and neither do
    /// services that only one of both knows. Without windows to compare on, finite is enough.
    pub fn is_better_than(&self, old: &Self, held_out: &[impl Borrow<Observation>]) -> bool {
        let held_out: Vec<&Observation> = held_out.iter().map(Borrow::borrow).collect();
        let (Some(mine), Some(theirs)) = (self.error_on(self, old, &held_out), old.error_on(self, old, &held_out))
        else {
            return self.held_out_error.is_finite();
        };
        mine.is_finite() && (!theirs.is_finite() || mine <= theirs * WORSE_MAX)
    }

    /// What changed in the application since this model was learnt, by `recent` windows that met every target of `slos`
    /// (others are passed over), oldest first; a hundred are plenty. Cheap enough to ask at every window's end: a
    /// retraining is due when the answer is not empty.
    pub fn changes(&self, recent: &[impl Borrow<Observation>], slos: &[Slo]) -> Vec<Change> {
        let windows: Vec<&Observation> =
            recent.iter().map(Borrow::borrow).filter(|window| is_healthy(window, slos)).collect();
        let newest = &windows[windows.len().saturating_sub(STEP_WINDOWS)..];
        let graph = pool::graph(&self.edges_with(&windows), &self.skeletons, newest);
        let frames: Vec<Frame> = windows.iter().filter_map(|window| Frame::of(&graph, &[window])).collect();
        change::detect(self, &graph, &frames.iter().collect::<Vec<_>>(), &BTreeMap::new()).all
    }

    /// Learnt edges and those of `windows`.
    pub(crate) fn edges_with(&self, windows: &[&Observation]) -> BTreeSet<EdgeKey> {
        let mut edges = self.edges.clone();
        for edge in windows.iter().flat_map(|window| &window.edges) {
            if !edges.contains(&edge.key) {
                edges.insert(edge.key.clone());
            }
        }
        edges
    }

    /// Start of the first window of a service's present normal, where that is not the whole history.
    pub(crate) fn since(&self, service: &ServiceId) -> Option<Timestamp> {
        self.since.get(service).copied()
    }

    /// The model as bytes with version, schema hash and checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        bytes::write(self)
    }

    /// A model from [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    ///
    /// [`ModelError`] for foreign bytes, another version or schema, and any damage.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelError> {
        bytes::read(bytes)
    }

    /// Time from the end of the newest learnt window to `now`; zero when that is later.
    pub(crate) fn age(&self, now: Timestamp) -> Micros {
        now.since(self.newest).unwrap_or_default()
    }

    pub(crate) fn edges(&self) -> impl Iterator<Item = EdgeKey> + '_ {
        self.edges.iter().cloned()
    }

    pub(crate) fn skeletons(&self) -> &Skeletons {
        &self.skeletons
    }

    pub(crate) fn normals(&self) -> &Normals {
        &self.normals
    }

    pub(crate) fn null(&self, slo: &str) -> Option<&Null> {
        self.nulls.get(slo)
    }

    pub(crate) fn group_null(&self) -> &GroupNull {
        &self.groups
    }

    pub(crate) fn offered_max(&self) -> Option<f64> {
        self.offered_max
    }

    /// Mean absolute error on `windows`, in logs, where `new` and `old` can be compared; `None` when they cannot.
    fn error_on(&self, new: &Self, old: &Self, all: &[&Observation]) -> Option<f64> {
        let newest = &all[all.len().saturating_sub(STEP_WINDOWS)..];
        let graph = pool::graph(&self.edges, &self.skeletons, newest);
        let frames: Vec<Frame> = all.iter().filter_map(|window| Frame::of(&graph, &[window])).collect();
        let is_known = |service: &usize| {
            let name = &graph.services()[*service];
            [new, old].iter().all(|model| model.normals.services.contains_key(name))
        };
        let services: Vec<usize> = (0..graph.services().len()).filter(is_known).collect();
        let is_present = |service: usize, frame: &Frame| {
            new.since(&graph.services()[service]).is_none_or(|since| frame.time >= since)
        };
        mean_error_where(&self.normals, &graph, &frames.iter().collect::<Vec<_>>(), &services, &is_present)
    }
}
