//! Whether what broke the target is over, and only its backlog breaks it still.
//!
//! While a backlog drains every tier is busy with old requests and looks slow: any answer would name an innocent. But the
//! requests that began after it had drained are fast, and the traces say when each began.

use sage_common::{Micros, Slo};

use crate::{
    observation::{Observation, Trace},
    pool::{is_violated, latency_us},
};

/// P(so many fast ones in a row by chance) below which it is none.
const CHANCE_MAX: f64 = 0.01;

/// Share of the window, before the last request that is looked at, in which requests must have been fast.
const CALM_MIN: f64 = 0.25;

/// One request: when it began, after the start of the window, and whether it was slower than the target.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Request {
    start_us: f64,
    is_slow: bool,
}

/// Since when, after the start of the newest of `recent` (oldest first), requests meet the target again; `None` when they do
/// not, or when the incident is no older than that window: then something has just happened.
pub fn calm_since(recent: &[Observation], slo: &Slo) -> Option<Micros> {
    let (newest, earlier) = recent.split_last()?;
    if !is_violated(newest, slo) || !earlier.last().is_some_and(|window| is_violated(window, slo)) {
        return None;
    }
    // A slow one that began later than this would have ended after the window: all that is seen of the end is fast.
    let length = newest.length.get() as f64;
    let horizon = length - latency_us(newest, slo)?;
    let mut requests: Vec<Request> = newest.traces.iter().filter_map(|trace| request(trace, slo)).collect();
    requests.retain(|request| request.start_us <= horizon);
    requests.sort_by(|a, b| a.start_us.total_cmp(&b.start_us));
    let since = calm_from(&requests, 1.0 - slo.percentile / 100.0)?;
    (horizon - since >= CALM_MIN * length).then(|| Micros::new(since as u64))
}

fn request(trace: &Trace, slo: &Slo) -> Option<Request> {
    let root = trace.calls.first().filter(|root| root.parent.is_none() && root.edge.caller.is_none())?;
    let took = f64::from(root.server_us.or(root.client_us)?);
    slo.covers(&root.edge.callee, &root.edge.operation)
        .then(|| Request { start_us: f64::from(root.offset_us), is_slow: took > slo.target.get() as f64 })
}

/// Start of the longest run of last requests of which no more than `share` are slow, if those before it were slow from the
/// first on, and it is no chance.
fn calm_from(requests: &[Request], share: f64) -> Option<f64> {
    let slow = |part: &[Request]| part.iter().filter(|request| request.is_slow).count() as f64;
    let is_calm = |from: &usize| slow(&requests[*from..]) <= share * (requests.len() - from) as f64;
    let from = (1..requests.len()).find(is_calm)?;
    let (before, after) = requests.split_at(from);
    let half = before.len().div_ceil(2);
    let fades = slow(&before[..half]) / half as f64 >= slow(&before[half..]) / (before.len() - half).max(1) as f64;
    let rate = slow(requests) / requests.len() as f64;
    let chance = binomial_at_most(slow(after) as usize, after.len(), rate);
    (fades && chance < CHANCE_MAX).then(|| after[0].start_us)
}

/// P(at most `count` of `trials` happen), each with probability `p`.
fn binomial_at_most(count: usize, trials: usize, p: f64) -> f64 {
    if p >= 1.0 {
        return f64::from(u8::from(count >= trials));
    }
    let mut term = (1.0 - p).powi(i32::try_from(trials).unwrap_or(i32::MAX));
    let mut sum = term;
    for k in 0..count.min(trials) {
        term *= (trials - k) as f64 / (k + 1) as f64 * p / (1.0 - p);
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use sage_common::{OperationId, ServiceId, Timestamp};

    use super::*;
    use crate::observation::{EdgeKey, ObjectiveObservation, TraceCall};

    const LENGTH: Micros = Micros::from_secs(10);

    fn slo() -> Slo {
        let service = ServiceId::sanitized("front");
        Slo { name: "entry".to_owned(), service, operation: None, percentile: 99.0, target: Micros::from_millis(50) }
    }

    /// A window of a request every 50 ms; `took` gives the milliseconds of the one that begins after so many milliseconds.
    fn window(took: impl Fn(u64) -> u64) -> Observation {
        let edge =
            EdgeKey { caller: None, callee: ServiceId::sanitized("front"), operation: OperationId::sanitized("get") };
        let trace = |start: u64| {
            let server_us = Some(1e3 * took(start) as f32);
            let (offset_us, edge) = (1e3 * start as f32, edge.clone());
            let call = TraceCall {
                parent: None,
                edge,
                offset_us,
                client_us: None,
                server_us,
                self_us: None,
                is_sync: true,
                is_error: false,
            };
            Trace { calls: vec![call] }
        };
        let traces: Vec<Trace> = (0..200).map(|n| 50 * n).filter(|s| s + took(*s) <= 10_000).map(trace).collect();
        let mut latencies: Vec<f32> = traces.iter().filter_map(|trace| trace.calls[0].server_us).collect();
        latencies.sort_by(f32::total_cmp);
        let latency_us = f64::from(latencies[latencies.len() * 99 / 100]);
        let objectives = vec![ObjectiveObservation { slo: "entry".to_owned(), calls: 200.0, latency_us }];
        Observation {
            start: Timestamp::default(),
            length: LENGTH,
            edges: Vec::new(),
            services: Vec::new(),
            traces,
            skeletons: Vec::new(),
            objectives,
            offered_per_s: 20.0,
            completeness: 1.0,
            trace_share: 1.0,
        }
    }

    fn since(newest: Observation) -> Option<Micros> {
        calm_since(&[window(|_| 200), newest], &slo())
    }

    #[test]
    fn a_backlog_that_drains_is_told_from_a_fault_that_lasts() {
        let drained = since(window(|start| if start < 2_000 { 2_200 - start } else { 10 }));
        assert!(drained.is_some_and(|at| (1_900..=2_500).contains(&(at.get() / 1_000))), "{drained:?}");
        assert_eq!(since(window(|_| 200)), None);
        assert_eq!(since(window(|start| if start % 1_000 < 300 { 200 } else { 10 })), None);
    }

    #[test]
    fn a_fault_that_begins_or_strikes_again_is_no_backlog() {
        assert_eq!(since(window(|start| if start > 6_000 { 200 } else { 10 })), None);
        assert_eq!(since(window(|start| if (3_000..5_000).contains(&start) { 5_050 - start } else { 10 })), None);
        let over = window(|start| if start < 2_000 { 2_200 - start } else { 10 });
        assert_eq!(calm_since(&[window(|_| 10), over.clone()], &slo()), None, "it is its first window");
        assert_eq!(calm_since(&[over], &slo()), None);
    }

    #[test]
    fn so_few_slow_ones_may_be_chance_and_slower_ones_than_half_the_window_hide() {
        assert_eq!(since(window(|start| if start < 150 { 200 } else { 10 })), None);
        assert_eq!(since(window(|start| if start < 2_000 { 8_000 } else { 10 })), None);
    }

    #[test]
    fn the_binomial_tail_is_exact() {
        assert!((binomial_at_most(1, 3, 0.5) - 0.5).abs() < 1e-12);
        assert!((binomial_at_most(0, 10, 0.1) - 0.9_f64.powi(10)).abs() < 1e-12);
        assert_eq!((binomial_at_most(2, 5, 1.0), binomial_at_most(5, 5, 1.0)), (0.0, 1.0));
    }
}
