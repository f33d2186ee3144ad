//! Offline Oracle: an upper threshold for each tier and each metric, found offline on windows that met the target.
//!
//! # Source
//!
//! Gan et al., *Sage*, ASPLOS 2021, section 6.1.

use std::collections::BTreeMap;

use sage_causal::{observation::Observation, verdict::Resource};
use sage_common::{Metric, MetricGroup, ServiceId, Slo};

use crate::eval::{
    select::{Selection, Suspect, select},
    system::{Answer, AnswerKind, Label, System},
    view::{View, views, violation},
};

/// The oracle.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Share of windows that met the target which stay under a threshold.
    pub quantile: f64,
    /// When a service is named, by how many times over its threshold its worst metric is.
    pub rule: Selection,
    thresholds: BTreeMap<(ServiceId, usize), f64>,
}

impl Default for Oracle {
    fn default() -> Self {
        Self { quantile: 0.995, rule: Selection { least: 1.0, share: 0.5 }, thresholds: BTreeMap::new() }
    }
}

impl System for Oracle {
    fn name(&self) -> &'static str {
        "offline-oracle"
    }

    fn train(&mut self, history: &[Observation], slo: &Slo, _labels: &[Label]) -> anyhow::Result<()> {
        let mut values = BTreeMap::<(ServiceId, usize), Vec<f64>>::new();
        for view in views(history, slo).iter().filter(|view| view.is_healthy()) {
            for (name, service) in &view.services {
                for metric in Metric::ALL {
                    values.entry((name.clone(), metric.index())).or_default().extend(service.metric(metric));
                }
            }
        }
        self.thresholds = values
            .into_iter()
            .filter_map(|(key, mut values)| {
                values.sort_unstable_by(f64::total_cmp);
                let at = (values.len() as f64 * self.quantile) as usize;
                Some((key, *values.get(at.min(values.len().checked_sub(1)?))?))
            })
            .collect();
        Ok(())
    }

    fn selection(&mut self) -> Option<&mut Selection> {
        Some(&mut self.rule)
    }

    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer {
        let windows = views(violation(recent, slo), slo);
        let Some(newest) = windows.last() else { return Answer::none(AnswerKind::Nothing) };
        let suspects = newest.services.keys().filter_map(|service| self.suspect(service, &windows));
        select(suspects.collect(), self.rule)
    }
}

impl Oracle {
    /// The metric of `service` that is the most times over its threshold, in the median window.
    fn suspect(&self, service: &ServiceId, windows: &[View]) -> Option<Suspect> {
        let over = |metric: Metric| {
            let threshold = self.thresholds.get(&(service.clone(), metric.index()))?;
            let of = |window: &View| window.services.get(service)?.metric(metric);
            let mut values: Vec<f64> = windows.iter().filter_map(of).collect();
            values.sort_unstable_by(f64::total_cmp);
            Some((metric, values.get(values.len() / 2)? / threshold.max(f64::MIN_POSITIVE)))
        };
        let worst = Metric::ALL.into_iter().filter_map(over).max_by(|a, b| a.1.total_cmp(&b.1))?;
        let resource = match worst.0.group() {
            MetricGroup::Process => Resource::Software,
            group => group.into(),
        };
        Some(Suspect { service: service.clone(), score: worst.1, resource: Some(resource) })
    }
}

#[cfg(test)]
mod tests {
    use sage_causal::testing::{Fault, World};

    use super::*;
    use crate::eval::systems::support::{answer, names};

    #[test]
    fn a_metric_far_above_its_threshold_names_its_tier() {
        let told = answer(&World::chain(), &mut Oracle::default(), &[Fault::Disk(4, 15.0)]);
        assert_eq!((names(&told), told.set[0].1), (vec!["disk"], Some(Resource::Disk)), "{told:?}");
    }
}
