//! Distribution-level recomposition: quantile functions of self times and gaps are composed along the learnt call
//! structures. No weights to train, extrapolates exactly, monotone by construction.
//!
//! ```text
//!  server_e = quantiles( draw(self_e) + sum over groups ( max over branches ( sum over calls ( draw(client) ) ) ) )
//!  client_e = quantiles( draw(server_e) + draw(gap_e) )
//!  e2e      = mixture of the entries, weighted by calls
//! ```
//!
//! Draws are stratified and permuted once with a fixed seed, so that two worlds differ by the intervention alone.

use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use sage_common::Slo;

use crate::{
    curve::{Curve, Q},
    engine::{Recomposer, entries},
    graph::Graph,
    recompose::relaxed_share,
    scene::{Part, Scene},
    skeleton::{Groups, Shape, Skeletons},
};

/// Stratified draws per call site.
const DRAWS: usize = 384;

/// Permutations that call sites share in turn; a prime, so that neighbours in a program never meet the same one.
const PERMUTATIONS: usize = 61;

/// The fixed seed of the permutations: the same numbers in every world, every run, every process.
const SEED: u64 = 0x5a6e;

/// Shapes that stand for fractional call counts where no structure was sampled.
const SERIAL_SHAPES: usize = 16;

/// Calls of one child per parent call that a guessed structure unrolls at most.
const REPEATS_MAX: f64 = 16.0;

/// Sweeps over a metanode, whose edges need each other.
const CYCLE_SWEEPS: usize = 3;

/// How one edge's server spans call: structures in edge numbers, and which of them each draw takes.
#[derive(Clone, Debug)]
struct Program {
    shapes: Vec<Groups<usize>>,
    taken: Vec<usize>,
}

/// Latencies of one edge in one world.
#[derive(Clone, Copy, Debug)]
struct World {
    server: Curve,
    client: Curve,
}

/// Composes distributions.
#[derive(Debug)]
pub struct CurveEngine<'a> {
    scene: &'a Scene<'a>,
    permutations: Vec<Vec<usize>>,
    programs: Vec<Option<Program>>,
    /// What was measured; `None` for edges without calls.
    seen: Vec<Option<World>>,
    /// What composition makes of the observed inputs.
    refound: Vec<Option<World>>,
    /// What composition makes of normal inputs.
    healthy: Vec<Option<World>>,
    entries: Vec<usize>,
    share: f64,
    observed: f64,
    offset: f64,
    guessed: Vec<usize>,
    /// Client spans of every edge in the world under evaluation, microseconds at the strata.
    draws: Vec<Vec<f64>>,
}

impl<'a> CurveEngine<'a> {
    /// Sets up the composition of `scene` for `slo`, anchored at `observed` (`ln us`).
    pub fn new(scene: &'a Scene<'a>, skeletons: &Skeletons, slo: &Slo, observed: f64) -> Self {
        let count = scene.edges.len();
        let mut draw = SmallRng::seed_from_u64(SEED);
        let permutations = (0..PERMUTATIONS).map(|_| permutation(&mut draw)).collect();
        let seen = (0..count).map(|edge| measured(scene, edge)).collect();
        let mut this = Self {
            scene,
            permutations,
            programs: vec![None; count],
            seen,
            refound: vec![None; count],
            healthy: vec![None; count],
            entries: entries(scene.graph, slo),
            share: slo.percentile / 100.0,
            observed,
            offset: 0.0,
            guessed: Vec::new(),
            draws: vec![Vec::new(); count],
        };
        for edge in 0..count {
            this.programs[edge] = this.program(skeletons, edge);
        }
        this.set_draws();
        this.refound = (0..count).map(|edge| this.refind(edge)).collect();
        this.healthy = this.composed(Part::repaired);
        this.set_draws();
        this.offset = observed - this.end_to_end(&this.seen);
        this
    }

    /// Whether structures are known for every operation that calls others and something enters at the objective.
    pub fn has_structure(&self) -> bool {
        self.guessed.is_empty() && self.entries.iter().any(|entry| self.seen[*entry].is_some())
    }

    fn set_draws(&mut self) {
        self.draws = self.seen.iter().map(|world| world.map(|w| strata(&w.client)).unwrap_or_default()).collect();
    }

    fn program(&mut self, skeletons: &Skeletons, edge: usize) -> Option<Program> {
        let graph = self.scene.graph;
        let key = &graph.edges()[edge];
        let operation = (key.callee.clone(), key.operation.clone());
        let shapes = match skeletons.of(&operation) {
            Some(shapes) => shapes.iter().filter_map(|shape| numbered(graph, shape)).collect(),
            None if graph.children(edge).is_empty() => return None,
            None => {
                self.guessed.push(edge);
                self.serial_shapes(edge)
            }
        };
        let total: f64 = shapes.iter().map(|(_, count)| count).sum();
        let order = &self.permutations[edge % PERMUTATIONS];
        let taken = |share: f64| {
            let mut left = share * total;
            shapes.iter().position(|(_, count)| {
                left -= count;
                left < 0.0
            })
        };
        let taken = order.iter().map(|stratum| taken(stratum_share(*stratum)).unwrap_or(0)).collect();
        (total > 0.0).then(|| Program { shapes: shapes.into_iter().map(|(groups, _)| groups).collect(), taken })
    }

    /// Without a sampled structure: every child in turn, as often per call as the counts say.
    fn serial_shapes(&self, edge: usize) -> Vec<(Groups<usize>, f64)> {
        let graph = self.scene.graph;
        let rate = |edges: &[usize]| edges.iter().map(|e| self.scene.edges[*e].seen.rate).sum::<f64>();
        let parents = rate(graph.ins(graph.callee(edge))).max(f64::MIN_POSITIVE);
        let shape = |k: usize| {
            let calls = graph.children(edge).iter().enumerate().flat_map(|(j, child)| {
                let ratio = (rate(&[*child]) / parents).min(REPEATS_MAX);
                let phase = ((k * (2 * j + 1)) % SERIAL_SHAPES) as f64 + 0.5;
                let repeats = (ratio + phase / SERIAL_SHAPES as f64) as usize;
                std::iter::repeat_n(vec![vec![*child]], repeats)
            });
            (calls.collect(), 1.0)
        };
        (0..SERIAL_SHAPES).map(shape).collect()
    }

    /// Server spans from `own` and the present draws of the children.
    fn compose_server(&self, edge: usize, own: &Curve) -> Option<Curve> {
        let Some(program) = &self.programs[edge] else { return Some(*own) };
        let own = strata(own);
        let order = &self.permutations[(7 * edge + 1) % PERMUTATIONS];
        let mut totals: Vec<f64> = (0..DRAWS)
            .map(|draw| (own[order[draw]] + self.called(edge, &program.shapes[program.taken[draw]], draw)).ln())
            .collect();
        Curve::of_draws(&mut totals)
    }

    /// Time that one structure takes in one draw.
    fn called(&self, edge: usize, groups: &Groups<usize>, draw: usize) -> f64 {
        let mut site = 11 * edge + 2;
        let mut total = 0.0;
        for group in groups {
            let mut longest = 0.0_f64;
            for branch in group {
                let mut length = 0.0;
                for child in branch {
                    site += 1;
                    let stratum = self.permutations[site % PERMUTATIONS][draw];
                    length += self.draws[*child].get(stratum).copied().unwrap_or(0.0);
                }
                longest = longest.max(length);
            }
            total += longest;
        }
        total
    }

    fn compose_client(&self, edge: usize, server: &Curve, gap: Option<&Curve>) -> Option<Curve> {
        let Some(gap) = gap else { return Some(*server) };
        let (server, gap) = (strata(server), strata(gap));
        let order = &self.permutations[(13 * edge + 3) % PERMUTATIONS];
        let mut totals: Vec<f64> = (0..DRAWS).map(|draw| (server[draw] + gap[order[draw]]).ln()).collect();
        Curve::of_draws(&mut totals)
    }

    fn refind(&self, edge: usize) -> Option<World> {
        let seen = self.seen[edge]?;
        let scene = &self.scene.edges[edge];
        let server = self.compose_server(edge, &scene.own?.observed)?;
        let client = self.compose_client(edge, &seen.server, scene.gap.map(|part| part.observed).as_ref())?;
        Some(World { server, client })
    }

    /// What composition alone makes of the observed inputs: the objective's percentile (`ln us`) and, per edge with calls, the
    /// client spans as observed and as composed.
    pub fn rebuilt(mut self) -> (f64, Vec<(Curve, Curve)>) {
        let worlds = self.composed(|part| part.observed);
        let both =
            |(seen, made): (&Option<World>, &Option<World>)| Some((seen.as_ref()?.client, made.as_ref()?.client));
        (self.end_to_end(&worlds), self.seen.iter().zip(&worlds).filter_map(both).collect())
    }

    /// The world in which the curve of every part is what `input` makes of it.
    fn composed(&mut self, input: impl Fn(&Part) -> Curve) -> Vec<Option<World>> {
        let mut worlds = vec![None; self.seen.len()];
        for component in self.scene.graph.components() {
            for edge in component.edges.repeat(if component.is_cycle { CYCLE_SWEEPS } else { 1 }) {
                let scene = &self.scene.edges[edge];
                let Some(own) = scene.own else { continue };
                let Some(server) = self.compose_server(edge, &input(&own)) else { continue };
                let gap = scene.gap.as_ref().map(&input);
                let Some(client) = self.compose_client(edge, &server, gap.as_ref()) else { continue };
                self.draws[edge] = strata(&client);
                worlds[edge] = Some(World { server, client });
            }
        }
        worlds
    }

    /// One edge had `services` been normal.
    fn but_for(&self, edge: usize, services: &[usize]) -> Option<World> {
        let (seen, refound, healthy) = (self.seen[edge]?, self.refound[edge]?, self.healthy[edge]?);
        let scene = &self.scene.edges[edge];
        let part = scene.own?;
        let is_repaired = self.scene.is_repaired(self.scene.graph.callee(edge), services);
        let own = if is_repaired { part.repaired() } else { scene.restored.unwrap_or(part.observed) };
        let server = self.compose_server(edge, &own)?;
        let server = anchor(&seen.server, &refound.server, &server, &healthy.server);
        let held = relaxed_share(mean_ratio(&server, &seen.server));
        let gap = scene.gap.map(|part| {
            let share = self.scene.gap_share(edge, services);
            let normal = part.repaired();
            let held = if scene.is_net_like { 1.0 } else { held };
            part.observed.map(|q, log| {
                let (observed, normal) = (log.exp(), normal.logs()[q].exp());
                (normal + (observed - normal) * held.min(1.0 - share)).ln()
            })
        });
        let client = self.compose_client(edge, &server, gap.as_ref())?;
        Some(World { server, client: anchor(&seen.client, &refound.client, &client, &healthy.client) })
    }

    fn end_to_end(&self, worlds: &[Option<World>]) -> f64 {
        let calls = |edge: usize| self.scene.edges[edge].seen.calls;
        let parts: Vec<(f64, Curve)> =
            self.entries.iter().filter_map(|entry| Some((calls(*entry), worlds[*entry]?.server))).collect();
        Curve::mixture_at(&parts, self.share).unwrap_or(self.observed)
    }
}

impl Recomposer for CurveEngine<'_> {
    fn counterfactual(&mut self, services: &[usize]) -> f64 {
        if services.is_empty() {
            return self.observed;
        }
        let is_restored = |service: &usize| {
            self.scene.graph.ins(*service).iter().any(|edge| self.scene.edges[*edge].restored.is_some())
        };
        let mut causes: Vec<usize> = (0..self.scene.services.len()).filter(is_restored).collect();
        causes.extend(self.scene.repaired_with(services));
        let affected = self.scene.graph.affected_by(&causes);
        let mut worlds = self.seen.clone();
        let mut before: Vec<(usize, Vec<f64>)> = Vec::new();
        for component in self.scene.graph.components() {
            let sweeps = if component.is_cycle { CYCLE_SWEEPS } else { 1 };
            for edge in component.edges.repeat(sweeps).into_iter().filter(|edge| affected[*edge]) {
                if let Some(world) = self.but_for(edge, services) {
                    before.push((edge, std::mem::replace(&mut self.draws[edge], strata(&world.client))));
                    worlds[edge] = Some(world);
                }
            }
        }
        let result = self.end_to_end(&worlds) + self.offset;
        before.into_iter().rev().for_each(|(edge, draws)| self.draws[edge] = draws);
        result
    }

    fn lacks(&self) -> Vec<String> {
        let name = |edge: &usize| {
            let key = &self.scene.graph.edges()[*edge];
            format!("no call structure was sampled for {} {}", key.callee, key.operation)
        };
        let mut lacks = vec!["too few whole traces: composed from distributions".to_owned()];
        lacks.extend(self.guessed.iter().map(name));
        lacks
    }
}

/// The observed curve moved by the model's counterfactual, the model's own error at the observed point carried over and
/// fading as the abnormality goes.
fn anchor(observed: &Curve, refound: &Curve, but_for: &Curve, healthy: &Curve) -> Curve {
    but_for.map(|q, log| {
        let [found, normal] = [refound, healthy].map(|curve| curve.logs()[q].exp());
        let abnormal = found - normal;
        let left = if abnormal > 0.0 { ((log.exp() - normal) / abnormal).clamp(0.0, 1.0) } else { 1.0 };
        log + (observed.logs()[q] - refound.logs()[q]) * left
    })
}

fn mean_ratio(new: &Curve, old: &Curve) -> f64 {
    (new.logs().iter().zip(old.logs()).map(|(new, old)| new - old).sum::<f64>() / Q as f64).exp()
}

fn measured(scene: &Scene<'_>, edge: usize) -> Option<World> {
    let edge = &scene.edges[edge];
    let server = edge.inner()?;
    Some(World { server, client: edge.outer().unwrap_or(server) })
}

fn numbered(graph: &Graph, shape: &Shape) -> Option<(Groups<usize>, f64)> {
    let branch = |branch: &Vec<_>| branch.iter().map(|key| graph.edge(key)).collect::<Option<Vec<_>>>();
    let group = |group: &Vec<Vec<_>>| group.iter().map(branch).collect::<Option<Vec<_>>>();
    Some((shape.groups.iter().map(group).collect::<Option<_>>()?, shape.count))
}

fn stratum_share(stratum: usize) -> f64 {
    (stratum as f64 + 0.5) / DRAWS as f64
}

/// A curve at the strata, microseconds.
fn strata(curve: &Curve) -> Vec<f64> {
    (0..DRAWS).map(|stratum| curve.at(stratum_share(stratum)).exp()).collect()
}

fn permutation(draw: &mut SmallRng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..DRAWS).collect();
    order.shuffle(draw);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_anchor_keeps_the_error_at_the_observed_point_and_drops_it_at_the_normal_one() {
        let level = |us: f64| Curve::of_logs([us.ln(); Q]).expect("finite");
        let (observed, refound, healthy) = (level(1100.0), level(1000.0), level(100.0));
        let close = |curve: Curve, us: f64| (curve.at(0.5).exp() - us).abs() < 1e-6;
        assert!(close(anchor(&observed, &refound, &refound, &healthy), 1100.0));
        assert!(close(anchor(&observed, &refound, &healthy, &healthy), 100.0));
    }

    #[test]
    fn the_strata_of_a_curve_give_the_curve_back() {
        let curve = Curve::of_logs(std::array::from_fn(|q| 5.0 + 0.1 * q as f64)).expect("finite");
        let mut logs: Vec<f64> = strata(&curve).into_iter().map(f64::ln).collect();
        let again = Curve::of_draws(&mut logs).expect("draws");
        assert!(curve.logs()[..Q - 1].iter().zip(again.logs()).all(|(a, b)| (a - b).abs() < 0.01), "{again:?}");
    }
}
