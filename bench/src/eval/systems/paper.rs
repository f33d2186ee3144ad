//! Sage as its papers write it: a chain of CVAEs along the causal network, metrics set to their normal, greedy sets.

use anyhow::Context as _;
use sage_causal::{
    observation::Observation,
    paper::{PaperModel, PaperOptions},
};
use sage_common::Slo;

use super::sage::answer;
use crate::eval::{
    system::{Answer, AnswerKind, Label, System},
    view::violation,
};

/// The reference that Sage is measured against.
pub struct Paper {
    name: &'static str,
    options: PaperOptions,
    model: Option<PaperModel>,
}

impl Paper {
    /// As written.
    pub fn as_written(seed: u64) -> Self {
        Self { name: "paper", options: PaperOptions::as_written().with_seed(seed), model: None }
    }

    /// With the best repairs of the design study.
    pub fn mended(seed: u64) -> Self {
        Self { name: "paper-mended", options: PaperOptions::mended().with_seed(seed), model: None }
    }

    /// The trained model.
    pub fn model(&self) -> Option<&PaperModel> {
        self.model.as_ref()
    }
}

impl System for Paper {
    fn name(&self) -> &'static str {
        self.name
    }

    fn train(&mut self, history: &[Observation], slo: &Slo, _labels: &[Label]) -> anyhow::Result<()> {
        let trained = PaperModel::train(history, std::slice::from_ref(slo), None, &self.options);
        self.model = Some(trained.context("the papers' model cannot learn")?.0);
        Ok(())
    }

    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer {
        let Some(model) = self.model().filter(|_| !violation(recent, slo).is_empty()) else {
            return Answer::none(AnswerKind::Nothing);
        };
        answer(&model.diagnose(recent, slo))
    }
}

#[cfg(test)]
mod tests {
    use sage_causal::testing::{Fault, World};

    use super::*;
    use crate::eval::systems::support::{answer, names};

    #[test]
    fn a_starved_leaf_whose_metrics_show_it_is_found_by_setting_them_back() {
        let told = answer(&World::chain(), &mut Paper::mended(1), &[Fault::Cpu(4, 15.0)]);
        assert_eq!(names(&told).first(), Some(&"disk"), "{told:?}");
    }
}
