//! The aggregator: joins the windows of all nodes, learns, diagnoses, plans and keeps what it decided.
//!
//! `core` decides and is pure; everything else here is a driver around it: the durable log (`replica`), the runtime
//! (`driver`), the training thread (`trainer`) and what it trains (`model`), the HTTP API (`http`) and the certificates
//! (`pki_cli`). The operator's tool is a crate of its own, `ctl`, because replaying needs the agent's core as well.

pub mod config;
pub mod core;
pub mod driver;
pub mod http;
pub mod incident_file;
pub mod model;
pub mod pki_cli;
pub mod replica;
pub mod trainer;
