//! Convolution over services, an LSTM over time, one logit per service; backwards by hand.
//!
//! ```text
//!  x[t][channel][service] ─ conv(3) ─ relu ─► LSTM over t ─ h(last) ─ dense ─► logit[service]
//! ```

use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};

use super::param::Param;

/// Services that one filter looks at: itself and its neighbours in the order of calls.
const KERNEL: usize = 3;

/// Samples per step.
const BATCH: usize = 16;

/// Sizes of a network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Services, in and out.
    pub services: usize,
    /// Numbers per service and time.
    pub channels: usize,
    /// Filters of the convolution.
    pub filters: usize,
    /// Width of the LSTM.
    pub hidden: usize,
}

/// One example.
#[derive(Clone, Debug)]
pub struct Sample {
    /// `[time][channel * services + service]`.
    pub inputs: Vec<Vec<f32>>,
    /// 1 for each culprit, else 0.
    pub targets: Vec<f32>,
}

/// The network.
#[derive(Clone, Debug)]
pub struct Net {
    shape: Shape,
    filters: Param,
    filter_bias: Param,
    gates: Param,
    gate_bias: Param,
    out: Param,
    out_bias: Param,
}

/// What one step of time left behind for the way back.
struct Step {
    seen: Vec<f32>,
    /// Input, forget, cell, output gates, one after another.
    gates: Vec<f32>,
    cell: Vec<f32>,
    hidden: Vec<f32>,
}

impl Net {
    /// Fresh weights; the forget gates begin open.
    pub fn new(shape: Shape, seed: u64) -> Self {
        let mut draw = SmallRng::seed_from_u64(seed);
        let Shape { services, channels, filters, hidden } = shape;
        let wide = services * filters + hidden;
        let mut net = Self {
            shape,
            filters: Param::new(filters * channels * KERNEL, channels * KERNEL, &mut draw),
            filter_bias: Param::new(filters, 0, &mut draw),
            gates: Param::new(4 * hidden * wide, wide, &mut draw),
            gate_bias: Param::new(4 * hidden, 0, &mut draw),
            out: Param::new(services * hidden, hidden, &mut draw),
            out_bias: Param::new(services, 0, &mut draw),
        };
        net.gate_bias.value[hidden..2 * hidden].fill(1.0);
        net
    }

    /// P(culprit) of every service.
    pub fn predict(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        self.logits(&self.forward(inputs)).into_iter().map(sigmoid).collect()
    }

    /// Learns `samples` in `epochs` rounds at learning rate `rate`; the mean loss of the last round.
    pub fn train(&mut self, samples: &[Sample], epochs: usize, rate: f32, seed: u64) -> f32 {
        let mut draw = SmallRng::seed_from_u64(seed);
        let mut order: Vec<usize> = (0..samples.len()).collect();
        let (mut step, mut loss) = (0, 0.0);
        for _ in 0..epochs {
            order.shuffle(&mut draw);
            loss = 0.0;
            for batch in order.chunks(BATCH) {
                loss += batch.iter().map(|sample| self.learn(&samples[*sample])).sum::<f32>();
                step += 1;
                for param in self.params() {
                    param.step(rate, step, batch.len());
                }
            }
        }
        loss / samples.len().max(1) as f32
    }

    fn params(&mut self) -> [&mut Param; 6] {
        let Self { filters, filter_bias, gates, gate_bias, out, out_bias, .. } = self;
        [filters, filter_bias, gates, gate_bias, out, out_bias]
    }

    /// Binary cross entropy of `sample`, summed over services; adds its gradients.
    fn learn(&mut self, sample: &Sample) -> f32 {
        let steps = self.forward(&sample.inputs);
        let Some(last) = steps.last() else { return 0.0 };
        let (hidden, mut loss, mut back) = (self.shape.hidden, 0.0, vec![0.0; self.shape.hidden]);
        for (service, (logit, target)) in self.logits(&steps).into_iter().zip(&sample.targets).enumerate() {
            loss += logit.max(0.0) - logit * target + (-logit.abs()).exp().ln_1p();
            let error = sigmoid(logit) - target;
            self.out_bias.gradient[service] += error;
            let row = service * hidden..(service + 1) * hidden;
            add(&mut self.out.gradient[row.clone()], error, &last.hidden);
            add(&mut back, error, &self.out.value[row]);
        }
        self.backward(&sample.inputs, &steps, back);
        loss
    }

    fn logits(&self, steps: &[Step]) -> Vec<f32> {
        let none = vec![0.0; self.shape.hidden];
        let hidden = steps.last().map_or(&none, |step| &step.hidden);
        let rows = self.out.value.chunks_exact(self.shape.hidden);
        rows.zip(&self.out_bias.value).map(|(row, bias)| bias + dot(row, hidden)).collect()
    }

    fn forward(&self, inputs: &[Vec<f32>]) -> Vec<Step> {
        let hidden = self.shape.hidden;
        let mut steps: Vec<Step> = Vec::with_capacity(inputs.len());
        for input in inputs {
            let mut seen = self.convolve(input);
            let none = vec![0.0; hidden];
            let (before, cell_before) = steps.last().map_or((&none, &none), |step| (&step.hidden, &step.cell));
            seen.extend(before);
            let rows = self.gates.value.chunks_exact(seen.len()).zip(&self.gate_bias.value).enumerate();
            let gates: Vec<f32> = rows
                .map(|(place, (row, bias))| {
                    let value = bias + dot(row, &seen);
                    if place / hidden == 2 { value.tanh() } else { sigmoid(value) }
                })
                .collect();
            let gate = |number: usize, unit: usize| gates[number * hidden + unit];
            let cell: Vec<f32> = (0..hidden).map(|u| gate(1, u) * cell_before[u] + gate(0, u) * gate(2, u)).collect();
            let out = (0..hidden).map(|u| gate(3, u) * cell[u].tanh()).collect();
            steps.push(Step { seen, gates, cell, hidden: out });
        }
        steps
    }

    /// Filters over `input`, after the rectifier; `[filter * services + service]`.
    fn convolve(&self, input: &[f32]) -> Vec<f32> {
        let Shape { services, filters, .. } = self.shape;
        let mut out = Vec::with_capacity(filters * services + self.shape.hidden);
        for filter in 0..filters {
            for service in 0..services {
                let mut value = self.filter_bias.value[filter];
                self.each_tap(filter, service, |weight, place| value += self.filters.value[weight] * input[place]);
                out.push(value.max(0.0));
            }
        }
        out
    }

    /// Calls `tap` with the number of each weight of `filter` at `service` and the number of the input it weighs.
    fn each_tap(&self, filter: usize, service: usize, mut tap: impl FnMut(usize, usize)) {
        let Shape { services, channels, .. } = self.shape;
        for channel in 0..channels {
            for k in 0..KERNEL {
                let at = service + k;
                if at >= KERNEL / 2 && at - KERNEL / 2 < services {
                    tap((filter * channels + channel) * KERNEL + k, channel * services + at - KERNEL / 2);
                }
            }
        }
    }

    /// Adds the gradients of everything before the output; `back` is the loss by the last hidden state.
    fn backward(&mut self, inputs: &[Vec<f32>], steps: &[Step], mut back: Vec<f32>) {
        let hidden = self.shape.hidden;
        let mut cell_back = vec![0.0; hidden];
        for (place, step) in steps.iter().enumerate().rev() {
            let none = vec![0.0; hidden];
            let cell_before = place.checked_sub(1).map_or(&none, |before| &steps[before].cell);
            let errors = gate_errors(step, cell_before, &back, &mut cell_back, hidden);
            let mut seen_back = vec![0.0; step.seen.len()];
            for (row, error) in errors.iter().enumerate() {
                let span = row * step.seen.len()..(row + 1) * step.seen.len();
                self.gate_bias.gradient[row] += error;
                add(&mut self.gates.gradient[span.clone()], *error, &step.seen);
                add(&mut seen_back, *error, &self.gates.value[span]);
            }
            back = seen_back.split_off(seen_back.len() - hidden);
            self.convolve_back(&inputs[place], step, &seen_back);
        }
    }

    fn convolve_back(&mut self, input: &[f32], step: &Step, back: &[f32]) {
        let services = self.shape.services;
        let mut gradient = std::mem::take(&mut self.filters.gradient);
        for (place, error) in back.iter().enumerate().filter(|(place, _)| step.seen[*place] > 0.0) {
            let (filter, service) = (place / services, place % services);
            self.filter_bias.gradient[filter] += error;
            self.each_tap(filter, service, |weight, from| gradient[weight] += error * input[from]);
        }
        self.filters.gradient = gradient;
    }
}

/// The loss by the gates before their squashing; carries `cell_back` one step of time back.
fn gate_errors(step: &Step, cell_before: &[f32], back: &[f32], cell_back: &mut [f32], hidden: usize) -> Vec<f32> {
    let mut errors = vec![0.0; 4 * hidden];
    for unit in 0..hidden {
        let [input, forget, cell, output] = [0, 1, 2, 3].map(|gate| step.gates[gate * hidden + unit]);
        let squashed = step.cell[unit].tanh();
        let by_cell = cell_back[unit] + back[unit] * output * (1.0 - squashed * squashed);
        errors[unit] = by_cell * cell * input * (1.0 - input);
        errors[hidden + unit] = by_cell * cell_before[unit] * forget * (1.0 - forget);
        errors[2 * hidden + unit] = by_cell * input * (1.0 - cell * cell);
        errors[3 * hidden + unit] = back[unit] * squashed * output * (1.0 - output);
        cell_back[unit] = by_cell * forget;
    }
    errors
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// `into += factor * values`.
fn add(into: &mut [f32], factor: f32, values: &[f32]) {
    into.iter_mut().zip(values).for_each(|(to, value)| *to += factor * value);
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    const SHAPE: Shape = Shape { services: 4, channels: 2, filters: 3, hidden: 5 };

    fn sample(draw: &mut SmallRng, culprit: usize) -> Sample {
        let mut inputs: Vec<Vec<f32>> =
            (0..3).map(|_| (0..8).map(|_| draw.random_range(-0.5..0.5)).collect()).collect();
        inputs.iter_mut().skip(1).for_each(|step| step[culprit] += 2.0);
        Sample { inputs, targets: (0..4).map(|service| f32::from(u8::from(service == culprit))).collect() }
    }

    #[test]
    fn gradients_agree_with_differences() {
        let mut draw = SmallRng::seed_from_u64(3);
        let sample = sample(&mut draw, 1);
        let mut net = Net::new(SHAPE, 5);
        net.learn(&sample);
        let gradients: Vec<Vec<f32>> = net.params().into_iter().map(|param| param.gradient.clone()).collect();
        for (block, gradient) in gradients.iter().enumerate() {
            for place in (0..gradient.len()).step_by(1 + gradient.len() / 12) {
                let mut loss = |by: f32| {
                    net.params()[block].value[place] += by;
                    let loss = net.learn(&sample);
                    net.params()[block].value[place] -= by;
                    loss
                };
                let difference = (loss(1e-2) - loss(-1e-2)) / 2e-2;
                let error = (difference - gradient[place]).abs();
                assert!(
                    error < 2e-3 + 0.03 * difference.abs(),
                    "block {block}, {place}: {difference} {}",
                    gradient[place]
                );
            }
        }
    }

    #[test]
    fn the_culprit_is_learnt_from_its_own_numbers() {
        let mut draw = SmallRng::seed_from_u64(3);
        let samples: Vec<Sample> = (0..80).map(|i| sample(&mut draw, i % 4)).collect();
        let mut net = Net::new(SHAPE, 5);
        let loss = net.train(&samples, 60, 1e-2, 1);
        assert!(loss < 0.2, "{loss}");
        for culprit in 0..4 {
            let predicted = net.predict(&sample(&mut draw, culprit).inputs);
            assert!(
                predicted.iter().enumerate().all(|(service, p)| (*p > 0.5) == (service == culprit)),
                "{predicted:?}"
            );
        }
    }
}
