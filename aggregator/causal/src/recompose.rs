//! Trace-level recomposition: in every sampled trace a service's self times and owned gaps are replaced by the normal
//! quantile of the same rank, and the trace is timed again from its own offsets.
//!
//! ```text
//!  server' = self' + rest + sum over groups ( max over branches ( sum over calls ( lead + client' ) ) )
//!  client' = server' + gap'
//! ```
//!
//! `lead` is the time between a call and what preceded it in its branch; `rest` is what the sampled parts leave
//! unexplained. Both are kept.

use std::collections::BTreeMap;

use sage_common::Slo;

use crate::{
    curve::Curve,
    engine::Recomposer,
    observation::{Trace, TraceCall},
    scene::{Part, Scene, SceneEdge},
    skeleton::{Timed, arrange},
};

/// Traces recomputed per world: more do not move a p99 by more than the model's own error.
const TRACES_MAX: usize = 1_500;

/// A server span whose parts leave more than this share of it unexplained belongs to a trace with lost stubs.
const REST_MAX: f64 = 0.1;

/// The shortest time that takes a logarithm, microseconds.
const US_MIN: f64 = 1.0;

/// One call of one trace, timed.
#[derive(Clone, Debug)]
struct Call {
    edge: usize,
    own: Swap,
    gap: Swap,
    rest: f64,
    server: f64,
    client: f64,
    steps: std::ops::Range<usize>,
}

/// One exogenous time of one call in its three worlds, microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Swap {
    observed: f64,
    /// At the same rank of the normal curve, never more than observed.
    normal: f64,
    /// At the same rank once refused load is back; never less than observed.
    restored: f64,
}

impl Swap {
    fn new(observed: f64, part: Option<&Part>, restored: Option<&Curve>) -> Self {
        let Some(part) = part else { return Self { observed, normal: observed, restored: observed } };
        let log = observed.max(US_MIN).ln();
        let rank = part.observed.rank(log);
        let rise = restored.map_or(0.0, |curve| (curve.at(rank) - part.observed.at(rank)).max(0.0));
        let normal = if part.is_learnt { observed.min(part.normal.at(rank).exp()) } else { observed };
        Self { observed, normal, restored: observed * rise.exp() }
    }
}

/// One call inside its parent.
#[derive(Clone, Copy, Debug)]
struct Step {
    call: usize,
    lead: f64,
    opens_group: bool,
    opens_branch: bool,
}

/// Recomputes sampled traces.
#[derive(Debug)]
pub struct TraceEngine<'a> {
    scene: &'a Scene<'a>,
    calls: Vec<Call>,
    steps: Vec<Step>,
    /// Calls of each component of the graph, the deepest first.
    order: Vec<Vec<usize>>,
    roots: Vec<usize>,
    /// How many calls each root stands for.
    weights: Vec<f64>,
    share: f64,
    observed: f64,
    sampled: f64,
    server: Vec<f64>,
    client: Vec<f64>,
    dropped: usize,
    restored_reach: Option<Vec<bool>>,
}

impl<'a> TraceEngine<'a> {
    /// Times every whole trace of `traces` that enters at the objective, at most [`TRACES_MAX`], evenly chosen.
    pub fn new<'t>(scene: &'a Scene<'a>, traces: impl Iterator<Item = &'t Trace>, slo: &Slo, observed: f64) -> Self {
        let share = slo.percentile / 100.0;
        let restored: Vec<usize> = (0..scene.services.len())
            .filter(|service| scene.graph.ins(*service).iter().any(|edge| scene.edges[*edge].restored.is_some()))
            .collect();
        let restored_reach = (!restored.is_empty()).then(|| scene.graph.affected_by(&restored));
        let mut this = Self {
            scene,
            calls: Vec::new(),
            steps: Vec::new(),
            order: vec![Vec::new(); scene.graph.components().len()],
            roots: Vec::new(),
            weights: Vec::new(),
            share,
            observed,
            sampled: US_MIN,
            server: Vec::new(),
            client: Vec::new(),
            dropped: 0,
            restored_reach,
        };
        let entering: Vec<&Trace> = traces.filter(|trace| enters_at(trace, slo)).collect();
        let kept = entering.len().min(TRACES_MAX);
        for index in 0..kept {
            this.add(entering[index * entering.len() / kept]);
        }
        this.server = this.calls.iter().map(|call| call.server).collect();
        this.client = this.calls.iter().map(|call| call.client).collect();
        this.weights = this.weigh();
        this.sampled = this.percentile();
        this
    }

    /// How many traces are in use.
    pub fn roots(&self) -> usize {
        self.roots.len()
    }

    fn add(&mut self, trace: &Trace) {
        let base = self.calls.len();
        let step_base = self.steps.len();
        if self.try_add(trace, base).is_none() {
            self.calls.truncate(base);
            self.steps.truncate(step_base);
            self.dropped += 1;
            return;
        }
        self.roots.push(base);
        let mut depths = vec![0_usize; trace.calls.len()];
        for (index, call) in trace.calls.iter().enumerate() {
            depths[index] = call.parent.map_or(0, |parent| depths[parent as usize] + 1);
        }
        let mut deepest_first: Vec<usize> = (0..trace.calls.len()).collect();
        deepest_first.sort_by_key(|index| std::cmp::Reverse(depths[*index]));
        for index in deepest_first {
            let edge = self.calls[base + index].edge;
            let component = self.scene.graph.component_of(edge);
            self.order[component].push(base + index);
        }
    }

    /// `None` when a part of the trace is missing, unknown or not a number.
    fn try_add(&mut self, trace: &Trace, base: usize) -> Option<()> {
        let mut children: Vec<Vec<Timed<usize>>> = vec![Vec::new(); trace.calls.len()];
        for (index, call) in trace.calls.iter().enumerate() {
            let Some(parent) = call.parent else { continue };
            if parent as usize >= index {
                return None;
            }
            if let (Some(client), true) = (call.client_us, call.is_sync) {
                let (start, length) = (f64::from(call.offset_us), f64::from(client));
                children[parent as usize].push(Timed { item: base + index, start, length });
            }
        }
        for (call, children) in trace.calls.iter().zip(children) {
            let edge = self.scene.graph.edge(&call.edge)?;
            let first = self.steps.len();
            let inside = self.add_steps(children);
            let timed = time(call, &self.scene.edges[edge], inside)?;
            self.calls.push(Call { edge, steps: first..self.steps.len(), ..timed });
        }
        Some(())
    }

    /// Appends the steps of one parent and returns the time that they take together.
    fn add_steps(&mut self, children: Vec<Timed<usize>>) -> f64 {
        let mut total = 0.0;
        for group in arrange(children) {
            let start = group.iter().flatten().map(|call| call.start).fold(f64::INFINITY, f64::min);
            let mut end_of_group = start;
            let mut opens_group = true;
            for branch in group {
                let mut before = start;
                let mut opens_branch = true;
                for call in branch {
                    let lead = call.start - before;
                    before = call.start + call.length;
                    end_of_group = end_of_group.max(before);
                    self.steps.push(Step { call: call.item, lead, opens_group, opens_branch });
                    (opens_group, opens_branch) = (false, false);
                }
            }
            total += end_of_group - start;
        }
        total
    }

    /// Server span of `call` in the present world, given its own time there.
    fn serve(&self, call: &Call, own: f64) -> f64 {
        let (mut total, mut group, mut branch) = (own + call.rest, 0.0_f64, 0.0);
        for step in &self.steps[call.steps.clone()] {
            if step.opens_group {
                total += group;
                group = 0.0;
            }
            if step.opens_branch {
                branch = 0.0;
            }
            branch += step.lead + self.client[step.call];
            group = group.max(branch);
        }
        (total + group).max(US_MIN)
    }

    /// Recomputes one component of the graph.
    fn recompute(&mut self, component: usize, services: &[usize]) {
        let is_cycle = self.scene.graph.components()[component].is_cycle;
        let calls = std::mem::take(&mut self.order[component]);
        let mut change = 0.0;
        for index in &calls {
            let call = &self.calls[*index];
            let is_repaired = self.scene.is_repaired(self.scene.graph.callee(call.edge), services);
            let own = if is_repaired { call.own.normal } else { call.own.restored };
            self.server[*index] = self.serve(call, own);
            change += (self.server[*index] / call.server).ln();
            if is_cycle {
                self.client[*index] = self.answer(*index, services, 1.0);
            }
        }
        if !is_cycle && !calls.is_empty() {
            let held = relaxed_share((change / calls.len() as f64).exp());
            for index in &calls {
                self.client[*index] = self.answer(*index, services, held);
            }
        }
        self.order[component] = calls;
    }

    /// Client span of a call: its server span and its gap, of which `held` remains above normal when it is a queue.
    fn answer(&self, index: usize, services: &[usize], held: f64) -> f64 {
        let call = &self.calls[index];
        let Swap { observed, normal, .. } = call.gap;
        let excess = observed - normal;
        if excess <= 0.0 {
            return self.server[index] + observed;
        }
        let share = self.scene.gap_share(call.edge, services);
        let moved = observed - share * excess;
        let held = if self.scene.edges[call.edge].is_net_like { 1.0 } else { held };
        self.server[index] + moved.min(normal + excess * held)
    }

    /// How many calls of its entry operation each root stands for: between the slower and the faster one beside it. A few
    /// hundred traces have a tail of two or three, which is too many or too few; all calls were counted.
    fn weigh(&self) -> Vec<f64> {
        let mut by_edge: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, root) in self.roots.iter().enumerate() {
            by_edge.entry(self.calls[*root].edge).or_default().push(place);
        }
        let mut weights = vec![1.0; self.roots.len()];
        for (edge, mut places) in by_edge {
            let seen = &self.scene.edges[edge].seen;
            let Some(all) = seen.server.or(seen.client) else { continue };
            let server = |place: usize| self.server[self.roots[place]];
            places.sort_by(|a, b| server(*a).total_cmp(&server(*b)));
            let ranks: Vec<f64> = places.iter().map(|place| all.rank(server(*place).max(US_MIN).ln())).collect();
            for (at, place) in places.iter().enumerate() {
                let below = if at == 0 { 0.0 } else { 0.5 * (ranks[at - 1] + ranks[at]) };
                let above = ranks.get(at + 1).map_or(1.0, |next| 0.5 * (ranks[at] + next));
                weights[*place] = seen.calls * (above - below).max(0.0);
            }
        }
        weights
    }

    /// The objective's percentile of the roots in the present world, microseconds.
    fn percentile(&self) -> f64 {
        let of_root = |(root, weight): (&usize, &f64)| (self.server[*root], *weight);
        let mut values: Vec<(f64, f64)> = self.roots.iter().zip(&self.weights).map(of_root).collect();
        values.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut above = (1.0 - self.share) * self.weights.iter().sum::<f64>();
        for (value, weight) in &values {
            above -= weight;
            if above < 0.0 {
                return *value;
            }
        }
        values.last().map_or(US_MIN, |(value, _)| *value)
    }
}

impl Recomposer for TraceEngine<'_> {
    fn counterfactual(&mut self, services: &[usize]) -> f64 {
        if services.is_empty() {
            return self.observed;
        }
        let mut affected = self.scene.graph.affected_by(&self.scene.repaired_with(services));
        for (flag, restored) in affected.iter_mut().zip(self.restored_reach.iter().flatten()) {
            *flag |= restored;
        }
        for (index, call) in self.calls.iter().enumerate() {
            self.server[index] = call.server;
            self.client[index] = call.client;
        }
        for component in 0..self.order.len() {
            if self.scene.graph.components()[component].edges.iter().any(|edge| affected[*edge]) {
                self.recompute(component, services);
            }
        }
        self.observed + (self.percentile() / self.sampled).ln()
    }

    fn lacks(&self) -> Vec<String> {
        let all = self.roots.len() + self.dropped;
        if self.dropped * 2 > all {
            vec![format!("{} of {all} sampled traces are not whole", self.dropped)]
        } else {
            Vec::new()
        }
    }
}

/// How much of a queue's excess remains when the holding time changes by `ratio`: none at half of it.
pub fn relaxed_share(ratio: f64) -> f64 {
    ((ratio - 0.5) / 0.5).clamp(0.0, 1.0)
}

/// Whether the trace's first call is a root that the objective covers, with a known duration.
fn enters_at(trace: &Trace, slo: &Slo) -> bool {
    trace.calls.first().is_some_and(|root| {
        root.parent.is_none() && root.edge.caller.is_none() && slo.covers(&root.edge.callee, &root.edge.operation)
    })
}

/// The times of one call whose children take `inside` together; `None` when they are missing or do not fit.
fn time(call: &TraceCall, edge: &SceneEdge, inside: f64) -> Option<Call> {
    let is_root = call.parent.is_none();
    let known = |us: Option<f32>| us.map(f64::from).filter(|us| us.is_finite() && *us >= 0.0);
    let (client, server) = (known(call.client_us), known(call.server_us));
    let (outer, server, own) = if edge.is_own_client {
        let outer = client.or(server)?;
        (outer, outer, outer - inside)
    } else {
        (client.filter(|_| !is_root).or(server)?, server?, known(call.self_us)?)
    };
    let gap = (outer - server).max(0.0);
    let rest = server - own - inside;
    if rest.is_nan() || rest.abs() > REST_MAX * server + 200.0 {
        return None;
    }
    Some(Call {
        edge: 0,
        own: Swap::new(own.max(0.0), edge.own.as_ref(), edge.restored.as_ref()),
        gap: Swap::new(gap, edge.gap.as_ref(), None),
        rest,
        server: server.max(US_MIN),
        client: server.max(US_MIN) + gap,
        steps: 0..0,
    })
}
