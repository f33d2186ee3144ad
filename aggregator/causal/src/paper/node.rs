//! The variables of one service (or metanode) and how a window fills them.
//!
//! | table   | columns                                                                               |
//! |---------|---------------------------------------------------------------------------------------|
//! | x       | metrics of the service, network metrics of its callers, ln calls per second of each RPC |
//! | y       | per RPC into it and percentile: server side, network (client minus server), client side |
//! | context | per RPC out of it and percentile: client side                                          |

use std::collections::BTreeSet;

use sage_common::{Metric, MetricGroup, ServiceId};
use serde::{Deserialize, Serialize};

use crate::{
    curve::{Curve, Q},
    frame::{EdgeFrame, Frame},
    graph::Graph,
    observation::EdgeKey,
    paper::{LatencyScale, PaperOptions},
    robust::{mad_scale, median},
    usage::{Reading, UsageScale},
};

/// Quantile functions per RPC in y: server, network, client.
const PARTS: usize = 3;

/// Spread of a metric below which it is taken as flat, on its scale.
const SPREAD_FLOOR: f64 = 0.05;

/// Calls per second added before the logarithm.
const RATE_FLOOR: f64 = 0.1;

/// One metric of one service, one view of it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Column {
    /// Whose.
    pub service: ServiceId,
    /// Which.
    pub metric: Metric,
    /// The mean of the upper percentiles; else the median.
    is_upper: bool,
    scale: UsageScale,
    /// Median over the windows that met the target.
    pub normal: f64,
    /// Robust standard deviation over them.
    pub spread: f64,
}

impl Column {
    fn view(&self, reading: &Reading) -> Reading {
        let value = if self.is_upper { reading.upper } else { reading.median };
        Reading { median: value, upper: value, mean: reading.mean }
    }

    fn value(&self, reading: &Reading, scale: LatencyScale) -> f64 {
        let view = self.view(reading);
        match scale {
            LatencyScale::Logs => self.scale.value(&view),
            LatencyScale::Plain if self.metric.spec().is_count => view.mean,
            LatencyScale::Plain => view.median,
        }
    }

    /// A value of this column in the metric's own unit.
    pub fn unit(&self, value: f64, scale: LatencyScale) -> f64 {
        if scale == LatencyScale::Logs { self.scale.unit(value) } else { value }
    }

    /// As observed in `frame`, on its scale.
    pub fn observed(&self, graph: &Graph, frame: &Frame, scale: LatencyScale) -> Option<f64> {
        let reading = frame.services[graph.service(&self.service)?].readings[self.metric.index()]?;
        Some(self.value(&reading, scale))
    }
}

/// What the columns of one net mean.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Node {
    /// Its services: one, or those of a metanode.
    pub services: Vec<ServiceId>,
    /// Metrics.
    pub columns: Vec<Column>,
    /// RPCs into it.
    pub edges: Vec<EdgeKey>,
    /// RPCs out of it, to other nodes.
    pub children: Vec<EdgeKey>,
}

impl Node {
    /// The node of the services numbered `members`; `frames` say which metrics there are, `healthy` what is normal.
    pub fn new(graph: &Graph, members: &[usize], frames: &[Frame], healthy: &[&Frame], options: &PaperOptions) -> Self {
        let ins = |service: &usize| graph.ins(*service).to_vec();
        let edges: Vec<usize> = members.iter().flat_map(ins).collect();
        let outs = members.iter().flat_map(|service| graph.outs(*service).to_vec());
        let children = outs.filter(|edge| !members.contains(&graph.callee(*edge)));
        let callers: BTreeSet<usize> =
            edges.iter().filter_map(|edge| graph.caller(*edge)).filter(|caller| !members.contains(caller)).collect();
        let own = members.iter().map(|service| (*service, false));
        let columns = own.chain(callers.into_iter().map(|caller| (caller, true)));
        let columns = columns.flat_map(|(service, is_caller)| {
            let wanted = move |metric: &Metric| {
                (options.has_effect_metrics || !metric.spec().is_effect)
                    && (!is_caller || metric.group() == MetricGroup::Network)
            };
            Metric::ALL
                .into_iter()
                .filter(wanted)
                .flat_map(move |metric| columns_of(graph, service, metric, frames, healthy, options.scale))
        });
        let key = |edge: usize| graph.edges()[edge].clone();
        Self {
            services: members.iter().map(|service| graph.services()[*service].clone()).collect(),
            columns: columns.collect(),
            children: children.map(key).collect(),
            edges: edges.iter().copied().map(key).collect(),
        }
    }

    /// Columns of x, context and y.
    pub fn shape(&self) -> [usize; 3] {
        [self.columns.len() + self.edges.len(), Q * self.children.len(), PARTS * Q * self.edges.len()]
    }

    /// Whether a net of `other` can go on with the columns of `self`.
    pub fn is_alike(&self, other: &Self) -> bool {
        let name =
            |node: &Self| node.columns.iter().map(|c| (c.service.clone(), c.metric, c.is_upper)).collect::<Vec<_>>();
        self.edges == other.edges && self.children == other.children && name(self) == name(other)
    }

    /// One row of x: as observed in `frame`, columns for which `is_repaired` holds at their normal. Load is kept.
    pub fn x(
        &self,
        graph: &Graph,
        frame: &Frame,
        scale: LatencyScale,
        is_repaired: &dyn Fn(&Column) -> bool,
    ) -> Vec<Option<f32>> {
        let metrics = self.columns.iter().map(|column| {
            let value = if is_repaired(column) { Some(column.normal) } else { column.observed(graph, frame, scale) };
            value.map(|value| value as f32)
        });
        let rate = |key: &EdgeKey| Some((frame.edges[graph.edge(key)?].rate + RATE_FLOOR).ln() as f32);
        metrics.chain(self.edges.iter().map(rate)).collect()
    }

    /// One row of y as observed in `frame`.
    pub fn y(&self, graph: &Graph, frame: &Frame, scale: LatencyScale) -> Vec<Option<f32>> {
        let curves = self.edges.iter().flat_map(|key| {
            let edge = graph.edge(key).map(|edge| &frame.edges[edge]);
            [edge.and_then(|e| e.server), edge.and_then(|e| e.gap), edge.and_then(outer)]
        });
        curves.flat_map(|curve| column_values(curve, scale)).collect()
    }

    /// One row of the context: `client` gives the client side of an RPC by its number.
    pub fn context(
        &self,
        graph: &Graph,
        scale: LatencyScale,
        client: &dyn Fn(usize) -> Option<Curve>,
    ) -> Vec<Option<f32>> {
        let curve = |key: &EdgeKey| graph.edge(key).and_then(client);
        self.children.iter().flat_map(|key| column_values(curve(key), scale)).collect()
    }

    /// Server and client side of every RPC into the node, from one row of y.
    pub fn curves(&self, y: &[f32], scale: LatencyScale) -> Vec<(Option<Curve>, Option<Curve>)> {
        let of_edge = |values: &[f32]| (curve(&values[..Q], scale), curve(&values[2 * Q..], scale));
        y.chunks_exact(PARTS * Q).map(of_edge).collect()
    }
}

/// What the caller of an RPC waits for.
pub fn outer(edge: &EdgeFrame) -> Option<Curve> {
    edge.client.or(edge.server)
}

fn columns_of(
    graph: &Graph,
    service: usize,
    metric: Metric,
    frames: &[Frame],
    healthy: &[&Frame],
    scale: LatencyScale,
) -> Vec<Column> {
    let readings = |frames: &mut dyn Iterator<Item = &Frame>| {
        frames.filter_map(|frame| frame.services[service].readings[metric.index()]).collect::<Vec<Reading>>()
    };
    let normal = readings(&mut healthy.iter().copied());
    if normal.is_empty() || readings(&mut frames.iter()).is_empty() {
        return Vec::new();
    }
    let units = UsageScale::learn(metric, &normal, frames[0].window_s);
    // A count has one view only.
    let views: &[bool] = if metric.spec().is_count { &[false] } else { &[false, true] };
    let column = |is_upper: &bool| {
        let service = graph.services()[service].clone();
        let mut column = Column { service, metric, is_upper: *is_upper, scale: units, normal: 0.0, spread: 0.0 };
        let mut values: Vec<f64> = normal.iter().map(|reading| column.value(reading, scale)).collect();
        column.normal = median(&mut values).unwrap_or(0.0);
        column.spread = mad_scale(&values, column.normal, SPREAD_FLOOR);
        column
    };
    views.iter().map(column).collect()
}

fn column_values(curve: Option<Curve>, scale: LatencyScale) -> impl Iterator<Item = Option<f32>> {
    (0..Q).map(move |q| {
        let log = curve?.logs()[q];
        Some(if scale == LatencyScale::Logs { log } else { log.exp() } as f32)
    })
}

fn curve(values: &[f32], scale: LatencyScale) -> Option<Curve> {
    let log = |q: usize| {
        let value = f64::from(values[q]);
        if scale == LatencyScale::Logs { value.max(0.0) } else { value.max(1.0).ln() }
    };
    Curve::of_logs(std::array::from_fn(log))
}
