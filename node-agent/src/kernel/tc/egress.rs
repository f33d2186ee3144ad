//! The egress knobs: what a link may send in all, and what a held-back cgroup may send through it.
//!
//! ```text
//!   5a9e:      HTB root, unclassified packets go to :10
//!   └─ :1      ceil = the link's rate: EgressRate, else the operator's rate_mbit, else as good as none
//!      ├─ :10  everybody else; has what the held-back leave, may have it all
//!      └─ :X   one per held-back cgroup, rate = ceil = EgressCeiling; X is a hash of the cgroup's path
//!   filters of preference X on the root: the packets of that cgroup
//! ```
//!
//! Both knobs share the tree; it is made with the first and removed with the last, and then the kernel puts its default
//! back. Where the kernel lacks HTB, EgressRate alone is a TBF root, and there is no EgressCeiling.
//!
//! All state is in the kernel: after a crash the next life reads there what the last one made. While EgressRate is not
//! set, class :1 has the otherwise impossible rate [`NO_RATE`], which is how a reader tells a limit that was set from
//! one that stands in for the link's own.
//!
//! A root with a foreign handle is never touched. One with handle 0 is the kernel's default and may be shadowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
};

use rustix::io::Errno;
use sage_common::{CgroupPath, LinkName};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    filter::{self, Key},
    object::{self, Class, OUR_MAJOR},
    route::{self, Refused, RouteSocket},
    sockets,
};
use crate::{
    kernel::{KernelError, cgroup},
    policy::EgressRules,
};

/// Bytes per second of a link that nobody limits: twice the highest rate that a setting can have.
const NO_RATE: u64 = 250_000_000_000;
/// What everybody else has at least, as a part of the link's rate, however much the held-back may have.
const OTHERS_SHARE: u64 = 10;
/// The least rate of a class, in bytes per second: HTB takes no zero.
const RATE_MIN: u64 = 1_000;

const TOP: u16 = 1;
const OTHERS: u16 = 0x10;
/// Held-back cgroups have minors from here on.
const HELD_FIRST: u16 = 0x100;

/// The most filters of one cgroup. The kernel walks them in line for every packet: some 2 us at this number.
const FILTERS_MAX: usize = 128;

/// The egress knobs of one network namespace.
#[derive(Debug)]
pub struct Egress {
    socket: RouteSocket,
    proc_root: PathBuf,
    rules: EgressRules,
    /// Whose class is whose, for those that this life has made: two paths may hash to one minor.
    owners: BTreeMap<(LinkName, u16), CgroupPath>,
}

/// What is on a link.
#[derive(Debug)]
enum Root {
    /// Nothing but the kernel's default.
    Default,
    /// Our HTB, with its classes by minor number.
    Htb(BTreeMap<u16, Class>),
    /// Our TBF, with its rate in bytes per second.
    Tbf(u64),
}

impl Egress {
    /// The knobs of the network namespace that this thread is in.
    pub(in crate::kernel) fn open(proc_root: PathBuf) -> io::Result<Self> {
        let socket = RouteSocket::open()?;
        Ok(Self { socket, proc_root, rules: EgressRules::default(), owners: BTreeMap::new() })
    }

    pub(in crate::kernel) fn set_rules(&mut self, rules: EgressRules) {
        self.rules = rules;
    }

    // ---- EgressRate ----

    /// The limit of a link in bits per second.
    pub(in crate::kernel) fn rate(&self, link: &LinkName) -> Result<Option<u64>, KernelError> {
        let index = self.index(link)?;
        Ok(match self.root(link, index)? {
            Root::Default => None,
            Root::Tbf(rate) => Some(rate * 8),
            Root::Htb(classes) => classes.get(&TOP).filter(|top| top.rate != NO_RATE).map(|top| top.rate * 8),
        })
    }

    /// Limits a link, or lifts the limit.
    pub(in crate::kernel) fn set_rate(&mut self, link: &LinkName, bits: Option<u64>) -> Result<(), KernelError> {
        let index = self.index(link)?;
        let root = self.root(link, index)?;
        match (root, bits.map(|bits| bits / 8)) {
            (Root::Default, None) => Ok(()),
            (Root::Tbf(_), None) => self.delete_root(link, index),
            (Root::Tbf(_), Some(rate)) => self.put_tbf(link, index, rate, false),
            (Root::Htb(classes), None) if held(&classes).is_empty() => self.delete_root(link, index),
            (Root::Htb(classes), rate) => self.put_top(link, index, rate, &held(&classes)),
            (Root::Default, Some(rate)) => match self.create_htb(link, index) {
                Ok(()) => self.put_top(link, index, Some(rate), &[]),
                Err(KernelError::Unavailable { .. }) => self.put_tbf(link, index, rate, true),
                Err(error) => Err(error),
            },
        }
    }

    // ---- EgressCeiling ----

    /// The ceiling of a cgroup's traffic through a link, in bits per second.
    pub(in crate::kernel) fn ceiling(&self, link: &LinkName, cgroup: &CgroupPath) -> Result<Option<u64>, KernelError> {
        let index = self.index(link)?;
        Ok(match self.root(link, index)? {
            Root::Default | Root::Tbf(_) => None,
            Root::Htb(classes) => classes.get(&minor(cgroup)).map(|class| class.ceil * 8),
        })
    }

    /// Holds a cgroup's traffic back, or lets it go.
    pub(in crate::kernel) fn set_ceiling(
        &mut self,
        link: &LinkName,
        cgroup: &CgroupPath,
        bits: Option<u64>,
        layout: &cgroup::Layout,
    ) -> Result<(), KernelError> {
        let index = self.index(link)?;
        let root = self.root(link, index)?;
        match bits.map(|bits| bits / 8) {
            Some(rate) => self.hold_back(link, index, cgroup, rate, root)?,
            None => return self.let_go(link, index, cgroup, root),
        }
        self.sync_filters(link, index, cgroup, layout)
    }

    fn hold_back(
        &mut self,
        link: &LinkName,
        index: i32,
        cgroup: &CgroupPath,
        rate: u64,
        root: Root,
    ) -> Result<(), KernelError> {
        let minor = self.own_minor(link, cgroup)?;
        let mut classes = match root {
            Root::Htb(classes) => classes,
            Root::Tbf(_) => return Err(missing("HTB")),
            Root::Default => {
                self.create_htb(link, index)?;
                BTreeMap::new()
            }
        };
        let limit = classes.get(&TOP).map(|top| top.rate).filter(|rate| *rate != NO_RATE);
        classes.insert(minor, Class { minor, parent: TOP, rate, ceil: rate });
        // The others' share shrinks before the held-back class appears, so that the link is never promised twice.
        self.put_top(link, index, limit, &held(&classes))?;
        let class = Class { minor, parent: TOP, rate: rate.max(RATE_MIN), ceil: rate.max(RATE_MIN) };
        self.told(link, "put an HTB class", object::put_class(&self.socket, index, class))
    }

    fn let_go(&mut self, link: &LinkName, index: i32, cgroup: &CgroupPath, root: Root) -> Result<(), KernelError> {
        let Root::Htb(mut classes) = root else { return Ok(()) };
        let minor = minor(cgroup);
        for filter in self.told(link, "list filters", object::filters(&self.socket, index))? {
            if filter.class == minor {
                self.delete_filter(link, index, minor, filter.handle)?;
            }
        }
        let limit = classes.get(&TOP).map(|top| top.rate).filter(|rate| *rate != NO_RATE);
        let is_there = classes.remove(&minor).is_some();
        if limit.is_none() && held(&classes).is_empty() {
            self.delete_root(link, index)?;
        } else if is_there {
            self.told(link, "delete an HTB class", object::delete_class(&self.socket, index, minor))?;
            self.put_top(link, index, limit, &held(&classes))?;
        }
        self.owners.remove(&(link.clone(), minor));
        Ok(())
    }

    /// Brings the filters of a held-back cgroup in step with its sockets. Nothing to do while it is not held back.
    pub(in crate::kernel) fn refresh(
        &self,
        link: &LinkName,
        cgroup: &CgroupPath,
        layout: &cgroup::Layout,
    ) -> Result<(), KernelError> {
        let index = self.index(link)?;
        match self.root(link, index)? {
            Root::Htb(classes) if classes.contains_key(&minor(cgroup)) => {
                self.sync_filters(link, index, cgroup, layout)
            }
            _ => Ok(()),
        }
    }

    fn sync_filters(
        &self,
        link: &LinkName,
        index: i32,
        cgroup: &CgroupPath,
        layout: &cgroup::Layout,
    ) -> Result<(), KernelError> {
        let minor = minor(cgroup);
        let mut wanted = self.wanted_filters(cgroup, layout)?;
        for filter in self.told(link, "list filters", object::filters(&self.socket, index))? {
            if filter.class == minor && !wanted.remove(&filter.keys) {
                self.delete_filter(link, index, minor, filter.handle)?;
            }
        }
        for keys in wanted {
            self.told(link, "add a u32 filter", object::create_filter(&self.socket, index, minor, &keys))
                .map_err(|error| if is_no_kind(&error) { missing("the u32 classifier") } else { error })?;
        }
        Ok(())
    }

    fn wanted_filters(&self, cgroup: &CgroupPath, layout: &cgroup::Layout) -> Result<BTreeSet<Vec<Key>>, KernelError> {
        if let Some(marks) = self.rules.traffic(cgroup) {
            return Ok(filter::declared(marks));
        }
        let pids = cgroup::processes(layout, cgroup)?;
        let flows = sockets::flows(&self.proc_root, &pids, FILTERS_MAX + 1);
        if flows.len() > FILTERS_MAX {
            tracing::warn!(%cgroup, most = FILTERS_MAX, "a held-back cgroup has more sockets than filters; declare its ports");
        }
        Ok(flows.iter().take(FILTERS_MAX).map(filter::flow).collect())
    }

    // ---- the tree ----

    /// Puts the top class and the others' class in place, for this limit and these held-back classes.
    fn put_top(&self, link: &LinkName, index: i32, limit: Option<u64>, held: &[Class]) -> Result<(), KernelError> {
        let ceil = limit.or_else(|| self.rules.rate(link).map(|bits| bits / 8)).unwrap_or(NO_RATE).max(RATE_MIN);
        let promised: u64 = held.iter().map(|class| class.rate).sum();
        let rate = ceil.saturating_sub(promised).max(ceil / OTHERS_SHARE).max(RATE_MIN);
        let top = Class { minor: TOP, parent: 0, rate: limit.unwrap_or(NO_RATE), ceil };
        for class in [top, Class { minor: OTHERS, parent: TOP, rate, ceil }] {
            self.told(link, "put an HTB class", object::put_class(&self.socket, index, class))?;
        }
        Ok(())
    }

    fn create_htb(&self, link: &LinkName, index: i32) -> Result<(), KernelError> {
        self.told(link, "add an HTB root", object::create_htb(&self.socket, index, OTHERS))
            .map_err(|error| if is_no_kind(&error) { missing("HTB") } else { error })
    }

    fn put_tbf(&self, link: &LinkName, index: i32, rate: u64, is_new: bool) -> Result<(), KernelError> {
        let put = object::put_tbf(&self.socket, index, rate.max(RATE_MIN), is_new);
        self.told(link, "put a TBF root", put)
            .map_err(|error| if is_no_kind(&error) { missing("HTB, nor TBF,") } else { error })
    }

    fn delete_root(&self, link: &LinkName, index: i32) -> Result<(), KernelError> {
        self.told(link, "delete our root qdisc", object::delete_root(&self.socket, index))
    }

    fn delete_filter(&self, link: &LinkName, index: i32, class: u16, handle: u32) -> Result<(), KernelError> {
        match object::delete_filter(&self.socket, index, class, handle) {
            Err(refused) if refused.is(Errno::NOENT) => Ok(()),
            result => self.told(link, "delete a filter", result),
        }
    }

    /// The minor number of a cgroup's class, unless another cgroup has it.
    fn own_minor(&mut self, link: &LinkName, cgroup: &CgroupPath) -> Result<u16, KernelError> {
        let minor = minor(cgroup);
        let owner = self.owners.entry((link.clone(), minor)).or_insert_with(|| cgroup.clone());
        if owner == cgroup {
            return Ok(minor);
        }
        let why = format!("{owner} has the class that {cgroup} would have; try again when that is over");
        Err(KernelError::Unavailable { feature: "another class of that number", why })
    }

    fn index(&self, link: &LinkName) -> Result<i32, KernelError> {
        self.told(link, "find the link", route::link_index(&self.socket, link.as_str()))?
            .ok_or_else(|| KernelError::NoLink { link: link.clone() })
    }

    fn root(&self, link: &LinkName, index: i32) -> Result<Root, KernelError> {
        let root = self.told(link, "list qdiscs", object::root(&self.socket, index))?;
        let Some(root) = root.filter(|root| root.major() != 0) else { return Ok(Root::Default) };
        let foreign = || KernelError::Foreign { link: link.clone(), kind: root.kind.clone(), handle: root.major() };
        match (root.major(), root.kind.as_str()) {
            (OUR_MAJOR, "htb") => {
                let classes = self.told(link, "list classes", object::classes(&self.socket, index))?;
                Ok(Root::Htb(classes.into_iter().map(|class| (class.minor, class)).collect()))
            }
            (OUR_MAJOR, "tbf") => object::tbf_rate(&root.options).map(Root::Tbf).ok_or_else(foreign),
            _ => Err(foreign()),
        }
    }

    /// A result of netlink in the kernel boundary's own terms.
    fn told<T>(&self, link: &LinkName, action: &'static str, result: Result<T, Refused>) -> Result<T, KernelError> {
        result.map_err(|refused| match refused {
            refused if refused.is(Errno::NODEV) => KernelError::NoLink { link: link.clone() },
            Refused { source, message } => KernelError::Netlink { action, link: link.to_string(), message, source },
        })
    }
}

/// The classes of held-back cgroups.
fn held(classes: &BTreeMap<u16, Class>) -> Vec<Class> {
    classes.range(HELD_FIRST..).map(|(_, class)| *class).collect()
}

/// The minor number of a cgroup's class: the same in every life of the agent.
fn minor(cgroup: &CgroupPath) -> u16 {
    let minors = u64::from(u16::MAX - HELD_FIRST);
    HELD_FIRST + u16::try_from(xxh3_64(cgroup.as_str().as_bytes()) % minors).unwrap_or(0)
}

/// ENOENT is the kernel's word for a kind of qdisc or filter that it does not have.
fn is_no_kind(error: &KernelError) -> bool {
    matches!(error, KernelError::Netlink { source, .. } if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()))
}

fn missing(feature: &'static str) -> KernelError {
    let why = "this kernel does not have it; enable CONFIG_NET_SCH_HTB, CONFIG_NET_SCH_TBF and CONFIG_NET_CLS_U32";
    KernelError::Unavailable { feature, why: why.to_owned() }
}
