//! The graphical variational auto-encoder: one small conditional VAE per service, wired along the causal graph by
//! composition rather than by weights. The only place that names `dfdx`.
//!
//! A service's net models what is exogenous to it, y = [self time of its edges, gap of its in-edges], given
//! x = [its own metrics without effect metrics, the network metrics of its callers, ln calls]. Services are independent
//! given the data, so each net trains, retrains and is stored alone. Which net is used instead of the linear prior is
//! decided outside, by held-out error.
//!
//! ```text
//!  x, y ──► encoder ──► q(z | x, y) ─┐ KL
//!  x ─────► prior ────► p(z | x) ────┘
//!  x, z ──► decoder ──► y             z ~ q while learning (CVAE), z ~ p at the same time (GSNN), z = mean of p in use
//! ```
//!
//! Source: Sage (ASPLOS'21), section 4.3; Sohn, Lee & Yan, *Learning Structured Output Representation using Deep
//! Conditional Generative Models*, NIPS 2015, for the CVAE + GSNN objective.

mod cvae;
mod dense;
mod kernel;
mod lanes;
mod loss;
mod net;
#[cfg(any(test, feature = "testing"))]
mod probe;
mod scaler;
mod table;
mod train;
mod weights;

pub use dense::Norm;
pub use net::{Latent, ServiceNet};
#[cfg(any(test, feature = "testing"))]
pub use probe::TrainingProbe;
pub use table::Table;
pub use train::CvaeOptions;

use dfdx::tensor::{Cpu, CpuError, Gradients, NoneTape, OwnedTape, Tensor};
use thiserror::Error;

/// A matrix of run-time shape.
type Matrix = Tensor<(usize, usize), f32, Cpu, NoneTape>;
/// What remembers how to go backward.
type Tape = OwnedTape<f32, Cpu>;
/// Gradients by tensor.
type Grads = Gradients<f32, Cpu>;

/// Why a net could not be trained, loaded or asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GvaeError {
    /// Fewer rows than a net can learn anything from.
    #[error("{rows} rows are too few to train a net: want at least {want}")]
    TooFewRows {
        /// How many there were.
        rows: usize,
        /// How many are needed.
        want: usize,
    },
    /// Two tables, or a table and a net, that do not belong together.
    #[error("{what}: {left} against {right}")]
    Shape {
        /// What was compared.
        what: &'static str,
        /// One size.
        left: usize,
        /// The other.
        right: usize,
    },
    /// The loss or a weight stopped being a number; the caller keeps the last good net.
    #[error("training diverged in epoch {epoch}")]
    NonFinite {
        /// When.
        epoch: usize,
    },
    /// Stored bytes that are damaged or of another build.
    #[error("stored net is unusable: {0}")]
    Stored(&'static str),
    /// The tensor library ran out of memory or was asked the impossible.
    #[error("tensor library: {0}")]
    Tensor(String),
}

impl From<CpuError> for GvaeError {
    fn from(error: CpuError) -> Self {
        Self::Tensor(error.to_string())
    }
}
