//! How far normals are from what was observed.

use crate::{
    curve::Curve,
    frame::Frame,
    graph::Graph,
    normals::{Expected, Normals},
};

/// Mean over `frames`, the edges into `services` and all percentiles of |observed - expected| of self times and gaps, in
/// logs; `None` when nothing can be compared.
pub fn mean_error(normals: &Normals, graph: &Graph, frames: &[&Frame], services: &[usize]) -> Option<f64> {
    let (mut total, mut count) = (0.0, 0_usize);
    let mut add = |observed: Option<Curve>, expected: Option<Expected>| {
        if let (Some(observed), Some(expected)) = (observed, expected) {
            let pairs = observed.logs().iter().zip(expected.curve.logs());
            total += pairs.map(|(observed, expected)| (observed - expected).abs()).sum::<f64>();
            count += observed.logs().len();
        }
    };
    for frame in frames {
        let expected = normals.expected(graph, frame);
        for edge in services.iter().flat_map(|service| graph.ins(*service)) {
            add(frame.edges[*edge].self_time, expected[*edge].self_time);
            add(frame.edges[*edge].gap, expected[*edge].gap);
        }
    }
    (count > 0).then(|| total / count as f64)
}
