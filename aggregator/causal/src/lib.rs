//! The model alone, pure: observations in, verdicts out.
//!
//! ```text
//!  observations ─► train ─► Model ─► diagnose ─► Verdict
//!
//!  frame      pools and numbers what was observed        graph, skeleton   who calls whom, and how
//!  normal     what is normal at a load (linear, or gvae)  scene, ownership  observed against normal, whose gap it is
//!  recompose, compose   but-for worlds from traces, or from distributions
//!  search, resource, null   which services, which resource, and what noise would score
//!  whatif                   the same but-for worlds, as an operator asks for them
//! ```
//!
//! No clock, no file, no socket, no thread, no ambient randomness: the driver brings observations and a seed.

mod bytes;
mod calibrate;
mod change;
mod compose;
mod crowding;
mod curve;
mod diagnose;
mod engine;
mod envelope;
mod error;
mod frame;
mod graph;
mod gvae;
mod inputs;
mod model;
mod normal;
mod normals;
mod null;
pub mod observation;
mod ownership;
pub mod paper;
mod pool;
mod rebuild;
mod recompose;
mod recovery;
mod resource;
mod restored;
mod retrain;
pub mod robust;
mod sampling;
mod scene;
mod search;
mod skeleton;
mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod train;
#[cfg(test)]
mod updates;
mod usage;
pub mod verdict;
pub mod whatif;
#[cfg(test)]
mod worlds;

pub use change::{Change, ChangeKind};
pub use gvae::{CvaeOptions, Norm};
pub use model::{Model, ModelCard, ModelError, ModelKind};
pub use rebuild::Rebuilt;
pub use retrain::{Policy, Readiness, RetrainOptions, retrain};
pub use task::{ServiceFit, ServiceTask};
pub use train::{TrainOptions, TrainingPlan, TrainingReport, train};
