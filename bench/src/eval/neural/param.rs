//! Weights that learn: values, gradients, and Adam's moments.

use rand::Rng;

/// Adam's decay rates and the term that keeps a division finite.
const DECAY: (f32, f32) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

/// One block of weights.
#[derive(Clone, Debug)]
pub struct Param {
    /// The weights.
    pub value: Vec<f32>,
    /// Sum of the gradients since the last step.
    pub gradient: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Param {
    /// `len` weights, uniform within `1 / sqrt(inputs)`; zeros for no inputs.
    pub fn new(len: usize, inputs: usize, draw: &mut impl Rng) -> Self {
        let bound = if inputs == 0 { 0.0 } else { 1.0 / (inputs as f32).sqrt() };
        let value = (0..len).map(|_| if bound > 0.0 { draw.random_range(-bound..bound) } else { 0.0 }).collect();
        Self { value, gradient: vec![0.0; len], first: vec![0.0; len], second: vec![0.0; len] }
    }

    /// One step of Adam at `rate`, the `step`-th from one on, over the mean gradient of `samples`; clears the gradient.
    ///
    /// # Source
    ///
    /// Kingma & Ba, *Adam*, ICLR 2015, algorithm 1.
    pub fn step(&mut self, rate: f32, step: i32, samples: usize) {
        let (fix_first, fix_second) = (1.0 - DECAY.0.powi(step), 1.0 - DECAY.1.powi(step));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, gradient), (first, second)) in self.value.iter_mut().zip(&mut self.gradient).zip(moments) {
            let mean = *gradient / samples.max(1) as f32;
            *first = DECAY.0 * *first + (1.0 - DECAY.0) * mean;
            *second = DECAY.1 * *second + (1.0 - DECAY.1) * mean * mean;
            *value -= rate * (*first / fix_first) / ((*second / fix_second).sqrt() + EPSILON);
            *gradient = 0.0;
        }
    }
}
