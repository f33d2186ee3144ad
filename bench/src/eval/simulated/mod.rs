//! Cases from the simulator: the applications of the topology files in virtual time, with the truth from the same arrivals
//! run again without each fault.

mod draft;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use sage_causal::{observation::Observation, verdict::Resource};
use sage_common::{ServiceId, Slo};

use self::draft::{Draft, Drafting};
use super::{
    case::{Case, CaseSource, Expected, History, Injected, Set, Truth, acceptable, subsets},
    seeds::derived,
    system::Label,
    view::is_violated,
};
use crate::{
    simulate::{FaultPlan, Role, World, WorldOptions},
    topology,
};

/// The applications.
pub const APPS: [&str; 5] = ["chain", "fanout", "social_network", "media_service", "hotel_reservation"];

/// Healthy windows before a case's fault, windows under it, and the newest of those by which it is judged: the first
/// window of a fault is half of something else.
const BEFORE: u64 = 2;
const UNDER: u64 = 3;
const JUDGED: u64 = 2;

/// Windows after a fault that may still be slow because of it.
const AFTER: u64 = 2;

/// Number of the first window of the first case, behind any history, and windows between cases.
const CASES_FROM: u64 = 20_000;
const STRIDE: u64 = 13;

/// One stretch of so many windows of a history ends with an episode of [`UNDER`] windows: 21 % of it is under a fault.
const EPISODE_EVERY: u64 = 14;

/// Episodes have so many windows to get over their backlog, before the stretch ends.
const CALM_DOWN: u64 = 2;

/// Traces that are kept of a window: recomposition needs hundreds, and a history of a thousand windows must fit in memory.
const TRACES: usize = 256;

/// Drafts of a case that may come to nothing.
const ATTEMPTS: usize = 6;

/// Where the draws of a source begin.
const HISTORY_PART: u64 = 1;
const CASES_PART: u64 = 2;

/// One application under one seed.
pub struct SimulatedSource {
    app: &'static str,
    /// As it is observed.
    world: World,
    /// As it is: every request counted. The truth.
    whole: World,
    seed: u64,
}

impl SimulatedSource {
    /// `app` with a share `traced` of its requests recorded; `None` when there is no such application.
    pub fn open(app: &str, seed: u64, traced: f64) -> Option<Self> {
        let app = APPS.into_iter().find(|known| *known == app)?;
        let topology = topology::load(app).ok()?;
        let mut options = WorldOptions { sample_traces: TRACES, ..WorldOptions::seeded(derived(seed, 0)) };
        let whole = World::new(&topology, options.clone());
        options.engine.sampling = traced;
        // Sampling does not change what the application owes.
        let world = World::new(&topology, options).with_target(whole.target());
        Some(Self { app, world, whole, seed })
    }

    fn target_us(&self) -> f64 {
        self.whole.target().get() as f64
    }

    /// Latency over the judged windows of an episode that begins with window `first`, microseconds.
    fn latency_us(&self, faults: &[FaultPlan], first: u64) -> f64 {
        let from = self.whole.start_of(first + UNDER - JUDGED);
        let logs = self.whole.latencies(faults, from, JUDGED).into_iter().map(|w| w.latency_us.max(1.0).ln());
        (logs.sum::<f64>() / JUDGED as f64).exp()
    }

    fn drafting(&self, first: u64, windows: u64) -> Drafting<'_> {
        let probe = move |faults: &[FaultPlan]| self.latency_us(faults, first) / self.target_us();
        let (start, end) = (self.whole.start_of(first), self.whole.start_of(first + windows));
        Drafting::new(self.whole.model(), start, end, Box::new(probe))
    }

    /// A case with `count` culprits; `None` when the draft came to nothing.
    fn broken(&self, number: u64, count: usize, draw: &mut SmallRng) -> Option<Case> {
        let first = CASES_FROM + STRIDE * number;
        let Draft { injected, others } = self.drafting(first + BEFORE, UNDER).draft(count, draw)?;
        let all: Vec<FaultPlan> = injected.iter().chain(&others).cloned().collect();
        let severity = self.latency_us(&all, first + BEFORE) / self.target_us();
        let worlds = self.worlds(first + BEFORE, &injected, &others);
        let is_clean = worlds.last().is_some_and(|(_, latency)| *latency <= self.target_us());
        if severity <= 1.0 || !is_clean {
            return None;
        }
        let recent = self.world.run(&all, self.world.start_of(first), BEFORE + UNDER);
        let judged = recent.len().checked_sub(JUDGED as usize)?;
        if !recent[judged..].iter().all(|window| is_violated(window, &self.slo())) {
            return None;
        }
        let truth = Truth {
            injected: injected.iter().map(named).collect(),
            acceptable: acceptable(&worlds, self.target_us()),
            expected: Expected::Culprits,
            severity,
            worlds,
        };
        Some(Case { number, recent, truth })
    }

    /// Every world in which some of the injected faults never were.
    fn worlds(&self, first: u64, injected: &[FaultPlan], others: &[FaultPlan]) -> Vec<(Set, f64)> {
        let world = |repaired: Vec<FaultPlan>| {
            let kept = injected.iter().filter(|fault| !repaired.contains(fault));
            let faults: Vec<FaultPlan> = kept.chain(others).cloned().collect();
            let set = repaired.iter().map(|fault| ServiceId::sanitized(&fault.service)).collect();
            (set, self.latency_us(&faults, first))
        };
        subsets(injected).into_iter().skip(1).map(world).collect()
    }

    /// A case that accuses nobody.
    fn innocent(&self, number: u64, expected: Expected, draw: &mut SmallRng) -> Option<Case> {
        let first = CASES_FROM + STRIDE * number;
        let drafting = self.drafting(first + BEFORE, UNDER);
        let (faults, after) = match expected {
            Expected::Demand => (vec![drafting.surge(draw.random_range(2.0..3.0))], 0),
            Expected::Recovery => (drafting.draft(1, draw)?.injected, AFTER),
            _ => (drafting.weak(draw), 0),
        };
        let mut recent = self.world.run(&faults, self.world.start_of(first), BEFORE + UNDER + after);
        let is_wanted = |window: &Observation| is_violated(window, &self.slo()) == (expected != Expected::Nothing);
        if expected == Expected::Recovery {
            // The newest window after the fault that is still slow.
            let under = (BEFORE + UNDER) as usize;
            let slow = recent.iter().skip(under).take_while(|window| is_wanted(window)).count();
            recent.truncate(if slow == 0 { 0 } else { under + slow });
        }
        let newest = recent.last().filter(|window| is_wanted(window))?;
        let severity = newest.objectives.first()?.latency_us / self.target_us();
        let injected = if expected == Expected::Recovery { faults.iter().map(named).collect() } else { Vec::new() };
        let truth = Truth { injected, acceptable: Vec::new(), expected, severity, worlds: Vec::new() };
        Some(Case { number, recent, truth })
    }
}

impl CaseSource for SimulatedSource {
    fn app(&self) -> &str {
        self.app
    }

    fn slo(&self) -> Slo {
        self.world.slo()
    }

    fn history(&self, windows: usize) -> History {
        let mut draw = SmallRng::seed_from_u64(derived(self.seed, HISTORY_PART));
        let (mut faults, mut labels) = (Vec::new(), Vec::new());
        for stretch in 0..windows as u64 / EPISODE_EVERY {
            let first = stretch * EPISODE_EVERY + EPISODE_EVERY - UNDER - CALM_DOWN;
            let drafted = self.drafting(first, UNDER).untested(1 + usize::from(draw.random_bool(0.2)), &mut draw);
            let services: Vec<ServiceId> =
                drafted.injected.iter().map(|fault| ServiceId::sanitized(&fault.service)).collect();
            labels.extend((first..first + UNDER).map(|w| Label { window: w as usize, services: services.clone() }));
            faults.extend(drafted.injected.into_iter().chain(drafted.others));
        }
        // One window early, because a run warms up before its first.
        let windows = self.world.run(&faults, self.world.start_of(0), windows as u64);
        History { windows, labels }
    }

    fn case(&self, number: u64) -> Option<Case> {
        let mut draw = SmallRng::seed_from_u64(derived(self.seed, CASES_PART + number));
        (0..ATTEMPTS).find_map(|_| match number % 20 {
            9 => self.innocent(number, Expected::Demand, &mut draw),
            14 => self.innocent(number, Expected::Recovery, &mut draw),
            19 => self.innocent(number, Expected::Nothing, &mut draw),
            kind => self.broken(number, if kind % 3 == 2 { 2 } else { 1 }, &mut draw),
        })
    }
}

fn named(fault: &FaultPlan) -> Injected {
    debug_assert_eq!(fault.role, Role::Real);
    Injected {
        service: ServiceId::sanitized(&fault.service),
        resource: fault.kind.resource().unwrap_or(Resource::Software),
        kind: fault.kind.name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_case_breaks_the_target_and_its_repair_restores_it() {
        let source = SimulatedSource::open("fanout", 11, 1.0).expect("known");
        let case = (0..6).find_map(|number| source.case(number)).expect("one of six can be made");
        let target = source.slo().target.get() as f64;
        assert_eq!(case.recent.len(), (BEFORE + UNDER) as usize);
        assert!(is_violated(case.recent.last().expect("windows"), &source.slo()));
        let (everybody, latency) = case.truth.worlds.last().expect("worlds");
        assert_eq!(everybody.len(), case.truth.injected.len());
        assert!(*latency <= target && case.truth.severity > 1.0, "{:?}", case.truth);
        let again = source.case(case.number).expect("made once");
        assert_eq!(again.recent, case.recent);
    }

    #[test]
    fn a_simulated_history_is_whole_and_its_labels_stand_in_their_stretches() {
        let source = SimulatedSource::open("fanout", 11, 1.0).expect("known");
        let history = source.history(28);
        assert_eq!((history.windows.len(), history.labels.len()), (28, 6));
        assert!(history.labels.iter().all(|label| (9..12).contains(&(label.window % 14))), "{:?}", history.labels);
        let healthy = history.windows.iter().filter(|window| !is_violated(window, &source.slo())).count();
        assert!(healthy >= 18, "{healthy} of 28");
    }
}
