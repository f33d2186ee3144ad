//! Synthetic unit worlds: small applications whose self times and gaps are known, with faults injected on purpose.
//!
//! Not a queueing simulator: waiting is drawn, not simulated. Good for holding the model to cases whose answer is plain.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, LogNormal};
use sage_common::{
    InstanceId, LatencyQuantiles, Metric, Micros, NodeId, OperationId, ServiceId, Slo, Timestamp, UsageQuantiles,
};

pub use crate::gvae::{ServiceNet, TrainingProbe};
use crate::{
    engine,
    frame::Frame,
    model::Model,
    observation::{
        EdgeKey, EdgeObservation, InstanceObservation, ObjectiveObservation, Observation, ResolvedSkeleton,
        ServiceObservation, Trace, TraceCall,
    },
    pool,
    scene::Scene,
};

/// Gives `run` the percentile of `slo` over `windows` in but-for worlds (`ln us`, by the numbers of the services that are
/// normal in them), everything that a diagnosis prepares once being done: for benchmarks of composition alone. The second
/// argument of `run` is how many services there are.
///
/// # Panics
///
/// When there is nothing to recompose.
pub fn in_worlds<R>(
    model: &Model,
    windows: &[Observation],
    slo: &Slo,
    run: impl FnOnce(&mut dyn FnMut(&[usize]) -> f64, usize) -> R,
) -> R {
    let windows: Vec<&Observation> = windows.iter().collect();
    let edges = model.edges().collect();
    let graph = pool::graph(&edges, model.skeletons(), &windows);
    let frame = Frame::of(&graph, &windows).expect("windows");
    let scene = Scene::new(&graph, model.normals(), &frame);
    let observed = pool::observed_log(&windows, slo).expect("the objective was observed");
    let mut engine = engine::choose(&scene, model.skeletons(), &windows, slo, observed);
    run(&mut |services| engine.counterfactual(services), graph.services().len())
}

/// Length of a window.
const WINDOW: Micros = Micros::from_secs(10);

/// Spread of self times and gaps, in logs.
const SPREAD: f64 = 0.35;

/// Samples of usage per window.
const SAMPLES: usize = 10;

/// One call of a tier.
#[derive(Clone, Debug)]
pub struct WorldCall {
    /// Number of the called tier.
    pub callee: usize,
    /// Share of the requests that make it.
    pub probability: f64,
}

/// One service.
#[derive(Clone, Debug)]
pub struct Tier {
    /// Its name; its only operation is `op`.
    pub name: &'static str,
    /// Median self time, microseconds.
    pub self_us: f64,
    /// Serial groups of parallel calls.
    pub groups: Vec<Vec<WorldCall>>,
    /// How many replicas report usage.
    pub replicas: usize,
}

/// Something wrong, or seemingly wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Self time of a tier times a factor, with the processor metrics to show for it.
    Cpu(usize, f64),
    /// The same by its disk.
    Disk(usize, f64),
    /// The same by its memory.
    Memory(usize, f64),
    /// Microseconds on every gap of a tier, with round trips and retransmits to show for it.
    Network(usize, f64),
    /// Self time of a tier times a factor, and no metric moves.
    Slow(usize, f64),
    /// Mean microseconds that callers of a tier wait before it takes their call, and no metric moves.
    Queue(usize, f64),
    /// Processor pressure without any slowdown.
    Decoy(usize),
    /// Arrivals times a factor; self times rise with them.
    Surge(f64),
}

/// A small application.
#[derive(Clone, Debug)]
pub struct World {
    /// Tier 0 is the entry.
    pub tiers: Vec<Tier>,
    /// Requests per second at the middle of the load swing.
    pub rate: f64,
    /// Traces kept per window.
    pub traces_max: usize,
    /// Whether usage is reported.
    pub has_metrics: bool,
    /// Tier without server spans.
    pub silent: Option<usize>,
}

fn call(callee: usize) -> WorldCall {
    WorldCall { callee, probability: 1.0 }
}

fn tier(name: &'static str, self_us: f64, groups: Vec<Vec<WorldCall>>) -> Tier {
    Tier { name, self_us, groups, replicas: 1 }
}

impl World {
    fn of(tiers: Vec<Tier>) -> Self {
        Self { tiers, rate: 60.0, traces_max: 300, has_metrics: true, silent: None }
    }

    /// Five tiers in a row.
    pub fn chain() -> Self {
        let next = |callee| vec![vec![call(callee)]];
        Self::of(vec![
            tier("front", 800.0, next(1)),
            tier("auth", 1_000.0, next(2)),
            tier("logic", 1_500.0, next(3)),
            tier("store", 900.0, next(4)),
            tier("disk", 1_200.0, vec![]),
        ])
    }

    /// A root with four parallel leaves and an aggregation after them.
    pub fn fanout() -> Self {
        Self::of(vec![
            tier("root", 700.0, vec![(1..5).map(call).collect(), vec![call(5)]]),
            tier("leaf-a", 2_000.0, vec![]),
            tier("leaf-b", 1_500.0, vec![]),
            tier("leaf-c", 2_200.0, vec![]),
            tier("leaf-d", 1_000.0, vec![]),
            tier("merge", 900.0, vec![]),
        ])
    }

    /// A front with a user service and a shop; both use one cache; the shop sometimes asks its database; reviews on a rare
    /// branch.
    pub fn shop() -> Self {
        Self::of(vec![
            tier("front", 900.0, vec![vec![call(1), call(2)]]),
            tier("user", 700.0, vec![vec![call(3)]]),
            tier("shop", 1_300.0, vec![vec![call(3)], vec![WorldCall { callee: 4, probability: 0.4 }, call(5)]]),
            tier("cache", 300.0, vec![]),
            tier("database", 2_500.0, vec![]),
            tier("stock", 1_000.0, vec![vec![WorldCall { callee: 6, probability: 0.1 }]]),
            tier("reviews", 1_100.0, vec![]),
        ])
    }

    /// `count` tiers (two at least) as a tree of fan-out four, every fifth of them with a shared cache, the last; one
    /// request sees 15 to 30 of them however many there are. The first 30 are about the size of a social network.
    pub fn generated(count: usize) -> Self {
        let cache = count - 1;
        let probability = if count < 100 { 0.7 } else { 0.4 };
        let maybe = |callee: usize| (callee < cache).then_some(WorldCall { callee, probability });
        let tier_at = |place: usize| {
            let pair = |first: usize| [first, first + 1].into_iter().filter_map(maybe).collect::<Vec<_>>();
            let mut groups = vec![pair(4 * place + 1), pair(4 * place + 3)];
            groups.extend((place % 5 == 2).then(|| vec![call(cache)]));
            groups.retain(|group| !group.is_empty());
            // Names live as long as the program: a world is made a few times in it.
            let name: &'static str = Box::leak(format!("tier-{place:04}").into_boxed_str());
            tier(name, 300.0 + 37.0 * (place % 23) as f64, if place == cache { vec![] } else { groups })
        };
        Self::of((0..count).map(tier_at).collect())
    }

    /// The name of a tier.
    pub fn service(&self, tier: usize) -> ServiceId {
        ServiceId::sanitized(self.tiers[tier].name)
    }

    /// A p99 target above the healthy latency by half.
    pub fn slo(&self) -> Slo {
        let healthy: Vec<f64> = (0..12).map(|i| self.observe(999, i, &[]).objectives[0].latency_us).collect();
        let highest = healthy.into_iter().fold(0.0, f64::max);
        Slo {
            name: "entry".to_owned(),
            service: self.service(0),
            operation: None,
            percentile: 99.0,
            target: Micros::new((1.5 * highest) as u64),
        }
    }

    /// `count` windows under `faults`, numbered from `first`; the same seed and number give the same window.
    pub fn windows(&self, seed: u64, first: u64, count: u64, faults: &[Fault]) -> Vec<Observation> {
        (first..first + count).map(|index| self.observe(seed, index, faults)).collect()
    }

    /// One window.
    pub fn observe(&self, seed: u64, index: u64, faults: &[Fault]) -> Observation {
        let draw = SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9).wrapping_add(index));
        Window::new(self, faults, draw, index).observe()
    }

    fn key(&self, caller: Option<usize>, callee: usize) -> EdgeKey {
        EdgeKey {
            caller: caller.map(|tier| self.service(tier)),
            callee: self.service(callee),
            operation: OperationId::sanitized("op"),
        }
    }
}

/// Durations of one edge.
#[derive(Default)]
struct Durations {
    client: Vec<f32>,
    server: Vec<f32>,
    gap: Vec<f32>,
    own: Vec<f32>,
}

/// One window being drawn.
struct Window<'a> {
    world: &'a World,
    faults: &'a [Fault],
    draw: SmallRng,
    index: u64,
    /// By caller (`None` for clients) and callee.
    keys: BTreeMap<(Option<usize>, usize), EdgeKey>,
    rate: f64,
    surge: f64,
    /// Tiers being served and their places in the trace, the innermost last.
    open: Vec<(usize, u32)>,
    edges: BTreeMap<(Option<usize>, usize), Durations>,
    skeletons: BTreeMap<(usize, Vec<Vec<usize>>), u32>,
}

impl<'a> Window<'a> {
    fn new(world: &'a World, faults: &'a [Fault], mut draw: SmallRng, index: u64) -> Self {
        let surge = faults.iter().map(|fault| if let Fault::Surge(factor) = fault { *factor } else { 1.0 }).product();
        let swing = 1.0 + 0.3 * (index as f64 / 7.0).sin() + 0.05 * draw.random_range(-1.0..1.0);
        Self {
            world,
            faults,
            draw,
            index,
            keys: keys(world),
            rate: world.rate * swing * surge,
            surge,
            open: Vec::new(),
            edges: BTreeMap::new(),
            skeletons: BTreeMap::new(),
        }
    }

    fn observe(mut self) -> Observation {
        let requests = (self.rate * WINDOW.as_secs_f64()) as usize;
        let mut traces = Vec::new();
        for _ in 0..requests {
            let mut trace = Trace::default();
            self.serve(0, 0.0, &mut trace);
            if traces.len() < self.world.traces_max {
                traces.push(trace);
            }
        }
        let services = (0..self.world.tiers.len()).map(|tier| self.service(tier)).collect();
        let objectives = vec![self.objective()];
        let skeletons = self.skeletons();
        Observation {
            start: Timestamp::from_micros((1_000_000 + self.index) * WINDOW.get()),
            length: WINDOW,
            edges: self.edges(),
            services,
            trace_share: (traces.len() as f32 / requests.max(1) as f32).min(1.0),
            traces,
            skeletons,
            objectives,
            offered_per_s: self.rate,
            completeness: 1.0,
        }
    }

    fn lognormal(&mut self, median: f64) -> f64 {
        LogNormal::new(median.max(1.0).ln(), SPREAD).expect("finite").sample(&mut self.draw)
    }

    /// Self time of one call of `tier`.
    fn own_us(&mut self, tier: usize) -> f64 {
        let load = (self.rate / self.world.rate).powf(if self.surge > 1.0 { 2.0 } else { 0.2 });
        let factor: f64 = self
            .faults
            .iter()
            .map(|fault| match fault {
                Fault::Cpu(at, k) | Fault::Disk(at, k) | Fault::Memory(at, k) | Fault::Slow(at, k) if *at == tier => *k,
                _ => 1.0,
            })
            .product();
        let median = self.world.tiers[tier].self_us * load * factor;
        self.lognormal(median)
    }

    /// Gap of one call, part of which is a queue that follows the callee's holding time.
    fn gap_us(&mut self, caller: Option<usize>, callee: usize, server_us: f64) -> f64 {
        let mut gap = self.lognormal(150.0) + 0.03 * server_us * self.draw.random_range(0.0..1.0);
        for fault in self.faults {
            match fault {
                Fault::Network(at, us) if *at == callee || Some(*at) == caller => {
                    gap += us * self.draw.random_range(0.95..1.05);
                }
                Fault::Queue(at, us) if *at == callee => {
                    gap += us * -(1.0 - self.draw.random_range(0.0..1.0_f64)).ln();
                }
                _ => {}
            }
        }
        gap
    }

    /// Draws one call and everything below it; returns its client span.
    fn serve(&mut self, tier: usize, offset: f64, trace: &mut Trace) -> f64 {
        let (caller, parent) = self.open.last().copied().unzip();
        let place = trace.calls.len();
        self.open.push((tier, place as u32));
        trace.calls.push(TraceCall {
            parent,
            edge: self.keys[&(caller, tier)].clone(),
            offset_us: offset as f32,
            client_us: None,
            server_us: None,
            self_us: None,
            is_sync: true,
            is_error: false,
        });
        let own = self.own_us(tier);
        let groups = self.world.tiers[tier].groups.clone();
        let parts = (groups.len() + 1) as f64;
        let (mut now, mut shape) = (own / parts, Vec::new());
        for group in groups {
            let mut end = now;
            let mut made = Vec::new();
            for call in group {
                if self.draw.random_bool(call.probability) {
                    let client = self.serve(call.callee, now, trace);
                    end = end.max(now + client);
                    made.push(call.callee);
                }
            }
            shape.extend((!made.is_empty()).then_some(made));
            now = end + own / parts;
        }
        self.open.pop();
        *self.skeletons.entry((tier, shape)).or_default() += 1;
        let gap = if caller.is_some() { self.gap_us(caller, tier, now) } else { 0.0 };
        let is_silent = self.world.silent == Some(tier);
        let entry = self.edges.entry((caller, tier)).or_default();
        let call = &mut trace.calls[place];
        if caller.is_some() {
            entry.client.push((now + gap) as f32);
            call.client_us = Some((now + gap) as f32);
        }
        if !is_silent {
            entry.server.push(now as f32);
            entry.own.push(own as f32);
            (call.server_us, call.self_us) = (Some(now as f32), Some(own as f32));
            if caller.is_some() {
                entry.gap.push(gap as f32);
            }
        }
        now + gap
    }

    fn edges(&mut self) -> Vec<EdgeObservation> {
        let edges = std::mem::take(&mut self.edges);
        let edge = |((caller, callee), mut durations): ((Option<usize>, usize), Durations)| EdgeObservation {
            key: self.world.key(caller, callee),
            calls: durations.client.len().max(durations.server.len()) as f64,
            errors: 0.0,
            client: latencies(&mut durations.client),
            server: latencies(&mut durations.server),
            gap: latencies(&mut durations.gap),
            self_time: latencies(&mut durations.own),
        };
        let mut edges: Vec<EdgeObservation> = edges.into_iter().map(edge).collect();
        edges.sort_by(|a, b| a.key.cmp(&b.key));
        edges
    }

    fn objective(&self) -> ObjectiveObservation {
        let mut roots = self.edges.get(&(None, 0)).map(|durations| durations.server.clone()).unwrap_or_default();
        let calls = roots.len() as f64;
        let latency_us = latencies(&mut roots).map_or(0.0, |q| f64::from(q.at(99.0)));
        ObjectiveObservation { slo: "entry".to_owned(), calls, latency_us }
    }

    fn skeletons(&self) -> Vec<ResolvedSkeleton> {
        let group = |tier: usize, group: &Vec<usize>| {
            group.iter().map(|callee| vec![self.world.key(Some(tier), *callee)]).collect::<Vec<_>>()
        };
        self.skeletons
            .iter()
            .filter(|((tier, _), _)| self.world.silent != Some(*tier))
            .map(|((tier, shape), count)| ResolvedSkeleton {
                service: self.world.service(*tier),
                operation: OperationId::sanitized("op"),
                groups: shape.iter().map(|calls| group(*tier, calls)).collect(),
                count: *count,
            })
            .collect()
    }

    fn service(&mut self, tier: usize) -> ServiceObservation {
        let replicas = if self.world.has_metrics { self.world.tiers[tier].replicas } else { 0 };
        let instance = |replica: usize| InstanceObservation {
            instance: InstanceId::sanitized(&format!("{}-{replica}", self.world.tiers[tier].name)),
            node: NodeId::sanitized(&format!("node-{tier}-{replica}")),
            metrics: Vec::new(),
        };
        let mut instances: Vec<InstanceObservation> = (0..replicas).map(instance).collect();
        for instance in &mut instances {
            instance.metrics = self.metrics(tier);
        }
        ServiceObservation { service: self.world.service(tier), instances }
    }

    fn metrics(&mut self, tier: usize) -> Vec<(Metric, UsageQuantiles)> {
        let load = self.rate / self.world.rate;
        let calls = self.edges.iter().filter(|((_, callee), _)| *callee == tier).map(|(_, d)| d.server.iter());
        let at_once = calls.flatten().map(|us| f64::from(*us)).sum::<f64>() / 1e7;
        let mut levels = vec![
            (Metric::CpuUsed, 0.2 * load + 0.1 * at_once),
            (Metric::CpuLimitShare, 0.2 * load),
            (Metric::CpuThrottled, 0.01),
            (Metric::CpuPressure, 0.03),
            (Metric::NodeCpuUtilisation, 0.25 * load),
            (Metric::MemoryPressure, 0.01),
            (Metric::MajorFaults, 0.3),
            (Metric::DiskOperations, 20.0 * load),
            (Metric::IoPressure, 0.02),
            (Metric::NodeDiskAwait, 1.0),
            (Metric::RoundTrip, 0.3),
            (Metric::Retransmits, 0.2),
            (Metric::NodeNetworkSent, 2e6 * load),
            (Metric::Threads, 8.0 + at_once),
            (Metric::Connections, 20.0 + at_once),
        ];
        for fault in self.faults {
            shift(&mut levels, fault, tier, self.world);
        }
        levels.into_iter().map(|(metric, level)| (metric, self.quantiles(level))).collect()
    }

    fn quantiles(&mut self, level: f64) -> UsageQuantiles {
        let mut values: Vec<f32> =
            (0..SAMPLES).map(|_| (level * (1.0 + 0.1 * self.draw.random_range(-1.0..1.0))) as f32).collect();
        UsageQuantiles::of_values(&mut values).expect("samples")
    }
}

fn keys(world: &World) -> BTreeMap<(Option<usize>, usize), EdgeKey> {
    let calls =
        |(tier, t): (usize, &Tier)| t.groups.iter().flatten().map(|call| (Some(tier), call.callee)).collect::<Vec<_>>();
    let pairs = world.tiers.iter().enumerate().flat_map(calls);
    std::iter::once((None, 0))
        .chain(pairs)
        .map(|(caller, callee)| ((caller, callee), world.key(caller, callee)))
        .collect()
}

/// The grid of `values`, sorted here: this crate is optimised in every profile, the one that knows the grid is not.
fn latencies(values: &mut [f32]) -> Option<LatencyQuantiles> {
    values.sort_unstable_by(f32::total_cmp);
    LatencyQuantiles::of_values(values)
}

/// What a fault does to the metrics of `tier`.
fn shift(levels: &mut [(Metric, f64)], fault: &Fault, tier: usize, world: &World) {
    let mut set = |changes: &[(Metric, f64)]| {
        for (metric, value) in changes {
            levels.iter_mut().filter(|(own, _)| own == metric).for_each(|(_, level)| *level = level.max(*value));
        }
    };
    let calls = |a: usize, b: usize| world.tiers[a].groups.iter().flatten().any(|call| call.callee == b);
    match fault {
        Fault::Cpu(at, _) | Fault::Decoy(at) if *at == tier => {
            set(&[(Metric::CpuPressure, 0.6), (Metric::CpuThrottled, 0.4), (Metric::NodeCpuUtilisation, 0.97)]);
        }
        Fault::Disk(at, _) if *at == tier => {
            set(&[(Metric::IoPressure, 0.5), (Metric::NodeDiskAwait, 30.0), (Metric::CpuPressure, 0.08)]);
        }
        Fault::Memory(at, _) if *at == tier => {
            set(&[(Metric::MemoryPressure, 0.4), (Metric::MajorFaults, 400.0), (Metric::CpuPressure, 0.1)]);
        }
        Fault::Network(at, us) if *at == tier => {
            set(&[(Metric::RoundTrip, 0.3 + us / 1e3), (Metric::Retransmits, 8.0)]);
        }
        // Half of a neighbour's connections lead to the slow link.
        Fault::Network(at, us) if calls(*at, tier) || calls(tier, *at) => {
            set(&[(Metric::RoundTrip, 0.3 + us / 2e3), (Metric::Retransmits, 3.0)]);
        }
        _ => {}
    }
}
