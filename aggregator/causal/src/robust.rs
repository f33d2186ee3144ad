//! Robust statistics: median, MAD scale, and Huber-weighted least squares with a ridge on the slopes.
//!
//! Training windows hold unlabelled episodes, so nothing here lets a few wild windows move a normal.

#![allow(clippy::needless_range_loop, reason = "small matrices are written by index, as in the formulas")]

use serde::{Deserialize, Serialize};

/// Regressors a fit may have: load, and the sine and cosine of the time of day.
pub const REGRESSORS: usize = 3;

/// One row of regressors; the unused ones are zero.
pub type Row = [f64; REGRESSORS];

/// Residuals beyond this many scales lose weight (95 % efficiency under normal noise).
const HUBER: f64 = 1.345;

/// Rounds of reweighting: the fit moves by less than its scale after the fourth.
const ROUNDS: usize = 5;

/// Ridge on every slope, per row: slopes that the load swing cannot support shrink to zero.
const RIDGE: f64 = 1e-3;

/// Turns a median absolute deviation into a standard deviation under normal noise.
const MAD_TO_SIGMA: f64 = 1.4826;

/// Median of `values`, which it reorders; `None` when there are none. Of an even number, the upper middle one.
pub fn median(values: &mut [f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value at `share` (0 to 1) of `values`, which it reorders; `None` when there are none.
pub fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let index = ((values.len() as f64 * share) as usize).min(last);
    Some(*values.select_nth_unstable_by(index, f64::total_cmp).1)
}

/// 1.4826 times the median absolute deviation of `values` from `centre`, at least `floor`.
pub fn mad_scale(values: &[f64], centre: f64, floor: f64) -> f64 {
    let mut deviations: Vec<f64> = values.iter().map(|value| (value - centre).abs()).collect();
    median(&mut deviations).map_or(floor, |mad| (MAD_TO_SIGMA * mad).max(floor))
}

/// Standard normal distribution function, by the error function of Abramowitz and Stegun 7.1.26 (error below 2e-7).
pub fn normal_cdf(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let tail = 0.5 * poly * (-x * x).exp();
    if z >= 0.0 { 1.0 - tail } else { tail }
}

/// `y = intercept + slopes · (x - centre)`, with the scale of what it leaves over.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Regression {
    intercept: f64,
    slopes: Row,
    centre: Row,
    low: Row,
    high: Row,
    /// Robust standard deviation of the residuals.
    pub scale: f64,
}

impl Regression {
    /// Fits the first `active` regressors of `rows` to `y` by iteratively reweighted least squares.
    ///
    /// `None` without rows, with rows and values of different number, or when anything is not finite.
    ///
    /// # Source
    ///
    /// Huber, *Robust Estimation of a Location Parameter*, 1964; scale from the MAD, at least `scale_floor`.
    pub fn fit(rows: &[Row], y: &[f64], active: usize, scale_floor: f64) -> Option<Self> {
        let is_finite = y.iter().all(|v| v.is_finite()) && rows.iter().flatten().all(|v| v.is_finite());
        if rows.is_empty() || rows.len() != y.len() || !is_finite {
            return None;
        }
        let mut fit = Self::level(rows, median(&mut y.to_vec())?);
        let mut weights = vec![1.0; y.len()];
        for _ in 0..ROUNDS {
            fit.weigh(rows, y, scale_floor, &mut weights);
            fit.solve(rows, y, &weights, active);
        }
        fit.weigh(rows, y, scale_floor, &mut weights);
        Some(fit)
    }

    /// The fitted value at `row`, with every regressor clipped to the range seen.
    pub fn at(&self, row: &Row) -> f64 {
        let mut value = self.intercept;
        for k in 0..REGRESSORS {
            value += self.slopes[k] * (row[k].clamp(self.low[k], self.high[k]) - self.centre[k]);
        }
        value
    }

    /// The middle of the regressors seen.
    pub fn centre(&self) -> Row {
        self.centre
    }

    /// A fit without slopes whose clip range is that of `rows`.
    fn level(rows: &[Row], intercept: f64) -> Self {
        let (mut low, mut high) = (rows[0], rows[0]);
        for row in rows {
            for k in 0..REGRESSORS {
                low[k] = low[k].min(row[k]);
                high[k] = high[k].max(row[k]);
            }
        }
        Self { intercept, slopes: [0.0; REGRESSORS], centre: rows[0], low, high, scale: 0.0 }
    }

    /// Sets the scale and the weights from the residuals; the first ones are those from the median, which no wild value
    /// moves.
    fn weigh(&mut self, rows: &[Row], y: &[f64], scale_floor: f64, weights: &mut [f64]) {
        let residuals: Vec<f64> = rows.iter().zip(y).map(|(row, y)| y - self.at(row)).collect();
        self.scale = mad_scale(&residuals, 0.0, scale_floor);
        for (weight, residual) in weights.iter_mut().zip(&residuals) {
            *weight = (HUBER * self.scale / residual.abs().max(f64::MIN_POSITIVE)).min(1.0);
        }
    }

    /// One weighted ridge regression on centred data.
    fn solve(&mut self, rows: &[Row], y: &[f64], weights: &[f64], active: usize) {
        let total: f64 = weights.iter().sum();
        let mean = |value: &dyn Fn(usize) -> f64| (0..y.len()).map(|i| weights[i] * value(i)).sum::<f64>() / total;
        self.intercept = mean(&|i| y[i]);
        for k in 0..active {
            self.centre[k] = mean(&|i| rows[i][k]);
        }
        let mut system = [[0.0; REGRESSORS + 1]; REGRESSORS];
        for (i, row) in rows.iter().enumerate() {
            for a in 0..active {
                let xa = weights[i] * (row[a] - self.centre[a]);
                for b in 0..active {
                    system[a][b] += xa * (row[b] - self.centre[b]);
                }
                system[a][REGRESSORS] += xa * (y[i] - self.intercept);
            }
        }
        for (k, row) in system.iter_mut().enumerate() {
            row[k] += RIDGE * total;
        }
        self.slopes = eliminate(system);
    }
}

/// Solves a small positive definite system, given with its right-hand side as last column.
fn eliminate(mut m: [[f64; REGRESSORS + 1]; REGRESSORS]) -> Row {
    for k in 0..REGRESSORS {
        for below in k + 1..REGRESSORS {
            let factor = m[below][k] / m[k][k];
            for column in k..=REGRESSORS {
                m[below][column] -= factor * m[k][column];
            }
        }
    }
    let mut x = [0.0; REGRESSORS];
    for k in (0..REGRESSORS).rev() {
        let known: f64 = (k + 1..REGRESSORS).map(|j| m[k][j] * x[j]).sum();
        x[k] = (m[k][REGRESSORS] - known) / m[k][k];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: impl IntoIterator<Item = f64>) -> Vec<Row> {
        values.into_iter().map(|x| [x, 0.0, 0.0]).collect()
    }

    #[test]
    fn median_and_mad_of_a_case_solved_by_hand() {
        assert_eq!(median(&mut [5.0, 1.0, 9.0]), Some(5.0));
        assert_eq!(median(&mut []), None);
        // Deviations from 3: 2 1 0 1 97, their median 1.
        assert_eq!(mad_scale(&[1.0, 2.0, 3.0, 4.0, 100.0], 3.0, 0.1), 1.4826);
        assert_eq!(mad_scale(&[3.0, 3.0, 3.0], 3.0, 0.1), 0.1);
    }

    #[test]
    fn a_line_is_found_through_one_wild_tenth() {
        let x: Vec<f64> = (0..100).map(|i| f64::from(i) / 10.0).collect();
        let y: Vec<f64> = x.iter().enumerate().map(|(i, x)| if i % 10 == 3 { 500.0 } else { 2.0 + 0.5 * x }).collect();
        let fit = Regression::fit(&rows(x), &y, 1, 0.02).expect("finite");
        assert!((fit.at(&[4.0, 0.0, 0.0]) - 4.0).abs() < 0.05, "{fit:?}");
        assert_eq!(fit.scale, 0.02);
    }

    #[test]
    fn regressors_beyond_the_range_seen_are_clipped() {
        let fit = Regression::fit(&rows([0.0, 1.0, 2.0, 3.0]), &[0.0, 1.0, 2.0, 3.0], 1, 0.02).expect("finite");
        assert_eq!(fit.at(&[50.0, 0.0, 0.0]), fit.at(&[3.0, 0.0, 0.0]));
    }

    #[test]
    fn two_regressors_are_told_apart() {
        let data: Vec<Row> = (0..60).map(|i| [f64::from(i % 7), f64::from(i % 11), 0.0]).collect();
        let y: Vec<f64> = data.iter().map(|r| 1.0 + 2.0 * r[0] - 3.0 * r[1]).collect();
        let fit = Regression::fit(&data, &y, 2, 0.02).expect("finite");
        assert!((fit.at(&[2.0, 5.0, 0.0]) + 10.0).abs() < 0.05, "{fit:?}");
    }

    #[test]
    fn a_fit_without_active_regressors_is_a_level() {
        let fit = Regression::fit(&rows([1.0, 2.0, 3.0]), &[7.0, 7.0, 7.0], 0, 0.02).expect("finite");
        assert_eq!(fit.at(&[9.0, 0.0, 0.0]), 7.0);
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        assert_eq!(Regression::fit(&rows([1.0, 2.0]), &[1.0, f64::NAN], 1, 0.02), None);
        assert_eq!(Regression::fit(&rows([f64::INFINITY]), &[1.0], 1, 0.02), None);
        assert_eq!(Regression::fit(&[], &[], 1, 0.02), None);
    }

    #[test]
    fn normal_distribution_function_meets_its_table() {
        for (z, p) in [(0.0, 0.5), (1.0, 0.841_344_7), (-1.96, 0.024_997_9), (3.0, 0.998_650_1)] {
            assert!((normal_cdf(z) - p).abs() < 1e-6, "{z}");
        }
    }
}
