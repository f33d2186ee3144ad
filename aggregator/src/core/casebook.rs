//! What is kept of incidents beyond their course: the operator's labels, and the exhibits, which are everything that the
//! newest verdict was read from. With its exhibit a verdict can be given again long after the windows have left the
//! history and the model has been replaced.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use sage_causal::observation::Observation;
use sage_common::{Generation, Slo};
use serde::{Deserialize, Serialize};

use crate::core::{
    incident::{IncidentId, Seen},
    label::Label,
    state::{ClusterWindow, StoredModel},
};

/// Exhibits kept; those of the oldest incidents go first.
const EXHIBITS_MAX: usize = 32;
/// Calls of all traces of all exhibits together, about 15 MB. The newest exhibit is kept whatever it takes: its windows
/// come from the history, which has a bound of its own.
const EXHIBIT_CALLS_MAX: usize = 100_000;
/// Bytes of all models that exhibits refer to: a few generations of a large application.
const EXHIBIT_MODEL_BYTES_MAX: usize = 64 << 20;
/// Windows whose late changes are remembered: more than a diagnosis looks at.
const REVISED_MAX: usize = 64;

/// A window as a diagnosis saw it: its number, and the position in the log of the entry that changed it last (zero when
/// none did).
type Revision = (u64, u64);

/// What one verdict was read from.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Exhibit {
    /// The count of closed windows at which the verdict was given.
    close: u64,
    slo: Slo,
    generation: Generation,
    /// Oldest first.
    windows: Vec<Revision>,
}

/// Everything that a diagnosis takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// The objective as it was.
    pub slo: Slo,
    /// The windows, oldest first.
    pub windows: Vec<Arc<Observation>>,
    /// Which model.
    pub generation: Generation,
    /// The model, as [`Oracle::decode`](crate::core::Oracle::decode) reads it.
    pub model: Arc<Vec<u8>>,
}

/// See the module. A part of [`State`](crate::core::State), with a layout of its own at the end of its snapshots.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Casebook {
    labels: BTreeMap<IncidentId, Label>,
    exhibits: BTreeMap<IncidentId, Exhibit>,
    /// Windows of exhibits, each once.
    windows: BTreeMap<Revision, Arc<Observation>>,
    /// Models of exhibits, each once.
    models: BTreeMap<Generation, Arc<Vec<u8>>>,
    /// Position of the entry that last changed a window after its close.
    revised: BTreeMap<u64, u64>,
}

impl Casebook {
    /// The operator's judgement of an incident.
    pub fn label(&self, id: IncidentId) -> Option<&Label> {
        self.labels.get(&id)
    }

    /// Whether [`evidence`](Self::evidence) has an answer.
    pub fn has_evidence(&self, id: IncidentId) -> bool {
        self.exhibits.contains_key(&id)
    }

    /// What the verdict given at the returned count of closed windows was read from.
    pub fn evidence(&self, id: IncidentId) -> Option<(u64, Evidence)> {
        let Exhibit { close, slo, generation, windows } = self.exhibits.get(&id)?;
        let evidence = Evidence {
            slo: slo.clone(),
            windows: windows.iter().map(|window| self.windows.get(window).cloned()).collect::<Option<_>>()?,
            generation: *generation,
            model: self.models.get(generation)?.clone(),
        };
        Some((*close, evidence))
    }

    /// Keeps, replaces or removes a label.
    pub(super) fn set_label(&mut self, id: IncidentId, label: Option<Label>) {
        match label {
            Some(label) => self.labels.insert(id, label),
            None => self.labels.remove(&id),
        };
    }

    /// The window numbered `close` was changed by the entry at `position`.
    pub(super) fn revise(&mut self, close: u64, position: u64) {
        self.revised.insert(close, position);
        while self.revised.len() > REVISED_MAX {
            self.revised.pop_first();
        }
    }

    /// Keeps what a verdict given at `close` was read from, in place of what an earlier verdict of the incident was. Keeps
    /// the earlier when a late node has changed one of the windows since they were `seen`: the verdict could not be
    /// given again from them.
    pub(super) fn keep(
        &mut self,
        (id, close): (IncidentId, u64),
        slo: &Slo,
        seen: Seen,
        history: &VecDeque<ClusterWindow>,
        model: &StoredModel,
    ) {
        let is_seen = |window: &&ClusterWindow| (seen.first..=seen.last).contains(&window.close);
        let revision = |window: &ClusterWindow| self.revised.get(&window.close).copied().unwrap_or_default();
        let windows: Vec<(Revision, Arc<Observation>)> = history
            .iter()
            .filter(is_seen)
            .map(|window| ((window.close, revision(window)), window.observation.clone()))
            .collect();
        let is_as_seen = windows.iter().all(|((_, revision), _)| *revision <= seen.applied);
        if !is_as_seen || windows.len() != seen.windows as usize {
            return;
        }
        let generation = model.meta.generation;
        let of = windows.iter().map(|(revision, _)| *revision).collect();
        self.exhibits.insert(id, Exhibit { close, slo: slo.clone(), generation, windows: of });
        self.windows.extend(windows);
        self.models.insert(generation, model.bytes.clone());
        self.tidy();
    }

    /// Forgets incidents that are not `known` any more.
    pub(super) fn retain(&mut self, is_known: impl Fn(&IncidentId) -> bool) {
        self.labels.retain(|id, _| is_known(id));
        let before = self.exhibits.len();
        self.exhibits.retain(|id, _| is_known(id));
        if self.exhibits.len() < before {
            self.tidy();
        }
    }

    /// Lets the oldest exhibits go until the bounds hold, and everything that no exhibit refers to.
    fn tidy(&mut self) {
        self.drop_unused();
        // Ends: every round lets an exhibit go.
        while self.exhibits.len() > 1 && self.is_over() {
            self.exhibits.pop_first();
            self.drop_unused();
        }
    }

    fn drop_unused(&mut self) {
        let windows: BTreeSet<Revision> =
            self.exhibits.values().flat_map(|exhibit| exhibit.windows.iter().copied()).collect();
        self.windows.retain(|revision, _| windows.contains(revision));
        let models: BTreeSet<Generation> = self.exhibits.values().map(|exhibit| exhibit.generation).collect();
        self.models.retain(|generation, _| models.contains(generation));
    }

    fn is_over(&self) -> bool {
        let traces = self.windows.values().flat_map(|window| &window.traces);
        self.exhibits.len() > EXHIBITS_MAX
            || traces.map(|trace| trace.calls.len()).sum::<usize>() > EXHIBIT_CALLS_MAX
            || self.models.values().map(|model| model.len()).sum::<usize>() > EXHIBIT_MODEL_BYTES_MAX
    }
}
