//! Training: healthy windows in, a model out. Services are independent given the data, so each is a task of its own that
//! the driver may run on any thread. See [`crate::retrain()`] for what is learnt again when something changed.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sage_common::{Generation, ServiceId, Slo, Timestamp};

use crate::{
    calibrate::{self, Fold},
    change::Change,
    frame::Frame,
    graph::Graph,
    gvae::CvaeOptions,
    model::{Model, ModelCard, ModelError, ModelKind},
    normal::{Regressors, ServiceNormal},
    normals::Normals,
    null::{GroupNull, Null},
    observation::{EdgeKey, Observation},
    pool,
    retrain::Scope,
    skeleton::Skeletons,
    task::{FOLDS, ServiceFit, ServiceTask, Shared, fold_range, mean},
};

/// Healthy windows below which nothing is learnt.
const WINDOWS_MIN: usize = 10;

/// Windows that normals are fitted on at most; 60 give the same result as a thousand. The newest half is kept whole.
const WINDOWS_MAX: usize = 480;

/// Windows with traces from which structures are learnt, the newest.
pub(crate) const SKELETON_WINDOWS: usize = 60;

/// Share of the nodes that must have reported for a window to be learnt from.
const COMPLETE_MIN: f32 = 0.5;

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
    /// Of those, used.
    pub windows_used: usize,
    /// Services that the model knows.
    pub services: usize,
    /// Of those, learnt now; the others were kept.
    pub learnt: usize,
    /// Services whose net beat the linear prior.
    pub nets: usize,
    /// [`Model::held_out_error`].
    pub held_out_error: f64,
    /// What had changed; empty when everything was learnt for the first time.
    pub changes: Vec<Change>,
    /// Nets that could not be trained, for people.
    pub problems: Vec<String>,
}

/// Trains a model on `history` (oldest first), on this thread. See [`TrainingPlan`] to spread the work.
///
/// # Errors
///
/// [`ModelError::TooFewWindows`] when too few windows met every target of `slos`, [`ModelError::NoCalls`].
pub fn train(
    history: &[impl Borrow<Observation>],
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
    /// Oldest first.
    pub(crate) windows: Vec<&'a Observation>,
    pub(crate) seen: usize,
    pub(crate) slos: &'a [Slo],
    pub(crate) previous: Option<&'a Model>,
    pub(crate) edges: BTreeSet<EdgeKey>,
    pub(crate) skeletons: Skeletons,
    pub(crate) shared: Arc<Shared>,
    pub(crate) scope: Scope,
}

impl<'a> TrainingPlan<'a> {
    /// Chooses the healthy windows of `history` (oldest first) and prepares them: every service is learnt, its net going
    /// on from the weights of `previous`.
    ///
    /// # Errors
    ///
    /// [`ModelError::TooFewWindows`], [`ModelError::NoCalls`].
    pub fn new(
        history: &'a [impl Borrow<Observation>],
        slos: &'a [Slo],
        previous: Option<&'a Model>,
        options: &TrainOptions,
    ) -> Result<Self, ModelError> {
        let healthy: Vec<&Observation> =
            history.iter().map(Borrow::borrow).filter(|window| is_healthy(window, slos)).collect();
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
        let frames = frames(&graph, &windows);
        let shared = Shared {
            regressors: Regressors::of(&frames),
            since: previous.map(|model| model.since.clone()).unwrap_or_default(),
            graph,
            frames,
            options: *options,
            held: BTreeMap::new(),
            accepted_only: BTreeSet::new(),
            accepted: BTreeSet::new(),
        };
        let scope = Scope::everything(previous);
        Ok(Self { windows, seen: history.len(), slos, previous, edges, skeletons, shared: Arc::new(shared), scope })
    }

    /// One task per service to learn, independent of each other.
    pub fn tasks(&self) -> Vec<ServiceTask> {
        let services = self.shared.graph.services().iter().enumerate();
        let learnt = services.filter(|(_, name)| self.scope.is_learnt(name));
        learnt.map(|(service, name)| self.scope.task(&self.shared, service, name, self.previous)).collect()
    }

    /// Puts the fits of all tasks together, in any order, and calibrates the nulls. What was not learnt again stays as it
    /// was.
    pub fn finish(self, fits: Vec<ServiceFit>) -> (Model, TrainingReport) {
        let learnt = fits.len();
        let (mut normals, mut cards) = self.kept();
        let mut folds = self.folds();
        let mut problems = Vec::new();
        for fit in fits {
            let name = fit.normal.service.clone();
            cards.insert(name.clone(), self.card(&fit));
            problems.extend(fit.problem);
            for (fold, normal) in folds.iter_mut().zip(fit.folds) {
                fold.normals.services.insert(name.clone(), normal);
            }
            normals.services.insert(name.clone(), fit.normal);
            match fit.net {
                Some(net) => normals.nets.insert(name, net),
                None => normals.nets.remove(&name),
            };
        }
        let (nulls, groups) = match self.previous.filter(|_| self.scope.is_partial()) {
            Some(previous) => self.refreshed(previous, &normals),
            None => self.calibrated(&folds),
        };
        let held_out_error = mean(cards.values().filter_map(|card| card.held_out_error));
        let report = TrainingReport {
            windows: self.seen,
            windows_used: self.windows.len(),
            services: cards.len(),
            learnt,
            nets: normals.nets.len(),
            held_out_error,
            changes: self.scope.changes.clone(),
            problems,
        };
        let known = |service: &ServiceId| normals.services.contains_key(service);
        let since = self.shared.since.iter().filter(|(service, _)| known(service));
        let model = Model {
            generation: self.previous.map_or(Generation(1), |previous| Generation(previous.generation().0 + 1)),
            offered_max: self.offered_max(),
            newest: self.newest(),
            since: since.map(|(service, time)| (service.clone(), *time)).collect(),
            edges: self.edges,
            skeletons: self.skeletons,
            normals,
            nulls,
            groups,
            cards: cards.into_values().collect(),
            held_out_error,
        };
        (model, report)
    }

    /// End of the newest window learnt from.
    fn newest(&self) -> Timestamp {
        self.windows.iter().map(|o| o.start + o.length).max().unwrap_or_default()
    }

    /// The most arrivals ever learnt from; a partial training does not forget those before its windows.
    fn offered_max(&self) -> Option<f64> {
        let before = self.previous.filter(|_| self.scope.is_partial()).and_then(Model::offered_max);
        let seen = self.windows.iter().map(|o| o.offered_per_s).filter(|rate| rate.is_finite());
        seen.chain(before).reduce(f64::max)
    }

    /// Normals and cards of services that are not learnt again and still there.
    fn kept(&self) -> (Normals, BTreeMap<ServiceId, ModelCard>) {
        let mut normals = Normals { regressors: Some(self.shared.regressors), ..Normals::default() };
        let mut cards = BTreeMap::new();
        if let Some(previous) = self.previous.filter(|_| self.scope.is_partial()) {
            let is_kept = |name: &ServiceId| self.shared.graph.service(name).is_some();
            normals.clone_from(previous.normals());
            normals.services.retain(|name, _| is_kept(name));
            normals.nets.retain(|name, _| is_kept(name));
            cards.extend(previous.cards.iter().map(|card| (card.service.clone(), card.clone())));
            cards.retain(|name, _| is_kept(name));
        }
        (normals, cards)
    }

    /// Nulls of everything, by what was left out.
    fn calibrated(&self, folds: &[Fold<'a>]) -> (BTreeMap<String, Null>, GroupNull) {
        let null = |slo: &Slo| calibrate::null(&self.edges, &self.skeletons, folds, slo, &self.shared.since);
        let nulls = self.slos.iter().map(|slo| (slo.name.clone(), null(slo))).collect();
        (nulls, calibrate::group_null(&self.edges, &self.skeletons, folds))
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
        ModelCard {
            service: service.clone(),
            windows: fit.windows,
            newest: self.newest(),
            held_out_error: fit.held_out_error,
            linear_error: fit.linear_error,
            kind: if fit.net.is_some() { ModelKind::Cvae } else { ModelKind::Linear },
            last_retrain: self.newest(),
            reason: format!("{}; {}", self.cause(&fit.normal), fit.note),
        }
    }

    /// Why a service was learnt, for people.
    fn cause(&self, normal: &ServiceNormal) -> String {
        let service = &normal.service;
        let before = self.previous.and_then(|model| model.normals().services.get(service));
        let keys = |normal: &ServiceNormal| normal.edges.iter().map(|edge| edge.key.clone()).collect::<BTreeSet<_>>();
        match (self.previous, before, self.scope.reason(service)) {
            (None, ..) => "first model".to_owned(),
            (Some(_), None, _) => "new service".to_owned(),
            (_, _, Some(reason)) => reason,
            (Some(_), Some(before), None) if keys(before) != keys(normal) => "its edges changed".to_owned(),
            _ => "newer windows".to_owned(),
        }
    }
}

/// One frame a window. Replicas are told apart in diagnosis only.
pub(crate) fn frames(graph: &Graph, windows: &[&Observation]) -> Vec<Frame> {
    let frame = |window: &&Observation| {
        let mut frame = Frame::of(graph, &[window])?;
        frame.services.iter_mut().for_each(|service| service.instances = Vec::new());
        Some(frame)
    };
    windows.iter().filter_map(frame).collect()
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
pub(crate) fn thin<'a>(healthy: &[&'a Observation]) -> Vec<&'a Observation> {
    if healthy.len() <= WINDOWS_MAX {
        return healthy.to_vec();
    }
    let (old, new) = healthy.split_at(healthy.len() - WINDOWS_MAX / 2);
    let kept = WINDOWS_MAX / 2;
    (0..kept).map(|i| old[i * old.len() / kept]).chain(new.iter().copied()).collect()
}
