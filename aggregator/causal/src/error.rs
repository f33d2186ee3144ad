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
    mean_error_where(normals, graph, frames, services, &|_, _| true)
}

/// [`mean_error`] over the pairs of service and frame for which `is_counted` holds.
pub fn mean_error_where(
    normals: &Normals,
    graph: &Graph,
    frames: &[&Frame],
    services: &[usize],
    is_counted: &dyn Fn(usize, &Frame) -> bool,
) -> Option<f64> {
    let (mut total, mut count) = (0.0, 0_usize);
    let mut add = |observed: Option<Curve>, expected: Option<Expected>| {
        if let (Some(observed), Some(expected)) = (observed, expected) {
            let pairs = observed.logs().iter().zip(expected.curve.logs());
            total += pairs.map(|(observed, expected)| (observed - expected).abs()).sum::<f64>();
            count += observed.logs().len();
        }
    };
    for frame in frames {
        let counted = services.iter().filter(|service| is_counted(**service, frame));
        for (edge, expected) in counted.flat_map(|service| normals.expected_into(graph, *service, frame)) {
            add(frame.edges[edge].self_time, expected.self_time);
            add(frame.edges[edge].gap, expected.gap);
        }
    }
    (count > 0).then(|| total / count as f64)
}
