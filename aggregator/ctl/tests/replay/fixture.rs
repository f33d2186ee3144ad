//! Small recordings of a shop of three services, and `sagectl` to read them.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// Beginning of every recording, aligned to its windows.
pub const T0: u64 = 1_700_000_000;

/// Length of the usual one.
pub const SECONDS: u64 = 160;

/// When `stock` is slow in it.
pub const BROKEN: Range<u64> = 120..150;

/// Requests a second.
const RATE: u64 = 20;

/// One service's side of a call.
pub struct SpanOf<'a> {
    pub trace: u64,
    pub id: u64,
    pub parent: u64,
    pub name: &'a str,
    pub kind: u8,
    pub start_us: u64,
    pub length_us: u64,
}

pub fn span_json(span: &SpanOf<'_>) -> String {
    let SpanOf { trace, id, parent, name, kind, start_us, length_us } = span;
    let start = (T0 * 1_000_000 + start_us) * 1_000;
    let parent = if *parent == 0 { String::new() } else { format!("\"parentSpanId\":\"{parent:016x}\",") };
    format!(
        "{{\"traceId\":\"{:032x}\",\"spanId\":\"{id:016x}\",{parent}\"name\":\"{name}\",\"kind\":{kind},\
         \"startTimeUnixNano\":\"{start}\",\"endTimeUnixNano\":\"{}\"}}",
        trace + 1,
        start + length_us * 1_000
    )
}

/// A request with the spans of one service.
pub fn line(service: &str, spans: &[String]) -> String {
    format!(
        "{{\"resourceSpans\":[{{\"resource\":{{\"attributes\":[{{\"key\":\"service.name\",\"value\":\
         {{\"stringValue\":\"{service}\"}}}}]}},\"scopeSpans\":[{{\"spans\":[{}]}}]}}]}}\n",
        spans.join(",")
    )
}

/// Requests to `front::web`, which calls `stock` and then `cart`; `stock` is slow in the seconds `broken`. A line a
/// second and service.
pub fn traces(seconds: Range<u64>, broken: Range<u64>) -> String {
    let mut text = String::new();
    for second in seconds {
        let (mut front, mut stock, mut cart) = (Vec::new(), Vec::new(), Vec::new());
        for request in 0..RATE {
            let number = second * RATE + request;
            let start = second * 1_000_000 + request * (1_000_000 / RATE);
            let noise = number * 7_919 % 1_000;
            let slow = if broken.contains(&second) { 40_000 + noise * 5 } else { 0 };
            let (own, called) = (3_000 + noise, 5_000 + noise / 2 + slow);
            let id = 10 * (number + 1);
            let span = |id, parent, name, kind, start_us, length_us| {
                span_json(&SpanOf { trace: number, id, parent, name, kind, start_us, length_us })
            };
            front.push(span(id, 0, "GET /", 2, start, own + called + 2_000 + 4_000));
            front.push(span(id + 1, id, "stock", 3, start + own, called + 1_000));
            stock.push(span(id + 2, id + 1, "Find", 2, start + own + 500, called));
            front.push(span(id + 3, id, "cart", 3, start + own + called + 1_500, 4_000));
            cart.push(span(id + 4, id + 3, "Get", 2, start + own + called + 2_000, 3_000));
        }
        text += &line("front::web", &front);
        text += &line("stock", &stock);
        text += &line("cart", &cart);
    }
    text
}

/// The usual recording.
pub fn usual() -> String {
    traces(0..SECONDS, BROKEN)
}

pub const SERVICES: [&str; 3] = ["front::web", "stock", "cart"];

/// A data point of a gauge, as it stands in JSON.
pub fn gauge(name: &str, second: u64, value: &str) -> String {
    let at = (T0 + second) * 1_000_000_000;
    format!("{{\"name\":\"{name}\",\"gauge\":{{\"dataPoints\":[{{\"timeUnixNano\":\"{at}\",\"asDouble\":{value}}}]}}}}")
}

/// A data point of a counter.
pub fn counter(name: &str, second: u64, value: &str) -> String {
    let at = (T0 + second) * 1_000_000_000;
    format!(
        "{{\"name\":\"{name}\",\"sum\":{{\"aggregationTemporality\":2,\"isMonotonic\":true,\"dataPoints\":\
         [{{\"timeUnixNano\":\"{at}\",\"asDouble\":{value}}}]}}}}"
    )
}

/// A request with metrics of every service, as `of` says.
pub fn metrics_line(mut of: impl FnMut(&str) -> Vec<String>) -> String {
    request(&SERVICES.map(|service| resource(service, &of(service))))
}

fn request(resources: &[String]) -> String {
    format!("{{\"resourceMetrics\":[{}]}}\n", resources.join(","))
}

fn resource(service: &str, metrics: &[String]) -> String {
    format!(
        "{{\"resource\":{{\"attributes\":[{{\"key\":\"service.name\",\"value\":{{\"stringValue\":\"{service}\"}}}}]}},\
         \"scopeMetrics\":[{{\"metrics\":[{}]}}]}}",
        metrics.join(",")
    )
}

/// Processor use of each service, a sample of the ten seconds before; `stock` is starved while it is slow.
pub fn metrics(seconds: u64, broken: Range<u64>) -> String {
    (0..=seconds)
        .step_by(10)
        .map(|second| {
            metrics_line(|service| {
                let is_starved = service == "stock" && second > 0 && broken.contains(&(second - 1));
                let wobble = (second * 31 % 7) as f64 * 0.002;
                let share = if is_starved { 0.98 } else { 0.2 + wobble };
                vec![
                    gauge("k8s.container.cpu.limit.utilization", second, &share.to_string()),
                    gauge("shop.baskets", second, "3"),
                ]
            })
        })
        .collect()
}

/// Percentiles of latency of each service, a sample a minute; those of `stock` and of who waits for it rise in `broken`.
pub fn percentiles(minutes: Range<u64>, broken: Range<u64>) -> String {
    let mut text = String::new();
    for minute in minutes {
        text += &metrics_line(|service| {
            let (own, waits) = match service {
                "front::web" => (30.0, true),
                "stock" => (8.0, true),
                _ => (4.0, false),
            };
            let slow = if waits && broken.contains(&minute) { 60.0 } else { 0.0 };
            let wobble = 1.0 + (minute * 37 % 11) as f64 * 0.004;
            let second = (minute + 1) * 60;
            let point = |name: &str, seconds: f64| gauge(name, second, &format!("{}", seconds * wobble));
            vec![
                point("rpc.server.duration.p50", (own + slow) / 1e3),
                point("rpc.server.duration.p95", (1.5 * own + 1.4 * slow) / 1e3),
                point("rpc.server.duration.p99", (2.0 * own + 1.5 * slow) / 1e3),
                gauge("rpc.server.requests", second, "1200"),
            ]
        });
    }
    text
}

/// The same as histograms of OpenTelemetry, cumulative, of two routes: how many answers of each service took how long.
pub fn histograms(minutes: Range<u64>, broken: Range<u64>) -> String {
    let mut text = String::new();
    let mut totals: BTreeMap<(&str, &str), ([u64; BOUNDS_MS.len() + 1], f64)> = BTreeMap::new();
    for minute in minutes {
        text += &metrics_line(|service| {
            let points: Vec<String> = ["/a", "/b"]
                .map(|route| {
                    let own = SERVICES.iter().find(|own| **own == service).expect("one of them");
                    let (counts, sum) = totals.entry((own, route)).or_default();
                    let (usual, waits) = match service {
                        "front::web" => (30.0, true),
                        "stock" => (8.0, true),
                        _ => (4.0, false),
                    };
                    let slow = if waits && broken.contains(&minute) { 60.0 } else { 0.0 };
                    for call in 0..600 {
                        let noise = (call * 7_919 + minute * 31) % 1_000;
                        let ms = usual * (0.7 + noise as f64 / 1_500.0) + slow;
                        counts[BOUNDS_MS.partition_point(|bound| *bound < ms)] += 1;
                        *sum += ms;
                    }
                    let at = (T0 + (minute + 1) * 60) * 1_000_000_000;
                    let (count, counts): (u64, Vec<String>) = (counts.iter().sum(), counts.iter().map(|own| format!("\"{own}\"")).collect());
                    format!(
                        "{{\"timeUnixNano\":\"{at}\",\"count\":\"{count}\",\"sum\":{sum},\"bucketCounts\":[{}],\"explicitBounds\":{BOUNDS_MS:?},\
                         \"attributes\":[{{\"key\":\"http.route\",\"value\":{{\"stringValue\":\"{route}\"}}}}]}}",
                        counts.join(",")
                    )
                })
                .into();
            vec![format!(
                "{{\"name\":\"http.server.duration\",\"unit\":\"ms\",\"histogram\":{{\"aggregationTemporality\":2,\"dataPoints\":[{}]}}}}",
                points.join(",")
            )]
        });
    }
    text
}

/// Bounds of those histograms.
const BOUNDS_MS: [f64; 9] = [5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 1_000.0];

/// Percentiles that stay, and answers that fail: in `broken`, a tenth of those of `stock` and so of the front's.
pub fn failures(minutes: Range<u64>, broken: Range<u64>) -> String {
    let lines = percentiles(minutes.clone(), 0..0);
    let with = |(line, minute): (&str, u64)| {
        let failing = metrics_line(|service| {
            let fails = service != "cart" && broken.contains(&minute);
            vec![gauge("rpc.server.availability", (minute + 1) * 60, if fails { "0.9" } else { "1" })]
        });
        format!("{line}\n{failing}")
    };
    lines.lines().zip(minutes).map(with).collect()
}

/// Percentiles of a workflow that every twentieth request of the front starts and does not wait for: seconds, and in
/// `broken` half a minute.
pub fn workflow(minutes: Range<u64>, broken: Range<u64>) -> String {
    let line = |minute: u64| {
        let seconds = if broken.contains(&minute) { "30" } else { "3" };
        let point = |name: &str, value: &str| gauge(name, (minute + 1) * 60, value);
        let percentiles = ["p50", "p95", "p99"].map(|p| point(&format!("rpc.server.duration.{p}"), seconds));
        let metrics: Vec<String> = percentiles.into_iter().chain([point("rpc.server.requests", "60")]).collect();
        request(&[resource("workflow", &metrics)])
    };
    minutes.map(line).collect()
}

/// Who calls whom.
pub const GRAPH: &str = r#"[{"client": "front::web", "server": "stock"}, {"client": "front::web", "server": "cart"}]"#;

pub fn sagectl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sagectl")).args(arguments).output().expect("sagectl runs")
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A place for files.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a place"))
    }

    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path: PathBuf = self.0.path().join(name);
        fs::write(&path, bytes).expect("room");
        path.to_str().expect("plain").to_owned()
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

pub fn period(range: Range<u64>) -> String {
    format!("{}..{}", T0 + range.start, T0 + range.end)
}

/// Asks about the usual period.
pub fn ask(files: &[&str]) -> Output {
    ask_about(&period(BROKEN), files)
}

pub fn ask_about(period: &str, files: &[&str]) -> Output {
    sagectl(&[&["replay", "--json", "--diagnose", period], files].concat())
}

/// The JSON answer.
pub fn said(output: &Output) -> Value {
    assert!(output.status.success(), "{}", told(output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}{}", out(output), told(output)))
}

/// The first answer of it.
pub fn first(output: &Output) -> Value {
    said(output)["answers"][0].clone()
}

/// The service that is ranked first.
pub fn named(output: &Output) -> String {
    first(output)["ranking"][0].as_str().unwrap_or_else(|| panic!("{}", out(output))).to_owned()
}

/// Everything that was not used, in one text.
pub fn not_used(output: &Output) -> String {
    let read = &said(output)["read"];
    let mut text = String::new();
    for (what, count) in read["not_used"].as_object().expect("an object") {
        let _ = writeln!(text, "{count} {what}");
    }
    for line in ["useless", "problems"].iter().flat_map(|list| read[list].as_array().expect("a list")) {
        let _ = writeln!(text, "{}", line.as_str().expect("text"));
    }
    text
}
