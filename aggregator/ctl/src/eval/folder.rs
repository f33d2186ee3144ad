#![expect(clippy::disallowed_methods, reason = "a driver: labels are files")]
//! A folder of labelled incidents: `incidents.json`, `normal.json`, and the recording beside them.

use std::{
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use thiserror::Error;

use crate::replay::time::{self, InvalidTime, Period};

/// Incidents of a folder at most.
const INCIDENTS_MAX: usize = 100_000;

/// Why a folder cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FolderError {
    /// A file is not there, or not for us.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} does not read: {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// What happened, when.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    /// Its name.
    pub id: String,
    /// When.
    pub period: Period,
    /// The service whose alarm was raised, where somebody says so: what an operator knows before any diagnosis.
    pub alarmed: Option<String>,
    /// The truth, for scoring alone.
    pub truth: Truth,
}

/// What was wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// The culprits, as the recording writes them.
    pub services: Vec<String>,
    /// `cpu`, `memory`, `disk`, `network`, `software` or `unknown`.
    pub resource: String,
    /// What was injected.
    pub fault_type: String,
}

/// A folder's labels.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// The incidents, by their start.
    pub incidents: Vec<Labelled>,
    /// When nothing was wrong.
    pub normal: Vec<Period>,
}

#[derive(Deserialize)]
struct IncidentLine {
    id: String,
    start: String,
    end: String,
    #[serde(default)]
    services: Vec<String>,
    #[serde(default)]
    resource: Option<String>,
    #[serde(default)]
    fault_type: Option<String>,
    #[serde(default)]
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    service: Option<String>,
}

#[derive(Deserialize)]
struct NormalLine {
    start: String,
    end: String,
}

impl Folder {
    /// Reads the labels in `path`.
    ///
    /// # Errors
    ///
    /// [`FolderError`].
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let file = path.join("incidents.json");
        let lines: Vec<IncidentLine> = read(&file)?;
        if lines.len() > INCIDENTS_MAX {
            return Err(FolderError::Content { path: file, what: format!("more than {INCIDENTS_MAX} incidents") });
        }
        let labelled = |line: IncidentLine| {
            Ok(Labelled {
                period: period(&line.start, &line.end, &file)?,
                id: line.id,
                alarmed: line.target.and_then(|target| target.service),
                truth: Truth {
                    services: line.services,
                    resource: line.resource.unwrap_or_else(|| "unknown".to_owned()),
                    fault_type: line.fault_type.unwrap_or_else(|| "unknown".to_owned()),
                },
            })
        };
        let mut incidents = lines.into_iter().map(labelled).collect::<Result<Vec<_>, FolderError>>()?;
        incidents.sort_by(|a, b| (a.period.start, &a.id).cmp(&(b.period.start, &b.id)));
        let file = path.join("normal.json");
        let lines: Vec<NormalLine> = read(&file)?;
        let normal = lines.iter().map(|line| period(&line.start, &line.end, &file)).collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), incidents, normal })
    }

    /// The first file of the folder whose name begins with `stem`, in order of names.
    pub fn find(&self, stem: &str) -> Option<PathBuf> {
        let entries = std::fs::read_dir(&self.path).ok()?;
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(stem)))
            .collect();
        found.sort();
        found.into_iter().next()
    }
}

fn period(start: &str, end: &str, file: &Path) -> Result<Period, FolderError> {
    let failed = |error: InvalidTime| FolderError::Content { path: file.to_owned(), what: error.to_string() };
    let period = Period { start: time::parse(start).map_err(failed)?, end: time::parse(end).map_err(failed)? };
    if period.start >= period.end {
        return Err(FolderError::Content { path: file.to_owned(), what: format!("{start} to {end} is no period") });
    }
    Ok(period)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FolderError> {
    let failed = |source| FolderError::File { path: path.to_owned(), source };
    let file = BufReader::new(File::open(path).map_err(failed)?);
    serde_json::from_reader(file)
        .map_err(|error| FolderError::Content { path: path.to_owned(), what: error.to_string() })
}
