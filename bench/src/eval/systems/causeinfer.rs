//! CauseInfer: a graph of services, and within each a graph of metrics learnt by the PC algorithm. From the entry it follows
//! services whose latency changed until one has no changed callee; there it follows changed metrics to their first cause.
//!
//! Ours has one metric per resource, tests independence by partial correlation (theirs: conditional cross entropy of discretised metrics) and takes the
//! services' graph from observed calls (theirs: from the lag of traffic, which reaches for the same graph).
//!
//! # Source
//!
//! Chen, Qi, Zheng & Hou, *CauseInfer*, INFOCOM 2014; changes by Page's CUSUM.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::{observation::Observation, verdict::Resource};
use sage_common::{ServiceId, Slo};

use crate::eval::{
    causality::{Correlations, Cpdag, learn},
    normal::Gauss,
    select::{Selection, Suspect, select},
    system::{Answer, AnswerKind, Label, System},
    usage::UsageNormals,
    view::{View, callees, views, violation},
};

/// Two-sided 1 %.
const CRITICAL: f64 = 2.576;

/// Largest set that is conditioned on within one service.
const DEPTH: usize = 2;

/// What a metric may speak for.
const RESOURCES: [Resource; 4] = [Resource::Cpu, Resource::Memory, Resource::Disk, Resource::Network];

/// Page's allowance and threshold, in deviations: finds a shift of one deviation in about ten windows, of four in two.
const ALLOWANCE: f64 = 0.5;
const ALARM: f64 = 5.0;

/// The system.
#[derive(Clone, Debug)]
pub struct CauseInfer {
    /// When a found root is named, by its cumulative sum.
    pub rule: Selection,
    callees: BTreeMap<ServiceId, BTreeSet<ServiceId>>,
    latencies: BTreeMap<ServiceId, Gauss>,
    usage: UsageNormals,
    layers: BTreeMap<ServiceId, Layer>,
}

/// The causes of one service's latency among its resources.
#[derive(Clone, Debug)]
struct Layer {
    /// Variable 0 is the latency, then [`RESOURCES`].
    graph: Cpdag,
}

impl Default for CauseInfer {
    fn default() -> Self {
        Self {
            rule: Selection { least: ALARM, share: 0.3 },
            callees: BTreeMap::new(),
            latencies: BTreeMap::new(),
            usage: UsageNormals::default(),
            layers: BTreeMap::new(),
        }
    }
}

impl System for CauseInfer {
    fn name(&self) -> &'static str {
        "causeinfer"
    }

    fn train(&mut self, history: &[Observation], slo: &Slo, _labels: &[Label]) -> anyhow::Result<()> {
        let views = views(history, slo);
        self.callees = callees(&views);
        self.usage = UsageNormals::of(&views);
        let names: BTreeSet<&ServiceId> = views.iter().flat_map(|view| view.services.keys()).collect();
        for name in names {
            let healthy = views.iter().filter(|view| view.is_healthy());
            let latencies: Vec<f64> = healthy.filter_map(|view| latency(view, name)).collect();
            self.latencies.extend(Gauss::of(&latencies).map(|normal| (name.clone(), normal)));
            self.layers.extend(Layer::learn(&views, name, &self.usage).map(|layer| (name.clone(), layer)));
        }
        Ok(())
    }

    fn selection(&mut self) -> Option<&mut Selection> {
        Some(&mut self.rule)
    }

    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer {
        if violation(recent, slo).is_empty() {
            return Answer::none(AnswerKind::Nothing);
        }
        let windows = views(recent, slo);
        let suspects = self.roots(&slo.service, &windows).into_iter().map(|service| Suspect {
            score: self.change(&service, &windows).unwrap_or(ALARM),
            resource: Some(self.resource(&service, &windows)),
            service,
        });
        select(suspects.collect(), self.rule)
    }
}

impl CauseInfer {
    /// Changed services without a changed callee, found from `entry` depth first.
    fn roots(&self, entry: &ServiceId, windows: &[View]) -> Vec<ServiceId> {
        let (mut roots, mut open, mut seen) = (Vec::new(), vec![entry.clone()], BTreeSet::from([entry.clone()]));
        // Ends: every service is opened once.
        while let Some(service) = open.pop() {
            let none = BTreeSet::new();
            let callees = self.callees.get(&service).unwrap_or(&none);
            let changed: Vec<&ServiceId> =
                callees.iter().filter(|callee| self.change(callee, windows).is_some_and(|sum| sum > ALARM)).collect();
            if changed.is_empty() {
                roots.push(service);
            }
            open.extend(changed.into_iter().filter(|callee| seen.insert((*callee).clone())).cloned());
        }
        roots
    }

    /// Cumulative sum of a service's latency at the end of `windows`.
    fn change(&self, service: &ServiceId, windows: &[View]) -> Option<f64> {
        let normal = self.latencies.get(service)?;
        Some(cusum(windows.iter().filter_map(|view| Some(normal.z(latency(view, service)?)))))
    }

    /// The first cause among the resources of `service`; software when no changed one leads to its latency.
    fn resource(&self, service: &ServiceId, windows: &[View]) -> Resource {
        let Some(layer) = self.layers.get(service) else { return Resource::Software };
        let scores = windows.iter().filter_map(|view| resource_scores(&self.usage, view, service));
        let scores: Vec<[f64; RESOURCES.len()]> = scores.collect();
        let sums: Vec<f64> = (0..RESOURCES.len()).map(|place| cusum(scores.iter().map(|row| row[place]))).collect();
        layer.root(&sums).map_or(Resource::Software, |place| RESOURCES[place])
    }
}

impl Layer {
    /// `None` without enough windows in which everything was measured.
    fn learn(views: &[View], name: &ServiceId, usage: &UsageNormals) -> Option<Self> {
        let row = |view: &View| -> Option<Vec<f64>> {
            let latency = latency(view, name)?.ln();
            Some(std::iter::once(latency).chain(resource_scores(usage, view, name)?).collect())
        };
        let rows: Vec<Vec<f64>> = views.iter().filter_map(row).collect();
        let series: Vec<Vec<f64>> = (0..=RESOURCES.len()).map(|i| rows.iter().map(|row| row[i]).collect()).collect();
        (rows.len() > DEPTH + 4).then(|| Self { graph: learn(&Correlations::of(&series), CRITICAL, DEPTH) })
    }

    /// Walks from the latency along changed resources to those without a changed cause; of these the one that changed most.
    fn root(&self, sums: &[f64]) -> Option<usize> {
        let mut seen = vec![false; sums.len() + 1];
        let (mut open, mut roots) = (vec![0_usize], Vec::new());
        seen[0] = true;
        // Ends: every variable is opened once.
        while let Some(variable) = open.pop() {
            let changed =
                self.graph.causes(variable).into_iter().filter(|cause| *cause > 0 && sums[*cause - 1] > ALARM);
            let fresh: Vec<usize> = changed.filter(|cause| !seen[*cause]).collect();
            if fresh.is_empty() && variable > 0 {
                roots.push(variable - 1);
            }
            fresh.iter().for_each(|cause| seen[*cause] = true);
            open.extend(fresh);
        }
        roots.into_iter().max_by(|a, b| sums[*a].total_cmp(&sums[*b]))
    }
}

/// The largest deviation among the metrics of each resource; `None` when the service was not measured. One variable per
/// resource: metrics of one resource are near copies, and given one copy the other is independent of anything.
fn resource_scores(usage: &UsageNormals, view: &View, service: &ServiceId) -> Option<[f64; RESOURCES.len()]> {
    let scores = usage.scores(service, view.services.get(service)?);
    let of = |resource: Resource| {
        let own = scores.iter().filter(|(metric, _)| Resource::from(metric.group()) == resource);
        own.map(|(_, z)| *z).fold(0.0, f64::max)
    };
    (!scores.is_empty()).then(|| RESOURCES.map(of))
}

/// p99 of the server spans; of the client spans where the service reports none.
fn latency(view: &View, service: &ServiceId) -> Option<f64> {
    let service = view.services.get(service)?;
    service.server_us.or(service.client_us)
}

/// Page's one-sided cumulative sum at the end of `scores`.
fn cusum(scores: impl Iterator<Item = f64>) -> f64 {
    scores.fold(0.0, |sum: f64, z| (sum + z - ALLOWANCE).max(0.0))
}

#[cfg(test)]
mod tests {
    use sage_causal::testing::{Fault, World};

    use super::*;
    use crate::eval::systems::support::{answer, names};

    #[test]
    fn the_deepest_changed_service_of_a_chain_is_the_root() {
        let told = answer(&World::chain(), &mut CauseInfer::default(), &[Fault::Cpu(3, 15.0)]);
        assert_eq!((names(&told), told.set[0].1), (vec!["store"], Some(Resource::Cpu)), "{told:?}");
    }

    #[test]
    fn a_cumulative_sum_forgets_noise_and_keeps_a_shift() {
        assert_eq!(cusum([0.4, -3.0, 0.5].into_iter()), 0.0);
        assert_eq!(cusum([4.0, 4.0].into_iter()), 7.0);
    }
}
