//! Leases: a knob stays changed only while the aggregator keeps renewing it.
//!
//! ```text
//!         Apply, allowed          undo record durable
//!   free ───────► capturing ───────► logging ───────► writing ───────► held ──┐ Renew
//!    ▲                │ unreadable       │ not durable     │ refused or  │  ▲──┘
//!    │◄───────────────┴──────────────────┘                 │ read back   │
//!    │                                                     │ otherwise   │ expiry, Revoke, Freeze, close
//!    │  given back, vanished, or somebody else's by now    ▼             ▼
//!    │◄─────────────────────────────────────────────── reverting ◄───────┤ (a crash in any state above that has
//!    │                                                   │  ▲            │  logged starts here in the next life)
//!    │                                                   └──┘            │
//!    │                                       again, after a back-off     │
//!    └───────────────────────────────────────────────────────────────────┘ somebody else changed the knob
//! ```
//!
//! Pure: time is an argument (a monotonic clock), effects are [`Output`]s, and what became of them comes back as
//! [`Input`]s. What it deliberately does not do: read or write anything, or fight over a knob with somebody else.

mod io;
mod lease;
mod table;

pub use io::{Before, Failure, FailureKind, Input, Output, Saved, UndoRecord};
pub use lease::{LeaseState, LeaseView};
pub use table::{FINISHED_MAX, LEASES_MAX, LeaseTable};

#[cfg(test)]
mod table_tests;
