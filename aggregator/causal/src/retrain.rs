//! Learning again, and only what changed. Composition has no weights, so a changed graph costs new structures and the
//! normals of what is new; a service that behaves otherwise is learnt from the windows since then, and the services above
//! it, whose metrics follow it, go on from what they know.
//!
//! Source: Sage (ASPLOS'21), section 4.4, selective partial and incremental retraining.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sage_common::{ServiceId, Slo, Timestamp};

use crate::{
    calibrate,
    change::{self, Change, ChangeKind, Changes, STEP_WINDOWS},
    frame::Frame,
    graph::Graph,
    model::{Model, ModelError},
    normal::CurveNormal,
    normals::Normals,
    null::{GroupNull, Null},
    observation::{EdgeKey, Observation},
    pool,
    skeleton::Skeletons,
    task::{NetSource, ServiceFit, ServiceTask, Shared},
    train::{SKELETON_WINDOWS, TrainOptions, TrainingPlan, TrainingReport, frames, is_complete, is_healthy, thin},
};

/// Windows on which the nulls of changed services are taken anew, the newest.
const REFRESH_WINDOWS: usize = 12;

/// How far the noise of a service may be taken to have followed its level.
const NOISE_RATIO: (f64, f64) = (0.2, 20.0);

/// What to do with what was learnt before.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Policy {
    /// Everything anew, from fresh weights; the model before only says since when its windows hold.
    FromScratch,
    /// Everything again, nets from their weights.
    Incremental,
    /// Only what changed and what stands above it, nets from their weights.
    #[default]
    PartialIncremental,
}

/// How to retrain.
#[derive(Clone, Debug, Default)]
pub struct RetrainOptions {
    /// How to train what is trained.
    pub train: TrainOptions,
    /// What to do with the rest.
    pub policy: Policy,
    /// Services whose behaviour since a time an operator took as normal: windows from then on teach them, even those that
    /// missed a target.
    pub accepted: BTreeMap<ServiceId, Timestamp>,
    /// Whether to learn even when nothing changed: the rare whole training that no test of change can miss.
    pub is_forced: bool,
}

/// Whether a change may be learnt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Readiness {
    /// Now.
    Ready,
    /// Not by itself; but what is above a service that is learnt at a new level follows it.
    Early,
    /// Not at all: it looks like a fault.
    Barred,
}

/// Retrains on `history` (oldest first), on this thread; `None` when nothing changed. See [`TrainingPlan::retrain`] to
/// spread the work.
///
/// # Errors
///
/// As [`TrainingPlan::retrain`].
pub fn retrain(
    history: &[impl Borrow<Observation>],
    slos: &[Slo],
    previous: &Model,
    options: &RetrainOptions,
) -> Result<Option<(Model, TrainingReport)>, ModelError> {
    let Some(plan) = TrainingPlan::retrain(history, slos, previous, options)? else { return Ok(None) };
    let fits: Vec<ServiceFit> = plan.tasks().iter().map(ServiceTask::run).collect();
    Ok(Some(plan.finish(fits)))
}

/// What a training covers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    /// Services to learn; `None` for all.
    learnt: Option<BTreeSet<ServiceId>>,
    /// Why, as far as something changed.
    pub(crate) changes: Vec<Change>,
    /// What becomes of earlier weights.
    policy: Option<Policy>,
    /// End of what the previous model has learnt from.
    newest: Timestamp,
}

impl Scope {
    /// All services, nets going on from the weights of `previous` in a whole training.
    pub(crate) fn everything(previous: Option<&Model>) -> Self {
        Self { newest: previous.map(|model| model.newest).unwrap_or_default(), ..Self::default() }
    }

    /// Whether what is not learnt is kept.
    pub(crate) fn is_partial(&self) -> bool {
        self.learnt.is_some()
    }

    /// Whether `service` is learnt.
    pub(crate) fn is_learnt(&self, service: &ServiceId) -> bool {
        self.learnt.as_ref().is_none_or(|learnt| learnt.contains(service))
    }

    /// Why `service` is learnt, when something changed.
    pub(crate) fn reason(&self, service: &ServiceId) -> Option<String> {
        let own = self.changes.iter().find(|change| change.service == *service);
        match own {
            Some(Change { kind, detail, .. }) => Some(format!("{}: {detail}", kind.name())),
            None if self.learnt.is_some() => Some("a service below it changed".to_owned()),
            None => None,
        }
    }

    /// The task of one service.
    pub(crate) fn task(
        &self,
        shared: &Arc<Shared>,
        service: usize,
        name: &ServiceId,
        previous: Option<&Model>,
    ) -> ServiceTask {
        let net = previous.and_then(|model| model.normals().nets.get(name)).cloned();
        let is_changed = self.changes.iter().any(|change| change.service == *name);
        let net = match (self.policy, net) {
            (None, Some(net)) => NetSource::Before(net),
            (None | Some(Policy::FromScratch), _) => NetSource::Fresh,
            // At another level, a service's old weights speak of another service.
            (Some(_), _) if self.is_another(name) => NetSource::Fresh,
            (Some(_), Some(net)) => NetSource::Warm(net, self.newest),
            (Some(Policy::PartialIncremental), None) if !is_changed => NetSource::Without,
            (Some(_), None) => NetSource::Fresh,
        };
        let before = previous.and_then(|model| model.normals().services.get(name)).cloned();
        ServiceTask {
            shared: Arc::clone(shared),
            service,
            net,
            before,
            is_retraining: self.policy.is_some(),
            is_partial: self.is_partial(),
        }
    }

    /// Whether the normal of `service` begins anew.
    fn is_another(&self, service: &ServiceId) -> bool {
        self.changes.iter().any(|change| change.service == *service && change.since.is_some())
    }
}

impl ChangeKind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::NewService => "new service",
            Self::Calls => "its calls changed",
            Self::Step => "new level",
            Self::Drift => "drift",
            Self::Young => "more windows",
        }
    }
}

impl<'a> TrainingPlan<'a> {
    /// Finds what changed between `previous` and `history` (oldest first) and plans what is learnt again; `None` when
    /// nothing changed.
    ///
    /// # Errors
    ///
    /// [`ModelError::TooFewWindows`] when not even three windows can be learnt from.
    pub fn retrain(
        history: &'a [impl Borrow<Observation>],
        slos: &'a [Slo],
        previous: &'a Model,
        options: &RetrainOptions,
    ) -> Result<Option<Self>, ModelError> {
        Self::retrain_when(history, slos, previous, options, |_| Readiness::Ready)
    }

    /// [`retrain`](Self::retrain), of those changes alone that `readiness` lets through. Services at a level that must wait
    /// learn nothing from their windows since it began.
    ///
    /// # Errors
    ///
    /// As [`retrain`](Self::retrain).
    pub fn retrain_when(
        history: &'a [impl Borrow<Observation>],
        slos: &'a [Slo],
        previous: &'a Model,
        options: &RetrainOptions,
        readiness: impl Fn(&Change) -> Readiness,
    ) -> Result<Option<Self>, ModelError> {
        let teaches = |window: &&Observation| {
            is_healthy(window, slos)
                || (is_complete(window) && options.accepted.values().any(|since| window.start >= *since))
        };
        let windows = thin(&history.iter().map(Borrow::borrow).filter(teaches).collect::<Vec<_>>());
        if windows.len() < STEP_WINDOWS {
            return Err(ModelError::TooFewWindows { have: windows.len(), want: STEP_WINDOWS });
        }
        let draft = Draft::new(previous, windows, slos, options);
        let mut changes = draft.changes();
        let held = draft.held_back(&mut changes, readiness);
        let is_due = options.is_forced || !changes.all.is_empty() || !changes.gone.is_empty();
        Ok(is_due.then(|| draft.plan(changes, held, history.len())))
    }

    /// The nulls of `previous`, those of changed services taken anew on the newest windows.
    pub(crate) fn refreshed(&self, previous: &Model, normals: &Normals) -> (BTreeMap<String, Null>, GroupNull) {
        let graph = &self.shared.graph;
        let is_known = |service: &ServiceId| graph.service(service).is_some();
        let changed: BTreeSet<ServiceId> = self.scope.changes.iter().map(|change| change.service.clone()).collect();
        let first = self.windows.len().saturating_sub(REFRESH_WINDOWS);
        let refresh = calibrate::Refresh {
            edges: &self.edges,
            skeletons: &self.skeletons,
            normals,
            windows: &self.windows[first..],
            since: &self.shared.since,
            services: &changed,
        };
        let nulls = self.slos.iter().map(|slo| {
            let mut null = previous.null(&slo.name).cloned().unwrap_or_default();
            null.retain(is_known);
            for service in changed.iter().filter(|service| self.scope.is_another(service)) {
                null.rescale(service, noise_ratio(previous.normals(), normals, service));
            }
            refresh.null(&mut null, slo);
            (slo.name.clone(), null)
        });
        let nulls = nulls.collect();
        let mut groups = previous.group_null().clone();
        groups.retain(is_known);
        refresh.groups(&mut groups, graph, &self.shared.frames[first.min(self.shared.frames.len())..]);
        (nulls, groups)
    }
}

/// By how much the level of a service rose, as far as its noise is taken to have followed.
fn noise_ratio(before: &Normals, after: &Normals, service: &ServiceId) -> f64 {
    let level = |normals: &Normals| {
        let curves = normals.services.get(service)?.edges.iter().filter_map(|edge| edge.self_time.as_ref());
        curves.filter_map(CurveNormal::level_us).reduce(f64::max)
    };
    let ratio = level(after).zip(level(before)).map_or(1.0, |(after, before)| after / before);
    ratio.clamp(NOISE_RATIO.0, NOISE_RATIO.1)
}

/// A retraining before it is known what changed.
struct Draft<'a, 'o> {
    previous: &'a Model,
    windows: Vec<&'a Observation>,
    slos: &'a [Slo],
    options: &'o RetrainOptions,
    graph: Graph,
    frames: Vec<Frame>,
    /// Places of windows that missed a target.
    missed: BTreeSet<usize>,
}

impl<'a, 'o> Draft<'a, 'o> {
    fn new(previous: &'a Model, windows: Vec<&'a Observation>, slos: &'a [Slo], options: &'o RetrainOptions) -> Self {
        let graph = graph(&previous.edges_with(&windows), previous.skeletons(), &windows);
        let missed = windows.iter().enumerate().filter(|(_, window)| !is_healthy(window, slos));
        let missed = missed.map(|(place, _)| place).collect();
        Self { frames: frames(&graph, &windows), previous, windows, slos, options, graph, missed }
    }

    /// What changed.
    fn changes(&self) -> Changes {
        let met = self.frames.iter().enumerate().filter(|(place, _)| !self.missed.contains(place));
        let met: Vec<&Frame> = met.map(|(_, frame)| frame).collect();
        change::detect(self.previous, &self.graph, &met, &self.options.accepted)
    }

    /// Takes out of `changes` what must wait, and gives the services that wait at another level, and since when.
    fn held_back(
        &self,
        changes: &mut Changes,
        readiness: impl Fn(&Change) -> Readiness,
    ) -> BTreeMap<ServiceId, Timestamp> {
        let judged = changes.all.drain(..).map(|change| (readiness(&change), change));
        let (ready, waiting): (Vec<_>, Vec<_>) = judged.partition(|(ready, _)| *ready == Readiness::Ready);
        let mut ready: Vec<Change> = ready.into_iter().map(|(_, change)| change).collect();
        // The gaps of callers follow how long a callee holds them: one level, seen at several places.
        let levels: Vec<Change> = ready.iter().filter(|change| change.since.is_some()).cloned().collect();
        let above = with_ancestors(&self.graph, &levels);
        let first = levels.iter().filter_map(|change| change.since).min().map(|first| self.before(first));
        let mut held = BTreeMap::new();
        for (readiness, change) in waiting {
            let follows = readiness == Readiness::Early && above.contains(&change.service) && change.since >= first;
            if follows {
                ready.push(change);
            } else if let Some(since) = change.since {
                let earliest = held.entry(change.service).or_insert(since);
                *earliest = since.min(*earliest);
            }
        }
        ready.retain(|change| change.since.is_none() || !held.contains_key(&change.service));
        ready.sort_by(|a, b| (&a.service, a.kind).cmp(&(&b.service, b.kind)));
        changes.all = ready;
        held
    }

    /// As much before `time` as the beginning of a level is uncertain.
    fn before(&self, time: Timestamp) -> Timestamp {
        let length = self.windows.last().map(|window| window.length).unwrap_or_default();
        Timestamp::from_micros(time.as_micros().saturating_sub(STEP_WINDOWS as u64 * length.get()))
    }

    fn plan(self, changes: Changes, held: BTreeMap<ServiceId, Timestamp>, seen: usize) -> TrainingPlan<'a> {
        let Self { previous, windows, slos, options, mut graph, frames: mut drafts, missed } = self;
        let is_partial = options.policy == Policy::PartialIncremental;
        // An edge that was seen too rarely to be a change stays unknown: once it counts as learnt, nobody asks again.
        let mut edges = previous.edges.clone();
        edges.extend(changes.come.iter().cloned());
        edges.retain(|edge| !changes.gone.contains(edge));
        let skeletons = skeletons(previous, &windows, &changes, options.policy);
        if !changes.gone.is_empty() || !changes.shapes.is_empty() {
            graph = self::graph(&edges, &skeletons, &windows);
            drafts = frames(&graph, &windows);
        }
        let mut since = previous.since.clone();
        since.extend(changes.all.iter().filter_map(|change| Some((change.service.clone(), change.since?))));
        let learnt = is_partial.then(|| with_ancestors(&graph, &changes.all));
        let regressors = previous.normals().regressors.filter(|_| is_partial);
        let shared = Shared {
            regressors: regressors.unwrap_or_else(|| crate::normal::Regressors::of(&drafts)),
            graph,
            frames: drafts,
            options: options.train,
            since,
            held,
            accepted_only: missed,
            accepted: options.accepted.keys().cloned().collect(),
        };
        let scope = Scope { learnt, changes: changes.all, policy: Some(options.policy), newest: previous.newest };
        TrainingPlan {
            windows,
            seen,
            slos,
            previous: Some(previous),
            edges,
            skeletons,
            shared: Arc::new(shared),
            scope,
        }
    }
}

/// Nested by known structures and by the newest traces.
fn graph(edges: &BTreeSet<EdgeKey>, skeletons: &Skeletons, windows: &[&Observation]) -> Graph {
    pool::graph(edges, skeletons, &windows[windows.len().saturating_sub(STEP_WINDOWS)..])
}

/// The structures of `previous`, those of services whose calls changed from the windows since then.
fn skeletons(previous: &Model, windows: &[&Observation], changes: &Changes, policy: Policy) -> Skeletons {
    let recent = &windows[windows.len().saturating_sub(SKELETON_WINDOWS)..];
    let mut skeletons = match policy {
        Policy::PartialIncremental => previous.skeletons().clone(),
        Policy::FromScratch | Policy::Incremental => Skeletons::learn(recent.iter().copied()),
    };
    for (service, since) in &changes.shapes {
        let newer = Skeletons::learn(recent.iter().copied().filter(|window| window.start >= *since));
        skeletons.replace(newer, &BTreeSet::from([service.clone()]));
    }
    skeletons
}

/// The changed services and everyone who waits for them.
fn with_ancestors(graph: &Graph, changes: &[Change]) -> BTreeSet<ServiceId> {
    let mut reached: BTreeSet<ServiceId> = changes.iter().map(|change| change.service.clone()).collect();
    let upwards = changes.iter().filter(|change| change.reaches_ancestors());
    let mut open: Vec<usize> = upwards.filter_map(|change| graph.service(&change.service)).collect();
    let mut seen: BTreeSet<usize> = open.iter().copied().collect();
    // Ends: a service is opened once.
    while let Some(service) = open.pop() {
        reached.insert(graph.services()[service].clone());
        let callers = graph.ins(service).iter().filter_map(|edge| graph.caller(*edge));
        open.extend(callers.filter(|caller| seen.insert(*caller)));
    }
    reached
}
