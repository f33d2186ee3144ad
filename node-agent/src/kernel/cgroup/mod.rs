//! The cgroup knobs: CPU quota, weight, cpuset and freezer, in hierarchies of version 1 and 2.
//!
//! Shared parents are never touched, and no cgroup is made or removed here.

mod cpu;
mod cpuset;
mod freezer;
mod layout;
mod procs;
mod text;
mod tree;

pub use layout::{Layout, Mount};
pub(super) use procs::processes;

use sage_common::{Knob, Setting};

use super::KernelError;
use crate::core::actuation::Before;

/// The setting of a cgroup knob, with the kernel's own text.
pub(super) fn capture(layout: &Layout, knob: &Knob) -> Result<Before, KernelError> {
    match knob {
        Knob::CpuQuota { cgroup } => cpu::read_quota(&layout.cpu()?.open(cgroup)?),
        Knob::CpuWeight { cgroup } => cpu::read_weight(&layout.cpu()?.open(cgroup)?, knob),
        Knob::Cpuset { cgroup } => cpuset::read(&layout.cpuset()?.open(cgroup)?, knob),
        Knob::Freeze { cgroup } => freezer::read(&layout.freezer()?.open(cgroup)?),
        Knob::EgressRate { .. } | Knob::EgressCeiling { .. } => Err(not_a_cgroup_knob(knob)),
    }
}

/// Puts `setting` on a cgroup knob.
pub(super) fn write(layout: &Layout, knob: &Knob, setting: &Setting) -> Result<(), KernelError> {
    match (knob, setting) {
        (Knob::CpuQuota { cgroup }, Setting::Cores(cores)) => {
            cpu::write_quota(&layout.cpu()?.open(cgroup)?, knob, *cores)
        }
        (Knob::CpuWeight { cgroup }, Setting::Weight(weight)) => {
            cpu::write_weight(&layout.cpu()?.open(cgroup)?, *weight)
        }
        (Knob::Cpuset { cgroup }, Setting::Cpus(cpus)) => {
            cpuset::write(&layout.cpuset()?.open(cgroup)?, knob, &cpus.to_string())
        }
        (Knob::Freeze { cgroup }, Setting::Frozen(is_frozen)) => {
            freezer::write(&layout.freezer()?.open(cgroup)?, knob, *is_frozen)
        }
        _ => Err(KernelError::Misfit { knob: knob.clone(), setting: setting.clone() }),
    }
}

/// Puts back what was captured, to the letter where the setting rounds it.
pub(super) fn restore(layout: &Layout, knob: &Knob, before: &Before) -> Result<(), KernelError> {
    match (knob, before.exact.as_deref()) {
        (Knob::CpuQuota { cgroup }, Some(exact)) => cpu::restore_quota(&layout.cpu()?.open(cgroup)?, knob, exact),
        (Knob::CpuWeight { cgroup }, Some(exact)) => cpu::restore_weight(&layout.cpu()?.open(cgroup)?, exact),
        (Knob::Cpuset { cgroup }, Some(exact)) => cpuset::write(&layout.cpuset()?.open(cgroup)?, knob, exact),
        _ => write(layout, knob, &before.setting),
    }
}

fn not_a_cgroup_knob(knob: &Knob) -> KernelError {
    KernelError::State { knob: knob.clone(), problem: "it is not a knob of a cgroup" }
}

#[cfg(test)]
mod tests;
