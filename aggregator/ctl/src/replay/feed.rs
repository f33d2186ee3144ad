//! From decoded requests to a fleet: which node, which window, which of our metrics. Pure.
//!
//! A recorded sample tells of the time since the sample before it, so it is handed over for each window of that time. It
//! is read [`LEAD`] early for this; where samples are further apart, the rest of their time is what follows them.
//!
//! A feed tells latency by spans or by recorded percentiles, as it is made for: windows of either kind do not compare.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use sage_causal::observation::Observation;
use sage_common::{InstanceId, Metric, Micros, NodeId, ServiceId, Slo, Span, Timestamp};

use super::{
    callgraph::CallGraph,
    entries::Entries,
    kinds::Kinds,
    latency::Whose,
    names::{Meaning, Merge, Names, Rule, is_counter},
    points::{Kind, Point, Resource},
    spoken::Spoken,
    tell::{Measured, tell},
};
use crate::pipeline::{AHEAD_MAX, Fleet, FleetConfig, Place};

/// How much earlier than spans samples are read: a sample a minute is the most common.
pub const LEAD: Micros = Micros::from_secs(60);

/// Longest time that a sample speaks for: the slowest usual interval.
const HOLD_MAX: Micros = Micros::from_secs(300);

/// Time series remembered, for rates and intervals: 24 bytes each and the map's slack. Further ones are read as
/// if they began each time.
const SERIES_MAX: usize = 500_000;

/// Names as written, for answers in the user's own words.
const NAMES_MAX: usize = 65_536;

/// Services, percentiles and buckets of open windows: 24 bytes each and their maps' slack. Further ones are left out.
const HELD_MAX: usize = 1_000_000;

/// The node of latencies that come without one.
const METRICS_NODE: &str = "(recorded metrics)";

/// A span and the machine it is of.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Number of the node in [`Feed`].
    pub node: u32,
    /// The span.
    pub span: Span,
    /// Whether it says its kind.
    pub has_kind: bool,
}

/// What a time series said last.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Timestamp,
    value: f64,
}

/// What a feed's latencies come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// Spans.
    Spans,
    /// Recorded percentiles.
    Metrics,
}

/// A fleet and how recorded names become its own.
pub struct Feed {
    fleet: Fleet,
    source: Source,
    names: Names,
    nodes: HashMap<String, usize>,
    hosts: HashMap<String, String>,
    series: HashMap<u64, Last>,
    written: BTreeMap<ServiceId, String>,
    window: Micros,
    entries: Entries,
    share: f64,
    kinds: Kinds,
    graph: CallGraph,
    percentiles: u64,
    held: usize,                                                  // of `measured`, counted from above
    measured: BTreeMap<Timestamp, BTreeMap<ServiceId, Measured>>, // by the window they speak of
}

impl Feed {
    /// A feed for a fleet of `config`; with no objectives in it, entries are discovered and get some of their own.
    pub fn new(config: FleetConfig, source: Source, names: Names) -> Self {
        Self {
            window: config.window,
            entries: Entries::new(config.slos.clone()),
            // Within the lateness, so that nobody is late because of the wait.
            kinds: Kinds::new(Micros::new(config.lateness.get() / 2)),
            fleet: Fleet::new(config),
            source,
            names,
            nodes: HashMap::new(),
            hosts: HashMap::new(),
            series: HashMap::new(),
            written: BTreeMap::new(),
            share: 1.0,
            graph: CallGraph::default(),
            percentiles: 0,
            held: 0,
            measured: BTreeMap::new(),
        }
    }

    /// Adds to who calls whom where no spans tell.
    pub fn add_graph(&mut self, graph: CallGraph) {
        graph.names().for_each(|name| self.note_name(name));
        self.graph.merge(graph);
    }

    /// Takes only this share of all traces, as a sampler would: whole traces, by their hash.
    pub fn sample(&mut self, share: f64) {
        self.share = share.clamp(1e-6, 1.0);
    }

    /// Number of the node of a service: its host, else one of its own.
    pub fn node(&mut self, service: &str, host: Option<&str>) -> Option<usize> {
        let name = match host {
            Some(host) => {
                if !service.is_empty() && self.hosts.len() < NAMES_MAX && !self.hosts.contains_key(service) {
                    self.hosts.insert(service.to_owned(), host.to_owned());
                }
                host
            }
            None => self.hosts.get(service).map_or(service, String::as_str),
        };
        if let Some(known) = self.nodes.get(name) {
            return Some(*known);
        }
        let (name, added) = (name.to_owned(), self.fleet.add_node(NodeId::sanitized(name))?);
        self.nodes.insert(name, added);
        Some(added)
    }

    /// Remembers how a service's name is written.
    pub fn note_name(&mut self, service: &str) {
        let id = ServiceId::sanitized(service);
        if !service.is_empty() && self.written.len() < NAMES_MAX {
            self.written.entry(id).or_insert_with(|| service.to_owned());
        }
    }

    /// The name of `service` as the recording writes it; `None` when it was never seen.
    pub fn written(&self, service: &ServiceId) -> Option<String> {
        self.written.get(service).cloned()
    }

    /// Every service seen, as written.
    pub fn services(&self) -> impl Iterator<Item = &String> {
        self.written.values()
    }

    /// Moves time on.
    pub fn advance(&mut self, to: Timestamp) -> Vec<Observation> {
        while let Some(placed) = self.kinds.pop(to) {
            self.fleet.span(placed.node as usize, &placed.span);
        }
        self.tell(to);
        let finished = self.fleet.advance(to);
        self.entries.complete(finished, &mut self.fleet)
    }

    /// Ends the recording.
    pub fn finish(&mut self) -> Vec<Observation> {
        while let Some(placed) = self.kinds.pop(Timestamp::from_micros(u64::MAX)) {
            self.fleet.span(placed.node as usize, &placed.span);
        }
        self.tell(Timestamp::from_micros(u64::MAX));
        let finished = self.fleet.finish();
        self.entries.complete(finished, &mut self.fleet)
    }

    /// Hands over one span.
    pub fn span(&mut self, placed: &Placed) {
        let Placed { node, span, has_kind } = placed;
        let is_sampled = self.share >= 1.0 || (span.trace.0 as f64) < self.share * u64::MAX as f64;
        if !is_sampled {
            return;
        }
        if *has_kind && self.share >= 1.0 {
            return self.fleet.span(*node as usize, span);
        }
        let span = Span { weight: span.weight / self.share as f32, ..span.clone() };
        if *has_kind {
            self.fleet.span(*node as usize, &span);
        } else {
            self.kinds.push(self.fleet.now(), Placed { span, ..*placed });
        }
    }

    /// Hands over the points of one request: those of one place, metric and time become one sample.
    pub fn points(&mut self, points: &[(Resource, Point)]) {
        let mut merged: BTreeMap<(usize, Place, Metric, Timestamp), Merged> = BTreeMap::new();
        for (whose, point) in points {
            match self.names.find(point) {
                Some(Meaning::Usage(rule)) => {
                    let Some((node, place)) = self.place(whose, point, &rule) else { continue };
                    let Some((value, since)) = self.value(whose, point, &rule) else { continue };
                    let key = (node, place, rule.metric, point.at);
                    merged.entry(key).or_insert_with(|| Merged::new(rule.merge, since)).add(value);
                }
                Some(Meaning::Latency(spoken)) => {
                    self.percentiles += 1;
                    if self.source == Source::Metrics {
                        self.measure(whose, point, spoken);
                    }
                }
                None => {}
            }
        }
        for ((node, place, metric, at), sample) in merged {
            self.spread(node, &place, metric, at, &sample);
        }
    }

    /// The fleet.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The table of names.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The objectives in force: those given, or those discovered, without a target then.
    pub fn slos(&self) -> Vec<Slo> {
        self.entries.slos()
    }

    /// Services at which requests were seen to enter.
    pub fn entered(&self) -> impl Iterator<Item = &ServiceId> {
        self.entries.seen()
    }

    /// Length of its windows.
    pub fn window(&self) -> Micros {
        self.window
    }

    /// What its latencies come from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Data points that spoke of latency.
    pub fn percentiles(&self) -> u64 {
        self.percentiles
    }

    fn measure(&mut self, whose: &Resource, point: &Point, spoken: Spoken) {
        let Spoken { service, whose: of, mut said, is_failed } = spoken;
        let Some(service) = service.or_else(|| labelled(whose, point)?.service.clone()) else { return };
        if said.is_count() && is_counter(point) {
            let Some(since) = self.counted(whose, point) else { return };
            said = said.scaled(if point.value > 0.0 { since / point.value } else { 0.0 });
        }
        self.note_name(&service);
        if let Whose::Made(peer) = &of {
            self.note_name(peer);
            self.graph.add(&service, peer);
        }
        if self.held >= HELD_MAX {
            return;
        }
        self.held += 1;
        // A sample tells of the time before it: one at a window's very end belongs to that window.
        let start = (point.at - Micros::new(self.window.get() / 2)).aligned(self.window);
        let measured = self.measured.entry(start).or_default().entry(ServiceId::sanitized(&service)).or_default();
        let summary = match of {
            Whose::Served => &mut measured.served,
            Whose::Made(peer) => measured.made.entry(ServiceId::sanitized(&peer)).or_default(),
        };
        summary.add(point.set(whose), said, is_failed);
    }

    /// How much a counter has risen since its point before; `None` where that is not known.
    fn counted(&mut self, whose: &Resource, point: &Point) -> Option<f64> {
        let before = self.remember(whose, point)?;
        let is_near = point.at.since(before.at).is_some_and(|apart| apart <= HOLD_MAX);
        (is_near && point.value >= before.value).then_some(point.value - before.value)
    }

    /// Tells the windows that have ended at `now`, on a node of their own: percentiles know no machine.
    fn tell(&mut self, now: Timestamp) {
        let window = self.window;
        let is_due = |start: &Timestamp| *start + window <= now;
        while self.measured.len() > AHEAD_MAX || self.measured.keys().next().is_some_and(is_due) {
            let Some((start, services)) = self.measured.pop_first() else { return };
            self.held = self.measured.values().flat_map(BTreeMap::values).map(Measured::size).sum();
            let Some(node) = self.node(METRICS_NODE, None) else { return };
            let told = tell(&services, &self.graph, self.window.as_secs_f64());
            self.fleet.latency(node, start, told.series, told.skeletons);
        }
    }

    fn place(&mut self, whose: &Resource, point: &Point, rule: &Rule) -> Option<(usize, Place)> {
        let whose = &*labelled(whose, point)?;
        let service = whose.service.as_deref().unwrap_or_default();
        if rule.is_of_node || service.is_empty() {
            return Some((self.node(service, whose.host.as_deref())?, Place::Node));
        }
        self.note_name(service);
        let node = self.node(service, whose.host.as_deref())?;
        let instance = InstanceId::sanitized(whose.instance.as_deref().unwrap_or(service));
        Some((node, Place::Instance(ServiceId::sanitized(service), instance)))
    }

    /// The point before of the same series, and remembers this one; the same again if this one is no newer.
    fn remember(&mut self, whose: &Resource, point: &Point) -> Option<Last> {
        let key = point.series(whose);
        let before = self.series.get(&key).copied();
        let is_newer = before.is_none_or(|last| last.at < point.at);
        if is_newer && (before.is_some() || self.series.len() < SERIES_MAX) {
            self.series.insert(key, Last { at: point.at, value: point.value });
        }
        before
    }

    /// The value in our unit, and since when it holds.
    fn value(&mut self, whose: &Resource, point: &Point, rule: &Rule) -> Option<(f64, Option<Timestamp>)> {
        let before = self.remember(whose, point);
        if before.is_some_and(|last| last.at >= point.at) {
            return None; // given twice, or out of order by more than a request
        }
        let since = before.map(|last| last.at).filter(|at| point.at.since(*at).unwrap_or_default() <= HOLD_MAX);
        let seconds = |from: Timestamp| point.at.since(from).unwrap_or_default().as_secs_f64();
        let value = match point.kind {
            _ if is_counter(point) => {
                let before = before.filter(|last| point.value >= last.value)?; // a reset says nothing
                (point.value - before.value) / seconds(before.at)
            }
            Kind::Delta => point.value / seconds(since?),
            _ => point.value,
        };
        let value = rule.factor * value;
        Some((if rule.is_complement { (1.0 - value).max(0.0) } else { value }, since))
    }

    /// Hands one sample over for every window it tells of.
    fn spread(&mut self, node: usize, place: &Place, metric: Metric, at: Timestamp, sample: &Merged) {
        let length = self.window.get();
        let told = sample.since.map_or(Micros::ZERO, |since| at.since(since).unwrap_or_default());
        let (back, ahead) = if told.get() <= length {
            (length / 2, 0)
        } else {
            (told.min(LEAD).get(), told.saturating_sub(LEAD).get())
        };
        // Half a window before its time: a sample at a window's very end belongs to that window.
        let end = (at.as_micros() + ahead).saturating_sub(length / 2);
        let begin = at.as_micros().saturating_sub(back).max(self.fleet.now().as_micros().saturating_sub(length));
        let steps = (0..AHEAD_MAX as u64).map(|step| end.saturating_sub(step * length));
        for time in steps.take_while(|time| *time >= begin) {
            self.fleet.metric(node, place, metric, Timestamp::from_micros(time), sample.value());
        }
    }
}

/// Whose `point` is. What a scraper measures of others says so itself, and so does what comes without a service; `None`
/// for the sums that cAdvisor makes over groups of containers.
fn labelled<'a>(whose: &'a Resource, point: &Point) -> Option<Cow<'a, Resource>> {
    let is_scraped = point.name.starts_with("container_");
    let is_machine = point.name.starts_with("node_") && whose.host.is_none();
    if whose.service.is_some() && !is_scraped && !is_machine {
        return Some(Cow::Borrowed(whose));
    }
    let own = Resource::of(&point.attributes);
    if is_scraped && own.service.is_none() && point.attribute("id").is_some() {
        return None;
    }
    // What node_exporter is scraped from: ADDRESS:PORT.
    let scraped = || point.attribute("instance").or(whose.instance.as_deref()).filter(|_| is_machine);
    let address = || scraped().map(|text| text.rsplit_once(':').map_or(text, |(address, _)| address).to_owned());
    Some(Cow::Owned(Resource {
        service: own.service.filter(|_| !is_machine).or_else(|| whose.service.clone()),
        instance: own.instance.or_else(|| whose.instance.clone()),
        host: own.host.or_else(|| whose.host.clone()).or_else(address),
    }))
}

/// Points that become one sample.
#[derive(Clone, Copy, Debug)]
struct Merged {
    merge: Merge,
    total: f64,
    most: f64,
    count: f64,
    since: Option<Timestamp>,
}

impl Merged {
    fn new(merge: Merge, since: Option<Timestamp>) -> Self {
        Self { merge, total: 0.0, most: 0.0, count: 0.0, since }
    }

    fn add(&mut self, value: f64) {
        self.total += value;
        self.most = self.most.max(value);
        self.count += 1.0;
    }

    fn value(&self) -> f64 {
        match self.merge {
            Merge::Sum => self.total,
            Merge::Max => self.most,
            Merge::Mean => self.total / self.count.max(1.0),
        }
    }
}
