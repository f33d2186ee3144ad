//! The model as the papers write it: the reference that ours is measured against. Nothing here mends it, unless the caller
//! asks for [`PaperOptions::mended`].
//!
//! ```text
//!  X(service) ──► Z(service) ──► Y(server, network, client side of every RPC into it) ──► Y of its callers
//!       └────────────────────────►┘
//! ```
//!
//! A causal Bayesian network from the RPC graph; one small CVAE + GSNN per service, wired along it: a decoder sees what
//! the decoders of the called services put out. Counterfactuals put a service's metrics back to their medians over the
//! windows that met the target; the service that lowers the end-to-end percentile most is added until the target is met;
//! then the same per resource of each.
//!
//! Source: Sage (ASPLOS'21), sections 3.3 to 3.5 and 4.2 to 4.4.

mod bytes;
mod chain;
mod counterfactual;
mod diagnose;
mod node;
mod options;
mod train;
#[cfg(test)]
mod worlds;

use std::collections::BTreeSet;

use sage_common::{Generation, Slo, Timestamp};

pub use options::{LatencyScale, Latents, PaperOptions};
pub use train::PaperReport;

use crate::{
    graph::Graph,
    gvae::ServiceNet,
    model::ModelError,
    observation::{EdgeKey, Observation},
    paper::node::Node,
    verdict::Verdict,
};

/// A trained chain of CVAEs. Immutable; shared freely between threads.
#[derive(Clone, Debug)]
pub struct PaperModel {
    options: PaperOptions,
    edges: BTreeSet<EdgeKey>,
    /// Callees before callers.
    nodes: Vec<(Node, ServiceNet)>,
    /// Standard deviation of the rebuilt percentile of each objective, in logs.
    errors: Vec<(String, f64)>,
    newest: Timestamp,
    generation: Generation,
}

impl PaperModel {
    /// Trains on `history`, oldest first: windows that met the targets of `slos` and windows that did not, the latter
    /// oversampled. Nets of `previous` whose columns are the same go on from their weights (incremental).
    ///
    /// # Errors
    ///
    /// [`ModelError::TooFewWindows`] when too few windows met every target, [`ModelError::NoCalls`].
    pub fn train(
        history: &[Observation],
        slos: &[Slo],
        previous: Option<&Self>,
        options: &PaperOptions,
    ) -> Result<(Self, PaperReport), ModelError> {
        train::train(history, slos, previous, options)
    }

    /// Diagnoses the newest window of `recent` (oldest first) that misses `slo`. Kinds `culprit`, `partial` and `unknown`;
    /// candidates have neither an own excess nor a null (0 and 0.5): the papers know none.
    pub fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Verdict {
        diagnose::diagnose(self, recent, slo)
    }

    /// The objective's percentile of each window as the chain rebuilds it from metrics and latent variables,
    /// microseconds; `None` where the window holds nothing of the objective.
    pub fn rebuild(&self, windows: &[Observation], slo: &Slo) -> Vec<Option<f64>> {
        windows.iter().map(|window| counterfactual::World::new(self, window, slo)?.rebuilt().map(f64::exp)).collect()
    }

    /// The model as bytes with version, schema hash and checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        bytes::write(self)
    }

    /// A model from [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    ///
    /// [`ModelError`] for foreign bytes, another version or schema, and any damage.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelError> {
        bytes::read(bytes)
    }

    /// How many services have a net.
    pub fn nets(&self) -> usize {
        self.nodes.len()
    }

    fn graph(&self) -> Graph {
        Graph::new(&self.edges, &Default::default())
    }

    fn error(&self, slo: &Slo) -> f64 {
        self.errors.iter().find(|(name, _)| *name == slo.name).map_or(train::ERROR_RANGE.1, |(_, error)| *error)
    }
}
