//! Every system under test, each from its own description, all behind [`System`].

mod autoscale;
mod causeinfer;
mod excess;
mod microscope;
mod nsigma;
mod oracle;
mod own;
mod paper;
mod sage;
mod seer;
mod selftime;

use super::system::System;

pub use autoscale::Autoscale;
pub use causeinfer::CauseInfer;
pub use excess::{Excess, OwnedExcess};
pub use microscope::Microscope;
pub use nsigma::NSigma;
pub use oracle::Oracle;
pub use paper::Paper;
pub use sage::{Sage, SageOptions, Without, answer};
pub use seer::Seer;
pub use selftime::SelfTime;

/// Systems that an experiment compares, Sage first.
pub const ALL: [&str; 12] = [
    "sage",
    "paper",
    "autoscale-strict",
    "autoscale-relax",
    "offline-oracle",
    "causeinfer",
    "microscope",
    "seer",
    "n-sigma",
    "self-time",
    "largest-excess",
    "largest-owned-excess",
];

/// A fresh system by its name; `None` when nobody is called that. `seed` is for whatever it draws.
pub fn make(name: &str, seed: u64) -> Option<Box<dyn System>> {
    Some(match name {
        "sage" => Box::new(Sage::new(SageOptions { seed, ..SageOptions::default() })),
        "paper" => Box::new(Paper::as_written(seed)),
        "paper-mended" => Box::new(Paper::mended(seed)),
        "autoscale-strict" => Box::new(Autoscale::strict()),
        "autoscale-relax" => Box::new(Autoscale::relax()),
        "offline-oracle" => Box::new(Oracle::default()),
        "causeinfer" => Box::new(CauseInfer::default()),
        "microscope" => Box::new(Microscope::default()),
        "seer" => Box::new(Seer::new(seed)),
        "n-sigma" => Box::new(NSigma::default()),
        "self-time" => Box::new(SelfTime::default()),
        "largest-excess" => Box::new(Excess::default()),
        "largest-owned-excess" => Box::new(OwnedExcess::new(seed)),
        other => Box::new(Sage::without(Without::named(other)?, seed)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_can_be_made_and_bears_its_name() {
        for name in ALL.into_iter().chain(Without::ALL.map(Without::name)) {
            assert_eq!(make(name, 1).expect("known").name(), name);
        }
        assert!(make("nobody", 1).is_none());
    }
}

/// Shared by the tests of the systems: an application learnt from, and a fault in it.
#[cfg(test)]
mod support {
    use sage_causal::testing::{Fault, World};
    use sage_common::ServiceId;

    use super::super::system::{Answer, Label, System};

    /// Windows of the history; every fourth stretch of three is under some fault.
    const WINDOWS: u64 = 140;

    /// What `system` answers, having learnt from `world`, when `faults` befall it.
    pub fn answer(world: &World, system: &mut dyn System, faults: &[Fault]) -> Answer {
        let slo = world.slo();
        let (mut history, mut labels) = (Vec::new(), Vec::new());
        for index in 0..WINDOWS {
            let (episode, is_under) = (index / 7, index % 7 >= 4);
            let tier = (episode as usize) % world.tiers.len();
            let kinds = [Fault::Cpu(tier, 15.0), Fault::Slow(tier, 15.0), Fault::Disk(tier, 15.0)];
            let fault = kinds[(episode / 2) as usize % kinds.len()];
            history.push(world.observe(77, index, if is_under { std::slice::from_ref(&fault) } else { &[] }));
            if is_under {
                labels.push(Label { window: index as usize, services: vec![world.service(tier)] });
            }
        }
        system.train(&history, &slo, &labels).expect("trains");
        let mut recent = world.windows(77, 1_000, 2, &[]);
        recent.extend(world.windows(77, 1_002, 3, faults));
        system.diagnose(&recent, &slo)
    }

    /// The names in `answer`'s set.
    pub fn names(answer: &Answer) -> Vec<&str> {
        answer.set.iter().map(|(service, _)| ServiceId::as_str(service)).collect()
    }
}
