//! The replicated log of a group of one, on an embedded store: the default deployment.
//!
//! An entry is reported committed only after it is on disk. A restart takes the newest snapshot, replays the entries
//! after it, and leads in a higher term than ever before. What cannot be trusted is not served.

mod lock;
mod single;
mod store;

pub use self::{
    lock::{LockError, StateDir},
    single::{Health, OpenError, SingleReplica},
    store::StoreError,
};
