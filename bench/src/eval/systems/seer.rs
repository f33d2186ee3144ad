//! Seer: a supervised CNN and LSTM on queue depths and latencies of every tier, labelled by injection. The named tier's
//! metrics then say which resource.
//!
//! Ours is small and learns from windows instead of from traces every 100 ms: the queue depth of a tier is the number of
//! requests in it or on their way to it (Little's law), known only where the tier is instrumented. It is the only system
//! that is told which faults were injected into its history.
//!
//! # Source
//!
//! Gan et al., *Seer*, ASPLOS 2019.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::observation::Observation;
use sage_common::{ServiceId, Slo};

use crate::eval::{
    neural::{Net, Sample, Shape},
    normal::Gauss,
    select::{Selection, Suspect, select},
    system::{Answer, AnswerKind, Label, System},
    usage::{UsageNormals, resource},
    view::{ServiceView, View, views, violation},
};

/// Windows that the LSTM looks back over.
const STEPS: usize = 5;

/// Sizes: small, for a training set of a few hundred windows.
const FILTERS: usize = 4;
const HIDDEN: usize = 32;

const EPOCHS: usize = 60;
const RATE: f32 = 3e-3;

/// Healthy stretches to learn from, for each stretch under a fault.
const HEALTHY_SHARE: f64 = 0.5;

/// Deviations are clipped to this range, and divided by [`SCALE`], before they enter.
const RANGE: (f64, f64) = (-5.0, 30.0);
const SCALE: f64 = 5.0;

/// Deviations from which a metric speaks for a resource.
const RESOURCE_MIN: f64 = 4.0;

type Pick = fn(&ServiceView) -> Option<f64>;
const CHANNELS: [Pick; 2] = [|service| service.outstanding, |service| service.server_us.or(service.client_us)];

/// The system.
#[derive(Clone, Debug)]
pub struct Seer {
    /// When a service is named, by its probability.
    pub rule: Selection,
    seed: u64,
    /// In the order of calls, so that the filters see callers and callees side by side.
    services: Vec<ServiceId>,
    normals: BTreeMap<(ServiceId, usize), Gauss>,
    usage: UsageNormals,
    net: Option<Net>,
}

impl Seer {
    /// Untrained; `seed` is for its weights.
    pub fn new(seed: u64) -> Self {
        Self {
            rule: Selection { least: 0.1, share: 0.5 },
            seed,
            services: Vec::new(),
            normals: BTreeMap::new(),
            usage: UsageNormals::default(),
            net: None,
        }
    }

    fn learn_normals(&mut self, views: &[View]) {
        for name in &self.services {
            for (channel, pick) in CHANNELS.into_iter().enumerate() {
                let healthy = views.iter().filter(|view| view.is_healthy());
                let values: Vec<f64> = healthy.filter_map(|view| pick(view.services.get(name)?)).collect();
                self.normals.extend(Gauss::of(&values).map(|normal| ((name.clone(), channel), normal)));
            }
        }
    }

    /// Every channel of every service in one window; what was not measured is as normal.
    fn row(&self, view: &View) -> Vec<f32> {
        let z = |channel: usize, name: &ServiceId| {
            let value = CHANNELS[channel](view.services.get(name)?)?;
            Some(self.normals.get(&(name.clone(), channel))?.z(value))
        };
        let cell =
            |channel: usize, name: &ServiceId| (z(channel, name).unwrap_or(0.0).clamp(RANGE.0, RANGE.1) / SCALE) as f32;
        (0..CHANNELS.len()).flat_map(|channel| self.services.iter().map(move |name| cell(channel, name))).collect()
    }

    /// The stretch that ends with the last of `rows`; its first row stands in for what was before.
    fn stretch(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let missing = STEPS.saturating_sub(rows.len());
        let first = rows.first().into_iter().cycle().take(missing);
        first.chain(&rows[rows.len().saturating_sub(STEPS)..]).cloned().collect()
    }

    /// A stretch for every window under a labelled fault that broke the target, and half as many for healthy ones.
    fn samples(&self, views: &[View], labels: &[Label]) -> Vec<Sample> {
        let rows: Vec<Vec<f32>> = views.iter().map(|view| self.row(view)).collect();
        let culprits: BTreeMap<usize, &Label> = labels.iter().map(|label| (label.window, label)).collect();
        let sample = |window: usize| {
            let broken = culprits.get(&window).filter(|_| !views[window].is_healthy());
            let is_culprit = |name: &ServiceId| broken.is_some_and(|label| label.services.contains(name));
            Sample {
                inputs: Self::stretch(&rows[..=window]),
                targets: self.services.iter().map(|name| f32::from(u8::from(is_culprit(name)))).collect(),
            }
        };
        let (healthy, broken): (Vec<usize>, Vec<usize>) = (0..views.len()).partition(|w| views[*w].is_healthy());
        let broken: Vec<usize> = broken.into_iter().filter(|window| culprits.contains_key(window)).collect();
        let wanted = ((broken.len() as f64 * HEALTHY_SHARE) as usize).clamp(1, healthy.len().max(1));
        let calm = healthy.iter().step_by((healthy.len() / wanted).max(1));
        broken.iter().chain(calm).map(|window| sample(*window)).collect()
    }
}

impl System for Seer {
    fn name(&self) -> &'static str {
        "seer"
    }

    fn train(&mut self, history: &[Observation], slo: &Slo, labels: &[Label]) -> anyhow::Result<()> {
        let views = views(history, slo);
        self.services = ordered(&views, &slo.service);
        self.learn_normals(&views);
        self.usage = UsageNormals::of(&views);
        let samples = self.samples(&views, labels);
        let shape = Shape { services: self.services.len(), channels: CHANNELS.len(), filters: FILTERS, hidden: HIDDEN };
        let mut net = Net::new(shape, self.seed);
        net.train(&samples, EPOCHS, RATE, self.seed);
        self.net = Some(net);
        Ok(())
    }

    fn selection(&mut self) -> Option<&mut Selection> {
        Some(&mut self.rule)
    }

    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer {
        let broken = views(violation(recent, slo), slo);
        let Some(net) = self.net.as_ref().filter(|_| !broken.is_empty()) else {
            return Answer::none(AnswerKind::Nothing);
        };
        let rows: Vec<Vec<f32>> = views(recent, slo).iter().map(|view| self.row(view)).collect();
        let probabilities = net.predict(&Self::stretch(&rows));
        let suspects = self.services.iter().zip(probabilities).map(|(service, p)| Suspect {
            service: service.clone(),
            score: f64::from(p),
            resource: Some(resource(&self.usage.mean_scores(service, &broken), RESOURCE_MIN)),
        });
        select(suspects.collect(), self.rule)
    }
}

/// Every service, breadth first from `entry`; those that it does not reach come last.
fn ordered(views: &[View], entry: &ServiceId) -> Vec<ServiceId> {
    let callees = crate::eval::view::callees(views);
    let (mut order, mut seen) = (vec![entry.clone()], BTreeSet::from([entry.clone()]));
    let mut next = 0;
    // Ends: a service enters the order once.
    while let Some(name) = order.get(next).cloned() {
        next += 1;
        let fresh = callees.get(&name).into_iter().flatten().filter(|callee| seen.insert((*callee).clone()));
        order.extend(fresh.cloned());
    }
    let others: BTreeSet<&ServiceId> = views.iter().flat_map(|view| view.services.keys()).collect();
    order.extend(others.into_iter().filter(|name| seen.insert((*name).clone())).cloned());
    order
}

#[cfg(test)]
mod tests {
    use sage_causal::testing::{Fault, World};

    use super::*;
    use crate::eval::systems::support::{answer, names};

    #[test]
    fn a_kind_of_fault_it_was_taught_is_recognised() {
        let told = answer(&World::chain(), &mut Seer::new(1), &[Fault::Slow(4, 15.0)]);
        assert_eq!(names(&told), ["disk"], "{told:?}");
    }

    #[test]
    fn services_stand_in_the_order_of_calls() {
        let world = World::shop();
        let views = views(&world.windows(3, 0, 2, &[]), &world.slo());
        let order: Vec<String> = ordered(&views, &world.service(0)).iter().map(ToString::to_string).collect();
        assert_eq!((order[0].as_str(), order.len()), ("front", 7));
        let place = |name: &str| order.iter().position(|own| own == name);
        assert!(place("stock") > place("shop") && place("reviews") > place("stock"), "{order:?}");
    }
}
