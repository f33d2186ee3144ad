//! Which windows train and which are asked about, as they pass. Pure.

use std::{collections::VecDeque, sync::Arc};

use sage_causal::observation::Observation;
use sage_common::Timestamp;

use super::folder::Labelled;
use crate::replay::time::Period;

/// Healthy windows kept: the nearest ones tell most of what is normal now, and the model itself uses no more.
pub const TRAINING_MAX: usize = 240;

/// Healthy windows wanted before an incident; where there are fewer, those nearest after it are taken as well.
pub const TRAINING_WANTED: usize = 60;

/// Windows of one incident: the newest. The model pools a few dozen.
pub const PERIOD_MAX: usize = 120;

/// One incident with everything needed to answer for it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its position among the incidents.
    pub number: usize,
    /// Healthy windows, oldest first.
    pub training: Vec<Observation>,
    /// Its own windows, oldest first.
    pub period: Vec<Observation>,
}

/// Sorts windows into incidents and healthy ones.
#[derive(Debug)]
pub struct Collector {
    normal: Vec<Period>,
    healthy: VecDeque<Arc<Observation>>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    number: usize,
    period: Period,
    windows: VecDeque<Observation>,
    before: Vec<Arc<Observation>>,
    has_begun: bool,
}

impl Collector {
    /// For `incidents`, of which only the times are looked at.
    pub fn new(incidents: &[Labelled], normal: &[Period]) -> Self {
        let waiting = |(number, incident): (usize, &Labelled)| Waiting {
            number,
            period: incident.period,
            windows: VecDeque::new(),
            before: Vec::new(),
            has_begun: false,
        };
        Self {
            normal: normal.to_vec(),
            healthy: VecDeque::new(),
            waiting: incidents.iter().enumerate().map(waiting).collect(),
        }
    }

    /// Takes the next window and gives the incidents that can be answered now.
    pub fn take(&mut self, window: &Observation) -> Vec<Case> {
        if window.edges.is_empty() {
            return Vec::new();
        }
        let (start, length) = (window.start, window.length);
        for waiting in &mut self.waiting {
            if start + length > waiting.period.start {
                waiting.begin(&self.healthy);
            }
            if waiting.period.holds(start, length) {
                waiting.windows.push_back(window.clone());
                if waiting.windows.len() > PERIOD_MAX {
                    waiting.windows.pop_front();
                }
            }
        }
        if self.normal.iter().any(|period| period.holds(start, length)) {
            self.healthy.push_back(Arc::new(window.clone()));
            if self.healthy.len() > TRAINING_MAX {
                self.healthy.pop_front();
            }
        }
        self.ready(Some(start))
    }

    /// The incidents that no further window will make easier.
    pub fn finish(&mut self) -> Vec<Case> {
        self.ready(None)
    }

    fn ready(&mut self, now: Option<Timestamp>) -> Vec<Case> {
        let mut ready = Vec::new();
        let healthy = &self.healthy;
        self.waiting.retain_mut(|waiting| {
            let is_over = now.is_none_or(|now| now >= waiting.period.end);
            if is_over {
                waiting.begin(healthy);
            }
            let after = healthy.iter().filter(|window| window.start >= waiting.period.end);
            let missing = TRAINING_WANTED.saturating_sub(waiting.before.len());
            if !is_over || (now.is_some() && after.clone().count() < missing) {
                return true;
            }
            let training =
                waiting.before.iter().chain(after.take(missing)).map(|window| window.as_ref().clone()).collect();
            let period = std::mem::take(&mut waiting.windows).into();
            ready.push(Case { number: waiting.number, training, period });
            false
        });
        ready
    }
}

impl Waiting {
    /// Notes what was healthy before it, once.
    fn begin(&mut self, healthy: &VecDeque<Arc<Observation>>) {
        if !self.has_begun {
            self.has_begun = true;
            self.before = healthy.iter().filter(|window| window.start < self.period.start).cloned().collect();
        }
    }
}
