//! Cases from the simulator: the applications of the topology files in virtual time, with the truth from the same arrivals
//! run again without each fault.

use sage_common::{InstanceId, Micros, ServiceId, Slo};

use super::{
    case::{Case, CaseSource, Expected, History, Injected, Truth, acceptable},
    seeds::derived,
    sources::Conditions,
    system::Label,
};
use crate::{
    simulate::{CasePlan, Cases, FaultPlan, Role, Session, Story, World, WorldOptions},
    topology::{self, Topology},
};

/// The applications.
pub const APPS: [&str; 5] = ["chain", "fanout", "social_network", "media_service", "hotel_reservation"];

/// Traces that are kept of a window: recomposition needs hundreds, and a history of hundreds of windows must fit in memory.
const TRACES: usize = 256;

/// Parts of a source's seed: of its arrivals and draws, and of its faults.
const WORLD_PART: u64 = 0;
const CASES_PART: u64 = 1;

/// One application under one seed.
pub struct SimulatedSource {
    app: String,
    /// As it is observed.
    world: World,
    /// As it is, every request counted: the truth.
    whole: World,
    seed: u64,
}

impl SimulatedSource {
    /// `app` under `conditions`; `None` when there is no such application.
    pub fn open(app: &str, seed: u64, conditions: &Conditions) -> Option<Self> {
        let app = APPS.into_iter().find(|known| *known == app)?;
        Some(Self::of(app, &topology::load(app).ok()?, seed, conditions, None))
    }

    /// The application of `topology`, called `app`, under `target` or the one that its healthy windows give.
    pub fn of(app: &str, topology: &Topology, seed: u64, conditions: &Conditions, target: Option<Micros>) -> Self {
        let mut options = WorldOptions { sample_traces: TRACES, ..WorldOptions::seeded(derived(seed, WORLD_PART)) };
        options.placement.replicas =
            topology.services.iter().map(|service| (service.id.clone(), conditions.replicas)).collect();
        let mut whole = World::new(topology, options.clone());
        if let Some(target) = target {
            whole = whole.with_target(target);
        }
        options.engine.sampling = conditions.traced;
        // Sampling does not change what the application owes.
        let world = World::new(topology, options).with_target(whole.target());
        Self { app: app.to_owned(), world, whole, seed }
    }

    /// The application as it is observed.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The application from its first window on under `faults`, the target, and how many services it has.
    pub fn session(&self, faults: &[FaultPlan]) -> (Session, Slo, usize) {
        (self.world.session(faults, Micros::ZERO), self.slo(), self.world.model().tiers.len())
    }

    /// Faults for so many windows, each made to break the target.
    pub fn faults(&self, windows: u64, seed: u64) -> Vec<FaultPlan> {
        let (faults, _) = Cases::new(&self.whole, seed).history(windows);
        faults.into_iter().filter(|fault| fault.role == Role::Real).collect()
    }

    fn cases(&self) -> Cases<'_> {
        Cases::new(&self.whole, derived(self.seed, CASES_PART))
    }

    fn truth(&self, cases: &Cases<'_>, plan: &CasePlan) -> Truth {
        let expected = match plan.story {
            Story::Culprits => Expected::Culprits,
            Story::Demand => Expected::Demand,
            Story::Nothing => Expected::Nothing,
            Story::Recovery => Expected::Recovery,
        };
        let truth = cases.truth(plan);
        let is_asked = expected == Expected::Culprits;
        Truth {
            injected: plan.culprits.iter().filter_map(injected).collect(),
            acceptable: if is_asked { acceptable(&truth.worlds, self.target_us()) } else { Vec::new() },
            expected,
            severity: truth.severity,
            worlds: if is_asked { truth.worlds } else { Vec::new() },
        }
    }

    fn target_us(&self) -> f64 {
        self.whole.target().get() as f64
    }
}

impl CaseSource for SimulatedSource {
    fn app(&self) -> &str {
        &self.app
    }

    fn slo(&self) -> Slo {
        self.world.slo()
    }

    fn history(&self, windows: usize) -> History {
        let (faults, episodes) = self.cases().history(windows as u64);
        let label =
            |window: u64, services: &[ServiceId]| Label { window: window as usize, services: services.to_vec() };
        let of = |first: u64, count: u64| first..first + count;
        let labels = episodes.iter().flat_map(|e| of(e.first, e.windows).map(|window| label(window, &e.services)));
        History {
            labels: labels.filter(|label| label.window < windows).collect(),
            windows: self.world.run(&faults, Micros::ZERO, windows as u64),
        }
    }

    fn case(&self, number: u64) -> Option<Case> {
        let cases = self.cases();
        let plan = cases.plan(number)?;
        let truth = self.truth(&cases, &plan);
        let recent = self.world.run(&plan.faults(), self.world.start_of(plan.first), plan.windows);
        (recent.len() == plan.windows as usize).then_some(Case { number, recent, truth })
    }
}

fn injected(fault: &FaultPlan) -> Option<Injected> {
    Some(Injected {
        service: ServiceId::sanitized(&fault.service),
        resource: fault.kind.resource()?,
        kind: fault.kind.name().to_owned(),
        instance: fault.replica.map(|number| InstanceId::sanitized(&format!("{}-{number}", fault.service))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::view::is_violated;

    #[test]
    fn a_simulated_case_breaks_the_target_and_its_repair_restores_it() {
        let source = SimulatedSource::open("fanout", 11, &Conditions::default()).expect("known");
        let case = (0..6).find_map(|number| source.case(number)).expect("one of six can be made");
        assert!(is_violated(case.recent.last().expect("windows"), &source.slo()));
        let (everybody, latency) = case.truth.worlds.last().expect("worlds");
        assert_eq!(everybody.len(), case.truth.injected.len());
        assert!(*latency <= source.target_us() && case.truth.severity > 1.0, "{:?}", case.truth);
        assert!(!case.truth.acceptable.is_empty());
        assert_eq!(source.case(case.number).expect("made once").recent, case.recent);
    }

    #[test]
    fn a_simulated_history_is_whole_and_its_labels_stand_where_it_suffers() {
        let source = SimulatedSource::open("fanout", 11, &Conditions::default()).expect("known");
        let history = source.history(28);
        assert_eq!(history.windows.len(), 28);
        assert!(!history.labels.is_empty() && history.labels.len() <= 6);
        let is_broken = |window: usize| is_violated(&history.windows[window], &source.slo());
        let healthy = (0..28).filter(|window| !is_broken(*window)).count();
        assert!(healthy >= 18, "{healthy} of 28");
    }
}
