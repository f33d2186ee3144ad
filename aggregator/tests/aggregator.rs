//! The real program: certificates, QUIC, the log, HTTP, signals, kill -9.
#![allow(clippy::disallowed_methods, reason = "these tests are about files and processes")]

mod support;

use sage_aggregator::{
    core::{Action, ActionChange, ActionState, IncidentChange, Proposal, Replica, ReplicaEvent, State},
    incident_file::format,
    replica::SingleReplica,
};
use sage_causal::{Model, observation::Observation, verdict::Resource};
use sage_common::{ActionId, Knob, Micros, Setting, Term, Timestamp};
use sage_protocol::{
    message::{CommandResult, HeldLease, Order, Outcome, RevertReason},
    quic::AgentLinkEvent,
    session::{AgentState, Disconnect},
};
use support::{Aggregator, Fleet, PATIENCE, command};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_assembled_and_nothing_acknowledged_is_lost_by_kill_9() {
    let fleet = Fleet::new();
    let aggregator = fleet.start();
    let (quic, http) = (aggregator.quic, aggregator.http);
    let mut agent = fleet.agent("node-a", 7, quic, AgentState::default());
    let (first_term, below, windows) = agent.connected().await;
    assert_eq!(below, 0);
    agent.deliver(&windows, 7, "node-a", 0..12).await;
    let status = aggregator.wait_for_status("12 windows", |status| status["windows"]["assembled"] == 12);
    assert_eq!(status["nodes"][0]["node"], "node-a");
    assert_eq!(status["nodes"][0]["windows"], 12);
    let current = status["slos"][0]["current_ms"].as_f64().expect("calls were seen");
    assert!((20.0..30.0).contains(&current), "{current} ms");
    aggregator.kill();

    let again = fleet.start_on(quic.port(), http.port());
    let (term, below, windows) = agent.connected().await;
    assert!(term > first_term, "{term} after {first_term}");
    assert_eq!(below, 12, "what was acknowledged is known");
    agent.deliver(&windows, 7, "node-a", 10..14).await;
    let status = again.wait_for_status("2 more windows", |status| status["windows"]["assembled"] == 14);
    assert_eq!(status["nodes"][0]["windows"], 14, "two came twice and count once");
    assert_eq!(status["term"], term.0);
    let (_, graph) = again.http("GET", "/api/v1/graph", "");
    assert!(graph.contains("frontend"), "{graph}");
    let (_, metrics) = again.http("GET", "/metrics", "");
    for line in [
        "sage_aggregator_node_windows_total 14",
        "sage_aggregator_slo_target_seconds{slo=\"shop\"} 0.05",
        "traces_service_graph_request_total{client=\"user\",server=\"frontend\"}",
    ] {
        assert!(metrics.contains(line), "{line:?} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_trained_beside_serving_and_survives_a_restart() {
    let fleet = Fleet::new();
    let config = fleet.config(0, 0) + "[learning]\nwindows_min = 10\n";
    let aggregator = Aggregator::start(&fleet.write_config(&config));
    let mut agent = fleet.agent("node-a", 1, aggregator.quic, AgentState::default());
    let (_, _, windows) = agent.connected().await;
    agent.deliver(&windows, 1, "node-a", 0..18).await;
    let status = aggregator.wait_for_status("a model", |status| status["model"]["generation"] == 1);
    assert!(status["model"]["windows_trained"].as_u64().expect("a number") >= 10, "{status:#}");
    let (code, cards) = aggregator.http("GET", "/api/v1/models", "");
    assert!(code == 200 && cards.contains("\"service\":\"frontend\""), "{cards}");
    aggregator.kill();
    let again = fleet.start();
    assert_eq!(again.status()["model"]["generation"], 1);
    let (code, bytes) = again.http_bytes("GET", "/api/v1/export?slo=shop", "");
    assert_eq!(code, 200);
    let file = format::read(bytes.as_slice()).expect("an incident file");
    assert_eq!((file.slo.name.as_str(), file.story), ("shop", None));
    let model = Model::from_bytes(&file.model).expect("the model in use");
    let recent: Vec<Observation> = file.windows.iter().map(|window| window.as_ref().clone()).collect();
    let answer = model.what_if(&recent, &file.slo, &["frontend=normal".parse().expect("a setting")]).expect("calls");
    assert!(answer.p_met > 0.5, "20 ms where 50 are allowed: {answer:?}");
    assert_eq!(again.http("GET", "/api/v1/export?slo=none", "").0, 404);
}

#[test]
fn a_label_survives_kill_9_and_an_incident_without_a_verdict_is_not_exported() {
    let fleet = Fleet::new();
    leave_an_action_in_force(&fleet);
    let aggregator = fleet.start();
    let label = "/api/v1/incidents/1/label";
    for (path, body, code) in [
        (label, r#"[{"service": "frontend", "resource": "cpu"}, {"service": "db"}]"#, 200),
        (label, r#"[{"service": "frontend", "resource": "luck"}]"#, 400),
        (label, "[]", 400),
        ("/api/v1/incidents/x/label", r#"[{"service": "db"}]"#, 400),
        ("/api/v1/incidents/9/label", r#"[{"service": "db"}]"#, 404),
    ] {
        assert_eq!(aggregator.http("PUT", path, body).0, code, "{path} {body}");
    }
    let (code, why) = aggregator.http("GET", "/api/v1/incidents/1/export", "");
    assert!(code == 409 && why.contains("incident 1 has no verdict yet"), "{code} {why}");
    assert_eq!(aggregator.http("GET", "/api/v1/incidents/9/export", "").0, 404);
    aggregator.kill();
    let again = fleet.start();
    let incident = |aggregator: &Aggregator| -> serde_json::Value {
        serde_json::from_str(&aggregator.http("GET", "/api/v1/incidents/1", "").1).expect("JSON")
    };
    let causes = &incident(&again)["label"]["causes"];
    assert_eq!(causes[0], serde_json::json!({"service": "frontend", "resource": "cpu"}));
    assert_eq!(causes[1]["service"], "db");
    assert_eq!(again.http("DELETE", label, "").0, 200);
    assert!(incident(&again)["label"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_another_fleet_is_refused() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let aggregator = fleet.start();
    let mut stranger = other.agent("node-a", 1, aggregator.quic, AgentState::default());
    match stranger.next().await {
        AgentLinkEvent::Disconnected(Disconnect::Unreachable(why) | Disconnect::Lost(why)) => {
            assert!(why.contains("certificate"), "{why}");
        }
        event => panic!("{event:?}"),
    }
    let mut member = fleet.agent("node-a", 1, aggregator.quic, AgentState::default());
    member.connected().await;
    let nodes = aggregator.wait_for_status("the member", |status| status["nodes"][0]["connected"] == true);
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_has_seen_a_higher_term_is_led_by_a_still_higher_one() {
    let fleet = Fleet::new();
    let aggregator = fleet.start();
    let state = AgentState { term: Term(40), ..AgentState::default() };
    let mut agent = fleet.agent("node-a", 1, aggregator.quic, state);
    let (term, _, windows) = agent.connected().await;
    assert_eq!(term, Term(41));
    agent.deliver(&windows, 1, "node-a", 0..2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_takes_settings_back_and_exits_0() {
    let fleet = Fleet::new();
    let held = leave_an_action_in_force(&fleet);
    let aggregator = fleet.start();
    let state = AgentState { term: Term(1), held: vec![held], ..AgentState::default() };
    let mut agent = fleet.agent("node-a", 1, aggregator.quic, state);
    agent.connected().await;
    aggregator.wait_for_status("connected", |status| status["nodes"][0]["connected"] == true);
    aggregator.terminate();
    loop {
        match agent.next().await {
            AgentLinkEvent::Command(command) if command.order == Order::Revoke => {
                assert_eq!(command.action, ActionId(1));
                break;
            }
            AgentLinkEvent::Disconnected(why) => panic!("gone without taking the setting back: {why}"),
            _ => {}
        }
    }
    agent
        .link
        .report(CommandResult { action: ActionId(1), outcome: Outcome::Reverted(RevertReason::Revoked) })
        .expect("room");
    let (status, said) = tokio::task::spawn_blocking(|| aggregator.wait()).await.expect("no panic");
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!said.contains("not all nodes have answered"), "{said}");
    let (_replica, state) = SingleReplica::open(&fleet.state_dir(), State::new(10)).expect("whole");
    assert_eq!(state.actions()[&ActionId(1)].state, ActionState::Reverted);
}

#[test]
fn sigterm_exits_0_whatever_is_asked_meanwhile() {
    let fleet = Fleet::new();
    for round in 0..5 {
        let aggregator = fleet.start();
        let (code, _) = aggregator.http("GET", "/api/v1/status", "");
        assert_eq!(code, 200);
        aggregator.terminate();
        let (status, said) = aggregator.wait();
        assert_eq!(status.code(), Some(0), "round {round}: {said}");
    }
}

/// Writes the log of an aggregator that was killed with one action in force.
fn leave_an_action_in_force(fleet: &Fleet) -> HeldLease {
    let cgroup = "demo/batch".to_owned().try_into().expect("valid");
    let (knob, setting, at) = (Knob::CpuQuota { cgroup }, Setting::Cores(Some(200)), Timestamp::from_micros(1));
    let action = Action {
        id: ActionId(1),
        incident: 1,
        slo: "shop".into(),
        node: "node-a".parse().expect("valid"),
        knob: knob.clone(),
        setting: setting.clone(),
        before: Some(Setting::Cores(None)),
        service: "frontend".parse().expect("valid"),
        resource: Resource::Cpu,
        reason: "a test".into(),
        state: ActionState::Proposed,
        ending: None,
        answer: None,
        requested_at: at,
        applied_at: None,
        reverted_at: None,
        changed_close: 0,
        baseline: Micros::from_millis(90),
        predicted: Micros::from_millis(40),
        measured: None,
        hold_windows: 6,
    };
    let opened = IncidentChange::Opened {
        slo: "shop".into(),
        latency: Micros::from_millis(90),
        target: Micros::from_millis(50),
    };
    let entries = [
        Proposal::Incident { id: 1, at, change: opened },
        Proposal::Intent(Box::new(action)),
        Proposal::Action { id: ActionId(1), at, change: ActionChange::Applied { before: Setting::Cores(None) } },
    ];
    std::fs::create_dir_all(fleet.state_dir()).expect("created");
    let (mut replica, _) = SingleReplica::open(&fleet.state_dir(), State::new(10)).expect("new");
    let (sender, events) = std::sync::mpsc::channel();
    replica.subscribe(Box::new(move |event| sender.send(event).expect("listening")));
    let count = entries.len();
    for entry in entries {
        replica.propose(entry).expect("space");
    }
    let is_commit = |event: &ReplicaEvent| matches!(event, ReplicaEvent::Committed { .. });
    let mut committed = 0;
    while committed < count {
        committed += usize::from(is_commit(&events.recv_timeout(PATIENCE).expect("in time")));
    }
    HeldLease { action: ActionId(1), knob, setting, remaining: Micros::from_secs(30) }
}

#[test]
fn a_second_aggregator_on_one_state_dir_is_told_who_has_it() {
    let fleet = Fleet::new();
    let aggregator = fleet.start();
    let config = fleet.write_config(&fleet.config(0, 0));
    let output = command().args(["run", "--config"]).arg(config).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let complaint = text(&output.stderr);
    assert!(complaint.contains("is in use by another sage-aggregator"), "{complaint}");
    assert_eq!(aggregator.status()["state"], "healthy", "the first one is not disturbed");
}

#[test]
fn what_cannot_be_used_at_start_is_said_with_what_to_do() {
    let fleet = Fleet::new();
    let good = fleet.config(0, 0);
    for (config, piece) in [
        (good.replace("a-1.pem", "nothing.pem"), "nothing.pem"),
        (good.replace("name = \"a-1\"", "fleet = \"elsewhere\""), "the certificate is of fleet local"),
        (good.replace("a-1.", "node-a."), "is not an aggregator"),
        (good.replace("length_ms = 1000", "lenght_ms = 1000"), "did you mean `length_ms`?"),
        (good.replace("length_ms = 1000", "length_ms = 10"), "window.length_ms = 10"),
    ] {
        let path = fleet.write_config(&config);
        let output = command().args(["run", "--config"]).arg(path).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let complaint = text(&output.stderr);
        assert!(complaint.contains(piece), "{piece:?} is not in\n{complaint}");
    }
}

#[test]
fn a_damaged_log_stops_the_start_and_is_named() {
    let fleet = Fleet::new();
    std::fs::create_dir_all(fleet.state_dir()).expect("created");
    std::fs::write(fleet.state_dir().join("log.redb"), vec![42; 20_000]).expect("written");
    let config = fleet.write_config(&fleet.config(0, 0));
    let output = command().args(["run", "--config"]).arg(config).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let complaint = text(&output.stderr);
    assert!(complaint.contains("log.redb is damaged") && complaint.contains("Move the file away"), "{complaint}");
}

#[test]
fn configuration_is_validated_shown_and_explained_without_running() {
    let fleet = Fleet::new();
    let path = fleet.write_config(&fleet.config(7443, 7480));
    let run = |arguments: &[&str]| command().args(arguments).arg("--config").arg(&path).output().expect("it runs");
    assert!(text(&run(&["config", "validate"]).stdout).contains(": valid"));
    let shown = text(&run(&["config", "show"]).stdout);
    assert!(shown.contains("verify_windows = 2") && shown.contains("name = \"shop\""), "{shown}");
    let default = text(&run(&["config", "default"]).stdout);
    assert!(default.contains("# Length of one observation window"), "{default}");
    let missing = command().args(["config", "validate", "--config", "/nonexistent.toml"]).output().expect("it runs");
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("config default"), "{}", text(&missing.stderr));
}

#[test]
fn the_api_answers_bad_questions_with_a_reason() {
    let fleet = Fleet::new();
    let aggregator = fleet.start();
    let slo = r#"[{"name": "a", "service": "s", "percentile": 99, "target_ms": 10}]"#;
    for (method, path, body, status, piece) in [
        ("GET", "/healthz", "", 200, "ok"),
        ("GET", "/readyz", "", 200, "ready"),
        ("GET", "/nowhere", "", 404, "no such path"),
        ("GET", "/api/v1/windows?last=0", "", 400, "want 1 to"),
        ("GET", "/api/v1/windows?last=99999999", "", 400, "want 1 to"),
        ("GET", "/api/v1/windows?last=many", "", 400, "error"),
        ("GET", "/api/v1/windows?first=1", "", 400, "error"),
        ("GET", "/api/v1/windows?last=5", "", 200, "[]"),
        ("GET", "/api/v1/slo/suggest?percentile=0", "", 400, "want 1 to 100"),
        ("GET", "/api/v1/slo/suggest?percentile=NaN", "", 400, "want 1 to 100"),
        ("GET", "/api/v1/models", "", 200, "[]"),
        ("GET", "/api/v1/incidents/1", "", 404, "no incident 1"),
        ("GET", "/api/v1/incidents/one", "", 400, "a number"),
        ("POST", "/api/v1/actions/1/approve", "", 404, "no action 1"),
        ("PUT", "/api/v1/slos", "{", 400, "want a list"),
        ("PUT", "/api/v1/slos", &slo.replace("99", "0"), 400, "slo.percentile"),
        ("PUT", "/api/v1/slos", &"x".repeat(100_000), 413, "error"),
        ("PUT", "/api/v1/slos", slo, 200, "{}"),
        ("GET", "/api/v1/status", "", 200, "\"name\":\"a\""),
    ] {
        let (found, answer) = aggregator.http(method, path, body);
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert!(answer.contains(piece), "{method} {path}: {piece:?} is not in {answer}");
    }
}

#[test]
fn orders_are_durable_when_they_are_answered() {
    let fleet = Fleet::new();
    let aggregator = fleet.start();
    assert_eq!(aggregator.http("POST", "/api/v1/freeze", "").0, 200);
    let shop = r#"{"name": "shop", "service": "frontend", "percentile": 99.0, "target_ms": 50.0}"#;
    let cart = r#"{"name": "cart", "service": "cart", "percentile": 95.0, "target_ms": 20.0}"#;
    assert_eq!(aggregator.http("PUT", "/api/v1/slos", &format!("[{shop}, {cart}]")).0, 200);
    aggregator.kill();
    let again = fleet.start();
    let status = again.status();
    assert_eq!(status["frozen"], true);
    let names: Vec<&str> = status["slos"].as_array().expect("list").iter().filter_map(|s| s["name"].as_str()).collect();
    assert_eq!(names, ["shop", "cart"]);
    assert_eq!(again.http("POST", "/api/v1/thaw", "").0, 200);
    assert_eq!(again.status()["frozen"], false);
}
