//! The PC algorithm: a skeleton by tests of independence, v-structures, Meek's rules.
//!
//! # Source
//!
//! Spirtes, Glymour & Scheines, *Causation, Prediction, and Search*, 2000; the stable order of Colombo & Maathuis, JMLR
//! 2014; Meek, *Causal inference and causal explanation with background knowledge*, UAI 1995 (rules 1 to 3).

use std::collections::BTreeMap;

use super::independence::Correlations;

/// Sets that are conditioned on for one pair and one size at most: the search is exponential in the degree.
const SETS_MAX: usize = 2_000;

/// A completed partially directed acyclic graph over numbered variables.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cpdag {
    /// `marks[a][b]`: an edge between a and b whose end at b may be an arrow head; both ways when it is undirected.
    marks: Vec<Vec<bool>>,
}

impl Cpdag {
    /// Whether a and b are neighbours.
    pub fn is_adjacent(&self, a: usize, b: usize) -> bool {
        self.marks[a][b] || self.marks[b][a]
    }

    /// Whether the edge is known to lead from a to b.
    pub fn is_directed(&self, a: usize, b: usize) -> bool {
        self.marks[a][b] && !self.marks[b][a]
    }

    /// Whoever may cause `node`: its neighbours save those that it is known to cause.
    pub fn causes(&self, node: usize) -> Vec<usize> {
        (0..self.marks.len()).filter(|other| self.marks[*other][node]).collect()
    }

    fn direct(&mut self, from: usize, to: usize) {
        self.marks[to][from] = false;
    }

    fn is_undirected(&self, a: usize, b: usize) -> bool {
        self.marks[a][b] && self.marks[b][a]
    }
}

/// Learns from `correlations`; `critical` is the normal quantile of the test's level, `depth` the largest set conditioned on.
pub fn learn(correlations: &Correlations, critical: f64, depth: usize) -> Cpdag {
    let count = correlations.variables();
    let mut graph = Cpdag { marks: (0..count).map(|a| (0..count).map(|b| a != b).collect()).collect() };
    let separators = thin(&mut graph, correlations, critical, depth);
    collide(&mut graph, &separators);
    // Every round directs an edge or ends; there are no more edges than pairs.
    for _ in 0..count * count {
        if !meek(&mut graph) {
            break;
        }
    }
    graph
}

/// Removes every edge whose ends are independent given some of their neighbours; says given whom.
fn thin(
    graph: &mut Cpdag,
    correlations: &Correlations,
    critical: f64,
    depth: usize,
) -> BTreeMap<(usize, usize), Vec<usize>> {
    let count = correlations.variables();
    let mut separators = BTreeMap::new();
    for size in 0..=depth {
        // The neighbours of the whole round, so that the order of the variables does not matter.
        let neighbours: Vec<Vec<usize>> =
            (0..count).map(|a| (0..count).filter(|b| graph.is_adjacent(a, *b)).collect()).collect();
        for (a, around) in neighbours.iter().enumerate() {
            for b in around.iter().copied() {
                if !graph.is_adjacent(a, b) {
                    continue;
                }
                let others: Vec<usize> = around.iter().copied().filter(|other| *other != b).collect();
                let separates = |set: &Vec<usize>| correlations.is_independent(a, b, set, critical);
                if let Some(set) = combinations(&others, size).into_iter().find(separates) {
                    (graph.marks[a][b], graph.marks[b][a]) = (false, false);
                    separators.insert((a.min(b), a.max(b)), set);
                }
            }
        }
    }
    separators
}

/// a -> c <- b wherever a and b are no neighbours, c is of both, and c did not separate them.
fn collide(graph: &mut Cpdag, separators: &BTreeMap<(usize, usize), Vec<usize>>) {
    let count = graph.marks.len();
    let skeleton = graph.clone();
    for ((a, b), set) in separators {
        for c in (0..count).filter(|c| !set.contains(c)) {
            if skeleton.is_adjacent(*a, c) && skeleton.is_adjacent(*b, c) && !skeleton.is_adjacent(*a, *b) {
                // Of two contradicting collisions the first stays.
                if graph.marks[*a][c] && graph.marks[*b][c] {
                    graph.direct(*a, c);
                    graph.direct(*b, c);
                }
            }
        }
    }
}

/// One pass of Meek's rules; whether anything was directed.
fn meek(graph: &mut Cpdag) -> bool {
    let count = graph.marks.len();
    for a in 0..count {
        for b in 0..count {
            if !graph.is_undirected(a, b) {
                continue;
            }
            let no_new_collision = (0..count).any(|c| graph.is_directed(c, a) && !graph.is_adjacent(c, b) && c != b);
            let no_cycle = (0..count).any(|c| graph.is_directed(a, c) && graph.is_directed(c, b));
            let sides: Vec<usize> =
                (0..count).filter(|c| graph.is_undirected(a, *c) && graph.is_directed(*c, b)).collect();
            let two_sides = sides.iter().any(|c| sides.iter().any(|d| c != d && !graph.is_adjacent(*c, *d)));
            if no_new_collision || no_cycle || two_sides {
                graph.direct(a, b);
                return true;
            }
        }
    }
    false
}

/// Subsets of `items` of `size`, at most [`SETS_MAX`].
fn combinations(items: &[usize], size: usize) -> Vec<Vec<usize>> {
    let mut all = vec![(Vec::new(), 0)];
    for _ in 0..size {
        let longer = all.into_iter().flat_map(|(set, from): (Vec<usize>, usize)| {
            (from..items.len()).map(move |place| {
                let mut longer = set.clone();
                longer.push(items[place]);
                (longer, place + 1)
            })
        });
        all = longer.take(SETS_MAX).collect();
    }
    all.into_iter().map(|(set, _)| set).collect()
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};
    use rand_distr::{Distribution, StandardNormal};

    use super::*;

    /// Columns of a linear model: `parents[i]` are (earlier column, weight).
    fn draw(parents: &[&[(usize, f64)]], rows: usize) -> Vec<Vec<f64>> {
        let mut draw = SmallRng::seed_from_u64(7);
        let mut columns = vec![Vec::with_capacity(rows); parents.len()];
        for row in 0..rows {
            for (column, of) in parents.iter().enumerate() {
                let noise: f64 = StandardNormal.sample(&mut draw);
                let value = noise + of.iter().map(|(other, weight)| weight * columns[*other][row]).sum::<f64>();
                columns[column].push(value);
            }
        }
        columns
    }

    #[test]
    fn a_small_known_graph_is_recovered() {
        // 0 -> 2 <- 1, 2 -> 3: the collision directs everything.
        let columns = draw(&[&[], &[], &[(0, 1.0), (1, 0.9)], &[(2, 0.8)]], 2_000);
        let graph = learn(&Correlations::of(&columns), 2.58, 3);
        for (a, b) in [(0, 2), (1, 2), (2, 3)] {
            assert!(graph.is_directed(a, b), "{a} -> {b}: {graph:?}");
        }
        for (a, b) in [(0, 1), (0, 3), (1, 3)] {
            assert!(!graph.is_adjacent(a, b), "{a} - {b}: {graph:?}");
        }
        assert_eq!(graph.causes(2), [0, 1]);
    }

    #[test]
    fn a_chain_keeps_its_neighbours_and_no_direction() {
        let columns = draw(&[&[], &[(0, 1.0)], &[(1, 1.0)]], 2_000);
        let graph = learn(&Correlations::of(&columns), 2.58, 2);
        assert!(graph.is_undirected(0, 1) && graph.is_undirected(1, 2) && !graph.is_adjacent(0, 2), "{graph:?}");
        assert_eq!(graph.causes(1), [0, 2]);
    }

    #[test]
    fn combinations_are_all_of_one_size() {
        assert_eq!(combinations(&[4, 5, 6], 2), [[4, 5], [4, 6], [5, 6]]);
        assert_eq!(combinations(&[4], 2), Vec::<Vec<usize>>::new());
        assert_eq!(combinations(&[4, 5], 0), [Vec::<usize>::new()]);
    }
}
