//! The service with the largest own excess in microseconds, by two rules of who owns a gap: always the callee, and Sage's
//! own. No graph, no counterfactual: what is left of Sage when those are taken away.

use sage_causal::observation::Observation;
use sage_common::Slo;

use super::{
    own::{OwnNormals, Ownership},
    sage::{Sage, Without},
};
use crate::eval::{
    select::{Selection, Suspect, select},
    system::{Answer, AnswerKind, Label, System},
    usage::{UsageNormals, resource},
    view::{views, violation},
};

/// Deviations from which a metric speaks for a resource.
const RESOURCE_MIN: f64 = 4.0;

/// Excess in microseconds, gaps to the callee.
#[derive(Clone, Debug)]
pub struct Excess {
    /// When a service is named, in microseconds.
    pub rule: Selection,
    own: OwnNormals,
    usage: UsageNormals,
}

impl Default for Excess {
    fn default() -> Self {
        Self { rule: Selection { least: 1.0, share: 0.3 }, own: OwnNormals::default(), usage: UsageNormals::default() }
    }
}

impl System for Excess {
    fn name(&self) -> &'static str {
        "largest-excess"
    }

    fn train(&mut self, history: &[Observation], slo: &Slo, _labels: &[Label]) -> anyhow::Result<()> {
        let views = views(history, slo);
        (self.own, self.usage) = (OwnNormals::of(&views), UsageNormals::of(&views));
        Ok(())
    }

    fn selection(&mut self) -> Option<&mut Selection> {
        Some(&mut self.rule)
    }

    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer {
        let windows = views(violation(recent, slo), slo);
        if windows.is_empty() {
            return Answer::none(AnswerKind::Nothing);
        }
        let suspects = self.own.shifts(&windows).by_service(Ownership::Callee).into_iter().map(|(service, shifts)| {
            let resource = resource(&self.usage.mean_scores(&service, &windows), RESOURCE_MIN);
            let score = shifts.iter().map(|shift| shift.excess_us).sum();
            Suspect { service, score, resource: Some(resource) }
        });
        select(suspects.collect(), self.rule)
    }
}

/// Excess in microseconds, gaps to whom Sage gives them.
pub struct OwnedExcess {
    /// When a service is named, in microseconds.
    pub rule: Selection,
    sage: Sage,
    usage: UsageNormals,
}

impl OwnedExcess {
    /// Untrained.
    pub fn new(seed: u64) -> Self {
        Self {
            rule: Selection { least: 1.0, share: 0.3 },
            // The linear prior is enough for an excess, and trains in a moment.
            sage: Sage::without(Without::Nets, seed),
            usage: UsageNormals::default(),
        }
    }
}

impl System for OwnedExcess {
    fn name(&self) -> &'static str {
        "largest-owned-excess"
    }

    fn train(&mut self, history: &[Observation], slo: &Slo, labels: &[Label]) -> anyhow::Result<()> {
        self.usage = UsageNormals::of(&views(history, slo));
        self.sage.train(history, slo, labels)
    }

    fn selection(&mut self) -> Option<&mut Selection> {
        Some(&mut self.rule)
    }

    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer {
        let windows = views(violation(recent, slo), slo);
        if windows.is_empty() {
            return Answer::none(AnswerKind::Nothing);
        }
        let candidates = self.sage.verdict(recent, slo).map(|verdict| verdict.candidates).unwrap_or_default();
        let suspects = candidates.into_iter().map(|candidate| {
            let resource = resource(&self.usage.mean_scores(&candidate.service, &windows), RESOURCE_MIN);
            Suspect { service: candidate.service, score: candidate.own_excess_us, resource: Some(resource) }
        });
        select(suspects.collect(), self.rule)
    }
}

#[cfg(test)]
mod tests {
    use sage_causal::testing::{Fault, World};

    use super::*;
    use crate::eval::systems::support::{answer, names};

    #[test]
    fn the_slowest_tier_has_the_largest_excess() {
        let told = answer(&World::shop(), &mut Excess::default(), &[Fault::Slow(4, 15.0)]);
        assert_eq!(names(&told), ["database"], "{told:?}");
        let told = answer(&World::shop(), &mut OwnedExcess::new(0), &[Fault::Network(5, 15_000.0)]);
        assert_eq!(names(&told), ["stock"], "{told:?}");
    }
}
