//! Everything that touches the kernel: readers of usage and writers of knobs. Nothing else names `/sys` or netlink.

mod actuator;
mod audit;
mod interface;
mod recording;
pub mod sample;
mod undo;

pub use actuator::{Actuator, ActuatorError, ActuatorPaths};
pub use audit::Audit;
pub(crate) use interface::chain;
pub use interface::{KernelError, KernelInterface};
pub use recording::RecordingKernel;
pub use undo::{Opened, UndoError, UndoLog};
