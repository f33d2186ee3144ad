//! The CPUs of a cgroup: `cpuset.cpus` in both versions. In version 2 an empty list means the parent's.

use sage_common::{Knob, Setting};

use super::{text, tree::Dir};
use crate::{core::actuation::Before, kernel::KernelError};

pub(super) fn read(dir: &Dir, knob: &Knob) -> Result<Before, KernelError> {
    check_mems(dir, knob)?;
    let own = dir.read("cpuset.cpus")?;
    let in_force = if own.is_empty() && dir.is_v2 { dir.read("cpuset.cpus.effective")? } else { own.clone() };
    if in_force.is_empty() {
        return Err(KernelError::State {
            knob: knob.clone(),
            problem: "the cgroup has no CPUs, so nothing runs in it",
        });
    }
    match text::cpus(&in_force) {
        Some(cpus) => Ok(Before { setting: Setting::Cpus(cpus), exact: Some(own) }),
        None => Err(dir.unknown("cpuset.cpus", &in_force, "a list of CPUs")),
    }
}

/// `cpus` in the kernel's list format; empty gives a version 2 cgroup its parent's.
pub(super) fn write(dir: &Dir, knob: &Knob, cpus: &str) -> Result<(), KernelError> {
    check_mems(dir, knob)?;
    dir.write("cpuset.cpus", cpus)
}

/// A version 1 cgroup without memory nodes is not in use yet: no process can be in it.
fn check_mems(dir: &Dir, knob: &Knob) -> Result<(), KernelError> {
    if !dir.is_v2 && dir.read("cpuset.mems")?.is_empty() {
        return Err(KernelError::State { knob: knob.clone(), problem: "cpuset.mems is empty; set it first" });
    }
    Ok(())
}
