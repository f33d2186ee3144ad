//! The pure brain: windows in, decisions out.
//!
//! ```text
//!  agents ─► clock ─► [log: Windows, Close] ─► state: assembly ─► join ─► observe ─► history, graph
//!                                                                                   │
//!  agents ◄─ commands ◄─ leader ◄─ [log: incidents, actions] ◄─ slo, planner, oracle ◄┘
//! ```
//!
//! [`State`] is what the replicated log says: the same entries give the same state on every replica and after every
//! restart. [`Leader`] is what the leading replica does about it. Neither has a clock, a file, a socket or a source of
//! randomness: a driver hands in time and inputs and carries out the outputs.

pub mod action;
pub mod assembly;
pub mod casebook;
pub mod clock;
pub mod graph;
pub mod histogram;
pub mod incident;
pub mod join;
pub mod label;
pub mod leader;
pub mod learned;
pub mod learning;
pub mod merge;
pub mod observe;
pub mod oracle;
pub mod planner;
pub mod proposal;
pub mod replica;
pub mod rules;
pub mod sequences;
pub mod slo;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
pub mod view;

pub use action::{Action, ActionChange, ActionState, Ending};
pub use casebook::Evidence;
pub use incident::{Incident, IncidentChange, IncidentId};
pub use label::{Label, TrueCause};
pub use leader::{Event, Input, Leader, OperatorRequest, Output, TrainJob, TrainScope};
pub use learning::Gate;
pub use oracle::Oracle;
pub use proposal::{ModelMeta, Proposal};
pub use replica::{Replica, ReplicaError, ReplicaEvent};
pub use rules::Rules;
pub use state::{Applied, State};
