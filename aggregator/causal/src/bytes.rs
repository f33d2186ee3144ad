//! The durable form of a model: everything but weights as JSON, then the net of each service; see [`crate::envelope`].

use std::collections::{BTreeMap, BTreeSet};

use sage_common::{Generation, ServiceId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    envelope::Envelope,
    gvae::ServiceNet,
    inputs::NetInputs,
    model::{Model, ModelCard, ModelError},
    normal::{Regressors, ServiceNormal},
    normals::{Normals, PromotedNet},
    null::{GroupNull, Null},
    observation::EdgeKey,
    skeleton::Skeletons,
};

const ENVELOPE: Envelope = Envelope { magic: *b"SAGECBN\0", version: 1 };

/// A model without its nets' weights.
#[derive(Deserialize, Serialize)]
struct Body {
    generation: Generation,
    edges: BTreeSet<EdgeKey>,
    skeletons: Skeletons,
    regressors: Option<Regressors>,
    services: Vec<ServiceNormal>,
    nets: Vec<(ServiceId, NetInputs)>,
    nulls: BTreeMap<String, Null>,
    groups: GroupNull,
    offered_max: Option<f64>,
    newest: Timestamp,
    cards: Vec<ModelCard>,
    held_out_error: Option<f64>,
    #[serde(default)]
    since: BTreeMap<ServiceId, Timestamp>,
}

/// Writes `model`.
pub fn write(model: &Model) -> Vec<u8> {
    let body = Body {
        generation: model.generation,
        edges: model.edges.clone(),
        skeletons: model.skeletons.clone(),
        regressors: model.normals.regressors,
        services: model.normals.services.values().cloned().collect(),
        nets: model.normals.nets.iter().map(|(service, net)| (service.clone(), net.inputs.clone())).collect(),
        nulls: model.nulls.clone(),
        groups: model.groups.clone(),
        offered_max: model.offered_max,
        newest: model.newest,
        cards: model.cards.clone(),
        held_out_error: Some(model.held_out_error).filter(|error| error.is_finite()),
        since: model.since.clone(),
    };
    // Plain data with text keys: there is nothing that JSON could refuse. An empty body would be refused on reading.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let nets: Vec<Vec<u8>> = model.normals.nets.values().map(|net| net.net.to_bytes()).collect();
    ENVELOPE.write(&body, &nets)
}

/// Reads what [`write()`] wrote.
pub fn read(bytes: &[u8]) -> Result<Model, ModelError> {
    let (body, blocks) = ENVELOPE.read(bytes)?;
    let body: Body = serde_json::from_slice(body).map_err(|error| ModelError::Damaged(error.to_string()))?;
    if blocks.len() != body.nets.len() {
        return Err(ModelError::Damaged("nets do not match their list".to_owned()));
    }
    let mut nets = BTreeMap::new();
    for ((service, inputs), block) in body.nets.iter().zip(blocks) {
        let net = ServiceNet::from_bytes(block).map_err(|error| ModelError::Damaged(error.to_string()))?;
        if (net.inputs(), net.outputs()) != (inputs.inputs(), inputs.outputs()) {
            return Err(ModelError::Damaged(format!("the net of {service} has another shape than its columns")));
        }
        nets.insert(service.clone(), PromotedNet { inputs: inputs.clone(), net });
    }
    Ok(model(body, nets))
}

fn model(body: Body, nets: BTreeMap<ServiceId, PromotedNet>) -> Model {
    let services = body.services.into_iter().map(|normal| (normal.service.clone(), normal)).collect();
    Model {
        generation: body.generation,
        edges: body.edges,
        skeletons: body.skeletons,
        normals: Normals { regressors: body.regressors, services, nets },
        nulls: body.nulls,
        groups: body.groups,
        offered_max: body.offered_max,
        newest: body.newest,
        cards: body.cards,
        held_out_error: body.held_out_error.unwrap_or(f64::NAN),
        since: body.since,
    }
}
