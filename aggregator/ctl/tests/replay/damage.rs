//! Damaged recordings: what is wrong is told with its place, and the rest is answered from.

use std::io::Write;

use super::fixture::*;

#[test]
fn damaged_lines_are_told_with_file_and_line_and_only_strict_stops_at_them() {
    let place = Place::new();
    let mut lines: Vec<Vec<u8>> = usual().lines().map(|line| line.as_bytes().to_vec()).collect();
    let damaged: [&[u8]; 7] = [
        b"{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{\"traceId\":",
        b"not json",
        b"{\"resourceSpans\":{}}",
        b"{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{\"startTimeUnixNano\":\"99999999999999999999999\"}]}]}]}",
        b"\x01\x02\x00\x7f",
        b"{\"resourceSpans\":\xff\xfe}",
        b"[[[[[[[[",
    ];
    for (at, line) in damaged.iter().enumerate() {
        lines.insert(10 * (at + 1), line.to_vec());
    }
    let file = place.file("traces.jsonl", lines.join(&b'\n'));
    let output = ask(&["--traces", &file]);
    assert_eq!(named(&output), "stock");
    let text = not_used(&output);
    assert!(text.contains("7 damaged"), "{text}");
    for number in [11, 21, 31, 41, 51, 61, 71] {
        assert!(text.contains(&format!("traces.jsonl: line {number}: ")), "{number}: {text}");
    }
    let strict = ask(&["--traces", &file, "--strict"]);
    assert!(!strict.status.success() && told(&strict).contains("traces.jsonl: line 11: "), "{}", told(&strict));
}

#[test]
fn files_that_are_cut_answer_with_what_they_hold() {
    let place = Place::new();
    let zst = zstd::encode_all(usual().as_bytes(), 1).expect("memory");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(usual().as_bytes()).expect("memory");
    let gz = gz.finish().expect("memory");
    for (name, bytes) in [("t.zst", &zst), ("t.gz", &gz)] {
        let file = place.file(name, &bytes[..bytes.len() * 9 / 10]);
        let output = ask(&["--traces", &file]);
        assert_eq!(named(&output), "stock", "{name}");
        let text = not_used(&output);
        assert!(text.contains(&format!("{name} after line ")) && text.contains("1 damaged"), "{text}");
        let strict = ask(&["--traces", &file, "--strict"]);
        assert!(!strict.status.success() && told(&strict).contains(" after line "), "{}", told(&strict));
    }
}

#[test]
fn a_file_of_noise_is_told_and_the_others_are_answered_from() {
    let place = Place::new();
    let noise: Vec<u8> = (0..200_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let zst_of_noise = [&[0x28, 0xb5, 0x2f, 0xfd][..], &noise].concat();
    let gz_of_noise = [&[0x1f, 0x8b][..], &noise].concat();
    let good = place.file("good.jsonl", usual());
    for (name, bytes) in [("noise", noise), ("noise.zst", zst_of_noise), ("noise.gz", gz_of_noise)] {
        let output = ask(&["--traces", &good, &place.file(name, bytes)]);
        assert_eq!(named(&output), "stock", "{name}");
        let text = not_used(&output);
        assert!(text.contains("damaged") && text.contains(name), "{name}: {text}");
    }
}

#[test]
fn a_line_longer_than_any_request_is_stepped_over_in_bounded_memory() {
    let place = Place::new();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("memory");
    let spaces = vec![b'x'; 1 << 20];
    for _ in 0..70 {
        encoder.write_all(&spaces).expect("memory");
    }
    encoder.write_all(b"\n").expect("memory");
    encoder.write_all(usual().as_bytes()).expect("memory");
    let output = ask(&["--traces", &place.file("t.zst", encoder.finish().expect("memory"))]);
    assert_eq!(named(&output), "stock");
    assert!(not_used(&output).contains("line 1: longer than 67108864 bytes"), "{}", not_used(&output));
}

#[test]
fn files_of_the_other_kind_and_empty_ones_are_recognised() {
    let place = Place::new();
    let (traces, metrics) = (place.file("t.jsonl", usual()), place.file("m.jsonl", metrics(SECONDS, BROKEN)));
    let empty = place.file("empty.jsonl", "");
    let output = ask(&["--traces", &traces, &empty, &metrics, "--metrics", &traces]);
    assert_eq!(named(&output), "stock");
    let text = not_used(&output);
    assert!(text.contains("m.jsonl holds no spans that can be used; is it a file of metrics?"), "{text}");
    assert!(text.contains("t.jsonl holds no data points that can be used; is it a file of traces?"), "{text}");
    assert!(text.contains("empty.jsonl is empty"), "{text}");
    let output = ask(&["--traces", &empty]);
    assert!(said(&output)["notes"].to_string().contains("There are no latencies"), "{}", out(&output));
}

#[test]
fn what_is_not_there_or_makes_no_sense_is_said() {
    let place = Place::new();
    let fails = |arguments: &[&str], with: &str| {
        let output = sagectl(arguments);
        assert!(!output.status.success() && told(&output).contains(with), "{with:?} in {}", told(&output));
    };
    let file = place.file("traces.jsonl", usual());
    let directory = place.path().to_str().expect("plain");
    fails(&["replay", "--traces", "/nowhere/at/all"], "cannot open /nowhere/at/all: No such file");
    fails(&["replay", "--traces", directory], "Is a directory");
    fails(&["replay"], "--traces");
    fails(&["replay", "--traces", "x", "--diagnose", "5..4"], "5..4");
    fails(&["replay", "--traces", &file, "--diagnose", "noon..night"], "is no time");
    fails(&["replay", "--traces", &file, "--slo", "shop"], "is no objective");
    fails(&["replay", "--traces", &file, "--slo", "a:b:p99<1s", "--slo-auto"], "cannot be used with");
    fails(&["replay", "--traces", &file, "--window", "0s"], "want 1ms to 24h");
    fails(&["replay", "--traces", &file, "--graph", &file], "is no call graph");
    fails(&["replay", "--traces", &file, "--map", "/nowhere"], "cannot read /nowhere");
    fails(&["eval", directory], "incidents.json");
}

#[test]
fn spans_with_a_broken_clock_do_not_end_the_recording() {
    let place = Place::new();
    let mut lines: Vec<String> = usual().lines().map(str::to_owned).collect();
    let strange = |start_us: u64| {
        let span = SpanOf { trace: 999_999, id: 7, parent: 0, name: "GET /", kind: 2, start_us, length_us: 5 };
        line("front::web", &[span_json(&span)]).trim_end().to_owned()
    };
    lines.insert(100, strange(10_000_000_000_000));
    lines.insert(0, strange(0).replace("\"startTimeUnixNano\":\"1", "\"startTimeUnixNano\":\"0"));
    let output = ask(&["--traces", &place.file("traces.jsonl", lines.join("\n"))]);
    assert_eq!(named(&output), "stock");
    assert!(not_used(&output).contains("1 spans and data points far in time"), "{}", not_used(&output));
}

#[test]
fn a_clock_that_jumps_leaves_a_gap_and_both_sides_of_it() {
    let place = Place::new();
    // A day lies between learning and the incident.
    let day = 86_400;
    let text = traces(0..100, 0..0) + &traces(day..day + 40, day + 10..day + 40);
    let output = ask_about(&period(day + 10..day + 40), &["--traces", &place.file("traces.jsonl", text)]);
    assert_eq!(named(&output), "stock", "{}", out(&output));
}

#[test]
fn spans_later_than_the_lateness_are_counted_and_more_may_be_allowed() {
    let place = Place::new();
    let mut lines: Vec<String> = usual().lines().map(str::to_owned).collect();
    let late = lines.remove(30); // of second 10
    lines.insert(30 + 3 * 38, late);
    let file = place.file("traces.jsonl", lines.join("\n"));
    let strict = ask(&["--traces", &file, "--lateness", "5s"]);
    assert!(not_used(&strict).contains("60 spans later than the allowed lateness"), "{}", not_used(&strict));
    let patient = ask(&["--traces", &file, "--lateness", "45s"]);
    assert!(!not_used(&patient).contains("later than"), "{}", not_used(&patient));
    assert_eq!((named(&strict), named(&patient)), ("stock".to_owned(), "stock".to_owned()));
}

#[test]
fn spans_given_twice_count_once() {
    let place = Place::new();
    let twice: String = usual().lines().map(|line| format!("{line}\n{line}\n")).collect();
    let (once, twice) = (place.file("once", usual()), place.file("twice", twice));
    let (once, twice) = (ask(&["--traces", &once]), ask(&["--traces", &twice]));
    assert_eq!(said(&twice)["answers"], said(&once)["answers"]);
    assert!(not_used(&twice).contains("16000 spans given twice"), "{}", not_used(&twice));
}

#[test]
fn spans_without_ids_or_that_end_before_they_start_are_counted() {
    let place = Place::new();
    let odd = line(
        "front::web",
        &[
            span_json(&SpanOf { trace: 9, id: 0, parent: 0, name: "GET /", kind: 2, start_us: 5, length_us: 5 }),
            "{\"traceId\":\"12\",\"spanId\":\"zz\"}".to_owned(),
            format!(
                "{{\"traceId\":\"{:032x}\",\"spanId\":\"{:016x}\",\"kind\":2,\"startTimeUnixNano\":\"{}\",\
                 \"endTimeUnixNano\":\"{}\"}}",
                9_999_999,
                77,
                (T0 + 5) * 1_000_000_000,
                (T0 + 4) * 1_000_000_000
            ),
        ],
    );
    let output = ask(&["--traces", &place.file("traces.jsonl", odd + &usual())]);
    assert_eq!(named(&output), "stock");
    let text = not_used(&output);
    assert!(text.contains("2 spans without a usable id") && text.contains("1 spans that end before"), "{text}");
}

#[test]
fn numbers_that_are_none_counters_that_restart_and_histograms_never_reach_the_model() {
    let place = Place::new();
    let mut text = String::new();
    for second in (0..=SECONDS).step_by(10) {
        text += &metrics_line(|service| {
            // Restarts in the middle; the rate is the same before and after.
            let seconds = if second < 70 { second } else { second - 70 };
            let share = if service == "stock" && second > 0 && BROKEN.contains(&(second - 1)) { 0.98 } else { 0.2 };
            let wobble = (second * 31 % 7) as f64 * 0.002;
            vec![
                counter("container_cpu_usage_seconds_total", second, &format!("{}", 100.0 + 0.5 * seconds as f64)),
                gauge("k8s.container.cpu.limit.utilization", second, &format!("{}", share + wobble)),
                gauge("container.memory.usage", second, "\"NaN\""),
                gauge("container.memory.usage", second, "\"Infinity\""),
                format!(
                    "{{\"name\":\"h\",\"histogram\":{{\"dataPoints\":[{{\"count\":\"3\",\"timeUnixNano\":\"{}\"}}]}}}}",
                    (T0 + second) * 1_000_000_000
                ),
            ]
        });
    }
    let files = (place.file("t", usual()), place.file("m", text));
    let output = ask(&["--traces", &files.0, "--metrics", &files.1]);
    let answer = first(&output);
    assert_eq!((&answer["ranking"][0], &answer["resource"]), (&"stock".into(), &"cpu".into()), "{answer}");
    assert!(not_used(&output).contains("102 data points that are no number"), "{}", not_used(&output));
    assert_eq!(said(&output)["read"]["unknown_metrics"]["h"], 51, "of no latency");
    assert!(!out(&output).contains("null,\n          \"normal\""), "no number is lost on the way");
}

#[test]
fn metrics_with_a_broken_clock_or_of_nobody_change_nothing_else() {
    let place = Place::new();
    let far = metrics_line(|_| vec![gauge("k8s.container.cpu.limit.utilization", 9_000_000, "0.5")]);
    let nobody = "{\"resourceMetrics\":[{\"scopeMetrics\":[{\"metrics\":[{\"name\":\"rpc.server.duration.p50\",\"gauge\":\
                  {\"dataPoints\":[{\"timeUnixNano\":\"1700000000000000000\",\"asDouble\":1}]}}]}]}]}\n";
    let files = (place.file("t", usual()), place.file("m", far + nobody + &metrics(SECONDS, BROKEN)));
    let output = ask(&["--traces", &files.0, "--metrics", &files.1]);
    assert_eq!(named(&output), "stock");
    assert!(not_used(&output).contains("3 spans and data points far in time"), "{}", not_used(&output));
}
