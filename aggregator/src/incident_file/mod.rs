//! One incident as one file: everything its newest verdict was read from (windows, model, objective), that verdict, what
//! was done, and the operator's label; or the same of the newest windows, without a verdict. Pure: bytes in and out.
//!
//! The verdict can be given again from the file alone, by the code that gave it ([`replay`]).

pub mod format;
pub mod replay;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use sage_causal::{observation::Observation, verdict::Verdict};
use sage_common::{Generation, Slo, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core::{
    Action, Evidence, Incident, IncidentId, Label, Leader, Oracle, State,
    view::{self, GraphView},
};

/// What a file holds. Everything but the model is its document, in JSON.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct IncidentFile {
    /// The program that wrote it, with its version.
    pub made_by: String,
    /// The fleet.
    pub fleet: String,
    /// When it was written.
    pub exported_at: Timestamp,
    /// The incident; absent when the file shows the newest windows alone.
    pub story: Option<Story>,
    /// The objective.
    pub slo: Slo,
    /// Which model.
    pub generation: Generation,
    /// Services and calls as they were known at the export.
    pub graph: GraphView,
    /// What the model looked at, oldest first.
    pub windows: Vec<Arc<Observation>>,
    /// The model, normals and weights; a part of its own of the file.
    #[serde(skip)]
    pub model: Arc<Vec<u8>>,
}

/// What happened.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Story {
    /// The incident, with all its verdicts.
    pub incident: Incident,
    /// The verdict that the windows and the model gave.
    pub verdict: Verdict,
    /// What the operator says was really at fault.
    pub label: Option<Label>,
    /// What was done, oldest first.
    pub actions: Vec<Action>,
}

/// Who writes a file, and when.
#[derive(Clone, Debug)]
pub struct Author {
    /// The program with its version.
    pub made_by: String,
    /// The fleet.
    pub fleet: String,
    /// The time.
    pub at: Timestamp,
}

/// Why there is nothing to export.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NothingToExport {
    /// No such incident.
    #[error("there is no incident {0}; old ones are forgotten")]
    NoIncident(IncidentId),
    /// No verdict yet.
    #[error("incident {0} has no verdict yet")]
    NoVerdict(IncidentId),
    /// A verdict whose windows and model are gone.
    #[error("what the verdict of incident {0} was read from is not kept any more; the newest incidents are kept")]
    NotKept(IncidentId),
    /// No such objective.
    #[error("no objective is called {0:?}")]
    NoObjective(String),
    /// Nothing to look with.
    #[error("the model is not trained yet")]
    NoModel,
    /// Nothing to look at.
    #[error("no window has been seen yet")]
    NoWindows,
}

impl IncidentFile {
    /// Incident `id` of `state`, with the newest verdict whose evidence is kept.
    ///
    /// # Errors
    ///
    /// [`NothingToExport`].
    pub fn of_incident(state: &State, id: IncidentId, author: Author) -> Result<Self, NothingToExport> {
        let incident = state.incidents().get(&id).ok_or(NothingToExport::NoIncident(id))?;
        if incident.verdicts.is_empty() {
            return Err(NothingToExport::NoVerdict(id));
        }
        let (close, evidence) = state.casebook().evidence(id).ok_or(NothingToExport::NotKept(id))?;
        let record = incident.verdicts.iter().find(|record| record.close == close);
        let story = Story {
            incident: incident.clone(),
            verdict: record.ok_or(NothingToExport::NotKept(id))?.verdict.clone(),
            label: state.casebook().label(id).cloned(),
            actions: incident.actions.iter().filter_map(|id| state.actions().get(id)).cloned().collect(),
        };
        Ok(Self::new(evidence, Some(story), state, author))
    }

    /// The newest windows, as a diagnosis for the objective called `slo` would look at them now; without a name, that of an
    /// open incident, else the first.
    ///
    /// # Errors
    ///
    /// [`NothingToExport`].
    pub fn of_now<O: Oracle>(leader: &Leader<O>, slo: Option<&str>, author: Author) -> Result<Self, NothingToExport> {
        let state = leader.state();
        let open = || state.open_incidents().next().map(|incident| incident.slo.as_str());
        let name = slo.or_else(open).or_else(|| state.slos().first().map(|slo| slo.name.as_str())).unwrap_or_default();
        let slo = state.slo(name).ok_or_else(|| NothingToExport::NoObjective(name.to_owned()))?;
        let model = state.model().ok_or(NothingToExport::NoModel)?;
        let windows = leader.newest(slo);
        if windows.is_empty() {
            return Err(NothingToExport::NoWindows);
        }
        let (generation, model) = (model.meta.generation, model.bytes.clone());
        Ok(Self::new(Evidence { slo: slo.clone(), windows, generation, model }, None, state, author))
    }

    fn new(evidence: Evidence, story: Option<Story>, state: &State, author: Author) -> Self {
        let Evidence { slo, windows, generation, model } = evidence;
        let Author { made_by, fleet, at } = author;
        Self { made_by, fleet, exported_at: at, story, slo, generation, graph: view::graph(state), windows, model }
    }
}
