//! Sage itself, and Sage without one of its parts.

use anyhow::Context as _;
use sage_causal::{
    Model, TrainOptions,
    observation::Observation,
    train,
    verdict::{Verdict, VerdictKind},
};
use sage_common::Slo;

use crate::eval::{
    system::{Answer, AnswerKind, Label, System},
    view::violation,
};

/// How to train.
#[derive(Clone, Copy, Debug, Default)]
pub struct SageOptions {
    /// The same seed and history give the same model.
    pub seed: u64,
    /// What it has to do without.
    pub without: Option<Without>,
}

/// A part that an ablation takes away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Without {
    /// No nets: the linear prior alone.
    Nets,
    /// No sampled traces: distributions are composed along the learnt structures.
    Traces,
    /// Neither traces nor structures: call counts stand in.
    Structure,
    /// No usage metrics.
    Metrics,
    /// No gaps: the queues and links between spans are not seen apart from the spans.
    Gaps,
}

impl Without {
    /// Every ablation that the model's inputs allow.
    pub const ALL: [Self; 5] = [Self::Nets, Self::Traces, Self::Structure, Self::Metrics, Self::Gaps];

    /// Its name in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nets => "sage-without-nets",
            Self::Traces => "sage-without-traces",
            Self::Structure => "sage-without-structure",
            Self::Metrics => "sage-without-metrics",
            Self::Gaps => "sage-without-gaps",
        }
    }

    /// The ablation called `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|without| without.name() == name)
    }

    /// `window` without it.
    fn strip(self, window: &Observation) -> Observation {
        let mut window = window.clone();
        match self {
            Self::Nets => {}
            Self::Traces => window.traces.clear(),
            Self::Structure => {
                window.traces.clear();
                window.skeletons.clear();
            }
            Self::Metrics => {
                for service in &mut window.services {
                    service.instances.iter_mut().for_each(|instance| instance.metrics.clear());
                }
            }
            Self::Gaps => {
                window.edges.iter_mut().for_each(|edge| edge.gap = None);
                // A trace's gap is the difference of its two spans: without the client's there is none.
                for call in window.traces.iter_mut().flat_map(|trace| &mut trace.calls) {
                    call.client_us = call.server_us.or(call.client_us);
                }
            }
        }
        window
    }
}

/// `sage_causal` behind the interface that every system has.
pub struct Sage {
    options: SageOptions,
    model: Option<Model>,
}

impl Sage {
    /// Untrained.
    pub fn new(options: SageOptions) -> Self {
        Self { options, model: None }
    }

    /// Untrained, and without one of its parts.
    pub fn without(without: Without, seed: u64) -> Self {
        Self::new(SageOptions { seed, without: Some(without) })
    }

    /// The trained model.
    pub fn model(&self) -> Option<&Model> {
        self.model.as_ref()
    }

    /// The model's own words for the newest violation in `recent`; `None` before it is trained.
    pub fn verdict(&self, recent: &[Observation], slo: &Slo) -> Option<Verdict> {
        Some(self.model()?.diagnose(&self.seen(recent), slo))
    }

    /// The windows as this variant sees them.
    fn seen<'a>(&self, windows: &'a [Observation]) -> std::borrow::Cow<'a, [Observation]> {
        match self.options.without {
            None | Some(Without::Nets) => windows.into(),
            Some(without) => windows.iter().map(|window| without.strip(window)).collect::<Vec<_>>().into(),
        }
    }
}

impl System for Sage {
    fn name(&self) -> &'static str {
        self.options.without.map_or("sage", Without::name)
    }

    fn train(&mut self, history: &[Observation], slo: &Slo, _labels: &[Label]) -> anyhow::Result<()> {
        let mut options = TrainOptions { seed: self.options.seed, ..TrainOptions::default() };
        if self.options.without == Some(Without::Nets) {
            options.cvae_windows_min = usize::MAX;
        }
        let history = self.seen(history);
        let (model, _) = train(&history, std::slice::from_ref(slo), None, &options).context("sage cannot learn")?;
        self.model = Some(model);
        Ok(())
    }

    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer {
        if violation(recent, slo).is_empty() {
            return Answer::none(AnswerKind::Nothing);
        }
        self.verdict(recent, slo).map_or_else(|| Answer::none(AnswerKind::Unknown), |verdict| answer(&verdict))
    }
}

/// A verdict in the words of the evaluation.
pub fn answer(verdict: &Verdict) -> Answer {
    let set = verdict.culprits.iter().map(|culprit| (culprit.service.clone(), Some(culprit.resource))).collect();
    let answer = Answer::culprits(set, verdict.candidates.iter().map(|candidate| candidate.service.clone()));
    let kind = match verdict.kind {
        VerdictKind::Culprit | VerdictKind::Partial => AnswerKind::Culprit,
        VerdictKind::Demand => AnswerKind::Demand,
        VerdictKind::Unknown => AnswerKind::Unknown,
    };
    let us = |micros: sage_common::Micros| micros.get() as f64;
    let singles = verdict.candidates.iter().map(|c| (c.service.clone(), us(c.counterfactual)));
    let instances = verdict.culprits.iter().filter_map(|c| Some((c.service.clone(), c.instance.clone()?))).collect();
    let counterfactual_us = Some(us(verdict.counterfactual));
    Answer { kind, instances, counterfactual_us, singles_us: singles.collect(), ..answer }
}

#[cfg(test)]
mod tests {
    use sage_causal::{
        testing::{Fault, World},
        verdict::Resource,
    };

    use super::*;
    use crate::eval::systems::support::{answer, names};

    #[test]
    fn sage_names_a_starved_tier_and_its_processor() {
        let world = World::chain();
        let answer = answer(&world, &mut Sage::new(SageOptions::default()), &[Fault::Cpu(2, 15.0)]);
        assert_eq!((names(&answer), answer.set[0].1), (vec!["logic"], Some(Resource::Cpu)), "{answer:?}");
        assert!(answer.counterfactual_us.expect("predicted") < world.slo().target.get() as f64);
        assert_eq!(answer.ranking[0].as_str(), "logic");
    }

    #[test]
    fn without_a_part_a_plain_case_is_still_answered() {
        for without in [Without::Nets, Without::Traces, Without::Structure, Without::Metrics] {
            let answer = answer(&World::chain(), &mut Sage::without(without, 0), &[Fault::Slow(3, 20.0)]);
            assert_eq!(names(&answer), ["store"], "{without:?}: {answer:?}");
        }
    }
}
