//! The columns of a service's net: x = [its metrics without effect metrics, network metrics of its callers, load of its
//! edges], y = [self time, gap] of its edges, percentile by percentile.

use std::collections::BTreeSet;

use sage_common::{Metric, MetricGroup, ServiceId};
use serde::{Deserialize, Serialize};

use crate::{
    curve::{Curve, Q},
    frame::Frame,
    graph::Graph,
    gvae::{GvaeError, ServiceNet, Table},
    normal::ServiceNormal,
    normals::Normals,
    observation::EdgeKey,
};

/// What the columns of one net mean. The order is fixed when the net is trained and stored with it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NetInputs {
    own: Vec<Metric>,
    callers: Vec<(ServiceId, Metric)>,
    edges: Vec<EdgeKey>,
}

impl NetInputs {
    /// The columns for service number `service` of `graph`, as far as its normals know the metrics.
    pub fn of(normals: &Normals, normal: &ServiceNormal, graph: &Graph, service: usize) -> Self {
        let causes = |normal: &ServiceNormal| {
            normal.usage.iter().map(|usage| usage.metric).filter(|metric| !metric.spec().is_effect).collect::<Vec<_>>()
        };
        let names: BTreeSet<&ServiceId> =
            graph.ins(service).iter().filter_map(|edge| Some(&graph.services()[graph.caller(*edge)?])).collect();
        let network = |name: &ServiceId| {
            let metrics = normals.services.get(name).map(causes).unwrap_or_default();
            metrics.into_iter().filter(|metric| metric.group() == MetricGroup::Network).collect::<Vec<_>>()
        };
        let callers =
            names.into_iter().flat_map(|name| network(name).into_iter().map(move |metric| (name.clone(), metric)));
        Self {
            own: causes(normal),
            callers: callers.collect(),
            edges: graph.ins(service).iter().map(|edge| graph.edges()[*edge].clone()).collect(),
        }
    }

    /// Columns of x.
    pub fn inputs(&self) -> usize {
        self.own.len() + self.callers.len() + self.edges.len()
    }

    /// Columns of y.
    pub fn outputs(&self) -> usize {
        2 * Q * self.edges.len()
    }

    /// x as observed in `frame`, one row a frame.
    ///
    /// # Errors
    ///
    /// [`GvaeError::Shape`] never, unless this type is broken.
    pub fn x(&self, normals: &Normals, graph: &Graph, frames: &[&Frame]) -> Result<Table, GvaeError> {
        let mut table = Table::new(self.inputs());
        for frame in frames {
            table.push(self.x_row(normals, graph, frame, false))?;
        }
        Ok(table)
    }

    /// y as observed in `frame`, one row a frame.
    ///
    /// # Errors
    ///
    /// As [`NetInputs::x`].
    pub fn y(&self, graph: &Graph, frames: &[&Frame]) -> Result<Table, GvaeError> {
        let mut table = Table::new(self.outputs());
        for frame in frames {
            table.push(self.y_row(graph, frame))?;
        }
        Ok(table)
    }

    /// Self time and gap of every edge as the net expects them at the load of `frame` with every metric normal.
    pub fn predict(
        &self,
        net: &ServiceNet,
        normals: &Normals,
        normal: &ServiceNormal,
        graph: &Graph,
        service: usize,
        frame: &Frame,
    ) -> Vec<(EdgeKey, Option<Curve>, Option<Curve>)> {
        debug_assert_eq!(normal.service, graph.services()[service]);
        let row: Vec<f32> =
            self.x_row(normals, graph, frame, true).into_iter().map(|value| value.unwrap_or(f32::NAN)).collect();
        let Ok(y) = net.predict(&row) else { return Vec::new() };
        if y.len() != self.outputs() {
            return Vec::new();
        }
        let curve = |values: &[f32]| Curve::of_logs(std::array::from_fn(|q| f64::from(values[q])));
        let edges = self.edges.iter().zip(y.chunks_exact(2 * Q));
        edges.map(|(key, values)| (key.clone(), curve(&values[..Q]), curve(&values[Q..]))).collect()
    }

    /// One row of x: metrics as observed, or their normal at the load of `frame`.
    fn x_row(&self, normals: &Normals, graph: &Graph, frame: &Frame, is_normal: bool) -> Vec<Option<f32>> {
        let service = self.edges.first().map(|key| &key.callee);
        let own = self.own.iter().filter_map(|metric| Some((service?, metric)));
        let callers = self.callers.iter().map(|(caller, metric)| (caller, metric));
        let usage = own.chain(callers).map(|(name, metric)| {
            let normal = normals.services.get(name)?.metric(*metric)?;
            let number = graph.service(name)?;
            let seen = &frame.services[number];
            let value = if is_normal {
                normal.value(&normals.regressors?.row(seen.rate, frame.time))
            } else {
                normal.value_of(&seen.readings[metric.index()]?)
            };
            Some(value as f32)
        });
        let load = self.edges.iter().map(|key| {
            let edge = graph.edge(key)?;
            Some(normals.regressors?.row(frame.edges[edge].rate, frame.time)[0] as f32)
        });
        usage.chain(load).collect()
    }

    fn y_row(&self, graph: &Graph, frame: &Frame) -> Vec<Option<f32>> {
        let curves = self.edges.iter().flat_map(|key| {
            let edge = graph.edge(key).map(|edge| &frame.edges[edge]);
            [edge.and_then(|edge| edge.self_time), edge.and_then(|edge| edge.gap)]
        });
        curves.flat_map(|curve| (0..Q).map(move |q| Some(curve?.logs()[q] as f32))).collect()
    }
}
