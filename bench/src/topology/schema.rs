//! The file format `topology/1` as serde types, field for field as `SCHEMA.md` describes it. What a value may be is
//! checked in [`validate`](super::validate); here only its shape.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One application: services, pools between them, and the call trees of its requests.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Always `topology/1`.
    pub schema: String,
    /// The file name without `.json`.
    pub name: String,
    /// One line for people.
    #[serde(default)]
    pub title: String,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// Where the numbers come from.
    #[serde(default)]
    pub sources: Vec<String>,
    /// End-to-end target over the mix.
    pub qos: Qos,
    /// How it is driven.
    pub load: Load,
    /// Facts on the data set, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
    /// One hop of the network (simulators only; the real application has a real network).
    pub network: Network,
    /// One entry per container.
    pub services: Vec<Service>,
    /// Kinds of request, with their call trees.
    pub requests: Vec<RequestKind>,
    /// One entry per caller-callee edge.
    pub pools: Vec<PoolSpec>,
}

/// The end-to-end latency target.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Qos {
    /// Which percentile, in `(0, 100)`.
    pub percentile: f64,
    /// Its target in milliseconds.
    pub latency_ms: f64,
    /// How firm the number is.
    #[serde(default)]
    pub basis: String,
}

/// How the application is driven.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Always true: the generator does not wait for answers.
    pub open_loop: bool,
    /// The arrival process.
    pub arrivals: Arrivals,
    /// Requests a second at which the application is healthy.
    pub nominal_qps: f64,
    /// Rates worth measuring.
    #[serde(default)]
    pub sweep_qps: Vec<f64>,
    /// Other mixes: name → request → share.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alt_mixes: BTreeMap<String, BTreeMap<String, f64>>,
    /// How firm the numbers are.
    #[serde(default)]
    pub basis: String,
}

/// The arrival process.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Independent exponential gaps.
    Poisson,
}

/// One hop of the network.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// One direction of one hop, microseconds.
    pub one_way_us: Draw,
    /// How firm the number is.
    #[serde(default)]
    pub basis: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A distribution. Units are its user's.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "dist", rename_all = "snake_case", deny_unknown_fields)]
pub enum Draw {
    /// Whole numbers `lo, lo + step, ..= hi`, each as likely.
    UniformInt {
        /// The smallest.
        lo: u32,
        /// The largest.
        hi: u32,
        /// The distance between two; 1 by default.
        #[serde(default = "one")]
        step: u32,
    },
    /// Lognormal by mean and coefficient of variation.
    Lognormal {
        /// Mean.
        mean: f64,
        /// Standard deviation over mean.
        cv: f64,
    },
}

/// A count: fixed or drawn for each call.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Amount {
    /// Always this.
    Fixed(u32),
    /// Drawn for each call.
    Drawn(Draw),
}

const fn one() -> u32 {
    1
}

/// What a tier is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceKind {
    /// Users enter here.
    Frontend,
    /// Computes and calls.
    Stateless,
    /// Answers from memory.
    Cache,
    /// Answers from disk.
    Database,
    /// Not on the path of requests.
    Infra,
}

/// One tier.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name.
    pub id: String,
    /// What it is.
    pub kind: ServiceKind,
    /// What it is built from.
    pub tech: String,
    /// Cores one replica may use.
    pub cpu_cores: f64,
    /// Replicas.
    pub replicas: Replicas,
    /// How it serves requests at once.
    pub concurrency: Concurrency,
    /// CPU per call, on top of the operation's own time.
    pub rpc_cost_us: RpcCost,
    /// Operation → own service time.
    pub ops: BTreeMap<String, Op>,
    /// What its own time is made of.
    pub sensitivity: Sensitivity,
    /// False: idle under the mix.
    #[serde(default = "yes")]
    pub in_workload: bool,
    /// May be left out.
    #[serde(default)]
    pub optional: bool,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Where it stands in its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src: Option<String>,
}

const fn yes() -> bool {
    true
}

/// How many replicas a tier has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Replicas {
    /// On one machine: always 1.
    pub local: u32,
    /// In the paper's cloud deployment.
    pub gce: u32,
}

/// How a tier serves requests at once.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "model", rename_all = "snake_case", deny_unknown_fields)]
pub enum Concurrency {
    /// Loops that never block on a call.
    EventLoop {
        /// How many loops, a thread each.
        workers: u32,
        /// Connections per loop.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker_connections: Option<u32>,
    },
    /// A thread per open inbound connection, held while it waits for its callees.
    ThreadPerConnection {},
    /// So many requests served at once.
    ThreadPool {
        /// How many.
        threads: u32,
    },
    /// One request at a time.
    SingleThread {
        /// Always 1.
        #[serde(default = "one")]
        threads: u32,
    },
    /// Unbounded; waiting costs no core.
    Goroutines {},
    /// Serves nothing.
    #[serde(rename = "n/a")]
    None {},
}

/// CPU microseconds per call.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RpcCost {
    /// Per call issued.
    pub client: f64,
    /// Per call received.
    pub server: f64,
}

/// Own service time of one operation, callees excluded.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Op {
    /// Always `lognormal`.
    pub dist: OpDist,
    /// Mean without items, microseconds.
    pub mean_us: f64,
    /// Coefficient of variation.
    pub cv: f64,
    /// Mean added per item of the call, microseconds.
    #[serde(default)]
    pub per_item_us: f64,
    /// Now and then slower (fsync, checkpoint).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow: Option<Slow>,
    /// How firm the numbers are.
    #[serde(default)]
    pub basis: String,
}

/// The only family of service times in use.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OpDist {
    /// Lognormal.
    Lognormal,
}

/// With probability `p` the sample is multiplied by `factor`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Slow {
    /// How likely.
    pub p: f64,
    /// How much slower.
    pub factor: f64,
}

/// Shares of the own service time by resource; they sum to 1.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sensitivity {
    /// Processor.
    pub cpu: f64,
    /// Memory bandwidth and last-level cache together.
    pub mem: f64,
    /// Disk.
    pub disk: f64,
    /// Network.
    pub net: f64,
}

/// The connection pool of one caller to one callee.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// The caller.
    pub from: String,
    /// The callee.
    pub to: String,
    /// What is spoken in the original.
    pub protocol: String,
    /// Connections opened at start.
    pub min: u32,
    /// Connections at most (see `max_is`).
    pub max: u32,
    /// How long to wait for a free one; absent: as long as the call may take.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// How long an idle one is kept; absent: for ever.
    #[serde(default)]
    pub keepalive_ms: Option<u64>,
    /// Whether a caller without a free connection waits. Otherwise it opens another one.
    pub blocking: bool,
    /// Where `max` means something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_is: Option<String>,
    /// Of the original; unused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_selection_timeout_ms: Option<u64>,
    /// How firm the numbers are.
    #[serde(default)]
    pub basis: String,
}

/// One kind of request.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RequestKind {
    /// Its name.
    pub id: String,
    /// Its share of the load; shares sum to 1.
    pub mix: f64,
    /// False: in the code, but not reachable from outside.
    #[serde(default = "yes")]
    pub exposed: bool,
    /// The route, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Its call tree.
    pub root: CallNode,
}

/// One call of a tree.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CallNode {
    /// The callee.
    pub svc: String,
    /// Its operation.
    pub op: String,
    /// Items the callee works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Amount>,
    /// That many calls, one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Amount>,
    /// The caller does not wait.
    #[serde(default, rename = "async")]
    pub detached: bool,
    /// What the callee does; empty: it spends its whole own time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepSpec>,
    /// Where the edge stands in its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src: Option<String>,
}

/// One step of a node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSpec {
    /// Spend this share of the node's own time.
    Work(f64),
    /// Call and wait.
    Call(Box<CallNode>),
    /// Start all branches at once, wait for all.
    Par(Vec<Vec<Self>>),
    /// Run the steps with probability `p`.
    If(IfSpec),
    /// Join without a parent.
    LastOf(LastOfSpec),
}

/// A branch taken with a probability.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct IfSpec {
    /// How likely.
    pub p: f64,
    /// What decides it; equal texts in one node share one draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cond: Option<String>,
    /// What then happens.
    pub steps: Vec<StepSpec>,
}

/// Of `arity` visits to `key` in one request, the last runs the steps.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LastOfSpec {
    /// What is joined.
    pub key: String,
    /// Visits to wait for.
    pub arity: u32,
    /// Whether a player without joins runs the steps here (the longest path).
    pub default_branch: bool,
    /// What the last one does.
    pub steps: Vec<StepSpec>,
}
