//! Which resource the metrics of a service speak against: the reading that simple systems share.

use std::collections::BTreeMap;

use sage_causal::verdict::Resource;
use sage_common::{Metric, ServiceId};

use super::{
    normal::Gauss,
    view::{ServiceView, View},
};

/// Normals of every metric of every service over healthy windows.
#[derive(Clone, Debug, Default)]
pub struct UsageNormals {
    normals: BTreeMap<ServiceId, Vec<(Metric, Gauss)>>,
}

impl UsageNormals {
    /// Learns from the healthy ones of `views`.
    pub fn of(views: &[View]) -> Self {
        let mut values = BTreeMap::<ServiceId, Vec<Vec<f64>>>::new();
        for view in views.iter().filter(|view| view.is_healthy()) {
            for (name, service) in &view.services {
                let of_service = values.entry(name.clone()).or_insert_with(|| vec![Vec::new(); Metric::COUNT]);
                for metric in Metric::ALL {
                    of_service[metric.index()].extend(service.metric(metric));
                }
            }
        }
        let learnt = |values: Vec<Vec<f64>>| {
            Metric::ALL.into_iter().filter_map(|metric| Some((metric, Gauss::of(&values[metric.index()])?))).collect()
        };
        Self { normals: values.into_iter().map(|(name, values)| (name, learnt(values))).collect() }
    }

    /// Deviations of each metric of `service` above normal.
    pub fn scores(&self, name: &ServiceId, service: &ServiceView) -> Vec<(Metric, f64)> {
        let normals = self.normals.get(name).map(Vec::as_slice).unwrap_or_default();
        normals.iter().filter_map(|(metric, normal)| Some((*metric, normal.z(service.metric(*metric)?)))).collect()
    }

    /// Mean of each score over `views`.
    pub fn mean_scores(&self, name: &ServiceId, views: &[View]) -> Vec<(Metric, f64)> {
        let mut totals = BTreeMap::<usize, (f64, f64)>::new();
        for service in views.iter().filter_map(|view| view.services.get(name)) {
            for (metric, z) in self.scores(name, service) {
                let total = totals.entry(metric.index()).or_default();
                *total = (total.0 + z, total.1 + 1.0);
            }
        }
        totals.into_iter().map(|(index, (total, count))| (Metric::ALL[index], total / count)).collect()
    }
}

/// The resource of the largest of `scores` that is at least `least`; software when none is.
pub fn resource(scores: &[(Metric, f64)], least: f64) -> Resource {
    let resources =
        scores.iter().filter(|(metric, z)| *z >= least && Resource::from(metric.group()) != Resource::Software);
    let largest = resources.max_by(|a, b| a.1.total_cmp(&b.1));
    largest.map_or(Resource::Software, |(metric, _)| metric.group().into())
}

#[cfg(test)]
mod tests {
    use sage_causal::testing::{Fault, World};

    use super::*;
    use crate::eval::view::views;

    #[test]
    fn the_starved_processor_stands_out_and_nothing_does_in_a_slow_code_path() {
        let world = World::chain();
        let slo = world.slo();
        let normals = UsageNormals::of(&views(&world.windows(5, 0, 30, &[]), &slo));
        let told = |fault: Fault| {
            let recent = views(&world.windows(5, 40, 3, &[fault]), &slo);
            resource(&normals.mean_scores(&world.service(2), &recent), 5.0)
        };
        assert_eq!(told(Fault::Cpu(2, 12.0)), Resource::Cpu);
        assert_eq!(told(Fault::Disk(2, 12.0)), Resource::Disk);
        assert_eq!(told(Fault::Slow(2, 12.0)), Resource::Software);
    }
}
