//! Samples that are metrics already, by the window they belong to. Percentiles are taken when the window is finished.

use std::collections::BTreeMap;

use sage_common::{
    InstanceId, InstanceUsage, LatencySeries, Metric, MetricValue, ServiceId, Skeleton, Timestamp, UsageQuantiles,
};
pub use sage_node_agent::core::usage::SAMPLES_MAX;
use sage_node_agent::core::{
    telemetry::{SERIES_MAX, SKELETONS_MAX},
    usage::WindowUsage,
};

use super::Place;

/// Windows that samples may run ahead of the spans: a sample once a minute tells of the minute before it, so whoever
/// reads a recording hands it over early.
pub const AHEAD_MAX: usize = 64;

/// Windows held at once: those ahead and those whose lateness runs.
const WINDOWS_MAX: usize = AHEAD_MAX + 16;

/// Instances on a node in one window: what an agent follows.
const INSTANCES_MAX: usize = 1_024;

/// The samples of one node.
#[derive(Debug, Default)]
pub(super) struct Metrics(BTreeMap<Timestamp, Window>);

#[derive(Debug, Default)]
struct Window {
    samples: BTreeMap<Place, BTreeMap<Metric, Vec<f32>>>,
    ready: Ready,
}

/// Latencies that somebody else has measured.
#[derive(Debug, Default)]
pub(super) struct Ready {
    pub latencies: Vec<LatencySeries>,
    pub skeletons: Vec<Skeleton>,
}

impl Metrics {
    /// Keeps one sample of the window that begins at `start`; `false` when there is no room or it is no number.
    pub fn push(&mut self, place: &Place, metric: Metric, start: Timestamp, value: f64) -> bool {
        let value = value as f32;
        let Some(window) = self.window(start).filter(|_| value.is_finite() && value >= 0.0) else { return false };
        let is_room = window.samples.len() < INSTANCES_MAX || window.samples.contains_key(place);
        if !is_room {
            return false;
        }
        let of_place = match window.samples.get_mut(place) {
            Some(found) => found,
            None => window.samples.entry(place.clone()).or_default(),
        };
        let samples = of_place.entry(metric).or_default();
        let has_room = samples.len() < SAMPLES_MAX;
        if has_room {
            samples.push(value);
        }
        has_room
    }

    /// Keeps percentiles of the window that begins at `start`; `false` when there is no room or they are no percentiles.
    pub fn push_latency(&mut self, start: Timestamp, series: Vec<LatencySeries>, skeletons: Vec<Skeleton>) -> bool {
        let Some(window) = self.window(start) else { return false };
        let ready = &mut window.ready;
        let is_fit = ready.latencies.len() + series.len() <= SERIES_MAX
            && ready.skeletons.len() + skeletons.len() <= SKELETONS_MAX
            && series.iter().all(|one| one.quantiles.is_valid());
        if is_fit {
            ready.latencies.extend(series);
            ready.skeletons.extend(skeletons);
        }
        is_fit
    }

    /// The newest window that anything is known of.
    pub fn newest(&self) -> Option<Timestamp> {
        self.0.last_key_value().map(|(start, _)| *start)
    }

    /// Adds the window that begins at `start` to what the agent measured itself, whose values win; gives its latencies.
    pub fn take(&mut self, start: Timestamp, usage: &mut WindowUsage) -> Ready {
        // Windows that nobody asked for are over.
        self.0 = self.0.split_off(&start);
        let Some(window) = self.0.remove(&start) else { return Ready::default() };
        for (place, samples) in window.samples {
            let values = samples.into_iter().filter_map(|(metric, mut values)| {
                UsageQuantiles::of_values(&mut values).map(|quantiles| MetricValue { metric, quantiles })
            });
            match place {
                Place::Node => add(&mut usage.node, values),
                Place::Instance(service, instance) => add(&mut of(usage, service, instance).metrics, values),
            }
        }
        window.ready
    }

    fn window(&mut self, start: Timestamp) -> Option<&mut Window> {
        let is_room = self.0.len() < WINDOWS_MAX || self.0.contains_key(&start);
        is_room.then(|| self.0.entry(start).or_default())
    }
}

fn of(usage: &mut WindowUsage, service: ServiceId, instance: InstanceId) -> &mut InstanceUsage {
    let found = usage.instances.iter().position(|own| own.instance == instance && own.service == service);
    let at = found.unwrap_or_else(|| {
        usage.instances.push(InstanceUsage { service, instance, metrics: Vec::new() });
        usage.instances.len() - 1
    });
    &mut usage.instances[at]
}

fn add(metrics: &mut Vec<MetricValue>, values: impl Iterator<Item = MetricValue>) {
    for value in values {
        if metrics.iter().all(|own| own.metric != value.metric) {
            metrics.push(value);
        }
    }
    metrics.sort_by_key(|value| value.metric);
}
