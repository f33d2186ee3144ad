use std::collections::{BTreeMap, BTreeSet};

use sage_common::{Metric, PeerHint, Side};

use super::*;
use crate::{
    simulate::{
        model::Placement,
        sink::{Nowhere, UsageSecond},
    },
    topology::{load, parse},
};

#[derive(Default)]
struct Kept {
    spans: Vec<(usize, Span)>,
    usage: Vec<UsageSecond>,
}

impl Sink for Kept {
    fn span(&mut self, machine: usize, span: &Span) {
        self.spans.push((machine, span.clone()));
    }

    fn usage(&mut self, usage: &UsageSecond) {
        self.usage.push(usage.clone());
    }
}

impl Kept {
    /// Mean milliseconds of the spans that `pick` picks.
    fn mean_ms(&self, pick: impl Fn(&Span) -> bool) -> f64 {
        let picked: Vec<f64> =
            self.spans.iter().map(|(_, span)| span).filter(|s| pick(s)).map(|s| s.duration.as_millis_f64()).collect();
        picked.iter().sum::<f64>() / picked.len() as f64
    }

    fn server_ms(&self, service: &str) -> f64 {
        self.mean_ms(|span| span.side == Side::Server && span.service.as_str() == service)
    }

    fn client_ms(&self, caller: &str, callee: &str) -> f64 {
        let is_callee = |peer: &PeerHint| matches!(peer, PeerHint::Service(name) if name.as_str() == callee);
        self.mean_ms(|span| span.service.as_str() == caller && span.peer.as_ref().is_some_and(is_callee))
    }

    /// Mean of a metric of a service, or of its machine.
    fn metric(&self, service: &str, metric: Metric) -> f64 {
        let mut values = Vec::new();
        for second in &self.usage {
            for one in second.instances.iter().filter(|one| one.service.as_str() == service) {
                let own = one.metrics.iter().chain(&second.of_node).find(|(name, _)| *name == metric);
                values.extend(own.map(|(_, value)| f64::from(*value)));
            }
        }
        values.iter().sum::<f64>() / values.len().max(1) as f64
    }
}

fn steady(seed: u64) -> EngineOptions {
    EngineOptions { seed, shape: LoadShape::steady(), ..EngineOptions::default() }
}

fn engine(topology: &Topology, options: EngineOptions, faults: &[&str]) -> Engine {
    let model = Arc::new(Model::new(topology, &Placement::default()));
    let mut engine = Engine::new(topology, model, options, Micros::ZERO);
    let faults: Vec<FaultPlan> = faults.iter().map(|text| text.parse().expect("valid")).collect();
    engine.set_faults(&faults);
    engine
}

fn kept(topology: &Topology, options: EngineOptions, faults: &[&str], seconds: u64) -> Kept {
    let mut sink = Kept::default();
    engine(topology, options, faults).run_until(Micros::from_secs(seconds), &mut sink);
    sink
}

/// One tier of `cores` cores with lognormal service of 1 ms, at `qps`.
fn station(cores: u32, cv: f64, qps: f64) -> Topology {
    let text = serde_json::json!({
        "schema": "topology/1", "name": "station",
        "qos": {"percentile": 99, "latency_ms": 10},
        "load": {"open_loop": true, "arrivals": "poisson", "nominal_qps": qps},
        "network": {"one_way_us": {"dist": "lognormal", "mean": 45, "cv": 0.5}},
        "services": [{
            "id": "station", "kind": "frontend", "tech": "go-http", "cpu_cores": cores,
            "replicas": {"local": 1, "gce": 1}, "concurrency": {"model": "goroutines"},
            "rpc_cost_us": {"client": 0, "server": 0},
            "ops": {"serve": {"dist": "lognormal", "mean_us": 1000, "cv": cv}},
            "sensitivity": {"cpu": 1, "mem": 0, "disk": 0, "net": 0}
        }],
        "requests": [{"id": "serve", "mix": 1.0, "root": {"svc": "station", "op": "serve"}}],
        "pools": []
    });
    parse(&text.to_string(), "station").expect("valid")
}

#[test]
fn one_server_waits_as_pollaczek_and_khinchine_say() {
    // W = lambda E[S^2] / (2 (1 - rho)); with cv 1 that is M/M/1, with cv 0 M/D/1.
    for (cv, rho) in [(0.0, 0.7), (1.0, 0.5), (1.0, 0.7), (0.5, 0.8)] {
        let expected = rho * (1.0 + cv * cv) / (2.0 * (1.0 - rho));
        let kept = kept(&station(1, cv, rho * 1_000.0), steady(5), &[], 600);
        let waited = kept.server_ms("station") - 1.0;
        let error = (waited / expected - 1.0).abs();
        assert!(error < 0.06, "cv {cv}, rho {rho}: waited {waited} ms, want {expected} ms");
    }
}

#[test]
fn several_servers_wait_as_erlang_says() {
    // Erlang C for c = 4, rho = 0.8: P(wait) = 0.5964, W = P(wait) / (c (1 - rho)) service times.
    let kept = kept(&station(4, 1.0, 3_200.0), steady(6), &[], 200);
    let waited = kept.server_ms("station") - 1.0;
    assert!((waited / (0.5964 / 0.8) - 1.0).abs() < 0.08, "waited {waited} ms");
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let social = load("social_network").expect("built in");
    let run = |seed| {
        let options = EngineOptions { seed, ..EngineOptions::default() };
        kept(&social, options, &["net_loss:user-service@1..3x2", "cpu:text-service@0..2x3"], 4)
    };
    let (a, b, c) = (run(8), run(8), run(9));
    assert!(a.spans == b.spans && a.usage == b.usage);
    assert!(a.spans != c.spans);
}

#[test]
fn a_fault_that_slows_nothing_changes_no_span() {
    let fanout = load("fanout").expect("built in");
    let calm = kept(&fanout, steady(2), &[], 4);
    let blips = ["cpu:leaf_1@1..3x9!decoy", "net_delay:leaf_2@0..4x30!decoy", "mem:aggregator@0..4x5!decoy"];
    let blipped = kept(&fanout, steady(2), &blips, 4);
    assert!(calm.spans == blipped.spans);
    for metric in [Metric::NodeCpuCoRunners, Metric::NodeCpuUtilisation] {
        let (before, after) = (calm.metric("leaf_1", metric), blipped.metric("leaf_1", metric));
        assert!(after > 1.3 * before, "{} from {before} to {after}", metric.name());
    }
    assert!(blipped.metric("leaf_2", Metric::Retransmits) > 3.0 + calm.metric("leaf_2", Metric::Retransmits));
    assert!(blipped.metric("aggregator", Metric::MemoryPressure) > 0.1);
}

#[test]
fn spans_before_a_fault_are_those_of_the_world_without_it() {
    let social = load("social_network").expect("built in");
    let before = |faults: &[&str]| -> Vec<(usize, Span)> {
        let kept = kept(&social, steady(4), faults, 3);
        kept.spans.into_iter().filter(|(_, span)| span.end() < EPOCH + Micros::from_secs(2)).collect()
    };
    assert!(before(&[]) == before(&["slow:post-storage-service@2..3x40"]));
}

#[test]
fn every_request_is_answered_refused_or_still_there() {
    let demo = load("demo").expect("built in");
    let options = EngineOptions { retries: 1, call_timeout: Micros::from_secs(2), ..steady(3) };
    let faults = ["cpu:catalog@1..8x200", "pool:frontend@2..5x64", "net_loss:payment@0..6x20", "surge:frontend@1..8x8"];
    let mut engine = engine(&demo, options, &faults);
    for second in 1..=8 {
        engine.run_until(Micros::from_secs(second), &mut Nowhere);
        let counts = engine.counts();
        let known = counts.answered + counts.refused + u64::from(counts.in_system);
        assert_eq!(counts.offered, known, "{counts:?}");
        assert!(counts.in_system <= 600);
    }
    assert!(engine.counts().refused > 0 && engine.counts().failed > 0, "{:?}", engine.counts());
    engine.run_until(Micros::from_secs(60), &mut Nowhere);
    let left = engine.counts().in_system as usize;
    // A handful of calls each: nothing is kept of those who have left.
    assert!(engine.visits.len() < 40 * (left + 1) && engine.calls.len() < 40 * (left + 1));
    assert!(left < 20, "{left} in a calm system");
}

#[test]
fn spans_form_whole_traces() {
    for name in ["social_network", "media_service", "hotel_reservation"] {
        let kept = kept(&load(name).expect("built in"), steady(1), &[], 2);
        let mut traces: BTreeMap<u64, Vec<&Span>> = BTreeMap::new();
        for (_, span) in &kept.spans {
            traces.entry(span.trace.0).or_default().push(span);
        }
        let is_done = |spans: &&Vec<&Span>| spans.iter().any(|span| span.parent.0 == 0);
        for spans in traces.values().filter(is_done) {
            let by_id: BTreeMap<u64, &&Span> = spans.iter().map(|span| (span.id.0, span)).collect();
            assert_eq!(by_id.len(), spans.len(), "ids are unique");
            for span in spans.iter().filter(|span| span.parent.0 != 0) {
                let parent = by_id.get(&span.parent.0).expect("the parent is in the trace");
                assert_ne!(parent.side, span.side, "client and server alternate");
                assert!(parent.start <= span.start && span.end() <= parent.end(), "{span:?} within {parent:?}");
            }
            let called: BTreeSet<u64> = spans.iter().map(|span| span.parent.0).collect();
            let clients = spans.iter().filter(|span| span.side == Side::Client);
            assert!(clients.clone().all(|span| called.contains(&span.id.0)), "every call was served");
        }
        assert!(traces.len() > 800, "{} traces of {name}", traces.len());
    }
}

/// Where a fault's slowdown must show.
enum Shows {
    /// In the server spans of the tier.
    Server,
    /// In the calls to it, beyond its server spans.
    GapIn,
    /// In its calls, beyond the callees' server spans.
    GapOut,
}

#[test]
fn each_fault_slows_what_it_should_and_moves_its_own_metrics() {
    use Metric as M;
    let social = load("social_network").expect("built in");
    let calm = kept(&social, steady(7), &[], 5);
    let (tier, store) = ("post-storage-service", "post-storage-mongodb");
    let cases: [(&str, &str, Shows, &[M]); 11] = [
        (
            "cpu:post-storage-service@0..9x2",
            tier,
            Shows::Server,
            &[M::NodeCpuUtilisation, M::NodeCpuCoRunners, M::CpuPressure],
        ),
        ("mem:post-storage-service@0..9x6", tier, Shows::Server, &[M::LlcMisses, M::MemoryPressure]),
        (
            "disk:post-storage-mongodb@0..9x40",
            store,
            Shows::Server,
            &[M::NodeDiskAwait, M::NodeDiskUtilisation, M::IoPressure],
        ),
        ("net_delay:post-storage-service@0..9x5", tier, Shows::GapIn, &[M::RoundTrip]),
        ("net_loss:post-storage-service@0..9x5", tier, Shows::GapIn, &[M::Retransmits, M::NodeNetworkDrops]),
        ("net_bw:post-storage-service@0..9x12", tier, Shows::GapIn, &[M::RoundTrip, M::NodeQdiscBacklog]),
        ("threads:post-storage-service@0..9x64", tier, Shows::GapIn, &[]),
        ("pool:post-storage-service@0..9x64", tier, Shows::GapOut, &[]),
        ("lock:post-storage-service@0..9x2", tier, Shows::Server, &[]),
        ("slow:post-storage-service@0..9x3", tier, Shows::Server, &[]),
        ("stall:post-storage-service@0..9x4", tier, Shows::Server, &[]),
    ];
    let causes = |kept: &Kept, service: &str, metric: M| kept.metric(service, metric);
    for (fault, service, shows, moved) in cases {
        let hurt = kept(&social, steady(7), &[fault], 5);
        let callers = if service == tier { "home-timeline-service" } else { tier };
        let shift = |from: &Kept| match shows {
            Shows::Server => from.server_ms(service),
            Shows::GapIn => from.client_ms(callers, service) - from.server_ms(service),
            Shows::GapOut => from.client_ms(service, store) - from.server_ms(store),
        };
        let (before, after) = (shift(&calm), shift(&hurt));
        assert!(after > 1.3 * before, "{fault}: {before} ms to {after} ms");
        for metric in moved {
            let (before, after) = (causes(&calm, service, *metric), causes(&hurt, service, *metric));
            assert!(after > 1.5 * before + 1e-3, "{fault}: {} from {before} to {after}", metric.name());
        }
        if moved.is_empty() {
            let quiet = [M::NodeCpuCoRunners, M::MemoryPressure, M::LlcMisses, M::NodeDiskAwait, M::NodeNetworkDrops];
            for metric in quiet {
                let (before, after) = (causes(&calm, service, metric), causes(&hurt, service, metric));
                assert!(after < 1.5 * before + 0.3, "{fault}: {} from {before} to {after}", metric.name());
            }
        }
    }
}

#[test]
fn a_late_answer_shows_in_the_round_trip_of_who_waits_and_a_slow_path_in_both() {
    let chain = load("chain").expect("built in");
    let trip = |kept: &Kept, service: &str| kept.metric(service, Metric::RoundTrip);
    let calm =
        kept(&chain, EngineOptions { shape: LoadShape { level: 0.4, ..LoadShape::steady() }, ..steady(3) }, &[], 4);
    let late = kept(
        &chain,
        EngineOptions { shape: LoadShape { level: 0.4, ..LoadShape::steady() }, ..steady(3) },
        &["stall:service_9@0..9x30"],
        4,
    );
    let far = kept(
        &chain,
        EngineOptions { shape: LoadShape { level: 0.4, ..LoadShape::steady() }, ..steady(3) },
        &["net_delay:service_9@0..9x30"],
        4,
    );
    assert!(trip(&late, "service_8") > trip(&calm, "service_8") + 10.0);
    assert!(trip(&late, "service_9") < trip(&calm, "service_9") * 1.3);
    assert!(trip(&far, "service_8") > trip(&calm, "service_8") + 10.0);
    assert!(trip(&far, "service_9") > trip(&calm, "service_9") + 10.0);
    // What is acknowledged late is acknowledged after 40 ms.
    assert!(trip(&late, "service_0") < trip(&calm, "service_0") + 40.0);
}

#[test]
fn a_slow_tier_shows_in_the_threads_and_connections_of_those_above_it() {
    let chain = load("chain").expect("built in");
    let options = || EngineOptions { shape: LoadShape { level: 0.5, ..LoadShape::steady() }, ..steady(4) };
    let calm = kept(&chain, options(), &[], 5);
    let hurt = kept(&chain, options(), &["stall:service_9@0..9x100"], 5);
    for metric in [Metric::Threads, Metric::Connections] {
        let (before, after) = (calm.metric("service_2", metric), hurt.metric("service_2", metric));
        assert!(after > before + 15.0, "{} from {before} to {after}", metric.name());
    }
    let (before, after) =
        (calm.metric("service_2", Metric::NodeCpuUtilisation), hurt.metric("service_2", Metric::NodeCpuUtilisation));
    assert!((after / before - 1.0).abs() < 0.2, "its processor is as busy as before");
}

#[test]
fn an_untraced_tier_cuts_traces_and_sampling_thins_them() {
    let chain = load("chain").expect("built in");
    let mut placement = Placement::default();
    placement.untraced.push("service_4".into());
    let model = Arc::new(Model::new(&chain, &placement));
    let mut sink = Kept::default();
    Engine::new(&chain, model, steady(1), Micros::ZERO).run_until(Micros::from_secs(2), &mut sink);
    assert!(sink.spans.iter().all(|(_, span)| span.service.as_str() != "service_4"));
    assert!(
        sink.spans
            .iter()
            .filter(|(_, span)| span.service.as_str() == "service_5" && span.side == Side::Server)
            .all(|(_, span)| span.parent.0 == 0)
    );
    let all = kept(&chain, steady(1), &[], 2).spans.len();
    let tenth = kept(&chain, EngineOptions { sampling: 0.1, ..steady(1) }, &[], 2);
    let share = tenth.spans.len() as f64 / all as f64;
    assert!((0.07..0.13).contains(&share), "{share}");
    assert!(tenth.spans.iter().all(|(_, span)| (span.weight - 10.0).abs() < 1e-3));
}

#[test]
fn more_cores_cure_a_tier_that_is_short_of_them() {
    let topology = station(1, 1.0, 950.0);
    let options = EngineOptions { in_system_max: 600, ..steady(9) };
    let mut short = Kept::default();
    let mut cured = Kept::default();
    let mut engine = engine(&topology, options, &[]);
    engine.run_until(Micros::from_secs(20), &mut short);
    engine.scale_cores(0, 2.0);
    engine.run_until(Micros::from_secs(21), &mut Kept::default());
    engine.run_until(Micros::from_secs(40), &mut cured);
    assert!(cured.server_ms("station") < 0.4 * short.server_ms("station"));
}
