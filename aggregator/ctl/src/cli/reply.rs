//! What is said of one period of a recording.

use sage_common::ServiceId;
use serde_json::{Value, json};

use super::{explain, words};
use crate::{
    eval::{desk::Reply, run::kind},
    replay::{
        feed::Source,
        streams::Streams,
        study::{Answer, StudyError},
        time::{self, Period},
    },
};

/// Ranked services that are shown.
const SHOWN: usize = 5;

/// One period and what is said of it.
pub(super) struct Said {
    pub(super) period: Period,
    pub(super) source: Source,
    pub(super) answer: Result<Answer, StudyError>,
}

impl Said {
    pub(super) fn of(reply: Reply, periods: &[Period]) -> Self {
        Self { period: periods[reply.case.number], source: reply.source, answer: reply.answer }
    }

    pub(super) fn json(&self, streams: &Streams) -> Value {
        let period = time::words(&self.period);
        let answer = match &self.answer {
            Ok(answer) => answer,
            Err(error) => return json!({"period": period, "problem": told(error)}),
        };
        json!({
            "period": period,
            "latencies": match self.source { Source::Spans => "spans", Source::Metrics => "metrics" },
            "slo": answer.slo,
            "normal_us": answer.normal,
            "observed_us": answer.observed,
            "ranking": answer.ranking.iter().map(|service| streams.written(service)).collect::<Vec<_>>(),
            "added": answer.adding().map(|(service, us)| json!({"service": streams.written(service), "us": us})).collect::<Vec<_>>(),
            "failing": answer.failing.as_ref().map(|failing| json!({
                "entry": streams.written(&failing.entry),
                "normal": failing.normal,
                "observed": failing.observed,
                "added": failing.added.iter().map(|(service, each)| json!({"service": streams.written(service), "each": each})).collect::<Vec<_>>(),
            })),
            "by": if answer.is_by_failures { "failures" } else { "time" },
            "resource": answer.resource,
            "p": answer.p,
            "windows": {"training": answer.training, "period": answer.period},
            "verdict": answer.verdict,
        })
    }

    pub(super) fn text(&self, streams: &Streams) -> String {
        let title = time::words(&self.period);
        let answer = match &self.answer {
            Ok(answer) => answer,
            Err(error) => return format!("{title}: no answer\n  {}\n", told(error)),
        };
        let name = |service: &ServiceId| streams.written(service);
        let mut text = format!("{title}: {}\n", headline(answer, &name));
        text += &self.what_broke(answer);
        for culprit in &answer.verdict.culprits {
            text += &format!("  culprit: {}\n", describe(culprit, &name));
            text += &explain::proof(culprit);
        }
        if !answer.verdict.path.is_empty() {
            text += &format!("  the way it travelled:\n{}", explain::path(&answer.verdict));
        }
        let next: Vec<String> = answer.ranking.iter().take(SHOWN).map(name).collect();
        text += &format!("  ranking: {}\n", next.join(", "));
        let adds: Vec<String> = answer
            .adding()
            .take(SHOWN)
            .map(|(service, us)| format!("{} {}", name(service), words::millis(us / 1e3)))
            .collect();
        if !adds.is_empty() {
            text += &format!("  time added to a request in the mean: {}\n", adds.join(", "));
        }
        for missing in &answer.verdict.missing {
            text += &format!("  note: {missing}\n");
        }
        text
    }

    fn what_broke(&self, answer: &Answer) -> String {
        let Answer { slo, normal, observed, verdict, .. } = answer;
        let millis = |of: sage_common::Micros| words::millis(of.as_millis_f64());
        let operation = slo.operation.as_ref().map_or(String::new(), |operation| format!(" {operation}"));
        let mut text = format!(
            "  {}{operation}: {} was {}, normally {}; asked with a target of {}\n",
            slo.service,
            words::percentile(slo.percentile),
            millis(*observed),
            millis(*normal),
            millis(slo.target)
        );
        let from = if self.source == Source::Metrics { ", latencies from recorded percentiles" } else { "" };
        text += &format!("  {} windows, learnt from {}{from}\n", answer.period, answer.training);
        text += &format!(
            "  had it been normal: {}, target met with P {:.2}\n",
            millis(verdict.counterfactual),
            verdict.p_restored
        );
        text
    }
}

fn headline(answer: &Answer, name: &dyn Fn(&ServiceId) -> String) -> String {
    if let Some((service, _)) =
        answer.failing.iter().flat_map(|failing| &failing.added).next().filter(|_| answer.is_by_failures)
    {
        return format!("culprit: {}, by its failures, P {:.2}", name(service), answer.p);
    }
    let named: Vec<String> = answer.verdict.culprits.iter().map(|culprit| name(&culprit.service)).collect();
    match named.as_slice() {
        [] => format!("{}: no confident culprit", kind(answer.verdict.kind)),
        names => format!("{}: {}, P {:.2}", kind(answer.verdict.kind), names.join(" and "), answer.p),
    }
}

fn describe(culprit: &sage_causal::verdict::Culprit, name: &dyn Fn(&ServiceId) -> String) -> String {
    let mut text =
        format!("{} ({}, P {:.2})", name(&culprit.service), words::resource(culprit.resource), culprit.p_resource);
    if let Some(other) = &culprit.link_with {
        text += &format!(", or {}: the ends of this link cannot be told apart", name(other));
    }
    if let Some(instance) = &culprit.instance {
        text += &format!(", in replica {instance} only");
    }
    text
}

fn told(error: &StudyError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
