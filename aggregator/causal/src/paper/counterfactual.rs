//! One violated window: abduction of the latent variables, then worlds in which some metrics had been normal.

use sage_common::Slo;

use crate::{
    curve::Curve,
    engine::entries,
    frame::Frame,
    graph::Graph,
    gvae::{Latent, ServiceNet, Table},
    observation::Observation,
    paper::{
        Latents, PaperModel,
        node::{Column, Node, outer},
    },
};

/// What a decoder was given and put out for the window as observed.
struct Factual<'a> {
    node: &'a Node,
    net: &'a ServiceNet,
    /// Noise of each latent dimension, in standard deviations of the prior.
    noise: Vec<f32>,
    /// The prior's and the posterior's z.
    prior: Latent,
    posterior: Vec<f32>,
    y: Vec<Option<f32>>,
    /// The decoder's answer where everything is as observed.
    decoded: Vec<f32>,
}

/// One window, abducted.
pub struct World<'a> {
    model: &'a PaperModel,
    /// Numbering of the model's RPCs.
    pub graph: Graph,
    /// What was observed.
    pub frame: Frame,
    nodes: Vec<Factual<'a>>,
    entries: Vec<usize>,
    share: f64,
}

impl<'a> World<'a> {
    /// Abducts `window`; `None` when it has no length or no net fits it.
    pub fn new(model: &'a PaperModel, window: &Observation, slo: &Slo) -> Option<Self> {
        let graph = model.graph();
        let frame = Frame::of(&graph, &[window])?;
        let entries = entries(&graph, slo);
        let mut this = Self { model, graph, frame, nodes: Vec::new(), entries, share: slo.percentile / 100.0 };
        for (node, net) in &model.nodes {
            let factual = this.abduct(node, net)?;
            this.nodes.push(factual);
        }
        Some(this)
    }

    fn abduct(&self, node: &'a Node, net: &'a ServiceNet) -> Option<Factual<'a>> {
        let scale = self.model.options.scale;
        let x = node.x(&self.graph, &self.frame, scale, &|_| false);
        let y = node.y(&self.graph, &self.frame, scale);
        let context = node.context(&self.graph, scale, &|edge| outer(&self.frame.edges[edge]));
        let x = row(&x)?;
        let posterior = net.posterior(&x, &row(&y)?).ok()?.swap_remove(0).mean;
        let prior = net.prior(&x).ok()?.swap_remove(0);
        let noise = posterior.iter().zip(&prior.mean).zip(&prior.sd).map(|((z, mean), sd)| (z - mean) / sd).collect();
        let z = if self.model.options.latents == Latents::Kept { posterior.clone() } else { prior.mean.clone() };
        let decoded = net.decode(&x, Some(&row(&context)?), &[z]).ok()?.swap_remove(0);
        Some(Factual { node, net, noise, prior, posterior, y, decoded })
    }

    /// `ln us` of the objective's percentile had the metrics for which `is_repaired` holds been normal. RPCs that do not
    /// depend on them keep their observed latencies. `None` when no entry was called.
    pub fn counterfactual(&self, is_repaired: &dyn Fn(&Column) -> bool) -> Option<f64> {
        self.propagate(is_repaired, false)
    }

    /// `ln us` of the objective's percentile as the whole chain puts it out for the window as observed.
    pub fn rebuilt(&self) -> Option<f64> {
        self.propagate(&|_| false, true)
    }

    fn propagate(&self, is_repaired: &dyn Fn(&Column) -> bool, is_all: bool) -> Option<f64> {
        let mut client: Vec<Option<Curve>> = self.frame.edges.iter().map(outer).collect();
        let mut server: Vec<Option<Curve>> = self.frame.edges.iter().map(|edge| edge.server.or(edge.client)).collect();
        let mut is_changed = vec![false; self.frame.edges.len()];
        for factual in &self.nodes {
            let Factual { node, .. } = factual;
            let child = |key| self.graph.edge(key).is_some_and(|edge| is_changed[edge]);
            if !is_all && !node.columns.iter().any(is_repaired) && !node.children.iter().any(child) {
                continue;
            }
            let y = self.decode(factual, is_repaired, &client)?;
            for (key, curves) in node.edges.iter().zip(node.curves(&y, self.model.options.scale)) {
                let Some(edge) = self.graph.edge(key).filter(|edge| client[*edge].is_some()) else { continue };
                server[edge] = curves.0.filter(|_| self.frame.edges[edge].server.is_some()).or(curves.1);
                client[edge] = curves.1;
                is_changed[edge] = true;
            }
        }
        let part = |edge: &usize| Some((self.frame.edges[*edge].calls, server[*edge]?));
        let parts: Vec<(f64, Curve)> = self.entries.iter().filter_map(part).collect();
        Curve::mixture_at(&parts, self.share)
    }

    /// One node's y, given its callees' client sides.
    fn decode(
        &self,
        factual: &Factual<'_>,
        is_repaired: &dyn Fn(&Column) -> bool,
        client: &[Option<Curve>],
    ) -> Option<Vec<f32>> {
        let (options, node, net) = (&self.model.options, factual.node, factual.net);
        let x = row(&node.x(&self.graph, &self.frame, options.scale, is_repaired))?;
        let context = row(&node.context(&self.graph, options.scale, &|edge| client[edge]))?;
        let prior = if node.columns.iter().any(is_repaired) {
            net.prior(&x).ok()?.swap_remove(0)
        } else {
            factual.prior.clone()
        };
        let z: Vec<f32> = match options.latents {
            Latents::Expected => prior.mean,
            Latents::Kept if prior == factual.prior => factual.posterior.clone(),
            Latents::Kept => {
                prior.mean.iter().zip(&prior.sd).zip(&factual.noise).map(|((m, s), n)| m + s * n).collect()
            }
        };
        let mut y = net.decode(&x, Some(&context), &[z]).ok()?.swap_remove(0);
        if options.keeps_residual {
            for ((value, observed), decoded) in y.iter_mut().zip(&factual.y).zip(&factual.decoded) {
                *value += observed.map_or(0.0, |observed| observed - decoded);
            }
        }
        Some(y)
    }
}

fn row(values: &[Option<f32>]) -> Option<Table> {
    let mut table = Table::new(values.len());
    table.push(values.iter().copied()).ok()?;
    Some(table)
}
