//! Everything a demo runs, started in order and taken down in reverse.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{
    api::Api,
    cgroups::Cgroups,
    fabric::{LINK_MBIT, Network},
    fault::{Fault, FaultKind},
    files::{self, HTTP_PORT, Pace, Paths},
    layout::{HUB, Layout},
    processes::{Place, Process, end_all},
    shell,
};

/// Where bulk senders send to.
const SINK_PORT: u16 = 5201;
/// How long the application runs before anybody looks.
const WARM_UP: Duration = Duration::from_secs(8);
/// Extra time of the slow code path, in multiples of the objective's target.
const SLOW_TARGETS: f64 = 1.5;

/// A line of the load generator.
#[derive(Debug, Deserialize)]
struct LoadLine {
    p99: f64,
}

/// Latency as clients see it.
#[derive(Clone, Copy, Debug)]
pub struct ClientLatency {
    /// End of the window of arrivals.
    pub at: Instant,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
}

/// Everything that runs. Fields are dropped in order: processes, then cgroups, then the network.
pub struct Stage {
    hogs: Vec<Process>,
    /// Killed hogs, reaped at the end: a frozen process dies only once its agent has thawed it.
    dying: Vec<Process>,
    processes: Vec<Process>,
    tier_pids: BTreeMap<String, u32>,
    cgroups: Option<Cgroups>,
    network: Network,
    /// What the load generator says, a window at a time.
    pub load: mpsc::Receiver<ClientLatency>,
    /// Where everything is.
    pub layout: Layout,
    /// The aggregator.
    pub api: Api,
    paths: Paths,
}

/// What a stage is built from.
pub struct Script {
    /// Topology file or built-in name, as the programs take it.
    pub topology: String,
    /// Service that requests enter through.
    pub entry: String,
    /// Seed of the load.
    pub seed: u64,
    /// Names of namespaces and cgroups start with it.
    pub prefix: String,
    /// Window length and learning time.
    pub pace: Pace,
    /// Whether cgroups can be made.
    pub privileged: bool,
}

impl Stage {
    /// Builds network and cgroups and starts tiers, load, aggregator and agents. Call before starting any thread.
    pub fn build(script: &Script, layout: Layout, paths: Paths) -> Result<Self> {
        let pki = files::issue_certificates(&paths, &layout)?;
        let network = Network::build(&script.prefix, &layout)?;
        let cgroups = if script.privileged { Some(Cgroups::build(&script.prefix, &layout)?) } else { None };
        let (_, load) = mpsc::channel();
        let api = Api::new(&format!("127.0.0.1:{HTTP_PORT}"));
        let mut stage = Self {
            hogs: Vec::new(),
            dying: Vec::new(),
            processes: Vec::new(),
            tier_pids: BTreeMap::new(),
            cgroups,
            network,
            load,
            layout,
            api,
            paths,
        };
        stage.start_application(script)?;
        // The first requests of a fresh process are its slowest, and say nothing about what is normal.
        thread::sleep(WARM_UP);
        stage.start_sage(script, &pki)?;
        Ok(stage)
    }

    fn start_sage(&mut self, script: &Script, pki: &std::path::Path) -> Result<()> {
        let config = files::aggregator(&self.paths, pki, script.pace)?;
        self.start(
            "aggregator",
            "sage-aggregator",
            &["run", "--config", &config.display().to_string()],
            &Place::default(),
        )?;
        for node in self.layout.nodes.clone() {
            let config = files::agent(&self.paths, &node, pki, script.pace, self.cgroups.as_ref())?;
            let place = Place { namespace: Some(self.network.node(&node.name)), cgroups: Vec::new() };
            self.start(
                &format!("agent-{}", node.name),
                "sage-agent",
                &["run", "--config", &config.display().to_string()],
                &place,
            )?;
        }
        Ok(())
    }

    fn start_application(&mut self, script: &Script) -> Result<()> {
        let peers = self.paths.out.join("peers.json");
        std::fs::write(&peers, serde_json::to_string_pretty(&self.layout.peers())?)
            .context("cannot write peers.json")?;
        for node in self.layout.nodes.clone() {
            for tier in &node.tiers {
                let home = self.paths.dir(&format!("{}/{}", node.name, tier.service))?;
                let listen = format!("{}:{}", node.ip, tier.port);
                let (work, control) =
                    (home.display().to_string(), self.control(&node.name, &tier.service).display().to_string());
                let link = LINK_MBIT.to_string();
                let place = self.place(&node.name, |cgroups| cgroups.tier(&node.name, &tier.service));
                #[rustfmt::skip]
                let args = [
                    "tier", "--topology", &script.topology, "--service", &tier.service, "--listen", &listen,
                    "--peers", &peers.display().to_string(), "--otlp", "http://127.0.0.1:4318", "--work-dir", &work, "--control", &control,
                    "--link-mbit", &link,
                ];
                let pid = self.start(&format!("tier-{}", tier.service), "sage-bench", &args, &place)?;
                self.tier_pids.insert(tier.service.clone(), pid);
            }
        }
        self.start(
            "sink",
            "sage-bench",
            &["hog", "sink", "--listen", &format!("{HUB}:{SINK_PORT}")],
            &Place::default(),
        )?;
        self.start_load(script)
    }

    fn start_load(&mut self, script: &Script) -> Result<()> {
        let target = self
            .layout
            .peers()
            .remove(&script.entry)
            .with_context(|| format!("no tier runs the entry {}", script.entry))?;
        let (rate, seed, window) =
            (self.layout.rate.to_string(), script.seed.to_string(), (script.pace.window_ms as f64 / 1e3).to_string());
        #[rustfmt::skip]
        let args = [
            "load", "--topology", &script.topology, "--target", &target, "--rate", &rate, "--seed", &seed,
            "--duration", "36000", "--window", &window, "--swing", "0.2", "--swing-period", "40", "--out", "-",
        ];
        let mut load = self.spawn("load", "sage-bench", &args, &Place::default(), true)?;
        let stdout = load.take_stdout().context("the load generator has no output")?;
        let (sender, receiver) = mpsc::channel();
        self.load = receiver;
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The summary and anything else that is not a window is for people.
                if let Ok(LoadLine { p99 }) = serde_json::from_str(&line)
                    && sender.send(ClientLatency { at: Instant::now(), p99_ms: p99 }).is_err()
                {
                    return;
                }
            }
        });
        self.processes.push(load);
        Ok(())
    }

    /// Whether there are cgroups that Sage may change.
    pub fn can_repair(&self) -> bool {
        self.cgroups.is_some()
    }

    fn start(&mut self, name: &str, program: &str, args: &[&str], place: &Place) -> Result<u32> {
        let process = self.spawn(name, program, args, place, false)?;
        let pid = process.pid();
        self.processes.push(process);
        Ok(pid)
    }

    fn spawn(&self, name: &str, program: &str, args: &[&str], place: &Place, keep_stdout: bool) -> Result<Process> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Process::start(name, &self.paths.program(program)?, &args, place, &self.paths.dir("logs")?, keep_stdout)
    }

    fn place(&self, node: &str, cgroup: impl Fn(&Cgroups) -> String) -> Place {
        let cgroups = self.cgroups.as_ref().map(|cgroups| cgroups.directories(&cgroup(cgroups))).unwrap_or_default();
        Place { namespace: Some(self.network.node(node)), cgroups }
    }

    fn control(&self, node: &str, service: &str) -> PathBuf {
        self.paths.out.join(format!("{node}/{service}.control"))
    }

    /// The namespace in which `sagectl` reaches the aggregator.
    pub fn hub(&self) -> String {
        self.network.hub()
    }

    /// An error when anything that should run has ended.
    pub fn check(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(Process::check)
    }

    /// Breaks something.
    pub fn inject(&mut self, fault: &Fault, target_ms: f64) -> Result<()> {
        let node = self
            .layout
            .node_of(&fault.service)
            .with_context(|| format!("no tier runs {}", fault.service))?
            .name
            .clone();
        let dir = self.paths.dir(&node)?.display().to_string();
        let sink = format!("{HUB}:{SINK_PORT}");
        match fault.kind {
            FaultKind::Cpu => {
                let pid = self.hog(&node, &["cpu", "--threads", "3"])?;
                if self.cgroups.is_none() {
                    self.crowd_together(&node, pid)?;
                }
            }
            FaultKind::Network => drop(self.hog(&node, &["send", "--to", &sink, "--connections", "24"])?),
            FaultKind::Disk => drop(self.hog(&node, &["disk", "--dir", &dir])?),
            FaultKind::Threads => self.command(&node, &fault.service, "threads 1")?,
            FaultKind::Slow => {
                self.command(&node, &fault.service, &format!("slow_ms {:.0}", target_ms * SLOW_TARGETS))?;
            }
        }
        Ok(())
    }

    /// Takes a fault away.
    pub fn withdraw(&mut self, fault: &Fault) -> Result<()> {
        for hog in &self.hogs {
            hog.kill();
        }
        self.dying.append(&mut self.hogs);
        if !fault.kind.is_of_resource() {
            let node =
                self.layout.node_of(&fault.service).context("the tier was there when it was broken")?.name.clone();
            self.command(&node, &fault.service, "reset")?;
        }
        Ok(())
    }

    fn hog(&mut self, node: &str, args: &[&str]) -> Result<u32> {
        let place = self.place(node, |cgroups| cgroups.batch(node));
        let mut words = vec!["hog"];
        words.extend_from_slice(args);
        let hog = self.spawn("hog", "sage-bench", &words, &place, false)?;
        let pid = hog.pid();
        self.hogs.push(hog);
        Ok(pid)
    }

    /// Without cgroups a node has no size: the hog and the node's tiers share the last CPU, all other tiers the rest.
    fn crowd_together(&self, node: &str, hog: u32) -> Result<()> {
        let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (here, elsewhere) = (cpus - 1, format!("0-{}", cpus.saturating_sub(2)));
        shell::run(&format!("taskset -a -p -c {here} {hog}"))?;
        for place in &self.layout.nodes {
            for tier in &place.tiers {
                let Some(pid) = self.tier_pids.get(&tier.service) else { continue };
                let list = if place.name == node { here.to_string() } else { elsewhere.clone() };
                shell::run(&format!("taskset -a -p -c {list} {pid}"))?;
            }
        }
        Ok(())
    }

    fn command(&self, node: &str, service: &str, line: &str) -> Result<()> {
        let path = self.control(node, service);
        let mut stream =
            UnixStream::connect(&path).with_context(|| format!("cannot reach {service} at {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        writeln!(stream, "{line}").with_context(|| format!("cannot tell {service} {line:?}"))?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).with_context(|| format!("{service} did not answer {line:?}"))?;
        anyhow::ensure!(answer.starts_with("ok"), "{service} refused {line:?}: {}", answer.trim());
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for hog in &self.hogs {
            hog.kill();
        }
        // Agents go before what they hold, and give everything back.
        self.processes.reverse();
        end_all(&mut self.processes);
        if let Err(error) = self.paths.state.keep("aggregator", &self.paths.out.join("aggregator")) {
            eprintln!("the aggregator's log is lost: {error:#}");
        }
    }
}
