//! One fused layer: `dropout(relu(norm(sum_i x_i W_i + b)))`, or only the affine part for outputs.
//!
//! Fused, because tensor sizes here are known at run time only and small: one pass forward and one backward, pushed on
//! the tape as a single operation, cost a third of the same layer built from single operations. Layer rather than batch
//! normalisation where we choose: the result of a row does not depend on its batch, so training and use agree and a batch
//! of one is fine. The papers' nets use batch normalisation; its population moments are taken once training has ended.

use std::rc::Rc;

use dfdx::tensor::{Cpu, Tape as _, TensorFromVec, ZerosTensor};
use rand::{Rng, RngCore, rngs::SmallRng};

use super::{
    Grads, GvaeError, Matrix, Tape,
    kernel::{View, add_product},
    lanes,
};

/// Keeps the inverse standard deviation finite for a constant row.
const NORM_EPSILON: f32 = 1e-5;

/// An input of a layer.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// `(B, I)`.
    pub(super) tensor: &'a Matrix,
    /// False for data, which nobody differentiates by.
    pub(super) wants_gradient: bool,
}

impl<'a> Input<'a> {
    /// Observed data.
    pub(super) fn data(tensor: &'a Matrix) -> Self {
        Self { tensor, wants_gradient: false }
    }

    /// The output of another layer.
    pub(super) fn hidden(tensor: &'a Matrix) -> Self {
        Self { tensor, wants_gradient: true }
    }
}

/// Over what pre-activations are normalised.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Norm {
    /// Over the units of a row.
    Layer,
    /// Over the rows of a batch; in use over the rows trained on. Source: Ioffe & Szegedy, *Batch Normalization*, 2015,
    /// algorithm 2, with the population taken in one pass at the end.
    Batch,
}

/// What a layer does after its affine part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Activation {
    /// Nothing: an output layer.
    None,
    /// Normalisation, ReLU, and in training dropout with this probability.
    NormRelu {
        /// Over what.
        norm: Norm,
        /// Probability that a unit is dropped.
        dropout: f32,
    },
}

/// The weights of one layer.
#[derive(Clone, Debug)]
pub(super) struct Dense {
    /// One `(I_i, O)` per input.
    pub(super) weights: Vec<Matrix>,
    /// `(1, O)` each: bias, and for [`Activation::NormRelu`] gain and shift of the normalisation.
    pub(super) rows: Vec<Matrix>,
    pub(super) activation: Activation,
    /// With [`Norm::Batch`] once trained.
    pub(super) population: Option<Moments>,
}

/// Mean and inverse standard deviation of each unit's pre-activation `(O)` over the rows trained on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moments {
    pub(super) mean: Vec<f32>,
    pub(super) inverse_std: Vec<f32>,
}

impl Moments {
    /// Of the columns of `values` `(B, width)`.
    fn of_columns(values: &[f32], width: usize) -> Self {
        let rows = (values.len() / width).max(1) as f32;
        let mut mean = vec![0.0; width];
        add_column_sums(&mut mean, values, width);
        mean.iter_mut().for_each(|mean| *mean /= rows);
        let mut variance = vec![0.0; width];
        for row in values.chunks_exact(width) {
            for ((variance, mean), value) in variance.iter_mut().zip(&mean).zip(row) {
                *variance += (value - mean).powi(2) / rows;
            }
        }
        Self { mean, inverse_std: variance.into_iter().map(|v| 1.0 / (v + NORM_EPSILON).sqrt()).collect() }
    }

    fn apply(&self, values: &mut [f32]) {
        for row in values.chunks_exact_mut(self.mean.len()) {
            for ((value, mean), inverse_std) in row.iter_mut().zip(&self.mean).zip(&self.inverse_std) {
                *value = (*value - mean) * inverse_std;
            }
        }
    }
}

/// One input of a layer as the backward pass needs it: the tensor, its values, whether it wants a gradient.
type SavedInput = (Matrix, Rc<Vec<f32>>, bool);

/// The affine part of a layer `(B, O)` with what it was made of.
struct Affine {
    out: Vec<f32>,
    inputs: Vec<SavedInput>,
    weights: Vec<(Matrix, Vec<f32>)>,
}

/// What the backward pass needs of the forward pass.
struct Saved {
    inputs: Vec<SavedInput>,
    weights: Vec<(Matrix, Vec<f32>)>,
    rows: Vec<Matrix>,
    norm: Norm,
    gain: Vec<f32>,
    /// Normalised pre-activations `(B, O)`; empty without normalisation.
    normed: Vec<f32>,
    /// One over the standard deviation of each row `(B)`, or with [`Norm::Batch`] of each unit `(O)`.
    inverse_std: Vec<f32>,
    /// What the output was multiplied by after ReLU: 0 where it was cut or dropped `(B, O)`.
    passed: Vec<f32>,
    batch: usize,
    width: usize,
}

impl Dense {
    /// Fresh weights: uniform within `1 / sqrt(fan in)`, as is usual for ReLU nets of this size.
    pub(super) fn new(
        device: &Cpu,
        inputs: &[usize],
        width: usize,
        activation: Activation,
        draw: &mut SmallRng,
    ) -> Result<Self, GvaeError> {
        let bound = 1.0 / (inputs.iter().sum::<usize>().max(1) as f32).sqrt();
        let weights = inputs
            .iter()
            .map(|size| {
                let values = (0..size * width).map(|_| draw.random_range(-bound..bound)).collect();
                Ok(device.try_tensor_from_vec(values, (*size, width))?)
            })
            .collect::<Result<_, GvaeError>>()?;
        let mut rows = vec![device.try_zeros_like(&(1, width))?];
        if activation != Activation::None {
            rows.push(device.try_tensor_from_vec(vec![1.0; width], (1, width))?);
            rows.push(device.try_zeros_like(&(1, width))?);
        }
        Ok(Self { weights, rows, activation, population: None })
    }

    /// Every parameter, in a fixed order.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &Matrix> {
        self.weights.iter().chain(&self.rows)
    }

    /// Every parameter, in the same order.
    pub(super) fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        self.weights.iter_mut().chain(&mut self.rows)
    }

    /// `(B, O)` from inputs of `(B, I_i)`. With a tape (training) the way back is recorded and dropout is drawn.
    pub(super) fn forward(
        &self,
        inputs: &[Input<'_>],
        training: Option<(&mut Tape, &mut SmallRng)>,
    ) -> Result<Matrix, GvaeError> {
        let (batch, width) = (inputs[0].tensor.shape_of().0, self.rows[0].shape_of().1);
        let Affine { mut out, inputs: saved_inputs, weights } = self.affine(inputs);
        let mut saved = Saved {
            inputs: saved_inputs,
            weights,
            rows: self.rows.clone(),
            norm: Norm::Layer,
            gain: Vec::new(),
            normed: Vec::new(),
            inverse_std: Vec::new(),
            passed: Vec::new(),
            batch,
            width,
        };
        let (tape, mut draw) = training.unzip();
        if let Activation::NormRelu { norm, dropout } = self.activation {
            let population = self.population.as_ref().filter(|_| tape.is_none());
            saved.norm = norm;
            saved.normalise(&mut out, population);
            saved.activate(&mut out, draw.as_mut().map(|draw| (dropout, &mut **draw)));
        }
        let out = inputs[0].tensor.device().try_tensor_from_vec(out, (batch, width))?;
        if let Some(tape) = tape {
            let key = out.clone();
            tape.add_backward_op(move |grads| saved.backward(grads, &key));
        }
        Ok(out)
    }

    /// Takes the moments of `inputs`, all rows trained on, as those of the population, and answers for them.
    pub(super) fn settle(&mut self, inputs: &[Input<'_>]) -> Result<Matrix, GvaeError> {
        if matches!(self.activation, Activation::NormRelu { norm: Norm::Batch, .. }) {
            self.population = Some(Moments::of_columns(&self.affine(inputs).out, self.rows[0].shape_of().1));
        }
        self.forward(inputs, None)
    }

    fn affine(&self, inputs: &[Input<'_>]) -> Affine {
        let (batch, width) = (inputs[0].tensor.shape_of().0, self.rows[0].shape_of().1);
        let bias = self.rows[0].values();
        let mut this = Affine {
            out: bias.repeat(batch),
            inputs: Vec::with_capacity(inputs.len()),
            weights: Vec::with_capacity(inputs.len()),
        };
        for (input, weight) in inputs.iter().zip(&self.weights) {
            let (values, size) = (Rc::new(input.tensor.values()), input.tensor.shape_of().1);
            let weights = weight.values();
            add_product(&mut this.out, View::new(&values, batch, size), View::new(&weights, size, width));
            this.inputs.push((input.tensor.clone(), values, input.wants_gradient));
            this.weights.push((weight.clone(), weights));
        }
        this
    }
}

impl Saved {
    /// Normalises `out` and keeps what the way back needs.
    fn normalise(&mut self, out: &mut [f32], population: Option<&Moments>) {
        self.gain = self.rows[1].values();
        self.inverse_std = match (self.norm, population) {
            (Norm::Layer, _) => standardise_rows(out, self.width),
            (Norm::Batch, Some(population)) => {
                population.apply(out);
                Vec::new()
            }
            (Norm::Batch, None) => {
                let moments = Moments::of_columns(out, self.width);
                moments.apply(out);
                moments.inverse_std
            }
        };
        self.normed = out.to_vec();
    }

    /// Gain, shift, ReLU and dropout, in place.
    fn activate(&mut self, out: &mut [f32], dropout: Option<(f32, &mut SmallRng)>) {
        let shift = self.rows[2].values();
        self.passed = vec![1.0; out.len()];
        if let Some((rate, draw)) = dropout.filter(|(rate, _)| *rate > 0.0) {
            let kept = 1.0 / (1.0 - rate);
            drop_out(&mut self.passed, rate, kept, draw);
        }
        let rows = out.chunks_exact_mut(self.width).zip(self.passed.chunks_exact_mut(self.width));
        for (values, passed) in rows {
            let units = values.iter_mut().zip(passed).zip(&self.gain).zip(&shift);
            for (((value, passed), gain), shift) in units {
                let active = *value * gain + shift;
                *passed = if active > 0.0 { *passed } else { 0.0 };
                *value = active * *passed;
            }
        }
    }

    /// Adds the gradients of the parameters, and of the inputs that want one.
    fn backward(self, grads: &mut Grads, out: &Matrix) -> Result<(), dfdx::tensor::CpuError> {
        let mut slope = grads.get_or_alloc_mut(out)?.to_vec();
        if !self.normed.is_empty() {
            self.backward_activation(grads, &mut slope)?;
        }
        add_column_sums(grads.get_or_alloc_mut(&self.rows[0])?, &slope, self.width);
        let down = View::new(&slope, self.batch, self.width);
        for ((tensor, values, wants_gradient), (weight, weights)) in self.inputs.iter().zip(&self.weights) {
            let size = tensor.shape_of().1;
            add_product(grads.get_or_alloc_mut(weight)?, View::new(values, self.batch, size).transposed(), down);
            if *wants_gradient {
                add_product(grads.get_or_alloc_mut(tensor)?, down, View::new(weights, size, self.width).transposed());
            }
        }
        Ok(())
    }

    /// Turns the slope at the output into the slope before normalisation.
    fn backward_activation(&self, grads: &mut Grads, slope: &mut [f32]) -> Result<(), dfdx::tensor::CpuError> {
        for (slope, passed) in slope.iter_mut().zip(&self.passed) {
            *slope *= passed;
        }
        add_column_sums(grads.get_or_alloc_mut(&self.rows[2])?, slope, self.width);
        let gains = grads.get_or_alloc_mut(&self.rows[1])?;
        for (slope, normed) in slope.chunks_exact(self.width).zip(self.normed.chunks_exact(self.width)) {
            gains.iter_mut().zip(slope).zip(normed).for_each(|((gain, slope), normed)| *gain += slope * normed);
        }
        for row in slope.chunks_exact_mut(self.width) {
            row.iter_mut().zip(&self.gain).for_each(|(slope, gain)| *slope *= gain);
        }
        match self.norm {
            Norm::Layer => self.backward_rows(slope),
            Norm::Batch => self.backward_columns(slope),
        }
        Ok(())
    }

    fn backward_rows(&self, slope: &mut [f32]) {
        let rows = slope.chunks_exact_mut(self.width).zip(self.normed.chunks_exact(self.width)).zip(&self.inverse_std);
        for ((slope, normed), inverse_std) in rows {
            let mean = lanes::sum(slope) / self.width as f32;
            let along = lanes::dot(slope, normed) / self.width as f32;
            for (slope, normed) in slope.iter_mut().zip(normed) {
                *slope = inverse_std * (*slope - mean - normed * along);
            }
        }
    }

    fn backward_columns(&self, slope: &mut [f32]) {
        let (mut mean, mut along) = (vec![0.0; self.width], vec![0.0; self.width]);
        add_column_sums(&mut mean, slope, self.width);
        let products: Vec<f32> = slope.iter().zip(&self.normed).map(|(slope, normed)| slope * normed).collect();
        add_column_sums(&mut along, &products, self.width);
        let rows = slope.chunks_exact_mut(self.width).zip(self.normed.chunks_exact(self.width));
        for (slope, normed) in rows {
            for col in 0..self.width {
                let pull = (mean[col] + normed[col] * along[col]) / self.batch as f32;
                slope[col] = self.inverse_std[col] * (slope[col] - pull);
            }
        }
    }
}

/// Replaces each row by its standard scores and gives one over the standard deviation of each.
fn standardise_rows(values: &mut [f32], width: usize) -> Vec<f32> {
    let standardise = |row: &mut [f32]| {
        let mean = lanes::sum(row) / width as f32;
        row.iter_mut().for_each(|value| *value -= mean);
        let variance = lanes::dot(row, row) / width as f32;
        let inverse_std = 1.0 / (variance + NORM_EPSILON).sqrt();
        row.iter_mut().for_each(|value| *value *= inverse_std);
        inverse_std
    };
    values.chunks_exact_mut(width).map(standardise).collect()
}

/// Sets each of `passed` to zero with probability `rate`, else to `kept`. Sixteen bits are fine enough a rate, so one draw
/// serves four units.
fn drop_out(passed: &mut [f32], rate: f32, kept: f32, draw: &mut SmallRng) {
    const STEPS: f32 = 65_536.0;
    let dropped = (rate * STEPS) as u64;
    for units in passed.chunks_mut(4) {
        let mut bits = draw.next_u64();
        for unit in units {
            *unit = if bits & 0xffff < dropped { 0.0 } else { kept };
            bits >>= 16;
        }
    }
}

fn add_column_sums(sums: &mut [f32], values: &[f32], width: usize) {
    for row in values.chunks_exact(width) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

/// The shape and the values of a run-time matrix.
pub(super) trait ShapeOf {
    /// `(rows, cols)`.
    fn shape_of(&self) -> (usize, usize);

    /// A copy of the values, row by row. Every matrix here is dense, so its storage is copied as it stands; `as_vec` would
    /// walk it by strides.
    fn values(&self) -> Vec<f32>;
}

impl ShapeOf for Matrix {
    fn shape_of(&self) -> (usize, usize) {
        *dfdx::shapes::HasShape::shape(self)
    }

    fn values(&self) -> Vec<f32> {
        let (rows, cols) = self.shape_of();
        let mut values = vec![0.0; rows * cols];
        self.copy_into(&mut values);
        values
    }
}

#[cfg(test)]
mod tests {
    use dfdx::tensor::PutTape;
    use dfdx::tensor_ops::Backward;
    use rand::SeedableRng;

    use super::*;

    /// Sum of outputs times fixed weights: a scalar whose gradient is known by finite differences.
    fn weighted_sum(out: &[f32]) -> f32 {
        out.iter().enumerate().map(|(index, value)| value * ((index % 5) as f32 - 1.7)).sum()
    }

    fn analytic(layer: &Dense, x: &Matrix) -> Grads {
        let mut tape = Tape::default();
        let mut draw = SmallRng::seed_from_u64(1);
        let out = layer.forward(&[Input::hidden(x)], Some((&mut tape, &mut draw))).expect("forward");
        let len = out.values().len();
        tape.add_backward_op(move |grads| {
            let slope = grads.get_or_alloc_mut(&out)?;
            (0..len).for_each(|index| slope[index] += (index % 5) as f32 - 1.7);
            Ok(())
        });
        let root = x.device().try_tensor_from_vec(vec![0.0], ()).expect("scalar");
        root.put_tape(tape).try_backward().expect("backward")
    }

    #[test]
    fn gradients_agree_with_finite_differences_in_both_normalisations() {
        [Norm::Layer, Norm::Batch].into_iter().for_each(compare);
    }

    fn compare(norm: Norm) {
        let device = Cpu::default();
        let mut draw = SmallRng::seed_from_u64(7);
        let activation = Activation::NormRelu { norm, dropout: 0.0 };
        let layer = Dense::new(&device, &[3], 6, activation, &mut draw).expect("layer");
        let values: Vec<f32> = (0..12).map(|_| draw.random_range(-1.0..1.0)).collect();
        let x = device.try_tensor_from_vec(values.clone(), (4, 3)).expect("x");
        let mut grads = analytic(&layer, &x);
        let step = 1e-3; // small, so that no ReLU changes side between the two points
        for index in 0..values.len() {
            let at = |delta: f32| {
                let mut moved = values.clone();
                moved[index] += delta;
                let moved = device.try_tensor_from_vec(moved, (4, 3)).expect("x");
                weighted_sum(&layer.forward(&[Input::data(&moved)], None).expect("forward").values())
            };
            let numeric = (at(step) - at(-step)) / (2.0 * step);
            let exact = grads.get_or_alloc_mut(&x).expect("gradient")[index];
            assert!((numeric - exact).abs() < 0.05 * (1.0 + exact.abs()), "x[{index}]: {numeric} against {exact}");
        }
        for (parameter, tensor) in layer.parameters().enumerate() {
            let values = tensor.values();
            for index in 0..values.len() {
                let at = |delta: f32| {
                    let mut moved = layer.clone();
                    let mut values = values.clone();
                    values[index] += delta;
                    moved.parameters_mut().nth(parameter).expect("same layer").copy_from(&values);
                    weighted_sum(&moved.forward(&[Input::data(&x)], None).expect("forward").values())
                };
                let numeric = (at(step) - at(-step)) / (2.0 * step);
                let exact = grads.get_or_alloc_mut(tensor).expect("gradient")[index];
                let bound = 0.05 * (1.0 + exact.abs());
                assert!((numeric - exact).abs() < bound, "parameter {parameter}[{index}]: {numeric} against {exact}");
            }
        }
    }

    #[test]
    fn dropout_keeps_the_mean_and_is_off_in_use() {
        let device = Cpu::default();
        let mut draw = SmallRng::seed_from_u64(3);
        let layer = Dense::new(&device, &[2], 8, Activation::NormRelu { norm: Norm::Layer, dropout: 0.5 }, &mut draw)
            .expect("layer");
        let x = device.try_tensor_from_vec(vec![0.3; 4000], (2000, 2)).expect("x");
        let plain: f32 = layer.forward(&[Input::data(&x)], None).expect("use").values().iter().sum();
        let mut tape = Tape::default();
        let dropped = layer.forward(&[Input::data(&x)], Some((&mut tape, &mut draw))).expect("training").values();
        let kept = dropped.iter().filter(|value| **value > 0.0).count();
        assert!(kept > 0 && kept < dropped.len());
        assert!((dropped.iter().sum::<f32>() / plain - 1.0).abs() < 0.05);
    }
}
