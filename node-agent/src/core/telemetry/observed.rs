//! What has been seen of each service lately: for `status`, and to tell which process is which service.

use std::collections::BTreeMap;

use sage_common::{InstanceId, Micros, ServiceId, Span};

use super::{registry::Registry, series, window::OpenWindow};

/// Replicas and processes remembered per service: more than run on one machine.
const REPLICAS_MAX: usize = 64;

/// Windows without a span after which a replica, a process or a service is forgotten.
const IDLE_WINDOWS: u64 = 30;

/// One service as its spans show it.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedService {
    /// Its name.
    pub service: ServiceId,
    /// Its replicas by their resource attributes, in order.
    pub instances: Vec<InstanceId>,
    /// Its processes, in order.
    pub pids: Vec<u32>,
    /// Calls it served per second in the last closed window.
    pub calls_per_s: f64,
    /// The 99th percentile of its server spans in the last closed window; `None` without calls.
    pub p99: Option<Micros>,
}

/// Bounded memory of the services of this node.
#[derive(Debug, Default)]
pub(super) struct Observed(BTreeMap<ServiceId, Seen>);

#[derive(Debug, Default)]
struct Seen {
    last: u64,
    instances: BTreeMap<InstanceId, u64>,
    pids: BTreeMap<u32, u64>,
    calls_per_s: f64,
    p99: Option<Micros>,
}

impl Observed {
    /// Notes who sent `span` in window `seq`. The number of services is bounded by the registry.
    pub fn note(&mut self, span: &Span, seq: u64) {
        if !self.0.contains_key(&span.service) {
            self.0.insert(span.service.clone(), Seen::default());
        }
        let Some(seen) = self.0.get_mut(&span.service) else { return };
        seen.last = seq;
        if let Some(instance) = &span.instance {
            remember(&mut seen.instances, instance, seq);
        }
        if let Some(pid) = &span.pid {
            remember(&mut seen.pids, pid, seq);
        }
    }

    /// Takes over the figures of a closed window and forgets who has been silent.
    pub fn close(&mut self, window: &OpenWindow, length: Micros, registry: &Registry) {
        let seq = window.seq;
        self.0.retain(|_, seen| {
            seen.instances.retain(|_, last| *last + IDLE_WINDOWS >= seq);
            seen.pids.retain(|_, last| *last + IDLE_WINDOWS >= seq);
            (seen.calls_per_s, seen.p99) = (0.0, None);
            seen.last + IDLE_WINDOWS >= seq
        });
        let mut sums = BTreeMap::new();
        for (call, series) in window.servers() {
            let Some(call) = registry.get(call) else { continue };
            let (calls, sum) = sums.entry(&call.service).or_insert_with(|| (0.0, series::histogram()));
            *calls += series.calls;
            if let Some(sum) = sum {
                series.add_to(sum);
            }
        }
        for (service, (calls, sum)) in sums {
            if let Some(seen) = self.0.get_mut(service) {
                seen.calls_per_s = calls / length.as_secs_f64();
                seen.p99 = sum.map(|sum| Micros::new(sum.value_at_quantile(0.99)));
            }
        }
    }

    /// Everything known, ordered by name.
    pub fn services(&self) -> Vec<ObservedService> {
        let service = |(name, seen): (&ServiceId, &Seen)| ObservedService {
            service: name.clone(),
            instances: seen.instances.keys().cloned().collect(),
            pids: seen.pids.keys().copied().collect(),
            calls_per_s: seen.calls_per_s,
            p99: seen.p99,
        };
        self.0.iter().map(service).collect()
    }
}

fn remember<K: Clone + Ord>(known: &mut BTreeMap<K, u64>, key: &K, seq: u64) {
    if let Some(last) = known.get_mut(key) {
        *last = seq;
    } else if known.len() < REPLICAS_MAX {
        known.insert(key.clone(), seq);
    }
}
