//! The durable form of a [`PaperModel`]: columns as JSON, then the net of each node; see [`crate::envelope`].

use std::collections::BTreeSet;

use sage_common::{Generation, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    envelope::Envelope,
    gvae::{CvaeOptions, Norm, ServiceNet},
    model::ModelError,
    observation::EdgeKey,
    paper::{LatencyScale, Latents, PaperModel, PaperOptions, node::Node},
};

const ENVELOPE: Envelope = Envelope { magic: *b"SAGEPAP\0", version: 1 };

#[derive(Deserialize, Serialize)]
struct Body {
    scale: LatencyScale,
    has_effect_metrics: bool,
    latents: Latents,
    keeps_residual: bool,
    nets: Nets,
    edges: BTreeSet<EdgeKey>,
    nodes: Vec<Node>,
    errors: Vec<(String, f64)>,
    newest: Timestamp,
    generation: Generation,
}

/// How the nets were trained, for a training that goes on from them.
#[derive(Deserialize, Serialize)]
struct Nets {
    seed: u64,
    epochs: usize,
    batch: usize,
    rate_max: f32,
    latent: usize,
    beta: f32,
    alpha: f32,
    dropout: f32,
    layers: usize,
    is_batch_normed: bool,
    has_skip: bool,
}

impl From<CvaeOptions> for Nets {
    fn from(options: CvaeOptions) -> Self {
        let CvaeOptions { seed, epochs, batch, rate_max, latent, beta, alpha, dropout, layers, norm, has_skip } =
            options;
        let is_batch_normed = norm == Norm::Batch;
        Self { seed, epochs, batch, rate_max, latent, beta, alpha, dropout, layers, is_batch_normed, has_skip }
    }
}

impl From<Nets> for CvaeOptions {
    fn from(nets: Nets) -> Self {
        let Nets { seed, epochs, batch, rate_max, latent, beta, alpha, dropout, layers, is_batch_normed, has_skip } =
            nets;
        let norm = if is_batch_normed { Norm::Batch } else { Norm::Layer };
        Self { seed, epochs, batch, rate_max, latent, beta, alpha, dropout, layers, norm, has_skip }
    }
}

/// Writes `model`.
pub fn write(model: &PaperModel) -> Vec<u8> {
    let PaperOptions { cvae, scale, has_effect_metrics, latents, keeps_residual } = model.options;
    let body = Body {
        scale,
        has_effect_metrics,
        latents,
        keeps_residual,
        nets: cvae.into(),
        edges: model.edges.clone(),
        nodes: model.nodes.iter().map(|(node, _)| node.clone()).collect(),
        errors: model.errors.clone(),
        newest: model.newest,
        generation: model.generation,
    };
    // Plain data with text keys: there is nothing that JSON could refuse. An empty body would be refused on reading.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    ENVELOPE.write(&body, &model.nodes.iter().map(|(_, net)| net.to_bytes()).collect::<Vec<_>>())
}

/// Reads what [`write()`] wrote.
pub fn read(bytes: &[u8]) -> Result<PaperModel, ModelError> {
    let (body, blocks) = ENVELOPE.read(bytes)?;
    let body: Body = serde_json::from_slice(body).map_err(|error| ModelError::Damaged(error.to_string()))?;
    if blocks.len() != body.nodes.len() {
        return Err(ModelError::Damaged("nets do not match their list".to_owned()));
    }
    let mut nodes = Vec::with_capacity(blocks.len());
    for (node, block) in body.nodes.into_iter().zip(blocks) {
        let net = ServiceNet::from_bytes(block).map_err(|error| ModelError::Damaged(error.to_string()))?;
        if [net.inputs(), net.contexts(), net.outputs()] != node.shape() || node.services.is_empty() {
            return Err(ModelError::Damaged("a net has another shape than its columns".to_owned()));
        }
        nodes.push((node, net));
    }
    let Body { scale, has_effect_metrics, latents, keeps_residual, nets, edges, errors, newest, generation, .. } = body;
    let options = PaperOptions { cvae: nets.into(), scale, has_effect_metrics, latents, keeps_residual };
    Ok(PaperModel { options, edges, nodes, errors, newest, generation })
}
