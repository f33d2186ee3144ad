//! The simulator: topology files as networks of queues in virtual time, deterministic by seed.
//!
//! A world emits what a real application would, spans and usage, into a [`Sink`]; nothing here judges them. Faults are
//! plans; the same world without one of them has the same arrivals and the same draws, and is the truth about it.

mod arrivals;
mod candidate;
mod case;
pub mod command;
mod counters;
mod effects;
mod engine;
mod fault;
mod model;
mod pipeline;
mod queue;
mod random;
mod replay;
mod scale;
mod sink;
mod slab;
mod usage;
mod world;

pub use self::{
    arrivals::{Arrivals, LoadShape},
    case::{BINS, CasePlan, CaseTruth, Cases, Episode, Story},
    engine::{Counts, EPOCH, Engine, EngineOptions, wall},
    fault::{FOREVER, FaultKind, FaultPlan, InvalidFault, Role},
    model::{Edge, Model, Placement},
    pipeline::Pipeline,
    random::Key,
    replay::{Replay, ReplayError},
    scale::generate,
    sink::{InstanceSecond, Nowhere, Sink, UsageSecond},
    world::{Session, WindowLatency, World, WorldOptions},
};
