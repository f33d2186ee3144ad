//! How often a recording's busiest entry is called, by the first spans of it: how long a window must be to mean
//! something. Pure.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::robust;
use sage_common::{Micros, OperationId, ServiceId, Side, Span, SpanId};

/// Spans looked at.
pub const SPANS_MAX: usize = 30_000;

/// Entry operations that are counted.
const ENTRIES_MAX: usize = 10_000;

/// Length of the stretches in which calls are counted, microseconds. Stretches without any span are gaps and do not count.
const STRETCH_US: u64 = 10_000_000;

/// Calls of an entry in one window, from which on its percentiles mean something.
pub const CALLS_MIN: f64 = 20.0;

/// Lengths of windows, seconds: incidents last minutes.
const LENGTHS: [u64; 6] = [5, 10, 15, 20, 30, 60];

/// Roots of traces by stretch.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    spans: usize,
    stretches: BTreeSet<u64>,
    roots: BTreeMap<(ServiceId, OperationId), BTreeMap<u64, f64>>,
}

impl Rate {
    /// Counts one span; `has_kind` says whether it tells its side.
    pub fn add(&mut self, span: &Span, has_kind: bool) {
        self.spans += 1;
        let stretch = span.end().as_micros() / STRETCH_US;
        self.stretches.insert(stretch);
        let is_root = span.parent == SpanId(0) && (!has_kind || matches!(span.side, Side::Server | Side::Client));
        let key = (span.service.clone(), span.operation.clone());
        if is_root && (self.roots.len() < ENTRIES_MAX || self.roots.contains_key(&key)) {
            *self.roots.entry(key).or_default().entry(stretch).or_default() += 1.0;
        }
    }

    /// Whether a trace begins in it.
    pub fn has_roots(&self) -> bool {
        !self.roots.is_empty()
    }

    /// Whether it has seen enough.
    pub fn is_enough(&self) -> bool {
        self.spans >= SPANS_MAX
    }

    /// The shortest usual window in which the busiest entry is called often enough, if only `share` of all traces are
    /// taken; the longest usual one where it never is; `None` where no trace begins.
    pub fn window(&self, share: f64) -> Option<Micros> {
        let total = |counts: &BTreeMap<u64, f64>| counts.values().sum::<f64>();
        let busiest = self.roots.values().max_by(|a, b| total(a).total_cmp(&total(b)))?;
        let mut counts: Vec<f64> =
            self.stretches.iter().map(|stretch| busiest.get(stretch).copied().unwrap_or(0.0)).collect();
        let per_second = share * robust::median(&mut counts)? * 1e6 / STRETCH_US as f64;
        let is_enough = |length: &&u64| **length as f64 * per_second >= CALLS_MIN;
        Some(Micros::from_secs(*LENGTHS.iter().find(is_enough).unwrap_or(&LENGTHS[LENGTHS.len() - 1])))
    }
}

#[cfg(test)]
mod tests {
    use sage_common::{Timestamp, TraceHash};

    use super::*;

    fn span(number: u64, at_us: u64) -> Span {
        Span {
            trace: TraceHash(number),
            id: SpanId(number + 1),
            parent: SpanId(0),
            service: ServiceId::sanitized("front"),
            instance: None,
            pid: None,
            operation: OperationId::sanitized("get"),
            side: Side::Server,
            peer: None,
            start: Timestamp::from_micros(at_us),
            duration: Micros::from_millis(1),
            is_error: false,
            weight: 1.0,
        }
    }

    fn rate(per_second: u64) -> Rate {
        let mut rate = Rate::default();
        for number in 0..60 * per_second {
            rate.add(&span(number, 1_700_000_000_000_000 + number * 1_000_000 / per_second), true);
        }
        rate
    }

    #[test]
    fn the_rarer_the_calls_the_longer_the_window() {
        assert_eq!(rate(100).window(1.0), Some(Micros::from_secs(5)));
        assert_eq!(rate(8).window(1.0), Some(Micros::from_secs(5)));
        assert_eq!(rate(1).window(1.0), Some(Micros::from_secs(20)));
        assert_eq!(rate(8).window(0.1), Some(Micros::from_secs(30)));
        assert_eq!(rate(1).window(0.01), Some(Micros::from_secs(60)));
        assert_eq!(Rate::default().window(1.0), None);
    }

    #[test]
    fn gaps_and_broken_clocks_make_no_long_window() {
        let mut rate = rate(100);
        rate.add(&span(1_000_000, 5), true);
        rate.add(&span(1_000_001, u64::MAX / 4), true);
        for number in 0..3_000 {
            rate.add(&span(number, 1_700_090_000_000_000 + number * 10_000), true);
        }
        assert_eq!(rate.window(1.0), Some(Micros::from_secs(5)));
    }
}
