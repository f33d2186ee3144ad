//! Who owns a gap. A network fault shows on the caller → victim gap in some systems and on the victim's own outgoing calls
//! in others; a starved caller shifts all its out-gaps. A fixed side is right in one family and wrong in the other, so
//! votes decide.

use sage_common::{Metric, MetricGroup};

use crate::{
    frame::Frame,
    resource::group_score,
    scene::{Part, Scene, speaks_of_delay},
};

/// Log-odds for the callee before anybody votes: a queue in front of the callee is the commonest gap.
const PRIOR: f64 = 0.5;
/// One witness says no more than this, log-odds.
const VOTE_MAX: f64 = 3.0;
/// All witnesses of one kind say no more than this, log-odds.
const VOTES_MAX: f64 = 6.0;
/// A gap shifted by less than this many standard deviations has nothing to own.
const SHIFT_MIN_SD: f64 = 2.0;
/// A self time shifted by less than this many standard deviations does not speak.
const SELF_MIN_Z: f64 = 3.0;
/// A processor score from which a service is short of processor time.
const STARVED_MIN: f64 = 3.0;
/// Weight of a caller's shifted self time where no processor metric says whether it is starved.
const UNMEASURED_WEIGHT: f64 = 0.3;
/// Standard deviations of a network metric above which the network is suspected.
const NETWORK_MIN_Z: f64 = 5.0;
/// The excess of one call that a slow path can explain, in excesses of the mean round trip: a request and an answer of
/// many segments, on the worst of the connections that the mean was taken over.
const ROUND_TRIPS_MAX: f64 = 10.0;
/// Waiting calls at once below which Little's law says nothing.
const WAITING_MIN: f64 = 0.7;
/// A pool is suspected when less than this share of the waiting calls can hold a connection.
const POOL_SHARE_MAX: f64 = 0.5;

/// Connections are fewer than normal below this share of them, and those who wait would be seen among them from this share.
const FEWER_MAX: f64 = 0.9;
const WAITING_SHARE_MIN: f64 = 0.25;

/// Grid indices of p75 and p99.
const P75: usize = 3;
const P99: usize = 9;

/// P(the callee of `edge` owns its gap): the logistic of the sum of all votes.
pub fn p_callee_owns(scene: &Scene<'_>, frame: &Frame, edge: usize) -> f64 {
    let graph = scene.graph;
    let (Some(caller), Some(gap)) = (graph.caller(edge), scene.edges[edge].gap) else { return logistic(PRIOR) };
    let (shift, sd) = gap.shift_us();
    if shift < SHIFT_MIN_SD * sd {
        return logistic(PRIOR);
    }
    let callee = graph.callee(edge);
    // Calls within a node do not use its link: they witness for nothing that the network did.
    let witnesses = |other: &usize| !(scene.edges[edge].is_net_like && is_within_a_node(scene, *other));
    let other_callers = votes(scene, shift, graph.ins(callee).iter().copied().filter(witnesses), |other| {
        graph.caller(other).filter(|s| *s != caller)
    });
    let other_callees = votes(scene, shift, graph.outs(caller).iter().copied().filter(witnesses), |other| {
        Some(graph.callee(other)).filter(|s| *s != callee)
    });
    let mut odds = PRIOR + other_callers;
    if scene.edges[edge].is_net_like {
        // What leaves a node is late on the calls that it answers and on those that it makes.
        let of_callee = votes(scene, shift, graph.outs(callee).iter().copied().filter(witnesses), |other| {
            Some(graph.callee(other)).filter(|s| *s != caller)
        });
        let of_caller = votes(scene, shift, graph.ins(caller).iter().copied().filter(witnesses), |other| {
            graph.caller(other).filter(|s| *s != callee)
        });
        odds += of_callee.max(0.0) - of_caller.max(0.0) + VOTE_MAX * network_lean(scene, &gap, callee, caller)
            - other_callees;
    } else {
        let starved = other_callees + starved_vote(scene, caller);
        // A pool is for one callee: that calls to the others are on time says nothing about it.
        odds += self_vote(scene, callee)
            - if lacks_connections(scene, frame, caller, callee) { VOTE_MAX + starved.max(0.0) } else { starved };
    }
    logistic(odds)
}

/// Whether the gap's excess is the network's: one end's network metrics are far off, and the excess is in the tail only, where
/// loss or a full queue of the link shows, or no more than the measured round trip explains (delay). Round trips get longer
/// behind every queue, because acknowledgements come with late answers: by themselves they speak for the network only where
/// all calls are late by the same, which no queue of a service does.
pub fn is_net_like(scene: &Scene<'_>, edge: usize) -> bool {
    let (Some(gap), Some(caller)) = (&scene.edges[edge].gap, scene.graph.caller(edge)) else { return false };
    let callee = scene.graph.callee(edge);
    let min_z = if gap.is_pure_delay() { SELF_MIN_Z } else { NETWORK_MIN_Z };
    let suspects: Vec<(usize, usize)> = [(callee, caller), (caller, callee)]
        .into_iter()
        .filter(|(end, other)| network_z(scene, *end, *other) > min_z)
        .collect();
    let round_trip =
        suspects.iter().map(|(end, other)| excess_of(scene, *end, *other, Metric::RoundTrip)).fold(0.0, f64::max);
    let (middle, tail) = (gap.excess_at_us(P75), gap.excess_at_us(P99));
    let is_lossy = suspects.iter().any(|(end, other)| may_lose(scene, *end, *other));
    is_lossy && middle < 0.2 * tail
        || !suspects.is_empty() && (is_lossy || gap.is_pure_delay()) && middle < ROUND_TRIPS_MAX * 1e3 * round_trip
}

/// Whether the link of `end` loses or holds back packets, or nobody would know. Late answers lengthen round trips as well.
fn may_lose(scene: &Scene<'_>, end: usize, other: usize) -> bool {
    const METRICS: [Metric; 3] = [Metric::Retransmits, Metric::NodeNetworkDrops, Metric::NodeQdiscBacklog];
    let known: Vec<f64> = METRICS
        .into_iter()
        .flat_map(|metric| {
            witnesses(scene, end, other, metric).filter_map(move |one| Some(scene.services[one].score(metric)?.z))
        })
        .collect();
    known.is_empty() || known.into_iter().any(|z| z > SELF_MIN_Z)
}

/// Whether calls from `caller` to `callee` wait for a connection of the caller's own pool, by Little's law. A callee that is
/// slow itself may have no time to accept connections; then the missing ones say nothing.
fn lacks_connections(scene: &Scene<'_>, frame: &Frame, caller: usize, callee: usize) -> bool {
    let is_small = |share: Option<f64>| share.is_some_and(|share| share < POOL_SHARE_MAX);
    is_small(pool_share(scene, frame, caller))
        || !is_slow_itself(scene, callee) && is_small(held_share(scene, frame, callee))
}

/// Share of the calls waiting in the out-gaps of `caller` that can hold a connection, by Little's law; `None` when few
/// wait, no gap is far off, or connections are not measured. Established connections include idle and inbound ones, so
/// the share is an upper bound: a low one is evidence, a high one is none.
pub fn pool_share(scene: &Scene<'_>, frame: &Frame, caller: usize) -> Option<f64> {
    let outs = scene.graph.outs(caller);
    let at_once = |curve: fn(&crate::scene::SceneEdge) -> Option<f64>| {
        outs.iter()
            .filter_map(|edge| Some(scene.edges[*edge].seen.rate * curve(&scene.edges[*edge])? / 1e6))
            .sum::<f64>()
    };
    let waiting = at_once(|edge| Some(edge.gap?.observed.mean_us()));
    let served = at_once(|edge| Some(edge.seen.server?.mean_us()));
    let has_excess = outs.iter().any(|edge| scene.edges[*edge].gap.as_ref().is_some_and(is_far_off));
    if waiting < WAITING_MIN || !has_excess {
        return None;
    }
    Some(((connections(frame, caller)? - served) / waiting).clamp(0.0, 1.0))
}

/// Share of the calls waiting in the in-gaps of `callee` that can hold a connection to it; `None` as for [`pool_share`]. Who
/// queues in front of a service holds a connection to it; who waits for a connection of his own pool does not. When many wait
/// and it has fewer connections than without them, nobody of those who wait has one.
fn held_share(scene: &Scene<'_>, frame: &Frame, callee: usize) -> Option<f64> {
    let ins = scene.graph.ins(callee);
    let at_once = |edge: &usize| Some(scene.edges[*edge].seen.rate * scene.edges[*edge].gap?.observed.mean_us() / 1e6);
    let waiting: f64 = ins.iter().filter_map(at_once).sum();
    let has_excess = ins.iter().any(|edge| scene.edges[*edge].gap.as_ref().is_some_and(is_far_off));
    if waiting < WAITING_MIN || !has_excess {
        return None;
    }
    let held = connections(frame, callee)?;
    let replicas = frame.services[callee].instances.len() as f64;
    let normal = scene.services[callee].score(Metric::Connections).map_or(0.0, |score| replicas * score.normal);
    let is_below = held < FEWER_MAX * normal && waiting > WAITING_SHARE_MIN * normal;
    Some(if is_below { 0.0 } else { (held / waiting).clamp(0.0, 1.0) })
}

/// Established connections of all replicas of a service; `None` where they are not measured.
fn connections(frame: &Frame, service: usize) -> Option<f64> {
    let of_replica = |(_, readings): &(_, crate::frame::Readings)| Some(readings[Metric::Connections.index()]?.median);
    frame.services[service].instances.iter().filter_map(of_replica).reduce(|a, b| a + b)
}

fn is_far_off(part: &Part) -> bool {
    part.observed.logs()[P75].exp() > 2.0 * part.normal.logs()[P75].exp() + 200.0
}

/// The witnesses' votes that a shift D is shared by the edges `around`: `log N(x; D, sd + D/2) - log N(x; 0, sd + D/10)` of
/// each edge's own shift x, averaged over the edges of one neighbour and added over neighbours. Much smaller shifts beside
/// a large one are its side effects.
fn votes(
    scene: &Scene<'_>,
    shift: f64,
    around: impl Iterator<Item = usize>,
    neighbour: impl Fn(usize) -> Option<usize>,
) -> f64 {
    let mut by_neighbour = std::collections::BTreeMap::<usize, Vec<f64>>::new();
    for other in around.filter(|other| scene.is_counted(*other)) {
        if let (Some(neighbour), Some(gap)) = (neighbour(other), &scene.edges[other].gap)
            && gap.is_learnt
        {
            let (x, sd) = gap.shift_us();
            by_neighbour.entry(neighbour).or_default().push(vote(x, shift, sd));
        }
    }
    let mean = |votes: &Vec<f64>| votes.iter().sum::<f64>() / votes.len() as f64;
    by_neighbour.values().map(mean).sum::<f64>().clamp(-VOTES_MAX, VOTES_MAX)
}

fn is_within_a_node(scene: &Scene<'_>, edge: usize) -> bool {
    scene.graph.caller(edge).is_some_and(|caller| scene.services[caller].neighbours.contains(&scene.graph.callee(edge)))
}

fn vote(x: f64, shift: f64, sd: f64) -> f64 {
    let log_density = |x: f64, mean: f64, sd: f64| -sd.ln() - (x - mean).powi(2) / (2.0 * sd * sd);
    (log_density(x, shift, sd + shift / 2.0) - log_density(x, 0.0, sd + shift / 10.0)).clamp(-VOTE_MAX, VOTE_MAX)
}

/// Whether the self time of any of a service's operations is far off.
pub fn is_slow_itself(scene: &Scene<'_>, service: usize) -> bool {
    self_vote(scene, service) > 0.0
}

/// A shifted self time speaks for its own service, and never against. A service that runs out of its processor share
/// now and then shows it in the tail only.
fn self_vote(scene: &Scene<'_>, service: usize) -> f64 {
    let parts = scene.graph.ins(service).iter().filter(|edge| scene.is_counted(**edge));
    let z = parts.filter_map(|edge| Some(scene.edges[*edge].own?.far_z())).fold(0.0, f64::max);
    (z / SELF_MIN_Z - 1.0).clamp(0.0, VOTE_MAX)
}

/// A caller whose self time is shifted may be late on its own side of every call, but only for want of a processor: a
/// slow code path does not delay the calls that it makes. Without processor metrics the spans alone count for little.
fn starved_vote(scene: &Scene<'_>, caller: usize) -> f64 {
    let weight = match group_score(&scene.services[caller].usage, MetricGroup::Cpu) {
        Some(score) if score > STARVED_MIN => 1.0,
        Some(_) => 0.0,
        None => UNMEASURED_WEIGHT,
    };
    weight * self_vote(scene, caller)
}

/// Which end of a slow link the network metrics speak against: 1 the callee, -1 the caller. By how much more round trip
/// and how many more retransmits one end has; the sound end sees a part of both on the connections to the other. Losses do not
/// delay all calls by the same: where that is what the gap shows, round trips alone speak, if they do.
fn network_lean(scene: &Scene<'_>, gap: &Part, callee: usize, caller: usize) -> f64 {
    const METRICS: [Metric; 4] =
        [Metric::RoundTrip, Metric::Retransmits, Metric::NodeNetworkDrops, Metric::NodeQdiscBacklog];
    let far = |end: usize, other: usize| excess_of(scene, end, other, Metric::RoundTrip);
    let is_delay = gap.is_pure_delay() && far(callee, caller).max(far(caller, callee)) > 0.0;
    let metrics = if is_delay { &METRICS[..1] } else { &METRICS[..] };
    let leans = metrics.iter().copied().filter_map(|metric| {
        let is_measured = |end: usize| scene.services[end].score(metric).is_some();
        let (of_callee, of_caller) =
            (excess_of(scene, callee, caller, metric), excess_of(scene, caller, callee, metric));
        let larger = of_callee.max(of_caller);
        (is_measured(callee) && is_measured(caller) && larger > 0.0).then(|| (of_callee - of_caller) / larger)
    });
    let (total, count) = leans.fold((0.0, 0_u32), |(total, count), lean| (total + lean, count + 1));
    if count == 0 { 0.0 } else { total / f64::from(count) }
}

/// What `metric` of `end`, or of a service on the same node and so on the same link, is above normal, in its unit; 0 where
/// it is not far off or says nothing about the way to `other`.
fn excess_of(scene: &Scene<'_>, end: usize, other: usize, metric: Metric) -> f64 {
    let excess = |service: usize| {
        let score = scene.services[service].score(metric).filter(|score| score.z > SELF_MIN_Z);
        score.map_or(0.0, |score| (score.observed - score.normal).max(0.0))
    };
    witnesses(scene, end, other, metric).map(excess).fold(0.0, f64::max)
}

/// The largest z of the metrics of loss and delay of `end` that say something about the way to `other`.
fn network_z(scene: &Scene<'_>, end: usize, other: usize) -> f64 {
    let z = |metric: Metric| {
        let z = |service: usize| scene.services[service].score(metric).map_or(0.0, |score| score.z);
        witnesses(scene, end, other, metric).map(z).fold(0.0, f64::max)
    };
    Metric::ALL.into_iter().filter(|metric| speaks_of_delay(*metric)).map(z).fold(0.0, f64::max)
}

/// Services whose `metric` tells of the link of `end`, on the way to `other`: itself, and those on the same node.
fn witnesses<'a>(
    scene: &'a Scene<'_>,
    end: usize,
    other: usize,
    metric: Metric,
) -> impl Iterator<Item = usize> + use<'a> {
    let is_credible =
        move |service: &usize| metric != Metric::RoundTrip || is_round_trip_credible(scene, *service, end, other);
    std::iter::once(end).chain(scene.services[end].neighbours.iter().copied()).filter(is_credible)
}

/// A slow path shows in the round trips of both its ends. A peer that answers late shows in ours alone, because it
/// sends its acknowledgements along with its answers (RFC 1122, 4.2.3.2) or up to 40 ms later (Linux TCP_DELACK_MIN).
fn is_round_trip_credible(scene: &Scene<'_>, service: usize, end: usize, other: usize) -> bool {
    let is_far = |peer: usize| scene.services[peer].score(Metric::RoundTrip).is_none_or(|score| score.z > SELF_MIN_Z);
    let graph = scene.graph;
    service == end && is_far(other)
        || service != end
            && (graph.ins(service).iter().filter_map(|edge| graph.caller(*edge)).any(is_far)
                || graph.outs(service).iter().map(|edge| graph.callee(*edge)).any(is_far))
}

/// The largest score of the network metrics of those that share the link of `service`, as far as they can be believed.
pub fn shared_link_score(scene: &Scene<'_>, service: usize) -> Option<f64> {
    let believed = witnesses(scene, service, service, Metric::RoundTrip).filter(|witness| *witness != service);
    believed.filter_map(|witness| group_score(&scene.services[witness].usage, MetricGroup::Network)).reduce(f64::max)
}

fn logistic(odds: f64) -> f64 {
    1.0 / (1.0 + (-odds).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_that_shares_the_shift_votes_for_it_and_one_that_does_not_against() {
        assert!(vote(10_000.0, 10_000.0, 50.0) > 2.9);
        assert!(vote(0.0, 10_000.0, 50.0) < -2.9);
        assert!(vote(500.0, 10_000.0, 50.0) < -2.9, "far off its noise, but nothing beside the shift");
        // By hand, x = D = sd = 1: -ln 1.5 - 0 + ln 1.1 + (1/1.1)^2 / 2.
        let by_hand = -(1.5_f64.ln()) + 1.1_f64.ln() + 0.5 / 1.21;
        assert!((vote(1.0, 1.0, 1.0) - by_hand).abs() < 1e-12);
    }

    #[test]
    fn without_votes_the_callee_is_slightly_likelier() {
        assert!((logistic(PRIOR) - 0.622).abs() < 1e-3);
    }
}
