//! Training: batches, Adam with a one-cycle rate, gradient clipping.

use dfdx::tensor::{Cpu, TensorFromVec};
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};

use super::{
    Grads, GvaeError, Matrix, Table,
    cvae::{Batch, Cvae, Sizes},
    dense::{Norm, ShapeOf},
    lanes,
    scaler::Scaler,
};

/// Fewer rows than this teach a net nothing that the linear prior does not say better.
pub(super) const ROWS_MIN: usize = 32;
/// The gradient's norm is cut here, so that one strange batch cannot throw the weights away.
const GRADIENT_NORM_MAX: f32 = 5.0;
/// Share of the steps in which the rate rises.
const WARM_UP: f32 = 0.3;

/// How a net is built and trained. The defaults are those of the design study.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CvaeOptions {
    /// Seed of initial weights, batches, dropout and z.
    pub seed: u64,
    /// Passes over the rows.
    pub epochs: usize,
    /// Rows per step.
    pub batch: usize,
    /// Highest learning rate of the cycle.
    pub rate_max: f32,
    /// Latent dimensions.
    pub latent: usize,
    /// Weight of the KL term.
    pub beta: f32,
    /// Weight of the CVAE objective against the GSNN objective.
    pub alpha: f32,
    /// Dropout before the output layer.
    pub dropout: f32,
    /// Fully connected layers of encoder, prior and decoder each.
    pub layers: usize,
    /// Normalisation between them.
    pub norm: Norm,
    /// Whether outputs also see the inputs, so that what is linear need not be learnt by the hidden layers.
    pub has_skip: bool,
}

impl Default for CvaeOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            epochs: 40,
            batch: 128,
            rate_max: 3e-3,
            latent: 4,
            beta: 0.1,
            alpha: 0.7,
            dropout: 0.1,
            layers: 3,
            norm: Norm::Layer,
            has_skip: true,
        }
    }
}

/// Adam, with the weights themselves as plain rows of numbers: the tensors get them after each step.
///
/// Source: Kingma & Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, algorithm 1.
struct Adam {
    step: i32,
    parameters: Vec<Moments>,
}

/// One parameter and the running means of its slope and of its square.
struct Moments {
    values: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// Decay of the running means, and what keeps the quotient finite: those of the paper.
const DECAY: (f32, f32) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

impl Adam {
    fn new(net: &Cvae) -> Self {
        let of = |tensor: &Matrix| {
            let values = tensor.values();
            Moments { first: vec![0.0; values.len()], second: vec![0.0; values.len()], values }
        };
        Self { step: 0, parameters: net.parameters().map(of).collect() }
    }

    /// One step; all slopes together are cut to [`GRADIENT_NORM_MAX`].
    fn update(&mut self, net: &mut Cvae, grads: &mut Grads, rate: f32) -> Result<(), GvaeError> {
        self.step += 1;
        let mut squares = 0.0;
        for parameter in net.parameters() {
            let slopes = &grads.get_or_alloc_mut(parameter)?[..];
            squares += lanes::dot(slopes, slopes);
        }
        let shrink = GRADIENT_NORM_MAX / squares.sqrt().max(GRADIENT_NORM_MAX);
        // Running means begin at zero and are short of the truth by these factors.
        let (rise, rise_of_squares) = (1.0 / (1.0 - DECAY.0.powi(self.step)), 1.0 / (1.0 - DECAY.1.powi(self.step)));
        let rate = rate * rise;
        for (parameter, own) in net.parameters_mut().zip(&mut self.parameters) {
            let slopes = &grads.get_or_alloc_mut(&*parameter)?[..];
            let moments = own.first.iter_mut().zip(&mut own.second);
            for ((value, slope), (first, second)) in own.values.iter_mut().zip(slopes).zip(moments) {
                let slope = shrink * slope;
                *first += (1.0 - DECAY.0) * (slope - *first);
                *second += (1.0 - DECAY.1) * (slope * slope - *second);
                *value -= rate * *first / ((rise_of_squares * *second).sqrt() + EPSILON);
            }
            parameter.copy_from(&own.values);
        }
        Ok(())
    }
}

/// A table with its scaler.
pub(super) type Scaled<'a> = (&'a Table, &'a Scaler);

/// What a net learns from, row by row of the same window.
#[derive(Clone, Copy)]
pub(super) struct Samples<'a> {
    /// Causes.
    pub(super) x: Scaled<'a>,
    /// What the decoder alone sees.
    pub(super) context: Option<Scaled<'a>>,
    /// Effects.
    pub(super) y: Scaled<'a>,
}

/// All samples on their standard scales, made once for all epochs.
struct Rows {
    x: Standard,
    context: Option<Standard>,
    y: Standard,
    /// Which effects are present, row-major.
    mask: Vec<bool>,
}

impl Rows {
    fn new(samples: &Samples<'_>) -> Self {
        let Samples { x, context, y } = *samples;
        let mask = (0..y.0.rows()).flat_map(|row| y.0.row(row)).map(|value| value.is_finite()).collect();
        Self { x: Standard::new(x), context: context.map(Standard::new), y: Standard::new(y), mask }
    }

    fn batch(&self, rows: &[usize]) -> Result<Batch, GvaeError> {
        let context = self.context.as_ref().map(|context| context.rows(rows)).transpose()?;
        let mask = gathered(&self.mask, self.y.cols, rows);
        Ok(Batch { x: self.x.rows(rows)?, context, y: self.y.rows(rows)?, mask })
    }
}

/// `rows` of row-major `values`.
fn gathered<T: Copy>(values: &[T], cols: usize, rows: &[usize]) -> Vec<T> {
    let mut taken = Vec::with_capacity(rows.len() * cols);
    for row in rows {
        taken.extend_from_slice(&values[row * cols..(row + 1) * cols]);
    }
    taken
}

/// A table on its standard scale, row-major.
struct Standard {
    cols: usize,
    values: Vec<f32>,
}

impl Standard {
    fn new((table, scaler): Scaled<'_>) -> Self {
        let values = (0..table.rows()).flat_map(|row| scaler.standardise(table.row(row))).collect();
        Self { cols: table.cols(), values }
    }

    fn rows(&self, rows: &[usize]) -> Result<Matrix, GvaeError> {
        let values = gathered(&self.values, self.cols, rows);
        Ok(Cpu::default().try_tensor_from_vec(values, (rows.len(), self.cols))?)
    }
}

/// `rows` of a table on its standard scale.
pub(super) fn standard((table, scaler): Scaled<'_>, rows: &[usize]) -> Result<Matrix, GvaeError> {
    let values = rows.iter().flat_map(|row| scaler.standardise(table.row(*row))).collect::<Vec<_>>();
    Ok(Cpu::default().try_tensor_from_vec(values, (rows.len(), table.cols()))?)
}

/// Trains `net` in place on the rows named by `order` (a row may stand in it more than once).
pub(super) fn fit(
    net: &mut Cvae,
    samples: &Samples<'_>,
    order: &[usize],
    options: &CvaeOptions,
) -> Result<(), GvaeError> {
    let mut draw = SmallRng::seed_from_u64(options.seed);
    let mut order = order.to_vec();
    let all = Rows::new(samples);
    let mut adam = Adam::new(net);
    let steps = options.epochs * order.len().div_ceil(options.batch);
    let mut step = 0;
    for epoch in 0..options.epochs {
        order.shuffle(&mut draw);
        for rows in order.chunks(options.batch) {
            let (loss, mut grads) = net.step(&all.batch(rows)?, options, &mut draw)?;
            if !loss.is_finite() {
                return Err(GvaeError::NonFinite { epoch });
            }
            adam.update(net, &mut grads, one_cycle(options.rate_max, step, steps))?;
            step += 1;
        }
    }
    if options.norm == Norm::Batch {
        net.settle(&all.batch(&order)?, &mut draw)?;
    }
    let finite = net.parameters().all(|parameter| parameter.values().iter().all(|value| value.is_finite()));
    if finite { Ok(()) } else { Err(GvaeError::NonFinite { epoch: options.epochs }) }
}

/// Learning rate of `step` out of `steps`: a cosine rise to `peak`, then a cosine fall to almost nothing.
///
/// Source: Smith & Topin, *Super-Convergence*, 2019.
fn one_cycle(peak: f32, step: usize, steps: usize) -> f32 {
    let done = step as f32 / steps.max(1) as f32;
    let half_cosine = |share: f32| 0.5 - 0.5 * (std::f32::consts::PI * share).cos();
    if done < WARM_UP {
        peak * (0.04 + 0.96 * half_cosine(done / WARM_UP))
    } else {
        peak * (1.0 - half_cosine((done - WARM_UP) / (1.0 - WARM_UP))).max(1e-4)
    }
}

/// Sizes for `x`, `context` and `y` columns: hidden layers as wide as the mean of causes and effects, within 24 and 64.
pub(super) fn sizes(x: &Table, context: Option<&Table>, y: &Table, options: &CvaeOptions) -> Sizes {
    let context = context.map_or(0, Table::cols);
    Sizes {
        x: x.cols(),
        context,
        y: y.cols(),
        hidden: (x.cols() + context).midpoint(y.cols()).clamp(24, 64),
        latent: options.latent.max(1),
        layers: options.layers.max(2),
        norm: options.norm,
        has_skip: options.has_skip,
    }
}
