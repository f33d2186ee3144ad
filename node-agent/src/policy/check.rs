//! Whether the policy allows one setting on one knob.

use sage_common::{CgroupPath, Knob, Micros, ServiceId, Setting, Trust};
use sage_protocol::message::Refusal;

use super::{Grant, History, Policy, PolicyInputs};

impl Policy {
    /// Whether `setting` may be put on `knob` for `lease`, for the sake of `service`. `inputs` says whose cgroup is
    /// whose. Trust `approve` counts as allowed: the aggregator sends only what an operator has approved.
    ///
    /// # Errors
    ///
    /// [`Refusal::Unsupported`] if the setting does not fit the knob, [`Refusal::Policy`] with the rule otherwise.
    pub fn check(
        &self,
        request: &Request<'_>,
        inputs: &PolicyInputs,
        now: Micros,
        history: &History,
    ) -> Result<(), Refusal> {
        let Request { knob, setting, service, lease } = *request;
        if !setting.fits(knob) {
            return Err(Refusal::Unsupported(format!("{setting} does not fit {knob}")));
        }
        if let Some(cgroup) = knob.cgroup() {
            self.check_unprotected(cgroup, inputs)?;
        }
        let grant = self.grant(knob, inputs)?;
        if grant.trust < Trust::Approve {
            return refuse(format!("{knob} for {service}: trust is {:?}, want approve or auto", grant.trust));
        }
        if !grant.knobs.contains(&knob.kind()) {
            return refuse(format!("{} is not among the knobs of the rule that covers {knob}", knob.kind()));
        }
        check_bounds(grant, knob, setting)?;
        self.check_lease(lease)?;
        self.check_pace(knob, now, history)
    }

    /// Whether a lease of this length may be had.
    ///
    /// # Errors
    ///
    /// [`Refusal::Policy`] if it is longer than `lease_max_ms`.
    pub fn check_lease(&self, lease: Micros) -> Result<(), Refusal> {
        if lease > self.lease_max {
            return refuse(format!("a lease of {lease} is longer than lease_max_ms allows ({})", self.lease_max));
        }
        Ok(())
    }

    fn check_unprotected(&self, cgroup: &CgroupPath, inputs: &PolicyInputs) -> Result<(), Refusal> {
        if self.is_protected(cgroup) {
            return refuse(format!("{cgroup} is protected"));
        }
        // A limit on our own cgroup could keep us from ever lifting it again.
        match &inputs.own_cgroup {
            Some(own) if own.is_within(cgroup) || cgroup.is_within(own) => {
                refuse(format!("{cgroup} is the agent's own"))
            }
            _ => Ok(()),
        }
    }

    fn check_pace(&self, knob: &Knob, now: Micros, history: &History) -> Result<(), Refusal> {
        if history.rested(knob, now).is_some_and(|rested| rested < self.cooldown) {
            return refuse(format!("{knob} was given back less than cooldown_ms ago ({})", self.cooldown));
        }
        if history.begun_within_hour(now) >= self.actions_per_hour as usize {
            return refuse(format!("{} actions began within the last hour (actions_per_hour)", self.actions_per_hour));
        }
        Ok(())
    }

    /// The rule that covers `knob`: a best-effort rule before a service's, because the operator named that cgroup.
    pub(super) fn grant(&self, knob: &Knob, inputs: &PolicyInputs) -> Result<&Grant, Refusal> {
        let found = match knob {
            Knob::EgressRate { link } => self.links.iter().find(|rule| rule.link == *link).map(|rule| &rule.grant),
            Knob::EgressCeiling { cgroup, .. } | Knob::Freeze { cgroup } => self.best_effort_grant(cgroup),
            Knob::CpuQuota { cgroup } | Knob::CpuWeight { cgroup } | Knob::Cpuset { cgroup } => self
                .best_effort_grant(cgroup)
                .or_else(|| inputs.service_of(cgroup).and_then(|service| self.service_grant(service))),
        };
        found.ok_or_else(|| Refusal::Policy(format!("no rule covers {knob}")))
    }

    pub(super) fn best_effort_grant(&self, cgroup: &CgroupPath) -> Option<&Grant> {
        self.best_effort.iter().find(|rule| rule.cgroup.matches(cgroup.as_str())).map(|rule| &rule.grant)
    }

    pub(super) fn service_grant(&self, service: &ServiceId) -> Option<&Grant> {
        self.services.iter().find(|rule| rule.name.matches(service.as_str())).map(|rule| &rule.grant)
    }
}

/// One change that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The knob.
    pub knob: &'a Knob,
    /// Its new setting.
    pub setting: &'a Setting,
    /// The service it is meant to help.
    pub service: &'a ServiceId,
    /// How long it is to last without renewal.
    pub lease: Micros,
}

fn check_bounds(grant: &Grant, knob: &Knob, setting: &Setting) -> Result<(), Refusal> {
    let (low, high) = grant.bounds(knob.kind());
    // "No limit" sorts below every limit in `Option`, but lies above every highest limit.
    let is_unlimited = matches!(setting, Setting::Cores(None) | Setting::Rate(None));
    if let Some(low) = low
        && !is_unlimited
        && *setting < low
    {
        return refuse(format!("{setting} on {knob} is below the lowest allowed, {low}"));
    }
    if let Some(high) = high
        && (is_unlimited || *setting > high)
    {
        return refuse(format!("{setting} on {knob} is above the highest allowed, {high}"));
    }
    Ok(())
}

fn refuse(why: String) -> Result<(), Refusal> {
    Err(Refusal::Policy(why))
}

#[cfg(test)]
mod tests {
    use sage_common::{CpuList, LinkName};

    use super::*;
    use crate::policy::CgroupState;

    const POLICY: &str = r#"
        [defaults]
        lease_max_ms = 60000
        actions_per_hour = 2
        cooldown_ms = 5000
        protected = ["system.slice/ssh*"]
        [[service]]
        name = "*"
        trust = "auto"
        knobs = ["cpu_quota", "cpu_weight"]
        cores_min = 0.1
        cores_max = 2.0
        [[service]]
        name = "db"
        trust = "recommend"
        knobs = ["cpu_quota"]
        [[best_effort]]
        cgroup = "app/batch*"
        trust = "approve"
        knobs = ["cpu_quota", "freeze", "egress_ceiling"]
        cores_min = 0.05
        egress_min_mbit = 1
        [[link]]
        name = "eth0"
        trust = "auto"
        knobs = ["egress_rate"]
        egress_min_mbit = 10
    "#;

    fn cgroup(path: &str) -> CgroupPath {
        CgroupPath::try_from(path.to_owned()).expect("valid")
    }

    fn quota(path: &str) -> Knob {
        Knob::CpuQuota { cgroup: cgroup(path) }
    }

    fn link(name: &str) -> LinkName {
        LinkName::try_from(name.to_owned()).expect("valid")
    }

    fn check_with(
        knob: &Knob,
        setting: &Setting,
        lease: Micros,
        now: Micros,
        history: &History,
    ) -> Result<(), Refusal> {
        let policy = Policy::parse(POLICY, "test").expect("valid");
        let owned = |path: &str, service: &str| CgroupState::new(cgroup(path), Some(service.parse().expect("valid")));
        let inputs = PolicyInputs {
            cgroups: vec![owned("app/geo", "geo"), owned("app/db", "db"), owned("system.slice/ssh.service", "ssh")],
            own_cgroup: Some(cgroup("sage/agent")),
            ..PolicyInputs::default()
        };
        let service = "geo".parse().expect("valid");
        policy.check(&Request { knob, setting, service: &service, lease }, &inputs, now, history)
    }

    fn check(knob: &Knob, setting: &Setting) -> Result<(), Refusal> {
        check_with(knob, setting, Micros::from_secs(10), Micros::ZERO, &History::default())
    }

    #[test]
    fn what_a_rule_covers_within_its_bounds_is_allowed() {
        for (knob, setting) in [
            (quota("app/geo"), Setting::Cores(Some(2_000))),
            (quota("app/batch1"), Setting::Cores(None)),
            (Knob::Freeze { cgroup: cgroup("app/batch1") }, Setting::Frozen(true)),
            (Knob::EgressRate { link: link("eth0") }, Setting::Rate(Some(10_000_000))),
            (Knob::EgressCeiling { link: link("eth9"), cgroup: cgroup("app/batch1") }, Setting::Rate(Some(1_000_000))),
        ] {
            assert_eq!(check(&knob, &setting), Ok(()), "{knob} {setting}");
        }
    }

    #[test]
    fn what_no_rule_covers_or_a_bound_forbids_is_refused_with_the_rule() {
        let cpus = Setting::Cpus(CpuList::try_from(vec![0]).expect("valid"));
        for (knob, setting, why) in [
            (quota("app/geo"), Setting::Cores(Some(2_001)), "above the highest"),
            (quota("app/geo"), Setting::Cores(None), "above the highest"),
            (quota("app/geo"), Setting::Cores(Some(99)), "below the lowest"),
            (quota("app/batch1"), Setting::Cores(Some(49)), "below the lowest"),
            (quota("app/db"), Setting::Cores(Some(500)), "trust is Recommend"),
            (quota("app/unknown"), Setting::Cores(Some(500)), "no rule covers"),
            (quota("system.slice/ssh.service"), Setting::Cores(Some(500)), "protected"),
            (quota("sage"), Setting::Cores(Some(500)), "agent's own"),
            (Knob::Cpuset { cgroup: cgroup("app/geo") }, cpus, "not among the knobs"),
            (Knob::Freeze { cgroup: cgroup("app/geo") }, Setting::Frozen(true), "no rule covers"),
            (Knob::EgressRate { link: link("eth1") }, Setting::Rate(None), "no rule covers"),
            (Knob::EgressRate { link: link("eth0") }, Setting::Rate(Some(9_999_999)), "below the lowest"),
        ] {
            let Err(Refusal::Policy(text)) = check(&knob, &setting) else { panic!("{knob} {setting} was not refused") };
            assert!(text.contains(why), "{knob} {setting}: {text}");
        }
        assert!(matches!(check(&quota("app/geo"), &Setting::Frozen(true)), Err(Refusal::Unsupported(_))));
    }

    #[test]
    fn long_leases_too_many_actions_and_restless_knobs_are_refused() {
        let (knob, setting) = (quota("app/geo"), Setting::Cores(Some(500)));
        let mut history = History::default();
        let lease = Micros::from_secs(60);
        assert!(check_with(&knob, &setting, lease + Micros::new(1), Micros::ZERO, &history).is_err());

        history.begin(Micros::ZERO);
        history.end(knob.clone(), Micros::from_secs(10));
        assert!(check_with(&knob, &setting, lease, Micros::from_secs(14), &history).is_err());
        assert!(check_with(&knob, &setting, lease, Micros::from_secs(15), &history).is_ok());

        history.begin(Micros::from_secs(20));
        assert!(check_with(&knob, &setting, lease, Micros::from_secs(30), &history).is_err());
        assert!(check_with(&knob, &setting, lease, Micros::from_secs(3_600), &history).is_ok());
    }
}
