//! The three nets of one service and one training step of them.

use dfdx::{
    tensor::{Cpu, PutTape, TensorFromVec},
    tensor_ops::Backward,
};
use rand::rngs::SmallRng;

use super::{
    CvaeOptions, Grads, GvaeError, Matrix, Tape,
    dense::{Activation, Dense, Input},
    loss,
};

/// Three layers: two with normalisation and ReLU, the second with dropout, and an affine output that also sees the
/// inputs, so that what is linear need not be learnt by the hidden layers.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    pub(super) layers: [Dense; 3],
}

impl Mlp {
    fn new(
        device: &Cpu,
        inputs: &[usize],
        hidden: usize,
        out: usize,
        dropout: f32,
        draw: &mut SmallRng,
    ) -> Result<Self, GvaeError> {
        let mut last = vec![hidden];
        last.extend_from_slice(inputs);
        Ok(Self {
            layers: [
                Dense::new(device, inputs, hidden, Activation::NormRelu { dropout: 0.0 }, draw)?,
                Dense::new(device, &[hidden], hidden, Activation::NormRelu { dropout }, draw)?,
                Dense::new(device, &last, out, Activation::None, draw)?,
            ],
        })
    }

    /// `(B, out)`; `inputs` as given to [`Mlp::new`].
    fn forward(
        &self,
        inputs: &[Input<'_>],
        mut training: Option<(&mut Tape, &mut SmallRng)>,
    ) -> Result<Matrix, GvaeError> {
        let again = |training: &mut Option<(&mut Tape, &mut SmallRng)>, layer: &Dense, inputs: &[Input<'_>]| {
            layer.forward(inputs, training.as_mut().map(|(tape, draw)| (&mut **tape, &mut **draw)))
        };
        let first = again(&mut training, &self.layers[0], inputs)?;
        let second = again(&mut training, &self.layers[1], &[Input::hidden(&first)])?;
        let mut last = vec![Input::hidden(&second)];
        last.extend(inputs.iter().map(|input| Input { tensor: input.tensor, wants_gradient: input.wants_gradient }));
        again(&mut training, &self.layers[2], &last)
    }
}

/// Encoder, prior and decoder.
#[derive(Clone, Debug)]
pub(super) struct Cvae {
    pub(super) encoder: Mlp,
    pub(super) prior: Mlp,
    pub(super) decoder: Mlp,
}

/// A standardised batch.
pub(super) struct Batch {
    /// `(B, M)`.
    pub(super) x: Matrix,
    /// `(B, D)`, 0 where absent.
    pub(super) y: Matrix,
    /// `(B, D)`.
    pub(super) mask: Vec<bool>,
}

/// Sizes of a [`Cvae`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Sizes {
    /// Columns of x.
    pub(super) x: usize,
    /// Columns of y.
    pub(super) y: usize,
    /// Width of hidden layers.
    pub(super) hidden: usize,
    /// Latent dimensions.
    pub(super) latent: usize,
}

impl Cvae {
    pub(super) fn new(sizes: Sizes, options: &CvaeOptions, draw: &mut SmallRng) -> Result<Self, GvaeError> {
        let device = Cpu::default();
        let Sizes { x, y, hidden, latent } = sizes;
        let mut mlp = |inputs: &[usize], out| Mlp::new(&device, inputs, hidden, out, options.dropout, draw);
        Ok(Self { encoder: mlp(&[x, y], 2 * latent)?, prior: mlp(&[x], 2 * latent)?, decoder: mlp(&[x, latent], y)? })
    }

    fn layers(&self) -> impl Iterator<Item = &Dense> {
        [&self.encoder, &self.prior, &self.decoder].into_iter().flat_map(|mlp| &mlp.layers)
    }

    /// Every parameter, in a fixed order.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &Matrix> {
        self.layers().flat_map(Dense::parameters)
    }

    /// Every parameter, in the same order.
    pub(super) fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        [&mut self.encoder, &mut self.prior, &mut self.decoder]
            .into_iter()
            .flat_map(|mlp| &mut mlp.layers)
            .flat_map(Dense::parameters_mut)
    }

    /// Loss of a batch and its gradients.
    ///
    /// `alpha (huber(y, dec(x, z_q)) + beta KL(q || p)) + (1 - alpha) huber(y, dec(x, z_p))`: the CVAE term learns to
    /// reconstruct, the GSNN term learns to do so from the prior's z, as the net is used.
    pub(super) fn step(
        &self,
        batch: &Batch,
        options: &CvaeOptions,
        draw: &mut SmallRng,
    ) -> Result<(f32, Grads), GvaeError> {
        let mut tape = Tape::default();
        let (x, target) = (Input::data(&batch.x), batch.y.as_vec());
        let q = self.encoder.forward(&[Input::data(&batch.x), Input::data(&batch.y)], Some((&mut tape, draw)))?;
        let p = self.prior.forward(&[x], Some((&mut tape, draw)))?;
        let mut total = loss::kl(&q, &p, options.alpha * options.beta, &mut tape);
        for (moments, weight) in [(&q, options.alpha), (&p, 1.0 - options.alpha)] {
            let z = loss::draw_latent(moments, draw, &mut tape)?;
            let y_hat = self.decoder.forward(&[Input::data(&batch.x), Input::hidden(&z)], Some((&mut tape, draw)))?;
            total += loss::huber(&y_hat, &target, &batch.mask, weight, &mut tape);
        }
        let root = batch.x.device().try_tensor_from_vec(vec![total], ())?;
        Ok((total, root.put_tape(tape).try_backward()?))
    }

    /// The decoder at the prior's mean: `(B, D)` from `(B, M)`, both standardised.
    pub(super) fn predict(&self, x: &Matrix, latent: usize) -> Result<Matrix, GvaeError> {
        let moments = self.prior.forward(&[Input::data(x)], None)?;
        let means =
            moments.as_vec().chunks_exact(2 * latent).flat_map(|row| &row[..latent]).copied().collect::<Vec<_>>();
        let rows = means.len() / latent;
        let z = x.device().try_tensor_from_vec(means, (rows, latent))?;
        self.decoder.forward(&[Input::data(x), Input::data(&z)], None)
    }
}
