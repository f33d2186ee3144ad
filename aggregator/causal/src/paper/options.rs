//! What the papers leave open, and the few repairs that the design study found to help most.

use serde::{Deserialize, Serialize};

use crate::gvae::{CvaeOptions, Norm};

/// On which scale latencies and metrics enter the nets, before they are standardised.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum LatencyScale {
    /// As measured: microseconds, shares, bytes.
    Plain,
    /// Logarithms.
    Logs,
}

/// What becomes of the latent variables in a counterfactual.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Latents {
    /// Kept from abduction: the noise that the posterior found, on the prior of the intervened metrics.
    Kept,
    /// What the prior expects, given the metrics.
    Expected,
}

/// How to train and ask a [`PaperModel`](crate::paper::PaperModel).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaperOptions {
    /// The nets' own options. The same seed and history give the same model. The number of layers is set from the number
    /// of inputs, three to five.
    pub cvae: CvaeOptions,
    /// Scale of latencies and metrics.
    pub scale: LatencyScale,
    /// Whether metrics that rise because of others are inputs.
    pub has_effect_metrics: bool,
    /// Latent variables of counterfactuals.
    pub latents: Latents,
    /// Whether what the decoders leave unexplained of the observed window is carried over.
    pub keeps_residual: bool,
}

impl Default for PaperOptions {
    fn default() -> Self {
        Self::as_written()
    }
}

impl PaperOptions {
    /// As the papers write it: batch normalisation, no short cut from inputs to outputs, every metric an input. They do not
    /// name their normalisation; logarithms did better in the study.
    pub fn as_written() -> Self {
        let cvae = CvaeOptions {
            epochs: 60,
            latent: 8,
            beta: 0.5,
            norm: Norm::Batch,
            has_skip: false,
            ..CvaeOptions::default()
        };
        Self {
            cvae,
            scale: LatencyScale::Logs,
            has_effect_metrics: true,
            latents: Latents::Kept,
            keeps_residual: false,
        }
    }

    /// With the best repairs of the study: no effect metrics, a linear short cut, layer normalisation, a smaller z that is
    /// taken from the prior.
    pub fn mended() -> Self {
        let cvae = CvaeOptions { epochs: 60, latent: 4, beta: 0.02, ..CvaeOptions::default() };
        Self { cvae, has_effect_metrics: false, latents: Latents::Expected, ..Self::as_written() }
    }

    /// The same with another seed.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { cvae: CvaeOptions { seed, ..self.cvae }, ..self }
    }

    /// Fully connected layers for so many inputs: three to five, "depending on the input node number".
    pub(super) fn layers(inputs: usize) -> usize {
        match inputs {
            0..=96 => 3,
            97..=384 => 4,
            _ => 5,
        }
    }
}
