//! Cases from the synthetic unit worlds of `sage_causal::testing`: small applications whose times are drawn, not queued.
//!
//! They are kind: no backlog, no back-pressure, no shared machines. What fails here fails everywhere.

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use sage_causal::{
    observation::Observation,
    testing::{Fault, World},
    verdict::Resource,
};
use sage_common::{Micros, ServiceId, Slo};

use super::{
    case::{Case, CaseSource, Expected, History, Injected, Set, Truth, acceptable, subsets},
    seeds::derived,
    system::Label,
    view::is_violated,
};

/// The applications.
pub const APPS: [&str; 3] = ["world-chain", "world-fanout", "world-shop"];

/// Healthy windows before a case's fault, and windows under it.
const BEFORE: u64 = 2;
const UNDER: u64 = 3;

/// Windows between the beginnings of two cases, and number of the first: behind any history.
const STRIDE: u64 = 16;
const CASES_FROM: u64 = 100_000;

/// One window in so many begins an unlabelled episode of [`UNDER`] windows: 22 % of the history is under a fault.
const EPISODE_EVERY: u64 = 14;

/// A fault that does not break the target is made stronger so often, by so much, before the case is given up.
const ATTEMPTS: usize = 8;
const STRONGER: f64 = 1.6;

/// One application of [`APPS`] under one seed.
pub struct WorldSource {
    app: &'static str,
    world: World,
    seed: u64,
    slo: Slo,
}

/// A fault with its place.
#[derive(Clone, Copy)]
struct Planned {
    fault: Fault,
    tier: usize,
    kind: &'static str,
}

impl WorldSource {
    /// `app` at `traced` of its nominal request rate; `None` when there is no such application.
    pub fn open(app: &str, seed: u64, traced: f64) -> Option<Self> {
        let app = APPS.into_iter().find(|known| *known == app)?;
        let mut world = match app {
            "world-chain" => World::chain(),
            "world-fanout" => World::fanout(),
            _ => World::shop(),
        };
        // The target is that of the full rate: sampling does not change what the application owes.
        let slo = world.slo();
        world.rate *= traced;
        Some(Self { app, world, seed, slo })
    }

    fn observe(&self, first: u64, count: u64, faults: &[Fault]) -> Vec<Observation> {
        self.world.windows(derived(self.seed, 0), first, count, faults)
    }

    /// Mean of the logs of the objective's latency under `faults`, as a latency in microseconds.
    fn latency_us(&self, windows: &[Observation]) -> f64 {
        let logs = windows.iter().map(|window| window.objectives[0].latency_us.max(1.0).ln());
        (logs.sum::<f64>() / windows.len() as f64).exp()
    }

    fn service(&self, tier: usize) -> ServiceId {
        self.world.service(tier)
    }

    /// Tiers that most requests visit: a fault elsewhere cannot break a p99.
    fn tiers(&self) -> Vec<usize> {
        let is_rare = |tier: usize| {
            let calls = self.world.tiers.iter().flat_map(|caller| caller.groups.iter().flatten());
            let of_tier: Vec<f64> = calls.filter(|call| call.callee == tier).map(|call| call.probability).collect();
            !of_tier.is_empty() && of_tier.iter().all(|p| *p < 0.2)
        };
        (0..self.world.tiers.len()).filter(|tier| !is_rare(*tier)).collect()
    }

    fn planned(&self, tier: usize, draw: &mut SmallRng) -> Planned {
        let factor = draw.random_range(4.0_f64.ln()..60.0_f64.ln()).exp();
        let us = factor * 1_000.0;
        let all = [
            (Fault::Cpu(tier, factor), "cpu"),
            (Fault::Memory(tier, factor), "memory"),
            (Fault::Disk(tier, factor), "disk"),
            (Fault::Network(tier, us), "network"),
            (Fault::Slow(tier, factor), "slow"),
            (Fault::Queue(tier, us), "queue"),
        ];
        // Nobody queues in front of the entry: its clients are not traced.
        let (fault, kind) = all[draw.random_range(0..if tier == 0 { all.len() - 1 } else { all.len() })];
        Planned { fault, tier, kind }
    }

    /// Between one and `count` faults on different tiers, and what else happens meanwhile.
    fn plan(&self, count: usize, draw: &mut SmallRng) -> (Vec<Planned>, Vec<Fault>) {
        let mut tiers = self.tiers();
        tiers.shuffle(draw);
        let injected: Vec<Planned> = tiers.iter().take(count).map(|tier| self.planned(*tier, draw)).collect();
        let mut rest = tiers.into_iter().skip(count);
        let mut others = Vec::new();
        if draw.random_bool(0.5) {
            others.extend(rest.next().map(Fault::Decoy));
        }
        if draw.random_bool(0.3) {
            others.extend(rest.next().map(|tier| Fault::Slow(tier, draw.random_range(1.2..1.8))));
        }
        (injected, others)
    }

    /// A case with culprits; `None` when they cannot be made to break the target, or something else breaks it too.
    fn broken(&self, number: u64, count: usize, draw: &mut SmallRng) -> Option<Case> {
        let (mut injected, others) = self.plan(count, draw);
        let first = CASES_FROM + STRIDE * number;
        let faults = |injected: &[Planned]| -> Vec<Fault> {
            injected.iter().map(|planned| planned.fault).chain(others.iter().copied()).collect()
        };
        for _ in 0..ATTEMPTS {
            let mut recent = self.observe(first, BEFORE, &[]);
            let under = self.observe(first + BEFORE, UNDER, &faults(&injected));
            if !under.iter().all(|window| is_violated(window, &self.slo)) {
                injected.iter_mut().for_each(|planned| planned.fault = stronger(planned.fault));
                continue;
            }
            let severity = self.latency_us(&under) / self.slo.target.get() as f64;
            let (worlds, is_clean) = self.worlds(first, &injected, &others);
            recent.extend(under);
            let acceptable = acceptable(&worlds, self.slo.target.get() as f64);
            let injected = injected.iter().map(|planned| self.injected(planned)).collect();
            let truth = Truth { injected, acceptable, expected: Expected::Culprits, severity, worlds };
            return is_clean.then_some(Case { number, recent, truth });
        }
        None
    }

    /// Every world in which some of the injected faults never were, and whether the target is met without all of them.
    fn worlds(&self, first: u64, injected: &[Planned], others: &[Fault]) -> (Vec<(Set, f64)>, bool) {
        let target = self.slo.target.get() as f64;
        let world = |repaired: Vec<Planned>| {
            let kept = injected.iter().filter(|planned| !repaired.iter().any(|r| r.tier == planned.tier));
            let faults: Vec<Fault> = kept.map(|planned| planned.fault).chain(others.iter().copied()).collect();
            let latency = self.latency_us(&self.observe(first + BEFORE, UNDER, &faults));
            (repaired.iter().map(|planned| self.service(planned.tier)).collect::<Set>(), latency)
        };
        let worlds: Vec<(Set, f64)> = subsets(injected).into_iter().skip(1).map(world).collect();
        let is_clean = worlds.last().is_some_and(|(_, latency)| *latency <= target);
        (worlds, is_clean)
    }

    fn injected(&self, planned: &Planned) -> Injected {
        let resource = match planned.kind {
            "cpu" => Resource::Cpu,
            "memory" => Resource::Memory,
            "disk" => Resource::Disk,
            "network" => Resource::Network,
            _ => Resource::Software,
        };
        Injected { service: self.service(planned.tier), resource, kind: planned.kind.to_owned(), instance: None }
    }

    /// A case that accuses nobody: load alone, or a fault too weak to matter.
    fn innocent(&self, number: u64, expected: Expected, draw: &mut SmallRng) -> Option<Case> {
        let first = CASES_FROM + STRIDE * number;
        let mut tiers = self.tiers();
        tiers.shuffle(draw);
        let faults = match expected {
            Expected::Demand => vec![Fault::Surge(draw.random_range(2.0..3.0))],
            _ => vec![Fault::Slow(tiers[0], draw.random_range(1.1..1.5)), Fault::Decoy(tiers[1])],
        };
        let mut recent = self.observe(first, BEFORE, &[]);
        recent.extend(self.observe(first + BEFORE, UNDER, &faults));
        let is_broken = is_violated(recent.last()?, &self.slo);
        let severity = self.latency_us(&recent[BEFORE as usize..]) / self.slo.target.get() as f64;
        let truth = Truth { injected: Vec::new(), acceptable: Vec::new(), expected, severity, worlds: Vec::new() };
        (is_broken == (expected == Expected::Demand)).then_some(Case { number, recent, truth })
    }
}

impl CaseSource for WorldSource {
    fn app(&self) -> &str {
        self.app
    }

    fn slo(&self) -> Slo {
        Slo { target: Micros::new(self.slo.target.get()), ..self.slo.clone() }
    }

    fn history(&self, windows: usize) -> History {
        let mut draw = SmallRng::seed_from_u64(derived(self.seed, 1));
        let mut history = History::default();
        while history.windows.len() < windows {
            let first = history.windows.len() as u64;
            let (injected, others) = self.plan(1 + usize::from(draw.random_bool(0.2)), &mut draw);
            let faults: Vec<Fault> = injected.iter().map(|planned| planned.fault).chain(others).collect();
            history.windows.extend(self.observe(first, EPISODE_EVERY - UNDER, &[]));
            let services: Vec<ServiceId> = injected.iter().map(|planned| self.service(planned.tier)).collect();
            for window in self.observe(first + EPISODE_EVERY - UNDER, UNDER, &faults) {
                history.labels.push(Label { window: history.windows.len(), services: services.clone() });
                history.windows.push(window);
            }
        }
        history.windows.truncate(windows);
        history.labels.retain(|label| label.window < windows);
        history
    }

    fn case(&self, number: u64) -> Option<Case> {
        let mut draw = SmallRng::seed_from_u64(derived(self.seed, 2 + number));
        match number % 20 {
            9 => self.innocent(number, Expected::Demand, &mut draw),
            19 => self.innocent(number, Expected::Nothing, &mut draw),
            kind => self.broken(number, if kind % 3 == 2 { 2 } else { 1 }, &mut draw),
        }
    }
}

fn stronger(fault: Fault) -> Fault {
    match fault {
        Fault::Cpu(at, k) => Fault::Cpu(at, k * STRONGER),
        Fault::Disk(at, k) => Fault::Disk(at, k * STRONGER),
        Fault::Memory(at, k) => Fault::Memory(at, k * STRONGER),
        Fault::Slow(at, k) => Fault::Slow(at, k * STRONGER),
        Fault::Network(at, us) => Fault::Network(at, us * STRONGER),
        Fault::Queue(at, us) => Fault::Queue(at, us * STRONGER),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_gives_the_same_case_and_its_truth_is_consistent() {
        let source = WorldSource::open("world-shop", 11, 1.0).expect("known");
        let slo = source.slo();
        for number in 0..12 {
            let Some(case) = source.case(number) else { continue };
            let again = source.case(number).expect("made once");
            assert_eq!(case.recent, again.recent);
            let is_broken = is_violated(case.recent.last().expect("windows"), &slo);
            assert_eq!(is_broken, matches!(case.truth.expected, Expected::Culprits | Expected::Demand), "{number}");
            let everybody: Set = case.truth.injected.iter().map(|injected| injected.service.clone()).collect();
            assert!(case.truth.acceptable.iter().all(|set| set.is_subset(&everybody)), "{:?}", case.truth);
            assert_eq!(case.truth.acceptable.is_empty(), case.truth.expected != Expected::Culprits, "{:?}", case.truth);
        }
    }

    #[test]
    fn a_history_is_mostly_healthy_and_labels_stand_at_windows_under_faults() {
        let source = WorldSource::open("world-chain", 11, 1.0).expect("known");
        let history = source.history(56);
        assert_eq!((history.windows.len(), history.labels.len()), (56, 12));
        assert!(history.labels.iter().all(|label| label.window % 14 >= 11 && !label.services.is_empty()));
    }

    #[test]
    fn an_application_nobody_knows_is_refused() {
        assert!(WorldSource::open("world-moon", 1, 1.0).is_none());
    }
}
