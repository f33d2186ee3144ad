//! What the policy counts: when actions began, and when each knob was last given back.

use std::collections::{BTreeMap, VecDeque};

use sage_common::{Knob, Micros};

const HOUR: Micros = Micros::from_secs(3_600);

/// The most knobs whose rest is remembered. Beyond it the one that has rested longest is forgotten; a node has fewer.
const KNOBS_MAX: usize = 4_096;

/// Past actions, by the monotonic clock of this life of the agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Ascending; none older than an hour, and no more than the policy lets begin within one.
    begun: VecDeque<Micros>,
    given_back: BTreeMap<Knob, Micros>,
}

impl History {
    /// Notes that an action begins.
    pub fn begin(&mut self, now: Micros) {
        self.forget(now);
        self.begun.push_back(now);
    }

    /// Notes that `knob` was given back.
    pub fn end(&mut self, knob: Knob, now: Micros) {
        self.given_back.insert(knob, now);
        if self.given_back.len() > KNOBS_MAX {
            let oldest = self.given_back.iter().min_by_key(|(_, at)| **at).map(|(knob, _)| knob.clone());
            oldest.and_then(|knob| self.given_back.remove(&knob));
        }
    }

    /// How many actions began within the hour before `now`.
    pub fn begun_within_hour(&self, now: Micros) -> usize {
        self.begun.iter().filter(|at| now.saturating_sub(**at) < HOUR).count()
    }

    /// How long `knob` has rested since it was given back.
    pub fn rested(&self, knob: &Knob, now: Micros) -> Option<Micros> {
        self.given_back.get(knob).map(|at| now.saturating_sub(*at))
    }

    fn forget(&mut self, now: Micros) {
        while self.begun.front().is_some_and(|at| now.saturating_sub(*at) >= HOUR) {
            self.begun.pop_front();
        }
    }
}
