//! The three terms of the objective and the draw of z, each fused and pushed on the tape with its own weight.

use dfdx::tensor::{Tape as _, TensorFromVec};
use rand::{Rng, rngs::SmallRng};
use rand_distr::StandardNormal;

use super::{GvaeError, Matrix, Tape, dense::ShapeOf, lanes};

/// Log-variances are held in this range: outside it a clamp has no slope and e^x leaves the floats.
pub(super) const LN_VAR_RANGE: (f32, f32) = (-8.0, 8.0);
/// Where the Huber loss turns from square to absolute, in standard deviations of y.
const HUBER_DELTA: f32 = 1.0;

/// Mean Huber loss of `y_hat` `(B, D)` over the entries whose `mask` is set, times `weight`.
pub(super) fn huber(y_hat: &Matrix, y: &[f32], mask: &[bool], weight: f32, tape: &mut Tape) -> f32 {
    let mut errors = y_hat.values();
    for ((error, y), present) in errors.iter_mut().zip(y).zip(mask) {
        *error = if *present { *error - y } else { 0.0 };
    }
    let scale = weight / mask.iter().filter(|present| **present).count().max(1) as f32;
    // With c the error cut to the delta, the loss is c (error - c / 2) on both sides of the turn, and c is its slope.
    let cut: Vec<f32> = errors.iter().map(|error| error.clamp(-HUBER_DELTA, HUBER_DELTA)).collect();
    let loss = lanes::dot(&cut, &errors) - 0.5 * lanes::dot(&cut, &cut);
    let key = y_hat.clone();
    tape.add_backward_op(move |grads| {
        let slope = grads.get_or_alloc_mut(&key)?;
        slope.iter_mut().zip(&cut).for_each(|(slope, cut)| *slope += scale * cut);
        Ok(())
    });
    loss * scale
}

/// Mean over the batch of KL(q || p) in nats, times `weight`; `q` and `p` are `(B, 2Z)`: means, then log-variances.
///
/// `0.5 sum(ln vp - ln vq + (vq + (mq - mp)^2) / vp - 1)`. Source: Kingma & Welling, *Auto-Encoding Variational Bayes*,
/// ICLR 2014, appendix B, for two diagonal Gaussians.
pub(super) fn kl(q: &Matrix, p: &Matrix, weight: f32, tape: &mut Tape) -> f32 {
    let ((batch, width), q_values, p_values) = (q.shape_of(), q.values(), p.values());
    let z = width / 2;
    let scale = weight / batch as f32;
    let mut loss = 0.0;
    let (mut q_slope, mut p_slope) = (vec![0.0; q_values.len()], vec![0.0; p_values.len()]);
    for row in 0..batch {
        for col in 0..z {
            let (mean, spread) = (row * width + col, row * width + z + col);
            let (ln_vq, q_inside) = clamped(q_values[spread]);
            let (ln_vp, p_inside) = clamped(p_values[spread]);
            let (ratio, precision) = ((ln_vq - ln_vp).exp(), (-ln_vp).exp());
            let distance = q_values[mean] - p_values[mean];
            let pull = distance * distance * precision;
            loss += 0.5 * (ln_vp - ln_vq + ratio + pull - 1.0);
            q_slope[mean] = scale * distance * precision;
            p_slope[mean] = -q_slope[mean];
            q_slope[spread] = q_inside * scale * 0.5 * (ratio - 1.0);
            p_slope[spread] = p_inside * scale * 0.5 * (1.0 - ratio - pull);
        }
    }
    let (q, p) = (q.clone(), p.clone());
    tape.add_backward_op(move |grads| {
        for (key, slopes) in [(&q, &q_slope), (&p, &p_slope)] {
            for (slope, own) in grads.get_or_alloc_mut(key)?.iter_mut().zip(slopes) {
                *slope += own;
            }
        }
        Ok(())
    });
    loss * scale
}

/// A draw `z = mean + e^(ln_var / 2) eps` of `(B, Z)` from `(B, 2Z)`, differentiable by both.
pub(super) fn draw_latent(moments: &Matrix, draw: &mut SmallRng, tape: &mut Tape) -> Result<Matrix, GvaeError> {
    let ((batch, width), values) = (moments.shape_of(), moments.values());
    let z = width / 2;
    let mut latent = vec![0.0; batch * z];
    let mut spread_slope = vec![0.0; batch * z];
    for index in 0..latent.len() {
        let (row, col) = (index / z, index % z);
        let (ln_var, inside) = clamped(values[row * width + z + col]);
        let noise = (0.5 * ln_var).exp() * draw.sample::<f32, _>(StandardNormal);
        latent[index] = values[row * width + col] + noise;
        spread_slope[index] = inside * 0.5 * noise;
    }
    let latent = moments.device().try_tensor_from_vec(latent, (batch, z))?;
    let (key, out) = (moments.clone(), latent.clone());
    tape.add_backward_op(move |grads| {
        let slopes = grads.get_or_alloc_mut(&out)?.to_vec();
        let into = grads.get_or_alloc_mut(&key)?;
        for (index, slope) in slopes.iter().enumerate() {
            let (row, col) = (index / z, index % z);
            into[row * width + col] += slope;
            into[row * width + z + col] += slope * spread_slope[index];
        }
        Ok(())
    });
    Ok(latent)
}

/// The standard deviation that a log-variance stands for.
pub(super) fn standard_deviation(ln_var: f32) -> f32 {
    (0.5 * clamped(ln_var).0).exp()
}

/// `ln_var` within [`LN_VAR_RANGE`], and 1 where it was inside, 0 where the clamp cut it.
fn clamped(ln_var: f32) -> (f32, f32) {
    let held = ln_var.clamp(LN_VAR_RANGE.0, LN_VAR_RANGE.1);
    (held, if held == ln_var { 1.0 } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use dfdx::{
        tensor::{Cpu, PutTape},
        tensor_ops::Backward,
    };

    use super::*;

    fn matrix(values: &[f32], shape: (usize, usize)) -> Matrix {
        Cpu::default().try_tensor_from_vec(values.to_vec(), shape).expect("shape")
    }

    fn slope_of(tape: Tape, by: &Matrix) -> Vec<f32> {
        let root = by.device().try_tensor_from_vec(vec![0.0], ()).expect("scalar");
        let mut grads = root.put_tape(tape).try_backward().expect("backward");
        grads.get_or_alloc_mut(by).expect("gradient").to_vec()
    }

    #[test]
    fn kl_of_two_gaussians_matches_the_formula_by_hand() {
        // q = N(1, e^0), p = N(0, e^(ln 4)): 0.5 (ln 4 - 0 + (1 + 1) / 4 - 1) = 0.4431
        let q = matrix(&[1.0, 0.0], (1, 2));
        let p = matrix(&[0.0, 4.0_f32.ln()], (1, 2));
        let mut tape = Tape::default();
        let loss = kl(&q, &p, 1.0, &mut tape);
        assert!((loss - 0.443_147).abs() < 1e-5, "{loss}");
        let slope = slope_of(tape, &q);
        assert!((slope[0] - 0.25).abs() < 1e-6 && (slope[1] + 0.375).abs() < 1e-6, "{slope:?}");
    }

    #[test]
    fn absent_targets_cost_nothing_and_pull_nothing() {
        let y_hat = matrix(&[0.5, 100.0, 3.0], (1, 3));
        let mut tape = Tape::default();
        let loss = huber(&y_hat, &[0.0, 0.0, 0.0], &[true, false, true], 1.0, &mut tape);
        assert!((loss - (0.125 + 2.5) / 2.0).abs() < 1e-6, "{loss}");
        assert_eq!(slope_of(tape, &y_hat), [0.25, 0.0, 0.5]);
    }
}
