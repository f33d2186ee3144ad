//! The durable form of a model.
//!
//! ```text
//! "SAGECBN\0" | version u16 | schema u64 | body length u64 | body (JSON) | nets: count u32, (length u64, bytes)* | xxh3 u64
//! ```
//!
//! Integers are little-endian. The schema is a hash of the metric names and the percentile grids: numbers learnt over
//! others mean something else. The checksum covers all bytes before it.

use std::collections::{BTreeMap, BTreeSet};

use sage_common::{Generation, LATENCY_PERCENTILES, Metric, ServiceId, Timestamp, USAGE_PERCENTILES};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::{
    gvae::ServiceNet,
    inputs::NetInputs,
    model::{Model, ModelCard, ModelError},
    normal::{Regressors, ServiceNormal},
    normals::{Normals, PromotedNet},
    null::{GroupNull, Null},
    observation::EdgeKey,
    skeleton::Skeletons,
};

const MAGIC: [u8; 8] = *b"SAGECBN\0";
const VERSION: u16 = 1;

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
    };
    // Plain data with text keys: there is nothing that JSON could refuse. An empty body would be refused on reading.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let mut bytes = Vec::with_capacity(body.len() + 64);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(schema().to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(body);
    bytes.extend((model.normals.nets.len() as u32).to_le_bytes());
    for net in model.normals.nets.values() {
        let net = net.net.to_bytes();
        bytes.extend((net.len() as u64).to_le_bytes());
        bytes.extend(net);
    }
    let checksum = xxh3_64(&bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}

/// Reads what [`write()`] wrote.
pub fn read(bytes: &[u8]) -> Result<Model, ModelError> {
    let mut rest = bytes.strip_prefix(&MAGIC).ok_or(ModelError::Foreign)?;
    let version = u16::from_le_bytes(take(&mut rest)?);
    if version != VERSION {
        return Err(ModelError::Version { found: version, want: VERSION });
    }
    let checked = bytes.len().checked_sub(8).ok_or_else(cut)?;
    let (content, checksum) = bytes.split_at(checked);
    if checksum != xxh3_64(content).to_le_bytes() {
        return Err(ModelError::Damaged("checksum does not match".to_owned()));
    }
    if u64::from_le_bytes(take(&mut rest)?) != schema() {
        return Err(ModelError::Schema);
    }
    let body = take_block(&mut rest)?;
    let body: Body = serde_json::from_slice(body).map_err(|error| ModelError::Damaged(error.to_string()))?;
    let count = u32::from_le_bytes(take(&mut rest)?);
    if count as usize != body.nets.len() {
        return Err(ModelError::Damaged("nets do not match their list".to_owned()));
    }
    let mut nets = BTreeMap::new();
    for (service, inputs) in &body.nets {
        let net = ServiceNet::from_bytes(take_block(&mut rest)?).map_err(|e| ModelError::Damaged(e.to_string()))?;
        if (net.inputs(), net.outputs()) != (inputs.inputs(), inputs.outputs()) {
            return Err(ModelError::Damaged(format!("the net of {service} has another shape than its columns")));
        }
        nets.insert(service.clone(), PromotedNet { inputs: inputs.clone(), net });
    }
    if rest.len() != 8 {
        return Err(ModelError::Damaged("bytes after the end".to_owned()));
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
    }
}

/// Hash of everything that gives the numbers their meaning.
fn schema() -> u64 {
    let mut hash = Xxh3::new();
    for metric in Metric::ALL {
        hash.update(metric.name().as_bytes());
        hash.update(&[0]);
    }
    for percentile in LATENCY_PERCENTILES.iter().chain(&USAGE_PERCENTILES) {
        hash.update(&percentile.to_le_bytes());
    }
    hash.digest()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], ModelError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or_else(cut)?;
    *rest = tail;
    Ok(*head)
}

fn take_block<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], ModelError> {
    let length = usize::try_from(u64::from_le_bytes(take(rest)?)).map_err(|_| cut())?;
    let (block, tail) = rest.split_at_checked(length).ok_or_else(cut)?;
    *rest = tail;
    Ok(block)
}

fn cut() -> ModelError {
    ModelError::Damaged("cut short".to_owned())
}
