//! What a demo remembers and reports.

use serde::Serialize;

/// `report.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The topology's name.
    pub topology: String,
    /// Seed of the load.
    pub seed: u64,
    /// The objective.
    pub slo: SloRecord,
    /// Windows the model in use at the end had learnt from.
    pub windows_trained: u64,
    /// How long that took.
    pub train_seconds: f64,
    /// Version of the model in use at the end.
    pub model_generation: u64,
    /// The faults, in order.
    pub faults: Vec<FaultRecord>,
    /// Every fault diagnosed correctly and every resource fault recovered.
    pub correct: bool,
    /// `auto`, or `recommend` without privilege.
    pub mode: &'static str,
    /// Requests per second offered.
    pub rate_qps: f64,
    /// When the demo started, Unix milliseconds; every `_at` is in seconds after it.
    pub started_at_ms: u64,
    /// Latency over time.
    pub timeline: Vec<Point>,
}

/// The objective.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SloRecord {
    /// The percentile.
    pub percentile: f64,
    /// Its target.
    pub latency_ms: f64,
}

/// One fault's story. Times in seconds after the start of the demo.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FaultRecord {
    /// What was broken.
    pub kind: String,
    /// Of which tier.
    pub service: String,
    /// When.
    pub injected_at: f64,
    /// End of the first window above the target.
    pub violation_at: Option<f64>,
    /// When the first verdict that names somebody was given.
    pub diagnosed_at: Option<f64>,
    /// That verdict.
    pub verdict: Option<VerdictRecord>,
    /// The action that was in force when the target was met again, or else the last one.
    pub action: Option<ActionRecord>,
    /// When the first action took effect.
    #[serde(skip)]
    pub acted_at: Option<f64>,
    /// End of the first of two windows in a row that met the target again.
    pub recovered_at: Option<f64>,
    /// When the demo itself took the fault away.
    pub withdrawn_at: Option<f64>,
    /// Latency at the objective's percentile.
    pub p99_ms: Around,
    /// Whether the verdict was right.
    pub correct: bool,
}

/// A verdict.
#[derive(Clone, Debug, Serialize)]
pub struct VerdictRecord {
    /// `culprit`, `partial`, `demand` or `unknown`.
    pub kind: String,
    /// Named services, the strongest first.
    pub services: Vec<String>,
    /// Resource of the first.
    pub resource: Option<String>,
    /// P(target met) had they been normal.
    pub p_restored: f64,
    /// The percentile had they been normal.
    pub counterfactual_ms: f64,
}

/// An action.
#[derive(Clone, Debug, Serialize)]
pub struct ActionRecord {
    /// The knob.
    pub knob: String,
    /// Its setting.
    pub setting: String,
    /// On which node.
    pub node: String,
    /// `recommended`, `kept`, `reverted`, …
    pub state: String,
    /// When it took effect.
    pub applied_at: Option<f64>,
    /// When it was given back.
    pub reverted_at: Option<f64>,
}

/// Latency before a fault, at its worst during it, and after recovery (the median of the windows until withdrawal).
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Around {
    /// Median of the windows before.
    pub before: Option<f64>,
    /// The worst window.
    pub during: Option<f64>,
    /// Median of the windows after recovery.
    pub after: Option<f64>,
}

/// One window on the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// End of the window.
    pub at: f64,
    /// Latency at the objective's percentile.
    pub latency_ms: f64,
    /// Completed calls.
    pub calls: f64,
}

impl FaultRecord {
    /// Fills in what the timeline says: violation, recovery, latency around.
    ///
    /// Recovery is looked for after the first action took effect, or without one after the fault was withdrawn.
    pub fn read_timeline(&mut self, timeline: &[Point], target_ms: f64, until: f64) {
        let between =
            |from: f64, to: f64| timeline.iter().filter(move |point| point.at > from && point.at <= to).copied();
        let after = self.injected_at;
        let above = |point: &Point| point.latency_ms > target_ms;
        self.violation_at = between(after, until).find(above).map(|point| point.at);
        let before: Vec<Point> = between(after - 20.0, after).collect();
        self.p99_ms.before = median(&before);
        let Some(violated) = self.violation_at else { return };
        let repaired = self.acted_at.or(self.withdrawn_at);
        let met: Vec<Point> = repaired.map(|at| between(at.max(violated), until).collect()).unwrap_or_default();
        self.recovered_at = met.windows(2).find(|pair| !pair.iter().any(above)).map(|pair| pair[0].at);
        let worst_until = self.recovered_at.unwrap_or(until);
        self.p99_ms.during = between(after, worst_until).map(|point| point.latency_ms).max_by(f64::total_cmp);
        if let Some(recovered) = self.recovered_at {
            let end = self.withdrawn_at.filter(|withdrawn| *withdrawn > recovered).unwrap_or(until);
            self.p99_ms.after = median(&between(recovered - 1e-9, end).collect::<Vec<_>>());
        }
    }
}

fn median(points: &[Point]) -> Option<f64> {
    let mut values: Vec<f64> = points.iter().map(|point| point.latency_ms).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(latencies: &[f64]) -> Vec<Point> {
        latencies
            .iter()
            .enumerate()
            .map(|(index, ms)| Point { at: 2.0 * (index + 1) as f64, latency_ms: *ms, calls: 100.0 })
            .collect()
    }

    #[test]
    fn recovery_is_two_windows_in_a_row_after_the_action() {
        let timeline = timeline(&[10.0, 10.0, 80.0, 90.0, 20.0, 60.0, 20.0, 21.0, 22.0]);
        let mut record = FaultRecord { injected_at: 4.5, acted_at: Some(8.5), ..FaultRecord::default() };
        record.read_timeline(&timeline, 50.0, 100.0);
        assert_eq!(record.violation_at, Some(6.0));
        assert_eq!(record.recovered_at, Some(14.0));
        assert_eq!(record.p99_ms.before, Some(10.0));
        assert_eq!(record.p99_ms.during, Some(90.0));
        assert_eq!(record.p99_ms.after, Some(21.0));
    }

    #[test]
    fn without_violation_nothing_is_claimed() {
        let mut record = FaultRecord { injected_at: 4.5, ..FaultRecord::default() };
        record.read_timeline(&timeline(&[10.0, 10.0, 12.0, 11.0]), 50.0, 100.0);
        assert_eq!((record.violation_at, record.recovered_at, record.p99_ms.during), (None, None, None));
    }
}
