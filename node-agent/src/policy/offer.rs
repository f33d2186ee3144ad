//! Which knobs this node offers to the aggregator.

use sage_common::{CgroupPath, Knob, KnobKind, KnobOffer, LinkName, OfferRole, ServiceId, Setting, Trust};

use super::{Grant, Policy};

/// A cgroup that is there now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CgroupState {
    /// Which one.
    pub cgroup: CgroupPath,
    /// The service whose instance it is, if any.
    pub service: Option<ServiceId>,
    /// CPU time used in the window, in thousandths of a core.
    pub used_millicores: Option<u64>,
}

impl CgroupState {
    /// A cgroup whose usage is not known.
    pub const fn new(cgroup: CgroupPath, service: Option<ServiceId>) -> Self {
        Self { cgroup, service, used_millicores: None }
    }
}

/// A link that is there now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LinkState {
    /// Which one.
    pub link: LinkName,
    /// Bits per second sent in the window.
    pub used_bits: Option<u64>,
    /// Speed in bits per second as the driver tells it; the policy's `rate_mbit` goes before.
    pub speed_bits: Option<u64>,
}

/// What is on the node now, as far as policy needs to know.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PolicyInputs {
    /// Every cgroup that is a service's instance or might be best-effort.
    pub cgroups: Vec<CgroupState>,
    /// Every measured link.
    pub links: Vec<LinkState>,
    /// CPUs of the node, in thousandths of a core.
    pub capacity_millicores: Option<u64>,
    /// The agent's own cgroup, which is never touched.
    pub own_cgroup: Option<CgroupPath>,
}

impl PolicyInputs {
    /// The service whose instance `cgroup` is.
    pub fn service_of(&self, cgroup: &CgroupPath) -> Option<&ServiceId> {
        self.cgroups.iter().find(|state| state.cgroup == *cgroup).and_then(|state| state.service.as_ref())
    }
}

/// The most offers of one node: a window message has a bounded size, and no planner looks further.
pub const OFFERS_MAX: usize = 512;

impl Policy {
    /// The knobs that policy lets the aggregator know of, each with its bounds. `current` reads a knob; what cannot be
    /// read is not offered. At most [`OFFERS_MAX`].
    pub fn offers(&self, inputs: &PolicyInputs, current: impl Fn(&Knob) -> Option<Setting>) -> Vec<KnobOffer> {
        let links = inputs.links.iter().flat_map(|state| self.link_offers(state));
        let cgroups = inputs.cgroups.iter().flat_map(|state| self.cgroup_offers(state, inputs));
        links
            .chain(cgroups)
            .filter_map(|offer| Some(KnobOffer { current: current(&offer.knob)?, ..offer }))
            .take(OFFERS_MAX)
            .collect()
    }

    fn link_offers(&self, state: &LinkState) -> Vec<KnobOffer> {
        let rule = self.links.iter().find(|rule| rule.link == state.link);
        let knob = |_| Some(Knob::EgressRate { link: state.link.clone() });
        let capacity = self.egress().rate(&state.link).or(state.speed_bits);
        rule.map_or(Vec::new(), |rule| offers(&rule.grant, &OfferRole::Node, knob, |_| (state.used_bits, capacity)))
    }

    fn cgroup_offers(&self, state: &CgroupState, inputs: &PolicyInputs) -> Vec<KnobOffer> {
        let cgroup = &state.cgroup;
        let is_own = inputs.own_cgroup.as_ref().is_some_and(|own| own.is_within(cgroup) || cgroup.is_within(own));
        if self.is_protected(cgroup) || is_own {
            return Vec::new();
        }
        let (grant, role) = match (self.best_effort_grant(cgroup), &state.service) {
            (Some(grant), _) => (grant, OfferRole::BestEffort),
            (None, Some(service)) => match self.service_grant(service) {
                Some(grant) => (grant, OfferRole::Service(service.clone())),
                None => return Vec::new(),
            },
            (None, None) => return Vec::new(),
        };
        let usage = |_| (state.used_millicores, inputs.capacity_millicores);
        let mut found = offers(grant, &role, |kind| cgroup_knob(kind, cgroup), usage);
        for link in &inputs.links {
            let ceiling = |kind| {
                let knob = Knob::EgressCeiling { link: link.link.clone(), cgroup: cgroup.clone() };
                (kind == KnobKind::EgressCeiling).then_some(knob)
            };
            let capacity = self.egress().rate(&link.link).or(link.speed_bits);
            found.extend(offers(grant, &role, ceiling, |_| (None, capacity)));
        }
        found
    }
}

/// The knob of this kind that belongs to `cgroup` alone.
fn cgroup_knob(kind: KnobKind, cgroup: &CgroupPath) -> Option<Knob> {
    let cgroup = cgroup.clone();
    match kind {
        KnobKind::CpuQuota => Some(Knob::CpuQuota { cgroup }),
        KnobKind::CpuWeight => Some(Knob::CpuWeight { cgroup }),
        KnobKind::Cpuset => Some(Knob::Cpuset { cgroup }),
        KnobKind::Freeze => Some(Knob::Freeze { cgroup }),
        KnobKind::EgressRate | KnobKind::EgressCeiling => None,
    }
}

/// One offer per knob of `grant` that `knob` can name. `usage` gives what is used and what there is, for knobs of an
/// amount; a freeze or a set of CPUs has none.
fn offers(
    grant: &Grant,
    role: &OfferRole,
    knob: impl Fn(KnobKind) -> Option<Knob>,
    usage: impl Fn(KnobKind) -> (Option<u64>, Option<u64>),
) -> Vec<KnobOffer> {
    if grant.trust == Trust::Observe {
        return Vec::new();
    }
    let offer = |kind: KnobKind| {
        let knob = knob(kind)?;
        let (lowest, highest) = grant.bounds(kind);
        let (used, capacity) = usage(kind);
        // `current` is filled in by the caller, who can read it.
        let current = Setting::Frozen(false);
        Some(KnobOffer { knob, role: role.clone(), current, lowest, highest, trust: grant.trust, used, capacity })
    };
    grant.knobs.iter().copied().filter_map(offer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(path: &str) -> CgroupPath {
        CgroupPath::try_from(path.to_owned()).expect("valid")
    }

    #[test]
    fn offers_carry_role_bounds_trust_usage_and_capacity() {
        let policy = Policy::parse(
            r#"
            [defaults]
            protected = ["app/db"]
            [[service]]
            name = "*"
            trust = "auto"
            knobs = ["cpu_quota"]
            cores_max = 2
            [[service]]
            name = "quiet"
            trust = "observe"
            knobs = ["cpu_quota"]
            [[best_effort]]
            cgroup = "app/batch"
            knobs = ["freeze", "egress_ceiling"]
            [[link]]
            name = "eth0"
            rate_mbit = 100
            knobs = ["egress_rate"]
            "#,
            "test",
        )
        .expect("valid");
        let state = |path: &str, service: Option<&str>| CgroupState {
            used_millicores: Some(700),
            ..CgroupState::new(cgroup(path), service.map(|name| name.parse().expect("valid")))
        };
        let link = LinkName::try_from("eth0".to_owned()).expect("valid");
        let inputs = PolicyInputs {
            cgroups: vec![
                state("app/geo", Some("geo")),
                state("app/db", Some("db")),
                state("app/q", Some("quiet")),
                state("app/batch", None),
                state("other", None),
            ],
            links: vec![LinkState { link: link.clone(), used_bits: Some(5), speed_bits: Some(1) }],
            capacity_millicores: Some(4_000),
            own_cgroup: None,
        };

        let unreadable = Knob::Freeze { cgroup: cgroup("app/batch") };
        let offers = policy.offers(&inputs, |knob| (*knob != unreadable).then_some(Setting::Rate(None)));

        let shown: Vec<_> =
            offers.iter().map(|offer| (offer.knob.to_string(), offer.trust, offer.used, offer.capacity)).collect();
        assert_eq!(
            shown,
            [
                ("egress_rate(eth0)".to_owned(), Trust::Recommend, Some(5), Some(100_000_000)),
                ("cpu_quota(app/geo)".to_owned(), Trust::Auto, Some(700), Some(4_000)),
                ("egress_ceiling(eth0, app/batch)".to_owned(), Trust::Recommend, None, Some(100_000_000)),
            ]
        );
        assert_eq!(offers[1].role, OfferRole::Service("geo".parse().expect("valid")));
        assert_eq!(offers[1].highest, Some(Setting::Cores(Some(2_000))));
        assert_eq!(offers[2].role, OfferRole::BestEffort);
        assert_eq!(offers[2].current, Setting::Rate(None));
    }
}
