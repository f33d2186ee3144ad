//! A whole application: starts a process per tier, tells who died, stops them all.
#![expect(clippy::disallowed_methods, reason = "processes, ports and deadlines are what this is about")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::topology::{self, Facts, Plan, Topology};

/// What to start, and where.
#[derive(Clone, Debug)]
pub struct AppSpec {
    /// The `sage-bench` program.
    pub program: PathBuf,
    /// Built-in name or path of the topology.
    pub topology: String,
    /// Multiplies every service time of the file.
    pub scale_time: f64,
    /// Where spans go (`http://host:port`), unless a place says otherwise; `None`: nowhere.
    pub otlp: Option<String>,
    /// First port for tiers whose place names none; 0: any that are free.
    pub base_port: u16,
    /// Where single tiers run; the others run here, on loopback.
    pub placement: Placement,
    /// Folder for the control sockets, `SERVICE.sock` each; `None`: no sockets.
    pub control_dir: Option<PathBuf>,
    /// Where disk work writes, unless a place says otherwise.
    pub work_dir: Option<PathBuf>,
    /// Whether client spans name their callee.
    pub peer_names: bool,
}

impl AppSpec {
    /// `topology` on loopback with free ports, without spans and control sockets.
    pub fn new(program: PathBuf, topology: &str) -> Self {
        Self {
            program,
            topology: topology.to_owned(),
            scale_time: 1.0,
            otlp: None,
            base_port: 0,
            placement: Placement::new(),
            control_dir: None,
            work_dir: None,
            peer_names: false,
        }
    }
}

/// Service → where it runs.
pub type Placement = BTreeMap<String, Place>;

/// Where one tier runs. Every key is optional.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Place {
    /// Address to serve at; 127.0.0.1 by default.
    pub ip: Option<IpAddr>,
    /// Port; the next free one by default.
    pub port: Option<u16>,
    /// Where its spans go.
    pub otlp: Option<String>,
    /// Network namespace: a name below /run/netns, or a path.
    pub netns: Option<String>,
    /// Directories of cgroups to put the process in (one per hierarchy on v1).
    pub cgroups: Vec<PathBuf>,
    /// Where its disk work writes.
    pub work_dir: Option<PathBuf>,
}

/// One tier that was started.
#[derive(Debug)]
pub struct TierProcess {
    /// The service it plays.
    pub service: String,
    /// Where it serves.
    pub address: SocketAddr,
    /// Its process id.
    pub pid: u32,
    /// Its control socket.
    pub control: Option<PathBuf>,
    child: Child,
    status: Option<ExitStatus>,
}

/// A tier that ended without being told to.
#[derive(Clone, Debug)]
pub struct Death {
    /// Which.
    pub service: String,
    /// Its process id.
    pub pid: u32,
    /// How.
    pub status: ExitStatus,
}

/// A running application; stops when dropped.
#[derive(Debug)]
pub struct App {
    spec: AppSpec,
    topology: Topology,
    addresses: BTreeMap<String, SocketAddr>,
    entry: SocketAddr,
    tiers: Vec<TierProcess>,
}

/// Measuring memory and disk takes well below a second on an idle machine; a busy one gets this.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Enough to export the last spans.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);

impl App {
    /// Starts every tier that the mix uses and waits until all serve.
    ///
    /// # Errors
    ///
    /// When one cannot be started; those that were are stopped again.
    pub fn start(spec: AppSpec) -> Result<Self> {
        let topology = topology::load(&spec.topology)?;
        let plan = Plan::new(&topology);
        let used = Facts::new(&topology, &plan).used;
        for service in spec.placement.keys() {
            ensure!(topology.services.iter().any(|s| s.id == *service), "placement names no service: {service:?}");
        }
        if let Some(dir) = &spec.control_dir {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let services: Vec<&str> = used.iter().map(|index| &*topology.services[*index].id).collect();
        let addresses = addresses(&services, &spec)?;
        let root = plan.roots().first().and_then(|root| plan.node(*root)).context("no requests")?;
        let entry = addresses[&topology.services[root.service].id];
        let mut app = Self { spec, topology, addresses, entry, tiers: Vec::new() };
        app.start_all()?;
        Ok(app)
    }

    /// The tiers, in the order of the file.
    pub fn tiers(&self) -> &[TierProcess] {
        &self.tiers
    }

    /// The topology they play.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Where users' requests go.
    pub fn entry(&self) -> SocketAddr {
        self.entry
    }

    /// The tiers that ended since the last call.
    pub fn reap(&mut self) -> Vec<Death> {
        let mut deaths = Vec::new();
        for tier in self.tiers.iter_mut().filter(|tier| tier.status.is_none()) {
            if let Ok(Some(status)) = tier.child.try_wait() {
                tier.status = Some(status);
                deaths.push(Death { service: tier.service.clone(), pid: tier.pid, status });
            }
        }
        deaths
    }

    /// Ends one tier (if it has not) and starts it again at the same address.
    ///
    /// # Errors
    ///
    /// When there is no such tier or it does not come up.
    pub fn restart(&mut self, service: &str) -> Result<()> {
        let index = self.tiers.iter().position(|tier| tier.service == service);
        let index = index.with_context(|| format!("{service} is not running"))?;
        stop(std::slice::from_mut(&mut self.tiers[index]));
        let (tier, ready) = self.spawn(service)?;
        self.tiers[index] = tier;
        await_ready(&ready, service, Instant::now() + READY_TIMEOUT)
    }

    /// Sends one command to a tier's control socket; its answer.
    ///
    /// # Errors
    ///
    /// When it has no socket, does not answer, or refuses.
    pub fn control(&self, service: &str, command: &str) -> Result<String> {
        let tier = self.tiers.iter().find(|tier| tier.service == service);
        let path = tier.with_context(|| format!("{service} is not running"))?.control.as_ref();
        control(path.context("started without control sockets")?, command)
    }

    /// Ends all tiers: SIGTERM, then SIGKILL for those that do not.
    pub fn stop(&mut self) {
        stop(&mut self.tiers);
    }

    fn start_all(&mut self) -> Result<()> {
        let services: Vec<String> = self.addresses.keys().cloned().collect();
        let mut waiting = Vec::new();
        for service in &services {
            let (tier, ready) = self.spawn(service)?;
            self.tiers.push(tier);
            waiting.push(ready);
        }
        let until = Instant::now() + READY_TIMEOUT;
        services.iter().zip(&waiting).try_for_each(|(service, ready)| await_ready(ready, service, until))
    }

    fn spawn(&self, service: &str) -> Result<(TierProcess, mpsc::Receiver<()>)> {
        let place = self.spec.placement.get(service).cloned().unwrap_or_default();
        let address = self.addresses[service];
        let control = self.spec.control_dir.as_ref().map(|dir| dir.join(format!("{service}.sock")));
        let mut command = self.command(service, &place, control.as_deref())?;
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.spec.program.display()))?;
        let (sender, ready) = mpsc::sync_channel(1);
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if line.starts_with("ready ") {
                        // Full or closed: nobody waits any more.
                        let _ = sender.try_send(());
                    }
                }
            });
        }
        let pid = child.id();
        let tier = TierProcess { service: service.to_owned(), address, pid, control, child, status: None };
        let mut tier = [tier];
        for dir in &place.cgroups {
            let path = dir.join("cgroup.procs");
            if let Err(error) = fs::write(&path, pid.to_string()) {
                stop(&mut tier);
                return Err(error).with_context(|| format!("cannot write {}", path.display()));
            }
        }
        let [tier] = tier;
        Ok((tier, ready))
    }

    fn command(&self, service: &str, place: &Place, control: Option<&Path>) -> Result<Command> {
        let spec = &self.spec;
        let mut command = Command::new(&spec.program);
        command.args(["tier", "--exit-with-stdin", "--service", service, "--topology", &spec.topology]);
        command.args(["--listen", &self.addresses[service].to_string()]);
        command.args(["--peers", &serde_json::to_string(&self.addresses)?]);
        command.args(["--scale-time", &spec.scale_time.to_string()]);
        if let Some(url) = place.otlp.as_ref().or(spec.otlp.as_ref()) {
            command.args(["--otlp", url]);
        }
        if let Some(netns) = &place.netns {
            command.args(["--netns", netns]);
        }
        if let Some(dir) = place.work_dir.as_ref().or(spec.work_dir.as_ref()) {
            command.arg("--work-dir").arg(dir);
        }
        if let Some(path) = control {
            command.arg("--control").arg(path);
        }
        if spec.peer_names {
            command.arg("--peer-names");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(command)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends one command to the control socket at `path`; its answer.
///
/// # Errors
///
/// When it does not answer or refuses.
pub fn control(path: &Path, command: &str) -> Result<String> {
    let mut stream = UnixStream::connect(path).with_context(|| format!("cannot reach {}", path.display()))?;
    stream.set_read_timeout(Some(CONTROL_TIMEOUT))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("no answer from {}", path.display()))?;
    match answer.trim_end() {
        answer if answer.starts_with("error: ") => bail!("{}: {answer}", path.display()),
        answer => Ok(answer.to_owned()),
    }
}

fn addresses(services: &[&str], spec: &AppSpec) -> Result<BTreeMap<String, SocketAddr>> {
    let mut held = Vec::new();
    let mut addresses = BTreeMap::new();
    for (index, service) in services.iter().enumerate() {
        let place = spec.placement.get(*service);
        let ip = place.and_then(|place| place.ip).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = match place.and_then(|place| place.port) {
            Some(port) => port,
            None if spec.base_port == 0 => {
                // Held until all are chosen, so that no two are the same.
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("no free port")?;
                let port = listener.local_addr()?.port();
                held.push(listener);
                port
            }
            None => spec.base_port.checked_add(u16::try_from(index)?).context("ports end at 65535")?,
        };
        addresses.insert((*service).to_owned(), SocketAddr::new(ip, port));
    }
    Ok(addresses)
}

fn await_ready(ready: &mpsc::Receiver<()>, service: &str, until: Instant) -> Result<()> {
    match ready.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(()) => Ok(()),
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("{service} did not start within {READY_TIMEOUT:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("{service} ended while starting"),
    }
}

fn stop(tiers: &mut [TierProcess]) {
    for tier in tiers.iter().filter(|tier| tier.status.is_none()) {
        signal(tier, Signal::TERM);
    }
    let until = Instant::now() + STOP_TIMEOUT;
    for tier in tiers.iter_mut() {
        while tier.status.is_none() {
            match tier.child.try_wait() {
                Ok(Some(status)) => tier.status = Some(status),
                Ok(None) if Instant::now() < until => thread::sleep(POLL),
                _ => {
                    signal(tier, Signal::KILL);
                    tier.status = tier.child.wait().ok();
                    break;
                }
            }
        }
    }
}

fn signal(tier: &TierProcess, signal: Signal) {
    // Not waited for yet, so the id is still its own; an error means that it has ended.
    if let Some(pid) = i32::try_from(tier.pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}
