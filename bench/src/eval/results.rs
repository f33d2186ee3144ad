//! Results as they are stored: `DIR/results.json`.
#![allow(clippy::disallowed_methods, reason = "results are files")]

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Name of the results within their folder.
pub const FILE: &str = "results.json";

/// One figure.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Row {
    /// Which experiment.
    pub experiment: String,
    /// Which application.
    pub app: String,
    /// Which system.
    pub system: String,
    /// Which cases: `single`, `double`, `all`, `severity:...`, `kind:...`.
    pub slice: String,
    /// What was measured.
    pub measure: String,
    /// The figure.
    pub value: f64,
    /// Over how many cases.
    pub n: usize,
    /// Lower end of its 95 % interval; the figure itself where there is none.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// One run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Results {
    /// Processor, cores and memory.
    pub machine: String,
    /// Version of the sources.
    pub commit: String,
    /// Seed of the run; see [`super::seeds`] for what seeds are for.
    pub seed: u64,
    /// Every figure.
    pub rows: Vec<Row>,
}

impl Results {
    /// An empty run on this machine.
    pub fn new(seed: u64) -> Self {
        Self { machine: machine(), commit: commit(), seed, rows: Vec::new() }
    }

    /// Writes the results into `folder`, which is made when it is not there.
    ///
    /// # Errors
    ///
    /// When the folder or the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(self).context("results are plain data")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The results in `folder`.
    ///
    /// # Errors
    ///
    /// When there are none that can be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("no results in {}", path.display()))
    }
}

fn machine() -> String {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split(':').nth(1).unwrap_or("unknown").trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores, {}", first("/proc/cpuinfo", "model name"), first("/proc/meminfo", "MemTotal"))
}

fn commit() -> String {
    let told = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok();
    let told = told.filter(|output| output.status.success()).map(|output| output.stdout);
    told.map_or("unknown".to_owned(), |text| String::from_utf8_lossy(&text).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_back_from_their_file_as_they_were() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let row = Row {
            experiment: "accuracy".into(),
            app: "chain".into(),
            system: "sage".into(),
            slice: "single".into(),
            measure: "exact".into(),
            value: 0.1 + 0.2,
            n: 7,
            low: 1.0 / 3.0,
            high: 2.0 / 3.0,
        };
        let results = Results { rows: vec![row], ..Results::new(5) };
        results.write(folder.path()).expect("written");
        assert_eq!(Results::read(folder.path()).expect("read"), results);
        assert!(Results::read(&folder.path().join("elsewhere")).is_err());
    }
}
