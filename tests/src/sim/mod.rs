//! A whole cluster in one thread and in virtual time: the real cores of agents and aggregator on simulated machines.
//!
//! ```text
//!  application ─spans─► agent ◄──── network (latency, partitions, loss, doubles) ────► aggregator ─► log
//!       ▲               │   ▲                                                          (leader, model)
//!       │ slower        ▼   │ counters
//!       └──────────── machine: kernel in memory, hog, clock
//! ```
//!
//! What decides is the code of the daemons: telemetry, usage windows, window assembly, policy, lease table, sessions and
//! codec of an agent; leader, state and causal model of the aggregator. What is simulated is what their drivers stand on:
//! clocks, disks, processes, the kernel and the wire. The loop is closed: a hog slows the services on its machine until
//! its quota is lowered or it is frozen in that machine's kernel. One seed decides everything.

mod agent;
mod aggregator;
mod application;
mod checks;
mod cluster;
mod draw;
mod faults;
mod hands;
mod log;
mod machine;
mod network;
mod seeds;
mod trace;

pub use agent::{Agent, Fuse};
pub use aggregator::{Aggregator, Crash};
pub use application::{Application, Tier};
pub use checks::Ledger;
pub use cluster::{CGROUP_HOG, Cluster, TARGET, WINDOW};
pub use log::LogDisk;
pub use machine::{Hog, Machine};
pub use network::Weather;
pub use seeds::for_seeds;
