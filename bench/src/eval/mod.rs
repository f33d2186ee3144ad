//! The evaluation: every system on every case, and what came of it.
//!
//! ```text
//!  CaseSource ─► history ─► System::train ┐
//!      │                                  ├─► Answer ─► measure ─► rows ─► results.json ─► page
//!      └──────► Case {recent, truth} ─────┘
//! ```
//!
//! Truth never reaches a system; only the supervised one is handed labels, of its history alone.

mod bars;
pub mod case;
mod causality;
pub mod command;
pub mod experiments;
pub mod interval;
pub mod measure;
mod neural;
mod normal;
pub mod page;
pub mod paper;
mod parallel;
pub mod results;
pub mod run;
pub mod seeds;
pub mod select;
pub mod simulated;
pub mod sources;
pub mod system;
pub mod systems;
mod updates;
mod usage;
pub mod view;
pub mod worlds;
