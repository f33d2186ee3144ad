//! Traffic control through routing netlink: HTB, TBF and u32 filters. What neli leaves to its users, everything inside
//! `TCA_OPTIONS`, is encoded here.

mod egress;
mod filter;
mod object;
mod probe;
mod route;
mod sockets;
mod wire;

pub use egress::Egress;
pub(in crate::kernel) use probe::{Probe, probe};
