//! The local Markov property (figure 4): latencies of RPCs two hops apart depend on each other, and no longer once the hop
//! between is known. That is what lets the graph of calls stand for the graph of causes.

use std::collections::BTreeMap;

use anyhow::Result;
use sage_causal::observation::{Observation, Trace};
use sage_common::ServiceId;

use crate::eval::{
    measure::Tally,
    results::Row,
    run::{Plan, table},
    sources::Conditions,
};

/// Triples of spans below which nothing is said about a path.
const TRIPLES_MIN: usize = 200;

/// Triples per path at most: the estimate no longer moves.
const TRIPLES_MAX: usize = 20_000;

/// Cells of each variable of a histogram, of equal counts.
const BINS: usize = 8;

const COLUMNS: [(&str, &str); 3] = [("all", "mi"), ("all", "cmi"), ("all", "blocked")];

type Path = (ServiceId, ServiceId, ServiceId);

/// Rows of `markov`, averaged over the paths of an application.
pub fn run(plan: &Plan) -> Result<Vec<Row>> {
    let mut all = Tally::default();
    for app in &plan.apps {
        let source = plan.source(app, &Conditions::default())?;
        for triples in triples(&source.history(plan.windows).windows).values() {
            if triples.len() < TRIPLES_MIN {
                continue;
            }
            let (mi, cmi) = information(triples);
            all.add(app, "telemetry", "all", "mi", mi);
            all.add(app, "telemetry", "all", "cmi", cmi);
            all.add(app, "telemetry", "all", "blocked", 1.0 - cmi / mi.max(f64::MIN_POSITIVE));
        }
    }
    let rows = all.rows("markov", plan.seed);
    println!("{}", table(&rows, &COLUMNS));
    Ok(rows)
}

/// Server-side latencies along every path of three services, from the sampled traces.
fn triples(windows: &[Observation]) -> BTreeMap<Path, Vec<[f64; 3]>> {
    let mut triples = BTreeMap::<Path, Vec<[f64; 3]>>::new();
    for trace in windows.iter().flat_map(|window| &window.traces) {
        for (path, latencies) in of_trace(trace) {
            let of_path = triples.entry(path).or_default();
            if of_path.len() < TRIPLES_MAX {
                of_path.push(latencies);
            }
        }
    }
    triples
}

fn of_trace(trace: &Trace) -> impl Iterator<Item = (Path, [f64; 3])> + '_ {
    trace.calls.iter().filter_map(|last| {
        let middle = trace.calls.get(last.parent? as usize)?;
        let first = trace.calls.get(middle.parent? as usize)?;
        let path = [first, middle, last].map(|call| call.edge.callee.clone());
        let [a, b, c] = path;
        let latencies = [first.server_us?, middle.server_us?, last.server_us?];
        Some(((a, b, c), latencies.map(f64::from)))
    })
}

/// Mutual information of the first and last latency, and the same given the middle one, in nats, from histograms of equal
/// counts; less what as many independent values would show (Miller & Madow).
fn information(triples: &[[f64; 3]]) -> (f64, f64) {
    let binned: Vec<Vec<usize>> = (0..3).map(|which| bins(triples.iter().map(|triple| triple[which]))).collect();
    let [a, b, c] = [&binned[0], &binned[1], &binned[2]];
    let count = triples.len() as f64;
    let entropy = |columns: &[&Vec<usize>]| {
        let mut cells = BTreeMap::<usize, f64>::new();
        for row in 0..triples.len() {
            let cell = columns.iter().fold(0, |cell, column| cell * BINS + column[row]);
            *cells.entry(cell).or_default() += 1.0;
        }
        let plain: f64 = cells.values().map(|hits| -hits / count * (hits / count).ln()).sum();
        plain + (cells.len() as f64 - 1.0) / (2.0 * count)
    };
    let mutual = entropy(&[a]) + entropy(&[c]) - entropy(&[a, c]);
    let conditional = entropy(&[a, b]) + entropy(&[b, c]) - entropy(&[b]) - entropy(&[a, b, c]);
    (mutual.max(0.0), conditional.max(0.0))
}

/// The cell of each value, such that all cells hold as many.
fn bins(values: impl Iterator<Item = f64>) -> Vec<usize> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut bins = vec![0; values.len()];
    for (rank, place) in order.into_iter().enumerate() {
        bins[place] = rank * BINS / values.len();
    }
    bins
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn information_along_a_chain_is_blocked_by_its_middle() {
        let mut draw = SmallRng::seed_from_u64(1);
        let mut noise = || draw.random_range(0.0..1.0);
        let chain: Vec<[f64; 3]> = (0..20_000)
            .map(|_| {
                let last = noise() * 10.0;
                let middle = last + noise();
                [middle + noise(), middle, last]
            })
            .collect();
        let (mi, cmi) = information(&chain);
        assert!(mi > 1.0 && cmi < 0.35 * mi, "{mi} {cmi}");
        let apart: Vec<[f64; 3]> = (0..20_000).map(|_| [noise(), noise(), noise()]).collect();
        let (mi, cmi) = information(&apart);
        assert!(mi < 0.005 && cmi < 0.02, "{mi} {cmi}");
    }
}
