//! What one request is at one tier, and the strands of work in it.

use super::super::random::Key;

/// One request at one replica.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// Its call site.
    pub site: u32,
    /// Its replica.
    pub replica: u32,
    /// The name of its draws.
    pub key: Key,
    /// The hash of its trace.
    pub trace: u64,
    /// The span that it is a child of; 0 for a root.
    pub parent: u64,
    /// The call that it answers; `NONE` for a root.
    pub call: u32,
    /// When it was taken up, nanoseconds; `None`: not yet.
    pub start: Option<u64>,
    /// When it reached the replica, nanoseconds.
    pub arrived: u64,
    /// Its own time, nanoseconds.
    pub own_ns: f64,
    /// Items to work on.
    pub items: u32,
    /// Its first fibre, and calls that nobody waits for.
    pub open: u32,
    /// Whether something in it failed.
    pub is_failed: bool,
}

impl Visit {
    /// The id of its server span.
    pub fn span_id(&self) -> u64 {
        self.key.child(SERVER_SPAN).bits().max(1)
    }
}

/// One strand of a visit: a thread, a task, a branch.
#[derive(Clone, Copy, Debug)]
pub struct Fibre {
    /// Its visit.
    pub visit: u32,
    /// Where it is in the code.
    pub at: u32,
    /// The fibre that waits for it; `NONE`: the visit.
    pub parent: u32,
    /// Branches that it waits for.
    pub branches: u32,
    /// Own time to spend before it goes on, nanoseconds.
    pub work_ns: f64,
    /// CPU of calls to spend before it goes on, nanoseconds.
    pub rpc_ns: f64,
    /// Whether that has been spent.
    pub has_worked: bool,
    /// Calls of this step that are left; `None`: not drawn.
    pub left: Option<u32>,
    /// Calls of this step that were made.
    pub made: u32,
    /// Own time on disk after the core, nanoseconds.
    pub disk_ns: f64,
    /// Since when it has been at the disk.
    pub since: u64,
    /// Whether something in it failed: it does nothing more.
    pub is_failed: bool,
}

impl Fibre {
    /// A fibre of `visit` that begins at `at`.
    pub const fn new(visit: u32, at: u32, parent: u32) -> Self {
        Self {
            visit,
            at,
            parent,
            branches: 0,
            work_ns: 0.0,
            rpc_ns: 0.0,
            has_worked: false,
            left: None,
            made: 0,
            disk_ns: 0.0,
            since: 0,
            is_failed: false,
        }
    }

    /// Whether it has something to spend before it goes on.
    pub fn has_work(&self) -> bool {
        !self.has_worked && self.work_ns + self.rpc_ns > 0.0
    }
}

/// Names of the draws of a visit.
pub const SERVER_SPAN: u64 = 1;
/// Its own time.
pub const OWN: u64 = 2;
/// The way of its answer.
pub const ANSWER: u64 = 3;
/// Its conditions; each has one more name.
pub const CONDITION: u64 = 4;
/// Its calls; each has one more name.
pub const CALL: u64 = 5;
