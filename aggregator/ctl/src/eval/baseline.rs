//! Two simple rules that every evaluation needs beside the model: N-sigma on metrics, and the z-score of self times. Pure.

use std::collections::BTreeMap;

use sage_causal::{observation::Observation, verdict::Resource};
use sage_common::{LatencyQuantiles, Metric, ServiceId};

/// Smallest standard deviation, as a share of the mean.
const SPREAD_MIN: f64 = 1e-3;

/// Smallest standard deviation of a latency, in logs.
const LOG_SPREAD_MIN: f64 = 0.05;

/// A rule's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranked {
    /// Services, the likeliest first.
    pub ranking: Vec<ServiceId>,
    /// What of the first, if the rule can tell.
    pub resource: Option<Resource>,
}

impl Ranked {
    /// By the score of each service, largest first; the resource is that of the first one's metric.
    pub(super) fn of(best: BTreeMap<ServiceId, (f64, What)>) -> Self {
        let mut ranked: Vec<(ServiceId, (f64, What))> = best.into_iter().collect();
        ranked.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        let resource = ranked.first().and_then(|(_, (_, what))| match what {
            What::Usage(metric) => Some(metric.group().into()),
            What::Median | What::Tail => None,
        });
        Self { ranking: ranked.into_iter().map(|(service, _)| service).collect(), resource }
    }
}

pub(super) type Series<K> = BTreeMap<K, Vec<f64>>;

/// What metric rules look at.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum What {
    /// A usage metric.
    Usage(Metric),
    /// How long a service took, at half and at nineteen in twenty of its calls.
    Median,
    Tail,
}

/// Largest distance of any metric of a service from its mean, in standard deviations; latency is a metric.
pub fn n_sigma(training: &[Observation], period: &[Observation]) -> Ranked {
    let (healthy, seen) = (metrics(training), metrics(period));
    let mut best: BTreeMap<ServiceId, (f64, What)> = BTreeMap::new();
    for ((service, what), values) in &seen {
        let Some((mean, spread)) = healthy.get(&(service.clone(), *what)).and_then(|own| moments(own)) else {
            continue;
        };
        let spread = spread.max(SPREAD_MIN * mean.abs()).max(1e-9);
        let z = values.iter().map(|value| (value - mean).abs() / spread).fold(0.0, f64::max);
        let entry = best.entry(service.clone()).or_insert((z, *what));
        if z > entry.0 {
            *entry = (z, *what);
        }
    }
    Ranked::of(best)
}

/// Rise of a service's self times and of the gaps into it, in standard deviations between windows; gaps are charged to
/// the callee.
pub fn self_time(training: &[Observation], period: &[Observation]) -> Ranked {
    let (healthy, seen) = (own_latencies(training), own_latencies(period));
    let mut best: BTreeMap<ServiceId, f64> = BTreeMap::new();
    for (key, values) in &seen {
        let Some((mean, spread)) = healthy.get(key).and_then(|own| moments(own)) else { continue };
        let observed = values.iter().sum::<f64>() / values.len() as f64;
        let z = (observed - mean) / spread.max(LOG_SPREAD_MIN);
        let entry = best.entry(key.0.clone()).or_insert(z);
        *entry = entry.max(z);
    }
    let mut ranked: Vec<(ServiceId, f64)> = best.into_iter().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ranked { ranking: ranked.into_iter().map(|(service, _)| service).collect(), resource: None }
}

/// Every metric of every service, window by window.
pub(super) fn metrics(windows: &[Observation]) -> Series<(ServiceId, What)> {
    let mut series: Series<(ServiceId, What)> = BTreeMap::new();
    for service in windows.iter().flat_map(|window| &window.services) {
        let mut sums: BTreeMap<Metric, f64> = BTreeMap::new();
        for (metric, quantiles) in service.instances.iter().flat_map(|instance| &instance.metrics) {
            *sums.entry(*metric).or_default() += f64::from(quantiles.median());
        }
        for (metric, sum) in sums {
            series.entry((service.service.clone(), What::Usage(metric))).or_default().push(sum);
        }
    }
    for window in windows {
        for (service, quantiles) in served(window) {
            series.entry((service.clone(), What::Median)).or_default().push(f64::from(quantiles.at(50.0)));
            series.entry((service, What::Tail)).or_default().push(f64::from(quantiles.at(95.0)));
        }
    }
    series
}

/// The busiest operation of every service, as it was served.
fn served(window: &Observation) -> BTreeMap<ServiceId, LatencyQuantiles> {
    let mut busiest: BTreeMap<ServiceId, (f64, LatencyQuantiles)> = BTreeMap::new();
    for edge in &window.edges {
        let Some(server) = edge.server.or(edge.client) else { continue };
        let found = busiest.entry(edge.key.callee.clone()).or_insert((edge.calls, server));
        if edge.calls > found.0 {
            *found = (edge.calls, server);
        }
    }
    busiest.into_iter().map(|(service, (_, quantiles))| (service, quantiles)).collect()
}

/// Logs of the 90th percentile of self times and gaps, by service and operation.
fn own_latencies(windows: &[Observation]) -> Series<(ServiceId, String)> {
    let mut series: Series<(ServiceId, String)> = BTreeMap::new();
    for edge in windows.iter().flat_map(|window| &window.edges) {
        let caller = edge.key.caller.as_ref().map_or("", ServiceId::as_str);
        for (what, quantiles) in [("self", &edge.self_time), ("gap", &edge.gap)] {
            let Some(quantiles) = quantiles else { continue };
            let key = (edge.key.callee.clone(), format!("{what} {caller} {}", edge.key.operation));
            series.entry(key).or_default().push(f64::from(quantiles.at(90.0)).max(1.0).ln());
        }
    }
    series
}

/// Mean and standard deviation; `None` of fewer than five.
fn moments(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (values.len() >= 5).then(|| (mean, variance.sqrt()))
}
