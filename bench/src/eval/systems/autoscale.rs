//! Autoscale Strict and Relax: every tier whose processor utilisation is above a line is scaled.
//!
//! # Source
//!
//! Gan et al., *Sage*, ASPLOS 2021, section 6.1: above 50 % and above 70 %, the latter on par with the rule of AWS.

use sage_causal::{observation::Observation, verdict::Resource};
use sage_common::{Metric, Slo};

use crate::eval::{
    select::{Selection, Suspect, select},
    system::{Answer, AnswerKind, Label, System},
    view::{ServiceView, View, views, violation},
};

/// One of the two rules.
#[derive(Clone, Copy, Debug)]
pub struct Autoscale {
    name: &'static str,
    above: f64,
}

impl Autoscale {
    /// Above 50 %.
    pub const fn strict() -> Self {
        Self { name: "autoscale-strict", above: 0.5 }
    }

    /// Above 70 %.
    pub const fn relax() -> Self {
        Self { name: "autoscale-relax", above: 0.7 }
    }
}

impl System for Autoscale {
    fn name(&self) -> &'static str {
        self.name
    }

    fn train(&mut self, _history: &[Observation], _slo: &Slo, _labels: &[Label]) -> anyhow::Result<()> {
        Ok(())
    }

    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer {
        let windows = views(violation(recent, slo), slo);
        let Some(newest) = windows.last() else { return Answer::none(AnswerKind::Nothing) };
        let suspects = newest.services.keys().filter_map(|service| {
            let score = utilisation(&windows, service)?;
            Some(Suspect { service: service.clone(), score, resource: Some(Resource::Cpu) })
        });
        select(suspects.collect(), Selection { least: self.above, share: 0.0 })
    }
}

/// Mean utilisation over `windows`: of its limit or of its node, whichever is more.
fn utilisation(windows: &[View], name: &sage_common::ServiceId) -> Option<f64> {
    let of = |service: &ServiceView| {
        let known = [Metric::CpuLimitShare, Metric::NodeCpuUtilisation].map(|metric| service.metric(metric));
        known.into_iter().flatten().reduce(f64::max)
    };
    let known: Vec<f64> = windows.iter().filter_map(|window| of(window.services.get(name)?)).collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests {
    use sage_causal::testing::{Fault, World};

    use super::*;
    use crate::eval::systems::support::{answer, names};

    #[test]
    fn a_busy_processor_is_scaled_and_an_idle_one_is_not() {
        for mut system in [Autoscale::strict(), Autoscale::relax()] {
            let told = answer(&World::chain(), &mut system, &[Fault::Cpu(2, 15.0)]);
            assert_eq!(names(&told), ["logic"], "{told:?}");
            let told = answer(&World::chain(), &mut system, &[Fault::Slow(2, 15.0)]);
            assert!(names(&told).is_empty() && told.kind == AnswerKind::Unknown, "{told:?}");
        }
    }
}
