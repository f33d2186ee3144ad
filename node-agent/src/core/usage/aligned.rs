//! Usage windows, aligned to the wall clock as the latency windows are.

use std::collections::BTreeMap;

use sage_common::{Micros, Timestamp};

use super::{Sweep, UsageTracker, WindowUsage};

/// Closed windows kept until their latencies are closed too: as many as latency windows can be open.
pub const CLOSED_MAX: usize = 12;

/// Cuts the stream of sweeps into windows by the wall clock, and only that: rates are measured by the clock in the
/// sweeps, which never jumps. A jump of the wall clock ends the window and begins the one that it points to.
#[derive(Debug)]
pub struct UsageWindows {
    length: Micros,
    period: Micros,
    tracker: UsageTracker,
    current: Option<Timestamp>,
    closed: BTreeMap<Timestamp, WindowUsage>,
}

impl UsageWindows {
    /// Windows of `length`, from sweeps that come every `period`.
    pub fn new(length: Micros, period: Micros) -> Self {
        Self { length, period, tracker: UsageTracker::default(), current: None, closed: BTreeMap::new() }
    }

    /// Length of a window.
    pub const fn length(&self) -> Micros {
        self.length
    }

    /// Takes a sweep made at `wall`. It tells of the period before, so it belongs to the window in which the middle of
    /// that period lies.
    pub fn handle_sweep(&mut self, wall: Timestamp, sweep: &Sweep) {
        let middle = wall - Micros::new(self.period.get() / 2);
        let start = middle.aligned(self.length);
        if self.current.is_some_and(|current| current != start) {
            self.cut();
        }
        self.current = Some(start);
        self.tracker.handle_sweep(sweep);
    }

    /// The window that began at `start`; ends it if it still runs. `None` when nothing was measured in it.
    pub fn take(&mut self, start: Timestamp) -> Option<WindowUsage> {
        if self.current == Some(start) {
            self.cut();
        }
        self.closed.remove(&start)
    }

    fn cut(&mut self) {
        let Some(start) = self.current.take() else { return };
        self.closed.insert(start, self.tracker.close());
        if self.closed.len() > CLOSED_MAX {
            self.closed.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use sage_common::{InstanceId, Metric};

    use super::{super::InstanceSample, *};

    const SECOND: Micros = Micros::from_secs(1);

    fn s(secs: u64) -> Timestamp {
        Timestamp::from_micros(secs * 1_000_000)
    }

    /// One instance that uses `second` milliseconds of processor more in each second.
    fn sweep(second: u64) -> Sweep {
        let instance = InstanceSample::empty("a".parse().expect("valid"), InstanceId::sanitized("a"), 1);
        let cpu_ns = Some((1..=second).sum::<u64>() * 1_000_000);
        Sweep {
            at: Micros::from_secs(second),
            instances: vec![InstanceSample { cpu_ns, ..instance }],
            ..Sweep::default()
        }
    }

    fn cores(usage: &WindowUsage) -> (f32, f32) {
        let used = usage.instances[0].metrics.iter().find(|m| m.metric == Metric::CpuUsed).expect("measured");
        (used.quantiles.0[0], used.quantiles.0[5])
    }

    #[test]
    fn a_sweep_at_the_end_of_a_window_belongs_to_it() {
        let mut windows = UsageWindows::new(Micros::from_secs(10), SECOND);
        (100..=115).for_each(|second| windows.handle_sweep(s(second), &sweep(second)));
        let (least, most) = cores(&windows.take(s(100)).expect("measured"));
        assert!((least - 0.101).abs() < 1e-4 && (most - 0.110).abs() < 1e-4, "{least} to {most}");
    }

    #[test]
    fn a_window_is_taken_once_and_may_be_taken_while_it_runs() {
        let mut windows = UsageWindows::new(Micros::from_secs(10), SECOND);
        (100..=105).for_each(|second| windows.handle_sweep(s(second), &sweep(second)));
        assert!(windows.take(s(100)).is_some());
        assert!(windows.take(s(100)).is_none());
        assert!(windows.take(s(90)).is_some(), "the first sweep belongs to the window before");
    }

    #[test]
    fn an_hour_of_jumps_to_and_fro_loses_no_rate_and_stays_bounded() {
        let mut windows = UsageWindows::new(Micros::from_secs(10), SECOND);
        for second in 1..=1_000_u64 {
            let wall = 1_000_000 + second + if second % 7 == 0 { 3_600 * (second % 5) } else { 0 };
            windows.handle_sweep(s(wall), &sweep(second));
        }
        assert!(windows.closed.len() <= CLOSED_MAX);
        assert!(windows.closed.values().all(|usage| usage.instances.is_empty() || cores(usage).1 <= 1.001));
    }
}
