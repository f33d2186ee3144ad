//! The demo application end to end: load in, spans out, whole traces, a clean end.
#![expect(clippy::disallowed_methods, reason = "tests of real processes wait for them")]

mod support;

use std::{
    collections::{BTreeSet, HashMap},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use sage_bench::{
    app::supervise::{App, AppSpec},
    load::{LoadConfig, run},
    topology::{Facts, Plan, load},
};
use support::{Collector, Received, eventually, program};

/// One trace: its spans by id.
type Trace = HashMap<Vec<u8>, Received>;

fn traces(spans: Vec<Received>) -> HashMap<Vec<u8>, Trace> {
    let mut traces: HashMap<Vec<u8>, Trace> = HashMap::new();
    for received in spans {
        let trace = traces.entry(received.span.trace_id.clone()).or_default();
        let twice = trace.insert(received.span.span_id.clone(), received);
        assert!(twice.is_none(), "a span id is used twice: {twice:?}");
    }
    traces
}

/// Checks every span against its parent; the edges of the trace.
fn check(trace: &Trace) -> BTreeSet<(String, String)> {
    let mut edges = BTreeSet::new();
    let roots: Vec<_> = trace.values().filter(|received| received.span.parent_span_id.is_empty()).collect();
    assert_eq!(roots.len(), 1, "{roots:?}");
    assert!(roots[0].is_server() && roots[0].service == "frontend");
    for received in trace.values().filter(|received| !received.span.parent_span_id.is_empty()) {
        let parent = trace.get(&received.span.parent_span_id).expect("every parent arrived");
        assert_ne!(received.is_server(), parent.is_server(), "sides alternate");
        assert_eq!(received.span.status, None, "nothing failed");
        if received.is_server() {
            assert_eq!(received.method(), parent.method(), "both sides of a call name its operation alike");
            assert!(parent.duration_ns() >= received.duration_ns(), "{parent:?} is shorter than {received:?}");
            edges.insert((parent.service.clone(), received.service.clone()));
        } else {
            assert_eq!(received.service, parent.service, "a call is made by whom it happens in");
        }
    }
    let clients = trace.values().filter(|received| !received.is_server()).count();
    assert_eq!(trace.len(), 2 * clients + 1, "every call has two sides");
    edges
}

fn calls_of<'a>(trace: &'a Trace, service: &str) -> Vec<&'a str> {
    let mut calls: Vec<_> =
        trace.values().filter(|r| !r.is_server() && r.service == service).map(Received::method).collect();
    calls.sort_unstable();
    calls
}

#[test]
fn the_demo_serves_its_load_and_its_spans_join_into_whole_trees() {
    let topology = load("demo").expect("built in");
    let collector = Collector::start();
    let dir = tempfile::tempdir().expect("a directory");
    let mut spec = AppSpec::new(program(), "demo");
    (spec.otlp, spec.work_dir) = (Some(collector.url.clone()), Some(dir.path().to_owned()));
    let mut app = App::start(spec).expect("starts");
    let mut config = LoadConfig::new(topology.clone(), app.entry());
    (config.rate, config.duration) = (20.0, Some(Duration::from_secs(4)));
    let summary = run(config, |_| {}).expect("runs");
    assert_eq!(summary.total.errors, 0, "{summary:?}");
    assert!(summary.total.sent > 40 && summary.total.completed == summary.total.sent, "{summary:?}");
    assert!(app.reap().is_empty(), "a tier died");
    app.stop(); // exports the last spans

    let spans = collector.received();
    let services: BTreeSet<&str> = spans.iter().map(|received| &*received.service).collect();
    let expected: BTreeSet<&str> = topology.services.iter().map(|service| &*service.id).collect();
    assert_eq!(services, expected, "every tier exports");
    let traces = traces(spans);
    assert_eq!(traces.len() as u64, summary.total.sent);
    let edges: BTreeSet<_> = traces.values().flat_map(check).collect();
    let facts = Facts::new(&topology, &Plan::new(&topology));
    let id = |index: usize| topology.services[index].id.clone();
    let declared: BTreeSet<_> = facts.edges.iter().map(|(from, to)| (id(*from), id(*to))).collect();
    assert_eq!(edges, declared, "the traces show exactly the edges of the file");
    for trace in traces.values() {
        match calls_of(trace, "frontend")[..] {
            ["get", "list"] => assert!(calls_of(trace, "checkout").is_empty()),
            ["place_order"] => assert_eq!(calls_of(trace, "checkout"), ["authorise", "get", "insert", "price"]),
            ref other => panic!("no request of the demo calls {other:?}"),
        }
    }
}

#[test]
fn a_dead_tier_is_reported_and_a_restarted_one_serves_at_its_address() {
    let dir = tempfile::tempdir().expect("a directory");
    let threads = serde_json::json!({"model": "thread_per_connection"});
    let mut app = support::pair(dir.path(), serde_json::json!({"model": "goroutines"}), threads, 8, 1_000);
    let pid = app.tiers().iter().find(|tier| tier.service == "back").expect("runs").pid;
    assert!(support::at_once(app.entry(), 1).0[0].expect("answered").is_ok);
    kill(pid, "-KILL");
    let mut deaths = Vec::new();
    eventually("the death is reported", || {
        deaths.extend(app.reap());
        !deaths.is_empty()
    });
    assert_eq!((&*deaths[0].service, deaths.len()), ("back", 1));
    assert!(!support::at_once(app.entry(), 1).0[0].expect("answered").is_ok, "the callee is gone");
    app.restart("back").expect("comes up");
    assert!(support::at_once(app.entry(), 1).0[0].expect("answered").is_ok, "the pool connects again");
    app.stop();
}

#[test]
fn no_process_is_left_behind_however_the_application_ends() {
    for (signal, is_clean) in [("-TERM", true), ("-INT", true), ("-KILL", false)] {
        let mut app = Command::new(program())
            .args(["app", "--topology", "fanout", "--base-port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut pids = Vec::new();
        for line in BufReader::new(app.stdout.take().expect("piped")).lines() {
            let line = line.expect("text");
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [_, _, "pid", pid] => pids.push(pid.parse::<u32>().expect("a number")),
                _ => break,
            }
        }
        assert_eq!(pids.len(), 12, "a process per tier");
        assert!(pids.iter().all(|pid| is_running(*pid)));
        kill(app.id(), signal);
        let status = app.wait().expect("ends");
        assert_eq!(status.success(), is_clean, "{signal}: {status}");
        eventually("all tiers end", || !pids.iter().any(|pid| is_running(*pid)));
    }
}

fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill is there");
    assert!(status.success());
}

/// Whether the process is there and no zombie.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}
