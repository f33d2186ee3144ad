//! From decoded requests to a fleet: which node, which window, which of our metrics. Pure.
//!
//! A recorded sample tells of the time since the sample before it, so it is handed over for each window of that time. It
//! is read [`LEAD`] early for this; where samples are further apart, the rest of their time is what follows them.

use std::collections::{BTreeMap, HashMap};

use sage_causal::observation::Observation;
use sage_common::{InstanceId, Metric, Micros, NodeId, ServiceId, Slo, Span, Timestamp};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    latency::{self, CallGraph, Summary},
    names::{Merge, Names, Rule, is_counter},
    points::{Kind, Point, Resource},
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

/// Entry operations that get objectives of their own while none is given, busiest first.
const ENTRIES_MAX: usize = 8;

/// Percentiles at which an entry's latency is kept while no objective is given.
pub const PERCENTILES: [f64; 4] = [50.0, 75.0, 90.0, 95.0];

/// The node of latencies that come without one.
const METRICS_NODE: &str = "(recorded metrics)";

/// A span and the machine it is of.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Number of the node in [`Feed`].
    pub node: u32,
    /// The span.
    pub span: Span,
}

/// What a time series said last.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Timestamp,
    value: f64,
}

/// A fleet and how recorded names become its own.
pub struct Feed {
    fleet: Fleet,
    names: Names,
    nodes: HashMap<String, usize>,
    hosts: HashMap<String, String>,
    series: HashMap<u64, Last>,
    written: BTreeMap<ServiceId, String>,
    window: Micros,
    slos: Vec<Slo>,
    discovers: bool,
    share: f64,
    graph: CallGraph,
    takes_latencies: bool,
    told: Option<Timestamp>, // when latencies without spans were last given
}

impl Feed {
    /// A feed for a fleet of `config`; with no objectives in it, entries are discovered and get some of their own.
    pub fn new(config: FleetConfig, names: Names) -> Self {
        let (window, slos) = (config.window, config.slos.clone());
        Self {
            fleet: Fleet::new(config),
            names,
            nodes: HashMap::new(),
            hosts: HashMap::new(),
            series: HashMap::new(),
            written: BTreeMap::new(),
            window,
            discovers: slos.is_empty(),
            slos,
            share: 1.0,
            graph: CallGraph::default(),
            takes_latencies: true,
            told: None,
        }
    }

    /// Who calls whom where no spans tell.
    pub fn set_graph(&mut self, graph: CallGraph) {
        self.graph = graph;
    }

    /// Takes only this share of all traces, as a sampler would: whole traces, by their hash.
    pub fn sample(&mut self, share: f64) {
        self.share = share.clamp(1e-6, 1.0);
    }

    /// Leaves recorded percentiles of latency aside: spans tell more, and windows of either kind do not compare.
    pub fn leave_latencies(&mut self) {
        self.takes_latencies = false;
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

    /// The name of `service` as the recording writes it.
    pub fn written(&self, service: &ServiceId) -> String {
        self.written.get(service).cloned().unwrap_or_else(|| service.to_string())
    }

    /// Every service seen, as written.
    pub fn services(&self) -> impl Iterator<Item = &String> {
        self.written.values()
    }

    /// Moves time on.
    pub fn advance(&mut self, to: Timestamp) -> Vec<Observation> {
        let finished = self.fleet.advance(to);
        self.discovered(finished)
    }

    /// Ends the recording.
    pub fn finish(&mut self) -> Vec<Observation> {
        let finished = self.fleet.finish();
        self.discovered(finished)
    }

    /// Hands over one span.
    pub fn span(&mut self, placed: &Placed) {
        let Placed { node, span } = placed;
        if self.share >= 1.0 {
            self.fleet.span(*node as usize, span);
        } else if (span.trace.0 as f64) < self.share * u64::MAX as f64 {
            let weight = span.weight / self.share as f32;
            self.fleet.span(*node as usize, &Span { weight, ..span.clone() });
        }
    }

    /// Hands over the points of one request: those of one place, metric and time become one sample.
    pub fn points(&mut self, points: Vec<(Resource, Point)>) {
        let mut merged: BTreeMap<(usize, Place, Metric, Timestamp), Merged> = BTreeMap::new();
        let mut latencies: BTreeMap<Timestamp, BTreeMap<ServiceId, Summary>> = BTreeMap::new();
        for (whose, point) in points {
            if let (Some(said), Some(service)) = (latency::said(&point), &whose.service) {
                self.note_name(service);
                if !self.takes_latencies {
                    continue;
                }
                let of_service = latencies.entry(point.at).or_default().entry(ServiceId::sanitized(service));
                of_service.or_default().add(said);
                continue;
            }
            let Some(rule) = self.names.find(&point) else { continue };
            let Some((node, place)) = self.place(&whose, &rule) else { continue };
            let Some((value, since)) = self.value(&whose, &point, &rule) else { continue };
            let key = (node, place, rule.metric, point.at);
            merged.entry(key).or_insert_with(|| Merged::new(rule.merge, since)).add(value);
        }
        for ((node, place, metric, at), sample) in merged {
            self.spread(node, &place, metric, at, &sample);
        }
        for (at, services) in latencies {
            self.tell(at, &services);
        }
    }

    /// Hands recorded percentiles over for every window they tell of, on a node of their own: they know no machine.
    fn tell(&mut self, at: Timestamp, services: &BTreeMap<ServiceId, Summary>) {
        let since = self.told.replace(at).and_then(|before| at.since(before)).filter(|apart| *apart <= HOLD_MAX);
        let Some(node) = self.node(METRICS_NODE, None) else { return };
        let length = self.window.as_secs_f64();
        let seconds = since.map_or(length, Micros::as_secs_f64).max(1e-3);
        let mut told = latency::tell(services, &self.graph, seconds);
        let part = (length / seconds).min(1.0) as f32;
        told.series.iter_mut().for_each(|series| {
            series.calls *= part;
            series.errors *= part;
        });
        for time in self.times(at, since) {
            self.fleet.latency(node, time, told.series.clone(), told.skeletons.clone());
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
    pub fn slos(&self) -> &[Slo] {
        &self.slos
    }

    fn place(&mut self, whose: &Resource, rule: &Rule) -> Option<(usize, Place)> {
        let service = whose.service.as_deref().unwrap_or_default();
        if rule.is_of_node || service.is_empty() {
            return Some((self.node(service, whose.host.as_deref())?, Place::Node));
        }
        self.note_name(service);
        let node = self.node(service, whose.host.as_deref())?;
        let instance = InstanceId::sanitized(whose.instance.as_deref().unwrap_or(service));
        Some((node, Place::Instance(ServiceId::sanitized(service), instance)))
    }

    /// The value in our unit, and since when it holds.
    fn value(&mut self, whose: &Resource, point: &Point, rule: &Rule) -> Option<(f64, Option<Timestamp>)> {
        let key = series_key(whose, point);
        let before = self.series.get(&key).copied();
        if before.is_some_and(|last| last.at >= point.at) {
            return None; // given twice, or out of order by more than a request
        }
        if before.is_some() || self.series.len() < SERIES_MAX {
            self.series.insert(key, Last { at: point.at, value: point.value });
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
        let told = sample.since.and_then(|since| at.since(since));
        for time in self.times(at, told) {
            self.fleet.metric(node, place, metric, time, sample.value());
        }
    }

    /// A time in each window, open or to come, that something given at `at` tells of, which `told` of the time before.
    fn times(&self, at: Timestamp, told: Option<Micros>) -> Vec<Timestamp> {
        let length = self.window.get();
        let told = told.unwrap_or_default();
        let (back, ahead) = if told.get() <= length {
            (length / 2, 0)
        } else {
            (told.min(LEAD).get(), told.saturating_sub(LEAD).get())
        };
        // Half a window before its time: a sample at a window's very end belongs to that window.
        let end = (at.as_micros() + ahead).saturating_sub(length / 2);
        let begin = at.as_micros().saturating_sub(back).max(self.fleet.now().as_micros().saturating_sub(length));
        let steps = (0..AHEAD_MAX as u64).map(|step| end.saturating_sub(step * length));
        steps.take_while(|time| *time >= begin).map(Timestamp::from_micros).collect()
    }

    /// Gives objectives to entries that were seen for the first time, and their latency to the windows that show them.
    fn discovered(&mut self, mut finished: Vec<Observation>) -> Vec<Observation> {
        if !self.discovers {
            return finished;
        }
        let before = self.slos.len();
        for observation in &mut finished {
            self.discover(observation);
        }
        if self.slos.len() > before {
            self.fleet.set_slos(self.slos.clone());
        }
        finished
    }

    fn discover(&mut self, observation: &mut Observation) {
        let mut roots: Vec<usize> =
            (0..observation.edges.len()).filter(|edge| observation.edges[*edge].key.caller.is_none()).collect();
        roots.sort_by(|a, b| observation.edges[*b].calls.total_cmp(&observation.edges[*a].calls));
        for root in roots {
            let edge = &observation.edges[root];
            let (service, operation) = (edge.key.callee.clone(), edge.key.operation.clone());
            let is_known =
                self.slos.iter().any(|slo| slo.service == service && slo.operation.as_ref() == Some(&operation));
            let is_room = self.slos.len() < ENTRIES_MAX * PERCENTILES.len();
            if !is_known && is_room {
                self.slos.extend(PERCENTILES.map(|percentile| Slo {
                    name: format!("{service} {operation} p{percentile}"),
                    service: service.clone(),
                    operation: Some(operation.clone()),
                    percentile,
                    target: Micros::new(u64::MAX),
                }));
            }
        }
        for slo in &self.slos {
            if observation.objectives.iter().any(|objective| objective.slo == slo.name) {
                continue;
            }
            let covered = observation.edges.iter().find(|edge| {
                edge.key.caller.is_none() && slo.covers(&edge.key.callee, &edge.key.operation) && edge.server.is_some()
            });
            if let Some((edge, server)) = covered.and_then(|edge| Some((edge, edge.server?))) {
                let latency_us = f64::from(server.at(slo.percentile));
                let objective = sage_causal::observation::ObjectiveObservation {
                    slo: slo.name.clone(),
                    calls: edge.calls,
                    latency_us,
                };
                observation.objectives.push(objective);
            }
        }
    }
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

fn series_key(whose: &Resource, point: &Point) -> u64 {
    let parts = [&whose.service, &whose.instance, &whose.host].map(|part| part.as_deref().unwrap_or_default());
    let mut text = parts.join("\u{1}");
    text.push('\u{1}');
    text += &point.name;
    for (key, value) in &point.attributes {
        text += "\u{1}";
        text += key;
        text += "\u{2}";
        text += value;
    }
    xxh3_64(text.as_bytes())
}
