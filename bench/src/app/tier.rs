//! One tier's process: what it is, what it shares between its requests, and what faults can be switched on in it.
#![expect(clippy::disallowed_methods, reason = "span ids start at a place that the clock chooses")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    client::Client,
    export::Exporter,
    gate::{Gate, UNLIMITED},
    pool::Edge,
    span::{SpanIds, SpanRecord, resource},
    work::{Disk, Memory},
};
use crate::topology::{Concurrency, Node, NodeId, OwnTime, Plan, RpcCost, Sensitivity, Service, Topology};

/// What makes one tier of an application.
#[derive(Clone, Debug)]
pub struct TierSpec {
    /// The service it plays.
    pub service: String,
    /// Where every tier listens.
    pub peers: BTreeMap<String, SocketAddr>,
    /// Where spans go (`http://host:port`); `None`: nowhere.
    pub otlp: Option<String>,
    /// Where disk work writes; the system's temporary directory by default.
    pub work_dir: Option<PathBuf>,
    /// Every own time and RPC cost is multiplied by this.
    pub scale_time: f64,
    /// Line rate of the link that the network share of an own time is spent on, Mbit/s.
    pub link_mbit: f64,
    /// Whether client spans name their callee.
    pub peer_names: bool,
}

/// What the requests of one tier share.
#[derive(Debug)]
pub struct Tier {
    /// The call trees.
    pub plan: Plan,
    /// This tier's place in `Topology::services`.
    pub service: usize,
    /// How it serves requests at once.
    pub concurrency: Concurrency,
    /// Cores it may use.
    pub cpu_cores: f64,
    /// CPU per call.
    pub rpc_cost: RpcCost,
    /// What its own time is made of.
    pub sensitivity: Sensitivity,
    /// Line rate of the link, Mbit/s.
    pub link_mbit: f64,
    /// Edges to its callees.
    pub edges: Arc<[Edge]>,
    /// Limits the requests served at once.
    pub admission: Arc<Gate>,
    /// Faults in force.
    pub faults: Faults,
    /// What happened so far.
    pub counters: Counters,
    /// Ids for its spans.
    pub ids: SpanIds,
    names: Vec<Arc<str>>,
    own_times: BTreeMap<String, OwnTime>,
    memory: Option<Memory>,
    disk: Option<Arc<Disk>>,
    exporter: Option<Exporter>,
    peer_names: bool,
}

/// Counters since the start of the process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests answered well.
    pub served: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
    /// Calls nobody waits for that are under way.
    pub detached: AtomicUsize,
    /// Calls nobody waits for that were not made, because too many were under way.
    pub detached_dropped: AtomicU64,
}

/// Software faults that can be switched on while the tier runs.
#[derive(Debug)]
pub struct Faults {
    /// `f64` bits of the factor on own time.
    slow_factor: AtomicU64,
    /// Microseconds slept in every request.
    delay_us: AtomicU64,
}

impl Faults {
    /// No fault.
    pub fn none() -> Self {
        Self { slow_factor: AtomicU64::new(1.0_f64.to_bits()), delay_us: AtomicU64::new(0) }
    }

    /// Own times are multiplied by this.
    pub fn slow_factor(&self) -> f64 {
        f64::from_bits(self.slow_factor.load(Ordering::Relaxed))
    }

    /// A code path that burns CPU: own times times `factor`.
    pub fn set_slow_factor(&self, factor: f64) {
        self.slow_factor.store(factor.to_bits(), Ordering::Relaxed);
    }

    /// What every request sleeps.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_us.load(Ordering::Relaxed))
    }

    /// A code path that waits: every request sleeps, holding what its tier's model holds.
    pub fn set_delay(&self, delay: Duration) {
        self.delay_us.store(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Tier {
    /// Sets up the tier of `topology` that `spec` names; measures memory and disk if it uses them.
    ///
    /// # Errors
    ///
    /// For a service or callee that is not there, or files and threads that cannot be made.
    pub fn new(topology: &Topology, spec: &TierSpec) -> Result<Arc<Self>> {
        let position = |id: &str| topology.services.iter().position(|service| service.id == id);
        let index = position(&spec.service).with_context(|| format!("there is no service {:?}", spec.service))?;
        let service = &topology.services[index];
        let plan = Plan::new(topology);
        let exporter = match &spec.otlp {
            Some(url) => Some(Exporter::start(url, resource(&service.id, std::process::id()))?),
            None => None,
        };
        let scale = spec.scale_time;
        ensure!(scale > 0.0 && scale.is_finite(), "the time scale must be positive");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = (now.as_nanos() as u64) ^ (u64::from(std::process::id()) << 40);
        Ok(Arc::new(Self {
            edges: edges(topology, &plan, index, &spec.peers)?,
            plan,
            service: index,
            concurrency: service.concurrency,
            cpu_cores: service.cpu_cores,
            rpc_cost: RpcCost {
                client: service.rpc_cost_us.client * scale,
                server: service.rpc_cost_us.server * scale,
            },
            sensitivity: service.sensitivity,
            link_mbit: spec.link_mbit,
            admission: Gate::new(admission(service.concurrency)),
            faults: Faults::none(),
            counters: Counters::default(),
            ids: SpanIds::new(seed),
            names: topology.services.iter().map(|service| service.id.as_str().into()).collect(),
            own_times: service.ops.iter().map(|(name, op)| (name.clone(), OwnTime::new(op, scale))).collect(),
            memory: (service.sensitivity.mem > 0.0).then(Memory::new),
            disk: disk(service, spec)?,
            exporter,
            peer_names: spec.peer_names,
        }))
    }

    /// The node of that number, if it is this tier's.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.plan.node(id).filter(|node| node.service == self.service)
    }

    /// Its own name.
    pub fn name(&self) -> &Arc<str> {
        &self.names[self.service]
    }

    /// How a callee is named in client spans, if it is.
    pub fn peer_name(&self, callee: usize) -> Option<Arc<str>> {
        self.names.get(callee).filter(|_| self.peer_names).cloned()
    }

    /// The edge to the service of that name.
    pub fn edge_to(&self, callee: &str) -> Option<&Edge> {
        self.edges.iter().find(|edge| &*self.names[edge.callee] == callee)
    }

    /// The own time of an operation.
    pub fn own_time(&self, op: &str) -> Option<&OwnTime> {
        self.own_times.get(op)
    }

    /// Its memory to walk, if it uses any.
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// Its disk, if it uses one.
    pub fn disk(&self) -> Option<&Arc<Disk>> {
        self.disk.as_ref()
    }

    /// Its way out for spans, if it has one.
    pub fn exporter(&self) -> Option<&Exporter> {
        self.exporter.as_ref()
    }

    /// Exports a span of a sampled trace.
    pub fn record(&self, is_sampled: bool, span: SpanRecord) {
        if let Some(exporter) = self.exporter.as_ref().filter(|_| is_sampled) {
            exporter.offer(span);
        }
    }

    /// A client for the tasks of one of `shares` runtimes.
    pub fn task_client(&self, shares: usize) -> Client {
        Client::tasks(self.edges.clone(), shares)
    }

    /// A client for threads.
    pub fn thread_client(&self) -> Client {
        Client::threads(self.edges.clone())
    }
}

/// How many requests are served at once without a fault.
pub fn admission(concurrency: Concurrency) -> usize {
    match concurrency {
        Concurrency::ThreadPool { threads } | Concurrency::SingleThread { threads } => threads as usize,
        _ => UNLIMITED,
    }
}

/// The edges out of `index` whose callees are among `peers`; those that the plan calls must be.
fn edges(topology: &Topology, plan: &Plan, index: usize, peers: &BTreeMap<String, SocketAddr>) -> Result<Arc<[Edge]>> {
    let id = &topology.services[index].id;
    let mut edges = Vec::new();
    for spec in topology.pools.iter().filter(|pool| pool.from == *id) {
        let Some(callee) = topology.services.iter().position(|service| service.id == spec.to) else { continue };
        match peers.get(&spec.to) {
            Some(address) => edges.push(Edge::new(spec, callee, *address)),
            None => ensure!(!calls(topology, plan, index, callee), "no address for {}, which {id} calls", spec.to),
        }
    }
    Ok(edges.into())
}

/// Whether `caller` calls `callee` in a request of the mix.
fn calls(topology: &Topology, plan: &Plan, caller: usize, callee: usize) -> bool {
    topology.services[callee].in_workload
        && plan.nodes().filter(|(_, node)| node.service == caller).any(|(_, node)| {
            Plan::callees(&node.steps).iter().any(|id| plan.node(*id).is_some_and(|node| node.service == callee))
        })
}

fn disk(service: &Service, spec: &TierSpec) -> Result<Option<Arc<Disk>>> {
    if service.sensitivity.disk <= 0.0 {
        return Ok(None);
    }
    let dir = spec.work_dir.clone().unwrap_or_else(std::env::temp_dir);
    let disk = Disk::new(&dir).with_context(|| format!("cannot write in {}", dir.display()))?;
    if disk.block_us() < IN_MEMORY_US {
        eprintln!("{}: {} is not on a disk; its disk share will be short", service.id, dir.display());
    }
    Ok(Some(Arc::new(disk)))
}

/// No device gives or syncs a block faster; a file system in memory does.
const IN_MEMORY_US: f64 = 10.0;
