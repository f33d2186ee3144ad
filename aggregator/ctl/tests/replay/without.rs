//! Recordings that lack something: they say what, and answer with what they have.

use super::fixture::*;

#[test]
fn spans_without_a_kind_get_it_from_who_called_whom() {
    let place = Place::new();
    let without = usual().replace("\"kind\":2,", "").replace("\"kind\":3,", "\"kind\":0,");
    let output = ask(&["--traces", &place.file("kindless", without)]);
    assert_eq!(named(&output), "stock", "{}", out(&output));
    assert!(not_used(&output).contains("16000 spans without a kind"), "{}", not_used(&output));
}

#[test]
fn callers_alone_tell_whom_they_waited_for() {
    let place = Place::new();
    let is_front = |line: &&str| line.contains("front::web");
    let with_peers: String = usual()
        .lines()
        .filter(is_front)
        .map(|line| {
            let peer = |name: &str| {
                let name = format!("\"name\":\"{name}\",");
                let attribute = "\"attributes\":[{\"key\":\"peer.service\",\"value\":{\"stringValue\":";
                (name.clone(), format!("{name}{attribute}{}}}}}],", name[7..].trim_end_matches(',')))
            };
            let (stock, cart) = (peer("stock"), peer("cart"));
            format!("{}\n", line.replace(&stock.0, &stock.1).replace(&cart.0, &cart.1))
        })
        .collect();
    let output = ask(&["--traces", &place.file("one-sided", with_peers)]);
    assert_eq!(named(&output), "stock", "{}", out(&output));
}

#[test]
fn callees_alone_still_name_who_is_slow() {
    let place = Place::new();
    let served: String =
        usual().lines().filter(|line| !line.contains("front::web")).map(|line| format!("{line}\n")).collect();
    let output = ask(&["--traces", &place.file("served", served)]);
    assert_eq!(named(&output), "stock", "{}", out(&output));
}

#[test]
fn without_metrics_the_service_is_named_and_what_is_missing_is_said() {
    let place = Place::new();
    let output = ask(&["--traces", &place.file("traces.jsonl", usual())]);
    let answer = first(&output);
    assert_eq!(answer["ranking"][0], "stock");
    assert!(answer["verdict"]["missing"].to_string().contains("metrics of stock"), "{answer}");
}

#[test]
fn percentiles_and_a_given_graph_stand_in_for_spans() {
    let place = Place::new();
    let metrics = place.file("m", percentiles(0..90, 80..88));
    let graph = place.file("graph.json", GRAPH);
    let period = period(80 * 60..88 * 60);
    let output = ask_about(&period, &["--metrics", &metrics, "--graph", &graph]);
    let answer = first(&output);
    assert_eq!((&answer["ranking"][0], &answer["latencies"]), (&"stock".into(), &"metrics".into()), "{answer}");
    let edges = place.file("edges.csv", "front::web,stock\nfront::web,cart\n");
    assert_eq!(out(&ask_about(&period, &["--metrics", &metrics, "--edges", &edges])), out(&output));
    let text = out(&sagectl(&["replay", "--metrics", &metrics, "--graph", &graph, "--diagnose", &period]));
    assert!(text.contains("windows of 60 s with latencies from recorded percentiles"), "{text}");
    let broken = out(&sagectl(&["replay", "--metrics", &metrics, "--graph", &graph]));
    assert!(broken.contains("culprit: stock"), "{broken}");
}

#[test]
fn histograms_stand_in_for_spans() {
    let place = Place::new();
    let metrics = place.file("m", histograms(0..90, 80..88));
    let edges = place.file("edges.csv", "front::web,stock\nfront::web,cart\n");
    let output = ask_about(&period(80 * 60..88 * 60), &["--metrics", &metrics, "--edges", &edges]);
    let answer = first(&output);
    assert_eq!((&answer["ranking"][0], &answer["latencies"]), (&"stock".into(), &"metrics".into()), "{answer}");
    let us = answer["added"][0]["us"].as_f64().expect("a number");
    assert!((50e3..70e3).contains(&us), "what stock took longer: {us}");
}

#[test]
fn who_begins_to_fail_is_named_though_nothing_is_slow() {
    let place = Place::new();
    let metrics = place.file("m", failures(0..90, 80..88));
    let edges = place.file("edges.csv", "front::web,stock\nfront::web,cart\n");
    let ask = |minutes: std::ops::Range<u64>| {
        first(&ask_about(&period(60 * minutes.start..60 * minutes.end), &["--metrics", &metrics, "--edges", &edges]))
    };
    let answer = ask(80..88);
    assert_eq!((&answer["ranking"][0], &answer["by"]), (&"stock".into(), &"failures".into()), "{answer}");
    assert_eq!(answer["resource"], "software");
    assert!(answer["p"].as_f64().expect("a number") > 0.8, "{answer}");
    let calm = ask(60..68);
    assert!(calm["p"].as_f64().expect("a number") < 0.5 && calm["failing"].is_null(), "{calm}");
}

#[test]
fn times_without_traces_are_watched_by_percentiles() {
    let place = Place::new();
    // Ten minutes of traces at first; a target breaks an hour later.
    let files = [place.file("t", traces(0..600, 0..0)), place.file("m", percentiles(0..120, 100..108))];
    let text = out(&sagectl(&["replay", "--traces", &files[0], "--metrics", &files[1]]));
    assert!(text.contains("culprit: stock") && text.contains("latencies from recorded percentiles"), "{text}");
}

#[test]
fn a_workflow_that_nobody_waits_for_takes_no_blame() {
    let place = Place::new();
    let files = [place.file("m", percentiles(0..90, 80..88)), place.file("w", workflow(0..90, 80..88))];
    let calls = "front::web,stock\nfront::web,cart\nfront::web,workflow\n";
    let edges = place.file("edges.csv", calls);
    let output =
        ask_about(&period(80 * 60..88 * 60), &["--metrics", &files[0], "--metrics", &files[1], "--edges", &edges]);
    let answer = first(&output);
    assert_eq!((&answer["ranking"][0], &answer["added"][0]["service"]), (&"stock".into(), &"stock".into()), "{answer}");
    let us = answer["added"][0]["us"].as_f64().expect("a number");
    assert!((60e3..90e3).contains(&us), "what stock took longer: {us}");
    assert!(!answer["added"].to_string().contains("workflow"), "{answer}");
}

#[test]
fn where_traces_are_missing_for_a_time_percentiles_answer() {
    let place = Place::new();
    // Traces of the first ten minutes teach who calls whom; the incident is an hour later.
    let traces = place.file("t", traces(0..100, 0..0));
    let metrics = place.file("m", percentiles(0..90, 80..88));
    let period = period(80 * 60..88 * 60);
    let output = ask_about(&period, &["--traces", &traces, "--metrics", &metrics]);
    let answer = first(&output);
    assert_eq!((&answer["ranking"][0], &answer["latencies"]), (&"stock".into(), &"metrics".into()), "{answer}");
}

#[test]
fn usage_alone_is_said_to_be_too_little() {
    let place = Place::new();
    let output = ask(&["--metrics", &place.file("metrics.jsonl", metrics(SECONDS, BROKEN))]);
    assert!(first(&output)["problem"].as_str().expect("text").contains("no window with latencies"), "{}", out(&output));
    assert!(said(&output)["notes"].to_string().contains("There are no latencies in this recording"));
}

#[test]
fn periods_outside_the_data_are_said_to_be_so() {
    let place = Place::new();
    let file = place.file("traces.jsonl", usual());
    let problem = |train: &str, diagnose: &str| {
        let output = sagectl(&["replay", "--json", "--traces", &file, "--train", train, "--diagnose", diagnose]);
        first(&output)["problem"].as_str().expect("no answer").to_owned()
    };
    let text = problem(&period(5_000..6_000), &period(BROKEN));
    assert!(text.contains("no window with latencies lies in the time to learn from"), "{text}");
    let text = problem(&period(0..100), &period(5_000..6_000));
    assert!(text.contains("no window with latencies lies in the period"), "{text}");
    let output = sagectl(&["replay", "--traces", &file, "--train", &period(5_000..6_000)]);
    assert!(out(&output).contains("The recording ended before enough was learnt"), "{}", out(&output));
}
