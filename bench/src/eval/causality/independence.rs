//! Tests of conditional independence: Fisher's z of a partial correlation.

/// Correlation matrix of a few series.
#[derive(Clone, Debug)]
pub struct Correlations {
    matrix: Vec<Vec<f64>>,
    rows: usize,
}

/// A pivot below this makes a matrix singular: two of its series are one.
const PIVOT_MIN: f64 = 1e-9;

impl Correlations {
    /// Of `series`, each a value per window and all of one length.
    pub fn of(series: &[Vec<f64>]) -> Self {
        let matrix = series.iter().map(|a| series.iter().map(|b| pearson(a, b)).collect()).collect();
        Self { matrix, rows: series.first().map_or(0, Vec::len) }
    }

    /// How many series there are.
    pub fn variables(&self) -> usize {
        self.matrix.len()
    }

    /// Correlation of `a` and `b` given `others`: `-P_ab / sqrt(P_aa P_bb)` with P the inverse of their correlation matrix.
    /// `None` when that is singular.
    pub fn partial(&self, a: usize, b: usize, others: &[usize]) -> Option<f64> {
        if others.is_empty() {
            return Some(self.matrix[a][b]);
        }
        let all: Vec<usize> = [a, b].into_iter().chain(others.iter().copied()).collect();
        let block = all.iter().map(|i| all.iter().map(|j| self.matrix[*i][*j]).collect()).collect();
        let inverse = inverse(block)?;
        Some((-inverse[0][1] / (inverse[0][0] * inverse[1][1]).sqrt()).clamp(-1.0, 1.0))
    }

    /// Whether `a` and `b` may be independent given `others`: `sqrt(n - |S| - 3) |atanh r| < critical`.
    ///
    /// # Source
    ///
    /// Kalisch & Bühlmann, *Estimating High-Dimensional Directed Acyclic Graphs with the PC-Algorithm*, JMLR 2007.
    pub fn is_independent(&self, a: usize, b: usize, others: &[usize], critical: f64) -> bool {
        let Some(r) = self.partial(a, b, others) else { return true };
        let freedom = self.rows as f64 - others.len() as f64 - 3.0;
        freedom <= 0.0 || freedom.sqrt() * r.clamp(-0.999_999, 0.999_999).atanh().abs() < critical
    }
}

/// Pearson's correlation; 0 where one of the two never moves.
pub fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let count = a.len().min(b.len()) as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / count;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        ab += (x - mean_a) * (y - mean_b);
        aa += (x - mean_a).powi(2);
        bb += (y - mean_b).powi(2);
    }
    let scale = (aa * bb).sqrt();
    if scale > 0.0 { ab / scale } else { 0.0 }
}

/// Inverse by Gauss-Jordan with row pivots; `None` for a singular matrix.
fn inverse(mut matrix: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    let size = matrix.len();
    for (i, row) in matrix.iter_mut().enumerate() {
        row.extend((0..size).map(|j| f64::from(u8::from(i == j))));
    }
    for column in 0..size {
        let pivot = (column..size).max_by(|i, j| matrix[*i][column].abs().total_cmp(&matrix[*j][column].abs()))?;
        matrix.swap(column, pivot);
        let head = matrix[column][column];
        if head.abs() < PIVOT_MIN {
            return None;
        }
        matrix[column].iter_mut().for_each(|value| *value /= head);
        let pivot_row = matrix[column].clone();
        for (i, row) in matrix.iter_mut().enumerate() {
            let factor = row[column];
            if i != column && factor != 0.0 {
                row.iter_mut().zip(&pivot_row).for_each(|(value, above)| *value -= factor * above);
            }
        }
    }
    Some(matrix.into_iter().map(|row| row[size..].to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_correlation_agrees_with_the_formula_for_three() {
        let correlations =
            Correlations { matrix: vec![vec![1.0, 0.8, 0.6], vec![0.8, 1.0, 0.5], vec![0.6, 0.5, 1.0]], rows: 50 };
        // (0.8 - 0.6 * 0.5) / sqrt((1 - 0.36)(1 - 0.25)) = 0.5 / sqrt(0.48) = 0.72169.
        let partial = correlations.partial(0, 1, &[2]).expect("regular");
        assert!((partial - 0.721_688).abs() < 1e-6, "{partial}");
        assert_eq!(correlations.partial(0, 1, &[]), Some(0.8));
    }

    #[test]
    fn one_series_twice_is_singular_and_taken_for_independent() {
        let a: Vec<f64> = (0..30).map(f64::from).collect();
        let correlations = Correlations::of(&[a.clone(), a.clone(), a]);
        assert_eq!(correlations.partial(0, 1, &[2]), None);
        assert!(correlations.is_independent(0, 1, &[2], 1.96));
        assert!(!correlations.is_independent(0, 1, &[], 1.96));
    }
}
