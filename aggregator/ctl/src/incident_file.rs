#![expect(clippy::disallowed_methods, reason = "a driver: exported incidents are files")]
//! `sagectl eval` of a folder of exported incidents: each is answered again by this release from what its file holds, and
//! scored by the operator's label, which is looked at after the answer alone.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use sage_aggregator::{
    core::TrueCause,
    incident_file::{
        IncidentFile,
        format::{self, FileError},
        replay::{self, ReplayError},
    },
};
use sage_causal::{
    observation::Observation,
    verdict::{Resource, Verdict, VerdictKind},
};
use thiserror::Error;

use crate::{
    eval::{
        folder::{Folder, Labelled, Truth},
        run::{Evaluation, Method, Prediction, kind},
        score::Score,
    },
    replay::{study::ranking, time::Period},
};

/// Files of a folder that are looked at.
const FILES_MAX: usize = 10_000;

/// Services of a ranking that are written.
const RANKING_MAX: usize = 10;

/// Why a folder of incidents cannot be scored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IncidentsError {
    /// The folder, or a file in it, is not for us.
    #[error("cannot read {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file of ours that does not read.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: FileError,
    },
    /// A file that gives no verdict.
    #[error("{path}")]
    Replay {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ReplayError,
    },
    /// Nothing to score by.
    #[error(
        "none of the {incidents} incidents in {path} has a label: sagectl incidents label INCIDENT --truth SERVICE"
    )]
    NoLabel {
        /// The folder.
        path: PathBuf,
        /// How many there are.
        incidents: usize,
    },
}

/// Everything that scoring a folder gives.
#[derive(Debug)]
pub struct Scored {
    /// The labels, in the form of recordings.
    pub folder: Folder,
    /// The answers and their scores.
    pub evaluation: Evaluation,
    /// Incidents without a label.
    pub unlabelled: usize,
    /// Incidents whose verdict is another one than when it was given.
    pub changed: usize,
}

/// The incident files in `folder`, by name; empty when it holds none.
///
/// # Errors
///
/// [`IncidentsError::Io`].
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, IncidentsError> {
    let failed = |source| IncidentsError::Io { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)?.take(FILES_MAX) {
        let path = entry.map_err(failed)?.path();
        if path.is_file() && is_ours(&path)? {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_ours(path: &Path) -> Result<bool, IncidentsError> {
    let failed = |source| IncidentsError::Io { path: path.to_owned(), source };
    let mut head = Vec::new();
    File::open(path).map_err(failed)?.take(16).read_to_end(&mut head).map_err(failed)?;
    Ok(format::is_ours(&head))
}

/// Answers the incidents in `paths`, one at a time, and scores those with a label. `progress` is told of each answer.
///
/// # Errors
///
/// [`IncidentsError`].
pub fn score(
    folder: &Path,
    paths: &[PathBuf],
    mut progress: impl FnMut(&Prediction),
) -> Result<Scored, IncidentsError> {
    let (mut incidents, mut predictions, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    let (mut unlabelled, mut changed) = (0, 0);
    for path in paths {
        let answered = answer(path)?;
        changed += usize::from(!answered.is_same);
        let Some((period, causes)) = answered.label else {
            unlabelled += 1;
            continue;
        };
        let truth = truth(&causes, answered.prediction.ranking.first());
        progress(&answered.prediction);
        scores.push(Score::of(&truth, &answered.prediction.ranking, answered.prediction.resource.as_deref()));
        let alarmed = Some(answered.alarmed);
        incidents.push(Labelled { id: answered.prediction.id.clone(), period, alarmed, truth });
        predictions.push(answered.prediction);
    }
    if incidents.is_empty() {
        return Err(IncidentsError::NoLabel { path: folder.to_owned(), incidents: unlabelled });
    }
    let evaluation = Evaluation { predictions, methods: vec![Method { name: "sage", scores }] };
    let folder = Folder { path: folder.to_owned(), incidents, normal: Vec::new() };
    Ok(Scored { folder, evaluation, unlabelled, changed })
}

struct Answered {
    prediction: Prediction,
    /// The entry service of the objective.
    alarmed: String,
    label: Option<(Period, Vec<TrueCause>)>,
    is_same: bool,
}

fn answer(path: &Path) -> Result<Answered, IncidentsError> {
    let opened = File::open(path).map_err(|source| IncidentsError::Io { path: path.to_owned(), source })?;
    let file = format::read(opened).map_err(|source| IncidentsError::File { path: path.to_owned(), source })?;
    let replayed = replay::replay(&file).map_err(|source| IncidentsError::Replay { path: path.to_owned(), source })?;
    let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let label = file.story.as_ref().and_then(|story| {
        let end = story.incident.resolved_at.unwrap_or(file.exported_at);
        Some((Period { start: story.incident.opened_at, end }, story.label.as_ref()?.causes.clone()))
    });
    let is_same = replayed.is_same();
    let alarmed = file.slo.service.to_string();
    Ok(Answered { prediction: prediction(name, &file, &replayed.given), alarmed, label, is_same })
}

fn prediction(id: String, file: &IncidentFile, verdict: &Verdict) -> Prediction {
    let windows: Vec<Observation> = file.windows.iter().map(|window| window.as_ref().clone()).collect();
    let is_named = verdict.kind != VerdictKind::Unknown;
    Prediction {
        id,
        ranking: ranking(verdict, &windows).iter().take(RANKING_MAX).map(ToString::to_string).collect(),
        resource: verdict.culprits.first().map(|culprit| word(culprit.resource)),
        verdict: kind(verdict.kind).to_owned(),
        p: if is_named { (verdict.p_restored * 1e4).round() / 1e4 } else { 0.0 },
        why: verdict.missing.clone(),
    }
}

/// The label as recordings have it: the resource is that of the service named first, else that of the first true cause.
fn truth(causes: &[TrueCause], first: Option<&String>) -> Truth {
    let named = causes.iter().find(|cause| first.is_some_and(|name| cause.service.as_str() == name));
    let resource = named.or(causes.first()).and_then(|cause| cause.resource);
    let kinds: BTreeSet<String> = causes.iter().filter_map(|cause| cause.resource).map(word).collect();
    Truth {
        services: causes.iter().map(|cause| cause.service.to_string()).collect(),
        resource: resource.map_or_else(|| "unknown".to_owned(), word),
        fault_type: if kinds.is_empty() {
            "unknown".to_owned()
        } else {
            kinds.into_iter().collect::<Vec<_>>().join("+")
        },
    }
}

fn word(resource: Resource) -> String {
    format!("{resource:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    use sage_common::ServiceId;

    use super::*;

    #[test]
    fn of_several_true_causes_the_one_that_was_named_tells_the_resource() {
        let cause = |service: &str, resource| TrueCause { service: ServiceId::sanitized(service), resource };
        let causes = [cause("geo", Some(Resource::Cpu)), cause("rate", Some(Resource::Network))];
        let named = truth(&causes, Some(&"rate".to_owned()));
        assert_eq!((named.resource.as_str(), named.fault_type.as_str()), ("network", "cpu+network"));
        assert_eq!(truth(&causes, Some(&"cart".to_owned())).resource, "cpu");
        assert_eq!(truth(&[cause("geo", None)], None).resource, "unknown");
    }
}
