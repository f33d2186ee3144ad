//! Which resource of a culprit: the signed, load-conditional z of each group's metrics, and where the excess sits.
//!
//! Specific groups come before CPU, which rises as an effect of the others. Below the threshold it is software.

use sage_common::{InstanceId, Metric, MetricGroup};

use crate::{
    null::GroupNull,
    ownership,
    scene::{OwnExcess, Part, Scene, UsageScore, speaks_of_delay},
    verdict::Resource,
};

/// A group's score (mean z of its two strongest metrics) below which it did not move.
pub const SCORE_MIN: f64 = 3.0;

/// A healthy window may have reached more; but no null may silence a group that is this far off.
const NULL_MAX: f64 = 12.0;

/// A specific group must reach this share of the CPU's score to be taken for its cause.
const SPECIFIC_SHARE: f64 = 0.25;

/// A lone metric of a group counts less than two that agree.
const LONE_WEIGHT: f64 = 0.75;

/// A replica this much above its siblings is named, and speaks for the service.
const REPLICA_MARGIN: f64 = 4.0;

/// Used share of its processor limit from which a service waits for it, standard deviations above normal that it must be
/// then, and the score that this gives the processor.
const SATURATED_SHARE: f64 = 0.85;
const SATURATED_MIN_Z: f64 = 2.0;
const SATURATED_SCORE: f64 = 1.5 * SCORE_MIN;

/// Share of self time in the excess above which the network is unlikely, and below which the others are.
const SELF_SHARES: (f64, f64) = (0.3, 0.7);
const NETWORK_IF_SELF: f64 = 0.6;
const OTHERS_IF_GAP: f64 = 0.3;

/// How sure the shape of an excess alone can make.
const SHAPE_P: f64 = 0.5;

/// Groups that can be named, the specific ones first.
pub const GROUPS: [MetricGroup; 4] = [MetricGroup::Memory, MetricGroup::Disk, MetricGroup::Network, MetricGroup::Cpu];

/// The answer for one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What it is.
    pub resource: Resource,
    /// P(right), from the spread of the scores.
    pub p: f64,
    /// The replica that stands out.
    pub instance: Option<InstanceId>,
    /// Groups without a single metric.
    pub unmeasured: Vec<MetricGroup>,
}

/// Names the resource of `service`, whose own excess is `excess`.
pub fn name(scene: &Scene<'_>, null: &GroupNull, service: usize, excess: OwnExcess) -> Finding {
    let unmeasured: Vec<MetricGroup> =
        GROUPS.into_iter().filter(|group| group_score(&scene.services[service].usage, *group).is_none()).collect();
    let mut scored: Vec<(MetricGroup, f64, bool)> = GROUPS
        .into_iter()
        .filter_map(|group| {
            let saturated = if group == MetricGroup::Cpu { saturated(scene, service) } else { None };
            let score = weight(scene, service, group, excess) * strongest(scene, service, group, excess)?;
            let score = score.max(saturated.unwrap_or(0.0));
            let floor = null.worst(&scene.graph.services()[service], group).clamp(SCORE_MIN, NULL_MAX);
            Some((group, score, score > floor))
        })
        .collect();
    let cpu = scored.iter().find(|(group, ..)| *group == MetricGroup::Cpu).map_or(0.0, |(_, score, _)| *score);
    // How much memory is in use says less than what scarce memory does.
    let is_vague = !scene.services[service].usage.iter().any(tells_of_scarcity);
    let is_specific = |group: MetricGroup, score: f64| match group {
        MetricGroup::Cpu => false,
        MetricGroup::Memory if is_vague => score >= cpu,
        _ => score >= SPECIFIC_SHARE * cpu,
    };
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    let specific = scored.iter().find(|(group, score, is_far)| *is_far && is_specific(*group, *score));
    let named = specific.or_else(|| scored.iter().find(|(_, _, is_far)| *is_far));
    let Some((group, score, _)) = named.copied() else { return quiet(scene, service, excess, &scored, unmeasured) };
    let second = scored.iter().filter(|other| other.0 != group).map(|other| other.1).fold(SCORE_MIN, f64::max);
    let spread = if group == MetricGroup::Cpu { score - second } else { score - SPECIFIC_SHARE * second };
    Finding {
        resource: group.into(),
        p: logistic(spread / SCORE_MIN),
        instance: replica_apart(scene, service, group).map(|(instance, _)| instance),
        unmeasured,
    }
}

/// Mean z of the two strongest metrics of `group`; `None` when none was measured. Effect metrics never count, volumes of
/// traffic neither.
pub fn group_score(usage: &[UsageScore], group: MetricGroup) -> Option<f64> {
    let counts = |score: &&UsageScore| {
        let spec = score.metric.spec();
        spec.group == group
            && !is_effect(usage, score.metric)
            && (group != MetricGroup::Network || speaks_of_delay(score.metric))
    };
    let mut z: Vec<f64> = usage.iter().filter(counts).map(|score| score.z).collect();
    z.sort_by(|a, b| b.total_cmp(a));
    match z[..] {
        [] => None,
        [only] => Some(LONE_WEIGHT * only),
        [first, second, ..] => Some(0.5 * (first + second)),
    }
}

/// Whether a metric rises because of others. So does the memory that waiting requests hold, and the processor time that
/// retries take; they accuse only where nothing tells what scarce memory, or a scarce processor, does.
fn is_effect(usage: &[UsageScore], metric: Metric) -> bool {
    let has = |known: &[Metric]| usage.iter().any(|score| known.contains(&score.metric));
    match metric {
        Metric::CpuUsed => has(&[Metric::CpuLimitShare, Metric::CpuThrottled, Metric::CpuPressure]),
        Metric::MemoryUsed => has(&[Metric::MemoryLimitShare]) || usage.iter().any(tells_of_scarcity),
        Metric::MemoryLimitShare => usage.iter().any(tells_of_scarcity),
        _ => metric.spec().is_effect,
    }
}

fn tells_of_scarcity(score: &UsageScore) -> bool {
    matches!(score.metric, Metric::MemoryPressure | Metric::MajorFaults | Metric::LlcMisses)
}

/// [`SATURATED_SCORE`] where a service has used up its share of the processor, and uses less of it as a rule: a machine with
/// many cores does not show it, and how far off it is depends on how idle the service was.
fn saturated(scene: &Scene<'_>, service: usize) -> Option<f64> {
    let share = scene.services[service].score(Metric::CpuLimitShare)?;
    (share.observed >= SATURATED_SHARE && share.z >= SATURATED_MIN_Z).then_some(SATURATED_SCORE)
}

/// The service's score, or that of a replica far from its siblings, or, where the excess is between the spans, that of
/// another service on the same link: one with few calls has too few round trips of its own.
fn strongest(scene: &Scene<'_>, service: usize, group: MetricGroup, excess: OwnExcess) -> Option<f64> {
    let of_service = group_score(&scene.services[service].usage, group)?;
    let apart = replica_apart(scene, service, group).map(|(_, score)| score);
    let is_between = group == MetricGroup::Network && excess.self_share() < SELF_SHARES.0;
    let shared = is_between.then(|| ownership::shared_link_score(scene, service)).flatten();
    Some([apart, shared].into_iter().flatten().fold(of_service, f64::max))
}

/// The replica whose score stands out, when there are siblings to compare with.
fn replica_apart(scene: &Scene<'_>, service: usize, group: MetricGroup) -> Option<(InstanceId, f64)> {
    let mut scores: Vec<(f64, &InstanceId)> = scene.services[service]
        .instances
        .iter()
        .filter_map(|(instance, usage)| Some((group_score(usage, group)?, instance)))
        .collect();
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    let [(best, instance), (next, _), ..] = scores[..] else { return None };
    (best > SCORE_MIN + REPLICA_MARGIN && best - next > REPLICA_MARGIN).then(|| (instance.clone(), best))
}

/// How much a group's score counts by where the excess sits. A service whose own time is far off is slow itself, and the
/// gaps around it are what waits for it: they say nothing against the resources of a machine then. No link slows what happens
/// within a service; round trips of one that answers late are long all the same.
fn weight(scene: &Scene<'_>, service: usize, group: MetricGroup, excess: OwnExcess) -> f64 {
    match group {
        MetricGroup::Network if excess.self_share() > SELF_SHARES.1 => {
            if has_slow_link(scene, service) {
                NETWORK_IF_SELF
            } else {
                0.0
            }
        }
        MetricGroup::Cpu | MetricGroup::Memory | MetricGroup::Disk
            if excess.self_share() < SELF_SHARES.0 && !ownership::is_slow_itself(scene, service) =>
        {
            OTHERS_IF_GAP
        }
        _ => 1.0,
    }
}

/// Whether any gap of the service's own is the network's.
fn has_slow_link(scene: &Scene<'_>, service: usize) -> bool {
    let around = scene.graph.ins(service).iter().chain(scene.graph.outs(service));
    around.copied().any(|edge| scene.edges[edge].is_net_like && scene.gap_share(edge, &[service]) >= 0.5)
}

/// No group moved: software, unless something constant was added to every call, which only a longer way does, or the network
/// is not measured and the shape speaks for it. Where nothing at all is measured software is a guess: no resource was seen
/// to be short, and none was looked at.
fn quiet(
    scene: &Scene<'_>,
    service: usize,
    excess: OwnExcess,
    scored: &[(MetricGroup, f64, bool)],
    unmeasured: Vec<MetricGroup>,
) -> Finding {
    let is_delay = worst_gap(scene, service).is_some_and(|gap| {
        gap.is_constant_delay() || unmeasured.contains(&MetricGroup::Network) && gap.is_pure_delay()
    });
    let (resource, p) = if excess.self_share() < SELF_SHARES.0 && is_delay {
        (Resource::Network, SHAPE_P)
    } else if unmeasured.len() == GROUPS.len() {
        (Resource::Software, SHAPE_P / 2.0)
    } else {
        let highest = scored.iter().map(|(_, score, _)| *score).fold(0.0, f64::max);
        (Resource::Software, logistic((SCORE_MIN - highest) / (0.5 * SCORE_MIN)))
    };
    Finding { resource, p, instance: None, unmeasured }
}

/// The gap around a service with the most excess.
fn worst_gap(scene: &Scene<'_>, service: usize) -> Option<Part> {
    let around = scene.graph.ins(service).iter().chain(scene.graph.outs(service));
    around.filter_map(|edge| scene.edges[*edge].gap).max_by(|a, b| a.excess_us().total_cmp(&b.excess_us()))
}

fn logistic(odds: f64) -> f64 {
    1.0 / (1.0 + (-odds).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(metric: Metric, z: f64) -> UsageScore {
        UsageScore { metric, z, normal: 1.0, observed: 1.0 }
    }

    #[test]
    fn the_two_strongest_metrics_of_a_group_speak_for_it() {
        let usage = [
            score(Metric::CpuPressure, 8.0),
            score(Metric::CpuThrottled, 4.0),
            score(Metric::NodeCpuUtilisation, 1.0),
            score(Metric::CpuUsed, 90.0), // an effect
        ];
        assert_eq!(group_score(&usage, MetricGroup::Cpu), Some(6.0));
        assert_eq!(group_score(&usage, MetricGroup::Disk), None);
    }

    #[test]
    fn use_alone_accuses_where_nothing_tells_of_scarcity() {
        assert_eq!(group_score(&[score(Metric::CpuUsed, 8.0)], MetricGroup::Cpu), Some(6.0));
        let both = [score(Metric::MemoryUsed, 8.0), score(Metric::MemoryLimitShare, 4.0)];
        assert_eq!(group_score(&both, MetricGroup::Memory), Some(3.0));
    }

    #[test]
    fn volumes_of_traffic_do_not_accuse_the_network() {
        let usage = [score(Metric::NodeNetworkSent, 50.0), score(Metric::RoundTrip, 2.0)];
        assert_eq!(group_score(&usage, MetricGroup::Network), Some(1.5));
    }
}
