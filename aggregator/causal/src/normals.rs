//! The normals of a whole application, looked up by name: from the linear prior, or from a service's net once promoted.

use std::collections::BTreeMap;

use sage_common::{LATENCY_PERCENTILES, ServiceId};

use crate::{
    curve::Curve,
    frame::Frame,
    graph::Graph,
    gvae::ServiceNet,
    inputs::NetInputs,
    normal::{CurveNormal, Regressors, ServiceNormal},
};

const Q: usize = LATENCY_PERCENTILES.len();

/// A promoted net, with what its columns mean.
#[derive(Clone, Debug)]
pub struct PromotedNet {
    /// Columns.
    pub inputs: NetInputs,
    /// Weights.
    pub net: ServiceNet,
}

/// Everything normal.
#[derive(Clone, Debug, Default)]
pub struct Normals {
    /// What normals depend on.
    pub regressors: Option<Regressors>,
    /// Linear prior of every service.
    pub services: BTreeMap<ServiceId, ServiceNormal>,
    /// Nets that beat the linear prior.
    pub nets: BTreeMap<ServiceId, PromotedNet>,
}

/// A normal curve at the present load, and how far a percentile strays from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// The curve.
    pub curve: Curve,
    /// Robust standard deviation of each percentile, in logs.
    pub scales: [f64; Q],
}

/// The normals of one edge at the present load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExpectedEdge {
    /// Self time.
    pub self_time: Option<Expected>,
    /// Client minus server span.
    pub gap: Option<Expected>,
    /// Client span.
    pub client: Option<Expected>,
}

impl Normals {
    /// The normals of every edge of `graph`, by number, at the load of `frame`.
    pub fn expected(&self, graph: &Graph, frame: &Frame) -> Vec<ExpectedEdge> {
        let mut expected: Vec<ExpectedEdge> =
            (0..graph.edges().len()).map(|edge| self.linear(graph, edge, frame, 1.0)).collect();
        for (service, promoted) in &self.nets {
            let (Some(number), Some(normal)) = (graph.service(service), self.services.get(service)) else { continue };
            for (key, own, gap) in promoted.inputs.predict(&promoted.net, self, normal, graph, number, frame) {
                if let Some(edge) = graph.edge(&key) {
                    replace(&mut expected[edge].self_time, own);
                    replace(&mut expected[edge].gap, gap);
                }
            }
        }
        expected
    }

    /// The normals of the edges into service number `service` alone, with their numbers.
    pub fn expected_into(&self, graph: &Graph, service: usize, frame: &Frame) -> Vec<(usize, ExpectedEdge)> {
        let edges = graph.ins(service);
        let mut expected: Vec<(usize, ExpectedEdge)> =
            edges.iter().map(|edge| (*edge, self.linear(graph, *edge, frame, 1.0))).collect();
        let name = &graph.services()[service];
        if let (Some(promoted), Some(normal)) = (self.nets.get(name), self.services.get(name)) {
            for (key, own, gap) in promoted.inputs.predict(&promoted.net, self, normal, graph, service, frame) {
                let found = expected.iter_mut().find(|(edge, _)| graph.edges()[*edge] == key);
                if let Some((_, expected)) = found {
                    replace(&mut expected.self_time, own);
                    replace(&mut expected.gap, gap);
                }
            }
        }
        expected
    }

    /// The linear prior of edge number `edge` at the load of `frame` times `load_factor`.
    pub fn linear(&self, graph: &Graph, edge: usize, frame: &Frame, load_factor: f64) -> ExpectedEdge {
        let key = &graph.edges()[edge];
        let normal = self.services.get(&key.callee).and_then(|service| service.edge(key));
        let (Some(normal), Some(regressors)) = (normal, self.regressors) else { return ExpectedEdge::default() };
        let row = regressors.row(frame.edges[edge].rate * load_factor, frame.time);
        let at = |normal: &Option<CurveNormal>| {
            let normal = normal.as_ref()?;
            Some(Expected { curve: normal.at(&row)?, scales: normal.scales() })
        };
        ExpectedEdge { self_time: at(&normal.self_time), gap: at(&normal.gap), client: at(&normal.client) }
    }
}

/// A net's curve takes the place of the linear one; its spread stays the linear one's.
fn replace(expected: &mut Option<Expected>, curve: Option<Curve>) {
    if let (Some(expected), Some(curve)) = (expected.as_mut(), curve) {
        expected.curve = curve;
    }
}
