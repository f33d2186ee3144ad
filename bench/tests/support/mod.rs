//! A collector and a small application for the tests that run real processes.
#![allow(dead_code, reason = "each test file uses its part")]
#![expect(clippy::disallowed_methods, reason = "tests of real processes wait for them")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message;
use sage_bench::{
    app::{
        Request, Response,
        supervise::{App, AppSpec},
    },
    topology::NodeId,
};
use serde_json::{Value as Json, json};

/// A span as the collector got it.
#[derive(Clone, Debug)]
pub struct Received {
    /// `service.name` of its resource.
    pub service: String,
    /// The span.
    pub span: Span,
}

impl Received {
    /// Its duration in nanoseconds.
    pub fn duration_ns(&self) -> u64 {
        self.span.end_time_unix_nano - self.span.start_time_unix_nano
    }

    /// Whether it is the callee's side.
    pub fn is_server(&self) -> bool {
        self.span.kind == 2
    }

    /// Its operation.
    pub fn method(&self) -> &str {
        let found = self.span.attributes.iter().find(|attribute| attribute.key == "rpc.method");
        match found.and_then(|attribute| attribute.value.as_ref()).and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(text)) => text,
            other => panic!("rpc.method is {other:?}"),
        }
    }
}

/// An OTLP/HTTP collector that keeps everything.
pub struct Collector {
    /// Its address as a URL.
    pub url: String,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Collector {
    /// Listens on loopback, for as long as the test runs.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let received = Arc::new(Mutex::new(Vec::new()));
        let into = received.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let into = into.clone();
                thread::spawn(move || while receive(&stream, &into).is_some() {});
            }
        });
        Self { url, received }
    }

    /// What has come so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().expect("no panic").clone()
    }
}

/// Reads one export and answers it; `None` when the peer has gone.
fn receive(mut stream: &TcpStream, into: &Mutex<Vec<Received>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = ExportTraceServiceRequest::decode(&body[..]).expect("OTLP");
    for resource_spans in request.resource_spans {
        let attributes = resource_spans.resource.expect("a resource").attributes;
        let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
        let Some(Value::StringValue(service)) = name.and_then(|name| name.value?.value) else { panic!("no name") };
        let spans = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
        let spans = spans.map(|span| Received { service: service.clone(), span });
        into.lock().expect("no panic").extend(spans);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()
}

/// The program under test.
pub fn program() -> std::path::PathBuf {
    env!("CARGO_BIN_EXE_sage-bench").into()
}

/// An application of two tiers, `front` calling `back`, in `dir`; each tier runs by the given model.
pub fn pair(dir: &Path, front: Json, back: Json, pool_max: u32, pool_timeout_ms: u64) -> App {
    let service = |id: &str, kind: &str, concurrency: Json| {
        json!({
            "id": id, "kind": kind, "tech": "test", "cpu_cores": 1, "replicas": {"local": 1, "gce": 1},
            "concurrency": concurrency, "rpc_cost_us": {"client": 0, "server": 0},
            "ops": {"op": {"dist": "lognormal", "mean_us": 50, "cv": 0}},
            "sensitivity": {"cpu": 1, "mem": 0, "disk": 0, "net": 0}
        })
    };
    let topology = json!({
        "schema": "topology/1", "name": "pair", "qos": {"percentile": 99, "latency_ms": 10},
        "load": {"open_loop": true, "arrivals": "poisson", "nominal_qps": 10},
        "network": {"one_way_us": {"dist": "lognormal", "mean": 45, "cv": 0.5}},
        "services": [service("front", "frontend", front), service("back", "stateless", back)],
        "requests": [{"id": "r", "mix": 1, "root": {"svc": "front", "op": "op", "steps": [
            {"work": 1}, {"call": {"svc": "back", "op": "op"}}]}}],
        "pools": [{"from": "front", "to": "back", "protocol": "test", "min": 0, "max": pool_max,
                   "timeout_ms": pool_timeout_ms, "blocking": true}]
    });
    let path = dir.join("pair.json");
    std::fs::write(&path, topology.to_string()).expect("writable");
    let mut spec = AppSpec::new(program(), &path.display().to_string());
    spec.control_dir = Some(dir.join("control"));
    App::start(spec).expect("starts")
}

/// Sends `count` requests at once, a connection each; how each ended, and how long all took.
pub fn at_once(target: SocketAddr, count: u64) -> (Vec<Option<Response>>, Duration) {
    let start = Instant::now();
    let callers: Vec<_> = (0..count).map(|seed| thread::spawn(move || call(target, seed))).collect();
    let responses = callers.into_iter().map(|caller| caller.join().expect("no panic")).collect();
    (responses, start.elapsed())
}

fn call(target: SocketAddr, seed: u64) -> Option<Response> {
    let request = Request { id: seed, trace_id: 1, parent_span: 0, is_sampled: false, node: NodeId(0), items: 0, seed };
    let mut stream = TcpStream::connect(target).ok()?;
    stream.write_all(&request.to_frame()).ok()?;
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).ok()?;
    let mut body = vec![0; u32::from_be_bytes(prefix) as usize];
    stream.read_exact(&mut body).ok()?;
    Response::from_body(&body).ok()
}

/// Waits until `holds`, for at most 20 s.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
