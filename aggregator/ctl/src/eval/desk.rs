//! Answers for periods as they pass, from spans, and from recorded percentiles where spans do not suffice.

use std::collections::BTreeMap;

use sage_common::{ServiceId, Slo};

use super::{
    collect::{Case, Collector},
    folder::Labelled,
};
use crate::replay::{
    feed::{Feed, Source},
    streams::{Finished, Streams},
    study::{Answer, StudyError, answer, answer_by_means},
    time::Period,
};

/// One period with what is said of it.
#[derive(Debug)]
pub struct Reply {
    /// What it was answered from.
    pub case: Case,
    /// What the latencies came from.
    pub source: Source,
    /// The answer.
    pub answer: Result<Answer, StudyError>,
}

/// Periods answered from percentiles that are kept back in case spans tell more: each holds its windows. Spans come within
/// minutes of them, or not at all.
const SPARE_MAX: usize = 64;

/// Periods that wait for an answer.
#[derive(Debug)]
pub struct Desk {
    spans: Collector,
    metrics: Collector,
    unanswered: BTreeMap<usize, (Case, StudyError)>, // from spans there is none
    spare: BTreeMap<usize, Case>,                    // from percentiles, until it is known whether they are needed
    answered: Vec<bool>,
    alarmed: Vec<Option<ServiceId>>,
}

impl Desk {
    /// For `incidents`, of which only the times are looked at, and healthy periods.
    pub fn new(incidents: &[Labelled], normal: &[Period]) -> Self {
        Self {
            spans: Collector::new(incidents, normal),
            metrics: Collector::new(incidents, normal),
            unanswered: BTreeMap::new(),
            spare: BTreeMap::new(),
            alarmed: incidents.iter().map(|own| own.alarmed.as_deref().map(ServiceId::sanitized)).collect(),
            answered: vec![false; incidents.len()],
        }
    }

    /// Takes finished windows and gives what can be answered now.
    pub fn take(&mut self, finished: &Finished, streams: &Streams) -> Vec<Reply> {
        let mut replies = Vec::new();
        for window in &finished.spans {
            let cases = self.spans.take(window);
            replies.extend(cases.into_iter().filter_map(|case| self.by_spans(case, streams)));
        }
        for window in &finished.metrics {
            let cases = self.metrics.take(window);
            replies.extend(cases.into_iter().filter_map(|case| self.by_metrics(case, streams)));
        }
        replies
    }

    /// Answers the rest.
    pub fn finish(&mut self, streams: &Streams) -> Vec<Reply> {
        let mut replies = Vec::new();
        let cases = self.spans.finish();
        replies.extend(cases.into_iter().filter_map(|case| self.by_spans(case, streams)));
        let cases = self.metrics.finish();
        replies.extend(cases.into_iter().filter_map(|case| self.by_metrics(case, streams)));
        let unanswered = std::mem::take(&mut self.unanswered);
        replies.extend(unanswered.into_values().map(|(case, error)| Reply {
            case,
            source: Source::Spans,
            answer: Err(error),
        }));
        replies
    }

    /// The objectives to ask about: those of the service whose alarm was raised, if requests enter there.
    fn slos(&self, number: usize, feed: &Feed) -> Vec<Slo> {
        let slos = feed.slos();
        let Some(alarmed) = &self.alarmed[number] else { return slos };
        let own: Vec<Slo> = slos.iter().filter(|slo| slo.service == *alarmed).cloned().collect();
        if own.is_empty() { slos } else { own }
    }

    fn by_spans(&mut self, case: Case, streams: &Streams) -> Option<Reply> {
        let number = case.number;
        if self.answered[number] {
            return None;
        }
        match answer(&case.training, &case.period, &self.slos(number, &streams.spans)) {
            Ok(answer) => {
                self.spare.remove(&number);
                self.answered[number] = true;
                Some(Reply { case, source: Source::Spans, answer: Ok(answer) })
            }
            Err(error) => {
                self.unanswered.insert(number, (case, error));
                let spare = self.spare.remove(&number)?;
                self.by_metrics(spare, streams)
            }
        }
    }

    fn by_metrics(&mut self, case: Case, streams: &Streams) -> Option<Reply> {
        let number = case.number;
        if self.answered[number] {
            return None;
        }
        if self.unanswered.contains_key(&number) {
            return self.instead(case, streams);
        }
        self.spare.insert(number, case);
        if self.spare.len() <= SPARE_MAX {
            return None;
        }
        let (_, oldest) = self.spare.pop_first()?;
        self.instead(oldest, streams)
    }

    fn instead(&mut self, case: Case, streams: &Streams) -> Option<Reply> {
        let answer = answer_by_means(&case.training, &case.period, &self.slos(case.number, &streams.metrics)).ok()?;
        self.unanswered.remove(&case.number);
        self.answered[case.number] = true;
        Some(Reply { case, source: Source::Metrics, answer: Ok(answer) })
    }
}
