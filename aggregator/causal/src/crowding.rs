//! Waits for processors that nobody has taken. What stalls calls and lets them go together, such as a slow link or a
//! retransmission, makes them queue in front of processors that are as fast and as idle as ever.

use sage_common::Metric;

use crate::{frame::Frame, scene::Scene};

/// Share of a self time's excess that the wait for a processor must explain.
const SHARE_MIN: f64 = 0.5;

/// Standard deviations from which a reading is a cause: of those who run beside, of stolen time, of own work.
const CAUSE_MIN_Z: f64 = 3.0;

/// The excess of the self time of `service`, microseconds per call, when it waits for its processors and nothing that was measured has
/// taken them; `None` otherwise, and where that was not measured.
pub fn crowded_us(scene: &Scene<'_>, frame: &Frame, service: usize) -> Option<f64> {
    let seen = &scene.services[service];
    let wait = seen.score(Metric::RunQueueWait)?;
    let is_quiet = |metric: Metric| seen.score(metric).is_none_or(|score| score.z < CAUSE_MIN_Z);
    let is_measured = seen.score(Metric::NodeCpuCoRunners).is_some() && seen.score(Metric::CpuUsed).is_some();
    let causes = [Metric::NodeCpuCoRunners, Metric::NodeCpuSteal, Metric::CpuUsed, Metric::CpuThrottled];
    if !is_measured || !causes.into_iter().all(is_quiet) {
        return None;
    }
    let replicas = frame.services[service].instances.len().max(1) as f64;
    let waiting_s = replicas * (wait.observed - wait.normal);
    let late_s: f64 = scene.graph.ins(service).iter().map(|edge| late_s(scene, *edge)).sum();
    (late_s > 0.0 && waiting_s > SHARE_MIN * late_s).then(|| scene.own_excess(service).self_us)
}

/// Seconds per second that the self times of `edge` are above normal.
fn late_s(scene: &Scene<'_>, edge: usize) -> f64 {
    let excess = |part: crate::scene::Part| part.observed.mean_us() - part.repaired().mean_us();
    scene.edges[edge].seen.rate * scene.edges[edge].own.map_or(0.0, excess) / 1e6
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sage_common::Timestamp;

    use super::*;
    use crate::{
        curve::{Curve, Q},
        frame::{EdgeFrame, ServiceFrame},
        graph::{Graph, tests::key},
        scene::{Part, SceneEdge, SceneService, UsageScore},
    };

    /// The excess of 2 ms of a service called 100 times a second whose tasks wait `waiting` seconds per second, when
    /// `cause` is far off.
    fn crowded(waiting: f64, cause: Option<Metric>) -> Option<f64> {
        let graph = Graph::new(&[key("", "a")].into_iter().collect(), &BTreeMap::new());
        let level = |us: f64| Curve::of_logs([us.ln(); Q]).expect("finite");
        let edge = SceneEdge {
            seen: EdgeFrame { calls: 1000.0, rate: 100.0, ..EdgeFrame::default() },
            own: Some(Part { observed: level(3e3), normal: level(1e3), scales: [0.02; Q], is_learnt: true }),
            is_own_client: false,
            gap: None,
            p_callee: 0.6,
            is_net_like: false,
            restored: None,
        };
        let score = |metric: Metric, observed: f64| UsageScore {
            metric,
            z: if cause == Some(metric) { 9.0 } else { 0.0 },
            normal: 0.0,
            observed,
        };
        let usage = [(Metric::RunQueueWait, waiting), (Metric::NodeCpuCoRunners, 0.0), (Metric::CpuUsed, 0.0)];
        let service = SceneService {
            usage: usage.into_iter().map(|(metric, observed)| score(metric, observed)).collect(),
            ..SceneService::default()
        };
        let scene = Scene { graph: &graph, edges: vec![edge], services: vec![service] };
        let silent =
            ServiceFrame { rate: 100.0, readings: [const { None }; Metric::COUNT], instances: Vec::new(), node: None };
        let frame = Frame {
            time: Timestamp::default(),
            window_s: 10.0,
            edges: Vec::new(),
            services: vec![silent],
            offered_per_s: None,
            completed_per_s: 100.0,
        };
        crowded_us(&scene, &frame, 0)
    }

    #[test]
    fn a_wait_for_idle_processors_comes_from_bursts() {
        let excess = crowded(0.15, None).expect("150 ms of the 200 ms late per second are waits");
        assert!((excess - 2e3).abs() < 1e-6, "{excess}");
    }

    #[test]
    fn time_that_is_no_wait_is_the_services_own() {
        assert_eq!(crowded(0.05, None), None);
    }

    #[test]
    fn a_wait_for_processors_that_somebody_takes_is_no_burst() {
        for cause in [Metric::NodeCpuCoRunners, Metric::CpuUsed] {
            assert_eq!(crowded(0.15, Some(cause)), None, "{cause:?}");
        }
    }
}
