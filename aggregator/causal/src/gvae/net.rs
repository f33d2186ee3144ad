//! The net of one service, with its scalers: what the rest of the crate sees.

use dfdx::tensor::{Cpu, TensorFromVec};
use rand::{SeedableRng, rngs::SmallRng};

use super::{
    CvaeOptions, GvaeError, Matrix, Table,
    cvae::{Cvae, Sizes},
    dense::ShapeOf,
    loss,
    scaler::Scaler,
    train::{self, Samples},
};

/// A Gaussian over z.
#[derive(Clone, Debug, PartialEq)]
pub struct Latent {
    /// Mean of each dimension.
    pub mean: Vec<f32>,
    /// Standard deviation of each dimension.
    pub sd: Vec<f32>,
}

/// A trained CVAE + GSNN of one service.
#[derive(Clone, Debug)]
pub struct ServiceNet {
    pub(super) sizes: Sizes,
    pub(super) x: Scaler,
    /// Of what the decoder alone sees; without columns for nets that see nothing alone.
    pub(super) context: Scaler,
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
    /// `GvaeError::TooFewRows`, `GvaeError::Shape` for tables that do not match, `GvaeError::NonFinite` when
    /// training diverges: the caller keeps what it had.
    pub fn train(
        x: &Table,
        y: &Table,
        order: &[usize],
        previous: Option<&Self>,
        options: &CvaeOptions,
    ) -> Result<Self, GvaeError> {
        Self::train_in_context(x, None, y, order, previous, options)
    }

    /// [`train`](Self::train) with columns `context` `(N, C)` that only the decoder sees: the outputs of the decoders
    /// that stand before it in the causal graph.
    ///
    /// # Errors
    ///
    /// As [`train`](Self::train).
    pub fn train_in_context(
        x: &Table,
        context: Option<&Table>,
        y: &Table,
        order: &[usize],
        previous: Option<&Self>,
        options: &CvaeOptions,
    ) -> Result<Self, GvaeError> {
        let context = context.filter(|context| context.cols() > 0);
        for other in [Some(y), context].into_iter().flatten() {
            if x.rows() != other.rows() {
                return Err(GvaeError::Shape { what: "rows of two tables", left: x.rows(), right: other.rows() });
            }
        }
        if order.len() < train::ROWS_MIN {
            return Err(GvaeError::TooFewRows { rows: order.len(), want: train::ROWS_MIN });
        }
        if let Some(row) = order.iter().find(|row| **row >= x.rows()) {
            return Err(GvaeError::Shape { what: "row in the order against rows", left: *row, right: x.rows() });
        }
        let sizes = train::sizes(x, context, y, options);
        let mut this = match previous.filter(|previous| previous.sizes == sizes) {
            Some(previous) => previous.clone(),
            None => {
                let mut draw = SmallRng::seed_from_u64(options.seed);
                let net = Cvae::new(&sizes, options, &mut draw)?;
                let context = context.map_or(Scaler::NONE, Scaler::fit);
                Self { sizes, x: Scaler::fit(x), context, y: Scaler::fit(y), net }
            }
        };
        let Self { x: x_scaler, context: context_scaler, y: y_scaler, net, .. } = &mut this;
        let context = context.map(|context| (context, &*context_scaler));
        let samples = Samples { x: (x, &*x_scaler), context, y: (y, &*y_scaler) };
        train::fit(net, &samples, order, options)?;
        Ok(this)
    }

    /// What `y` is expected to be at `x` (absent values NaN): the decoder at the prior's mean, on the scale of `y`.
    ///
    /// # Errors
    ///
    /// `GvaeError::Shape` when `x` has another number of columns than the net was trained on.
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
        let prior = self.prior(x)?;
        self.decode(x, None, &prior.into_iter().map(|prior| prior.mean).collect::<Vec<_>>())
    }

    /// What z is expected to be at each row of `x` alone.
    ///
    /// # Errors
    ///
    /// As [`predict`](Self::predict).
    pub fn prior(&self, x: &Table) -> Result<Vec<Latent>, GvaeError> {
        let moments = self.net.prior(&self.standard(x, &self.x)?)?;
        Ok(self.latents(&moments))
    }

    /// What z must have been at each row of `x` for `y` to come out.
    ///
    /// # Errors
    ///
    /// As [`predict`](Self::predict).
    pub fn posterior(&self, x: &Table, y: &Table) -> Result<Vec<Latent>, GvaeError> {
        let moments = self.net.posterior(&self.standard(x, &self.x)?, &self.standard(y, &self.y)?)?;
        Ok(self.latents(&moments))
    }

    /// `y` at each row of `x` and z, on the scale of `y`; with the columns that only the decoder sees where it has some.
    ///
    /// # Errors
    ///
    /// `GvaeError::Shape` for tables of another shape than the net was trained on.
    pub fn decode(&self, x: &Table, context: Option<&Table>, z: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, GvaeError> {
        let context = context.filter(|context| context.cols() > 0);
        let (left, right) = (context.map_or(0, Table::cols), self.sizes.context);
        if left != right {
            return Err(GvaeError::Shape { what: "columns that the decoder sees against the net", left, right });
        }
        let context = context.map(|context| self.standard(context, &self.context)).transpose()?;
        let x = self.standard(x, &self.x)?;
        let (rows, latent) = (x.shape_of().0, self.sizes.latent);
        let z: Vec<f32> = z.iter().flatten().copied().collect();
        if z.len() != rows * latent {
            return Err(GvaeError::Shape { what: "latent values against rows", left: z.len(), right: rows * latent });
        }
        let z = Cpu::default().try_tensor_from_vec(z, (rows, latent))?;
        let y = self.net.decode(&x, context.as_ref(), &z)?.values();
        Ok(y.chunks_exact(self.sizes.y).map(|row| self.y.restore(row)).collect())
    }

    fn standard(&self, table: &Table, scaler: &Scaler) -> Result<Matrix, GvaeError> {
        let (left, right) = (table.cols(), scaler.location.len());
        if left != right {
            return Err(GvaeError::Shape { what: "columns against the net", left, right });
        }
        train::standard((table, scaler), &(0..table.rows()).collect::<Vec<_>>())
    }

    fn latents(&self, moments: &Matrix) -> Vec<Latent> {
        let latent = |row: &[f32]| {
            let (mean, ln_var) = row.split_at(self.sizes.latent);
            Latent { mean: mean.to_vec(), sd: ln_var.iter().map(|v| loss::standard_deviation(*v)).collect() }
        };
        moments.values().chunks_exact(2 * self.sizes.latent).map(latent).collect()
    }

    /// Columns of `x`.
    pub fn inputs(&self) -> usize {
        self.sizes.x
    }

    /// Columns that the decoder alone sees.
    pub fn contexts(&self) -> usize {
        self.sizes.context
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
