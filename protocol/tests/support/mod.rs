//! What the tests of this crate share: windows, an owner's spool, an owner's store.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::collections::{BTreeMap, BTreeSet};

use sage_common::{
    BootId, CallShape, CgroupPath, CpuList, EntryHistogram, InstanceUsage, IntakeCounters, Knob, KnobOffer,
    LatencyQuantiles, LatencySeries, LinkName, Metric, MetricValue, Micros, NodeId, NodeWindow, OfferRole, PeerHint,
    SeriesKind, Setting, Side, Skeleton, SpanId, Stub, Timestamp, TraceHash, Trust, UsageQuantiles, WindowKey,
};
use sage_protocol::EncodedWindow;

pub fn name<T: TryFrom<String>>(text: &str) -> T {
    T::try_from(text.to_owned()).unwrap_or_else(|_| panic!("{text:?} is a valid name"))
}

/// An empty window, but for `seq` spans taken in: a number that a store can add up.
pub fn window(node: &NodeId, boot: BootId, seq: u64) -> NodeWindow {
    let length = Micros::from_secs(1);
    NodeWindow {
        key: WindowKey { node: node.clone(), boot, seq },
        start: Timestamp::from_micros(1_000_000 * (seq + 1)),
        length,
        latencies: vec![],
        usage: vec![],
        node_usage: vec![],
        stubs: vec![],
        skeletons: vec![],
        entries: vec![],
        offers: vec![],
        intake: IntakeCounters { spans: seq + 1, ..IntakeCounters::default() },
        stub_share: 1.0,
    }
}

/// A window with one of everything, each number another.
pub fn full_window() -> NodeWindow {
    let call = |operation: &str, peer| CallShape { operation: name(operation), peer };
    NodeWindow {
        latencies: vec![series()],
        usage: vec![InstanceUsage {
            service: name("frontend"),
            instance: name("sage-demo/node-a/frontend"),
            metrics: vec![metric(Metric::CpuThrottled, 0.25), metric(Metric::Connections, 17.0)],
        }],
        node_usage: vec![metric(Metric::NodeQdiscBacklog, 1_500.0)],
        stubs: vec![stub()],
        skeletons: vec![Skeleton {
            service: name("frontend"),
            operation: name("GET /checkout"),
            groups: vec![
                vec![vec![call("Reserve", Some(PeerHint::Service(name("hotel"))))]],
                vec![vec![call("Rate", None)], vec![call("Geo", None), call("Near", None)]],
            ],
            count: 41,
        }],
        entries: vec![EntryHistogram {
            service: name("frontend"),
            operation: name("GET /checkout"),
            v2: vec![0x1c, 0x84, 0x93, 0x13],
            errors: 3.0,
        }],
        offers: offers(),
        intake: IntakeCounters { spans: 9_001, rejected_requests: 2, dropped_spans: 300, unpaired_spans: 17 },
        stub_share: 0.125,
        ..window(&name("node-a"), BootId(0x0123_4567_89ab_cdef), 300)
    }
}

fn series() -> LatencySeries {
    LatencySeries {
        service: name("frontend"),
        operation: name("GET /checkout"),
        kind: SeriesKind::SelfTime,
        peer: Some(PeerHint::Address(name("10.0.0.7"))),
        calls: 1_234.0,
        errors: 5.0,
        quantiles: LatencyQuantiles(std::array::from_fn(|i| 100.0 * (i as f32 + 1.0))),
    }
}

fn metric(metric: Metric, start: f32) -> MetricValue {
    MetricValue { metric, quantiles: UsageQuantiles(std::array::from_fn(|i| start + i as f32 / 8.0)) }
}

fn stub() -> Stub {
    Stub {
        trace: TraceHash(0xfeed_face_cafe_beef),
        id: SpanId(7),
        parent: SpanId(6),
        service: name("hotel"),
        operation: name("Reserve"),
        side: Side::Client,
        peer: Some(PeerHint::Service(name("rate"))),
        offset: Micros::new(120),
        duration: Micros::new(70_000),
        self_time: Micros::new(65_000),
        is_error: true,
    }
}

fn offers() -> Vec<KnobOffer> {
    let (cgroup, link): (CgroupPath, LinkName) = (name("sage-demo/node-a/batch"), name("eth0"));
    let offer = |knob, role, current| KnobOffer {
        knob,
        role,
        current,
        lowest: None,
        highest: None,
        trust: Trust::Auto,
        used: None,
        capacity: None,
    };
    vec![
        KnobOffer {
            lowest: Some(Setting::Cores(Some(50))),
            highest: Some(Setting::Cores(Some(2_000))),
            used: Some(730),
            capacity: Some(4_000),
            ..offer(Knob::CpuQuota { cgroup: cgroup.clone() }, OfferRole::BestEffort, Setting::Cores(None))
        },
        offer(Knob::CpuWeight { cgroup: cgroup.clone() }, OfferRole::Service(name("geo")), Setting::Weight(100)),
        offer(Knob::Cpuset { cgroup: cgroup.clone() }, OfferRole::BestEffort, Setting::Cpus(cpus())),
        offer(Knob::Freeze { cgroup: cgroup.clone() }, OfferRole::BestEffort, Setting::Frozen(false)),
        offer(Knob::EgressRate { link: link.clone() }, OfferRole::Node, Setting::Rate(Some(100_000_000))),
        offer(Knob::EgressCeiling { link, cgroup }, OfferRole::BestEffort, Setting::Rate(None)),
    ]
}

fn cpus() -> CpuList {
    CpuList::try_from(vec![0, 1, 300]).expect("valid")
}

/// What an agent's owner keeps: every window until it is acknowledged, across restarts.
#[derive(Default)]
pub struct Spool {
    held: BTreeMap<(BootId, u64), EncodedWindow>,
    /// Submitted on the connection that stands.
    submitted: BTreeSet<(BootId, u64)>,
}

impl Spool {
    pub fn push(&mut self, window: &NodeWindow) {
        self.held.insert((window.key.boot, window.key.seq), EncodedWindow::new(window).expect("usable"));
    }

    /// A connection stands on which every window of `boot` under `below` is known; returns those forgotten.
    pub fn connected(&mut self, boot: BootId, below: u64) -> Vec<(BootId, u64)> {
        self.submitted.clear();
        let known: Vec<u64> = self.held.keys().filter(|key| key.0 == boot && key.1 < below).map(|key| key.1).collect();
        self.acknowledged(boot, &known)
    }

    /// Returns those forgotten now.
    pub fn acknowledged(&mut self, boot: BootId, sequences: &[u64]) -> Vec<(BootId, u64)> {
        let keys = sequences.iter().map(|sequence| (boot, *sequence));
        keys.filter(|key| self.held.remove(key).is_some()).collect()
    }

    /// The oldest window not yet submitted on this connection.
    pub fn next(&self) -> Option<EncodedWindow> {
        self.held.iter().find(|(key, _)| !self.submitted.contains(key)).map(|(_, window)| window.clone())
    }

    pub fn submitted(&mut self, window: &EncodedWindow) {
        self.submitted.insert((window.key().boot, window.key().seq));
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// What an aggregator's owner keeps: windows, applied by key.
#[derive(Default)]
pub struct Store {
    applied: BTreeMap<WindowKey, u64>,
    /// Spans of all windows: wrong as soon as one counts twice.
    pub spans: u64,
    /// Windows that came, also again.
    pub arrivals: usize,
}

impl Store {
    pub fn apply(&mut self, window: &NodeWindow) {
        self.arrivals += 1;
        if self.applied.insert(window.key.clone(), window.intake.spans).is_none() {
            self.spans += window.intake.spans;
        }
    }

    pub fn contains(&self, key: &WindowKey) -> bool {
        self.applied.contains_key(key)
    }

    pub fn len(&self) -> usize {
        self.applied.len()
    }

    /// The first sequence number of `boot` that is missing.
    pub fn below(&self, node: &NodeId, boot: BootId) -> u64 {
        (0..).find(|seq| !self.contains(&WindowKey { node: node.clone(), boot, seq: *seq })).expect("one is missing")
    }
}
