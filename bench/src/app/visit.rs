//! One request at one tier: runs the node's steps, whatever the tier's threads are, and answers.
#![expect(clippy::disallowed_methods, reason = "spans are timed here")]

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    client::{BoxFuture, CallError, Client},
    codec::{Request, Response},
    span::SpanRecord,
    tier::Tier,
    work::{Shares, spin},
};
use crate::topology::{Node, NodeId, Step, count, mix64};

type Outcome = Result<(), CallError>;

/// Calls that nobody waits for, under way at once: far above any healthy tier, far below what would hurt the machine.
const DETACHED_MAX: usize = 1_024;

/// Serves `request`. Its span begins once a thread has taken it up, as instrumented handlers have it: waiting for a
/// thread shows between the caller's span and this one.
pub async fn serve(tier: &Arc<Tier>, client: &Client, request: Request) -> Response {
    let pass = tier.admission.enter().await;
    let start = Instant::now();
    let span_id = tier.ids.next();
    let node = tier.node(request.node);
    let (is_ok, payload_len) = match node {
        Some(node) => run(tier, client, request, span_id, node).await,
        None => (false, 0),
    };
    drop(pass);
    let counter = if is_ok { &tier.counters.served } else { &tier.counters.failed };
    counter.fetch_add(1, Ordering::Relaxed);
    let span = SpanRecord {
        trace_id: request.trace_id,
        span_id,
        parent_id: request.parent_span,
        is_server: true,
        method: node.map_or_else(|| "unknown".into(), |node| node.op.clone()),
        peer: None,
        start,
        end: Instant::now(),
        is_error: !is_ok,
    };
    tier.record(request.is_sampled, span);
    Response { id: request.id, is_ok, payload_len }
}

async fn run(tier: &Arc<Tier>, client: &Client, request: Request, span_id: u64, node: &Node) -> (bool, usize) {
    if request.parent_span != 0 {
        spin(tier.rpc_cost.server);
    }
    let delay = tier.faults.delay();
    if !delay.is_zero() {
        client.sleep(delay).await;
    }
    let visit = Arc::new(Visit::new(tier.clone(), client.clone(), request, span_id, node));
    let outcome = visit.clone().steps(node.steps.clone()).await;
    (outcome.is_ok(), visit.payload_len.load(Ordering::Relaxed))
}

/// What the steps of one request share.
struct Visit {
    tier: Arc<Tier>,
    client: Client,
    request: Request,
    span_id: u64,
    /// This visit's own time, microseconds.
    own_us: f64,
    /// One draw in `[0, 1)` per condition.
    conditions: Vec<f64>,
    /// Bytes to answer with.
    payload_len: AtomicUsize,
    rng: Mutex<SmallRng>,
}

impl Visit {
    fn new(tier: Arc<Tier>, client: Client, request: Request, span_id: u64, node: &Node) -> Self {
        let mut rng = SmallRng::seed_from_u64(request.seed);
        let drawn = tier.own_time(&node.op).map_or(0.0, |own| own.draw(request.items, &mut rng));
        let own_us = drawn * tier.faults.slow_factor();
        let conditions = (0..node.conditions).map(|_| rng.random()).collect();
        let (payload_len, rng) = (AtomicUsize::new(0), Mutex::new(rng));
        Self { tier, client, request, span_id, own_us, conditions, payload_len, rng }
    }

    fn steps(self: Arc<Self>, steps: Arc<[Step]>) -> BoxFuture<Outcome> {
        Box::pin(async move {
            for step in steps.iter() {
                match step {
                    Step::Work(share) => self.work(*share).await,
                    Step::Call(id) => self.call(*id).await?,
                    Step::Par(branches) => {
                        let branches = branches.iter().map(|branch| self.clone().steps(branch.clone())).collect();
                        self.client.fork(branches).await?;
                    }
                    Step::If { p, condition, steps } => {
                        if self.conditions.get(*condition).is_some_and(|drawn| drawn < p) {
                            self.clone().steps(steps.clone()).await?;
                        }
                    }
                }
            }
            Ok(())
        })
    }

    async fn work(&self, share: f64) {
        let shares = Shares::new(self.own_us * share, self.tier.sensitivity, self.tier.link_mbit);
        self.payload_len.fetch_add(shares.payload_len, Ordering::Relaxed);
        spin(shares.cpu_us);
        if let Some(memory) = self.tier.memory() {
            memory.walk(shares.mem_us);
        }
        if let Some(disk) = self.tier.disk() {
            let chance = self.rng.lock().unwrap_or_else(PoisonError::into_inner).random();
            let blocks = disk.blocks(shares.disk_us, chance);
            if blocks > 0 {
                let disk = disk.clone();
                // A block that fails costs what it costs; its content means nothing.
                self.client.blocking(move || (0..blocks).for_each(|_| drop(disk.use_block()))).await;
            }
        }
    }

    async fn call(self: &Arc<Self>, id: NodeId) -> Outcome {
        let Some(node) = self.tier.plan.node(id) else { return Ok(()) };
        // The draws of a call depend on the seed and its place in the tree only: the same seed gives the same work.
        let mut rng = SmallRng::seed_from_u64(mix64(self.request.seed ^ mix64(u64::from(id.0))));
        for _ in 0..count(node.repeat, &mut rng) {
            let (items, seed) = (count(node.items, &mut rng), rng.random());
            if node.is_detached {
                self.detach(id, items, seed);
            } else {
                self.call_once(id, items, seed).await?;
            }
        }
        Ok(())
    }

    async fn call_once(&self, id: NodeId, items: u32, seed: u64) -> Outcome {
        let Some(node) = self.tier.plan.node(id) else { return Ok(()) };
        spin(self.tier.rpc_cost.client);
        let span_id = self.tier.ids.next();
        let request = Request { id: span_id, parent_span: span_id, node: id, items, seed, ..self.request };
        let start = Instant::now();
        let outcome = self.client.call(node.service, request).await;
        let span = SpanRecord {
            trace_id: request.trace_id,
            span_id,
            parent_id: self.span_id,
            is_server: false,
            method: node.op.clone(),
            peer: self.tier.peer_name(node.service),
            start,
            end: Instant::now(),
            is_error: outcome.is_err(),
        };
        self.tier.record(request.is_sampled, span);
        outcome.map(|_| ())
    }

    fn detach(self: &Arc<Self>, id: NodeId, items: u32, seed: u64) {
        let counters = &self.tier.counters;
        if counters.detached.fetch_add(1, Ordering::Relaxed) >= DETACHED_MAX {
            counters.detached.fetch_sub(1, Ordering::Relaxed);
            counters.detached_dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let visit = self.clone();
        self.client.detach(Box::pin(async move {
            let outcome = visit.call_once(id, items, seed).await;
            visit.tier.counters.detached.fetch_sub(1, Ordering::Relaxed);
            outcome
        }));
    }
}
