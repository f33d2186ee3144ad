//! Incidents as files at the command line: exported, replayed, scored, and asked what would have been.
#![allow(clippy::disallowed_methods, reason = "these tests are about files")]

mod support;

use std::{path::Path, sync::Arc};

use sage_aggregator::{
    core::{Incident, Label, TrueCause},
    incident_file::{IncidentFile, Story, format},
};
use sage_causal::{
    TrainOptions,
    testing::{Fault, World},
    train,
    verdict::Resource,
};
use sage_common::{Generation, ServiceId, Timestamp};
use serde_json::Value;
use support::{Canned, assert_fits, complaint, sagectl, text};

/// Incident `id`: the chain application with `fault`, labelled with `truth`.
fn incident(id: u64, fault: Fault, truth: Option<(&str, Resource)>) -> IncidentFile {
    let world = World::chain();
    let slo = world.slo();
    let options = TrainOptions { cvae_windows_min: usize::MAX, ..TrainOptions::default() };
    let history = world.windows(11, 0, 60, &[]);
    let (model, _) = train(&history, std::slice::from_ref(&slo), None, &options).expect("healthy history");
    let mut recent = world.windows(11, 60, 2, &[]);
    recent.extend(world.windows(11, 62, 3, &[fault]));
    let verdict = model.diagnose(&recent, &slo);
    let at = Timestamp::from_micros(1_700_000_000_000_000 + id);
    let cause = |(service, resource): (&str, Resource)| TrueCause {
        service: ServiceId::sanitized(service),
        resource: Some(resource),
    };
    let incident = Incident {
        id,
        slo: slo.name.clone(),
        opened_at: at,
        opened_close: 62,
        resolved_at: None,
        latency: verdict.observed,
        target: slo.target,
        verdicts: Vec::new(),
        actions: Vec::new(),
        waiting: None,
        is_planned: true,
    };
    let label = truth.map(|truth| Label::new(vec![cause(truth)], at).expect("one"));
    IncidentFile {
        made_by: "test".into(),
        fleet: "shop".into(),
        exported_at: at,
        story: Some(Story { incident, verdict, label, actions: Vec::new() }),
        slo,
        generation: Generation(1),
        graph: Default::default(),
        windows: recent.into_iter().map(Arc::new).collect(),
        model: Arc::new(model.to_bytes()),
    }
}

fn slow_logic() -> IncidentFile {
    incident(3, Fault::Cpu(2, 12.0), Some(("logic", Resource::Cpu)))
}

fn bytes(file: &IncidentFile) -> Vec<u8> {
    format::write(file).expect("short")
}

fn put(dir: &Path, name: &str, file: &IncidentFile) -> String {
    let path = dir.join(name);
    std::fs::write(&path, bytes(file)).expect("space");
    path.to_str().expect("text").to_owned()
}

fn json(arguments: &[&str]) -> Value {
    let output = sagectl(arguments);
    serde_json::from_str(&text(&output)).unwrap_or_else(|error| panic!("{error}: {}", complaint(&output)))
}

#[test]
fn an_exported_incident_is_written_once_and_replays_to_the_same_verdict() {
    let canned = Canned::start([("GET /api/v1/incidents/3/export", bytes(&slow_logic()))]);
    let dir = tempfile::tempdir().expect("tmp");
    let path = dir.path().join("slow.incident");
    let path = path.to_str().expect("text");
    let output = canned.run(&["incidents", "export", "3", path]);
    assert!(output.status.success(), "{}", complaint(&output));
    assert!(text(&output).contains("replays to the same verdict, bit for bit"), "{}", text(&output));
    let again = canned.run(&["incidents", "export", "3", path]);
    assert!(!again.status.success() && complaint(&again).contains("cannot write"), "{}", complaint(&again));
    assert!(canned.run(&["incidents", "export", "3", path, "--force"]).status.success());

    let output = sagectl(&["replay", path]);
    assert!(output.status.success(), "{}", complaint(&output));
    let told = text(&output);
    assert_fits(&told);
    assert!(told.contains("logic (cpu)") && told.contains("The same verdict as when it was given"), "{told}");
    assert_eq!(json(&["replay", path, "--output", "json"])["is_same"], true);
    let missing = canned.run(&["incidents", "export", "4", path, "--force"]);
    assert!(complaint(&missing).contains("no such thing"), "{}", complaint(&missing));
}

#[test]
fn another_verdict_is_shown_and_the_exit_code_says_so() {
    let dir = tempfile::tempdir().expect("tmp");
    let mut file = slow_logic();
    if let Some(story) = &mut file.story {
        story.verdict.p_restored = 0.125;
    }
    let path = put(dir.path(), "other.incident", &file);
    let output = sagectl(&["replay", &path]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output);
    assert!(told.contains("Another verdict") && told.contains("p_restored") && told.contains("0.125"), "{told}");
    assert!(complaint(&output).contains("gives another verdict than it holds"), "{}", complaint(&output));
}

#[test]
fn a_file_that_is_none_is_refused_with_its_name() {
    let dir = tempfile::tempdir().expect("tmp");
    let path = put(dir.path(), "cut.incident", &slow_logic());
    let whole = std::fs::read(&path).expect("written");
    for (content, problem) in [(&whole[..whole.len() / 2], "cut short"), (b"hello, world", "no incident file")] {
        std::fs::write(&path, content).expect("space");
        for arguments in [&["replay", &path][..], &["whatif", &path, "--set", "logic=normal"]] {
            let output = sagectl(arguments);
            let complaint = complaint(&output);
            assert!(!output.status.success() && complaint.contains(problem), "{complaint}");
            assert!(complaint.contains("cut.incident"), "{complaint}");
        }
    }
}

#[test]
fn a_label_is_sent_after_its_service_was_found_in_the_graph() {
    let graph = br#"{"services": [{"name": "logic", "instances": 1, "nodes": ["a"]}], "edges": []}"#;
    let canned = Canned::start([
        ("GET /api/v1/graph", graph.to_vec()),
        ("PUT /api/v1/incidents/3/label", b"{}".to_vec()),
        ("DELETE /api/v1/incidents/3/label", b"{}".to_vec()),
    ]);
    let output = canned.run(&["incidents", "label", "3", "--truth", "logik:cpu"]);
    assert!(complaint(&output).contains("did you mean logic?"), "{}", complaint(&output));
    let output = canned.run(&["incidents", "label", "3", "--truth", "logic:cpus"]);
    assert!(complaint(&output).contains("did you mean cpu?"), "{}", complaint(&output));
    assert!(canned.run(&["incidents", "label", "3", "--truth", "logic:cpu"]).status.success());
    assert!(canned.run(&["incidents", "label", "3", "--truth", "mainframe", "--untraced"]).status.success());
    assert!(canned.run(&["incidents", "label", "3", "--clear"]).status.success());
    let sent: Vec<String> = canned.asked().into_iter().filter(|asked| asked.contains("/label")).collect();
    assert_eq!(
        sent,
        [
            r#"PUT /api/v1/incidents/3/label [{"resource":"cpu","service":"logic"}]"#,
            r#"PUT /api/v1/incidents/3/label [{"resource":null,"service":"mainframe"}]"#,
            "DELETE /api/v1/incidents/3/label",
        ]
    );
}

#[test]
fn a_folder_of_incidents_is_scored_by_its_labels() {
    let dir = tempfile::tempdir().expect("tmp");
    put(dir.path(), "right.incident", &slow_logic());
    put(dir.path(), "wrong.incident", &incident(4, Fault::Disk(4, 12.0), Some(("front", Resource::Memory))));
    put(dir.path(), "unlabelled.incident", &incident(5, Fault::Cpu(1, 12.0), None));
    std::fs::write(dir.path().join("notes.txt"), "nothing of ours").expect("space");
    let (folder, out) = (dir.path().to_str().expect("text"), dir.path().join("out.json"));
    let output = sagectl(&["eval", folder, "--json", out.to_str().expect("text")]);
    assert!(output.status.success(), "{}", complaint(&output));
    let table = text(&output);
    let all = table.lines().find(|line| line.trim_start().starts_with("all")).expect("a row of all");
    assert_eq!(all.split_whitespace().skip(1).take(2).collect::<Vec<_>>(), ["2", "0.500"], "{table}");
    assert!(complaint(&output).contains("1 incidents without a label are left out"), "{}", complaint(&output));
    let predictions: Value = serde_json::from_slice(&std::fs::read(&out).expect("written")).expect("JSON");
    assert_eq!((&predictions[0]["id"], &predictions[0]["ranking"][0]), (&"right".into(), &"logic".into()));
    assert_eq!(predictions[0]["resource"], "cpu");
    std::fs::remove_file(dir.path().join("right.incident")).expect("there");
    std::fs::remove_file(dir.path().join("wrong.incident")).expect("there");
    let output = sagectl(&["eval", folder]);
    assert!(complaint(&output).contains("none of the 1 incidents"), "{}", complaint(&output));
}

#[test]
fn what_if_answers_from_a_file_an_incident_and_the_live_system_alike() {
    let file = slow_logic();
    let dir = tempfile::tempdir().expect("tmp");
    let path = put(dir.path(), "slow.incident", &file);
    let live = IncidentFile { story: None, ..file.clone() };
    let canned = Canned::start([
        ("GET /api/v1/incidents/3/export", bytes(&file)),
        ("GET /api/v1/export", bytes(&live)),
        ("GET /api/v1/export?slo=home%20page", bytes(&live)),
    ]);
    let set = ["--set", "logic=normal"];
    let told = [
        sagectl(&[&["whatif", &path][..], &set].concat()),
        canned.run(&[&["whatif", "--incident", "3"][..], &set].concat()),
        canned.run(&[&["whatif"][..], &set].concat()),
        canned.run(&[&["whatif", "--slo", "home page"][..], &set].concat()),
    ]
    .map(|output| {
        assert!(output.status.success(), "{}", complaint(&output));
        assert_fits(&text(&output));
        text(&output).split_once("\n  with ").expect("what was set").1.to_owned()
    });
    assert!(told.iter().all(|answer| *answer == told[0]), "{told:#?}");
    assert!(told[0].contains("p99 (target)") && told[0].contains("The target would be met with"), "{}", told[0]);
    let answer = json(&["whatif", &path, "--set", "logic=normal", "--json"]);
    assert_eq!(answer["distribution"].as_array().map(Vec::len), Some(6), "{answer:#}");
    assert!(answer["p_met"].as_f64() > Some(0.9) && answer["p_met_observed"].as_f64() < Some(0.1), "{answer:#}");
}

#[test]
fn the_smallest_repair_is_told_and_unknown_names_are_met_with_near_ones() {
    let dir = tempfile::tempdir().expect("tmp");
    let path = put(dir.path(), "slow.incident", &slow_logic());
    let output = sagectl(&["whatif", &path, "--minimum-fix", "50%"]);
    assert_fits(&text(&output));
    assert!(text(&output).contains("The fewest that meet the target"), "{}", text(&output));
    let fix = json(&["whatif", &path, "--minimum-fix", "0.5", "--output", "json"]);
    assert_eq!((&fix["is_enough"], &fix["parts"][0]["service"]), (&true.into(), &"logic".into()), "{fix:#}");
    for (set, hint) in
        [("logik=normal", "did you mean logic?"), ("logic.cpu_trottled=p50", "did you mean cpu_throttled")]
    {
        let output = sagectl(&["whatif", &path, "--set", set]);
        assert!(!output.status.success() && complaint(&output).contains(hint), "{}", complaint(&output));
    }
    let output = sagectl(&["whatif", &path, "--set", "logic=fast"]);
    assert!(complaint(&output).contains("want SERVICE=normal"), "{}", complaint(&output));
}
