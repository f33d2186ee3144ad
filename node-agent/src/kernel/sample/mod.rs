//! Readers of usage: cgroups, procfs and netlink, once a second.
//!
//! Blocking, on a thread of its own. What is missing is absent; what vanishes while it is read is left out. Rates and
//! percentiles are the business of [`crate::core::usage`].

#![expect(clippy::disallowed_methods, reason = "driver: reads the kernel's files")]

pub mod capability;
pub mod cgroup;
pub mod discover;
pub mod file;
pub mod hierarchy;
pub mod host;
pub mod links;
pub mod netlink;
pub mod node;
pub mod processes;
pub mod sampler;
pub mod sockets;
pub mod text;

pub use capability::{Capability, probe};
pub use hierarchy::Hierarchy;
pub use sampler::{Problem, Sampler, own_cgroup};
