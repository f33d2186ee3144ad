//! Large synthetic applications: call graphs of any number of services with the statistics of a large real fleet.
//!
//! Services lie on levels and call deeper ones only, so no graph has a cycle. Every service belongs to the tree of one kind
//! of request; further calls go to popular services, by Zipf's law, and are made now and then.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::random::Key;
use crate::topology::{
    Amount, Arrivals, CallNode, Concurrency, Draw, Facts, IfSpec, Load, Network, Op, OpDist, Plan, PoolSpec, Qos,
    Replicas, RequestKind, RpcCost, Sensitivity, Service, ServiceKind, Slow, StepSpec, Topology,
};

/// `topologies/scale_params.json`, as far as it is used.
#[derive(Clone, Debug, Deserialize)]
struct Params {
    roles: Roles,
    edges_per_service: f64,
    request_types_per_100_services: Chosen,
    depth_max: Chosen,
    children_given_not_leaf: Vec<f64>,
    call_types: CallTypes,
    repeated_call_share: f64,
    popularity_exponent: Chosen,
    shared_call_p: Chosen,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Roles {
    entry: f64,
    leaf: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Chosen {
    value: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct CallTypes {
    memcached: f64,
    http: f64,
    rpc: f64,
    db: f64,
}

const PARAMS: &str = include_str!("../../topologies/scale_params.json");

/// Fewer make no graph; more do not fit what one aggregator is meant for.
const SERVICES: std::ops::RangeInclusive<usize> = 10..=20_000;
/// Requests a second of a generated application, by itself.
const QPS: f64 = 100.0;
/// Cores over the mean work: 40 % busy.
const HEADROOM: f64 = 2.5;
/// The only operation of a generated service.
const OPERATION: &str = "handle";
/// The service in front of all others.
const GATEWAY: &str = "gateway";

/// An application of about `services` services, always the same for a seed; the number is clamped to 10..=20,000.
///
/// # Errors
///
/// Only when the built-in parameters do not read, which a test refutes.
pub fn generate(services: usize, seed: u64) -> Result<Topology, serde_json::Error> {
    let params: Params = serde_json::from_str(PARAMS)?;
    let services = services.clamp(*SERVICES.start(), *SERVICES.end());
    Ok(Generator { params, key: Key::new(seed).child(services as u64) }.topology(services))
}

struct Generator {
    params: Params,
    key: Key,
}

/// One service before it is one.
#[derive(Clone, Debug)]
struct Sketch {
    name: String,
    level: usize,
    is_leaf: bool,
    children: Vec<usize>,
    shared: Vec<usize>,
}

impl Generator {
    fn topology(&self, count: usize) -> Topology {
        let mut sketches: Vec<Sketch> = (1..count).map(|number| self.sketch(number, count)).collect();
        let kinds = (count as f64 * self.params.request_types_per_100_services.value / 100.0).ceil() as usize;
        let roots = self.grow(&mut sketches, kinds.max(1));
        self.share(&mut sketches);
        let weights: Vec<f64> = (0..roots.len()).map(|kind| 1.0 / (kind + 1) as f64).collect();
        let sum: f64 = weights.iter().sum();
        let requests: Vec<RequestKind> = roots
            .iter()
            .zip(&weights)
            .enumerate()
            .map(|(kind, (root, weight))| RequestKind {
                id: format!("request-{kind}"),
                mix: weight / sum,
                exposed: true,
                http: None,
                root: self.gateway_call(&sketches, *root),
            })
            .collect();
        let services = std::iter::once(gateway()).chain(sketches.iter().map(|sketch| self.service(sketch))).collect();
        self.finish(count, services, requests)
    }

    fn sketch(&self, number: usize, count: usize) -> Sketch {
        let key = self.key.child(SKETCH).child(number as u64);
        let Roles { entry, leaf } = self.params.roles;
        // The first one is an entry, so that there always is one.
        let draw = if number == 1 { 0.0 } else { key.child(1).uniform() };
        let deepest = self.params.depth_max.value as usize;
        let is_leaf = draw >= 1.0 - leaf;
        let level = match draw {
            x if x < entry => 1,
            _ if is_leaf => 2 + key.child(2).index(deepest - 1),
            _ => 2 + key.child(2).index(deepest - 2),
        };
        let width = count.to_string().len();
        Sketch { name: format!("service-{number:0width$}"), level, is_leaf, children: Vec::new(), shared: Vec::new() }
    }

    /// Deals all services out to `kinds` trees; gives their roots.
    fn grow(&self, sketches: &mut [Sketch], kinds: usize) -> Vec<usize> {
        let entries: Vec<usize> = (0..sketches.len()).filter(|number| sketches[*number].level == 1).collect();
        let kinds = kinds.min(entries.len()).max(1);
        let mut trees: Vec<Vec<usize>> = entries.iter().take(kinds).map(|entry| vec![*entry]).collect();
        for (turn, entry) in entries.iter().skip(kinds).enumerate() {
            // An entry that is nobody's root is called by one, as what it is to others.
            sketches[*entry].level = 2;
            trees[turn % kinds].push(*entry);
        }
        let others: Vec<usize> = (0..sketches.len()).filter(|number| !entries.contains(number)).collect();
        for number in others {
            let tree = self.key.child(TREE).child(number as u64).index(kinds);
            trees[tree].push(number);
        }
        for tree in &mut trees {
            self.attach(sketches, tree);
        }
        trees.iter().map(|tree| tree[0]).collect()
    }

    /// Hangs every service of a tree below one on a higher level that still wants children, or else below any.
    fn attach(&self, sketches: &mut [Sketch], tree: &mut [usize]) {
        tree[1..].sort_by_key(|number| (sketches[*number].level, *number));
        let wants: BTreeMap<usize, usize> = tree.iter().map(|number| (*number, self.children(*number))).collect();
        for place in 1..tree.len() {
            let number = tree[place];
            let level = sketches[number].level;
            let above: Vec<usize> = tree[..place]
                .iter()
                .copied()
                .filter(|other| sketches[*other].level < level && !sketches[*other].is_leaf)
                .collect();
            let hungry: Vec<usize> =
                above.iter().copied().filter(|other| sketches[*other].children.len() < wants[other]).collect();
            let key = self.key.child(PARENT).child(number as u64);
            let pool = if hungry.is_empty() { &above } else { &hungry };
            // The root is on the first level, above everybody else.
            let parent = pool.get(key.index(pool.len())).copied().unwrap_or(tree[0]);
            sketches[parent].children.push(number);
        }
    }

    /// How many children a service that is no leaf has, in the trees of single requests.
    fn children(&self, number: usize) -> usize {
        let draw = self.key.child(CHILDREN).child(number as u64).uniform();
        let mut sum = 0.0;
        let place = self.params.children_given_not_leaf.iter().position(|share| {
            sum += share;
            draw < sum
        });
        place.map_or(1, |place| place + 1)
    }

    /// Adds calls to popular leaves until there are as many edges per service as there should be.
    fn share(&self, sketches: &mut [Sketch]) {
        let leaves: Vec<usize> = (0..sketches.len()).filter(|number| sketches[*number].is_leaf).collect();
        let callers: Vec<usize> = (0..sketches.len()).filter(|number| !sketches[*number].is_leaf).collect();
        if leaves.is_empty() || callers.is_empty() {
            return;
        }
        let wanted = (self.params.edges_per_service * sketches.len() as f64) as usize;
        let exponent = self.params.popularity_exponent.value;
        let mut known: BTreeSet<(usize, usize)> = BTreeSet::new();
        for (number, sketch) in sketches.iter().enumerate() {
            known.extend(sketch.children.iter().map(|child| (number, *child)));
        }
        // Popular ones are met again and again; a bound on the tries, not on the edges, ends the search.
        for turn in 0..wanted * 8 {
            if known.len() >= wanted {
                break;
            }
            let key = self.key.child(SHARE).child(turn as u64);
            let caller = callers[key.child(1).index(callers.len())];
            let callee = leaves[zipf(key.child(2).uniform(), leaves.len(), exponent)];
            if sketches[callee].level > sketches[caller].level && known.insert((caller, callee)) {
                sketches[caller].shared.push(callee);
            }
        }
    }

    fn gateway_call(&self, sketches: &[Sketch], root: usize) -> CallNode {
        let inner = Box::new(self.call(sketches, root));
        let steps = vec![StepSpec::Work(0.5), StepSpec::Call(inner), StepSpec::Work(0.5)];
        CallNode { steps, ..node(GATEWAY) }
    }

    fn call(&self, sketches: &[Sketch], number: usize) -> CallNode {
        let sketch = &sketches[number];
        let key = self.key.child(CALL).child(number as u64);
        if sketch.children.is_empty() && sketch.shared.is_empty() {
            return node(&sketch.name);
        }
        let mut steps = vec![StepSpec::Work(0.5)];
        let calls = |callees: &[usize]| -> Vec<StepSpec> {
            callees.iter().map(|child| StepSpec::Call(Box::new(self.call(sketches, *child)))).collect()
        };
        let mut inner = calls(&sketch.children);
        if inner.len() > 1 && key.child(1).uniform() < 0.5 {
            inner = vec![StepSpec::Par(inner.into_iter().map(|step| vec![step]).collect())];
        }
        steps.extend(inner);
        for callee in &sketch.shared {
            // A popular leaf has no children of its own here: it is a leaf.
            let is_repeated = self.key.child(REPEAT).child((number as u64) << 32 | *callee as u64).uniform()
                < self.params.repeated_call_share;
            let repeat = is_repeated.then_some(Amount::Fixed(2));
            let call = StepSpec::Call(Box::new(CallNode { repeat, ..node(&sketches[*callee].name) }));
            steps.push(StepSpec::If(IfSpec { p: self.params.shared_call_p.value, cond: None, steps: vec![call] }));
        }
        steps.push(StepSpec::Work(0.5));
        CallNode { steps, ..node(&sketch.name) }
    }

    fn service(&self, sketch: &Sketch) -> Service {
        let key =
            self.key.child(SERVICE).child(sketch.name.bytes().fold(0, |hash: u64, byte| hash * 31 + u64::from(byte)));
        let CallTypes { memcached, http, rpc, db } = self.params.call_types;
        let draw = key.child(1).uniform();
        let mean_us = key.child(2).log_uniform(120.0, 900.0);
        if !sketch.is_leaf {
            let is_http = draw < http / (http + rpc);
            let concurrency = if is_http { Concurrency::Goroutines {} } else { Concurrency::ThreadPerConnection {} };
            return service(&sketch.name, ServiceKind::Stateless, concurrency, mean_us, STATELESS);
        }
        if draw < memcached / (memcached + db) {
            let pool = Concurrency::ThreadPool { threads: 4 };
            service(&sketch.name, ServiceKind::Cache, pool, mean_us / 10.0, CACHE)
        } else {
            let threads = Concurrency::ThreadPerConnection {};
            service(&sketch.name, ServiceKind::Database, threads, mean_us, DATABASE)
        }
    }

    /// Gives every service the cores that its work needs, and every edge a pool.
    fn finish(&self, count: usize, services: Vec<Service>, requests: Vec<RequestKind>) -> Topology {
        let mut topology = Topology {
            schema: "topology/1".into(),
            name: format!("scale_{count}"),
            title: format!("{count} generated services"),
            description: String::new(),
            sources: vec!["scale_params.json".into()],
            qos: Qos { percentile: 99.0, latency_ms: 100.0, basis: "a".into() },
            load: Load {
                open_loop: true,
                arrivals: Arrivals::Poisson,
                nominal_qps: QPS,
                sweep_qps: Vec::new(),
                alt_mixes: BTreeMap::new(),
                basis: "a".into(),
            },
            data: None,
            network: Network { one_way_us: Draw::Lognormal { mean: 45.0, cv: 0.5 }, basis: "e".into(), note: None },
            services,
            requests,
            pools: Vec::new(),
        };
        let facts = Facts::new(&topology, &Plan::new(&topology));
        for (service, work_us) in topology.services.iter_mut().zip(&facts.work_us) {
            service.cpu_cores = (work_us * QPS / 1e6 * HEADROOM).ceil().max(1.0);
        }
        let name = |number: usize| topology.services[number].id.clone();
        topology.pools = facts.edges.iter().map(|(from, to)| pool(name(*from), name(*to))).collect();
        topology
    }
}

const SKETCH: u64 = 1;
const TREE: u64 = 2;
const PARENT: u64 = 3;
const CHILDREN: u64 = 4;
const SHARE: u64 = 5;
const CALL: u64 = 6;
const SERVICE: u64 = 7;
const REPEAT: u64 = 8;

const STATELESS: Sensitivity = Sensitivity { cpu: 0.7, mem: 0.15, disk: 0.0, net: 0.15 };
const CACHE: Sensitivity = Sensitivity { cpu: 0.25, mem: 0.45, disk: 0.0, net: 0.3 };
const DATABASE: Sensitivity = Sensitivity { cpu: 0.3, mem: 0.15, disk: 0.45, net: 0.1 };

/// The place of a uniform draw among `count` ranked ones whose popularity falls with the rank to the power of `exponent`.
fn zipf(draw: f64, count: usize, exponent: f64) -> usize {
    // The integral of the popularity, inverted: near enough for any count.
    let count = count as f64;
    let rank = if (exponent - 1.0).abs() < 1e-9 {
        (count + 1.0).powf(draw)
    } else {
        let e = 1.0 - exponent;
        (1.0 + draw * ((count + 1.0).powf(e) - 1.0)).powf(1.0 / e)
    };
    (rank as usize - 1).min(count as usize - 1)
}

fn node(service: &str) -> CallNode {
    CallNode {
        svc: service.to_owned(),
        op: OPERATION.to_owned(),
        items: None,
        repeat: None,
        detached: false,
        steps: Vec::new(),
        src: None,
    }
}

fn gateway() -> Service {
    let concurrency = Concurrency::EventLoop { workers: 8, worker_connections: None };
    service(GATEWAY, ServiceKind::Frontend, concurrency, 200.0, STATELESS)
}

fn service(name: &str, kind: ServiceKind, concurrency: Concurrency, mean_us: f64, shares: Sensitivity) -> Service {
    let slow = (kind == ServiceKind::Database).then_some(Slow { p: 0.005, factor: 15.0 });
    let op = Op { dist: OpDist::Lognormal, mean_us, cv: 0.6, per_item_us: 0.0, slow, basis: "a".into() };
    let cost = if kind == ServiceKind::Stateless { 25.0 } else { 0.0 };
    Service {
        id: name.to_owned(),
        kind,
        tech: "generated".into(),
        cpu_cores: 1.0,
        replicas: Replicas { local: 1, gce: 1 },
        concurrency,
        rpc_cost_us: RpcCost { client: cost, server: 20.0 },
        ops: BTreeMap::from([(OPERATION.to_owned(), op)]),
        sensitivity: shares,
        in_workload: true,
        optional: false,
        note: None,
        src: None,
    }
}

fn pool(from: String, to: String) -> PoolSpec {
    PoolSpec {
        from,
        to,
        protocol: "generated".into(),
        min: 0,
        max: 128,
        timeout_ms: Some(10_000),
        keepalive_ms: None,
        blocking: true,
        max_is: None,
        server_selection_timeout_ms: None,
        basis: "a".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::problems;

    #[test]
    fn generated_applications_are_valid_and_use_every_service() {
        for count in [10, 100, 1_000] {
            let topology = generate(count, 3).expect("parameters read");
            assert!(problems(&topology).is_empty(), "{count}: {:?}", &problems(&topology)[..]);
            let facts = Facts::new(&topology, &Plan::new(&topology));
            assert_eq!((topology.services.len(), facts.used.len()), (count, count));
            if count >= 100 {
                let edges = facts.edges.len() as f64 / count as f64;
                assert!((3.0..4.0).contains(&edges), "{edges} edges a service");
            }
        }
        assert_eq!(generate(50, 3).expect("parameters read"), generate(50, 3).expect("parameters read"));
        assert_ne!(
            generate(50, 3).expect("parameters read").requests,
            generate(50, 4).expect("parameters read").requests
        );
    }

    #[test]
    fn popular_services_are_called_by_many() {
        let topology = generate(1_000, 5).expect("parameters read");
        let facts = Facts::new(&topology, &Plan::new(&topology));
        let mut callers = vec![0_usize; 1_000];
        facts.edges.iter().for_each(|(_, to)| callers[*to] += 1);
        callers.sort_unstable();
        let top: usize = callers[950..].iter().sum();
        assert!(2 * top > facts.edges.len(), "{top} of {} edges lead to the top 5 percent", facts.edges.len());
    }
}
