//! Training: healthy windows in, a model out. Services are independent given the data, so each is a task of its own that
//! the driver may run on any thread.

use std::{collections::BTreeSet, sync::Arc};

use sage_common::{Generation, ServiceId, Slo, Timestamp};

use crate::{
    calibrate::{self, Fold},
    error::mean_error,
    frame::Frame,
    graph::Graph,
    gvae::{CvaeOptions, ServiceNet},
    inputs::NetInputs,
    model::{Model, ModelCard, ModelError, ModelKind},
    normal::{Regressors, ServiceNormal},
    normals::{Normals, PromotedNet},
    observation::{EdgeKey, Observation},
    pool,
    skeleton::Skeletons,
};

/// Healthy windows below which nothing is learnt.
const WINDOWS_MIN: usize = 10;

/// Windows that normals are fitted on at most; 60 give the same result as a thousand. The newest half is kept whole.
const WINDOWS_MAX: usize = 480;

/// Contiguous parts of the history, each left out once.
const FOLDS: usize = 4;

/// Windows with traces from which structures are learnt, the newest.
const SKELETON_WINDOWS: usize = 60;

/// Share of the nodes that must have reported for a window to be learnt from.
const COMPLETE_MIN: f32 = 0.5;

/// A net must beat the linear prior by this factor on windows neither has seen.
const PROMOTION: f64 = 0.98;

/// How to train.
#[derive(Clone, Copy, Debug)]
pub struct TrainOptions {
    /// The same seed and history give the same model.
    pub seed: u64,
    /// The nets' own options; their seed is derived from `seed` and the service's name.
    pub cvae: CvaeOptions,
    /// Healthy windows below which no nets are trained and the linear prior serves alone.
    pub cvae_windows_min: usize,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self { seed: 0, cvae: CvaeOptions::default(), cvae_windows_min: 120 }
    }
}

/// What training did.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingReport {
    /// Windows handed over.
    pub windows: usize,
    /// Of those, healthy and used.
    pub windows_used: usize,
    /// Services learnt.
    pub services: usize,
    /// Services whose net beat the linear prior.
    pub nets: usize,
    /// [`Model::held_out_error`].
    pub held_out_error: f64,
    /// Nets that could not be trained, for people.
    pub problems: Vec<String>,
}

/// Trains a model on `history` (oldest first), on this thread. See [`TrainingPlan`] to spread the work.
///
/// # Errors
///
/// [`ModelError::TooFewWindows`] when too few windows met every target of `slos`, [`ModelError::NoCalls`].
pub fn train(
    history: &[Observation],
    slos: &[Slo],
    previous: Option<&Model>,
    options: &TrainOptions,
) -> Result<(Model, TrainingReport), ModelError> {
    let plan = TrainingPlan::new(history, slos, previous, options)?;
    let fits = plan.tasks().iter().map(ServiceTask::run).collect();
    Ok(plan.finish(fits))
}

/// A training in three steps: prepare, fit every service, put together.
#[derive(Debug)]
pub struct TrainingPlan<'a> {
    windows: Vec<&'a Observation>,
    seen: usize,
    slos: &'a [Slo],
    previous: Option<&'a Model>,
    edges: BTreeSet<EdgeKey>,
    skeletons: Skeletons,
    newest: Timestamp,
    shared: Arc<Shared>,
}

/// What every task reads.
#[derive(Debug)]
struct Shared {
    graph: Graph,
    frames: Vec<Frame>,
    regressors: Regressors,
    options: TrainOptions,
}

impl Shared {
    /// Frames outside and inside fold number `fold`.
    fn split(&self, fold: usize) -> (Vec<&Frame>, Vec<&Frame>) {
        let range = fold_range(self.frames.len(), fold);
        let side = |is_inside: bool| {
            let frames = self.frames.iter().enumerate().filter(|(index, _)| range.contains(index) == is_inside);
            frames.map(|(_, frame)| frame).collect()
        };
        (side(false), side(true))
    }
}

/// Fits one service.
#[derive(Clone, Debug)]
pub struct ServiceTask {
    shared: Arc<Shared>,
    service: usize,
    previous: Option<PromotedNet>,
}

/// What one task found.
#[derive(Debug)]
pub struct ServiceFit {
    normal: ServiceNormal,
    folds: Vec<ServiceNormal>,
    net: Option<PromotedNet>,
    held_out_error: Option<f64>,
    linear_error: Option<f64>,
    note: String,
    problem: Option<String>,
}

impl<'a> TrainingPlan<'a> {
    /// Chooses the healthy windows of `history` (oldest first) and prepares them.
    ///
    /// # Errors
    ///
    /// [`ModelError::TooFewWindows`], [`ModelError::NoCalls`].
    pub fn new(
        history: &'a [Observation],
        slos: &'a [Slo],
        previous: Option<&'a Model>,
        options: &TrainOptions,
    ) -> Result<Self, ModelError> {
        let healthy: Vec<&Observation> = history.iter().filter(|window| is_healthy(window, slos)).collect();
        if healthy.len() < WINDOWS_MIN {
            return Err(ModelError::TooFewWindows { have: healthy.len(), want: WINDOWS_MIN });
        }
        let windows = thin(&healthy);
        let edges: BTreeSet<EdgeKey> = windows.iter().flat_map(|o| o.edges.iter().map(|e| e.key.clone())).collect();
        if edges.is_empty() {
            return Err(ModelError::NoCalls);
        }
        let recent = &windows[windows.len().saturating_sub(SKELETON_WINDOWS)..];
        let skeletons = Skeletons::learn(recent.iter().copied());
        let graph = pool::graph(&edges, &skeletons, recent);
        let frames: Vec<Frame> = windows.iter().filter_map(|window| Frame::of(&graph, &[window])).collect();
        let regressors = Regressors::of(&frames);
        let newest = windows.iter().map(|o| o.start + o.length).max().unwrap_or_default();
        let shared = Arc::new(Shared { graph, frames, regressors, options: *options });
        Ok(Self { windows, seen: history.len(), slos, previous, edges, skeletons, newest, shared })
    }

    /// One task per service, independent of each other.
    pub fn tasks(&self) -> Vec<ServiceTask> {
        let task = |(service, name): (usize, &ServiceId)| ServiceTask {
            shared: Arc::clone(&self.shared),
            service,
            previous: self.previous.and_then(|model| model.normals().nets.get(name)).cloned(),
        };
        self.shared.graph.services().iter().enumerate().map(task).collect()
    }

    /// Puts the fits of all tasks together, in any order, and calibrates the nulls.
    pub fn finish(self, fits: Vec<ServiceFit>) -> (Model, TrainingReport) {
        let mut normals = Normals { regressors: Some(self.shared.regressors), ..Normals::default() };
        let mut folds: Vec<Fold<'a>> = self.folds();
        let (mut cards, mut problems) = (Vec::new(), Vec::new());
        for fit in fits {
            let name = fit.normal.service.clone();
            cards.push(self.card(&fit));
            problems.extend(fit.problem);
            for (fold, normal) in folds.iter_mut().zip(fit.folds) {
                fold.normals.services.insert(name.clone(), normal);
            }
            normals.services.insert(name.clone(), fit.normal);
            if let Some(net) = fit.net {
                normals.nets.insert(name, net);
            }
        }
        cards.sort_by(|a, b| a.service.cmp(&b.service));
        let nulls =
            self.slos.iter().map(|slo| (slo.name.clone(), calibrate::null(&self.edges, &self.skeletons, &folds, slo)));
        let nulls = nulls.collect();
        let groups = calibrate::group_null(&self.edges, &self.skeletons, &folds);
        let held_out_error = mean(cards.iter().filter_map(|card| card.held_out_error));
        let report = TrainingReport {
            windows: self.seen,
            windows_used: self.windows.len(),
            services: cards.len(),
            nets: normals.nets.len(),
            held_out_error,
            problems,
        };
        let model = Model {
            generation: self.previous.map_or(Generation(1), |previous| Generation(previous.generation().0 + 1)),
            offered_max: self.windows.iter().map(|o| o.offered_per_s).filter(|v| v.is_finite()).reduce(f64::max),
            edges: self.edges,
            skeletons: self.skeletons,
            normals,
            nulls,
            groups,
            newest: self.newest,
            cards,
            held_out_error,
        };
        (model, report)
    }

    fn folds(&self) -> Vec<Fold<'a>> {
        let fold = |fold: usize| Fold {
            normals: Normals { regressors: Some(self.shared.regressors), ..Normals::default() },
            windows: self.windows[fold_range(self.windows.len(), fold)].to_vec(),
        };
        (0..FOLDS).map(fold).collect()
    }

    fn card(&self, fit: &ServiceFit) -> ModelCard {
        let service = &fit.normal.service;
        let before = self.previous.and_then(|model| model.normals().services.get(service));
        let keys = |normal: &ServiceNormal| normal.edges.iter().map(|edge| edge.key.clone()).collect::<BTreeSet<_>>();
        let cause = match (self.previous, before) {
            (None, _) => "first model",
            (Some(_), None) => "new service",
            (Some(_), Some(before)) if keys(before) != keys(&fit.normal) => "its edges changed",
            _ => "newer windows",
        };
        ModelCard {
            service: service.clone(),
            windows: self.windows.len(),
            newest: self.newest,
            held_out_error: fit.held_out_error,
            linear_error: fit.linear_error,
            kind: if fit.net.is_some() { ModelKind::Cvae } else { ModelKind::Linear },
            last_retrain: self.newest,
            reason: format!("{cause}; {}", fit.note),
        }
    }
}

impl ServiceTask {
    /// Which service it fits.
    pub fn service(&self) -> &ServiceId {
        &self.shared.graph.services()[self.service]
    }

    /// Fits the service: linear prior on everything and on everything but each fold; a net, promoted when it is better on
    /// the newest fold, which neither has seen.
    pub fn run(&self) -> ServiceFit {
        let Shared { graph, frames, regressors, options } = &*self.shared;
        let all: Vec<&Frame> = frames.iter().collect();
        let fit = |frames: &[&Frame]| ServiceNormal::fit(graph, self.service, frames, *regressors);
        let folds: Vec<ServiceNormal> = (0..FOLDS).map(|fold| fit(&self.shared.split(fold).0)).collect();
        let errors = folds.iter().enumerate().filter_map(|(fold, normal)| {
            mean_error(&self.alone(normal.clone()), graph, &self.shared.split(fold).1, &[self.service])
        });
        let linear_error = Some(mean(errors)).filter(|error| error.is_finite());
        let mut this = ServiceFit {
            normal: fit(&all),
            folds,
            net: None,
            held_out_error: linear_error,
            linear_error,
            note: format!("linear: fewer than {} windows for a net", options.cvae_windows_min),
            problem: None,
        };
        if frames.len() >= options.cvae_windows_min {
            self.try_net(&mut this);
        }
        this
    }

    /// Trains a net on all but the newest fold and compares it there with the linear prior of the same windows.
    fn try_net(&self, fit: &mut ServiceFit) {
        let graph = &self.shared.graph;
        let (learning, held_out) = self.shared.split(FOLDS - 1);
        let mut normals = self.alone(fit.folds[FOLDS - 1].clone());
        for caller in graph.ins(self.service).iter().filter_map(|edge| graph.caller(*edge)) {
            let name = graph.services()[caller].clone();
            let normal = || ServiceNormal::fit(graph, caller, &learning, self.shared.regressors);
            normals.services.entry(name).or_insert_with(normal);
        }
        let linear = mean_error(&normals, graph, &held_out, &[self.service]);
        let net = match self.train_net(&normals, &learning) {
            Ok(net) => net,
            Err(error) => {
                fit.note = "linear: its net could not be trained".to_owned();
                fit.problem = Some(format!("{}: {error}", self.service()));
                return;
            }
        };
        normals.nets.insert(self.service().clone(), net.clone());
        let error = mean_error(&normals, graph, &held_out, &[self.service]);
        match (error, linear) {
            (Some(error), Some(linear)) if error < PROMOTION * linear => {
                fit.note = format!("net promoted: {error:.4} against {linear:.4} on unseen windows");
                fit.held_out_error = Some(error);
                fit.net = Some(net);
            }
            (Some(error), Some(linear)) => {
                fit.note = format!("linear: its net had {error:.4} against {linear:.4} on unseen windows");
            }
            _ => "linear: nothing to compare its net on".clone_into(&mut fit.note),
        }
    }

    fn train_net(&self, normals: &Normals, learning: &[&Frame]) -> Result<PromotedNet, crate::gvae::GvaeError> {
        let graph = &self.shared.graph;
        let normal = &normals.services[self.service()];
        let inputs = NetInputs::of(normals, normal, graph, self.service);
        let (x, y) = (inputs.x(normals, graph, learning)?, inputs.y(graph, learning)?);
        let order: Vec<usize> = (0..learning.len()).collect();
        let previous =
            self.previous.as_ref().filter(|previous| previous.inputs == inputs).map(|previous| &previous.net);
        let seed = self.shared.options.seed ^ xxhash_rust::xxh3::xxh3_64(self.service().as_str().as_bytes());
        let options = CvaeOptions { seed, ..self.shared.options.cvae };
        Ok(PromotedNet { net: ServiceNet::train(&x, &y, &order, previous, &options)?, inputs })
    }

    fn alone(&self, normal: ServiceNormal) -> Normals {
        Normals {
            regressors: Some(self.shared.regressors),
            services: [(normal.service.clone(), normal)].into(),
            ..Normals::default()
        }
    }
}

/// Whether a window met every target that it can be judged by, and can be judged by one.
pub(crate) fn is_healthy(window: &Observation, slos: &[Slo]) -> bool {
    let is_judged = slos.is_empty() || slos.iter().any(|slo| pool::latency_us(window, slo).is_some());
    let is_met = !slos.iter().any(|slo| pool::is_violated(window, slo));
    is_judged && is_met && is_complete(window)
}

/// Whether enough of the fleet reported for a window to be learnt from.
pub(crate) fn is_complete(window: &Observation) -> bool {
    window.completeness >= COMPLETE_MIN && window.length > sage_common::Micros::ZERO
}

/// At most [`WINDOWS_MAX`] windows: the newest half of them whole, the rest evenly from before.
fn thin<'a>(healthy: &[&'a Observation]) -> Vec<&'a Observation> {
    if healthy.len() <= WINDOWS_MAX {
        return healthy.to_vec();
    }
    let (old, new) = healthy.split_at(healthy.len() - WINDOWS_MAX / 2);
    let kept = WINDOWS_MAX / 2;
    (0..kept).map(|i| old[i * old.len() / kept]).chain(new.iter().copied()).collect()
}

fn fold_range(count: usize, fold: usize) -> std::ops::Range<usize> {
    fold * count / FOLDS..(fold + 1) * count / FOLDS
}

/// Mean; not a number when there are none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (total, count) = values.fold((0.0, 0_usize), |(total, count), value| (total + value, count + 1));
    total / count as f64
}
