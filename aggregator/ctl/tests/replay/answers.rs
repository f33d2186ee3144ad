//! Whole recordings get the right answer, whatever they are packed in and however they are cut up.

use std::{fs, io::Write};

use prost::Message;
use serde_json::Value;

use super::fixture::*;

fn gzipped(text: &str) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).expect("memory");
    gz.finish().expect("memory")
}

/// The same requests in protobuf, each behind four bytes of length.
fn protobuf(text: &str) -> Vec<u8> {
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest,
        common::v1::{AnyValue, KeyValue, any_value},
        resource::v1::Resource,
        trace::v1::{ResourceSpans, ScopeSpans, Span},
    };
    let number = |value: &Value| value.as_str().expect("digits").parse().expect("a number");
    let bytes = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex")).collect()
    };
    let mut all = Vec::new();
    for line in text.lines() {
        let request: Value = serde_json::from_str(line).expect("JSON");
        let of = &request["resourceSpans"][0];
        let name = of["resource"]["attributes"][0]["value"]["stringValue"].as_str().expect("named").to_owned();
        let value = Some(AnyValue { value: Some(any_value::Value::StringValue(name)) });
        let attributes = vec![KeyValue { key: "service.name".to_owned(), value, ..KeyValue::default() }];
        let span = |span: &Value| Span {
            trace_id: bytes(&span["traceId"]),
            span_id: bytes(&span["spanId"]),
            parent_span_id: bytes(&span["parentSpanId"]),
            name: span["name"].as_str().expect("named").to_owned(),
            kind: span["kind"].as_i64().expect("a kind") as i32,
            start_time_unix_nano: number(&span["startTimeUnixNano"]),
            end_time_unix_nano: number(&span["endTimeUnixNano"]),
            ..Span::default()
        };
        let spans = of["scopeSpans"][0]["spans"].as_array().expect("a list").iter().map(span).collect();
        let resource_spans = vec![ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }];
        let request = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        all.extend((request.len() as u32).to_be_bytes());
        all.extend(request);
    }
    all
}

#[test]
fn a_slow_service_is_named_with_its_resource_whatever_the_files_are_packed_in() {
    let place = Place::new();
    let (traces, metrics) = (usual(), metrics(SECONDS, BROKEN));
    let metrics = place.file("metrics.jsonl", metrics);
    let output = ask(&["--traces", &place.file("t.jsonl", &traces), "--metrics", &metrics]);
    let answer = first(&output);
    assert_eq!((&answer["ranking"][0], &answer["resource"]), (&"stock".into(), &"cpu".into()), "{}", out(&output));
    assert_eq!((&answer["verdict"]["kind"], &answer["latencies"]), (&"culprit".into(), &"spans".into()));
    assert_eq!(said(&output)["read"]["unknown_metrics"]["shop.baskets"], 51);
    let ranking: Vec<&str> = answer["ranking"].as_array().expect("list").iter().filter_map(Value::as_str).collect();
    assert!(ranking.contains(&"front::web"), "names are written as recorded: {ranking:?}");
    for (name, bytes) in [
        ("t.zst", zstd::encode_all(traces.as_bytes(), 1).expect("memory")),
        ("t.gz", gzipped(&traces)),
        ("t.pb", protobuf(&traces)),
    ] {
        let packed = ask(&["--traces", &place.file(name, bytes), "--metrics", &metrics]);
        assert_eq!(out(&packed), out(&output), "{name}: the same bytes");
    }
}

#[test]
fn two_runs_give_the_same_bytes() {
    let place = Place::new();
    let (traces, metrics) = (place.file("traces.jsonl", usual()), place.file("m", metrics(SECONDS, BROKEN)));
    let once = || out(&ask(&["--traces", &traces, "--metrics", &metrics]));
    assert_eq!(once(), once());
    let text = || out(&sagectl(&["replay", "--traces", &traces, "--train", &period(0..100)]));
    assert_eq!(text(), text());
}

#[test]
fn several_files_are_one_stream_in_time() {
    let place = Place::new();
    let whole = usual();
    let of = |service: &str| {
        let own = format!("\"stringValue\":\"{service}\"");
        whole.lines().filter(|line| line.contains(&own)).collect::<Vec<_>>().join("\n")
    };
    let [front, stock, cart] = SERVICES.map(|service| place.file(&service.replace(':', ""), of(service)));
    let split = ask(&["--traces", &cart, &stock, &front]);
    let together = ask(&["--traces", &place.file("all", &whole)]);
    assert_eq!(said(&split)["answers"], said(&together)["answers"], "{}", out(&split));
}

#[test]
fn without_a_period_broken_targets_are_found() {
    let place = Place::new();
    let broken = place.file("traces.jsonl", traces(0..SECONDS + 30, BROKEN));
    let calm = place.file("calm.jsonl", traces(0..100, 0..0));
    let train = period(0..100);
    let ask = |slo: &[&str]| sagectl(&[&["replay", "--traces", &broken, "--train", &train], slo].concat());
    for slo in [&[][..], &["--slo-auto"], &["--slo", "shop:front__web:p90<30ms"]] {
        let output = ask(slo);
        assert!(out(&output).contains("culprit: stock"), "{}{}", out(&output), told(&output));
    }
    let output = ask(&["--slo", "shop:front__web:p90<9s"]);
    assert!(out(&output).contains("No target was broken (1 watched)"), "{}", out(&output));
    let output = sagectl(&["replay", "--traces", &calm, "--train", &period(0..50)]);
    assert!(out(&output).contains("No target was broken"), "{}", out(&output));
}

#[test]
fn people_read_what_was_read_what_broke_who_and_why() {
    let place = Place::new();
    let (traces, metrics) = (place.file("traces.jsonl", usual()), place.file("m", metrics(SECONDS, BROKEN)));
    let output = sagectl(&["replay", "--traces", &traces, "--metrics", &metrics, "--diagnose", &period(BROKEN)]);
    let text = out(&output);
    for part in [
        "Read 2 files: 16000 spans and 102 data points of 3 services",
        "2023-11-14T22:13:20Z to ",
        "1 metric name is in no table (--map adds some): shop.baskets (51)",
        "2023-11-14T22:15:20Z..2023-11-14T22:15:50Z: culprit: stock",
        "front__web GET /: p",
        "culprit: stock (processor time",
        "own time of stock Find",
        "CPU used of its limit",
        "ranking: stock, ",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn an_objective_nobody_enters_at_is_named_with_those_that_are_entered() {
    let place = Place::new();
    let file = place.file("traces.jsonl", usual());
    let slo = ["--slo", "shop:basket:p90<30ms"];
    for more in [["--train", &period(0..100)], ["--diagnose", &period(BROKEN)]] {
        let text = out(&sagectl(&[&["replay", "--traces", &file], &slo[..], &more[..]].concat()));
        assert!(text.contains("no request enters at basket; entries are front::web."), "{text}");
    }
}

#[test]
fn a_users_table_of_names_is_used_and_checked() {
    let place = Place::new();
    let files = (place.file("traces.jsonl", usual()), place.file("m", metrics(SECONDS, BROKEN)));
    let ask = |map: &str| ask(&["--traces", &files.0, "--metrics", &files.1, "--map", &place.file("map", map)]);
    assert!(said(&ask("shop.baskets open_files # why not"))["read"]["unknown_metrics"].get("shop.baskets").is_none());
    let output = ask("# ours\nshop.baskets heat");
    assert!(told(&output).contains("line 2 of the map: no metric is called \"heat\""), "{}", told(&output));
}

#[test]
fn an_evaluation_writes_predictions_and_a_table_and_never_needs_the_truth() {
    let place = Place::new();
    place.file("traces.jsonl", usual());
    place.file("metrics.jsonl", metrics(SECONDS, BROKEN));
    let at = |second: u64| format!("\"{}\"", T0 + second);
    place.file("normal.json", format!("[{{\"start\":{},\"end\":{}}}]", at(0), at(120)));
    let incident = |services: &str| {
        format!(
            "[{{\"id\":\"one\",\"start\":{},\"end\":{},\"services\":{services},\"resource\":\"cpu\",\"fault_type\":\"hog\"}}]",
            at(120),
            at(150)
        )
    };
    let predictions = place.path().join("out.json");
    let run = |services: &str, more: &[&str]| {
        place.file("incidents.json", incident(services));
        let dir = place.path().to_str().expect("plain");
        let json = predictions.to_str().expect("plain");
        let output = sagectl(&[&["eval", dir, "--json", json], more].concat());
        assert!(output.status.success(), "{}", told(&output));
        (out(&output), fs::read_to_string(&predictions).expect("written"))
    };
    let (table, right) = run("[\"stock\"]", &[]);
    let (_, wrong) = run("[\"cart\"]", &[]);
    assert_eq!(right, wrong, "the truth changes no answer");
    let said: Value = serde_json::from_str(&right).expect("JSON");
    assert_eq!((&said[0]["id"], &said[0]["ranking"][0]), (&"one".into(), &"stock".into()));
    assert!(table.contains("self-time z") && table.contains("n-sigma") && table.contains("  hog"), "{table}");

    let (_, sampled) = run("[\"stock\"]", &["--sample", "0.1"]);
    let said: Value = serde_json::from_str(&sampled).expect("JSON");
    assert_eq!(said[0]["ranking"][0], "stock", "a tenth of the traces suffices: {sampled}");
    assert_ne!(sampled, right, "fewer traces give other numbers");
    assert_eq!(run("[\"stock\"]", &["--sample", "0.1"]).1, sampled, "the same tenth each time");
}
