//! One application under one seed: runs of any part of its time, with any faults, as observations or as bare latencies.

use std::sync::{Arc, OnceLock};

use hdrhistogram::Histogram;
use sage_causal::observation::Observation;
use sage_common::{Micros, Slo, Span, Timestamp};

use super::{
    engine::{Counts, EPOCH, Engine, EngineOptions},
    fault::FaultPlan,
    model::{Model, Placement},
    pipeline::Pipeline,
    sink::{Sink, UsageSecond},
};
use crate::topology::Topology;

/// What makes a world besides its topology.
#[derive(Clone, Debug, PartialEq)]
pub struct WorldOptions {
    /// Seed, load, limits.
    pub engine: EngineOptions,
    /// Replicas and machines.
    pub placement: Placement,
    /// Length of a window: whole seconds.
    pub window: Micros,
    /// Traces whose stubs an agent keeps per window.
    pub sample_traces: usize,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            engine: EngineOptions::default(),
            placement: Placement::default(),
            window: Micros::from_secs(3),
            sample_traces: 512,
        }
    }
}

impl WorldOptions {
    /// The defaults under `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self { engine: EngineOptions { seed, ..EngineOptions::default() }, ..Self::default() }
    }
}

/// End-to-end latency of one window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowLatency {
    /// Its start, counted from the start of the world.
    pub start: Micros,
    /// Requests that ended in it, refused ones included.
    pub calls: u64,
    /// Of those, refused or failed.
    pub errors: u64,
    /// Latency at the objective's percentile, microseconds; 0 without calls.
    pub latency_us: f64,
}

/// One application under one seed.
#[derive(Debug)]
pub struct World {
    topology: Topology,
    model: Arc<Model>,
    options: WorldOptions,
    target: OnceLock<Micros>,
}

/// A run begins this many windows before what is asked for, so that queues and agents are in their stride.
const WARM_UP_WINDOWS: u64 = 1;
/// The target is taken from so many places of a day, this many windows each.
const TARGET_PLACES: u64 = 24;
const TARGET_WINDOWS: u64 = 4;
/// The target over the 95th percentile of healthy windows.
const TARGET_HEADROOM: f64 = 1.3;

impl World {
    /// The world of a checked topology.
    pub fn new(topology: &Topology, options: WorldOptions) -> Self {
        let model = Arc::new(Model::new(topology, &options.placement));
        Self { topology: topology.clone(), model, options, target: OnceLock::new() }
    }

    /// The same world with another target than the healthy windows give.
    pub fn with_target(self, target: Micros) -> Self {
        Self { target: OnceLock::from(target), ..self }
    }

    /// Its topology.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Its tiers, replicas and machines.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What it was made with.
    pub fn options(&self) -> &WorldOptions {
        &self.options
    }

    /// Length of a window.
    pub fn window(&self) -> Micros {
        self.options.window
    }

    /// Start of window number `number`.
    pub fn start_of(&self, number: u64) -> Micros {
        self.options.window.saturating_mul(number)
    }

    /// The objective: the topology's percentile at the entry under [`target`](Self::target).
    pub fn slo(&self) -> Slo {
        Slo {
            name: "entry".to_owned(),
            service: self.model.tiers[self.model.entry()].service.clone(),
            operation: None,
            percentile: self.topology.qos.percentile,
            target: self.target(),
        }
    }

    /// A target that healthy windows meet: 1.3 times the 95th percentile of their latencies over a day.
    pub fn target(&self) -> Micros {
        *self.target.get_or_init(|| {
            let day = Micros::new((self.options.engine.shape.day_s * 1e6) as u64);
            let place = |number| Micros::new(day.get() / TARGET_PLACES * number).get() / self.window().get();
            let starts = (0..TARGET_PLACES).map(|number| self.start_of(place(number)));
            let windows = starts.flat_map(|from| self.latencies(&[], from, TARGET_WINDOWS));
            let mut latencies: Vec<f64> = windows.filter(|w| w.calls > 0).map(|window| window.latency_us).collect();
            latencies.sort_by(f64::total_cmp);
            let high = latencies.get(latencies.len() * 95 / 100).copied().unwrap_or(0.0);
            Micros::new((high * TARGET_HEADROOM).ceil() as u64)
        })
    }

    /// The world as it runs from one warm-up before `from`, through both cores.
    pub fn session(&self, faults: &[FaultPlan], from: Micros) -> Session {
        let begin = from.saturating_sub(self.window().saturating_mul(WARM_UP_WINDOWS));
        let mut engine = self.engine(faults, begin);
        let mut pipeline = Pipeline::new(&self.model, self.slo(), self.window(), self.options.sample_traces, begin);
        engine.run_until(from, &mut pipeline);
        drop(pipeline.advance(from));
        Session { engine, pipeline, window: self.window(), at: from }
    }

    /// Observations of `windows` windows from `from` on under `faults`.
    pub fn run(&self, faults: &[FaultPlan], from: Micros, windows: u64) -> Vec<Observation> {
        let mut session = self.session(faults, from);
        (0..windows).filter_map(|_| session.next_window()).collect()
    }

    /// End-to-end latencies of the same windows, without the cores: several times as fast.
    pub fn latencies(&self, faults: &[FaultPlan], from: Micros, windows: u64) -> Vec<WindowLatency> {
        self.latencies_after(self.window().saturating_mul(WARM_UP_WINDOWS), faults, from, windows)
    }

    /// The same with a warm-up of its own.
    pub fn latencies_after(
        &self,
        warm_up: Micros,
        faults: &[FaultPlan],
        from: Micros,
        windows: u64,
    ) -> Vec<WindowLatency> {
        let begin = from.saturating_sub(warm_up);
        let mut engine = self.engine(faults, begin).entry_only();
        let mut sink =
            Entries { from: EPOCH + from, window: self.window(), durations: vec![Vec::new(); windows as usize] };
        engine.run_until(from + self.window().saturating_mul(windows), &mut sink);
        let percentile = self.topology.qos.percentile;
        let of = |(number, calls): (usize, &Vec<(Micros, bool)>)| WindowLatency {
            start: from + self.window().saturating_mul(number as u64),
            calls: calls.len() as u64,
            errors: calls.iter().filter(|(_, is_error)| *is_error).count() as u64,
            latency_us: quantile(calls, percentile),
        };
        sink.durations.iter().enumerate().map(of).collect()
    }

    /// The engine alone, from the second of `from` on.
    pub fn engine(&self, faults: &[FaultPlan], from: Micros) -> Engine {
        let mut engine = Engine::new(&self.topology, self.model.clone(), self.options.engine.clone(), from);
        engine.set_faults(faults);
        engine
    }
}

/// A running world with its agents and aggregator.
pub struct Session {
    engine: Engine,
    pipeline: Pipeline,
    window: Micros,
    at: Micros,
}

impl Session {
    /// The next window; `None` when nothing happened in it.
    pub fn next_window(&mut self) -> Option<Observation> {
        self.at = self.at + self.window;
        self.engine.run_until(self.at, &mut self.pipeline);
        self.pipeline.advance(self.at).pop()
    }

    /// Start of the next window, counted from the start of the world.
    pub fn at(&self) -> Micros {
        self.at
    }

    /// Puts these faults in place of those before: what a manager repaired is not among them.
    pub fn set_faults(&mut self, faults: &[FaultPlan]) {
        self.engine.set_faults(faults);
    }

    /// Gives every replica of a service that many times its cores; whether there is such a service.
    pub fn scale_cores(&mut self, service: &str, factor: f64) -> bool {
        let tier = self.engine.model().tier(service);
        if let Some(tier) = tier {
            self.engine.scale_cores(tier, factor);
        }
        tier.is_some()
    }

    /// What became of the requests.
    pub fn counts(&self) -> Counts {
        self.engine.counts()
    }

    /// The agents and the aggregator.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }
}

/// Keeps the durations of the entry's spans by the window that they end in.
struct Entries {
    from: Timestamp,
    window: Micros,
    durations: Vec<Vec<(Micros, bool)>>,
}

impl Sink for Entries {
    fn span(&mut self, _: usize, span: &Span) {
        let Some(since) = span.end().since(self.from) else { return };
        if let Some(window) = self.durations.get_mut((since.get() / self.window.get()) as usize) {
            window.push((span.duration, span.is_error));
        }
    }

    fn usage(&mut self, _: &UsageSecond) {}
}

/// The percentile as the aggregator reads it from the entry's histogram of 2 significant digits, microseconds.
fn quantile(calls: &[(Micros, bool)], percentile: f64) -> f64 {
    let Ok(mut histogram) = Histogram::<u64>::new(2) else { return 0.0 };
    // A histogram that resizes itself takes every value.
    let is_whole = calls.iter().all(|(duration, _)| histogram.record(duration.get()).is_ok());
    if calls.is_empty() || !is_whole { 0.0 } else { histogram.value_at_quantile(percentile / 100.0) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::load;

    fn world(name: &str) -> World {
        World::new(&load(name).expect("built in"), WorldOptions::seeded(3))
    }

    #[test]
    fn bare_latencies_are_those_of_the_observations() {
        let world = world("demo").with_target(Micros::from_millis(60));
        let faults = ["cpu:catalog@9..20x6".parse().expect("valid")];
        let observed = world.run(&faults, Micros::from_secs(6), 3);
        let bare = world.latencies(&faults, Micros::from_secs(6), 3);
        assert_eq!(observed.len(), 3);
        for (observation, latency) in observed.iter().zip(&bare) {
            assert_eq!(observation.start, EPOCH + latency.start);
            assert_eq!(observation.objectives[0].calls as u64, latency.calls);
            let (a, b) = (observation.objectives[0].latency_us, latency.latency_us);
            assert!((a - b).abs() <= 0.02 * b, "{a} observed, {b} bare");
        }
    }

    #[test]
    fn observations_hold_edges_usage_and_whole_traces() {
        let world = world("demo").with_target(Micros::from_millis(60));
        let observation = &world.run(&[], Micros::from_secs(6), 1)[0];
        let used = world.model().edges.len();
        let inner = observation.edges.iter().filter(|edge| edge.key.caller.is_some());
        assert!(inner.clone().count() >= used, "{} of {used} edges", inner.count());
        for service in &observation.services {
            assert_eq!(service.instances.len(), 1, "{}", service.service);
            assert!(service.instances[0].metrics.len() >= 25, "{} metrics", service.instances[0].metrics.len());
        }
        assert!(observation.traces.len() > 100, "{} traces", observation.traces.len());
        let whole = observation.traces.iter().filter(|trace| trace.calls[0].edge.caller.is_none()).count();
        assert!(whole * 20 > observation.traces.len() * 19, "{whole} of {}", observation.traces.len());
    }

    #[test]
    fn the_target_is_met_by_healthy_windows() {
        let world = world("demo");
        let target = world.target().get() as f64;
        let healthy = world.latencies(&[], Micros::from_secs(2_000), 20);
        let met = healthy.iter().filter(|window| window.latency_us <= target).count();
        assert!(met >= 19, "{met} of 20 under {target} us");
        assert!(healthy.iter().all(|window| window.latency_us > target / 3.0), "the target says something");
    }
}
