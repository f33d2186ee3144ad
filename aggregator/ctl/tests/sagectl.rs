//! `sagectl` against canned answers: the text for people, the JSON for programs, and the exit codes.

mod support;

use std::net::TcpListener;

use support::{Canned, assert_fits, complaint, sagectl, text};

const STATUS: &str = include_str!("canned/status.json");
const INCIDENT: &str = include_str!("canned/incident.json");
const UNKNOWN: &str = include_str!("canned/unknown.json");
const UNDIAGNOSED: &str = include_str!("canned/undiagnosed.json");
const ACTIONS: &str = include_str!("canned/actions.json");
const GRAPH: &str = include_str!("canned/graph.json");
const MODELS: &str = include_str!("canned/models.json");
const SUGGEST: &str = include_str!("canned/suggest.json");

fn canned() -> Canned {
    let incidents = format!("[{INCIDENT}]");
    let answers = [
        ("GET /api/v1/status", STATUS),
        ("GET /api/v1/incidents", &incidents),
        ("GET /api/v1/incidents/7", INCIDENT),
        ("GET /api/v1/incidents/8", UNKNOWN),
        ("GET /api/v1/incidents/9", UNDIAGNOSED),
        ("GET /api/v1/actions", ACTIONS),
        ("GET /api/v1/graph", GRAPH),
        ("GET /api/v1/models", MODELS),
        ("GET /api/v1/slo/suggest?percentile=99", SUGGEST),
        ("POST /api/v1/freeze", "{}"),
        ("POST /api/v1/actions/11/approve", "{}"),
        ("PUT /api/v1/slos", "{}"),
    ];
    Canned::start(answers.map(|(question, answer)| (question, answer.as_bytes().to_vec())))
}

#[test]
fn status_says_what_is_wrong_and_exits_by_it() {
    let server = canned();
    let output = server.run(&["status"]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_fits(&text);
    for piece in ["DEGRADED", "! node-b is not connected", "generation 4", "up 1 h 2 min", "48.3 ms", "GET /hotels"] {
        assert!(text.contains(piece), "{piece:?} is not in\n{text}");
    }
}

#[test]
fn json_output_is_the_api_answer_itself() {
    let server = canned();
    let shown: serde_json::Value =
        serde_json::from_slice(&server.run(&["status", "--output", "json"]).stdout).expect("JSON");
    let sent: serde_json::Value = serde_json::from_str(STATUS).expect("JSON");
    assert_eq!(shown, sent);
}

#[test]
fn explain_tells_the_whole_chain_in_plain_words() {
    let server = canned();
    let output = server.run(&["explain", "7"]);
    let text = text(&output);
    assert!(output.status.success(), "{}", complaint(&output));
    assert_fits(&text);
    for piece in [
        "Incident 7: search is over its target (resolved after 1 min 1 s)",
        "p99 of GET /hotels on service frontend was 184 ms; its target is 50.0 ms.",
        "since 2026-11-21 22:10:04 UTC; the cause was named 1 s later",
        "The cause is geo: processor time (93 % sure of that), in replica sage-demo/node-a/geo only.",
        "41.2 ms instead of 184 ms (target 50.0 ms), and the target met with 97 % probability",
        "time slices cut short by its CPU limit",
        "clients → frontend → search → geo",
        "cpu_quota(sage-demo/node-a/batch): no limit → 0.20 cores",
        "in force from 22:10:05 UTC for 2 min, then given back",
        "43.8 ms",
        "helped, given back after the target was met",
        "- profile reported no self times in the last window",
        "model generation 4, which had learnt from windows up to 12 s before",
    ] {
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(piece), "{piece:?} is not in\n{text}");
    }
    let geo = text.find("  geo ").expect("first candidate");
    assert!(geo < text.find("  rate ").expect("second candidate"), "best first:\n{text}");
}

#[test]
fn explain_says_plainly_when_nothing_is_known() {
    let server = canned();
    for (id, pieces) in [
        ("8", ["No cause could be named", "no traces of this operation arrived", "Nothing was changed on any node."]),
        ("9", ["objective gone (since removed)", "Not diagnosed yet", "no cause has been named yet"]),
    ] {
        let output = server.run(&["explain", id]);
        let text = text(&output);
        assert!(output.status.success(), "{}", complaint(&output));
        assert_fits(&text);
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for piece in pieces {
            assert!(flat.contains(piece), "{piece:?} is not in\n{text}");
        }
    }
}

#[test]
fn lists_fit_the_screen() {
    let server = canned();
    for (arguments, piece) in [
        (&["incidents"][..], "geo (cpu)"),
        (&["incidents", "--open"], "No incidents."),
        (&["actions"], "needs approval"),
        (&["graph"], "(clients)"),
        (&["model"], "new level: self time +98 %"),
        (&["model"], "2 min"),
        (&["slo", "list"], "GET /hotels"),
        (&["slo", "suggest"], "57.9 ms"),
    ] {
        let output = server.run(arguments);
        let text = text(&output);
        assert!(output.status.success(), "{arguments:?}: {}", complaint(&output));
        assert_fits(&text);
        assert!(text.contains(piece), "{arguments:?}: {piece:?} is not in\n{text}");
    }
}

#[test]
fn setting_an_objective_keeps_the_others() {
    let server = canned();
    let output = server.run(&["slo", "set", "frontend", "shop:frontend:GET /a:p95<20ms"]);
    assert!(output.status.success(), "{}", complaint(&output));
    let asked = server.asked();
    let put = asked.iter().find_map(|note| note.strip_prefix("PUT /api/v1/slos ")).expect("a PUT");
    let put: serde_json::Value = serde_json::from_str(put).expect("JSON");
    let names: Vec<&str> = put.as_array().expect("a list").iter().filter_map(|slo| slo["name"].as_str()).collect();
    assert_eq!(names, ["search", "frontend", "shop"]);
    assert_eq!(put[2]["operation"], "GET /a");
    assert_eq!(put[2]["target_ms"], 20.0);
}

#[test]
fn removing_and_adopting_what_is_not_there_is_refused() {
    let server = canned();
    for (arguments, piece) in [
        (["slo", "remove", "nothing"], "no objective is called"),
        (["slo", "set", "nothing"], "no suggestion is called"),
    ] {
        let output = server.run(&arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(complaint(&output).contains(piece), "{}", complaint(&output));
    }
    assert!(!server.asked().iter().any(|note| note.starts_with("PUT")), "nothing may change");
}

#[test]
fn orders_are_posted() {
    let server = canned();
    assert!(server.run(&["freeze"]).status.success());
    assert!(server.run(&["approve", "11"]).status.success());
    assert_eq!(server.asked(), ["POST /api/v1/freeze", "POST /api/v1/actions/11/approve"]);
}

#[test]
fn a_refusal_is_told_in_the_servers_words() {
    let server = canned();
    let output = server.run(&["explain", "99"]);
    assert_eq!(output.status.code(), Some(1));
    let complaint = complaint(&output);
    assert!(complaint.contains("/api/v1/incidents/99") && complaint.contains("no such thing"), "{complaint}");
}

#[test]
fn nobody_there_is_said_with_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let output = sagectl(&["--url", &url, "status"]);
    assert_eq!(output.status.code(), Some(2));
    let complaint = complaint(&output);
    assert!(complaint.contains(&format!("cannot reach {url}")) && complaint.contains("--url"), "{complaint}");
}

#[test]
fn completion_scripts_name_the_commands() {
    let output = sagectl(&["completion", "bash"]);
    assert!(output.status.success() && text(&output).contains("explain"));
}
