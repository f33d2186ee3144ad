//! The node's policy: what the aggregator may change here, how far, and how often. The agent enforces it itself,
//! whatever the leader asks.
//!
//! Pure: files are read by [`loader`], which also checks who owns them. `policy.d/*.toml` is merged in the order of
//! file names; rules keep their order and the first that matches wins, an exact service name before a pattern.

mod check;
mod history;
pub mod loader;
mod offer;
mod pattern;
mod settings;

pub use check::Request;
pub use history::History;
pub use loader::PolicyError;
pub use offer::{CgroupState, LinkState, OFFERS_MAX, PolicyInputs};
pub use pattern::Pattern;
pub use settings::{BestEffortSettings, DefaultSettings, EgressSettings, LinkSettings, ServiceSettings, Settings};

use sage_common::{CgroupPath, ConfigError, KnobKind, LinkName, Micros, Setting, Trust};

/// Egress facts that only the operator knows: what a held-back cgroup's traffic looks like, how fast a link is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EgressRules {
    traffic: Vec<(Pattern, EgressSettings)>,
    rates: Vec<(LinkName, u64)>,
}

impl EgressRules {
    /// How the traffic of `cgroup` is recognised, where the operator said so.
    pub fn traffic(&self, cgroup: &CgroupPath) -> Option<&EgressSettings> {
        self.traffic.iter().find(|(pattern, _)| pattern.matches(cgroup.as_str())).map(|(_, egress)| egress)
    }

    /// The capacity of `link` in bits per second, where the operator said so.
    pub fn rate(&self, link: &LinkName) -> Option<u64> {
        self.rates.iter().find(|(name, _)| name == link).map(|(_, rate)| *rate)
    }

    /// The same rules with `egress` for cgroups that match `pattern`.
    #[must_use]
    pub fn with_traffic(mut self, pattern: Pattern, egress: EgressSettings) -> Self {
        self.traffic.push((pattern, egress));
        self
    }

    /// The same rules with a capacity for `link`, in bits per second.
    #[must_use]
    pub fn with_rate(mut self, link: LinkName, rate: u64) -> Self {
        self.rates.push((link, rate));
        self
    }
}

/// What a rule allows on the knobs it covers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Grant {
    trust: Trust,
    knobs: Vec<KnobKind>,
    /// Bounds of a CPU quota, in thousandths of a core.
    cores: (Option<u32>, Option<u32>),
    /// The lowest egress rate or ceiling, in bits per second.
    egress_min: Option<u64>,
}

impl Grant {
    /// The lowest and the highest setting allowed for `kind`; `None` where only the kernel sets a bound.
    fn bounds(&self, kind: KnobKind) -> (Option<Setting>, Option<Setting>) {
        match kind {
            KnobKind::CpuQuota => {
                (self.cores.0.map(|low| Setting::Cores(Some(low))), self.cores.1.map(|high| Setting::Cores(Some(high))))
            }
            KnobKind::EgressRate | KnobKind::EgressCeiling => {
                (self.egress_min.map(|low| Setting::Rate(Some(low))), None)
            }
            KnobKind::CpuWeight | KnobKind::Cpuset | KnobKind::Freeze => (None, None),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct ServiceRule {
    name: Pattern,
    grant: Grant,
}

#[derive(Clone, Debug, PartialEq)]
struct BestEffortRule {
    cgroup: Pattern,
    grant: Grant,
}

#[derive(Clone, Debug, PartialEq)]
struct LinkRule {
    link: LinkName,
    grant: Grant,
}

/// A policy that cannot be wrong. The default covers nothing, so nothing may be changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    lease_max: Micros,
    actions_per_hour: u32,
    cooldown: Micros,
    protected: Vec<Pattern>,
    services: Vec<ServiceRule>,
    best_effort: Vec<BestEffortRule>,
    links: Vec<LinkRule>,
    egress: EgressRules,
}

impl Default for Policy {
    fn default() -> Self {
        let defaults = DefaultSettings::default();
        Self {
            lease_max: Micros::from_millis(defaults.lease_max_ms),
            actions_per_hour: defaults.actions_per_hour,
            cooldown: Micros::from_millis(defaults.cooldown_ms),
            protected: Vec::new(),
            services: Vec::new(),
            best_effort: Vec::new(),
            links: Vec::new(),
            egress: EgressRules::default(),
        }
    }
}

impl Policy {
    /// The policy that `text` (the TOML of one file) describes; `origin` names it in errors.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for unknown keys and for values that no policy can mean.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        Settings::merge([sage_common::config::parse(text, origin)?]).validate()
    }

    /// The longest lease that may be asked for.
    pub const fn lease_max(&self) -> Micros {
        self.lease_max
    }

    /// What the kernel side needs to know about links and traffic.
    pub const fn egress(&self) -> &EgressRules {
        &self.egress
    }

    /// The patterns that name best-effort cgroups, so that their usage can be measured.
    pub fn best_effort(&self) -> impl Iterator<Item = &Pattern> {
        self.best_effort.iter().map(|rule| &rule.cgroup)
    }

    /// Whether a rule names `cgroup` as best-effort.
    pub fn is_best_effort(&self, cgroup: &CgroupPath) -> bool {
        self.best_effort.iter().any(|rule| rule.cgroup.matches(cgroup.as_str()))
    }

    /// Whether `cgroup`, something above it or something below it is protected: a limit on a parent binds its
    /// children, and a child's share is its parent's.
    pub fn is_protected(&self, cgroup: &CgroupPath) -> bool {
        self.protected.iter().any(|pattern| pattern.touches(cgroup.as_str()))
    }
}
