//! The aggregator: joins the windows of all nodes, learns, diagnoses, plans and keeps what it decided.
//!
//! `core` decides and is pure; everything else here is a driver around it: the durable log (`replica`), the runtime
//! (`driver`), the training thread (`trainer`), the HTTP API (`http`) and the command lines (`cli`, `pki_cli`).

pub mod cli;
pub mod config;
pub mod core;
pub mod pki_cli;
pub mod replica;
