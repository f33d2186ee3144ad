//! The six updates A to F that the papers roll out to Social Network (section 6.3), as edits of its topology.
//!
//! Theirs are small beside a target of tens of milliseconds; ours are slow enough to hurt.

use std::collections::BTreeSet;

use crate::topology::{self, CallNode, Concurrency, Op, OpDist, PoolSpec, Service, StepSpec, Topology};

/// Mean time of the hashtag service when it comes, microseconds; five times that after B.
const HASHTAG_US: f64 = 3_000.0;

/// Mean time of the preprocessing of URLs when it comes, microseconds; three times that after E.
const URL_US: f64 = 4_000.0;

/// Processors of a new service: as many as keep it half idle at its slowest.
const CORES: f64 = 4.0;

const HASHTAG: &str = "hashtag-service";
const URL: &str = "url-preprocessing";
const COMPOSE: &str = "compose-post-service";

/// One state of the application.
pub struct Stage {
    /// The update that led to it.
    pub name: &'static str,
    /// The application after it.
    pub topology: Topology,
}

/// Social Network before any update, and after each of A to F.
///
/// # Errors
///
/// When the built-in topology cannot be read.
pub fn stages() -> anyhow::Result<Vec<Stage>> {
    let base = topology::load("social_network")?;
    let added = with_hashtag(&base, HASHTAG_US);
    let slower = with_hashtag(&base, 5.0 * HASHTAG_US);
    let preprocessed = with_url(&base, URL_US);
    let mut many = with_url(&with_hashtag(&base, HASHTAG_US), 3.0 * URL_US);
    remove(&mut many, "user-timeline-service");
    let mut last = with_url(&with_hashtag(&base, HASHTAG_US), URL_US);
    remove(&mut last, "home-timeline-service");
    scale(&mut last, COMPOSE, 2.0);
    let stages = [
        ("base", base.clone()),
        ("A", added),
        ("B", slower),
        ("C", base),
        ("D", preprocessed),
        ("E", many),
        ("F", last),
    ];
    Ok(stages.into_iter().map(|(name, topology)| Stage { name, topology }).collect())
}

/// A and B: a new child of the post composer, beside its other first calls.
fn with_hashtag(base: &Topology, mean_us: f64) -> Topology {
    let mut topology = base.clone();
    add(&mut topology, HASHTAG, "RankHashtags", COMPOSE, mean_us);
    let branch = vec![StepSpec::Call(Box::new(call(HASHTAG, "RankHashtags", Vec::new())))];
    for request in &mut topology.requests {
        visit(&mut request.root, &mut |node| {
            let is_composer = node.svc == COMPOSE && node.op == "ComposePost";
            let first = node.steps.iter_mut().find_map(|step| if let StepSpec::Par(b) = step { Some(b) } else { None });
            if let Some(branches) = first.filter(|_| is_composer) {
                branches.push(branch.clone());
            }
        });
    }
    topology
}

/// D: a service between the URL shortener and its database.
fn with_url(base: &Topology, mean_us: f64) -> Topology {
    const DATABASE: &str = "url-shorten-mongodb";
    let mut topology = base.clone();
    add(&mut topology, URL, "Preprocess", "url-shorten-service", mean_us);
    let own = topology.pools.iter_mut().find(|pool| pool.from == "url-shorten-service" && pool.to == DATABASE);
    if let Some(pool) = own {
        URL.clone_into(&mut pool.from);
    }
    for request in &mut topology.requests {
        visit(&mut request.root, &mut |node| {
            if node.svc == "url-shorten-service" {
                each_call(&mut node.steps, &mut |inner| {
                    if inner.svc == DATABASE {
                        let steps =
                            vec![StepSpec::Work(0.5), StepSpec::Call(Box::new(inner.clone())), StepSpec::Work(0.5)];
                        *inner = call(URL, "Preprocess", steps);
                    }
                });
            }
        });
    }
    topology
}

/// C, E, F: the service, all calls to it with everything below, its pools, and requests of which only the root is left.
fn remove(topology: &mut Topology, service: &str) {
    for request in &mut topology.requests {
        cut(&mut request.root.steps, service);
    }
    topology.requests.retain(|request| has_call(&request.root.steps));
    let total: f64 = topology.requests.iter().map(|request| request.mix).sum();
    topology.requests.iter_mut().for_each(|request| request.mix /= total);
    topology.load.alt_mixes.clear();
    topology.services.retain(|own| own.id != service);
    tidy(topology);
}

/// Drops the pools of edges that nobody travels any more, and marks services that nobody calls.
fn tidy(topology: &mut Topology) {
    let (mut edges, mut used) = (BTreeSet::new(), BTreeSet::new());
    for request in &mut topology.requests {
        used.insert(request.root.svc.clone());
        visit(&mut request.root, &mut |node| {
            let caller = node.svc.clone();
            each_call(&mut node.steps, &mut |callee| {
                edges.insert((caller.clone(), callee.svc.clone()));
                used.insert(callee.svc.clone());
            });
        });
    }
    topology.pools.retain(|pool| edges.contains(&(pool.from.clone(), pool.to.clone())));
    topology.services.iter_mut().for_each(|own| own.in_workload = used.contains(&own.id));
}

fn cut(steps: &mut Vec<StepSpec>, service: &str) {
    steps.retain(|step| !matches!(step, StepSpec::Call(node) if node.svc == service));
    for step in steps.iter_mut() {
        match step {
            StepSpec::Call(node) => cut(&mut node.steps, service),
            StepSpec::Par(branches) => {
                branches.iter_mut().for_each(|branch| cut(branch, service));
                branches.retain(|branch| !branch.is_empty());
            }
            StepSpec::If(choice) => cut(&mut choice.steps, service),
            StepSpec::LastOf(last) => cut(&mut last.steps, service),
            StepSpec::Work(_) => {}
        }
    }
    steps.retain(|step| match step {
        StepSpec::Par(branches) => !branches.is_empty(),
        StepSpec::If(choice) => !choice.steps.is_empty(),
        StepSpec::LastOf(last) => !last.steps.is_empty(),
        StepSpec::Call(_) | StepSpec::Work(_) => true,
    });
}

fn has_call(steps: &[StepSpec]) -> bool {
    steps.iter().any(|step| match step {
        StepSpec::Call(_) => true,
        StepSpec::Par(branches) => branches.iter().any(|branch| has_call(branch)),
        StepSpec::If(choice) => has_call(&choice.steps),
        StepSpec::LastOf(last) => has_call(&last.steps),
        StepSpec::Work(_) => false,
    })
}

/// F: a service that needs `factor` times the time.
fn scale(topology: &mut Topology, service: &str, factor: f64) {
    for own in topology.services.iter_mut().filter(|own| own.id == service) {
        own.ops.values_mut().for_each(|op| op.mean_us *= factor);
    }
}

/// A new stateless service with one operation, called by `caller` through connections as it has to others.
fn add(topology: &mut Topology, service: &str, op: &str, caller: &str, mean_us: f64) {
    let alike = topology.services.iter().find(|own| own.id == caller).cloned();
    let pool = topology.pools.iter().find(|pool| pool.from == caller).cloned();
    let work = Op { dist: OpDist::Lognormal, mean_us, cv: 0.5, per_item_us: 0.0, slow: None, basis: "ours".to_owned() };
    topology.services.extend(alike.map(|alike| Service {
        id: service.to_owned(),
        cpu_cores: CORES,
        concurrency: Concurrency::ThreadPerConnection {},
        ops: [(op.to_owned(), work)].into(),
        note: None,
        ..alike
    }));
    topology.pools.extend(pool.map(|pool| PoolSpec { to: service.to_owned(), ..pool }));
}

fn call(svc: &str, op: &str, steps: Vec<StepSpec>) -> CallNode {
    CallNode { svc: svc.to_owned(), op: op.to_owned(), items: None, repeat: None, detached: false, steps, src: None }
}

/// Calls `change` on every call below `node`, the deepest first, and on `node`.
fn visit(node: &mut CallNode, change: &mut dyn FnMut(&mut CallNode)) {
    each_call(&mut node.steps, &mut |inner| visit(inner, change));
    change(node);
}

/// Calls `change` on the calls that `steps` make themselves.
fn each_call(steps: &mut [StepSpec], change: &mut dyn FnMut(&mut CallNode)) {
    for step in steps {
        match step {
            StepSpec::Call(node) => change(node),
            StepSpec::Par(branches) => branches.iter_mut().for_each(|branch| each_call(branch, change)),
            StepSpec::If(choice) => each_call(&mut choice.steps, change),
            StepSpec::LastOf(last) => each_call(&mut last.steps, change),
            StepSpec::Work(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(topology: &Topology) -> Vec<String> {
        let mut names = Vec::new();
        for request in &topology.requests {
            visit(&mut request.root.clone(), &mut |node| names.push(node.svc.clone()));
        }
        names
    }

    #[test]
    fn every_stage_is_a_sound_topology_that_calls_what_it_says() {
        for stage in stages().expect("built in") {
            let problems = topology::problems(&stage.topology);
            assert!(problems.is_empty(), "{}: {problems:?}", stage.name);
            let calls = calls(&stage.topology);
            let is_called = |name: &str| calls.iter().any(|own| own == name);
            assert_eq!(is_called(HASHTAG), ["A", "B", "E", "F"].contains(&stage.name), "{}", stage.name);
            assert_eq!(is_called(URL), ["D", "E", "F"].contains(&stage.name), "{}", stage.name);
            assert_eq!(is_called("user-timeline-service"), stage.name != "E", "{}", stage.name);
            assert_eq!(is_called("home-timeline-service"), stage.name != "F", "{}", stage.name);
        }
    }
}
