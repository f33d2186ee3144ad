//! Finds the periods in which a target was broken, as windows pass. Pure.
//!
//! ```text
//!  learning ──enough healthy windows──► watching ──target broken──► broken ──met again──► watching
//! ```

use sage_causal::observation::Observation;
use sage_common::Slo;

use super::{rate::CALLS_MIN, study, time::Period};

/// Windows that are learnt from when no period to train on is given.
const LEARN_WINDOWS: usize = 60;

/// Healthy windows kept for training: the model uses no more.
const TRAINING_MAX: usize = 240;

/// Windows of one period: behind a few minutes the beginning is another story, and a long one is answered in parts.
const PERIOD_MAX: usize = 60;

/// Broken windows that make a period; one is chance.
const BROKEN_MIN: usize = 2;

/// Met windows in a row that end a period.
const MET_MAX: usize = 2;

/// A period in which a target was broken, and what was healthy before it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Healthy windows, oldest first.
    pub training: Vec<Observation>,
    /// Windows of the period, oldest first.
    pub period: Vec<Observation>,
}

/// The watch.
#[derive(Debug)]
pub struct Watch {
    train: Option<Period>,
    training: Vec<Observation>,
    slos: Vec<Slo>,
    running: Vec<Observation>,
    broken: usize,
    met: usize,
}

impl Watch {
    /// Learns from `train`, or from the first windows with calls.
    pub fn new(train: Option<Period>) -> Self {
        Self { train, training: Vec::new(), slos: Vec::new(), running: Vec::new(), broken: 0, met: 0 }
    }

    /// Takes the next window; `slos` are the objectives in force. Gives a period once it is over.
    pub fn take(&mut self, window: &Observation, slos: &[Slo]) -> Option<Found> {
        if window.edges.is_empty() {
            return None;
        }
        if self.is_learning(window) {
            self.training.push(window.clone());
            if self.training.len() > TRAINING_MAX {
                self.training.remove(0);
            }
            return None;
        }
        if self.slos.is_empty() {
            self.slos = study::targets(&self.training, slos);
        }
        let is_broken = self.slos.iter().any(|slo| is_broken(window, slo));
        if is_broken {
            self.broken += 1;
            self.met = 0;
        } else if self.broken > 0 {
            self.met += 1;
        }
        if self.broken > 0 {
            self.running.push(window.clone());
        }
        let is_over = self.met == MET_MAX || self.running.len() == PERIOD_MAX;
        if is_over { self.end() } else { None }
    }

    /// The period that runs when the recording ends.
    pub fn finish(&mut self) -> Option<Found> {
        self.end()
    }

    /// The objectives with the targets that are watched.
    pub fn slos(&self) -> &[Slo] {
        &self.slos
    }

    fn is_learning(&self, window: &Observation) -> bool {
        match self.train {
            Some(period) => window.start < period.end,
            None => self.training.len() < LEARN_WINDOWS,
        }
    }

    fn end(&mut self) -> Option<Found> {
        let mut period = std::mem::take(&mut self.running);
        let broken = std::mem::take(&mut self.broken);
        period.truncate(period.len() - self.met.min(period.len()));
        self.met = 0;
        (broken >= BROKEN_MIN).then(|| Found { training: self.training.clone(), period })
    }
}

fn is_broken(window: &Observation, slo: &Slo) -> bool {
    let own = window.objectives.iter().find(|objective| objective.slo == slo.name);
    own.is_some_and(|own| own.calls >= CALLS_MIN && own.latency_us > slo.target.get() as f64)
}
