//! Joins the stubs of all nodes into whole traces: a client span and the server span whose parent it is are one call.
//!
//! Nothing here compares clocks: offsets and durations each come from one machine. Ids may lie (zero, repeated, their
//! own parent, a ring of parents): such edges are dropped and counted, and no walk can be longer than a fixed bound.

use std::collections::{BTreeMap, BTreeSet};

use sage_causal::observation::{EdgeKey, Trace, TraceCall};
use sage_common::{Micros, NodeWindow, OperationId, ServiceId, Side, SpanId, Stub, TraceHash};
use serde::{Deserialize, Serialize};

use crate::core::learned::{CallName, Learned, Target};

/// Traces kept per window: agents keep 512 each, and the coherent sample makes most of them the same.
pub const TRACES_MAX: usize = 2_048;
/// Stubs of one trace that are looked at; the rest is counted. Larger traces are loops or batch jobs.
pub const SPANS_PER_TRACE_MAX: usize = 2_048;
/// Internal spans between a client span and its server span; deeper ones are rings or runaway instrumentation.
const INTERNAL_DEPTH_MAX: usize = 64;
/// How much longer than its parent a child may seem before it counts as not waited for: timer granularity.
const SYNC_SLACK: Micros = Micros::from_millis(1);

/// What could not be joined.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct JoinCounters {
    /// Stubs looked at.
    pub stubs: u64,
    /// Stubs beyond the bounds, or of traces that not every node kept.
    pub shed: u64,
    /// Stubs without an id, with an id used twice, or their own parent.
    pub invalid: u64,
    /// Stubs whose parent is nowhere, or in a ring.
    pub orphans: u64,
    /// Client and server stubs joined to one call.
    pub pairs: u64,
}

impl JoinCounters {
    /// Adds another window's counts.
    pub fn add(&mut self, other: Self) {
        self.stubs += other.stubs;
        self.shed += other.shed;
        self.invalid += other.invalid;
        self.orphans += other.orphans;
        self.pairs += other.pairs;
    }
}

/// Durations of the joined calls of one edge, microseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EdgeSamples {
    /// Client spans.
    pub client: Vec<f32>,
    /// Server spans.
    pub server: Vec<f32>,
    /// Client minus server span of the same call.
    pub gap: Vec<f32>,
    /// Server span minus the union of its synchronous children.
    pub self_time: Vec<f32>,
}

/// Everything that the traces of one window say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Joined {
    /// Whole traces, as far as their parts arrived.
    pub traces: Vec<Trace>,
    /// Durations per edge.
    pub samples: BTreeMap<EdgeKey, EdgeSamples>,
    /// How often a call name went to a target.
    pub names: BTreeMap<(CallName, Target), u32>,
    /// What could not be joined.
    pub counters: JoinCounters,
}

/// Joins the stubs of `windows`, which are of one interval. `entries` are services that clients call directly.
pub fn join(windows: &[&NodeWindow], learned: &Learned, close: u64, entries: &BTreeSet<ServiceId>) -> Joined {
    let mut joined = Joined::default();
    let groups = group(windows, &mut joined.counters);
    let linked: Vec<Linked<'_>> = groups.values().map(|stubs| link(stubs, &mut joined.counters)).collect();
    let mut called = learned.called();
    for trace in &linked {
        count_names(trace, &mut joined.names);
        called.extend(trace.pairs().map(|(_, server)| server.service.clone()));
    }
    let scene = Scene { learned, close, entries, called: &called };
    for trace in &linked {
        let built = build(trace, &scene, &mut joined);
        if !built.calls.is_empty() {
            joined.traces.push(built);
        }
    }
    joined
}

/// Stubs per trace, for traces that every node kept: a node that sampled keeps the hashes below its share of all
/// hashes, so above the smallest share traces have holes.
fn group<'a>(windows: &[&'a NodeWindow], counters: &mut JoinCounters) -> BTreeMap<TraceHash, Vec<&'a Stub>> {
    let share = windows.iter().map(|window| f64::from(window.stub_share)).fold(1.0, f64::min);
    let limit = TraceHash((share * u64::MAX as f64) as u64);
    let mut groups: BTreeMap<TraceHash, Vec<&Stub>> = BTreeMap::new();
    for stub in windows.iter().flat_map(|window| &window.stubs) {
        counters.stubs += 1;
        let is_room = groups.len() < TRACES_MAX || groups.contains_key(&stub.trace);
        if stub.trace > limit || !is_room {
            counters.shed += 1;
            continue;
        }
        let group = groups.entry(stub.trace).or_default();
        if group.len() < SPANS_PER_TRACE_MAX {
            group.push(stub);
        } else {
            counters.shed += 1;
        }
    }
    groups
}

/// One trace with its valid stubs and whom each belongs to.
struct Linked<'a> {
    stubs: Vec<&'a Stub>,
    /// For a server stub: the client stub that is the same call.
    client_of: Vec<Option<usize>>,
    /// For a client stub: the server stub that is the same call.
    server_of: Vec<Option<usize>>,
    /// The server stub that made the call (for client stubs), or called without a client span (for server stubs).
    owner: Vec<Option<usize>>,
    /// Start after the owner's start.
    offset: Vec<Micros>,
    /// Whether the parent is in the trace: such a stub starts nothing, even where its parent turns out to be a lie.
    has_parent: Vec<bool>,
}

impl<'a> Linked<'a> {
    fn pairs(&self) -> impl Iterator<Item = (&'a Stub, &'a Stub)> + '_ {
        self.server_of.iter().enumerate().filter_map(|(at, server)| server.map(|s| (self.stubs[at], self.stubs[s])))
    }
}

fn is_call(stub: &Stub) -> bool {
    matches!(stub.side, Side::Client | Side::Producer)
}

fn link<'a>(stubs: &[&'a Stub], counters: &mut JoinCounters) -> Linked<'a> {
    let (stubs, by_id) = index(stubs, counters);
    let none = vec![None; stubs.len()];
    let mut linked = Linked {
        client_of: none.clone(),
        server_of: none.clone(),
        owner: none,
        offset: vec![Micros::ZERO; stubs.len()],
        has_parent: stubs.iter().map(|stub| by_id.contains_key(&stub.parent)).collect(),
        stubs,
    };
    for at in 0..linked.stubs.len() {
        let stub = linked.stubs[at];
        match by_id.get(&stub.parent).copied() {
            _ if stub.side == Side::Internal => {}
            // Retries of a proxy share one client span; the first in id order is the call, the others have no edge.
            Some(parent) if stub.side == Side::Server && is_call(linked.stubs[parent]) => {
                if linked.server_of[parent].is_none() {
                    linked.server_of[parent] = Some(at);
                    linked.client_of[at] = Some(parent);
                    counters.pairs += 1;
                } else {
                    counters.invalid += 1;
                }
            }
            Some(parent) => {
                let (owner, offset) = owner(&linked.stubs, &by_id, parent, stub.offset);
                (linked.owner[at], linked.offset[at]) = (owner, offset);
            }
            None => {}
        }
    }
    linked
}

/// The valid stubs in id order, and where each id is. An id that two different stubs claim belongs to neither.
fn index<'a>(stubs: &[&'a Stub], counters: &mut JoinCounters) -> (Vec<&'a Stub>, BTreeMap<SpanId, usize>) {
    let mut claims: BTreeMap<SpanId, Option<&'a Stub>> = BTreeMap::new();
    for stub in stubs {
        if stub.id == SpanId(0) || stub.id == stub.parent {
            counters.invalid += 1;
            continue;
        }
        claims
            .entry(stub.id)
            .and_modify(|claim| {
                if claim.is_some_and(|first| first != *stub) {
                    *claim = None;
                }
            })
            .or_insert(Some(stub));
    }
    counters.invalid += claims.values().filter(|claim| claim.is_none()).count() as u64;
    let valid: Vec<&Stub> = claims.into_values().flatten().collect();
    let by_id = valid.iter().enumerate().map(|(at, stub)| (stub.id, at)).collect();
    (valid, by_id)
}

/// Climbs internal spans from `from` to the server span around them; adds up the offsets on the way.
fn owner(stubs: &[&Stub], by_id: &BTreeMap<SpanId, usize>, from: usize, offset: Micros) -> (Option<usize>, Micros) {
    let (mut at, mut offset) = (from, offset);
    for _ in 0..INTERNAL_DEPTH_MAX {
        match stubs[at].side {
            Side::Server => return (Some(at), offset),
            Side::Internal => {
                offset = offset + stubs[at].offset;
                let Some(parent) = by_id.get(&stubs[at].parent) else { return (None, offset) };
                at = *parent;
            }
            Side::Client | Side::Producer => return (None, offset),
        }
    }
    (None, offset)
}

fn count_names(trace: &Linked<'_>, names: &mut BTreeMap<(CallName, Target), u32>) {
    for (client, server) in trace.pairs() {
        let target = Target { callee: server.service.clone(), operation: server.operation.clone() };
        *names.entry((call_name(client), target)).or_default() += 1;
    }
}

fn call_name(client: &Stub) -> CallName {
    CallName { caller: client.service.clone(), operation: client.operation.clone(), peer: client.peer.clone() }
}

/// What is known besides the trace itself.
struct Scene<'a> {
    learned: &'a Learned,
    close: u64,
    entries: &'a BTreeSet<ServiceId>,
    called: &'a BTreeSet<ServiceId>,
}

impl Scene<'_> {
    /// Whether a server stub without a known caller is the start of a trace: an entry, or somebody whom nobody in the
    /// fleet calls. Anybody else has lost its caller's stub.
    fn is_root(&self, server: &Stub) -> bool {
        server.parent == SpanId(0) || self.entries.contains(&server.service) || !self.called.contains(&server.service)
    }

    /// Whether a client stub without a server span around it is a traced client outside the fleet.
    fn is_outside(&self, client: &Stub) -> bool {
        !self.called.contains(&client.service) && !self.entries.contains(&client.service)
    }
}

/// One call as found: the caller's and the callee's stub.
#[derive(Clone, Copy)]
struct Call {
    client: Option<usize>,
    server: Option<usize>,
}

fn build(trace: &Linked<'_>, scene: &Scene<'_>, joined: &mut Joined) -> Trace {
    let (roots, mut children) = arrange(trace, scene);
    let mut out = Trace::default();
    let mut reached = 0_u64;
    let mut queue: Vec<(Option<u32>, Option<usize>, Call)> =
        roots.into_iter().map(|call| (None, None, call)).rev().collect();
    // Ends: every server stub has one caller, and its children are taken out when it is visited.
    while let Some((parent, owner, call)) = queue.pop() {
        reached += u64::from(call.client.is_some()) + u64::from(call.server.is_some());
        let Some(mut entry) = trace_call(trace, scene, parent, owner, call) else { continue };
        sample(&entry, &mut joined.samples);
        // One copy of the names for all calls of an edge: the history holds hundreds of thousands of them.
        if let Some((shared, _)) = joined.samples.get_key_value(&entry.edge) {
            entry.edge = shared.clone();
        }
        let at = u32::try_from(out.calls.len()).unwrap_or(u32::MAX);
        out.calls.push(entry);
        let Some(server) = call.server else { continue };
        let below = children.remove(&server).unwrap_or_default();
        queue.extend(below.into_iter().rev().map(|child| (Some(at), Some(server), child)));
    }
    let calls = trace.stubs.iter().filter(|stub| stub.side != Side::Internal).count() as u64;
    joined.counters.orphans += calls.saturating_sub(reached);
    out
}

/// Where traces start, and the calls under every server stub in order of their start.
fn arrange(trace: &Linked<'_>, scene: &Scene<'_>) -> (Vec<Call>, BTreeMap<usize, Vec<Call>>) {
    let mut roots = Vec::new();
    let mut children: BTreeMap<usize, Vec<Call>> = BTreeMap::new();
    for (at, stub) in trace.stubs.iter().enumerate() {
        let owner = trace.owner[at];
        if is_call(stub) {
            let call = Call { client: Some(at), server: trace.server_of[at] };
            match owner {
                Some(owner) => children.entry(owner).or_default().push(call),
                None if !trace.has_parent[at] && scene.is_outside(stub) => roots.push(call),
                // The span around this client span is lost, not the callee: what is below still belongs to an edge.
                None => {}
            }
        } else if stub.side == Side::Server && trace.client_of[at].is_none() {
            let call = Call { client: None, server: Some(at) };
            match owner {
                // A server span within a server span of the same service is one request seen twice.
                Some(owner) if trace.stubs[owner].service != stub.service => {
                    children.entry(owner).or_default().push(call);
                }
                Some(_) => {}
                None if !trace.has_parent[at] && scene.is_root(stub) => roots.push(call),
                None => {}
            }
        }
    }
    for calls in children.values_mut() {
        calls.sort_by_key(|call| call.client.or(call.server).map(|at| (trace.offset[at], at)));
    }
    (roots, children)
}

fn trace_call(
    trace: &Linked<'_>,
    scene: &Scene<'_>,
    parent: Option<u32>,
    owner: Option<usize>,
    call: Call,
) -> Option<TraceCall> {
    let (client, server) = (call.client.map(|at| trace.stubs[at]), call.server.map(|at| trace.stubs[at]));
    let owner = owner.map(|at| trace.stubs[at]);
    let caller = owner.map(|owner| owner.service.clone());
    let edge = match (client, server) {
        (_, Some(server)) => target_edge(caller, &server.service, &server.operation),
        (Some(client), None) => {
            let (known, _) = scene.learned.resolve(&call_name(client), scene.close).into_iter().next()?;
            target_edge(caller, &known.callee, &known.operation)
        }
        (None, None) => return None,
    };
    let first = call.client.or(call.server);
    let offset = first.map_or(Micros::ZERO, |at| trace.offset[at]);
    let into_window = first.map_or(Micros::ZERO, |at| trace.stubs[at].offset);
    let micros = |stub: Option<&Stub>| stub.map(|stub| stub.duration.get() as f32);
    Some(TraceCall {
        parent,
        edge,
        offset_us: if parent.is_some() { offset } else { into_window }.get() as f32,
        client_us: micros(client),
        server_us: micros(server),
        self_us: server.map(|server| server.self_time.get() as f32),
        is_sync: is_sync(owner, client, server, offset),
        is_error: client.is_some_and(|stub| stub.is_error) || server.is_some_and(|stub| stub.is_error),
    })
}

fn target_edge(caller: Option<ServiceId>, callee: &ServiceId, operation: &OperationId) -> EdgeKey {
    EdgeKey { caller, callee: callee.clone(), operation: operation.clone() }
}

/// Whether the caller waited: not a producer, and over before the caller was.
fn is_sync(owner: Option<&Stub>, client: Option<&Stub>, server: Option<&Stub>, offset: Micros) -> bool {
    let Some(owner) = owner else { return true };
    let end = offset + client.or(server).map_or(Micros::ZERO, |stub| stub.duration);
    client.is_none_or(|client| client.side == Side::Client) && end <= owner.duration + SYNC_SLACK
}

fn sample(call: &TraceCall, samples: &mut BTreeMap<EdgeKey, EdgeSamples>) {
    let entry = samples.entry(call.edge.clone()).or_default();
    entry.client.extend(call.client_us);
    entry.server.extend(call.server_us);
    entry.self_time.extend(call.self_us);
    if let (true, Some(client), Some(server)) = (call.is_sync, call.client_us, call.server_us) {
        entry.gap.push((client - server).max(0.0));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sage_common::{BootId, IntakeCounters, NodeId, PeerHint, Timestamp, WindowKey};

    use super::*;

    fn window(name: &str, share: f32, stubs: Vec<Stub>) -> NodeWindow {
        NodeWindow {
            key: WindowKey { node: NodeId::sanitized(name), boot: BootId(1), seq: 0 },
            start: Timestamp::from_micros(0),
            length: Micros::from_secs(10),
            latencies: Vec::new(),
            usage: Vec::new(),
            node_usage: Vec::new(),
            stubs,
            skeletons: Vec::new(),
            entries: Vec::new(),
            offers: Vec::new(),
            intake: IntakeCounters::default(),
            stub_share: share,
        }
    }

    fn stub(id: u64, parent: u64, who: &str, side: Side, offset: u64, duration: u64) -> Stub {
        Stub {
            trace: TraceHash(1),
            id: SpanId(id),
            parent: SpanId(parent),
            service: ServiceId::sanitized(who),
            operation: OperationId::sanitized(&format!("{who}.op")),
            side,
            peer: None,
            offset: Micros::new(offset),
            duration: Micros::new(duration),
            self_time: Micros::new(duration / 2),
            is_error: false,
        }
    }

    fn run(windows: &[NodeWindow]) -> Joined {
        let entries = BTreeSet::from([ServiceId::sanitized("front")]);
        join(&windows.iter().collect::<Vec<_>>(), &Learned::default(), 1, &entries)
    }

    fn names(trace: &Trace) -> Vec<(Option<u32>, String)> {
        let name = |call: &TraceCall| {
            let caller = call.edge.caller.as_ref().map_or("client", ServiceId::as_str);
            (call.parent, format!("{caller}>{}", call.edge.callee))
        };
        trace.calls.iter().map(name).collect()
    }

    #[test]
    fn both_sides_of_a_call_on_two_nodes_are_one_edge_with_its_gap() {
        let front = vec![stub(1, 0, "front", Side::Server, 0, 100), stub(2, 1, "front", Side::Client, 10, 60)];
        let geo = vec![stub(3, 2, "geo", Side::Server, 0, 45)];
        let joined = run(&[window("a", 1.0, front), window("b", 1.0, geo)]);
        let trace = &joined.traces[0];
        assert_eq!(names(trace), [(None, "client>front".into()), (Some(0), "front>geo".into())]);
        let call = &trace.calls[1];
        assert_eq!((call.offset_us, call.client_us, call.server_us), (10.0, Some(60.0), Some(45.0)));
        assert!(call.is_sync);
        assert_eq!(joined.samples[&call.edge].gap, [15.0]);
        assert_eq!((joined.counters.pairs, joined.counters.orphans), (1, 0));
    }

    #[test]
    fn a_root_keeps_when_it_began_and_no_other_start_is_of_the_window() {
        let front = vec![stub(1, 0, "front", Side::Server, 2_000, 100), stub(2, 1, "front", Side::Client, 10, 60)];
        let joined = run(&[window("a", 1.0, front), window("b", 1.0, vec![stub(3, 2, "geo", Side::Server, 0, 45)])]);
        let starts: Vec<f32> = joined.traces[0].calls.iter().map(|call| call.offset_us).collect();
        assert_eq!(starts, [2_000.0, 10.0]);
    }

    #[test]
    fn internal_spans_between_are_seen_through_and_their_offsets_add_up() {
        let joined = run(&[window(
            "a",
            1.0,
            vec![
                stub(1, 0, "front", Side::Server, 0, 100),
                stub(5, 1, "front", Side::Internal, 20, 70),
                stub(6, 5, "front", Side::Internal, 5, 60),
                stub(2, 6, "front", Side::Client, 1, 40),
                stub(3, 2, "geo", Side::Server, 0, 30),
            ],
        )]);
        assert_eq!(joined.traces[0].calls[1].offset_us, 26.0);
    }

    #[test]
    fn a_producer_and_a_call_that_outlives_its_caller_are_not_waited_for() {
        let joined = run(&[window(
            "a",
            1.0,
            vec![
                stub(1, 0, "front", Side::Server, 0, 5_000),
                stub(2, 1, "front", Side::Producer, 10, 20),
                stub(3, 2, "mail", Side::Server, 0, 90_000),
                stub(4, 1, "front", Side::Client, 1_000, 9_000),
                stub(5, 4, "log", Side::Server, 0, 8_900),
            ],
        )]);
        let is_sync: Vec<bool> = joined.traces[0].calls.iter().map(|call| call.is_sync).collect();
        assert_eq!(is_sync, [true, false, false]);
        assert!(joined.samples.values().all(|samples| samples.gap.is_empty()));
    }

    #[test]
    fn a_database_without_spans_of_its_own_appears_by_its_peer_hint() {
        let mut call = stub(2, 1, "front", Side::Client, 10, 60);
        call.peer = Some(PeerHint::Address(ServiceId::sanitized("redis")));
        let joined = run(&[window("a", 1.0, vec![stub(1, 0, "front", Side::Server, 0, 100), call])]);
        let call = &joined.traces[0].calls[1];
        assert_eq!((call.edge.callee.as_str(), call.server_us), ("redis", None));
    }

    #[test]
    fn an_entry_whose_client_is_not_traced_is_a_root_and_a_lost_callers_callee_is_not() {
        let joined = run(&[window(
            "a",
            1.0,
            vec![
                stub(1, 99, "front", Side::Server, 0, 100),
                stub(2, 1, "front", Side::Client, 0, 50),
                stub(3, 2, "geo", Side::Server, 0, 40),
                stub(4, 98, "geo", Side::Server, 0, 40),
            ],
        )]);
        assert_eq!(joined.traces.len(), 1);
        assert_eq!(names(&joined.traces[0]).len(), 2);
        assert_eq!(joined.counters.orphans, 1);
    }

    #[test]
    fn a_traced_client_outside_the_fleet_is_the_root() {
        let joined = run(&[window(
            "a",
            1.0,
            vec![stub(7, 0, "browser", Side::Client, 0, 130), stub(1, 7, "front", Side::Server, 0, 100)],
        )]);
        let call = &joined.traces[0].calls[0];
        assert_eq!((call.edge.caller.as_ref(), call.client_us, call.server_us), (None, Some(130.0), Some(100.0)));
    }

    #[test]
    fn ids_that_lie_cost_their_edge_and_nothing_else() {
        let joined = run(&[window(
            "a",
            1.0,
            vec![
                stub(1, 0, "front", Side::Server, 0, 100),
                stub(2, 1, "front", Side::Client, 0, 50),
                stub(3, 2, "geo", Side::Server, 0, 40),
                stub(0, 1, "front", Side::Client, 0, 10),
                stub(8, 8, "self", Side::Server, 0, 10),
                stub(9, 10, "ring", Side::Internal, 0, 10),
                stub(10, 9, "ring", Side::Internal, 0, 10),
                stub(11, 10, "ring", Side::Client, 0, 10),
                stub(12, 1, "twice", Side::Client, 0, 10),
                stub(12, 1, "other", Side::Client, 0, 10),
                stub(13, 2, "retry", Side::Server, 0, 10),
            ],
        )]);
        assert_eq!(names(&joined.traces[0]), [(None, "client>front".into()), (Some(0), "front>geo".into())]);
        assert_eq!(joined.counters.invalid, 4, "zero, its own parent, twice, second server of one call");
    }

    #[test]
    fn the_same_stub_twice_is_one() {
        let front = stub(1, 0, "front", Side::Server, 0, 100);
        let joined = run(&[window("a", 1.0, vec![front.clone(), front])]);
        assert_eq!((joined.traces.len(), joined.counters.invalid), (1, 0));
    }

    #[test]
    fn traces_that_not_every_node_kept_are_left_out() {
        let with_hash = |share: f64, id| Stub {
            trace: TraceHash((share * u64::MAX as f64) as u64),
            ..stub(id, 0, "front", Side::Server, 0, 100)
        };
        let all = window("a", 1.0, vec![with_hash(0.2, 1), with_hash(0.8, 2)]);
        let joined = run(&[all, window("b", 0.5, Vec::new())]);
        assert_eq!((joined.traces.len(), joined.counters.shed), (1, 1));
    }

    #[test]
    fn a_flood_of_traces_and_spans_is_cut_at_its_bounds() {
        let flood = (0..SPANS_PER_TRACE_MAX as u64 + 100)
            .map(|id| stub(id + 1, u64::from(id > 0), "front", Side::Client, 0, 1))
            .collect();
        assert_eq!(run(&[window("a", 1.0, flood)]).counters.shed, 100);
        let many = (0..TRACES_MAX as u64 + 50)
            .map(|trace| Stub { trace: TraceHash(trace), ..stub(1, 0, "front", Side::Server, 0, 1) })
            .collect();
        assert_eq!(run(&[window("a", 1.0, many)]).traces.len(), TRACES_MAX);
    }

    proptest! {
        #[test]
        fn random_graphs_of_spans_never_loop_and_give_forests(
            spans in prop::collection::vec((0_u64..24, 0_u64..24, 0_u8..5, 0_usize..4, 0_u64..100, 0_u64..1_000), 0..80),
        ) {
            let services = ["front", "geo", "rate", "user"];
            let stubs: Vec<Stub> = spans.into_iter().map(|(id, parent, service, side, offset, duration)| {
                let side = [Side::Server, Side::Client, Side::Producer, Side::Internal][side];
                stub(id, parent, services[usize::from(service) % services.len()], side, offset, duration)
            }).collect();
            let total = stubs.len() as u64;
            let joined = run(&[window("a", 1.0, stubs)]);
            let mut calls = 0;
            for trace in &joined.traces {
                calls += trace.calls.len() as u64;
                for (at, call) in trace.calls.iter().enumerate() {
                    prop_assert!(call.parent.is_none_or(|parent| (parent as usize) < at));
                    prop_assert!(call.client_us.is_some() || call.server_us.is_some());
                }
            }
            prop_assert!(calls <= total);
            prop_assert!(joined.counters.invalid + joined.counters.orphans <= 2 * total);
        }
    }
}
