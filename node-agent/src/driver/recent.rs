//! What happened lately: totals of each of the last seconds. Pure.

use std::collections::VecDeque;

use sage_common::Micros;

/// Seconds remembered: drops older than a minute are history, not a present problem.
pub const SECONDS_MAX: usize = 61;
/// The span of time that rates are shown over.
const RATE: Micros = Micros::from_secs(10);

/// Running totals at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Spans counted.
    pub spans: u64,
    /// Spans that came after their window had closed.
    pub late: u64,
    /// Spans dropped for lack of room.
    pub shed: u64,
    /// Processor time of this process, seconds.
    pub cpu_s: f64,
    /// Knobs that somebody else changed.
    pub drifts: u64,
}

/// The totals of the last minute.
#[derive(Clone, Debug, Default)]
pub struct Recent(VecDeque<(Micros, Totals)>);

/// Rates over the last ten seconds, increases over the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trends {
    /// Spans per second.
    pub spans_per_s: f64,
    /// Cores used by this process.
    pub cpu_cores: f64,
    /// Spans that came too late within the minute.
    pub late: u64,
    /// Spans dropped for lack of room within the minute.
    pub shed: u64,
    /// Drifts within the minute.
    pub drifts: u64,
}

impl Recent {
    /// Adds the totals at `at`; calls come about once a second, in order.
    pub fn push(&mut self, at: Micros, totals: Totals) {
        if self.0.back().is_some_and(|(last, _)| *last >= at) {
            return;
        }
        self.0.push_back((at, totals));
        if self.0.len() > SECONDS_MAX {
            self.0.pop_front();
        }
    }

    /// What the totals say.
    pub fn trends(&self) -> Trends {
        let (Some((now, new)), Some((_, oldest))) = (self.0.back(), self.0.front()) else { return Trends::default() };
        let is_recent = |at: &Micros| now.saturating_sub(*at) <= RATE;
        let (then, old) = self.0.iter().find(|(at, _)| is_recent(at)).unwrap_or(&self.0[0]);
        let elapsed_s = now.saturating_sub(*then).as_secs_f64();
        let per_s = |increase: f64| if elapsed_s > 0.0 { increase / elapsed_s } else { 0.0 };
        Trends {
            spans_per_s: per_s(new.spans.saturating_sub(old.spans) as f64),
            cpu_cores: per_s((new.cpu_s - old.cpu_s).max(0.0)),
            late: new.late.saturating_sub(oldest.late),
            shed: new.shed.saturating_sub(oldest.shed),
            drifts: new.drifts.saturating_sub(oldest.drifts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_look_ten_seconds_back_and_drops_a_minute() {
        let mut recent = Recent::default();
        for second in 0..100_u64 {
            let totals = Totals { spans: second * second, shed: u64::from(second >= 50), ..Totals::default() };
            recent.push(Micros::from_secs(second), totals);
        }
        let trends = recent.trends();
        assert_eq!(trends.spans_per_s, (99.0 * 99.0 - 89.0 * 89.0) / 10.0);
        assert_eq!(trends.shed, 1);
        for second in 100..200 {
            recent.push(Micros::from_secs(second), Totals { shed: 1, ..Totals::default() });
        }
        assert_eq!(recent.trends().shed, 0);
    }

    #[test]
    fn nothing_yet_is_nothing() {
        assert_eq!(Recent::default().trends(), Trends::default());
        let mut recent = Recent::default();
        recent.push(Micros::from_secs(1), Totals { spans: 5, ..Totals::default() });
        assert_eq!(recent.trends(), Trends::default());
    }
}
