//! Everything that touches the kernel: readers of usage and writers of knobs. Nothing else names `/sys` or netlink.

mod actuator;
mod audit;
mod capability;
pub mod cgroup;
#[cfg(test)]
mod contract;
mod interface;
mod linux;
mod recording;
#[cfg(test)]
mod root_tests;
pub mod sample;
mod tc;
mod undo;

pub use actuator::{Actuator, ActuatorError, ActuatorPaths};
pub use audit::Audit;
pub use capability::{Capability, CapabilityState, capabilities};
pub(crate) use interface::chain;
pub use interface::{KernelError, KernelInterface};
pub use linux::{KernelOptions, LinuxKernel};
pub use recording::RecordingKernel;
pub use undo::{Opened, UndoError, UndoLog};
