//! Reports: one JSON file, one page that needs nothing but a browser, and its picture alone.
#![allow(clippy::disallowed_methods, reason = "reports are files")]

mod chart;
mod page;

pub use chart::escape;

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::demo::record::{Point, Report};

/// Writes `report.json`, `report.html` and `report.svg` into `out`. `clients` is the latency that the load generator saw.
pub fn write(out: &Path, report: &Report, clients: &[Point]) -> Result<()> {
    let json = serde_json::to_string_pretty(report).context("a report is plain data")?;
    let (page, picture) = (page::render(report, clients), page::picture(report, clients));
    for (name, text) in [("report.json", json), ("report.html", page), ("report.svg", picture)] {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
