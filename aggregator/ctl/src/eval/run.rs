//! One evaluation: the recording passes, each incident is answered, then everything is scored.

use std::collections::BTreeMap;

use sage_causal::verdict::VerdictKind;
use sage_common::ServiceId;
use serde::Serialize;

use super::{
    baro::baro,
    baseline::{self, Ranked},
    desk::{Desk, Reply},
    folder::Folder,
    score::{Score, Summary},
};
use crate::replay::{
    feed::Source,
    merge::{ReadError, Recording},
    streams::Streams,
    study::{Answer, CONFIDENT, StudyError},
    time,
};

/// Services of a ranking that are written.
const RANKING_MAX: usize = 10;

/// Services whose added time is told.
const ADDED_MAX: usize = 3;

/// One answer as it is written: the form that scoring tools read, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The incident.
    pub id: String,
    /// Services as the recording writes them, the likeliest culprit first.
    pub ranking: Vec<String>,
    /// `cpu`, `memory`, `disk`, `network` or `software`; none when nobody is named.
    pub resource: Option<String>,
    /// `culprit`, `partial`, `demand`, `unknown`, or why there is none.
    pub verdict: String,
    /// How sure the verdict is of what it names.
    pub p: f64,
    /// What was asked about, in words.
    pub why: Vec<String>,
}

/// A method of the table.
#[derive(Clone, Debug)]
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// One score per incident of the folder.
    pub scores: Vec<Score>,
}

/// Everything an evaluation gives.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// One prediction per incident, in the order of the folder.
    pub predictions: Vec<Prediction>,
    /// Ours first.
    pub methods: Vec<Method>,
}

/// Runs `recording` past the incidents of `folder`. `progress` is told of each answer.
///
/// # Errors
///
/// [`ReadError`] when the recording is read strictly.
pub fn run(
    folder: &Folder,
    recording: &mut Recording,
    streams: &mut Streams,
    mut progress: impl FnMut(&Prediction),
) -> Result<Evaluation, ReadError> {
    let mut desk = Desk::new(&folder.incidents, &folder.normal);
    let mut answered: BTreeMap<usize, Answered> = BTreeMap::new();
    let mut keep = |replies: Vec<Reply>, streams: &Streams| {
        for reply in replies {
            let answer = Answered::of(&folder.incidents[reply.case.number].id, &reply, streams);
            progress(&answer.prediction);
            answered.insert(reply.case.number, answer);
        }
    };
    while let Some(finished) = recording.step(streams)? {
        keep(desk.take(&finished, streams), streams);
    }
    let finished = streams.finish();
    keep(desk.take(&finished, streams), streams);
    keep(desk.finish(streams), streams);
    Ok(scored(folder, streams, &answered))
}

/// What all methods say of one incident.
struct Answered {
    prediction: Prediction,
    n_sigma: Ranked,
    baro: Ranked,
    self_time: Ranked,
}

impl Answered {
    fn of(id: &str, reply: &Reply, streams: &Streams) -> Self {
        let case = &reply.case;
        let prediction = match &reply.answer {
            Ok(answer) => prediction(id, answer, reply.source, streams),
            Err(error) => nothing(id, error),
        };
        Self {
            prediction,
            n_sigma: baseline::n_sigma(&case.training, &case.period),
            baro: baro(&case.training, &case.period),
            self_time: baseline::self_time(&case.training, &case.period),
        }
    }
}

fn prediction(id: &str, answer: &Answer, source: Source, streams: &Streams) -> Prediction {
    let ranking: Vec<String> =
        answer.ranking.iter().take(RANKING_MAX).map(|service| streams.written(service)).collect();
    let verdict = &answer.verdict;
    let mut why = vec![format!(
        "{}: {} in {} windows where {} is normal in {}; asked with a target of {}",
        answer.slo.name, answer.observed, answer.period, answer.normal, answer.training, answer.slo.target
    )];
    why.push(format!("{} at {}, P {:.2}", verdict.counterfactual, time::format(verdict.window), verdict.p_restored));
    if source == Source::Metrics {
        why.push("latencies are of recorded percentiles, because spans do not suffice".to_owned());
    }
    let added: Vec<String> = answer
        .adding()
        .take(ADDED_MAX)
        .map(|(service, us)| format!("{} {:.1} ms", streams.written(service), us / 1e3))
        .collect();
    if !added.is_empty() {
        why.push(format!("added to a request in the mean: {}", added.join(", ")));
    }
    why.extend(verdict.missing.iter().cloned());
    Prediction {
        id: id.to_owned(),
        ranking,
        resource: answer.resource.map(|resource| format!("{resource:?}").to_lowercase()),
        verdict: if answer.is_by_failures { "culprit" } else { kind(verdict.kind) }.to_owned(),
        p: (answer.p * 1e4).round() / 1e4,
        why,
    }
}

fn nothing(id: &str, error: &StudyError) -> Prediction {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    Prediction {
        id: id.to_owned(),
        ranking: Vec::new(),
        resource: None,
        verdict: "unknown".to_owned(),
        p: 0.0,
        why: vec![format!("{error}{source}")],
    }
}

/// The kind in one word.
pub fn kind(kind: VerdictKind) -> &'static str {
    match kind {
        VerdictKind::Culprit => "culprit",
        VerdictKind::Partial => "partial",
        VerdictKind::Demand => "demand",
        VerdictKind::Unknown => "unknown",
    }
}

fn scored(folder: &Folder, streams: &Streams, answered: &BTreeMap<usize, Answered>) -> Evaluation {
    let names = |ranked: &[ServiceId]| ranked.iter().map(|service| streams.written(service)).collect::<Vec<_>>();
    let score = |number: usize, ranked: &Ranked| {
        let resource = ranked.resource.map(|resource| format!("{resource:?}").to_lowercase());
        Score::of(&folder.incidents[number].truth, &names(&ranked.ranking), resource.as_deref())
    };
    let [mut ours, mut n_sigma, mut baro, mut self_time] = [const { Vec::new() }; 4];
    let mut predictions = Vec::new();
    for (number, incident) in folder.incidents.iter().enumerate() {
        let Some(answer) = answered.get(&number) else { continue };
        let own = &answer.prediction;
        ours.push(Score::of(&incident.truth, &own.ranking, own.resource.as_deref()));
        n_sigma.push(score(number, &answer.n_sigma));
        baro.push(score(number, &answer.baro));
        self_time.push(score(number, &answer.self_time));
        predictions.push(own.clone());
    }
    let methods = vec![
        Method { name: "sage", scores: ours },
        Method { name: "n-sigma", scores: n_sigma },
        Method { name: "baro", scores: baro },
        Method { name: "self-time z", scores: self_time },
    ];
    Evaluation { predictions, methods }
}

impl Evaluation {
    /// The table: each method over all incidents, those of a resource, and each kind of fault.
    pub fn table(&self, folder: &Folder) -> String {
        let mut text = format!(
            "{:<34}{:>4} {:>6} {:>6} {:>6} {:>6} {:>9} {:>6}\n",
            "", "n", "AC@1", "AC@3", "AC@5", "Avg@5", "resource", "both"
        );
        let faults: std::collections::BTreeSet<&str> =
            folder.incidents.iter().map(|incident| incident.truth.fault_type.as_str()).collect();
        for method in &self.methods {
            text += &format!("{}\n", method.name);
            let mut line = |label: &str, is_in: &dyn Fn(usize) -> bool| {
                let scores: Vec<Score> =
                    method.scores.iter().enumerate().filter(|(at, _)| is_in(*at)).map(|(_, score)| *score).collect();
                if let Some(summary) = Summary::of(&scores) {
                    text += &row(label, &summary);
                }
            };
            let truth = |at: usize| &folder.incidents[at].truth;
            line("all", &|_| true);
            line("resource faults", &|at| ["cpu", "memory", "disk", "network"].contains(&truth(at).resource.as_str()));
            for fault in &faults {
                line(&format!("  {fault}"), &|at| truth(at).fault_type == *fault);
            }
        }
        text
    }

    /// How often it named somebody with confidence, and how often that was wrong.
    pub fn confidence(&self) -> (usize, usize) {
        let confident = self.predictions.iter().zip(&self.methods[0].scores).filter(|(own, _)| own.p >= CONFIDENT);
        let wrong = confident.clone().filter(|(_, score)| score.ac[0] < 1.0).count();
        (confident.count(), wrong)
    }
}

fn row(label: &str, summary: &Summary) -> String {
    let [first, third, fifth, average] = summary.ac;
    let share = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    format!(
        "  {label:<32}{:>4} {first:>6.3} {third:>6.3} {fifth:>6.3} {average:>6.3} {:>9} {:>6}\n",
        summary.count,
        share(summary.resource),
        share(summary.both)
    )
}
