#![expect(clippy::disallowed_methods, reason = "a driver: labels are files")]
//! A folder of labelled incidents: `incidents.json`, `normal.json`, and the recording beside them.

use std::{
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use sage_common::Micros;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use thiserror::Error;

use crate::replay::time::{self, InvalidTime, Period};

/// Incidents of a folder at most.
const INCIDENTS_MAX: usize = 100_000;

/// Time around an incident that is not healthy for sure, where nobody says what is.
const AROUND: Micros = Micros::from_secs(120);

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
    #[serde(default)]
    id: Value,
    start: Value,
    end: Value,
    #[serde(default, alias = "service")]
    services: Value,
    #[serde(default)]
    resource: Option<String>,
    #[serde(default)]
    fault_type: Option<String>,
    #[serde(default)]
    target: Value,
}

#[derive(Deserialize)]
struct NormalLine {
    start: Value,
    end: Value,
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
        let labelled = |(at, line): (usize, IncidentLine)| {
            Ok(Labelled {
                period: period(&line.start, &line.end, &file)?,
                id: text(&line.id).unwrap_or_else(|| format!("incident {}", at + 1)),
                alarmed: text(line.target.get("service").unwrap_or(&line.target)),
                truth: Truth {
                    services: match &line.services {
                        Value::Array(all) => all.iter().filter_map(text).collect(),
                        one => text(one).into_iter().collect(),
                    },
                    resource: line.resource.unwrap_or_else(|| "unknown".to_owned()),
                    fault_type: line.fault_type.unwrap_or_else(|| "unknown".to_owned()),
                },
            })
        };
        let mut incidents = lines.into_iter().enumerate().map(labelled).collect::<Result<Vec<_>, FolderError>>()?;
        incidents.sort_by(|a, b| (a.period.start, &a.id).cmp(&(b.period.start, &b.id)));
        let normal = normal(&path.join("normal.json"), &incidents)?;
        Ok(Self { path: path.to_owned(), incidents, normal })
    }

    /// The files of the folder whose names begin with `stem`, in order of names; of one that is there plain and packed, the
    /// first.
    pub fn find(&self, stem: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return Vec::new() };
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(stem)))
            .collect();
        found.sort();
        let plain = |path: &PathBuf| match path.extension().is_some_and(|packed| packed == "zst" || packed == "gz") {
            true => path.with_extension(""),
            false => path.clone(),
        };
        found.dedup_by_key(|path| plain(path));
        found
    }
}

/// What `file` says, else everything but the incidents and what surrounds them.
fn normal(file: &Path, incidents: &[Labelled]) -> Result<Vec<Period>, FolderError> {
    if file.exists() {
        let lines: Vec<NormalLine> = read(file)?;
        return lines.iter().map(|line| period(&line.start, &line.end, file)).collect();
    }
    let around =
        |incident: &Labelled| Period { start: incident.period.start - AROUND, end: incident.period.end + AROUND };
    Ok(time::outside(&incidents.iter().map(around).collect::<Vec<_>>()))
}

/// A text, or a number as text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn period(start: &Value, end: &Value, file: &Path) -> Result<Period, FolderError> {
    let failed = |error: InvalidTime| FolderError::Content { path: file.to_owned(), what: error.to_string() };
    let at = |value: &Value| time::parse(&text(value).unwrap_or_default()).map_err(failed);
    let period = Period { start: at(start)?, end: at(end)? };
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
