//! The net of one service, with its scalers: what the rest of the crate sees.

use dfdx::tensor::{Cpu, TensorFromVec};
use rand::{SeedableRng, rngs::SmallRng};

use super::{
    CvaeOptions, GvaeError, Table,
    cvae::{Cvae, Sizes},
    scaler::Scaler,
    train,
};

/// A trained CVAE + GSNN of one service.
#[derive(Clone, Debug)]
pub struct ServiceNet {
    pub(super) sizes: Sizes,
    pub(super) x: Scaler,
    pub(super) y: Scaler,
    pub(super) net: Cvae,
}

impl ServiceNet {
    /// Trains on `x` `(N, M)` and `y` `(N, D)`, row by row of the same window, visiting the rows named by `order` once an
    /// epoch (name a row twice to oversample it). With `previous` of the same shape the weights start from there
    /// (incremental retraining) and its scalers are kept, so that old weights keep their meaning.
    ///
    /// # Errors
    ///
    /// [`GvaeError::TooFewRows`], [`GvaeError::Shape`] for tables that do not match, [`GvaeError::NonFinite`] when
    /// training diverges: the caller keeps what it had.
    pub fn train(
        x: &Table,
        y: &Table,
        order: &[usize],
        previous: Option<&Self>,
        options: &CvaeOptions,
    ) -> Result<Self, GvaeError> {
        if x.rows() != y.rows() {
            return Err(GvaeError::Shape { what: "rows of x against rows of y", left: x.rows(), right: y.rows() });
        }
        if order.len() < train::ROWS_MIN {
            return Err(GvaeError::TooFewRows { rows: order.len(), want: train::ROWS_MIN });
        }
        if let Some(row) = order.iter().find(|row| **row >= x.rows()) {
            return Err(GvaeError::Shape { what: "row in the order against rows", left: *row, right: x.rows() });
        }
        let sizes = train::sizes(x, y, options);
        let mut this = match previous.filter(|previous| previous.sizes == sizes) {
            Some(previous) => previous.clone(),
            None => {
                let mut draw = SmallRng::seed_from_u64(options.seed);
                Self { sizes, x: Scaler::fit(x), y: Scaler::fit(y), net: Cvae::new(sizes, options, &mut draw)? }
            }
        };
        train::fit(&mut this.net, (x, &this.x), (y, &this.y), order, options)?;
        Ok(this)
    }

    /// What `y` is expected to be at `x` (absent values NaN): the decoder at the prior's mean, on the scale of `y`.
    ///
    /// # Errors
    ///
    /// [`GvaeError::Shape`] when `x` has another number of columns than the net was trained on.
    pub fn predict(&self, x: &[f32]) -> Result<Vec<f32>, GvaeError> {
        let mut table = Table::new(x.len());
        table.push(x.iter().copied().map(Some))?;
        Ok(self.predict_all(&table)?.swap_remove(0))
    }

    /// [`predict`](Self::predict) for every row of `x`, in one batch.
    ///
    /// # Errors
    ///
    /// As [`predict`](Self::predict).
    pub fn predict_all(&self, x: &Table) -> Result<Vec<Vec<f32>>, GvaeError> {
        if x.cols() != self.sizes.x {
            return Err(GvaeError::Shape { what: "columns of x against the net", left: x.cols(), right: self.sizes.x });
        }
        let rows = x.rows();
        let standard = (0..rows).flat_map(|row| self.x.standardise(x.row(row))).collect::<Vec<_>>();
        let x = Cpu::default().try_tensor_from_vec(standard, (rows, self.sizes.x))?;
        let y = self.net.predict(&x, self.sizes.latent)?.as_vec();
        Ok(y.chunks_exact(self.sizes.y).map(|row| self.y.restore(row)).collect())
    }

    /// Columns of `x`.
    pub fn inputs(&self) -> usize {
        self.sizes.x
    }

    /// Columns of `y`.
    pub fn outputs(&self) -> usize {
        self.sizes.y
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    /// y0 = 2 x0 + noise, y1 = |x1|: one linear, one not; x2 is noise.
    fn world(rows: usize, seed: u64) -> (Table, Table) {
        let mut draw = SmallRng::seed_from_u64(seed);
        let (mut x, mut y) = (Table::new(3), Table::new(2));
        for _ in 0..rows {
            let row: [f32; 3] = std::array::from_fn(|_| draw.random_range(-1.0..1.0));
            let noise = 0.05 * draw.random_range(-1.0..1.0_f32);
            x.push(row.map(Some)).expect("3 columns");
            y.push([Some(2.0 * row[0] + noise), Some(row[1].abs())]).expect("2 columns");
        }
        (x, y)
    }

    fn mean_error(net: &ServiceNet, x: &Table, y: &Table) -> f32 {
        let predicted = net.predict_all(x).expect("same columns");
        let errors = (0..x.rows())
            .flat_map(|row| predicted[row].iter().zip(y.row(row)).map(|(a, b)| (a - b).abs()).collect::<Vec<_>>());
        errors.sum::<f32>() / (2 * x.rows()) as f32
    }

    #[test]
    fn a_net_learns_what_is_linear_and_what_is_not() {
        let (x, y) = world(800, 1);
        let options = CvaeOptions { epochs: 60, ..CvaeOptions::default() };
        let net = ServiceNet::train(&x, &y, &(0..800).collect::<Vec<_>>(), None, &options).expect("trains");
        let (x, y) = world(200, 2);
        let error = mean_error(&net, &x, &y);
        assert!(error < 0.12, "mean absolute error {error} on unseen rows"); // knowing nothing costs about 0.6
    }

    #[test]
    fn the_same_seed_gives_the_same_net() {
        let (x, y) = world(64, 3);
        let order: Vec<usize> = (0..64).collect();
        let options = CvaeOptions { epochs: 3, ..CvaeOptions::default() };
        let predict = || ServiceNet::train(&x, &y, &order, None, &options).expect("trains").predict(&[0.1, 0.2, 0.3]);
        assert_eq!(predict().expect("3 columns"), predict().expect("3 columns"));
    }

    #[test]
    fn training_goes_on_from_earlier_weights() {
        let (x, y) = world(400, 4);
        let order: Vec<usize> = (0..400).collect();
        let long = CvaeOptions { epochs: 60, ..CvaeOptions::default() };
        let short = CvaeOptions { epochs: 2, rate_max: 3e-4, ..long };
        let trained = ServiceNet::train(&x, &y, &order, None, &long).expect("trains");
        let resumed = ServiceNet::train(&x, &y, &order, Some(&trained), &short).expect("trains");
        let fresh = ServiceNet::train(&x, &y, &order, None, &short).expect("trains");
        assert!(mean_error(&resumed, &x, &y) < 0.5 * mean_error(&fresh, &x, &y));
    }

    #[test]
    fn absent_values_are_tolerated_everywhere() {
        let (x, mut y) = world(64, 5);
        y.push([None, None]).expect("2 columns");
        let mut with_holes = x.clone();
        with_holes.push([None, Some(0.0), Some(f32::INFINITY)]).expect("3 columns");
        let order: Vec<usize> = (0..65).collect();
        let options = CvaeOptions { epochs: 2, ..CvaeOptions::default() };
        let net = ServiceNet::train(&with_holes, &y, &order, None, &options).expect("trains");
        assert!(net.predict(&[f32::NAN; 3]).expect("3 columns").iter().all(|value| value.is_finite()));
        assert!(net.predict(&[0.0; 2]).is_err());
    }

    #[test]
    fn too_few_rows_are_refused() {
        let (x, y) = world(8, 6);
        let refused = ServiceNet::train(&x, &y, &[0, 1, 2], None, &CvaeOptions::default());
        assert!(matches!(refused, Err(GvaeError::TooFewRows { rows: 3, .. })));
    }
}
