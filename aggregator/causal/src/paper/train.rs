//! Serial training along the network: the decoders of the callees first, because those of the callers need what they put
//! out.

use sage_common::{Generation, Slo};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    curve::Curve,
    frame::Frame,
    graph::Graph,
    gvae::{CvaeOptions, GvaeError, ServiceNet, Table},
    model::ModelError,
    observation::Observation,
    paper::{
        PaperModel, PaperOptions,
        chain::metanodes,
        counterfactual::World,
        node::{Column, Node, outer},
    },
    pool,
    robust::{mad_scale, median},
    sampling,
    train::{is_complete, is_healthy},
};

/// Healthy windows below which nothing is learnt.
const HEALTHY_MIN: usize = 10;

/// Windows learnt from at most, the newest: a good hour and a half at 3 s, most of a day at 30 s.
const WINDOWS_MAX: usize = 2_000;

/// Windows on which the error of the rebuilt percentile is taken.
const ERROR_WINDOWS: usize = 60;

/// Range of that error, in logs.
pub(super) const ERROR_RANGE: (f64, f64) = (0.05, 0.5);

/// What training did.
#[derive(Clone, Debug, PartialEq)]
pub struct PaperReport {
    /// Windows learnt from.
    pub windows: usize,
    /// Of those, windows that missed a target.
    pub violated: usize,
    /// Services with a net.
    pub nets: usize,
    /// Nets that could not be trained, for people.
    pub problems: Vec<String>,
}

/// Trains; see [`PaperModel::train`].
pub fn train(
    history: &[Observation],
    slos: &[Slo],
    previous: Option<&PaperModel>,
    options: &PaperOptions,
) -> Result<(PaperModel, PaperReport), ModelError> {
    let all: Vec<&Observation> = history.iter().filter(|window| is_complete(window)).collect();
    let windows = &all[all.len().saturating_sub(WINDOWS_MAX)..];
    let violated: Vec<bool> = windows.iter().map(|window| !is_healthy(window, slos)).collect();
    let healthy = violated.iter().filter(|flag| !**flag).count();
    if healthy < HEALTHY_MIN {
        return Err(ModelError::TooFewWindows { have: healthy, want: HEALTHY_MIN });
    }
    let edges = windows.iter().flat_map(|o| o.edges.iter().map(|e| e.key.clone())).collect();
    let mut model = PaperModel {
        options: *options,
        edges,
        nodes: Vec::new(),
        errors: Vec::new(),
        newest: windows.iter().map(|o| o.start + o.length).max().unwrap_or_default(),
        generation: Generation(previous.map_or(1, |previous| previous.generation.0 + 1)),
    };
    if model.edges.is_empty() {
        return Err(ModelError::NoCalls);
    }
    let graph = model.graph();
    let frames: Vec<Frame> = windows.iter().filter_map(|window| Frame::of(&graph, &[window])).collect();
    let serial = Serial { graph: &graph, frames: &frames, violated: &violated, options };
    let (nodes, problems) = serial.run(previous);
    model.nodes = nodes;
    let healthy: Vec<&Observation> =
        windows.iter().zip(&violated).filter(|(_, flag)| !**flag).map(|(window, _)| *window).collect();
    let recent = &healthy[healthy.len().saturating_sub(ERROR_WINDOWS)..];
    model.errors = slos.iter().map(|slo| (slo.name.clone(), rebuild_error(&model, recent, slo))).collect();
    let violated = violated.iter().filter(|flag| **flag).count();
    let report = PaperReport { windows: windows.len(), violated, nets: model.nodes.len(), problems };
    Ok((model, report))
}

/// Robust standard deviation of rebuilt against observed, in logs.
fn rebuild_error(model: &PaperModel, windows: &[&Observation], slo: &Slo) -> f64 {
    let error = |window: &&Observation| {
        let rebuilt = World::new(model, window, slo)?.rebuilt()?;
        Some(pool::latency_us(window, slo)?.ln() - rebuilt)
    };
    let mut errors: Vec<f64> = windows.iter().filter_map(error).filter(|error| error.is_finite()).collect();
    let centre = median(&mut errors).unwrap_or(0.0);
    mad_scale(&errors, centre, ERROR_RANGE.0).min(ERROR_RANGE.1)
}

struct Serial<'a> {
    graph: &'a Graph,
    frames: &'a [Frame],
    violated: &'a [bool],
    options: &'a PaperOptions,
}

/// What each window's client sides are, by RPC number: as the decoders put them out, observed before they were asked.
type Clients = Vec<Vec<Option<Curve>>>;

impl Serial<'_> {
    fn run(&self, previous: Option<&PaperModel>) -> (Vec<(Node, ServiceNet)>, Vec<String>) {
        let healthy: Vec<&Frame> =
            self.frames.iter().zip(self.violated).filter(|(_, flag)| !**flag).map(|(frame, _)| frame).collect();
        let mut clients: Clients = self.frames.iter().map(|frame| frame.edges.iter().map(outer).collect()).collect();
        let order = sampling::balanced(self.violated);
        let (mut nodes, mut problems) = (Vec::new(), Vec::new());
        for members in metanodes(self.graph) {
            let node = Node::new(self.graph, &members, self.frames, &healthy, self.options);
            // A service that nobody calls has no latency of its own to learn.
            if node.edges.is_empty() {
                continue;
            }
            match self.fit(&node, &order, previous, &mut clients) {
                Ok(net) => nodes.push((node, net)),
                Err(error) => problems.push(format!("{}: {error}", node.services[0])),
            }
        }
        (nodes, problems)
    }

    fn fit(
        &self,
        node: &Node,
        order: &[usize],
        previous: Option<&PaperModel>,
        clients: &mut Clients,
    ) -> Result<ServiceNet, GvaeError> {
        let (graph, scale) = (self.graph, self.options.scale);
        let [mut x, mut context, mut y] = node.shape().map(Table::new);
        let as_observed = |_: &Column| false;
        for (frame, clients) in self.frames.iter().zip(clients.iter()) {
            x.push(node.x(graph, frame, scale, &as_observed))?;
            context.push(node.context(graph, scale, &|edge| clients[edge]))?;
            y.push(node.y(graph, frame, scale))?;
        }
        let name = node.services[0].as_str();
        let options = CvaeOptions {
            seed: self.options.cvae.seed ^ xxh3_64(name.as_bytes()),
            layers: PaperOptions::layers(x.cols() + context.cols() + y.cols()),
            ..self.options.cvae
        };
        let alike = |(other, _): &&(Node, ServiceNet)| other.is_alike(node);
        let before = previous.and_then(|model| model.nodes.iter().find(alike)).map(|(_, net)| net);
        let net = ServiceNet::train_in_context(&x, Some(&context), &y, order, before, &options)?;
        let z: Vec<Vec<f32>> = net.posterior(&x, &y)?.into_iter().map(|latent| latent.mean).collect();
        for (y, clients) in net.decode(&x, Some(&context), &z)?.iter().zip(clients) {
            for (key, (_, client)) in node.edges.iter().zip(node.curves(y, scale)) {
                // Absent stays absent: a decoder puts something out for calls that were not made, too.
                if let Some(edge) = graph.edge(key).filter(|edge| clients[*edge].is_some()) {
                    clients[edge] = client.or(clients[edge]);
                }
            }
        }
        Ok(net)
    }
}
