//! Tests that belong to no single crate: the floor plan, the whole cluster in one deterministic run, real processes.

pub mod sim;
pub mod sources;
