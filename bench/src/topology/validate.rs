//! What a topology must hold to be runnable. Every problem names its JSON path; all of them are reported at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use sage_common::{OperationId, ServiceId};

use super::{Amount, CallNode, Concurrency, Draw, Op, PoolSpec, Service, StepSpec, Topology};

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// JSON path of the place.
    pub path: String,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Everything that is wrong with `topology`; empty if it can be run.
pub fn problems(topology: &Topology) -> Vec<Problem> {
    let mut check = Check { topology, problems: Vec::new(), edges: BTreeSet::new(), used: BTreeSet::new() };
    check.head();
    for (index, service) in topology.services.iter().enumerate() {
        check.service(&format!("services[{index}]"), service);
    }
    check.requests();
    check.pools();
    check.workload();
    check.problems
}

/// Shares are written with a few decimals; sums may differ from 1 by rounding only.
const SUM_TOLERANCE: f64 = 1e-9;

struct Check<'a> {
    topology: &'a Topology,
    problems: Vec<Problem>,
    /// Caller and callee of every call.
    edges: BTreeSet<(&'a str, &'a str)>,
    /// Services that requests with a share reach.
    used: BTreeSet<&'a str>,
}

impl<'a> Check<'a> {
    fn fail(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem { path: path.to_owned(), message: message.into() });
    }

    fn require(&mut self, holds: bool, path: &str, message: impl FnOnce() -> String) {
        if !holds {
            self.fail(path, message());
        }
    }

    fn sum_to_one(&mut self, path: &str, what: &str, values: impl IntoIterator<Item = f64>) {
        let (mut sum, mut in_range) = (0.0, true);
        for value in values {
            sum += value;
            in_range &= (0.0..=1.0).contains(&value);
        }
        self.require(in_range, path, || format!("{what} must lie in 0 to 1"));
        self.require((sum - 1.0).abs() <= SUM_TOLERANCE, path, || format!("{what} sum to {sum}, not 1"));
    }

    fn head(&mut self) {
        let topology = self.topology;
        self.require(topology.schema == "topology/1", "schema", || format!("{:?} is not topology/1", topology.schema));
        let qos = &topology.qos;
        self.require(qos.percentile > 0.0 && qos.percentile < 100.0, "qos.percentile", || {
            "must lie in (0, 100)".into()
        });
        self.require(is_positive(qos.latency_ms), "qos.latency_ms", || "must be positive".into());
        self.require(topology.load.open_loop, "load.open_loop", || "only open loops are driven".into());
        self.require(is_positive(topology.load.nominal_qps), "load.nominal_qps", || "must be positive".into());
        for (index, rate) in topology.load.sweep_qps.iter().enumerate() {
            self.require(is_positive(*rate), &format!("load.sweep_qps[{index}]"), || "must be positive".into());
        }
        for (name, mix) in &topology.load.alt_mixes {
            let path = format!("load.alt_mixes.{name}");
            self.sum_to_one(&path, "the shares", mix.values().copied());
            for request in mix.keys().filter(|id| topology.requests.iter().all(|request| request.id != **id)) {
                self.fail(&path, format!("there is no request {request:?}"));
            }
        }
        self.draw("network.one_way_us", topology.network.one_way_us);
        self.require(!topology.services.is_empty(), "services", || "there are none".into());
        self.require(!topology.requests.is_empty(), "requests", || "there are none".into());
    }

    fn service(&mut self, path: &str, service: &Service) {
        if let Err(error) = service.id.parse::<ServiceId>() {
            self.fail(&format!("{path}.id"), error.to_string());
        }
        let same = self.topology.services.iter().filter(|other| other.id == service.id).count();
        self.require(same == 1, &format!("{path}.id"), || format!("{:?} is there {same} times", service.id));
        self.require(is_positive(service.cpu_cores), &format!("{path}.cpu_cores"), || "must be positive".into());
        let cost = service.rpc_cost_us;
        for (side, value) in [("client", cost.client), ("server", cost.server)] {
            let path = format!("{path}.rpc_cost_us.{side}");
            self.require(value >= 0.0 && value.is_finite(), &path, || "must not be negative".into());
        }
        let shares = service.sensitivity;
        let shares = [shares.cpu, shares.mem, shares.disk, shares.net];
        self.sum_to_one(&format!("{path}.sensitivity"), "the shares", shares);
        let threads = match service.concurrency {
            Concurrency::EventLoop { workers, .. } => workers,
            Concurrency::ThreadPool { threads } | Concurrency::SingleThread { threads } => threads,
            _ => 1,
        };
        let range = 1..=THREADS_MAX;
        self.require(range.contains(&threads), &format!("{path}.concurrency"), || {
            format!("threads must lie in {range:?}")
        });
        for (name, op) in &service.ops {
            self.op(&format!("{path}.ops.{name}"), name, op);
        }
    }

    fn op(&mut self, path: &str, name: &str, op: &Op) {
        if let Err(error) = name.parse::<OperationId>() {
            self.fail(path, error.to_string());
        }
        self.require(is_positive(op.mean_us), &format!("{path}.mean_us"), || "must be positive".into());
        self.require(op.cv >= 0.0 && op.cv.is_finite(), &format!("{path}.cv"), || "must not be negative".into());
        let per_item = &format!("{path}.per_item_us");
        self.require(op.per_item_us >= 0.0 && op.per_item_us.is_finite(), per_item, || "must not be negative".into());
        if let Some(slow) = op.slow {
            self.probability(&format!("{path}.slow.p"), slow.p);
            let at_least_one = slow.factor >= 1.0 && slow.factor.is_finite();
            self.require(at_least_one, &format!("{path}.slow.factor"), || "must be at least 1".into());
        }
    }

    fn probability(&mut self, path: &str, p: f64) {
        self.require((0.0..=1.0).contains(&p), path, || format!("{p} is no probability"));
    }

    fn draw(&mut self, path: &str, draw: Draw) {
        match draw {
            Draw::UniformInt { lo, hi, step } => {
                self.require(lo <= hi && step >= 1, path, || format!("no numbers from {lo} to {hi} by {step}"));
            }
            Draw::Lognormal { mean, cv } => {
                let is_valid = is_positive(mean) && cv >= 0.0 && cv.is_finite();
                self.require(is_valid, path, || "want a positive mean and a cv that is not negative".into());
            }
        }
    }

    fn amount(&mut self, path: &str, amount: Option<Amount>) {
        if let Some(Amount::Drawn(draw)) = amount {
            self.draw(path, draw);
        }
    }

    fn requests(&mut self) {
        let requests = &self.topology.requests;
        self.sum_to_one("requests", "the mix shares", requests.iter().map(|request| request.mix));
        for (index, request) in requests.iter().enumerate() {
            let path = format!("requests[{index}]");
            let same = requests.iter().filter(|other| other.id == request.id).count();
            self.require(same == 1, &format!("{path}.id"), || format!("{:?} is there {same} times", request.id));
            let mut joins = BTreeMap::new();
            let mut tree = Tree { above: Vec::new(), is_used: request.mix > 0.0, joins: &mut joins };
            self.node(&format!("{path}.root"), &request.root, &mut tree);
            for (key, (_, defaults)) in joins {
                let one = defaults == 1;
                self.require(one, &path, || format!("join {key:?} has {defaults} default branches, not 1"));
            }
        }
    }

    fn node(&mut self, path: &str, call: &'a CallNode, tree: &mut Tree<'_, 'a>) {
        let Some(service) = self.topology.services.iter().find(|service| service.id == call.svc) else {
            return self.fail(&format!("{path}.svc"), format!("there is no service {:?}", call.svc));
        };
        let has_op = service.ops.contains_key(&call.op);
        self.require(has_op, &format!("{path}.op"), || format!("{:?} has no operation {:?}", call.svc, call.op));
        let serves = !matches!(service.concurrency, Concurrency::None {});
        self.require(serves, &format!("{path}.svc"), || format!("{:?} serves nothing", call.svc));
        let calls_itself = tree.above.contains(&&*call.svc);
        self.require(!calls_itself, path, || format!("cycle: {} -> {}", tree.above.join(" -> "), call.svc));
        self.amount(&format!("{path}.items"), call.items);
        self.amount(&format!("{path}.repeat"), call.repeat);
        if !call.steps.is_empty() {
            let shares =
                call.steps.iter().filter_map(|step| if let StepSpec::Work(f) = step { Some(*f) } else { None });
            self.sum_to_one(&format!("{path}.steps"), "the work shares", shares);
        }
        self.edges.extend(tree.above.last().map(|caller| (*caller, &*call.svc)));
        if tree.is_used {
            self.used.insert(&call.svc);
        }
        if !calls_itself {
            tree.above.push(&call.svc);
            self.steps(&format!("{path}.steps"), &call.steps, tree);
            tree.above.pop();
        }
    }

    fn steps(&mut self, path: &str, steps: &'a [StepSpec], tree: &mut Tree<'_, 'a>) {
        for (index, step) in steps.iter().enumerate() {
            let path = format!("{path}[{index}]");
            match step {
                StepSpec::Work(share) => self.probability(&format!("{path}.work"), *share),
                StepSpec::Call(call) => self.node(&format!("{path}.call"), call, tree),
                StepSpec::Par(branches) => {
                    for (branch, steps) in branches.iter().enumerate() {
                        self.steps(&format!("{path}.par[{branch}]"), steps, tree);
                    }
                }
                StepSpec::If(spec) => {
                    self.probability(&format!("{path}.if.p"), spec.p);
                    self.steps(&format!("{path}.if.steps"), &spec.steps, tree);
                }
                StepSpec::LastOf(join) => {
                    let (arity, defaults) = tree.joins.entry(&join.key).or_insert((join.arity, 0));
                    *defaults += u32::from(join.default_branch);
                    let same = *arity == join.arity;
                    let key = &join.key;
                    self.require(same, &format!("{path}.last_of.arity"), || format!("visits to {key:?} disagree"));
                    self.steps(&format!("{path}.last_of.steps"), &join.steps, tree);
                }
            }
        }
    }

    fn pools(&mut self) {
        let mut declared = BTreeSet::new();
        for (index, pool) in self.topology.pools.iter().enumerate() {
            let PoolSpec { from, to, min, max, .. } = pool;
            let path = format!("pools[{index}]");
            self.require((1..=POOL_MAX).contains(max), &format!("{path}.max"), || {
                format!("must lie in 1 to {POOL_MAX}")
            });
            self.require(min <= max, &format!("{path}.min"), || format!("{min} is more than max"));
            self.require(declared.insert((&**from, &**to)), &path, || format!("{from} -> {to} is there twice"));
            let is_edge = self.edges.contains(&(from, to));
            self.require(is_edge, &path, || format!("{from} never calls {to}"));
        }
        let missing: Vec<_> = self.edges.difference(&declared).map(|(from, to)| format!("{from} -> {to}")).collect();
        self.require(missing.is_empty(), "pools", || format!("no pool for {}", missing.join(", ")));
    }

    fn workload(&mut self) {
        for (index, service) in self.topology.services.iter().enumerate() {
            let path = format!("services[{index}].in_workload");
            let is_used = self.used.contains(&*service.id);
            self.require(is_used || !service.in_workload, &path, || format!("{} is not used by the mix", service.id));
            self.require(!is_used || service.in_workload, &path, || format!("{} is used by the mix", service.id));
        }
    }
}

/// The way down to a node.
struct Tree<'t, 'a> {
    /// Services above, outermost first.
    above: Vec<&'a str>,
    is_used: bool,
    /// Join key → arity and default branches seen.
    joins: &'t mut BTreeMap<&'a str, (u32, u32)>,
}

/// More threads than any tier of the papers; a typing slip must not start a million.
const THREADS_MAX: u32 = 1_024;
/// Twice the largest pool in use.
const POOL_MAX: u32 = 1_024;

fn is_positive(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::topology::{BUILT_IN, parse};

    fn error_after(change: impl FnOnce(&mut Value)) -> String {
        let mut json: Value = serde_json::from_str(BUILT_IN[2].1).expect("fanout is JSON");
        change(&mut json);
        parse(&json.to_string(), "t").expect_err("must be refused").to_string()
    }

    #[test]
    fn each_broken_rule_is_reported_at_its_json_path() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 14] = [
            (|t| t["schema"] = json!("topology/2"), "schema: "),
            (|t| t["qos"]["percentile"] = json!(100), "qos.percentile: "),
            (|t| t["load"]["nominal_qps"] = json!(0), "load.nominal_qps: "),
            (|t| t["services"][1]["id"] = json!("leaf_0"), "services[1].id: \"leaf_0\" is there 2 times"),
            (|t| t["services"][0]["id"] = json!("a b"), "services[0].id: invalid service name"),
            (|t| t["services"][2]["sensitivity"]["cpu"] = json!(0.9), "services[2].sensitivity: the shares sum to"),
            (|t| t["services"][2]["ops"]["rpc_leaf_0"]["cv"] = json!(-1), "services[2].ops.rpc_leaf_0.cv: "),
            (|t| t["services"][0]["concurrency"]["workers"] = json!(0), "services[0].concurrency: "),
            (|t| t["requests"][0]["mix"] = json!(0.5), "requests: the mix shares sum to 0.5"),
            (|t| t["requests"][0]["root"]["op"] = json!("gone"), "requests[0].root.op: "),
            (
                |t| t["requests"][0]["root"]["steps"][1]["call"]["steps"][1]["par"][3][0]["call"]["svc"] = json!("x"),
                "requests[0].root.steps[1].call.steps[1].par[3][0].call.svc: there is no service \"x\"",
            ),
            (|t| t["requests"][0]["root"]["steps"][0]["work"] = json!(0.5), "requests[0].root.steps: the work shares"),
            (|t| t["pools"][4]["max"] = json!(0), "pools[4].max: "),
            (|t| t["services"][3]["in_workload"] = json!(false), "services[3].in_workload: leaf_1 is used"),
        ];
        for (change, expected) in cases {
            let error = error_after(change);
            assert!(error.contains(expected), "want {expected:?} in {error}");
        }
    }

    #[test]
    fn a_service_that_calls_itself_through_others_is_refused() {
        let error = error_after(|t| {
            let leaf = &mut t["requests"][0]["root"]["steps"][1]["call"]["steps"][1]["par"][0][0]["call"];
            leaf["steps"] = json!([{"work": 1.0}, {"call": {"svc": "aggregator", "op": "rpc_agg"}}]);
        });
        assert!(error.contains("cycle: nginx-web-server -> aggregator -> leaf_0 -> aggregator"), "{error}");
    }

    #[test]
    fn an_edge_without_a_pool_and_a_pool_without_an_edge_are_refused() {
        let error = error_after(|t| t["pools"][0]["to"] = json!("nginx-web-server"));
        assert!(error.contains("pools[0]: aggregator never calls nginx-web-server"), "{error}");
        assert!(error.contains("pools: no pool for aggregator -> leaf_0"), "{error}");
    }
}
