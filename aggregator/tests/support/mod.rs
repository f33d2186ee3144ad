//! A fleet in a temporary directory: certificates, a configuration, the real aggregator, and agents on loopback.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::disallowed_methods, reason = "these tests are about files and processes")]

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sage_common::{
    BootId, EntryHistogram, IntakeCounters, LatencyQuantiles, LatencySeries, Micros, NodeWindow, SeriesKind, Term,
    Timestamp, WindowKey,
};
use sage_protocol::{
    EncodedWindow,
    quic::{AgentLink, AgentLinkEvent, read_tls},
    session::{AgentSessionConfig, AgentState, Timing},
};
use tokio::sync::mpsc;

/// Nothing here takes a tenth of this; a hang fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Length of the windows of these tests, the shortest allowed.
pub const LENGTH: Micros = Micros::from_secs(1);

/// A directory with the certificates of one fleet, and room for the aggregator's state.
pub struct Fleet {
    dir: tempfile::TempDir,
}

impl Fleet {
    pub fn new() -> Self {
        let fleet = Self { dir: tempfile::tempdir().expect("tmp") };
        let pki = fleet.pki();
        let pki = pki.to_str().expect("text");
        fleet.aggregator(&["pki", "init", "--fleet", "local", "--out", pki, "--days", "2"]);
        fleet.aggregator(&["pki", "issue", "aggregator", "a-1", "--ca", pki, "--out", pki, "--san", "127.0.0.1"]);
        for node in ["node-a", "node-b"] {
            fleet.aggregator(&["pki", "issue", "agent", node, "--ca", pki, "--out", pki]);
        }
        fleet
    }

    pub fn pki(&self) -> PathBuf {
        self.dir.path().join("pki")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn aggregator(&self, arguments: &[&str]) {
        let output = command().args(arguments).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The configuration on these ports; 0 takes a free one.
    pub fn config(&self, quic: u16, http: u16) -> String {
        let (pki, state) = (self.pki(), self.state_dir());
        let (pki, state) = (pki.display(), state.display());
        format!(
            r#"
name = "a-1"
state_dir = "{state}"
quic = "127.0.0.1:{quic}"
http = "127.0.0.1:{http}"
[tls]
ca = "{pki}/ca.pem"
cert = "{pki}/a-1.pem"
key = "{pki}/a-1.key"
[window]
length_ms = 1000
lateness_ms = 500
[[slo]]
name = "shop"
service = "frontend"
percentile = 99.0
target_ms = 50.0
"#
        )
    }

    pub fn start(&self) -> Aggregator {
        self.start_on(0, 0)
    }

    pub fn start_on(&self, quic: u16, http: u16) -> Aggregator {
        Aggregator::start(&self.write_config(&self.config(quic, http)))
    }

    pub fn write_config(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("aggregator.toml");
        std::fs::write(&path, text).expect("written");
        path
    }

    /// The certificate of `agent`, from this fleet.
    pub fn agent(&self, node: &str, boot: u64, quic: SocketAddr, state: AgentState) -> Agent {
        let pki = self.pki();
        let tls = read_tls(&pki.join("ca.pem"), &pki.join(format!("{node}.pem")), &pki.join(format!("{node}.key")));
        let config = AgentSessionConfig {
            node: node.parse().expect("valid"),
            boot: BootId(boot),
            program: "test".into(),
            addresses: vec![quic.to_string()],
            timing: Timing::default(),
        };
        let (link, events) = AgentLink::spawn(config, &tls.expect("issued"), state).expect("linked");
        Agent { link, events }
    }
}

/// The program itself, deaf to the tester's environment.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sage-aggregator"));
    command.env_remove("SAGE_CONFIG").env_remove("SAGE_LOG").env_remove("SAGE_LOG_FORMAT").env("NO_COLOR", "1");
    command
}

/// A running aggregator; killed when dropped.
pub struct Aggregator {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    pub quic: SocketAddr,
    pub http: SocketAddr,
}

impl Aggregator {
    pub fn start(config: &Path) -> Self {
        let mut child =
            command().arg("run").arg("--config").arg(config).stderr(Stdio::piped()).spawn().expect("it starts");
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // The test may be over.
                let _ = sender.send(line);
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut this = Self { child, lines, said: Vec::new(), quic: nowhere, http: nowhere };
        this.quic = this.wait_for_line("quic=").expect("address");
        this.http = this.wait_for_line("http=").expect("address");
        this.wait_for_line::<String>("leading term ").expect("text");
        this
    }

    /// The word after `key` in the first line that has it.
    fn wait_for_line<T: std::str::FromStr>(&mut self, key: &str) -> Result<T, T::Err> {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("never said {key:?}:\n{}", self.said.join("\n")));
            self.said.push(line.clone());
            if let Some((_, rest)) = line.split_once(key) {
                return rest.split_whitespace().next().unwrap_or_default().parse();
            }
        }
    }

    pub fn kill(mut self) {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("dead");
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        let killed = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status().expect("kill runs");
        assert!(killed.success());
    }

    /// How it ended, and what it said.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("ours") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.said.join("\n"));
            std::thread::sleep(Duration::from_millis(20));
        };
        self.said.extend(self.lines.iter());
        (status, self.said.join("\n"))
    }

    /// The status as JSON.
    pub fn status(&self) -> serde_json::Value {
        let (_, body) = self.http("GET", "/api/v1/status", "");
        serde_json::from_str(&body).expect("JSON")
    }

    /// Asks for the status until it is as wanted.
    pub fn wait_for_status(&self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "never {what}:\n{status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Status code and body of a plain HTTP request.
    pub fn http(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (status, body) = self.http_bytes(method, path, body);
        (status, String::from_utf8(body).expect("text"))
    }

    /// The same with the body as it is.
    pub fn http_bytes(&self, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        let url = format!("http://{}{path}", self.http);
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build();
        let agent: ureq::Agent = config.into();
        let request = ureq::http::Request::builder().method(method).uri(&url).body(body.to_owned()).expect("request");
        let mut response = agent.run(request).expect("an answer");
        (response.status().as_u16(), response.body_mut().read_to_vec().expect("a body"))
    }
}

impl Drop for Aggregator {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An agent of the test.
pub struct Agent {
    pub link: AgentLink,
    pub events: mpsc::Receiver<AgentLinkEvent>,
}

impl Agent {
    pub async fn next(&mut self) -> AgentLinkEvent {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("in time").expect("the link lives")
    }

    /// The term, the watermark, and the way for windows of the next connection.
    pub async fn connected(&mut self) -> (Term, u64, sage_protocol::quic::WindowSender) {
        loop {
            if let AgentLinkEvent::Connected { term, acknowledged_below, windows, .. } = self.next().await {
                return (term, acknowledged_below, windows);
            }
        }
    }

    /// Sends windows `sequences` and waits until each is acknowledged.
    pub async fn deliver(
        &mut self,
        windows: &sage_protocol::quic::WindowSender,
        boot: u64,
        node: &str,
        sequences: std::ops::Range<u64>,
    ) {
        for seq in sequences {
            windows.submit(EncodedWindow::new(&window(node, boot, seq)).expect("valid")).expect("room");
            loop {
                match self.next().await {
                    AgentLinkEvent::Acknowledged { sequences, .. } if sequences.contains(&seq) => break,
                    AgentLinkEvent::Disconnected(why) => panic!("{why}"),
                    _ => {}
                }
            }
        }
    }
}

/// Window number `seq` of a frontend with 100 calls of about 20 ms, the newest of them about now.
pub fn window(node: &str, boot: u64, seq: u64) -> NodeWindow {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let start = Timestamp::from_micros(Micros::from(now).get()).aligned(LENGTH) - LENGTH.saturating_mul(20)
        + LENGTH.saturating_mul(seq);
    let mut histogram = hdrhistogram::Histogram::<u32>::new(2).expect("two digits");
    for call in 0..100 {
        histogram.record(20_000 + call * 50).expect("auto-resizing");
    }
    let mut v2 = Vec::new();
    use hdrhistogram::serialization::{Serializer, V2Serializer};
    V2Serializer::new().serialize(&histogram, &mut v2).expect("fits");
    NodeWindow {
        key: WindowKey { node: node.parse().expect("valid"), boot: BootId(boot), seq },
        start,
        length: LENGTH,
        latencies: vec![LatencySeries {
            service: "frontend".parse().expect("valid"),
            operation: "GET /".parse().expect("valid"),
            kind: SeriesKind::Server,
            peer: None,
            calls: 100.0,
            errors: 1.0,
            quantiles: LatencyQuantiles::of(&histogram).expect("not empty"),
        }],
        usage: Vec::new(),
        node_usage: Vec::new(),
        stubs: Vec::new(),
        skeletons: Vec::new(),
        entries: vec![EntryHistogram {
            service: "frontend".parse().expect("valid"),
            operation: "GET /".parse().expect("valid"),
            v2,
            errors: 0.0,
        }],
        offers: Vec::new(),
        intake: IntakeCounters::default(),
        stub_share: 1.0,
    }
}
