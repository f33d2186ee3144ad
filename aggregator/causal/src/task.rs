//! Learning one service: its linear prior, and a net that is promoted once it predicts unseen windows better.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sage_common::{ServiceId, Timestamp};

use crate::{
    error::mean_error,
    frame::Frame,
    graph::Graph,
    gvae::{CvaeOptions, GvaeError, ServiceNet},
    inputs::NetInputs,
    normal::{Regressors, ServiceNormal, WINDOWS_MIN},
    normals::{Normals, PromotedNet},
    sampling,
    train::TrainOptions,
};

/// Contiguous parts of the history, each left out once.
pub(crate) const FOLDS: usize = 4;

/// A net must beat the linear prior by this factor on windows neither has seen.
const PROMOTION: f64 = 0.98;

/// A net that goes on from earlier weights needs this part of the epochs, at this part of the rate.
const WARM_EPOCHS: usize = 4;
const WARM_RATE: f32 = 1.0 / 3.0;

/// What every task reads.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) graph: Graph,
    /// Oldest first.
    pub(crate) frames: Vec<Frame>,
    pub(crate) regressors: Regressors,
    pub(crate) options: TrainOptions,
    /// Start of the present normal of services that changed.
    pub(crate) since: BTreeMap<ServiceId, Timestamp>,
    /// Services that learn nothing from their windows since a time.
    pub(crate) held: BTreeMap<ServiceId, Timestamp>,
    /// Frames that missed a target and teach only the services that an operator accepted as they are.
    pub(crate) accepted_only: BTreeSet<usize>,
    /// Those services.
    pub(crate) accepted: BTreeSet<ServiceId>,
}

impl Shared {
    /// The frames that speak for the present normal of a service, with their places.
    fn frames_of<'s>(&'s self, service: &ServiceId) -> impl Iterator<Item = (usize, &'s Frame)> {
        let since = self.since.get(service).copied().unwrap_or_default();
        let until = self.held.get(service).copied();
        let is_accepted = self.accepted.contains(service);
        let speaks = move |(place, frame): &(usize, &Frame)| {
            frame.time >= since
                && until.is_none_or(|until| frame.time < until)
                && (is_accepted || !self.accepted_only.contains(place))
        };
        self.frames.iter().enumerate().filter(speaks)
    }

    /// Its frames outside and inside fold number `fold`; all of them on both sides where too few are outside.
    fn split<'s>(&'s self, fold: usize, service: &ServiceId) -> (Vec<&'s Frame>, Vec<&'s Frame>) {
        let range = fold_range(self.frames.len(), fold);
        let side = |is_inside: bool| {
            let frames = self.frames_of(service).filter(|(index, _)| range.contains(index) == is_inside);
            frames.map(|(_, frame)| frame).collect::<Vec<_>>()
        };
        let (outside, inside) = (side(false), side(true));
        if outside.len() >= WINDOWS_MIN {
            return (outside, inside);
        }
        let all: Vec<&Frame> = self.frames_of(service).map(|(_, frame)| frame).collect();
        (all.clone(), all)
    }
}

/// How a net comes to a service.
#[derive(Clone, Debug)]
pub(crate) enum NetSource {
    /// From fresh weights.
    Fresh,
    /// From earlier weights where its columns are the same: the whole training again.
    Before(PromotedNet),
    /// From earlier weights, in a short training on windows since the given time and as many older ones.
    Warm(PromotedNet, Timestamp),
    /// It stays linear.
    Without,
}

/// Learns one service.
#[derive(Clone, Debug)]
pub struct ServiceTask {
    pub(crate) shared: Arc<Shared>,
    pub(crate) service: usize,
    pub(crate) net: NetSource,
    /// Its normal until now.
    pub(crate) before: Option<ServiceNormal>,
    /// Whether normals of few windows are taken for less sure than they look.
    pub(crate) is_retraining: bool,
    /// Whether nobody asks for the folds but the newest: nulls of everything are not taken anew.
    pub(crate) is_partial: bool,
}

/// What one task found.
#[derive(Debug)]
pub struct ServiceFit {
    pub(crate) normal: ServiceNormal,
    /// All but each fold, the newest last; of a partial training that one alone.
    pub(crate) folds: Vec<ServiceNormal>,
    pub(crate) windows: usize,
    pub(crate) net: Option<PromotedNet>,
    pub(crate) held_out_error: Option<f64>,
    pub(crate) linear_error: Option<f64>,
    pub(crate) note: String,
    pub(crate) problem: Option<String>,
}

impl ServiceTask {
    /// Which service it learns.
    pub fn service(&self) -> &ServiceId {
        &self.shared.graph.services()[self.service]
    }

    /// Fits the service: linear prior on everything and on everything but each fold; a net, promoted when it is better on
    /// the newest fold, which neither has seen.
    pub fn run(&self) -> ServiceFit {
        let Shared { graph, options, .. } = &*self.shared;
        let all: Vec<&Frame> = self.shared.frames_of(self.service()).map(|(_, frame)| frame).collect();
        let first = if self.is_partial { FOLDS - 1 } else { 0 };
        let folds: Vec<ServiceNormal> =
            (first..FOLDS).map(|fold| self.fit(&self.shared.split(fold, self.service()).0)).collect();
        let errors = (first..FOLDS).zip(&folds).filter_map(|(fold, normal)| {
            let inside = self.shared.split(fold, self.service()).1;
            mean_error(&self.alone(normal.clone()), graph, &inside, &[self.service])
        });
        let linear_error = Some(mean(errors)).filter(|error| error.is_finite());
        let mut this = ServiceFit {
            normal: self.fit(&all),
            folds,
            windows: all.len(),
            net: None,
            held_out_error: linear_error,
            linear_error,
            note: format!("linear: fewer than {} windows for a net", options.cvae_windows_min),
            problem: None,
        };
        self.add_net(&mut this);
        this
    }

    fn fit(&self, frames: &[&Frame]) -> ServiceNormal {
        let mut normal = ServiceNormal::fit(&self.shared.graph, self.service, frames, self.shared.regressors);
        if self.is_retraining {
            normal.widen(self.before.as_ref());
        }
        normal
    }

    fn add_net(&self, fit: &mut ServiceFit) {
        let has_enough = fit.windows >= self.shared.options.cvae_windows_min;
        match &self.net {
            NetSource::Without => "linear".clone_into(&mut fit.note),
            // Its service did not change: what the net knows still holds.
            NetSource::Warm(net, _) if !has_enough => {
                fit.net = Some(net.clone());
                "its net kept: too few windows to go on".clone_into(&mut fit.note);
            }
            _ if has_enough => self.try_net(fit),
            _ => {}
        }
    }

    /// Trains a net on all but the newest fold and compares it there with the linear prior of the same windows.
    fn try_net(&self, fit: &mut ServiceFit) {
        let graph = &self.shared.graph;
        let (learning, held_out) = self.shared.split(FOLDS - 1, self.service());
        let Some(newest) = fit.folds.last() else { return };
        let mut normals = self.alone(newest.clone());
        for caller in graph.ins(self.service).iter().filter_map(|edge| graph.caller(*edge)) {
            let name = graph.services()[caller].clone();
            let normal = || ServiceNormal::network(graph, caller, &learning, self.shared.regressors);
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

    fn train_net(&self, normals: &Normals, learning: &[&Frame]) -> Result<PromotedNet, GvaeError> {
        let graph = &self.shared.graph;
        let normal = &normals.services[self.service()];
        let inputs = NetInputs::of(normals, normal, graph, self.service);
        let (x, y) = (inputs.x(normals, graph, learning)?, inputs.y(graph, learning)?);
        let seed = self.shared.options.seed ^ xxhash_rust::xxh3::xxh3_64(self.service().as_str().as_bytes());
        let mut options = CvaeOptions { seed, ..self.shared.options.cvae };
        let mut order: Vec<usize> = (0..learning.len()).collect();
        let previous = match &self.net {
            NetSource::Warm(net, newer) if net.inputs == inputs => {
                let first_new = learning.partition_point(|frame| frame.time < *newer);
                order = sampling::interleaved(learning.len(), first_new);
                options.epochs = options.epochs.div_ceil(WARM_EPOCHS);
                options.rate_max *= WARM_RATE;
                Some(&net.net)
            }
            NetSource::Before(net) if net.inputs == inputs => Some(&net.net),
            _ => None,
        };
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

/// Where fold number `fold` lies among `count` windows.
pub(crate) fn fold_range(count: usize, fold: usize) -> std::ops::Range<usize> {
    fold * count / FOLDS..(fold + 1) * count / FOLDS
}

/// Mean; not a number when there are none.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (total, count) = values.fold((0.0, 0_usize), |(total, count), value| (total + value, count + 1));
    total / count as f64
}
