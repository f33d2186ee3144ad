//! The two-level search: services first, greedily, then the resources of each.
//!
//! Source: Sage (ASPLOS'21), section 4.3: "the microservice that reduces the end-to-end latency to just below QoS is
//! signaled as the culprit"; for several, "adding each time the tier which would have reduced the end-to-end latency the
//! most".

use std::collections::BTreeSet;

use sage_common::{MetricGroup, Micros, ServiceId, Slo};

use crate::{
    observation::Observation,
    paper::{PaperModel, counterfactual::World, node::Column},
    pool,
    robust::normal_cdf,
    search::{MEMBERS_MAX, P_ENOUGH},
    verdict::{Candidate, Culprit, Evidence, EvidenceKind, Resource, Verdict, VerdictKind},
};

/// A member must lower the percentile by this much, in logs: less is the noise of the decoders.
const GAIN_MIN: f64 = 0.02;

/// A resource must do this share of what its whole service does; below it no resource explains the service.
const RESOURCE_SHARE_MIN: f64 = 0.25;

/// Pieces of evidence per culprit.
const EVIDENCE_MAX: usize = 4;

const GROUPS: [MetricGroup; 5] =
    [MetricGroup::Cpu, MetricGroup::Memory, MetricGroup::Disk, MetricGroup::Network, MetricGroup::Process];

/// Diagnoses the newest window of `recent` that misses `slo`.
pub fn diagnose(model: &PaperModel, recent: &[Observation], slo: &Slo) -> Verdict {
    let violated = recent.iter().rev().find(|window| pool::is_violated(window, slo));
    let window = violated.or(recent.last());
    let observed = window.and_then(|window| pool::latency_us(window, slo));
    let start = window.map(|window| window.start).unwrap_or_default();
    let mut verdict = Verdict {
        slo: slo.name.clone(),
        window: start,
        kind: VerdictKind::Unknown,
        culprits: Vec::new(),
        observed: observed.map_or(Micros::ZERO, |us| Micros::new(us as u64)),
        target: slo.target,
        counterfactual: observed.map_or(Micros::ZERO, |us| Micros::new(us as u64)),
        p_restored: 0.0,
        candidates: Vec::new(),
        path: Vec::new(),
        missing: Vec::new(),
        generation: model.generation,
        model_age: start.since(model.newest).unwrap_or_default(),
    };
    let (Some(window), Some(observed)) = (violated, observed) else {
        verdict.p_restored = f64::from(u8::from(observed.is_some()));
        verdict.missing = vec!["the target is met".to_owned()];
        return verdict;
    };
    let Some(world) = World::new(model, window, slo) else {
        verdict.missing = vec!["no net fits this window".to_owned()];
        return verdict;
    };
    let target = (slo.target.get().max(1) as f64).ln();
    Search { model, world: &world, target, error: model.error(slo), observed: observed.ln() }.fill(verdict)
}

struct Search<'a> {
    model: &'a PaperModel,
    world: &'a World<'a>,
    /// `ln us`, as are all latencies here.
    target: f64,
    error: f64,
    observed: f64,
}

impl Search<'_> {
    fn fill(&self, mut verdict: Verdict) -> Verdict {
        let mut singles: Vec<(ServiceId, f64)> =
            self.services().into_iter().map(|service| (service.clone(), self.without(&[service]))).collect();
        singles.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (set, counterfactual) = self.greedy(&singles);
        verdict.p_restored = self.p_met(counterfactual);
        verdict.kind = match (set.is_empty(), verdict.p_restored >= P_ENOUGH) {
            (true, _) => VerdictKind::Unknown,
            (false, true) => VerdictKind::Culprit,
            (false, false) => VerdictKind::Partial,
        };
        verdict.counterfactual = micros(counterfactual);
        verdict.culprits = set.iter().map(|service| self.culprit(service, &set)).collect();
        verdict.candidates = singles.iter().map(|(service, alone)| self.candidate(service, *alone)).collect();
        if set.is_empty() {
            verdict.missing = vec!["no service's metrics explain the latency".to_owned()];
        }
        verdict
    }

    /// Adds the service that lowers the percentile most until the target is met.
    fn greedy(&self, singles: &[(ServiceId, f64)]) -> (Vec<ServiceId>, f64) {
        let (mut set, mut here) = (Vec::new(), self.observed);
        while set.len() < MEMBERS_MAX && (set.is_empty() || self.p_met(here) < P_ENOUGH) {
            let with = |service: &ServiceId, alone: f64| {
                let next = if set.is_empty() {
                    alone
                } else {
                    self.without(&[&set[..], std::slice::from_ref(service)].concat())
                };
                (service.clone(), next)
            };
            let next = singles.iter().filter(|(service, _)| !set.contains(service)).map(|(s, alone)| with(s, *alone));
            let Some((service, next)) = next.min_by(|a, b| a.1.total_cmp(&b.1)) else { break };
            if here - next < GAIN_MIN {
                break;
            }
            set.push(service);
            here = next;
        }
        (set, here)
    }

    fn services(&self) -> BTreeSet<ServiceId> {
        self.model.nodes.iter().flat_map(|(node, _)| node.services.clone()).collect()
    }

    /// The percentile had every metric of `services` been normal.
    fn without(&self, services: &[ServiceId]) -> f64 {
        self.but_for(&|column| services.contains(&column.service))
    }

    fn but_for(&self, is_repaired: &dyn Fn(&Column) -> bool) -> f64 {
        let value = self.world.counterfactual(is_repaired).filter(|value| value.is_finite());
        value.unwrap_or(self.observed)
    }

    fn p_met(&self, counterfactual: f64) -> f64 {
        normal_cdf((self.target - counterfactual) / self.error)
    }

    fn candidate(&self, service: &ServiceId, alone: f64) -> Candidate {
        Candidate {
            service: service.clone(),
            counterfactual: micros(alone),
            p_restored: self.p_met(alone),
            own_excess_us: 0.0,
            null_rank: 0.5,
        }
    }

    /// The resource whose metrics alone do most of what the whole service does, the other members being normal.
    fn culprit(&self, service: &ServiceId, set: &[ServiceId]) -> Culprit {
        let others: Vec<ServiceId> = set.iter().filter(|other| *other != service).cloned().collect();
        let before = self.without(&others);
        let all = before - self.without(set);
        let gain = |group: MetricGroup| {
            let is_own = |column: &Column| column.service == *service && column.metric.group() == group;
            before - self.but_for(&|column| others.contains(&column.service) || is_own(column))
        };
        let gains: Vec<(MetricGroup, f64)> = GROUPS.into_iter().map(|group| (group, gain(group))).collect();
        let total: f64 = gains.iter().map(|(_, gain)| gain.max(0.0)).sum();
        let best = gains.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let named = best.filter(|(_, gain)| *gain > 0.0 && *gain >= RESOURCE_SHARE_MIN * all);
        let (resource, p) = named.map_or((Resource::Software, 0.5), |(group, gain)| (group.into(), gain / total));
        Culprit {
            service: service.clone(),
            resource,
            p_resource: p,
            link_with: None,
            instance: None,
            evidence: self.evidence(service, resource),
        }
    }

    fn evidence(&self, service: &ServiceId, resource: Resource) -> Vec<Evidence> {
        let scale = self.model.options.scale;
        let own = self.model.nodes.iter().filter(|(node, _)| node.services.contains(service));
        let columns = own.flat_map(|(node, _)| &node.columns).filter(|column| column.service == *service);
        let speaks = |column: &&Column| Resource::from(column.metric.group()) == resource;
        let mut evidence: Vec<Evidence> = columns
            .filter(speaks)
            .filter_map(|column| {
                let value = column.observed(&self.world.graph, &self.world.frame, scale)?;
                Some(Evidence {
                    what: EvidenceKind::Metric(column.metric),
                    normal: column.unit(column.normal, scale),
                    observed: column.unit(value, scale),
                    z: (value - column.normal) / column.spread,
                })
            })
            .collect();
        evidence.sort_by(|a, b| b.z.total_cmp(&a.z));
        evidence.truncate(EVIDENCE_MAX);
        evidence
    }
}

fn micros(log: f64) -> Micros {
    Micros::new(log.exp().round() as u64)
}
