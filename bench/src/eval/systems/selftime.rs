//! Self-time z-score: server latency minus its children's, and the gaps a service owns, in deviations from normal at the
//! present load. The second of the two simple rules every serious evaluation needs.

use sage_causal::observation::Observation;
use sage_common::Slo;

use super::own::{OwnNormals, Ownership};
use crate::eval::{
    select::{Selection, Suspect, select},
    system::{Answer, AnswerKind, Label, System},
    usage::{UsageNormals, resource},
    view::{views, violation},
};

/// Deviations from which a metric speaks for a resource.
const RESOURCE_MIN: f64 = 4.0;

/// The rule.
#[derive(Clone, Debug)]
pub struct SelfTime {
    /// When a service is named, in deviations of its p99.
    pub rule: Selection,
    own: OwnNormals,
    usage: UsageNormals,
}

impl Default for SelfTime {
    fn default() -> Self {
        Self { rule: Selection { least: 3.0, share: 0.7 }, own: OwnNormals::default(), usage: UsageNormals::default() }
    }
}

impl System for SelfTime {
    fn name(&self) -> &'static str {
        "self-time"
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
        let suspects = self.own.shifts(&windows).by_service(Ownership::Witness).into_iter().map(|(service, shifts)| {
            let resource = resource(&self.usage.mean_scores(&service, &windows), RESOURCE_MIN);
            let score = shifts.iter().map(|shift| shift.z).fold(0.0, f64::max);
            Suspect { service, score, resource: Some(resource) }
        });
        select(suspects.collect(), self.rule)
    }
}

#[cfg(test)]
mod tests {
    use sage_causal::{
        testing::{Fault, World},
        verdict::Resource,
    };

    use super::*;
    use crate::eval::systems::support::{answer, names};

    #[test]
    fn a_slow_code_path_shows_in_its_own_tier_alone() {
        let told = answer(&World::chain(), &mut SelfTime::default(), &[Fault::Slow(3, 15.0)]);
        assert_eq!((names(&told), told.set[0].1), (vec!["store"], Some(Resource::Software)), "{told:?}");
    }
}
