//! Which cgroup or process is an instance of which service: rules of the configuration first, then what spans say.

use std::collections::BTreeMap;

use sage_common::{CgroupPath, InstanceId, ServiceId};

use super::Glob;

/// Instances followed at once. A node of the paper's largest application runs fewer than 100; one more costs about
/// 30 µs a second and a dozen open files.
pub const INSTANCES_MAX: usize = 512;
/// Span hints remembered at once; the oldest gives way.
pub const HINTS_MAX: usize = 1_024;

/// One naming rule: cgroups that match `cgroup` are instances of `service`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Pattern over the path below the hierarchy's root.
    pub cgroup: Glob,
    /// The service.
    pub service: ServiceId,
}

/// The naming rules, first match wins.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// The service of the cgroup at `path`.
    pub fn service_of(&self, path: &str) -> Option<&ServiceId> {
        self.0.iter().find(|rule| rule.cgroup.matches(path)).map(|rule| &rule.service)
    }
}

/// Where a span's resource attributes say its process lives.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Hint {
    /// `process.pid`.
    Pid(u32),
    /// `container.id`, at least [`CONTAINER_ID_MIN`] characters of it.
    Container(String),
}

/// The shortest container id that is believed: what container tools print.
pub const CONTAINER_ID_MIN: usize = 12;

impl Hint {
    /// A container id, if `text` can be one.
    pub fn container(text: &str) -> Option<Self> {
        let is_id = text.len() >= CONTAINER_ID_MIN && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_id.then(|| Self::Container(text.to_owned()))
    }
}

/// Whose counters stand for an instance.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    /// A cgroup of its own.
    Cgroup(CgroupPath),
    /// A process that shares its cgroup with others.
    Process(u32),
}

impl Origin {
    /// The instance's name: the cgroup's path, or `pid-N`.
    pub fn instance(&self) -> InstanceId {
        match self {
            Self::Cgroup(path) => InstanceId::sanitized(path.as_str()),
            Self::Process(pid) => InstanceId::sanitized(&format!("pid-{pid}")),
        }
    }
}

/// What spans have said about services, newest claim of each kind.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    seen: BTreeMap<Hint, (ServiceId, u64)>,
    clock: u64,
}

impl Hints {
    /// Takes note that `service` reported a span from `hint`.
    pub fn note(&mut self, service: &ServiceId, hint: Hint) {
        self.clock += 1;
        self.seen.insert(hint, (service.clone(), self.clock));
        if self.seen.len() > HINTS_MAX
            && let Some(oldest) = self.seen.iter().min_by_key(|(_, (_, at))| *at).map(|(hint, _)| hint.clone())
        {
            self.seen.remove(&oldest);
        }
    }

    /// Drops a hint that leads nowhere.
    pub fn forget(&mut self, hint: &Hint) {
        self.seen.remove(hint);
    }

    /// Every hint with the service that gave it.
    pub fn iter(&self) -> impl Iterator<Item = (&Hint, &ServiceId)> {
        self.seen.iter().map(|(hint, (service, _))| (hint, service))
    }
}

/// Decides who is followed: `matched` are the cgroups that the rules picked, `hinted` where the hints led
/// (`None`: the root cgroup, so the process stands for itself). Rules win over hints; a cgroup from which two
/// services report is nobody's instance, so their processes stand for themselves.
pub fn assign(
    rules: &Rules,
    matched: impl IntoIterator<Item = CgroupPath>,
    hinted: &[(Option<CgroupPath>, Option<u32>, ServiceId)],
) -> BTreeMap<Origin, ServiceId> {
    let mut assigned = BTreeMap::new();
    for path in matched {
        if let Some(service) = rules.service_of(path.as_str()) {
            assigned.insert(Origin::Cgroup(path), service.clone());
        }
    }
    for (path, pid, service) in hinted {
        if path.as_ref().is_some_and(|path| rules.service_of(path.as_str()).is_some()) {
            continue;
        }
        let is_shared = |path: &CgroupPath| hinted.iter().any(|(p, _, s)| p.as_ref() == Some(path) && s != service);
        let origin = match (path, pid) {
            (Some(path), _) if !is_shared(path) => Origin::Cgroup(path.clone()),
            (_, Some(pid)) => Origin::Process(*pid),
            _ => continue,
        };
        assigned.entry(origin).or_insert_with(|| service.clone());
    }
    while assigned.len() > INSTANCES_MAX {
        assigned.pop_last();
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceId {
        name.parse().expect("valid name")
    }

    fn path(text: &str) -> CgroupPath {
        CgroupPath::try_from(text.to_owned()).expect("valid path")
    }

    fn rules() -> Rules {
        let rule = |cgroup, name| Rule { cgroup: Glob::new(cgroup), service: service(name) };
        Rules(vec![rule("app/geo", "geo"), rule("app/*", "rest")])
    }

    #[test]
    fn the_first_matching_rule_names_the_service() {
        let assigned = assign(&rules(), [path("app/geo"), path("app/user"), path("other")], &[]);
        let names: Vec<_> = assigned.values().map(ServiceId::as_str).collect();
        assert_eq!(names, ["geo", "rest"]);
    }

    #[test]
    fn a_hinted_cgroup_is_an_instance_unless_a_rule_or_another_service_claims_it() {
        let hinted = [
            (Some(path("app/geo")), Some(1), service("liar")),
            (Some(path("box/one")), Some(2), service("one")),
            (Some(path("session")), Some(3), service("left")),
            (Some(path("session")), Some(4), service("right")),
            (None, Some(5), service("root")),
        ];
        let assigned = assign(&rules(), [path("app/geo")], &hinted);
        let found: Vec<String> = assigned.iter().map(|(o, s)| format!("{}={s}", o.instance())).collect();
        assert_eq!(found, ["app/geo=geo", "box/one=one", "pid-3=left", "pid-4=right", "pid-5=root"]);
    }

    #[test]
    fn hints_are_bounded_and_the_oldest_gives_way() {
        let mut hints = Hints::default();
        for pid in 0..=HINTS_MAX as u32 {
            hints.note(&service("a"), Hint::Pid(pid));
        }
        assert_eq!(hints.iter().count(), HINTS_MAX);
        assert!(hints.iter().all(|(hint, _)| *hint != Hint::Pid(0)));
    }

    #[test]
    fn only_long_hexadecimal_text_is_a_container_id() {
        assert!(Hint::container("0123456789ab").is_some());
        assert!(Hint::container("0123").is_none());
        assert!(Hint::container("../../../etc/x").is_none());
    }
}
