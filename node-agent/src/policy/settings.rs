//! `policy.d/*.toml` as written, and the only way to make a [`Policy`] of it.

use sage_common::{ConfigError, KnobKind, LinkName, Micros, Trust};
use serde::Deserialize;

use super::{BestEffortRule, EgressRules, Grant, LinkRule, Pattern, Policy, ServiceRule};

/// One file of `policy.d/`. Every key has a default; without rules nothing may be changed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What holds where a rule does not say otherwise. The last file that has the table wins.
    pub defaults: Option<DefaultSettings>,
    /// Rules for the knobs of services' own cgroups.
    pub service: Vec<ServiceSettings>,
    /// Cgroups that may be held back for the sake of services.
    pub best_effort: Vec<BestEffortSettings>,
    /// Rules for links.
    pub link: Vec<LinkSettings>,
}

/// What holds where a rule does not say otherwise, and the brakes that hold for the whole node.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct DefaultSettings {
    /// Trust of rules that name none.
    pub trust: Trust,
    /// The longest lease, in milliseconds.
    pub lease_max_ms: u64,
    /// The most actions that may begin within an hour.
    pub actions_per_hour: u32,
    /// How long a knob rests after it was given back, in milliseconds.
    pub cooldown_ms: u64,
    /// Cgroups that are never touched.
    pub protected: Vec<Pattern>,
}

impl Default for DefaultSettings {
    fn default() -> Self {
        Self {
            trust: Trust::Recommend,
            lease_max_ms: 600_000,
            actions_per_hour: 20,
            cooldown_ms: 0,
            protected: Vec::new(),
        }
    }
}

/// What may be done to a service's own cgroups.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ServiceSettings {
    /// The service's name, or a pattern.
    pub name: Pattern,
    /// How far the aggregator may go.
    #[serde(default)]
    pub trust: Option<Trust>,
    /// Which knobs.
    #[serde(default)]
    pub knobs: Vec<KnobKind>,
    /// The lowest CPU quota, in cores.
    #[serde(default)]
    pub cores_min: Option<f64>,
    /// The highest CPU quota, in cores; without it a quota may also be lifted altogether.
    #[serde(default)]
    pub cores_max: Option<f64>,
}

/// What may be done to a best-effort cgroup.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct BestEffortSettings {
    /// The cgroup, or a pattern.
    pub cgroup: Pattern,
    /// How far the aggregator may go.
    #[serde(default)]
    pub trust: Option<Trust>,
    /// Which knobs.
    #[serde(default)]
    pub knobs: Vec<KnobKind>,
    /// The lowest CPU quota, in cores.
    #[serde(default)]
    pub cores_min: Option<f64>,
    /// The highest CPU quota, in cores; without it a quota may also be lifted altogether.
    #[serde(default)]
    pub cores_max: Option<f64>,
    /// The lowest egress ceiling, in Mbit/s.
    #[serde(default)]
    pub egress_min_mbit: Option<f64>,
    /// How its traffic is recognised; without it, by the sockets that its processes hold.
    #[serde(default)]
    pub egress: Option<EgressSettings>,
}

/// Marks of a best-effort cgroup's traffic. A packet that bears any of them belongs to it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct EgressSettings {
    /// TCP and UDP destination ports.
    pub dst_ports: Vec<u16>,
    /// TCP and UDP source ports.
    pub src_ports: Vec<u16>,
    /// Differentiated services code points, 0 to 63.
    pub dscp: Vec<u8>,
}

/// What may be done to a link, and how fast it is.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct LinkSettings {
    /// The interface.
    pub name: LinkName,
    /// Capacity in Mbit/s, known to the operator.
    #[serde(default)]
    pub rate_mbit: Option<f64>,
    /// How far the aggregator may go.
    #[serde(default)]
    pub trust: Option<Trust>,
    /// Which knobs.
    #[serde(default)]
    pub knobs: Vec<KnobKind>,
    /// The lowest egress rate, in Mbit/s.
    #[serde(default)]
    pub egress_min_mbit: Option<f64>,
}

/// The most marks of one cgroup's traffic: each becomes up to four packet filters, walked in line for every packet.
pub const TRAFFIC_MARKS_MAX: usize = 32;

impl Settings {
    /// One policy of many files, in their order.
    pub fn merge(files: impl IntoIterator<Item = Self>) -> Self {
        files.into_iter().fold(Self::default(), |mut all, file| {
            all.defaults = file.defaults.or(all.defaults);
            all.service.extend(file.service);
            all.best_effort.extend(file.best_effort);
            all.link.extend(file.link);
            all
        })
    }

    /// The only way to make a [`Policy`].
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] for a number that no policy can mean.
    pub fn validate(self) -> Result<Policy, ConfigError> {
        let defaults = self.defaults.unwrap_or_default();
        if defaults.lease_max_ms == 0 {
            return Err(wrong("lease_max_ms", &0, "no lease could ever be granted; want at least 1"));
        }
        let mut egress = EgressRules::default();
        let mut links = Vec::new();
        for rule in self.link {
            if let Some(rate) = bits("rate_mbit", rule.rate_mbit)? {
                egress = egress.with_rate(rule.name.clone(), rate);
            }
            links.push(LinkRule { link: rule.name.clone(), grant: rule.grant(defaults.trust)? });
        }
        let mut best_effort = Vec::new();
        for mut rule in self.best_effort {
            if let Some(traffic) = rule.egress.take() {
                egress = egress.with_traffic(rule.cgroup.clone(), traffic.validate()?);
            }
            best_effort.push(BestEffortRule { cgroup: rule.cgroup.clone(), grant: rule.grant(defaults.trust)? });
        }
        let service =
            |rule: ServiceSettings| Ok(ServiceRule { name: rule.name.clone(), grant: rule.grant(defaults.trust)? });
        let mut services = self.service.into_iter().map(service).collect::<Result<Vec<_>, ConfigError>>()?;
        // Stable: rules of one sort keep their order.
        services.sort_by_key(|rule| !rule.name.is_exact());
        Ok(Policy {
            lease_max: Micros::from_millis(defaults.lease_max_ms),
            actions_per_hour: defaults.actions_per_hour,
            cooldown: Micros::from_millis(defaults.cooldown_ms),
            protected: defaults.protected,
            services,
            best_effort,
            links,
            egress,
        })
    }
}

impl ServiceSettings {
    fn grant(&self, trust: Trust) -> Result<Grant, ConfigError> {
        let knobs = allowed(&self.knobs, &[KnobKind::CpuQuota, KnobKind::CpuWeight, KnobKind::Cpuset], "service")?;
        let cores = cores(self.cores_min, self.cores_max)?;
        Ok(Grant { trust: self.trust.unwrap_or(trust), knobs, cores, egress_min: None })
    }
}

impl BestEffortSettings {
    fn grant(&self, trust: Trust) -> Result<Grant, ConfigError> {
        let kinds =
            [KnobKind::CpuQuota, KnobKind::CpuWeight, KnobKind::Cpuset, KnobKind::Freeze, KnobKind::EgressCeiling];
        Ok(Grant {
            trust: self.trust.unwrap_or(trust),
            knobs: allowed(&self.knobs, &kinds, "best_effort")?,
            cores: cores(self.cores_min, self.cores_max)?,
            egress_min: bits("egress_min_mbit", self.egress_min_mbit)?,
        })
    }
}

impl LinkSettings {
    fn grant(&self, trust: Trust) -> Result<Grant, ConfigError> {
        Ok(Grant {
            trust: self.trust.unwrap_or(trust),
            knobs: allowed(&self.knobs, &[KnobKind::EgressRate], "link")?,
            cores: (None, None),
            egress_min: bits("egress_min_mbit", self.egress_min_mbit)?,
        })
    }
}

impl EgressSettings {
    fn validate(self) -> Result<Self, ConfigError> {
        let marks = self.dst_ports.len() + self.src_ports.len() + self.dscp.len();
        if marks == 0 || marks > TRAFFIC_MARKS_MAX {
            return Err(wrong("egress", &marks, "want 1 to 32 ports and code points in all"));
        }
        if let Some(dscp) = self.dscp.iter().find(|dscp| **dscp > 63) {
            return Err(wrong("egress.dscp", dscp, "code points are 0 to 63"));
        }
        if self.dst_ports.iter().chain(&self.src_ports).any(|port| *port == 0) {
            return Err(wrong("egress ports", &0, "ports are 1 to 65535"));
        }
        Ok(self)
    }
}

/// `knobs`, if the table may name each of them.
fn allowed(knobs: &[KnobKind], kinds: &[KnobKind], table: &'static str) -> Result<Vec<KnobKind>, ConfigError> {
    match knobs.iter().find(|kind| !kinds.contains(kind)) {
        None => Ok(knobs.to_vec()),
        Some(kind) => Err(wrong(
            "knobs",
            kind,
            match table {
                "service" => "a service has cpu_quota, cpu_weight and cpuset",
                "link" => "a link has egress_rate",
                _ => "a best-effort cgroup has cpu_quota, cpu_weight, cpuset, freeze and egress_ceiling",
            },
        )),
    }
}

/// Bounds in thousandths of a core.
fn cores(low: Option<f64>, high: Option<f64>) -> Result<(Option<u32>, Option<u32>), ConfigError> {
    let checked = |key, cores: Option<f64>| match cores {
        // The kernel's smallest quota is a hundredth of a core; no kernel is built for more than 8192.
        Some(cores) if !(0.01..=8_192.0).contains(&cores) => Err(wrong(key, &cores, "want 0.01 to 8192 cores")),
        cores => Ok(cores.map(|cores| (cores * 1e3).round() as u32)),
    };
    let bounds = (checked("cores_min", low)?, checked("cores_max", high)?);
    match bounds {
        (Some(low), Some(high)) if low > high => Err(wrong("cores_min", &(f64::from(low) / 1e3), "is above cores_max")),
        bounds => Ok(bounds),
    }
}

/// Mbit/s as bits per second.
fn bits(key: &'static str, mbit: Option<f64>) -> Result<Option<u64>, ConfigError> {
    match mbit {
        // The range of `Setting::Rate`.
        Some(mbit) if !(0.008..=1e6).contains(&mbit) => Err(wrong(key, &mbit, "want 0.008 to 1000000 Mbit/s")),
        mbit => Ok(mbit.map(|mbit| (mbit * 1e6).round() as u64)),
    }
}

fn wrong(key: &'static str, value: &dyn ToString, problem: &'static str) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), problem }
}

#[cfg(test)]
mod tests {
    use sage_common::CgroupPath;

    use super::*;

    const EXAMPLE: &str = r#"
        [defaults]
        trust = "recommend"
        lease_max_ms = 600000
        actions_per_hour = 20
        cooldown_ms = 0
        protected = ["system.slice/ssh*"]
        [[service]]
        name = "*"
        trust = "auto"
        knobs = ["cpu_quota", "cpu_weight", "cpuset"]
        cores_min = 0.1
        cores_max = 2.0
        [[best_effort]]
        cgroup = "sage-demo/node-a/batch*"
        trust = "auto"
        knobs = ["cpu_quota", "freeze", "egress_ceiling"]
        cores_min = 0.05
        egress_min_mbit = 1
        egress = { dst_ports = [5201] }
        [[link]]
        name = "eth0"
        rate_mbit = 100
        trust = "auto"
        knobs = ["egress_rate"]
        egress_min_mbit = 1
    "#;

    #[test]
    fn the_documented_example_is_understood_whole() {
        let policy = Policy::parse(EXAMPLE, "example").expect("valid");
        let batch = CgroupPath::try_from("sage-demo/node-a/batch1".to_owned()).expect("valid");
        let link = LinkName::try_from("eth0".to_owned()).expect("valid");
        assert!(policy.is_best_effort(&batch));
        assert_eq!(policy.egress().rate(&link), Some(100_000_000));
        assert_eq!(policy.egress().traffic(&batch).map(|egress| egress.dst_ports.clone()), Some(vec![5201]));
        assert_eq!(policy.services[0].grant.cores, (Some(100), Some(2_000)));
        assert_eq!(policy.best_effort[0].grant.egress_min, Some(1_000_000));
    }

    #[test]
    fn what_no_policy_can_mean_is_refused_with_its_key() {
        for (text, key) in [
            ("[defaults]\nlease_max_ms = 0", "lease_max_ms"),
            ("[[service]]\nname = 'x'\ncores_min = 2\ncores_max = 1", "cores_min"),
            ("[[service]]\nname = 'x'\ncores_min = nan", "cores_min"),
            ("[[service]]\nname = 'x'\nknobs = ['freeze']", "knobs"),
            ("[[link]]\nname = 'eth0'\nrate_mbit = -1", "rate_mbit"),
            ("[[best_effort]]\ncgroup = 'x'\negress = { dscp = [64] }", "egress.dscp"),
            ("[[best_effort]]\ncgroup = 'x'\negress = { }", "egress"),
            ("[[service]]\nname = 'x'\ncore_max = 1", "cores_max"),
            ("[[best_effort]]\ncgroup = '../x'", "invalid pattern"),
        ] {
            let error = Policy::parse(text, "test").expect_err(text).to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn files_add_their_rules_and_the_last_defaults_win() {
        let file = |text: &str| sage_common::config::parse::<Settings>(text, "file").expect("valid");
        let first = file("[defaults]\ntrust = 'auto'\n[[service]]\nname = '*'");
        let second = file("[defaults]\ntrust = 'approve'\n[[service]]\nname = 'geo'");
        let third = file("[[service]]\nname = 'rate'");
        let policy = Settings::merge([first, second, third]).validate().expect("valid");
        let rules: Vec<_> = policy.services.iter().map(|rule| (rule.name.as_str(), rule.grant.trust)).collect();
        assert_eq!(rules, [("geo", Trust::Approve), ("rate", Trust::Approve), ("*", Trust::Approve)]);
    }
}
