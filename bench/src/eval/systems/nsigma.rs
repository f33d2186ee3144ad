//! N-sigma: the service with the metric that is the most deviations from its mean. The simplest rule there is.

use sage_causal::observation::Observation;
use sage_common::Slo;

use crate::eval::{
    select::{Selection, Suspect, select},
    system::{Answer, AnswerKind, Label, System},
    usage::{UsageNormals, resource},
    view::{views, violation},
};

/// The rule.
#[derive(Clone, Debug)]
pub struct NSigma {
    /// When a service is named, in deviations.
    pub rule: Selection,
    normals: UsageNormals,
}

impl Default for NSigma {
    fn default() -> Self {
        Self { rule: Selection { least: 3.0, share: 0.7 }, normals: UsageNormals::default() }
    }
}

impl System for NSigma {
    fn name(&self) -> &'static str {
        "n-sigma"
    }

    fn train(&mut self, history: &[Observation], slo: &Slo, _labels: &[Label]) -> anyhow::Result<()> {
        self.normals = UsageNormals::of(&views(history, slo));
        Ok(())
    }

    fn selection(&mut self) -> Option<&mut Selection> {
        Some(&mut self.rule)
    }

    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer {
        let windows = views(violation(recent, slo), slo);
        let Some(newest) = windows.last() else { return Answer::none(AnswerKind::Nothing) };
        let suspects = newest.services.keys().filter_map(|service| {
            let scores = self.normals.mean_scores(service, &windows);
            let score = scores.iter().map(|(_, z)| *z).reduce(f64::max)?;
            Some(Suspect { service: service.clone(), score, resource: Some(resource(&scores, self.rule.least)) })
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
    fn the_metric_that_is_furthest_off_names_its_service() {
        let told = answer(&World::shop(), &mut NSigma::default(), &[Fault::Memory(4, 15.0)]);
        assert_eq!((names(&told), told.set[0].1), (vec!["database"], Some(Resource::Memory)), "{told:?}");
    }
}
