//! Closing the loop (figure 12, 5a): an application in which something breaks every other minute, under managers that act on
//! what they believe. Each acts through the same levers: the named resource of the named service is freed of whatever
//! disturbs it; processor time is given where no resource is named or the processor is. What was not needed is waste.

use anyhow::Result;
use sage_causal::{observation::Observation, verdict::Resource};
use sage_common::{ServiceId, Slo};

use crate::{
    eval::{
        measure::Tally,
        parallel,
        results::Row,
        run::{Plan, progress, table},
        seeds::derived,
        simulated::SimulatedSource,
        sources::Conditions,
        system::{Answer, System},
        view::is_violated,
    },
    simulate::{FaultPlan, Session},
};

/// Managers compared: those of the papers' figure, and Seer, which they leave out as alike.
const MANAGERS: [&str; 7] =
    ["sage", "offline-oracle", "autoscale-strict", "autoscale-relax", "causeinfer", "microscope", "seer"];

/// Windows of a run, 3 s each: a hundred minutes, or ten.
const WINDOWS: u64 = 2_000;
const QUICK_WINDOWS: u64 = 200;

/// One in so many faults of a history (they begin every 14 windows) happens, and lasts so many windows unless somebody
/// ends it.
const STRETCH: usize = 3;
const FAULT_LASTS: u64 = 25;

/// Windows that a manager looks back over, and between two of its actions: an action needs a window to take effect.
const LOOK_BACK: usize = 6;
const ACT_EVERY: u64 = 2;

/// An action gives so many times the processors, and a manager gives them back after so many windows of a met target.
const MORE_CORES: f64 = 2.0;
const GIVE_BACK_AFTER: u64 = 10;

const COLUMNS: [(&str, &str); 5] =
    [("all", "met"), ("all", "recover_windows"), ("all", "overshoot"), ("all", "extra_cores"), ("all", "wasted")];

/// Rows of `actuation`.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let mut all = Tally::default();
    for app in &plan.apps {
        let Some(source) = SimulatedSource::open(app, plan.seed, &Conditions::default()) else { continue };
        let names = MANAGERS.map(str::to_owned);
        let trained = plan.trained(&*plan.source(app, &Conditions::default())?, &names)?;
        let windows = if plan.is_quick { QUICK_WINDOWS } else { WINDOWS };
        let faults = faults(&source, windows, derived(plan.seed, 21));
        let bar = progress(trained.len() + 1, app);
        let run = |place: usize| {
            let manager = trained.get(place).map(|system| &**system);
            Managed::new(&source, &faults, manager).run(windows)
        };
        let runs = parallel::map(trained.len() + 1, run, || bar.inc(1));
        bar.finish_and_clear();
        for (place, run) in runs.iter().enumerate() {
            let name = trained.get(place).map_or("nobody", |system| system.name());
            for (measure, value) in &run.measured {
                all.add(app, name, "all", measure, *value);
            }
        }
    }
    let rows = all.rows("actuation", plan.seed);
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}

/// The faults of a run: those of a history, one in [`STRETCH`], each made to last.
fn faults(source: &SimulatedSource, windows: u64, seed: u64) -> Vec<FaultPlan> {
    let length = source.world().window();
    let longer = |fault: FaultPlan| FaultPlan { end: fault.start + length.saturating_mul(FAULT_LASTS), ..fault };
    source.faults(windows, seed).into_iter().step_by(STRETCH).map(longer).collect()
}

/// One application under one manager; under nobody when there is none.
struct Managed<'a> {
    manager: Option<&'a dyn System>,
    session: Session,
    slo: Slo,
    /// Faults that nobody has ended.
    faults: Vec<FaultPlan>,
    recent: Vec<Observation>,
    /// Services with more processors than they had.
    scaled: Vec<ServiceId>,
    services: usize,
    met_for: u64,
    broken_for: u64,
    measured: Vec<(&'static str, f64)>,
}

impl<'a> Managed<'a> {
    fn new(source: &SimulatedSource, faults: &[FaultPlan], manager: Option<&'a dyn System>) -> Self {
        let (session, slo, services) = source.session(faults);
        Self {
            manager,
            session,
            slo,
            faults: faults.to_vec(),
            recent: Vec::new(),
            scaled: Vec::new(),
            services,
            met_for: 0,
            broken_for: 0,
            measured: Vec::new(),
        }
    }

    fn run(mut self, windows: u64) -> Self {
        for number in 0..windows {
            let Some(window) = self.session.next_window() else { continue };
            self.account(&window);
            self.recent.push(window);
            if self.recent.len() > LOOK_BACK {
                self.recent.remove(0);
            }
            if self.broken_for > 0 && number % ACT_EVERY == 0 {
                self.act();
            }
            if self.met_for == GIVE_BACK_AFTER {
                self.give_back();
            }
        }
        self
    }

    fn account(&mut self, window: &Observation) {
        let is_broken = is_violated(window, &self.slo);
        let over = window.objectives.first().map_or(0.0, |o| o.latency_us / self.slo.target.get().max(1) as f64);
        self.measured.push(("met", f64::from(u8::from(!is_broken))));
        self.measured.push(("overshoot", (over - 1.0).max(0.0)));
        let extra = (MORE_CORES - 1.0) * self.scaled.len() as f64 / self.services.max(1) as f64;
        self.measured.push(("extra_cores", extra));
        if is_broken {
            (self.met_for, self.broken_for) = (0, self.broken_for + 1);
        } else {
            if self.broken_for > 0 {
                self.measured.push(("recover_windows", self.broken_for as f64));
            }
            (self.met_for, self.broken_for) = (self.met_for + 1, 0);
        }
    }

    fn act(&mut self) {
        let Some(manager) = self.manager else { return };
        let Answer { set, .. } = manager.diagnose(&self.recent, &self.slo);
        for (service, resource) in set {
            let is_useful = self.free(&service, resource);
            self.measured.push(("wasted", f64::from(u8::from(!is_useful))));
        }
    }

    /// Ends what disturbs `resource` of `service`; whether anything did. Processors are given besides where they are named
    /// or nothing is.
    fn free(&mut self, service: &ServiceId, resource: Option<Resource>) -> bool {
        let now = self.session.at();
        let is_hit = |fault: &FaultPlan| {
            let is_here = fault.is_active(now) && fault.service == service.as_str();
            is_here && resource.is_some() && fault.kind.resource() == resource
        };
        let before = self.faults.len();
        self.faults.retain(|fault| !is_hit(fault));
        let is_useful = self.faults.len() < before;
        if is_useful {
            self.session.set_faults(&self.faults);
        }
        let wants_cores = matches!(resource, None | Some(Resource::Cpu)) && !self.scaled.contains(service);
        if wants_cores && self.session.scale_cores(service.as_str(), MORE_CORES) {
            self.scaled.push(service.clone());
        }
        is_useful
    }

    fn give_back(&mut self) {
        for service in std::mem::take(&mut self.scaled) {
            self.session.scale_cores(service.as_str(), 1.0);
        }
    }
}
