//! The kernel that we run on.

use std::{io, path::PathBuf};

use sage_common::{Knob, KnobKind, Setting};

use super::{
    KernelError, KernelInterface,
    capability::{self, Capability},
    cgroup::{self, Layout},
    tc::Egress,
};
use crate::{core::actuation::Before, policy::EgressRules};

/// Where the kernel shows itself.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Version 1 controllers below it, or a version 2 root.
    pub cgroup_root: PathBuf,
    /// Mount point of procfs.
    pub proc_root: PathBuf,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self { cgroup_root: "/sys/fs/cgroup".into(), proc_root: "/proc".into() }
    }
}

/// cgroups, and traffic control in the network namespace of the thread that opened it. No policy.
#[derive(Debug)]
pub struct LinuxKernel {
    layout: Layout,
    egress: Egress,
    capabilities: Vec<Capability>,
}

impl LinuxKernel {
    /// Finds out what is mounted and what this kernel can do. The links it acts on are those of this thread's network
    /// namespace, whichever thread uses it later.
    ///
    /// # Errors
    ///
    /// If no routing netlink socket can be had.
    pub fn open(options: &KernelOptions) -> io::Result<Self> {
        let layout = Layout::detect(&options.cgroup_root);
        let egress = Egress::open(options.proc_root.clone())?;
        Ok(Self { capabilities: capability::knobs(&layout), layout, egress })
    }

    /// What was found out about this kernel's knobs.
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }
}

impl KernelInterface for LinuxKernel {
    fn read(&self, knob: &Knob) -> Result<Setting, KernelError> {
        match knob {
            Knob::EgressRate { link } => self.egress.rate(link).map(Setting::Rate),
            Knob::EgressCeiling { link, cgroup } => self.egress.ceiling(link, cgroup).map(Setting::Rate),
            _ => cgroup::capture(&self.layout, knob).map(|before| before.setting),
        }
    }

    fn write(&mut self, knob: &Knob, setting: &Setting) -> Result<(), KernelError> {
        if !setting.fits(knob) {
            return Err(KernelError::Misfit { knob: knob.clone(), setting: setting.clone() });
        }
        match (knob, setting) {
            (Knob::EgressRate { link }, Setting::Rate(rate)) => self.egress.set_rate(link, *rate),
            (Knob::EgressCeiling { link, cgroup }, Setting::Rate(rate)) => {
                self.egress.set_ceiling(link, cgroup, *rate, &self.layout)
            }
            _ => cgroup::write(&self.layout, knob, setting),
        }
    }

    fn capture(&self, knob: &Knob) -> Result<Before, KernelError> {
        match knob {
            // Its class outlives a cgroup that goes away, but is not made for one that is not there.
            Knob::EgressCeiling { cgroup, .. } => {
                cgroup::processes(&self.layout, cgroup)?;
                self.read(knob).map(Before::from)
            }
            Knob::EgressRate { .. } => self.read(knob).map(Before::from),
            _ => cgroup::capture(&self.layout, knob),
        }
    }

    fn restore(&mut self, knob: &Knob, before: &Before) -> Result<(), KernelError> {
        match knob {
            Knob::EgressRate { .. } | Knob::EgressCeiling { .. } => self.write(knob, &before.setting),
            _ => cgroup::restore(&self.layout, knob, before),
        }
    }

    fn supports(&self, kind: KnobKind) -> Result<(), KernelError> {
        capability::supports(&self.capabilities, kind)
    }

    fn set_egress_rules(&mut self, rules: &EgressRules) {
        self.egress.set_rules(rules.clone());
    }

    fn refresh(&mut self, held: &[Knob]) -> Result<(), KernelError> {
        let ceilings = held.iter().filter_map(|knob| match knob {
            Knob::EgressCeiling { link, cgroup } => Some((link, cgroup)),
            _ => None,
        });
        let mut result = Ok(());
        for (link, cgroup) in ceilings {
            result = result.and(self.egress.refresh(link, cgroup, &self.layout));
        }
        result
    }
}
