//! A kernel in memory, for tests of everything above it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use sage_common::{Knob, KnobKind, Setting};

use super::{KernelError, KernelInterface};

/// A kernel in memory: keeps settings, records every write, refuses on request. A knob that was never given a setting
/// does not exist.
#[derive(Clone, Debug, Default)]
pub struct RecordingKernel {
    /// The settings in force.
    pub settings: BTreeMap<Knob, Setting>,
    /// Every write that changed something, in order.
    pub writes: Vec<(Knob, Setting)>,
    /// Knobs whose writes are refused as busy.
    pub refuse: BTreeSet<Knob>,
    /// Knobs that take a write and keep their old setting.
    pub ignore: BTreeSet<Knob>,
    /// Kinds of knobs that this kernel lacks.
    pub lacks: BTreeSet<KnobKind>,
}

impl RecordingKernel {
    /// A kernel with these knobs.
    pub fn new(settings: impl IntoIterator<Item = (Knob, Setting)>) -> Self {
        Self { settings: settings.into_iter().collect(), ..Self::default() }
    }
}

fn gone(knob: &Knob) -> KernelError {
    match knob {
        Knob::EgressRate { link } => KernelError::NoLink { link: link.clone() },
        Knob::EgressCeiling { cgroup, .. }
        | Knob::CpuQuota { cgroup }
        | Knob::CpuWeight { cgroup }
        | Knob::Cpuset { cgroup }
        | Knob::Freeze { cgroup } => KernelError::NoCgroup { cgroup: cgroup.clone() },
    }
}

impl KernelInterface for RecordingKernel {
    fn read(&self, knob: &Knob) -> Result<Setting, KernelError> {
        self.supports(knob.kind())?;
        self.settings.get(knob).cloned().ok_or_else(|| gone(knob))
    }

    fn write(&mut self, knob: &Knob, setting: &Setting) -> Result<(), KernelError> {
        self.supports(knob.kind())?;
        if !setting.fits(knob) {
            return Err(KernelError::Misfit { knob: knob.clone(), setting: setting.clone() });
        }
        let current = self.settings.get_mut(knob).ok_or_else(|| gone(knob))?;
        if self.refuse.contains(knob) {
            let source = io::ErrorKind::ResourceBusy.into();
            return Err(KernelError::File { action: "write", path: knob.to_string().into(), source });
        }
        if current != setting {
            self.writes.push((knob.clone(), setting.clone()));
            if !self.ignore.contains(knob) {
                *current = setting.clone();
            }
        }
        Ok(())
    }

    fn supports(&self, kind: KnobKind) -> Result<(), KernelError> {
        if self.lacks.contains(&kind) {
            return Err(KernelError::Unavailable { feature: "this kind of knob", why: "it was taken away".to_owned() });
        }
        Ok(())
    }
}
