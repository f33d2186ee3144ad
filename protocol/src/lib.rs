//! The wire between agents and aggregators.
pub mod message;
