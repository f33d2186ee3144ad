//! From a verdict to the smallest changes that may restore the target, within what the nodes' policies offer.
//!
//! Pure ranking: it neither remembers what was tried nor decides whether to act. Software, unknown and demand have no
//! knob; they are reported with their evidence.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::{
    observation::{InstanceObservation, Observation},
    verdict::{Culprit, Resource, Verdict, VerdictKind},
};
use sage_common::{
    CgroupPath, Knob, KnobKind, KnobOffer, Metric, Micros, NodeId, OfferRole, ServiceId, Setting, Trust,
};

use crate::core::state::NodeState;

/// Share of a node's cores or link that services may fill; the rest takes the kernel and bursts.
const FILL: f64 = 0.9;
/// Cores in use at this share of what there is are full.
const FULL: f64 = 0.8;
/// A limit must take away at least this share of what a co-runner uses, or it changes nothing.
const BITE: f64 = 0.4;
/// A service that uses this share of its own quota is held back by it.
const OWN_LIMIT_SHARE: f64 = 0.8;
/// Growth of a service's quota in one step.
const GROWTH: f64 = 1.5;
/// Co-runners below this many thousandths of a core are not worth a limit.
const USED_MIN: u64 = 50;
/// A sender on another node that fills this share of its link may be what fills the culprit's.
const REMOTE_SHARE: f64 = 0.3;

/// One change that may help.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// The knob.
    pub knob: Knob,
    /// Its new setting.
    pub setting: Setting,
    /// The setting in force.
    pub before: Setting,
    /// How far policy lets us go.
    pub trust: Trust,
    /// The service it is to help.
    pub service: ServiceId,
    /// What of it is at fault.
    pub resource: Resource,
    /// Why, for people.
    pub reason: String,
    /// The percentile that the model promises.
    pub predicted: Micros,
}

/// What is known of the fleet.
pub struct Fleet<'a> {
    /// Nodes with the knobs they offer.
    pub nodes: &'a BTreeMap<NodeId, NodeState>,
    /// The diagnosed window.
    pub newest: &'a Observation,
    /// Healthy windows, any order: what services use when all is well.
    pub healthy: &'a [&'a Observation],
}

/// Changes that may help against `verdict`, best first. Empty when nothing of it is a matter of knobs.
pub fn candidates(verdict: &Verdict, fleet: &Fleet<'_>) -> Vec<Candidate> {
    if !matches!(verdict.kind, VerdictKind::Culprit | VerdictKind::Partial) {
        return Vec::new();
    }
    let mut found: Vec<Candidate> = Vec::new();
    for culprit in &verdict.culprits {
        let predicted = predicted(verdict, culprit);
        for node in nodes_of(culprit, fleet) {
            let place = Place { node, culprit, predicted, fleet };
            found.extend(place.candidates());
        }
        if culprit.resource == Resource::Network {
            found.extend(remote_senders(culprit, predicted, fleet));
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|one| one.setting.fits(&one.knob) && seen.insert((one.node.clone(), one.knob.clone())));
    found
}

fn predicted(verdict: &Verdict, culprit: &Culprit) -> Micros {
    let alone = verdict.candidates.iter().find(|candidate| candidate.service == culprit.service);
    match alone {
        Some(alone) if verdict.culprits.len() > 1 => alone.counterfactual,
        _ => verdict.counterfactual,
    }
}

/// Nodes where the culprit runs, the bad replica's or the fullest first; then those of the link's other end.
fn nodes_of<'a>(culprit: &'a Culprit, fleet: &Fleet<'a>) -> Vec<&'a NodeId> {
    let fullness =
        if culprit.resource == Resource::Network { Metric::NodeNetworkSent } else { Metric::NodeCpuUtilisation };
    let of = |service: &ServiceId| {
        let mut instances: Vec<&InstanceObservation> = instances(fleet.newest, service).collect();
        let key = |instance: &InstanceObservation| {
            let is_bad = culprit.instance.as_ref() == Some(&instance.instance);
            (is_bad, median(instance, fullness).unwrap_or(0.0))
        };
        instances.sort_by(|a, b| {
            let ((bad_a, full_a), (bad_b, full_b)) = (key(a), key(b));
            bad_b.cmp(&bad_a).then(full_b.total_cmp(&full_a))
        });
        instances.into_iter().map(|instance| &instance.node).collect::<Vec<_>>()
    };
    let mut nodes = of(&culprit.service);
    if let Some(other) = &culprit.link_with {
        nodes.extend(of(other));
    }
    let mut seen = BTreeSet::new();
    nodes.retain(|node| seen.insert(*node));
    nodes
}

fn instances<'a>(observation: &'a Observation, service: &ServiceId) -> impl Iterator<Item = &'a InstanceObservation> {
    let found = observation.services.iter().find(|own| own.service == *service);
    found.into_iter().flat_map(|own| &own.instances)
}

fn median(instance: &InstanceObservation, metric: Metric) -> Option<f64> {
    let found = instance.metrics.iter().find(|(own, _)| *own == metric);
    found.map(|(_, quantiles)| f64::from(quantiles.median()))
}

/// One culprit on one node.
struct Place<'a> {
    node: &'a NodeId,
    culprit: &'a Culprit,
    predicted: Micros,
    fleet: &'a Fleet<'a>,
}

impl<'a> Place<'a> {
    fn candidates(&self) -> Vec<Candidate> {
        match self.culprit.resource {
            Resource::Cpu => self.cpu(),
            Resource::Network => self.network(),
            Resource::Disk | Resource::Memory => self.freezes(|_| true),
            Resource::Software => Vec::new(),
        }
    }

    fn offers(&self, kind: KnobKind) -> impl Iterator<Item = &'a KnobOffer> + use<'a> {
        let offers = self.fleet.nodes.get(self.node).map(|node| &node.offers);
        offers.into_iter().flatten().filter(move |offer| offer.knob.kind() == kind)
    }

    fn co_runners(&self, kind: KnobKind) -> Vec<&'a KnobOffer> {
        let mut offers: Vec<&KnobOffer> =
            self.offers(kind).filter(|offer| offer.role == OfferRole::BestEffort).collect();
        // Whoever uses most first; the sort is stable.
        offers.sort_by_key(|offer| std::cmp::Reverse(offer.used));
        offers
    }

    fn candidate(&self, offer: &KnobOffer, setting: Setting, reason: String) -> Candidate {
        Candidate {
            node: self.node.clone(),
            knob: offer.knob.clone(),
            setting,
            before: offer.current.clone(),
            trust: offer.trust,
            service: self.culprit.service.clone(),
            resource: self.culprit.resource,
            reason,
            predicted: self.predicted,
        }
    }

    /// The victim's own quota where that is what holds it; else the co-runners' quota, weights, and at last a freeze.
    fn cpu(&self) -> Vec<Candidate> {
        let mut found: Vec<Candidate> = self.raise_own_quota().into_iter().collect();
        found.extend(self.limit_co_runners());
        found.extend(self.weights());
        let busy: BTreeSet<CgroupPath> = self
            .co_runners(KnobKind::CpuQuota)
            .iter()
            .filter(|offer| offer.used.is_some_and(|used| used >= USED_MIN))
            .filter_map(|offer| offer.knob.cgroup().cloned())
            .collect();
        found.extend(self.freezes(|cgroup| busy.is_empty() || busy.contains(cgroup)));
        found
    }

    fn raise_own_quota(&self) -> Option<Candidate> {
        let is_own = |offer: &&KnobOffer| offer.role == OfferRole::Service(self.culprit.service.clone());
        let own: Vec<&KnobOffer> = self.offers(KnobKind::CpuQuota).filter(is_own).collect();
        let (offer, quota, used) = own.into_iter().find_map(|offer| match (&offer.current, offer.used) {
            (Setting::Cores(Some(quota)), Some(used)) if used as f64 >= OWN_LIMIT_SHARE * f64::from(*quota) => {
                Some((offer, f64::from(*quota), used))
            }
            _ => None,
        })?;
        let free = (offer.capacity? as f64 * FILL - self.used_in_all()).max(0.0);
        let highest = match offer.highest {
            Some(Setting::Cores(Some(highest))) => f64::from(highest),
            _ => f64::MAX,
        };
        let raised = (quota * GROWTH).min(quota + free).min(highest);
        let setting = Setting::Cores(Some(round_cores(raised)));
        let reason = format!(
            "{} uses {:.2} of its own limit of {:.2} cores, and the node has {:.2} to spare",
            self.culprit.service,
            used as f64 / 1e3,
            quota / 1e3,
            free / 1e3,
        );
        (raised >= quota * 1.1).then(|| self.candidate(offer, setting, reason))
    }

    /// Thousandths of a core that everything on offer uses.
    fn used_in_all(&self) -> f64 {
        self.offers(KnobKind::CpuQuota).filter_map(|offer| offer.used).sum::<u64>() as f64
    }

    fn limit_co_runners(&self) -> Vec<Candidate> {
        let runners = self.co_runners(KnobKind::CpuQuota);
        let all: u64 = runners.iter().filter_map(|offer| offer.used).sum();
        let (now, need) = self.services_use();
        let in_use = all as f64 + now;
        let limit = |offer: &&KnobOffer| {
            let used = offer.used.filter(|used| *used >= USED_MIN)?;
            let others = (all - used) as f64;
            // Where a service starves although the cores are not full, something above holds them all: a parent's
            // limit, say. Then what is in use is all there is.
            let is_full = |capacity: &f64| in_use >= FULL * capacity;
            let there_is = offer.capacity.map(|capacity| capacity as f64).filter(is_full).unwrap_or(in_use);
            let room = there_is * FILL - need - others;
            let wanted = room.min(used as f64 * (1.0 - BITE)).max(lowest_cores(offer));
            let in_force = match offer.current {
                Setting::Cores(Some(current)) => f64::from(current).min(used as f64 * 1.1),
                _ => used as f64,
            };
            let reason = format!(
                "{} starves on {} while {} takes {:.2} cores; the services there need {:.2}",
                self.culprit.service,
                self.node,
                offer.knob.cgroup().map_or("a co-runner", CgroupPath::as_str),
                used as f64 / 1e3,
                need / 1e3,
            );
            (wanted < in_force * 0.95).then(|| self.candidate(offer, Setting::Cores(Some(round_cores(wanted))), reason))
        };
        runners.iter().filter_map(limit).collect()
    }

    /// Thousandths of a core that the services of this node use now, and what they need: that, or what they use when
    /// all is well, whichever is more.
    fn services_use(&self) -> (f64, f64) {
        let is_service = |offer: &&KnobOffer| matches!(offer.role, OfferRole::Service(_));
        let offered: u64 = self.offers(KnobKind::CpuQuota).filter(is_service).filter_map(|offer| offer.used).sum();
        let on_node = |observation: &Observation| {
            let own = observation.services.iter().flat_map(|service| &service.instances);
            let used = own.filter(|one| one.node == *self.node).filter_map(|one| median(one, Metric::CpuUsed));
            used.sum::<f64>() * 1e3
        };
        let now = (offered as f64).max(on_node(self.fleet.newest));
        (now, now.max(self.normal(on_node).unwrap_or(0.0)))
    }

    /// Median over healthy windows.
    fn normal(&self, of: impl Fn(&Observation) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = self.fleet.healthy.iter().map(|observation| of(observation)).collect();
        values.retain(|value| value.is_finite());
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    fn weights(&self) -> Vec<Candidate> {
        let mut found = Vec::new();
        for offer in self.offers(KnobKind::CpuWeight) {
            let Setting::Weight(weight) = offer.current else { continue };
            let (wanted, reason) = match &offer.role {
                OfferRole::Service(service) if *service == self.culprit.service => {
                    let highest = if let Some(Setting::Weight(highest)) = offer.highest { highest } else { 10_000 };
                    (weight.saturating_mul(10).min(highest), format!("{service} is to go before the others"))
                }
                OfferRole::BestEffort => {
                    let lowest = if let Some(Setting::Weight(lowest)) = offer.lowest { lowest } else { 1 };
                    ((weight / 10).max(lowest), format!("{} is to go before best effort", self.culprit.service))
                }
                _ => continue,
            };
            if wanted != weight {
                found.push(self.candidate(offer, Setting::Weight(wanted), reason));
            }
        }
        // The victim's own weight touches nobody's work, so it goes first.
        found.sort_by_key(|candidate| matches!(&candidate.setting, Setting::Weight(weight) if *weight <= 100));
        found
    }

    /// Freezes of best-effort co-runners that `wanted` names, the youngest first.
    fn freezes(&self, wanted: impl Fn(&CgroupPath) -> bool) -> Vec<Candidate> {
        let Some(node) = self.fleet.nodes.get(self.node) else { return Vec::new() };
        let mut offers: Vec<(&KnobOffer, &CgroupPath)> = self
            .co_runners(KnobKind::Freeze)
            .into_iter()
            .filter(|offer| offer.current == Setting::Frozen(false))
            .filter_map(|offer| Some((offer, offer.knob.cgroup()?)))
            .filter(|(_, cgroup)| wanted(cgroup))
            .collect();
        offers.sort_by_key(|(_, cgroup)| std::cmp::Reverse(node.first_offered.get(*cgroup).copied()));
        let freeze = |(offer, cgroup): (&KnobOffer, &CgroupPath)| {
            let reason = format!("{cgroup} shares {} with {} and can wait", self.node, self.culprit.service);
            self.candidate(offer, Setting::Frozen(true), reason)
        };
        offers.into_iter().map(freeze).collect()
    }

    /// A ceiling on what best effort sends from this node, else a freeze.
    fn network(&self) -> Vec<Candidate> {
        let sent = |observation: &Observation| {
            let own = observation.services.iter().flat_map(|service| &service.instances);
            let sent = own.filter(|one| one.node == *self.node).filter_map(|one| median(one, Metric::NodeNetworkSent));
            sent.fold(0.0, f64::max) * 8.0
        };
        let normal = self.normal(sent).unwrap_or(0.0);
        let ceilings = self.co_runners(KnobKind::EgressCeiling);
        let mut found: Vec<Candidate> = ceilings.iter().filter_map(|offer| self.ceiling(offer, normal)).collect();
        found.extend(self.freezes(|_| true));
        found
    }

    fn ceiling(&self, offer: &KnobOffer, normal: f64) -> Option<Candidate> {
        let lowest = if let Some(Setting::Rate(Some(lowest))) = offer.lowest { lowest as f64 } else { 8_000.0 };
        let room = match (offer.capacity, offer.used) {
            // Half of the link at most: a ceiling near the link's own rate changes nothing for a queue in front of it.
            (Some(capacity), None) => (capacity as f64 * FILL - normal).min(capacity as f64 / 2.0),
            (Some(capacity), Some(used)) => {
                (capacity as f64 * FILL - normal).min(capacity as f64 / 2.0).min(used as f64 * (1.0 - BITE))
            }
            (None, Some(used)) => used as f64 / 4.0,
            (None, None) => lowest,
        };
        let rate = room.max(lowest) as u64;
        let is_lower = !matches!(offer.current, Setting::Rate(Some(current)) if current as f64 <= rate as f64 * 1.05);
        let reason = format!(
            "the link of {} is to carry {} first; the services there send {:.1} Mbit/s",
            self.node,
            self.culprit.service,
            normal / 1e6,
        );
        is_lower.then(|| self.candidate(offer, Setting::Rate(Some(rate)), reason))
    }
}

/// Best-effort senders on other nodes that fill much of their link: what they send arrives somewhere.
fn remote_senders(culprit: &Culprit, predicted: Micros, fleet: &Fleet<'_>) -> Vec<Candidate> {
    let own: BTreeSet<&NodeId> = nodes_of(culprit, fleet).into_iter().collect();
    let others = fleet.nodes.keys().filter(|node| !own.contains(node));
    others
        .flat_map(|node| {
            let place = Place { node, culprit, predicted, fleet };
            let is_loud = |offer: &&KnobOffer| match (offer.used, offer.capacity) {
                (Some(used), Some(capacity)) => used as f64 >= capacity as f64 * REMOTE_SHARE,
                _ => false,
            };
            let loud: Vec<&KnobOffer> = place.co_runners(KnobKind::EgressCeiling).into_iter().filter(is_loud).collect();
            loud.into_iter().filter_map(|offer| place.ceiling(offer, 0.0)).collect::<Vec<_>>()
        })
        .collect()
}

fn lowest_cores(offer: &KnobOffer) -> f64 {
    match offer.lowest {
        Some(Setting::Cores(Some(lowest))) => f64::from(lowest).max(10.0),
        _ => 10.0,
    }
}

/// Whole hundredths of a core, at least the kernel's smallest quota.
fn round_cores(millicores: f64) -> u32 {
    ((millicores / 10.0).round() as u32).max(1).saturating_mul(10)
}

#[cfg(test)]
mod tests {
    use sage_common::{Generation, InstanceId, LinkName, Timestamp, UsageQuantiles};

    use super::*;
    use crate::core::testing::{cgroup, node, service, slo, verdict};

    fn instance(name: &str, on: &str, own: f32, cpu: f32) -> InstanceObservation {
        InstanceObservation {
            instance: InstanceId::sanitized(name),
            node: node(on),
            metrics: vec![
                (Metric::CpuUsed, UsageQuantiles([own; 6])),
                (Metric::NodeCpuUtilisation, UsageQuantiles([cpu; 6])),
                (Metric::NodeNetworkSent, UsageQuantiles([1e6; 6])),
            ],
        }
    }

    /// geo has a replica on `a` (half full) and one on `b` (full), which use `own` cores.
    fn observation(own: f32) -> Observation {
        Observation {
            start: Timestamp::from_micros(0),
            length: Micros::from_secs(10),
            edges: Vec::new(),
            services: vec![sage_causal::observation::ServiceObservation {
                service: service("geo"),
                instances: vec![instance("geo-1", "a", own, 0.5), instance("geo-2", "b", own, 0.99)],
            }],
            traces: Vec::new(),
            skeletons: Vec::new(),
            objectives: Vec::new(),
            offered_per_s: 0.0,
            completeness: 1.0,
            trace_share: 1.0,
        }
    }

    fn offer(knob: Knob, role: OfferRole, current: Setting, used: Option<u64>) -> KnobOffer {
        let capacity = Some(if knob.kind() == KnobKind::EgressCeiling { 100_000_000 } else { 2_000 });
        KnobOffer { knob, role, current, lowest: None, highest: None, trust: Trust::Auto, used, capacity }
    }

    fn quota(path: &str, role: OfferRole, current: Option<u32>, used: u64) -> KnobOffer {
        offer(Knob::CpuQuota { cgroup: cgroup(path) }, role, Setting::Cores(current), Some(used))
    }

    fn freeze(path: &str) -> KnobOffer {
        offer(Knob::Freeze { cgroup: cgroup(path) }, OfferRole::BestEffort, Setting::Frozen(false), None)
    }

    fn ceiling(path: &str, used: Option<u64>) -> KnobOffer {
        let link = LinkName::try_from("eth0".to_owned()).expect("valid");
        let knob = Knob::EgressCeiling { link, cgroup: cgroup(path) };
        offer(knob, OfferRole::BestEffort, Setting::Rate(None), used)
    }

    fn geo() -> OfferRole {
        OfferRole::Service(service("geo"))
    }

    fn plan(resource: Resource, offers: Vec<(&str, Vec<KnobOffer>)>) -> Vec<(String, String, String)> {
        plan_of(&verdict(&slo(), &service("geo"), resource, 2e5, Generation(1), Timestamp::default()), offers)
    }

    fn plan_of(verdict: &Verdict, offers: Vec<(&str, Vec<KnobOffer>)>) -> Vec<(String, String, String)> {
        let (newest, healthy) = (observation(0.1), observation(0.3));
        let nodes: BTreeMap<NodeId, NodeState> = offers
            .into_iter()
            .map(|(name, offers)| {
                let cgroups = offers.iter().filter_map(|offer| offer.knob.cgroup().cloned());
                // Later in the list, later seen.
                let first_offered = cgroups.zip(1..).collect();
                let mut state = NodeState::default();
                (state.offers, state.first_offered) = (offers, first_offered);
                (node(name), state)
            })
            .collect();
        let fleet = Fleet { nodes: &nodes, newest: &newest, healthy: &[&healthy] };
        candidates(verdict, &fleet)
            .into_iter()
            .map(|one| (one.node.to_string(), one.knob.to_string(), one.setting.to_string()))
            .collect()
    }

    fn row(node: &str, knob: &str, setting: &str) -> (String, String, String) {
        (node.into(), knob.into(), setting.into())
    }

    #[test]
    fn a_victim_at_its_own_limit_gets_more_when_the_node_has_more() {
        let rows = plan(Resource::Cpu, vec![("b", vec![quota("geo", geo(), Some(500), 480)])]);
        assert_eq!(rows, [row("b", "cpu_quota(geo)", "0.75 cores")]);
        let full = vec![
            quota("geo", geo(), Some(500), 480),
            quota("other", OfferRole::Service(service("other")), None, 1_400),
        ];
        assert!(plan(Resource::Cpu, vec![("b", full)]).is_empty(), "nothing to spare, nobody to limit");
    }

    #[test]
    fn a_co_runner_is_limited_to_what_the_services_leave_then_frozen() {
        let offers =
            vec![quota("geo", geo(), None, 300), quota("hog", OfferRole::BestEffort, None, 1_600), freeze("hog")];
        let rows = plan(Resource::Cpu, vec![("b", offers)]);
        assert_eq!(rows, [row("b", "cpu_quota(hog)", "0.96 cores"), row("b", "freeze(hog)", "frozen")]);
    }

    #[test]
    fn under_a_parents_limit_what_is_in_use_is_all_there_is() {
        let offers = vec![quota("geo", geo(), None, 100), quota("hog", OfferRole::BestEffort, None, 500)];
        let rows = plan(Resource::Cpu, vec![("b", offers)]);
        // 0.6 cores are in use, a tenth of it is spare, and the service needs 0.3 when all is well.
        assert_eq!(rows, [row("b", "cpu_quota(hog)", "0.24 cores")]);
    }

    #[test]
    fn policys_lowest_setting_holds_and_idle_co_runners_are_left_alone() {
        let mut hog = quota("hog", OfferRole::BestEffort, None, 1_600);
        hog.lowest = Some(Setting::Cores(Some(1_200)));
        let offers = vec![quota("geo", geo(), None, 300), hog, quota("idle", OfferRole::BestEffort, None, 5)];
        assert_eq!(plan(Resource::Cpu, vec![("b", offers)]), [row("b", "cpu_quota(hog)", "1.20 cores")]);
    }

    #[test]
    fn the_fullest_node_of_the_culprit_comes_first_and_its_bad_replica_before_that() {
        let offers = |name| vec![quota(name, OfferRole::BestEffort, None, 1_500)];
        let both = || vec![("a", offers("one")), ("b", offers("two"))];
        let nodes = |rows: Vec<(String, String, String)>| rows.into_iter().map(|row| row.0).collect::<Vec<_>>();
        assert_eq!(nodes(plan(Resource::Cpu, both())), ["b", "a"]);
        let mut bad = verdict(&slo(), &service("geo"), Resource::Cpu, 2e5, Generation(1), Timestamp::default());
        bad.culprits[0].instance = Some(InstanceId::sanitized("geo-1"));
        assert_eq!(nodes(plan_of(&bad, both())), ["a", "b"]);
    }

    #[test]
    fn disk_and_memory_freeze_the_youngest_best_effort_first() {
        for resource in [Resource::Disk, Resource::Memory] {
            let rows = plan(resource, vec![("b", vec![freeze("old"), freeze("young")])]);
            assert_eq!(rows, [row("b", "freeze(young)", "frozen"), row("b", "freeze(old)", "frozen")]);
        }
    }

    #[test]
    fn a_full_link_puts_a_ceiling_on_best_effort_here_and_on_loud_senders_elsewhere() {
        let offers = vec![
            ("b", vec![ceiling("bulk", None), freeze("bulk")]),
            ("c", vec![ceiling("loud", Some(80_000_000)), ceiling("quiet", Some(1_000_000))]),
        ];
        let rows = plan(Resource::Network, offers);
        assert_eq!(
            rows,
            [
                row("b", "egress_ceiling(eth0, bulk)", "50.0 Mbit/s"),
                row("b", "freeze(bulk)", "frozen"),
                row("c", "egress_ceiling(eth0, loud)", "48.0 Mbit/s"),
            ]
        );
    }

    #[test]
    fn software_demand_and_unknown_touch_no_knob() {
        let offers = || vec![("b", vec![quota("hog", OfferRole::BestEffort, None, 1_600), freeze("hog")])];
        assert!(plan(Resource::Software, offers()).is_empty());
        for kind in [VerdictKind::Demand, VerdictKind::Unknown] {
            let one = verdict(&slo(), &service("geo"), Resource::Cpu, 2e5, Generation(1), Timestamp::default());
            assert!(plan_of(&Verdict { kind, ..one }, offers()).is_empty());
        }
    }

    #[test]
    fn what_is_limited_already_is_not_limited_again() {
        let offers = vec![quota("geo", geo(), None, 300), quota("hog", OfferRole::BestEffort, Some(500), 500)];
        let rows = plan(Resource::Cpu, vec![("b", offers)]);
        assert_eq!(rows, [row("b", "cpu_quota(hog)", "0.30 cores")], "one more step down");
    }
}
