//! The three nets of one service and one training step of them.

use dfdx::{
    tensor::{Cpu, PutTape, TensorFromVec},
    tensor_ops::Backward,
};
use rand::rngs::SmallRng;

use super::{
    CvaeOptions, Grads, GvaeError, Matrix, Tape,
    dense::{Activation, Dense, Input, Norm, ShapeOf},
    loss,
};

/// Fully connected layers: all but the last with normalisation and ReLU, dropout behind the last hidden one, and an affine
/// output that may also see the inputs, so that what is linear need not be learnt by the hidden layers.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    pub(super) layers: Vec<Dense>,
    has_skip: bool,
}

impl Mlp {
    fn new(
        device: &Cpu,
        inputs: &[usize],
        sizes: &Sizes,
        out: usize,
        dropout: f32,
        draw: &mut SmallRng,
    ) -> Result<Self, GvaeError> {
        let Sizes { hidden, norm, has_skip, .. } = *sizes;
        let depth = sizes.layers.max(2);
        let mut layers = Vec::with_capacity(depth);
        for place in 0..depth - 1 {
            let dropout = if place + 2 == depth { dropout } else { 0.0 };
            let first = if place == 0 { inputs } else { &[hidden][..] };
            layers.push(Dense::new(device, first, hidden, Activation::NormRelu { norm, dropout }, draw)?);
        }
        let mut last = vec![hidden];
        last.extend_from_slice(if has_skip { inputs } else { &[] });
        layers.push(Dense::new(device, &last, out, Activation::None, draw)?);
        Ok(Self { layers, has_skip })
    }

    /// `(B, out)`; `inputs` as given to [`Mlp::new`].
    fn forward(
        &self,
        inputs: &[Input<'_>],
        mut training: Option<(&mut Tape, &mut SmallRng)>,
    ) -> Result<Matrix, GvaeError> {
        let mut again = |layer: &Dense, inputs: &[Input<'_>]| {
            layer.forward(inputs, training.as_mut().map(|(tape, draw)| (&mut **tape, &mut **draw)))
        };
        let (last, hidden) = self.split();
        let mut here = again(&hidden[0], inputs)?;
        for layer in &hidden[1..] {
            here = again(layer, &[Input::hidden(&here)])?;
        }
        again(last, &self.last_inputs(&here, inputs))
    }

    /// Takes the moments of `inputs`, all rows trained on, layer by layer; see [`Dense::settle`].
    fn settle(&mut self, inputs: &[Input<'_>]) -> Result<Matrix, GvaeError> {
        let mut here = self.layers[0].settle(inputs)?;
        let hidden = self.layers.len() - 1;
        for layer in &mut self.layers[1..hidden] {
            here = layer.settle(&[Input::data(&here)])?;
        }
        self.split().0.forward(&self.last_inputs(&here, inputs), None)
    }

    /// The output layer and those before it.
    fn split(&self) -> (&Dense, &[Dense]) {
        let (hidden, last) = self.layers.split_at(self.layers.len() - 1);
        (&last[0], hidden)
    }

    fn last_inputs<'a>(&self, hidden: &'a Matrix, inputs: &[Input<'a>]) -> Vec<Input<'a>> {
        let mut last = vec![Input::hidden(hidden)];
        if self.has_skip {
            last.extend(inputs.iter().copied());
        }
        last
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
    /// `(B, C)`: what the decoder alone sees; `None` for nets without.
    pub(super) context: Option<Matrix>,
    /// `(B, D)`, 0 where absent.
    pub(super) y: Matrix,
    /// `(B, D)`.
    pub(super) mask: Vec<bool>,
}

/// Sizes and make of a [`Cvae`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Sizes {
    /// Columns of x.
    pub(super) x: usize,
    /// Columns that the decoder alone sees.
    pub(super) context: usize,
    /// Columns of y.
    pub(super) y: usize,
    /// Width of hidden layers.
    pub(super) hidden: usize,
    /// Latent dimensions.
    pub(super) latent: usize,
    /// Fully connected layers of each of the three nets.
    pub(super) layers: usize,
    /// Normalisation between them.
    pub(super) norm: Norm,
    /// Whether outputs see the inputs.
    pub(super) has_skip: bool,
}

impl Sizes {
    /// Columns of the inputs of encoder, prior and decoder, and of their outputs.
    fn ends(&self) -> [(Vec<usize>, usize); 3] {
        let Self { x, context, y, latent, .. } = *self;
        let decoder = if context > 0 { vec![x, context, latent] } else { vec![x, latent] };
        [(vec![x, y], 2 * latent), (vec![x], 2 * latent), (decoder, y)]
    }

    /// How many numbers a net of these sizes is stored as: weights, and moments of its population.
    pub(super) fn numbers(&self) -> usize {
        let (hidden, deep) = (self.hidden, self.layers.max(2) - 2);
        let rows = if self.norm == Norm::Batch { 5 } else { 3 };
        let of_net = |(inputs, out): &(Vec<usize>, usize)| {
            let inputs: usize = inputs.iter().sum();
            let skipped = if self.has_skip { inputs } else { 0 };
            (inputs + deep * hidden + (deep + 1) * rows) * hidden + (hidden + skipped + 1) * out
        };
        self.ends().iter().map(of_net).sum()
    }
}

impl Cvae {
    pub(super) fn new(sizes: &Sizes, options: &CvaeOptions, draw: &mut SmallRng) -> Result<Self, GvaeError> {
        let device = Cpu::default();
        let mut mlp =
            |(inputs, out): &(Vec<usize>, usize)| Mlp::new(&device, inputs, sizes, *out, options.dropout, draw);
        let [encoder, prior, decoder] = &sizes.ends();
        Ok(Self { encoder: mlp(encoder)?, prior: mlp(prior)?, decoder: mlp(decoder)? })
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = &Dense> {
        [&self.encoder, &self.prior, &self.decoder].into_iter().flat_map(|mlp| &mlp.layers)
    }

    /// Every parameter, in a fixed order.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &Matrix> {
        self.layers().flat_map(Dense::parameters)
    }

    /// Every parameter, in the same order.
    pub(super) fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        self.layers_mut().flat_map(Dense::parameters_mut)
    }

    /// Every layer, in the order of [`parameters`](Self::parameters).
    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut Dense> {
        [&mut self.encoder, &mut self.prior, &mut self.decoder].into_iter().flat_map(|mlp| &mut mlp.layers)
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
        let (x, target) = (Input::data(&batch.x), batch.y.values());
        let q = self.encoder.forward(&[Input::data(&batch.x), Input::data(&batch.y)], Some((&mut tape, draw)))?;
        let p = self.prior.forward(&[x], Some((&mut tape, draw)))?;
        let mut total = loss::kl(&q, &p, options.alpha * options.beta, &mut tape);
        for (moments, weight) in [(&q, options.alpha), (&p, 1.0 - options.alpha)] {
            let z = loss::draw_latent(moments, draw, &mut tape)?;
            let inputs = decoder_inputs(&batch.x, batch.context.as_ref(), Input::hidden(&z));
            let y_hat = self.decoder.forward(&inputs, Some((&mut tape, draw)))?;
            total += loss::huber(&y_hat, &target, &batch.mask, weight, &mut tape);
        }
        let root = batch.x.device().try_tensor_from_vec(vec![total], ())?;
        Ok((total, root.put_tape(tape).try_backward()?))
    }

    /// Takes the moments of all rows trained on where normalisation is over the batch: z as often from the posterior as
    /// from the prior.
    pub(super) fn settle(&mut self, all: &Batch, draw: &mut SmallRng) -> Result<(), GvaeError> {
        let q = self.encoder.settle(&[Input::data(&all.x), Input::data(&all.y)])?;
        let p = self.prior.settle(&[Input::data(&all.x)])?;
        let mut forgotten = Tape::default();
        let z = stack(&loss::draw_latent(&q, draw, &mut forgotten)?, &loss::draw_latent(&p, draw, &mut forgotten)?)?;
        let context = all.context.as_ref().map(|context| stack(context, context)).transpose()?;
        let x = stack(&all.x, &all.x)?;
        self.decoder.settle(&decoder_inputs(&x, context.as_ref(), Input::data(&z)))?;
        Ok(())
    }

    /// Means, then log-variances of z given x and y `(B, 2Z)`.
    pub(super) fn posterior(&self, x: &Matrix, y: &Matrix) -> Result<Matrix, GvaeError> {
        self.encoder.forward(&[Input::data(x), Input::data(y)], None)
    }

    /// Means, then log-variances of z given x alone `(B, 2Z)`.
    pub(super) fn prior(&self, x: &Matrix) -> Result<Matrix, GvaeError> {
        self.prior.forward(&[Input::data(x)], None)
    }

    /// `(B, D)` from x `(B, M)`, what the decoder alone sees `(B, C)` and z `(B, Z)`, all standardised.
    pub(super) fn decode(&self, x: &Matrix, context: Option<&Matrix>, z: &Matrix) -> Result<Matrix, GvaeError> {
        self.decoder.forward(&decoder_inputs(x, context, Input::data(z)), None)
    }
}

fn decoder_inputs<'a>(x: &'a Matrix, context: Option<&'a Matrix>, z: Input<'a>) -> Vec<Input<'a>> {
    std::iter::once(Input::data(x)).chain(context.map(Input::data)).chain([z]).collect()
}

/// The rows of `a`, then those of `b`.
fn stack(a: &Matrix, b: &Matrix) -> Result<Matrix, GvaeError> {
    let ((rows, cols), mut values) = (a.shape_of(), a.values());
    values.extend(b.values());
    Ok(a.device().try_tensor_from_vec(values, (rows + b.shape_of().0, cols))?)
}
