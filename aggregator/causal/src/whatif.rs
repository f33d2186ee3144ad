//! What would the end-to-end latency be if something were otherwise: services, their resources or single metrics put back
//! to normal, in the windows of an incident or in the newest ones. The same scene, engines and error as in a diagnosis, so
//! that a culprit set to normal gives the verdict's own numbers.
//!
//! A resource of a service accounts for its own excess as far as the diagnosis holds that resource responsible; a metric
//! for its resource's part, as far as it strays among the metrics of that resource. Nothing here makes a world worse than
//! the observed one.

mod distribution;
mod fix;
mod setting;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use sage_common::{Generation, Micros, Slo, Timestamp};
use serde::Serialize;
use thiserror::Error;

pub use self::{
    distribution::Percentile,
    fix::{MinimumFix, Part},
    setting::{InvalidSetting, Level, RESOURCES, Setting, UnknownName},
};
use crate::{
    engine::{self, Recomposer},
    frame::Frame,
    model::Model,
    null::Null,
    observation::{EdgeKey, Observation},
    pool,
    scene::Scene,
    search::Question,
};

/// Newest windows that are pooled when no target is missed: as many calls as a short incident has.
const CALM_WINDOWS: usize = 4;

/// Why a question has no answer.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum WhatIfError {
    /// A name that nobody knows.
    #[error(transparent)]
    Unknown(#[from] UnknownName),
    /// There is nothing to change.
    #[error("the objective {0} saw no calls in these windows")]
    NoCalls(String),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WhatIf {
    /// The objective.
    pub slo: String,
    /// Its target, microseconds.
    pub target_us: Micros,
    /// Its percentile.
    pub percentile: f64,
    /// Start of the newest window looked at.
    pub newest_us: Timestamp,
    /// Windows looked at.
    pub windows: usize,
    /// What was set, as it was understood.
    pub set: Vec<String>,
    /// End-to-end latency at several percentiles, the objective's own among them, lowest first.
    pub distribution: Vec<Percentile>,
    /// P(target met) as it is.
    pub p_met_observed: f64,
    /// P(target met) with everything set.
    pub p_met: f64,
    /// What to know before believing it; for people.
    pub notes: Vec<String>,
    /// Which model answered.
    pub generation: Generation,
}

impl Model {
    /// The end-to-end latency of `slo` in `recent` (oldest window first), with and without `settings`.
    ///
    /// # Errors
    ///
    /// [`WhatIfError`]: an unknown service, metric or resource, or no calls.
    pub fn what_if(&self, recent: &[Observation], slo: &Slo, settings: &[Setting]) -> Result<WhatIf, WhatIfError> {
        with_stage(self, recent, slo, |stage| {
            let world = setting::resolve(stage, settings)?;
            Ok(stage.answer(&world))
        })?
    }

    /// The fewest services that must be normal for the target of `slo` to be met in `recent` with at least probability
    /// `p`, and for each whether its one resource at fault is enough.
    ///
    /// # Errors
    ///
    /// [`WhatIfError::NoCalls`].
    pub fn minimum_fix(&self, recent: &[Observation], slo: &Slo, p: f64) -> Result<MinimumFix, WhatIfError> {
        with_stage(self, recent, slo, |stage| fix::search(stage, p))
    }

    /// Every service that can be set: learnt, or seen in `recent`.
    pub fn services(&self, recent: &[Observation]) -> Vec<sage_common::ServiceId> {
        let learnt: BTreeSet<EdgeKey> = self.edges().collect();
        pool::graph(&learnt, self.skeletons(), &recent.iter().collect::<Vec<_>>()).services().to_vec()
    }
}

/// The observed world, ready to be changed.
struct Stage<'a> {
    model: &'a Model,
    slo: &'a Slo,
    windows: Vec<&'a Observation>,
    /// `ln us` of the objective's percentile.
    observed: f64,
    scene: Scene<'a>,
    question: Question<'a>,
}

/// A changed world: how much of its own excess each changed service loses (0 to 1), and what to say about it.
#[derive(Clone, Debug, Default, PartialEq)]
struct World {
    repairs: Vec<(usize, f64)>,
    set: Vec<String>,
    notes: Vec<String>,
}

fn with_stage<T>(
    model: &Model,
    recent: &[Observation],
    slo: &Slo,
    act: impl FnOnce(&Stage<'_>) -> T,
) -> Result<T, WhatIfError> {
    let none = || WhatIfError::NoCalls(slo.name.clone());
    let learnt: BTreeSet<EdgeKey> = model.edges().collect();
    let windows = windows(model, &learnt, recent, slo);
    let observed = pool::observed_log(&windows, slo).ok_or_else(none)?;
    let graph = pool::graph(&learnt, model.skeletons(), &windows);
    let frame = Frame::of(&graph, &windows).ok_or_else(none)?;
    let scene = Scene::new(&graph, model.normals(), &frame);
    let default_null = Null::default();
    let null = model.null(&slo.name).unwrap_or(&default_null);
    let target = (slo.target.get().max(1) as f64).ln();
    let question = Question { target, error: null.error(), null, windows: windows.len() };
    Ok(act(&Stage { model, slo, windows, observed, scene, question }))
}

/// The windows that a diagnosis answers from; the newest ones when no target is missed.
fn windows<'a>(
    model: &Model,
    learnt: &BTreeSet<EdgeKey>,
    recent: &'a [Observation],
    slo: &Slo,
) -> Vec<&'a Observation> {
    let newest: Vec<&Observation> = recent.iter().rev().take(1).collect();
    let graph = pool::graph(learnt, model.skeletons(), &newest);
    let mut windows = pool::choose(&graph, model.normals(), recent, slo).windows;
    if windows.is_empty() {
        let with_calls = recent.iter().rev().filter(|window| pool::latency_us(window, slo).is_some());
        windows = with_calls.take(CALM_WINDOWS).collect();
        windows.reverse();
    } else if windows.len() > 1 {
        // A diagnosis may settle on the newest alone; its percentile tells.
        let last = windows[windows.len() - 1..].to_vec();
        let percentile = |of: &[&Observation]| pool::observed_log(of, slo).map(micros);
        let told = Some(model.diagnose(recent, slo).observed);
        if percentile(&windows) != told && percentile(&last) == told {
            windows = last;
        }
    }
    windows
}

fn micros(log: f64) -> Micros {
    Micros::new(log.exp().round() as u64)
}

impl Stage<'_> {
    fn engine<'s>(&'s self, scene: &'s Scene<'s>, slo: &Slo, observed: f64) -> Box<dyn Recomposer + 's> {
        engine::choose(scene, self.model.skeletons(), &self.windows, slo, observed)
    }

    /// `ln us` of the objective's percentile in `world`.
    fn counterfactual(&self, world: &World) -> f64 {
        let scene = self.changed(world);
        self.engine(&scene, self.slo, self.observed).counterfactual(&world.services())
    }

    fn answer(&self, world: &World) -> WhatIf {
        let scene = self.changed(world);
        let distribution = distribution::of(self, &scene, &world.services());
        let counterfactual = self.engine(&scene, self.slo, self.observed).counterfactual(&world.services());
        let mut notes = world.notes.clone();
        notes.extend(self.engine(&scene, self.slo, self.observed).lacks());
        if self.question.null.is_empty() {
            notes.push("no healthy stretches to calibrate the probability with".to_owned());
        }
        WhatIf {
            slo: self.slo.name.clone(),
            target_us: self.slo.target,
            percentile: self.slo.percentile,
            newest_us: self.windows.last().map(|window| window.start).unwrap_or_default(),
            windows: self.windows.len(),
            set: world.set.clone(),
            distribution,
            p_met_observed: self.question.p_met(self.observed),
            p_met: self.question.p_met(counterfactual),
            notes,
            generation: self.model.generation(),
        }
    }

    /// The scene in which a whole repair of the world's services takes away no more than the world says.
    fn changed(&self, world: &World) -> Scene<'_> {
        let mut scene = self.scene.clone();
        if world.repairs.iter().all(|(_, share)| *share >= 1.0) {
            return scene;
        }
        let share =
            |service: usize| world.repairs.iter().find(|(of, _)| *of == service).map_or(0.0, |(_, share)| *share);
        let services = world.services();
        for number in 0..scene.edges.len() {
            let (callee, caller) = (scene.graph.callee(number), scene.graph.caller(number));
            let of_callee = share(callee) * scene.gap_share(number, &[callee]);
            let of_caller = caller.map_or(0.0, |caller| share(caller) * scene.gap_share(number, &[caller]));
            let (wanted, moved) = ((of_callee + of_caller).min(1.0), scene.gap_share(number, &services));
            let edge = &mut scene.edges[number];
            if let Some(gap) = edge.gap.as_mut().filter(|_| moved > 0.0) {
                gap.normal = towards(gap, wanted / moved);
            }
            if let Some(own) = edge.own.as_mut().filter(|_| services.contains(&callee)) {
                own.normal = towards(own, share(callee));
            }
        }
        scene
    }
}

impl World {
    fn services(&self) -> Vec<usize> {
        self.repairs.iter().map(|(service, _)| *service).collect()
    }

    /// `services` wholly normal.
    fn of(services: &[usize]) -> Self {
        Self { repairs: services.iter().map(|service| (*service, 1.0)).collect(), ..Self::default() }
    }
}

/// The curve that lies `share` of the way from observed to repaired, in microseconds.
fn towards(part: &crate::scene::Part, share: f64) -> crate::curve::Curve {
    let repaired = part.repaired();
    part.observed.map(|q, log| {
        let (observed, normal) = (log.exp(), repaired.logs()[q].exp());
        (observed - share.clamp(0.0, 1.0) * (observed - normal)).ln()
    })
}
