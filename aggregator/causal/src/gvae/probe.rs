//! How long training takes against the matrix products that it cannot do without; for benchmarks.

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    CvaeOptions, GvaeError, ServiceNet, Table,
    cvae::{Cvae, Mlp},
    kernel::{View, add_product},
};

/// A net of the given columns and rows to learn from.
#[derive(Debug)]
pub struct TrainingProbe {
    x: Table,
    y: Table,
    order: Vec<usize>,
    options: CvaeOptions,
}

/// The products of one layer in one batch: rows, columns in, columns out, and whether the slope goes on to its input.
type Product = (usize, usize, usize, bool);

impl TrainingProbe {
    /// `rows` random rows of `x` causes and `y` effects, seeded.
    pub fn new(rows: usize, x: usize, y: usize) -> Self {
        let mut draw = SmallRng::seed_from_u64(7);
        let mut table = |cols: usize| {
            let values = (0..rows * cols).map(|_| draw.random_range(-1.0..1.0)).collect();
            Table::of_values(cols, values)
        };
        let options = CvaeOptions { epochs: 1, ..CvaeOptions::default() };
        Self { x: table(x), y: table(y), order: (0..rows).collect(), options }
    }

    /// Trains a fresh net for `epochs`.
    ///
    /// # Errors
    ///
    /// `GvaeError::TooFewRows`.
    pub fn train(&self, epochs: usize) -> Result<ServiceNet, GvaeError> {
        ServiceNet::train(&self.x, &self.y, &self.order, None, &CvaeOptions { epochs, ..self.options })
    }

    /// Rows times columns in times columns out of all products of one epoch.
    pub fn multiply_adds(&self, net: &ServiceNet) -> usize {
        let of = |(rows, size, width, goes_on): &Product| rows * size * width * if *goes_on { 3 } else { 2 };
        self.batches().flat_map(|rows| products(&net.net, rows)).map(|product| of(&product)).sum()
    }

    /// The matrix products of one epoch of `net` alone, on the same kernels: what training costs at least. Gives their sum,
    /// so that nothing is optimised away.
    pub fn floor(&self, net: &ServiceNet) -> f32 {
        let most =
            self.batches().flat_map(|rows| products(&net.net, rows)).map(|(b, i, o, _)| (b * i).max(b * o).max(i * o));
        let most = most.max().unwrap_or(0);
        let (a, b) = (vec![0.5; most], vec![0.25; most]);
        let mut out = vec![0.0; most];
        for (rows, size, width, goes_on) in self.batches().flat_map(|rows| products(&net.net, rows)) {
            let input = View::new(&a[..rows * size], rows, size);
            let weights = View::new(&b[..size * width], size, width);
            let slope = View::new(&b[..rows * width], rows, width);
            add_product(&mut out[..rows * width], input, weights);
            add_product(&mut out[..size * width], input.transposed(), slope);
            if goes_on {
                add_product(&mut out[..rows * size], slope, weights.transposed());
            }
        }
        out.iter().sum()
    }

    fn batches(&self) -> impl Iterator<Item = usize> {
        self.order.chunks(self.options.batch).map(<[usize]>::len)
    }
}

/// Every product of one step: the decoder runs twice, for z of the posterior and of the prior.
fn products(net: &Cvae, rows: usize) -> Vec<Product> {
    let of_net = |(mlp, latent): (&Mlp, bool)| {
        let layers = mlp.layers.iter().enumerate();
        layers
            .flat_map(move |(place, layer)| {
                let last = layer.weights.len() - 1;
                layer.weights.iter().enumerate().map(move |(input, weight)| {
                    let (size, width) = super::dense::ShapeOf::shape_of(weight);
                    let is_hidden =
                        if place == 0 { latent && input == last } else { input == 0 || latent && input == last };
                    (rows, size, width, is_hidden)
                })
            })
            .collect::<Vec<Product>>()
    };
    [(&net.encoder, false), (&net.prior, false), (&net.decoder, true), (&net.decoder, true)]
        .into_iter()
        .flat_map(of_net)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_products_of_a_small_net_are_counted_as_by_hand() {
        // x 2, y 1, hidden 24, z 4; a product costs its size twice, three times where the slope goes on to the input.
        let encoder = 2 * (2 + 1) * 24 + 3 * 24 * 24 + 3 * 24 * 8 + 2 * (2 + 1) * 8;
        let prior = 2 * 2 * 24 + 3 * 24 * 24 + 3 * 24 * 8 + 2 * 2 * 8;
        let decoder = 2 * 2 * 24 + 3 * 4 * 24 + 3 * 24 * 24 + 3 * 24 + 2 * 2 + 3 * 4;
        let probe = TrainingProbe::new(200, 2, 1);
        let net = probe.train(1).expect("enough rows");
        assert_eq!(probe.multiply_adds(&net), 200 * (encoder + prior + 2 * decoder));
        assert!(probe.floor(&net).is_finite());
    }
}
