//! What every system under test is: it learns from a history, and answers for a violation. All see the same windows.

use sage_causal::{observation::Observation, verdict::Resource};
use sage_common::{InstanceId, ServiceId, Slo};

use super::select::Selection;

/// Which services were broken on purpose in one window of the history. Only Seer, which is supervised, learns from these.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// Position of the window in the history.
    pub window: usize,
    /// Who was injected.
    pub services: Vec<ServiceId>,
}

/// What kind of answer it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AnswerKind {
    /// These services are at fault.
    Culprit,
    /// Nobody is: there is more load than the application can take.
    Demand,
    /// The target is broken and the system cannot say by whom.
    Unknown,
    /// The target is met.
    Nothing,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The services held to be at fault, the strongest first, with what of them; `None` where a system does not say.
    pub set: Vec<(ServiceId, Option<Resource>)>,
    /// The bad replica of a named service, where one differs from its siblings.
    pub instances: Vec<(ServiceId, InstanceId)>,
    /// Every suspect, the strongest first, the named ones before all others.
    pub ranking: Vec<ServiceId>,
    /// Kind of answer.
    pub kind: AnswerKind,
    /// The objective's latency the system expects had its set been normal, microseconds; `None` where it predicts none.
    pub counterfactual_us: Option<f64>,
    /// The same for single services, where the system predicts it.
    pub singles_us: Vec<(ServiceId, f64)>,
}

impl Answer {
    /// An answer that accuses nobody.
    pub fn none(kind: AnswerKind) -> Self {
        Self {
            set: Vec::new(),
            instances: Vec::new(),
            ranking: Vec::new(),
            kind,
            counterfactual_us: None,
            singles_us: Vec::new(),
        }
    }

    /// `set` at fault, ranked before the rest of `ranking`; unknown when the set is empty.
    pub fn culprits(set: Vec<(ServiceId, Option<Resource>)>, ranking: impl IntoIterator<Item = ServiceId>) -> Self {
        let mut ranked: Vec<ServiceId> = set.iter().map(|(service, _)| service.clone()).collect();
        for service in ranking {
            if !ranked.contains(&service) {
                ranked.push(service);
            }
        }
        let kind = if set.is_empty() { AnswerKind::Unknown } else { AnswerKind::Culprit };
        Self { set, ranking: ranked, ..Self::none(kind) }
    }
}

/// A system under test.
pub trait System: Send + Sync {
    /// Its name in results.
    fn name(&self) -> &'static str;

    /// Learns from `history`, oldest window first. `labels` say which windows hold injected faults: only a supervised
    /// system may read them.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from learning, for people.
    fn train(&mut self, history: &[Observation], slo: &Slo, labels: &[Label]) -> anyhow::Result<()>;

    /// The rule of whom to name, for tuning; `None` for a system that does not name by score.
    fn selection(&mut self) -> Option<&mut Selection> {
        None
    }

    /// Answers for the newest violation in `recent`, oldest window first.
    fn diagnose(&self, recent: &[Observation], slo: &Slo) -> Answer;
}
