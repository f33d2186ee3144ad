//! Microscope: a causal graph of services learnt by the PC algorithm from their latencies. From the entry it follows causes
//! that are three deviations off until one has none; those candidates are ranked by correlation with the entry's latency.
//!
//! It names services, never resources.
//!
//! # Source
//!
//! Lin, Chen & Zheng, *Microscope*, ICSOC 2018.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::observation::Observation;
use sage_common::{ServiceId, Slo};

use crate::eval::{
    causality::{Correlations, Cpdag, learn, pearson},
    normal::Gauss,
    select::{Selection, Suspect, select},
    system::{Answer, AnswerKind, Label, System},
    view::{View, views, violation},
};

/// Two-sided 5 %.
const CRITICAL: f64 = 1.96;

/// Largest set that is conditioned on.
const DEPTH: usize = 3;

/// Three sigma.
const ABNORMAL: f64 = 3.0;

/// The system.
#[derive(Clone, Debug)]
pub struct Microscope {
    /// When a candidate is named, by its correlation.
    pub rule: Selection,
    services: Vec<ServiceId>,
    normals: BTreeMap<ServiceId, Gauss>,
    graph: Option<Cpdag>,
}

impl Default for Microscope {
    fn default() -> Self {
        Self { rule: Selection { least: 0.0, share: 0.9 }, services: Vec::new(), normals: BTreeMap::new(), graph: None }
    }
}

impl System for Microscope {
    fn name(&self) -> &'static str {
        "microscope"
    }

    fn train(&mut self, history: &[Observation], slo: &Slo, _labels: &[Label]) -> anyhow::Result<()> {
        let views = views(history, slo);
        let names: BTreeSet<&ServiceId> = views.iter().flat_map(|view| view.services.keys()).collect();
        let series = |name: &ServiceId| -> Vec<Option<f64>> {
            views.iter().map(|view| latency(view, name).map(f64::ln)).collect()
        };
        let mut columns = Vec::new();
        for name in names {
            let healthy = views.iter().filter(|view| view.is_healthy());
            let Some(normal) = Gauss::of(&healthy.filter_map(|view| latency(view, name)).collect::<Vec<_>>()) else {
                continue;
            };
            columns.push(filled(&series(name)));
            self.services.push(name.clone());
            self.normals.insert(name.clone(), normal);
        }
        self.graph = Some(learn(&Correlations::of(&columns), CRITICAL, DEPTH));
        Ok(())
    }

    fn selection(&mut self) -> Option<&mut Selection> {
        Some(&mut self.rule)
    }

    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer {
        let broken = views(violation(recent, slo), slo);
        if broken.is_empty() {
            return Answer::none(AnswerKind::Nothing);
        }
        let all = views(recent, slo);
        let of = |name: &ServiceId| filled(&all.iter().map(|view| latency(view, name)).collect::<Vec<_>>());
        let entry = of(&slo.service);
        let suspects = self.candidates(&slo.service, &broken).into_iter().map(|service| {
            let score = pearson(&of(&service), &entry);
            Suspect { service, score, resource: None }
        });
        select(suspects.collect(), self.rule)
    }
}

impl Microscope {
    /// Abnormal services without an abnormal cause that was not met before, found from `entry`.
    fn candidates(&self, entry: &ServiceId, windows: &[View]) -> Vec<ServiceId> {
        let number = |name: &ServiceId| self.services.iter().position(|own| own == name);
        let (Some(graph), Some(entry)) = (&self.graph, number(entry)) else { return Vec::new() };
        let is_abnormal: Vec<bool> =
            self.services.iter().map(|name| self.deviation(name, windows) > ABNORMAL).collect();
        let (mut found, mut open, mut seen) = (Vec::new(), vec![entry], BTreeSet::from([entry]));
        // Ends: every service is opened once.
        while let Some(node) = open.pop() {
            let causes: Vec<usize> =
                graph.causes(node).into_iter().filter(|cause| is_abnormal[*cause] && !seen.contains(cause)).collect();
            if causes.is_empty() {
                found.push(self.services[node].clone());
            }
            seen.extend(causes.iter().copied());
            open.extend(causes);
        }
        found
    }

    /// Mean deviations above normal.
    fn deviation(&self, name: &ServiceId, windows: &[View]) -> f64 {
        let scores: Vec<f64> =
            windows.iter().filter_map(|view| Some(self.normals.get(name)?.z(latency(view, name)?))).collect();
        if scores.is_empty() { 0.0 } else { scores.iter().sum::<f64>() / scores.len() as f64 }
    }
}

/// p99 of the server spans; of the client spans where the service reports none.
fn latency(view: &View, service: &ServiceId) -> Option<f64> {
    let service = view.services.get(service)?;
    service.server_us.or(service.client_us)
}

/// `series` with its mean where nothing was measured; zeros when nothing ever was.
fn filled(series: &[Option<f64>]) -> Vec<f64> {
    let known: Vec<f64> = series.iter().flatten().copied().collect();
    let mean = if known.is_empty() { 0.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
    series.iter().map(|value| value.unwrap_or(mean)).collect()
}

#[cfg(test)]
mod tests {
    use sage_causal::testing::{Fault, World};

    use super::*;
    use crate::eval::systems::support::{answer, names};

    #[test]
    fn the_slow_leaf_of_a_fanout_is_found_without_being_told_who_calls_whom() {
        let told = answer(&World::fanout(), &mut Microscope::default(), &[Fault::Slow(3, 25.0)]);
        assert_eq!((names(&told), told.set[0].1), (vec!["leaf-c"], None), "{told:?}");
    }
}
