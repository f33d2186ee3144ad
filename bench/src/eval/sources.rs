//! Where cases come from: applications by name.

use super::{
    case::CaseSource,
    simulated::{self, SimulatedSource},
    worlds::{self, WorldSource},
};

/// What an application is observed under.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// Share of the requests that are traced.
    pub traced: f64,
    /// Instances of each tier; a fault strikes one of them. Unit worlds have one always.
    pub replicas: u32,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { traced: 1.0, replicas: 1 }
    }
}

/// Every application, by the name that `--apps` takes: simulated ones, then unit worlds.
pub fn apps() -> Vec<&'static str> {
    simulated::APPS.into_iter().chain(worlds::APPS).collect()
}

/// The application called `app` under `seed`; `None` when there is none.
pub fn open(app: &str, seed: u64, conditions: &Conditions) -> Option<Box<dyn CaseSource>> {
    if let Some(source) = SimulatedSource::open(app, seed, conditions) {
        return Some(Box::new(source));
    }
    Some(Box::new(WorldSource::open(app, seed, conditions.traced)?))
}
