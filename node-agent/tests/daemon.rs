//! The real `sage-agent`, as a process: without root, with an aggregator's listener at the other end, and killed.

#![expect(clippy::disallowed_methods, reason = "a test of the whole process has files, clocks and patience")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sage_common::{BootId, NodeId, NodeWindow, Term, Timestamp};
use sage_protocol::{
    FleetName, Role,
    pki::{FleetCa, Validity},
    quic::{AggregatorListener, ListenerConfig, ListenerEvent, read_tls},
    session::{Answer, Timing},
};
use serde_json::Value;
use tokio::sync::mpsc;

/// How long anything may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent with its own directory and ports.
struct Agent {
    directory: tempfile::TempDir,
    http: SocketAddr,
    otlp: SocketAddr,
    process: Option<Child>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn free_tcp() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound")
}

fn free_udp() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound")
}

impl Agent {
    /// Writes a configuration; `extra` goes before its first table, `tables` after its last.
    fn configure(extra: &str, tables: &str) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (http, otlp, grpc, udp) = (free_tcp(), free_tcp(), free_tcp(), free_udp());
        let place = directory.path().display();
        let state =
            if extra.contains("state_dir") { String::new() } else { format!("state_dir = \"{place}/state\"\n") };
        let text = format!(
            "node = \"node-a\"\nsocket = \"{place}/run/agent.sock\"\naudit_file = \"{place}/audit.jsonl\"\n\
             policy_dir = \"{place}/policy.d\"\nhttp = \"{http}\"\n{state}{extra}\n\
             [window]\nlength_ms = 1000\nlateness_ms = 200\n\
             [intake]\notlp_http = \"{otlp}\"\notlp_grpc = \"{grpc}\"\njaeger_udp = \"{udp}\"\n\
             [tls]\nca = \"{place}/ca.pem\"\ncert = \"{place}/node-a.pem\"\nkey = \"{place}/node-a.key\"\n{tables}"
        );
        std::fs::write(directory.path().join("agent.toml"), text).expect("writable");
        Self { directory, http, otlp, process: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sage-agent"));
        command.arg("--config").arg(self.path("agent.toml")).args(words).env("NO_COLOR", "1");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the program is there")
    }

    fn start(&mut self) {
        let log = std::fs::File::create(self.path("log")).expect("writable");
        let process = self.command(&["run"]).stderr(log).stdout(Stdio::null()).spawn().expect("the program is there");
        self.process = Some(process);
        self.until("the agent is ready", || (http(self.http, "GET", "/readyz", "").0 == 200).then_some(()));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until `look` finds something.
    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < deadline, "never: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.process.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().expect("kill is there").success());
    }

    fn wait(&mut self) -> Option<i32> {
        let mut process = self.process.take().expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        while process.try_wait().expect("our child").is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Does nothing to a process that has ended.
        process.kill().expect("our child");
        process.wait().expect("our child").code()
    }

    fn status(&self) -> (Option<i32>, Value) {
        let output = self.run(&["status", "--output", "json"]);
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }

    /// Posts `count` server spans that end now.
    fn post_spans(&self, count: usize) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
        let spans: Vec<String> = (0..count)
            .map(|n| {
                format!(
                    "{{\"traceId\":\"{:032x}\",\"spanId\":\"{:016x}\",\"name\":\"GET /near\",\"kind\":2,\
                     \"startTimeUnixNano\":\"{}\",\"endTimeUnixNano\":\"{now}\"}}",
                    now + n as u128,
                    n + 1,
                    now - 5_000_000
                )
            })
            .collect();
        let body = format!(
            "{{\"resourceSpans\":[{{\"resource\":{{\"attributes\":[{{\"key\":\"service.name\",\"value\":{{\"stringValue\":\
             \"geo\"}}}},{{\"key\":\"process.pid\",\"value\":{{\"intValue\":\"{}\"}}}}]}},\"scopeSpans\":[{{\"spans\":[{}]}}]}}]}}",
            std::process::id(),
            spans.join(",")
        );
        assert_eq!(http(self.otlp, "POST", "/v1/traces", &body).0, 200);
    }
}

/// One HTTP request; status 0 when nobody answers.
fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let talk = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = talk().unwrap_or_default();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Makes a fleet of one agent and one aggregator in `directory`.
fn issue(directory: &Path) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64;
    let validity = Validity { not_before: Timestamp::from_micros(now - 3_600_000_000), days: 1 };
    let ca = FleetCa::create("test".parse::<FleetName>().expect("valid"), validity).expect("an authority");
    std::fs::write(directory.join("ca.pem"), ca.certificate_pem()).expect("writable");
    for (role, name) in [(Role::Agent, "node-a"), (Role::Aggregator, "aggregator-1")] {
        let node: NodeId = name.parse().expect("valid");
        let issued = ca.issue(role, &node, &["127.0.0.1".to_owned()], validity).expect("a certificate");
        let key = directory.join(format!("{name}.key"));
        std::fs::write(directory.join(format!("{name}.pem")), issued.certificate_pem).expect("writable");
        std::fs::write(&key, issued.key_pem).expect("writable");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("ours");
    }
}

/// An aggregator that commits everything it is sent.
struct Aggregator {
    listener: AggregatorListener,
    events: mpsc::Receiver<ListenerEvent>,
}

impl Aggregator {
    /// Listens with the certificates that [`issue`] left in `directory`.
    fn start(directory: &Path, address: SocketAddr) -> Self {
        let file = |name: &str| directory.join(name);
        let tls = read_tls(&file("ca.pem"), &file("aggregator-1.pem"), &file("aggregator-1.key")).expect("just made");
        let config = ListenerConfig { address, timing: Timing::default() };
        let answer =
            |_: &_| Answer::Welcome { term: Term(3), leader: "aggregator-1".to_owned(), acknowledged_below: 0 };
        let (listener, events) = AggregatorListener::bind(&config, &tls, answer).expect("a free port");
        Self { listener, events }
    }

    async fn event(&mut self) -> ListenerEvent {
        self.events.recv().await.expect("the listener stands")
    }

    /// The next window that `wanted` likes; every one is acknowledged.
    async fn window(&mut self, mut wanted: impl FnMut(&NodeWindow) -> bool) -> NodeWindow {
        let look = async {
            loop {
                if let ListenerEvent::Window(window) = self.event().await {
                    self.listener.acknowledge(&window.key.node, window.key.boot, vec![window.key.seq]);
                    if wanted(&window) {
                        return *window;
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, look).await.expect("such a window in time")
    }
}

#[test]
fn an_agent_alone_counts_spools_and_stops_cleanly() {
    let mut agent = Agent::configure("", "[aggregators]\naddresses = []");
    assert_eq!(agent.run(&["status"]).status.code(), Some(2), "down");
    agent.start();
    agent.post_spans(7);
    let (code, status) = agent.until("seven spans are counted", || {
        let (code, status) = agent.status();
        (status["intake"]["spans"] == 7 && status["windows"]["spooled"].as_u64() >= Some(2)).then_some((code, status))
    });
    assert_eq!(code, Some(1), "degraded without an aggregator");
    assert_eq!((status["state"].as_str(), status["node"].as_str()), (Some("degraded"), Some("node-a")));
    let geo = &status["services"][0];
    assert_eq!((geo["name"].as_str(), geo["instances"].as_u64()), (Some("geo"), Some(1)));
    assert!(http(agent.http, "GET", "/metrics", "").1.contains("\nsage_agent_spans_total 7\n"));
    assert_eq!(http(agent.http, "GET", "/healthz", "").0, 200);
    assert_eq!(http(agent.otlp, "POST", "/v1/traces", "{nonsense").0, 400);
    agent.until("the nonsense is counted", || (agent.status().1["intake"]["rejected_requests"] == 1).then_some(()));

    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(0), "{}", agent.log());
    assert!(!agent.path("run/agent.sock").exists(), "the socket goes with the agent");
    assert!(std::fs::read_dir(agent.path("state/spool")).expect("made").count() >= 2, "windows stay for the next life");
}

#[test]
fn a_second_agent_on_the_same_state_or_socket_refuses_to_start() {
    let mut agent = Agent::configure("", "[aggregators]\naddresses = []");
    agent.start();
    let second = agent.run(&["run"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another agent"), "{second:?}");
    assert_eq!(agent.status().0, Some(1), "the first one is still there");
}

#[test]
fn without_a_state_directory_the_agent_measures_but_changes_nothing() {
    let mut agent = Agent::configure("state_dir = \"/proc/no/such/place\"", "[aggregators]\naddresses = []");
    agent.start();
    agent.post_spans(3);
    let status = agent.until("spans are counted", || Some(agent.status().1).filter(|s| s["intake"]["spans"] == 3));
    let problems = status["problems"].to_string();
    assert!(problems.contains("actuation is off") && problems.contains("spool"), "{problems}");
    assert_eq!(agent.run(&["freeze"]).status.code(), Some(1));
    agent.signal("INT");
    assert_eq!(agent.wait(), Some(0));
}

#[test]
fn configuration_errors_say_where_and_what() {
    let agent = Agent::configure("windw = 3", "");
    for words in [&["config", "validate"][..], &["run"], &["status"]] {
        let output = agent.run(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(text.contains("agent.toml") && text.contains("did you mean `window`?"), "{text}");
    }
    let good = Agent::configure("", "");
    assert_eq!(good.run(&["config", "validate"]).status.code(), Some(0));
    std::fs::create_dir(good.path("policy.d")).expect("writable");
    let policy = good.path("policy.d/10.toml");
    std::fs::write(&policy, "[defaults]\ntrust = \"auto\"\n").expect("writable");
    std::fs::set_permissions(&policy, std::fs::Permissions::from_mode(0o666)).expect("ours");
    let output = good.run(&["config", "validate"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("10.toml"), "{output:?}");
}

#[test]
fn the_default_configuration_is_printed_and_accepted() {
    let agent = Agent::configure("", "");
    let output = agent.run(&["config", "default"]);
    std::fs::write(agent.path("agent.toml"), output.stdout).expect("writable");
    let shown = agent.run(&["config", "show"]);
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("length_ms = 10000"));
}

#[test]
fn doctor_looks_for_itself_when_no_agent_answers() {
    let agent = Agent::configure("", "");
    let output = agent.run(&["doctor", "--output", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["daemon"], false);
    let sources = report["sources"].as_array().expect("a list");
    assert!(sources.iter().any(|line| line["name"] == "node processors" && line["works"] == true));
    assert!(!report["knobs"].as_array().expect("a list").is_empty());
    assert_eq!(output.status.code(), Some(1), "there are no certificates");
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_of_this_and_of_an_earlier_life_are_sent_until_they_are_acknowledged() {
    let address = free_udp();
    let mut agent = Agent::configure("", &format!("[aggregators]\naddresses = [\"{address}\"]"));
    issue(agent.directory.path());
    agent.start();
    agent.post_spans(5);
    agent.until("two windows wait", || (agent.status().1["windows"]["spooled"].as_u64() >= Some(2)).then_some(()));
    let first_boot = agent.status().1["boot"].as_str().map(|boot| u64::from_str_radix(boot, 16)).expect("text");
    let first_boot = BootId(first_boot.expect("hexadecimal"));
    agent.signal("KILL");
    agent.wait();

    let mut aggregator = Aggregator::start(agent.directory.path(), address);
    agent.start();
    let window = aggregator.window(|window| window.key.boot == first_boot && !window.latencies.is_empty()).await;
    assert_eq!(window.latencies[0].service.as_str(), "geo");
    assert!((window.latencies[0].calls - 5.0).abs() < 1e-6);
    let own = aggregator.window(|window| window.key.boot != first_boot && !window.node_usage.is_empty()).await;
    assert!(own.node_usage.iter().all(|value| value.quantiles.is_valid()));

    let deadline = Instant::now() + PATIENCE;
    let (code, status) = loop {
        aggregator.window(|_| true).await;
        let (code, status) = agent.status();
        if status["windows"]["spooled"].as_u64() <= Some(2) && status["windows"]["acknowledged"].as_u64() >= Some(3) {
            break (code, status);
        }
        assert!(Instant::now() < deadline, "{status}");
    };
    assert_eq!(status["leader"], "aggregator-1", "{status}");
    assert_eq!((code, status["state"].as_str()), (Some(0), Some("healthy")), "{status}");
}

mod root_tests {
    use sage_common::{ActionId, CgroupPath, Knob, Micros, Setting};
    use sage_protocol::message::{self, Order, Outcome, RevertReason};

    use super::*;

    const ROOT: &str = "/sys/fs/cgroup";

    /// A cgroup of ours in the v1 trees that a quota needs; removed with the value.
    struct Cgroup(String);

    impl Cgroup {
        fn make(test: &str) -> Self {
            let own = Self(format!("sage-daemon-{}-{test}", std::process::id()));
            own.paths().iter().for_each(|path| std::fs::create_dir(path).expect("root may make cgroups"));
            own
        }

        fn paths(&self) -> Vec<PathBuf> {
            ["cpu", "cpuacct"].iter().map(|tree| Path::new(ROOT).join(tree).join(&self.0)).collect()
        }

        fn quota(&self) -> String {
            let file = Path::new(ROOT).join("cpu").join(&self.0).join("cpu.cfs_quota_us");
            std::fs::read_to_string(file).expect("there").trim().to_owned()
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            self.paths().iter().for_each(|path| drop(std::fs::remove_dir(path)));
        }
    }

    fn agent(cgroup: &Cgroup, address: SocketAddr) -> Agent {
        let tables = format!(
            "[aggregators]\naddresses = [\"{address}\"]\n[[services]]\ncgroup = \"{}\"\nservice = \"geo\"",
            cgroup.0
        );
        let agent = Agent::configure("", &tables);
        std::fs::create_dir(agent.path("policy.d")).expect("writable");
        let policy = "[[service]]\nname = \"geo\"\ntrust = \"auto\"\nknobs = [\"cpu_quota\"]\ncores_min = 0.1\n";
        std::fs::write(agent.path("policy.d/10.toml"), policy).expect("writable");
        agent
    }

    /// Waits for the offer of the quota, then has it set to half a core.
    async fn limit(aggregator: &mut Aggregator, cgroup: &Cgroup) {
        let knob = Knob::CpuQuota { cgroup: CgroupPath::try_from(cgroup.0.clone()).expect("valid") };
        let window = aggregator.window(|window| window.offers.iter().any(|offer| offer.knob == knob)).await;
        assert_eq!(window.usage[0].service.as_str(), "geo");
        let order = Order::Apply {
            knob,
            setting: Setting::Cores(Some(500)),
            lease: Micros::from_secs(300),
            service: "geo".parse().expect("valid"),
            reason: "test".to_owned(),
        };
        let command = message::Command { term: Term(3), action: ActionId(41), order };
        aggregator.listener.command(&window.key.node, command).expect("connected");
        let outcome = outcome(aggregator).await;
        assert!(matches!(outcome, Outcome::Applied { now: Setting::Cores(Some(500)), .. }), "{outcome:?}");
        assert_eq!(cgroup.quota(), "50000");
    }

    async fn outcome(aggregator: &mut Aggregator) -> Outcome {
        let look = async {
            loop {
                if let ListenerEvent::Result { result, .. } = aggregator.event().await {
                    return result.outcome;
                }
            }
        };
        tokio::time::timeout(PATIENCE, look).await.expect("a result in time")
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs root: make test-root"]
    async fn a_limit_is_undone_at_the_start_after_a_kill() {
        let cgroup = Cgroup::make("kill");
        let address = free_udp();
        let mut agent = agent(&cgroup, address);
        issue(agent.directory.path());
        let mut aggregator = Aggregator::start(agent.directory.path(), address);
        agent.start();
        limit(&mut aggregator, &cgroup).await;
        let leases = agent.status().1["leases"].clone();
        assert_eq!(
            (leases[0]["setting"].as_str(), leases[0]["before"].as_str()),
            (Some("0.50 cores"), Some("no limit"))
        );

        agent.signal("KILL");
        agent.wait();
        assert_eq!(cgroup.quota(), "50000", "nobody is there to undo it");
        agent.start();
        assert_eq!(cgroup.quota(), "-1");
        assert_eq!(outcome(&mut aggregator).await, Outcome::Reverted(RevertReason::Recovered));
        let audit = agent.run(&["actions", "--output", "json"]);
        assert!(String::from_utf8_lossy(&audit.stdout).contains("\"revert\""), "{audit:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs root: make test-root"]
    async fn sigterm_gives_a_limit_back_and_reports_it_before_the_end() {
        let cgroup = Cgroup::make("term");
        let address = free_udp();
        let mut agent = agent(&cgroup, address);
        issue(agent.directory.path());
        let mut aggregator = Aggregator::start(agent.directory.path(), address);
        agent.start();
        limit(&mut aggregator, &cgroup).await;
        agent.signal("TERM");
        assert_eq!(outcome(&mut aggregator).await, Outcome::Reverted(RevertReason::Shutdown));
        assert_eq!(agent.wait(), Some(0));
        assert_eq!(cgroup.quota(), "-1");
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs root: make test-root"]
    async fn the_brake_gives_a_limit_back_and_refuses_the_next_until_thawed() {
        let cgroup = Cgroup::make("brake");
        let address = free_udp();
        let mut agent = agent(&cgroup, address);
        issue(agent.directory.path());
        let mut aggregator = Aggregator::start(agent.directory.path(), address);
        agent.start();
        limit(&mut aggregator, &cgroup).await;
        assert_eq!(agent.run(&["freeze"]).status.code(), Some(0));
        assert_eq!(cgroup.quota(), "-1");
        assert_eq!(agent.status().1["frozen"], true);
        assert_eq!(agent.run(&["thaw"]).status.code(), Some(0));
        assert_eq!(agent.status().1["frozen"], false);
    }
}
