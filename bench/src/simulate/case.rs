//! Cases for an evaluation: what is injected where and how badly, drawn from a seed, and the truth about it by running the
//! world again without it.

use std::collections::BTreeSet;

use sage_causal::observation::Observation;
use sage_common::{Micros, ServiceId};

use super::{
    candidate::{Candidate, Class, candidates},
    fault::{FaultKind, FaultPlan, Role},
    random::Key,
    world::World,
};

/// What a case is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Story {
    /// Faults break the target.
    Culprits,
    /// Load alone breaks it.
    Demand,
    /// Faults that do not break it.
    Nothing,
    /// Faults are over; their backlog breaks it still.
    Recovery,
}

/// Everything that makes a case; the same seed and number give the same plan.
#[derive(Clone, Debug, PartialEq)]
pub struct CasePlan {
    /// Its number.
    pub number: u64,
    /// What it is about.
    pub story: Story,
    /// The first window that is seen.
    pub first: u64,
    /// How many are seen; the last is the one to diagnose.
    pub windows: u64,
    /// The windows that the truth speaks of: these last ones.
    pub judged: u64,
    /// Faults injected to break the target, on different tiers.
    pub culprits: Vec<FaultPlan>,
    /// Decoys, mild contention and surges.
    pub others: Vec<FaultPlan>,
}

impl CasePlan {
    /// All faults.
    pub fn faults(&self) -> Vec<FaultPlan> {
        self.culprits.iter().chain(&self.others).cloned().collect()
    }
}

/// What the judged windows would have been.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseTruth {
    /// Latency of the objective over the target, as it was.
    pub severity: f64,
    /// The services whose faults are taken away, and the latency of the objective then, microseconds: every set of culprits
    /// but the empty one.
    pub worlds: Vec<(BTreeSet<ServiceId>, f64)>,
}

/// An unlabelled window under a fault of the history.
#[derive(Clone, Debug, PartialEq)]
pub struct Episode {
    /// Its first window.
    pub first: u64,
    /// How many windows.
    pub windows: u64,
    /// The services at fault.
    pub services: Vec<ServiceId>,
}

/// Draws histories and cases of one world.
#[derive(Debug)]
pub struct Cases<'w> {
    world: &'w World,
    key: Key,
    candidates: Vec<Candidate>,
}

/// Windows before the faults of a case, under them, and judged of the latter: in the first of them they have only begun.
const BEFORE: u64 = 2;
const UNDER: u64 = 3;
const JUDGED: u64 = 2;
/// Windows from one case to the next, and the first case: behind any history.
const STRIDE: u64 = 16;
const CASES_FROM: u64 = 100_000;
/// A history has an episode of [`UNDER`] windows in every so many: 21 % of its windows.
const EPISODE_EVERY: u64 = 14;
/// Further draws when a fault cannot reach what it should.
const DRAWS_MAX: u64 = 16;
/// Runs to find one severity.
const PROBES_MAX: usize = 9;
/// Close enough to the latency wanted, in logs.
const TOLERANCE: f64 = 0.2;
/// Bounds of the severity bins: latency over the target.
pub const BINS: [f64; 5] = [1.1, 1.5, 3.0, 10.0, 30.0];

impl<'w> Cases<'w> {
    /// Cases of `world` drawn from `seed`.
    pub fn new(world: &'w World, seed: u64) -> Self {
        Self { world, key: Key::new(seed).child(CASES), candidates: candidates(world.model(), world.topology()) }
    }

    /// The plan of case number `number`: of every 20 one of demand, one of recovery, one of nothing; of the others every
    /// third has two culprits. `None` when what was drawn cannot be made to fit.
    pub fn plan(&self, number: u64) -> Option<CasePlan> {
        let key = self.key.child(number);
        match number % 20 {
            9 => self.demand(number, key),
            14 => self.recovery(number, key),
            19 => self.nothing(number, key),
            _ => self.culprits(number, key, if number % 3 == 2 { 2 } else { 1 }),
        }
    }

    /// The windows that a system sees of it, through both cores.
    pub fn observe(&self, plan: &CasePlan) -> Vec<Observation> {
        self.world.run(&plan.faults(), self.world.start_of(plan.first), plan.windows)
    }

    /// What the judged windows would have been without each set of its culprits, on the same arrivals.
    pub fn truth(&self, plan: &CasePlan) -> CaseTruth {
        let target = self.world.target().get() as f64;
        let severity = self.latency_us(plan, &plan.culprits) / target;
        let world = |mask: usize| {
            let is_kept = |number: &usize| mask >> number & 1 == 0;
            let (kept, dropped): (Vec<usize>, Vec<usize>) = (0..plan.culprits.len()).partition(is_kept);
            let kept: Vec<FaultPlan> = kept.into_iter().map(|number| plan.culprits[number].clone()).collect();
            let names = dropped.into_iter().map(|number| ServiceId::sanitized(&plan.culprits[number].service));
            (names.collect(), self.latency_us(plan, &kept))
        };
        let worlds = (1..1_usize << plan.culprits.len()).map(world).collect();
        CaseTruth { severity, worlds }
    }

    /// Faults for a history of `windows` windows, and where they are. Three in four break the target.
    pub fn history(&self, windows: u64) -> (Vec<FaultPlan>, Vec<Episode>) {
        let (mut faults, mut episodes) = (Vec::new(), Vec::new());
        for number in 0..windows / EPISODE_EVERY {
            let key = self.key.child(HISTORY).child(number);
            let first = number * EPISODE_EVERY + EPISODE_EVERY - UNDER;
            let wanted = key.child(FACTOR).log_uniform(0.6, 12.0);
            let others = self.others(key, first, UNDER, &[]);
            let Some(fault) = self.fault(key, first, wanted, &[], TOLERANCE * 2.0) else { continue };
            let services = vec![ServiceId::sanitized(&fault.service)];
            episodes.push(Episode { first, windows: UNDER, services });
            faults.push(fault);
            faults.extend(others);
        }
        (faults, episodes)
    }

    fn first_of(number: u64) -> u64 {
        CASES_FROM + STRIDE * number
    }

    fn case(number: u64, story: Story, culprits: Vec<FaultPlan>, others: Vec<FaultPlan>) -> CasePlan {
        let first = Self::first_of(number);
        CasePlan { number, story, first, windows: BEFORE + UNDER, judged: JUDGED, culprits, others }
    }

    fn culprits(&self, number: u64, key: Key, count: u64) -> Option<CasePlan> {
        let first = Self::first_of(number) + BEFORE;
        let mut culprits: Vec<FaultPlan> = Vec::new();
        for place in 0..count {
            let key = key.child(CULPRIT).child(place);
            // One second culprit in four is not enough to break the target by itself.
            let is_weak = place > 0 && key.child(WEAK).uniform() < 0.25;
            let bin = key.child(BIN).index(BINS.len() - 1);
            let (low, high) = if is_weak { (0.6, 0.95) } else { (BINS[bin], BINS[bin + 1]) };
            let wanted = key.child(FACTOR).log_uniform(low, high);
            let taken: Vec<&str> = culprits.iter().map(|fault| fault.service.as_str()).collect();
            let fault = self.fault(key, first, wanted, &taken, TOLERANCE)?;
            culprits.push(fault);
        }
        let others = self.others(key, first, UNDER, &culprits);
        let plan = Self::case(number, Story::Culprits, culprits, others);
        let is_broken = self.latencies(&plan, &plan.culprits).iter().all(|latency| self.is_over(*latency));
        (is_broken && !self.is_over(self.latency_us(&plan, &[]))).then_some(plan)
    }

    fn demand(&self, number: u64, key: Key) -> Option<CasePlan> {
        let first = Self::first_of(number) + BEFORE;
        let (start, end) = self.span(first, UNDER);
        let entry = self.world.model().tiers[self.world.model().entry()].service.to_string();
        let surge = FaultPlan {
            kind: FaultKind::Surge,
            service: entry,
            callee: None,
            replica: None,
            start,
            end,
            severity: 1.0,
            role: Role::Real,
        };
        let wanted = key.child(FACTOR).log_uniform(BINS[1], BINS[3]);
        let mut surge = self.tune(surge, first, wanted, TOLERANCE)?;
        // More than any history has seen, or it would not be for a surge that the target is broken.
        surge.severity = surge.severity.max(self.unseen(start));
        let plan = Self::case(number, Story::Demand, Vec::new(), vec![surge]);
        let is_broken = self.latencies(&plan, &[]).iter().all(|latency| self.is_over(*latency));
        is_broken.then_some(plan)
    }

    /// How many times the rate at `at` is a quarter more than ever without a surge.
    fn unseen(&self, at: Micros) -> f64 {
        let shape = self.world.options().engine.shape;
        let highest = shape.level * (1.0 + shape.swing) * (1.0 + 3.0 * shape.noise) * (1.0 + shape.burst);
        let now = self.world.engine(&[], at).rate(at) / self.world.topology().load.nominal_qps;
        1.25 * highest / now.max(1e-6)
    }

    fn recovery(&self, number: u64, key: Key) -> Option<CasePlan> {
        let first = Self::first_of(number) + BEFORE;
        let wanted = key.child(FACTOR).log_uniform(BINS[3], BINS[4]);
        let mut fault = self.fault(key, first, wanted, &[], TOLERANCE * 2.0)?;
        (fault.start, fault.end) = self.span(first, UNDER - 1);
        let mut plan = Self::case(number, Story::Recovery, vec![fault], Vec::new());
        plan.judged = 1;
        let is_broken = self.latencies(&plan, &plan.culprits).iter().all(|latency| self.is_over(*latency));
        is_broken.then_some(plan)
    }

    fn nothing(&self, number: u64, key: Key) -> Option<CasePlan> {
        let first = Self::first_of(number) + BEFORE;
        let wanted = key.child(FACTOR).log_uniform(0.4, 0.85);
        let fault = self.fault(key, first, wanted, &[], TOLERANCE)?;
        let others = self.others(key, first, UNDER, std::slice::from_ref(&fault));
        let plan = Self::case(number, Story::Nothing, vec![fault], others);
        let is_met = self.latencies(&plan, &plan.culprits).iter().all(|latency| !self.is_over(*latency));
        is_met.then_some(plan)
    }

    /// A fault on a tier that is not `taken` which by itself brings the latency near `wanted` targets.
    fn fault(&self, key: Key, first: u64, wanted: f64, taken: &[&str], tolerance: f64) -> Option<FaultPlan> {
        let class = Class::drawn(key.child(CLASS).uniform());
        (0..DRAWS_MAX).find_map(|draw| {
            let key = key.child(DRAW).child(draw);
            let fits = |one: &&Candidate| one.class() == class && !taken.contains(&one.service.as_str());
            let fitting: Vec<&Candidate> = self.candidates.iter().filter(fits).collect();
            let candidate = fitting.get(key.index(fitting.len()))?;
            let (start, end) = self.span(first, UNDER);
            let plan = FaultPlan { replica: self.replica(candidate, key), ..candidate.plan(start, end) };
            self.tune(plan, first, wanted, tolerance)
        })
    }

    /// Which replica of the tier the fault strikes: one, where there are several.
    fn replica(&self, candidate: &Candidate, key: Key) -> Option<u32> {
        let tier = self.world.model().tiers.iter().find(|tier| tier.service.as_str() == candidate.service)?;
        (tier.replicas > 1).then(|| key.child(REPLICA).index(tier.replicas) as u32)
    }

    /// Decoys with p 0.5 and mild contention elsewhere with p 0.3.
    fn others(&self, key: Key, first: u64, windows: u64, culprits: &[FaultPlan]) -> Vec<FaultPlan> {
        let (start, end) = self.span(first, windows);
        let is_free = |one: &&Candidate| {
            one.kind.resource() != FaultKind::Slow.resource() && culprits.iter().all(|own| own.service != one.service)
        };
        let free: Vec<&Candidate> = self.candidates.iter().filter(is_free).collect();
        let mut others = Vec::new();
        if key.child(DECOY).uniform() < 0.5 {
            for number in 0..=key.child(DECOYS).index(2) as u64 {
                let key = key.child(DECOY).child(number);
                let Some(one) = free.get(key.index(free.len())) else { continue };
                let severity = key.child(FACTOR).log_uniform(2.0, 12.0);
                others.push(FaultPlan { severity, role: Role::Decoy, ..one.plan(start, end) });
            }
        }
        let contended: Vec<&&Candidate> = free.iter().filter(|one| one.kind.is_contention()).collect();
        let key = key.child(MILD);
        if let Some(one) = contended.get(key.index(contended.len())).filter(|_| key.uniform() < 0.3) {
            others.push(FaultPlan { severity: key.child(FACTOR).log_uniform(1.1, 1.6), ..one.plan(start, end) });
        }
        others
    }

    fn span(&self, first: u64, windows: u64) -> (Micros, Micros) {
        (self.world.start_of(first), self.world.start_of(first + windows))
    }

    /// `fault` as bad as brings the second window from `first` on to `wanted` targets; `None` if no severity does. Where
    /// the latency leaps, the nearest that was seen.
    fn tune(&self, fault: FaultPlan, first: u64, wanted: f64, tolerance: f64) -> Option<FaultPlan> {
        let (low, high) = fault.kind.severities();
        let mut severity = fault.kind.default_severity().clamp(low, high);
        let (mut below, mut above) = (low, None);
        let mut best: Option<(f64, f64)> = None;
        for _ in 0..PROBES_MAX {
            let tried = FaultPlan { severity, ..fault.clone() };
            let distance = (self.ratio(&tried, first) / wanted).ln();
            if best.is_none_or(|(nearest, _)| distance.abs() < nearest.abs()) {
                best = Some((distance, severity));
            }
            if distance.abs() <= tolerance || (distance < 0.0 && severity >= high) {
                break;
            }
            if distance < 0.0 {
                below = severity;
            } else {
                above = Some(severity);
            }
            severity = above.map_or((severity * STRIDE_UP).min(high), |above: f64| (below * above).sqrt());
        }
        let (distance, severity) = best?;
        let is_near = distance.abs() <= FAR || (wanted > 1.0 && distance > 0.0);
        is_near.then_some(FaultPlan { severity, ..fault })
    }

    /// Latency over the target in the second window from `first` on under `fault` alone.
    fn ratio(&self, fault: &FaultPlan, first: u64) -> f64 {
        let from = self.world.start_of(first);
        let windows = self.world.latencies_after(SETTLE, std::slice::from_ref(fault), from, 2);
        windows[1].latency_us.max(1.0) / self.world.target().get() as f64
    }

    fn latencies(&self, plan: &CasePlan, culprits: &[FaultPlan]) -> Vec<f64> {
        let faults: Vec<FaultPlan> = culprits.iter().chain(&plan.others).cloned().collect();
        let (from, skipped) = (plan.first + BEFORE, plan.windows - BEFORE - plan.judged);
        let windows = self.world.latencies(&faults, self.world.start_of(from), plan.windows - BEFORE);
        windows.iter().skip(skipped as usize).map(|window| window.latency_us.max(1.0)).collect()
    }

    /// Mean in logs over the judged windows, microseconds.
    fn latency_us(&self, plan: &CasePlan, culprits: &[FaultPlan]) -> f64 {
        let latencies = self.latencies(plan, culprits);
        (latencies.iter().map(|latency| latency.ln()).sum::<f64>() / latencies.len() as f64).exp()
    }

    fn is_over(&self, latency_us: f64) -> bool {
        latency_us > self.world.target().get() as f64
    }
}

/// Time before the windows of a probe.
const SETTLE: Micros = Micros::from_secs(1);
/// A severity that is too low is raised by this factor until one is too high.
const STRIDE_UP: f64 = 5.0;
/// Nothing nearer than this to what was wanted, in logs, is no success.
const FAR: f64 = 0.5;

const CASES: u64 = 101;
const HISTORY: u64 = 102;
const CULPRIT: u64 = 1;
const WEAK: u64 = 2;
const BIN: u64 = 3;
const FACTOR: u64 = 4;
const CLASS: u64 = 5;
const DRAW: u64 = 6;
const DECOY: u64 = 7;
const DECOYS: u64 = 8;
const MILD: u64 = 9;
const REPLICA: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{simulate::world::WorldOptions, topology::load};

    fn world() -> World {
        World::new(&load("demo").expect("built in"), WorldOptions::seeded(5))
    }

    #[test]
    fn cases_break_the_target_by_their_culprits_alone_and_come_again_alike() {
        let world = world();
        let cases = Cases::new(&world, 17);
        let plans: Vec<CasePlan> = (0..6).filter_map(|number| cases.plan(number)).collect();
        assert!(plans.len() >= 4, "{} of 6", plans.len());
        for plan in &plans {
            let truth = cases.truth(plan);
            assert!(truth.severity > 1.0, "{plan:?}");
            assert_eq!(truth.worlds.len(), (1 << plan.culprits.len()) - 1);
            let without_all = truth.worlds.last().expect("at least one").1;
            assert!(without_all <= world.target().get() as f64, "{without_all} us without {:?}", plan.culprits);
            assert_eq!(Cases::new(&world, 17).plan(plan.number).as_ref(), Some(plan));
        }
        let two = plans.iter().filter(|plan| plan.culprits.len() == 2);
        assert!(two.clone().all(|plan| plan.culprits[0].service != plan.culprits[1].service));
    }

    #[test]
    fn the_world_without_a_fault_is_the_world_that_never_had_it() {
        let world = world();
        let fault: FaultPlan = "slow:catalog@6..12x30".parse().expect("valid");
        let from = Micros::from_secs(6);
        assert_eq!(
            world.latencies(&[], from, 2),
            world.latencies(
                &[FaultPlan { start: Micros::from_secs(90), end: Micros::from_secs(99), ..fault.clone() }],
                from,
                2
            )
        );
        assert_ne!(world.latencies(&[], from, 2), world.latencies(&[fault], from, 2));
    }

    #[test]
    fn a_surge_is_more_than_any_history_has_seen() {
        let world = world();
        let cases = Cases::new(&world, 3);
        let plan = cases.plan(9).expect("the demo can be flooded");
        assert_eq!((plan.story, plan.culprits.len()), (Story::Demand, 0));
        let at = plan.others[0].start;
        let surging = world.engine(&[], at).rate(at) * plan.others[0].severity;
        let highest =
            (0..1_200).map(|s| world.engine(&[], Micros::ZERO).rate(Micros::from_secs(s))).fold(0.0, f64::max);
        assert!(surging > 1.1 * highest, "{surging} against {highest}");
    }

    #[test]
    fn a_history_has_a_fifth_of_its_windows_under_faults() {
        let world = world();
        let (faults, episodes) = Cases::new(&world, 4).history(56);
        let under: u64 = episodes.iter().map(|episode| episode.windows).sum();
        assert!((9..=12).contains(&under), "{under} of 56");
        assert!(faults.len() >= episodes.len());
        assert!(episodes.iter().all(|episode| !episode.services.is_empty()));
    }
}
