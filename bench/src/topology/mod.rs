//! Topology files: what an application is made of, checked once, and the plan that its processes run by.
//!
//! Pure but for [`load`], which may read a file.

mod builtin;
mod draw;
mod facts;
mod plan;
mod schema;
mod validate;

pub use self::{
    builtin::{BUILT_IN, TopologyError, load, parse},
    draw::{OwnTime, count, lognormal, mix64},
    facts::{Facts, RequestFacts},
    plan::{Node, NodeId, Plan, Step},
    schema::*,
    validate::{Problem, problems},
};
