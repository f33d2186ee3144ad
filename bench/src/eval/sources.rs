//! Where cases come from: applications by name.

use super::{
    case::CaseSource,
    worlds::{self, WorldSource},
};

/// What an application is observed under.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// Share of the requests that are traced.
    pub traced: f64,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { traced: 1.0 }
    }
}

/// Every application, by the name that `--apps` takes.
pub fn apps() -> Vec<&'static str> {
    worlds::APPS.to_vec()
}

/// The application called `app` under `seed`; `None` when there is none.
pub fn open(app: &str, seed: u64, conditions: &Conditions) -> Option<Box<dyn CaseSource>> {
    WorldSource::open(app, seed, conditions.traced).map(|source| Box::new(source) as Box<dyn CaseSource>)
}
