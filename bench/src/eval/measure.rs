//! How good an answer is, and what many of them come to.

use std::collections::BTreeMap;

use super::{
    case::{Case, Expected, Set, Truth},
    interval,
    results::Row,
    system::{Answer, AnswerKind},
};

/// Ranks up to which AC@k is averaged.
const AVG_RANKS: usize = 5;

/// Upper ends of the bins of severity (latency over target) and their names.
const SEVERITIES: [(f64, &str); 4] =
    [(1.5, "severity:1-1.5"), (3.0, "severity:1.5-3"), (10.0, "severity:3-10"), (f64::INFINITY, "severity:>10")];

/// One measured number of one case.
pub type Measured = (&'static str, f64);

/// Everything that can be said of `answer` against what really happened.
///
/// * `top1`: the first of the ranking is in an acceptable set.
/// * `ac3`, `avg5`: share of the (best fitting) acceptable set in the first k, over what k can hold; mean over k = 1 to 5.
/// * `acc`: the set holds an acceptable set and names only services that were injected.
/// * `exact`: the set is an acceptable set.
/// * `fn`: the set holds no acceptable set. `fp`: it names somebody who was not injected.
/// * `resource`: share of the rightly named services whose resource is right.
/// * `instance`: of faults that struck one replica of a rightly named service, whether that replica was named.
/// * `right`: of cases without a culprit, whether demand was called demand, a met target left alone, and of a draining backlog
///   nobody but its cause blamed; `accused`: whether anybody was blamed all the same.
pub fn measures(truth: &Truth, answer: &Answer) -> Vec<Measured> {
    let set: Set = answer.set.iter().map(|(service, _)| service.clone()).collect();
    if truth.expected != Expected::Culprits {
        let is_right = match truth.expected {
            Expected::Demand => answer.kind == AnswerKind::Demand,
            // Whose backlog drains is no false accusation.
            Expected::Recovery => set.iter().all(|service| truth.injected.iter().any(|i| i.service == *service)),
            _ => set.is_empty(),
        };
        let is_accused = answer.kind == AnswerKind::Culprit && !set.is_empty();
        return vec![("right", yes(is_right)), ("accused", yes(is_accused))];
    }
    let is_injected =
        |service: &sage_common::ServiceId| truth.injected.iter().any(|injected| injected.service == *service);
    let holds = truth.acceptable.iter().any(|needed| needed.is_subset(&set));
    let is_innocent_named = !set.iter().all(is_injected);
    let first = answer.ranking.first();
    let mut measures = vec![
        ("top1", yes(first.is_some_and(|first| truth.acceptable.iter().any(|needed| needed.contains(first))))),
        ("ac3", accuracy_at(truth, answer, 3)),
        ("avg5", (1..=AVG_RANKS).map(|k| accuracy_at(truth, answer, k)).sum::<f64>() / AVG_RANKS as f64),
        ("acc", yes(holds && !is_innocent_named)),
        ("exact", yes(truth.acceptable.contains(&set))),
        ("fn", yes(!holds)),
        ("fp", yes(is_innocent_named)),
    ];
    measures.extend(resource(truth, answer).map(|share| ("resource", share)));
    measures.extend(instance(truth, answer).map(|share| ("instance", share)));
    measures
}

/// Slices that a case belongs to.
pub fn slices(case: &Case) -> Vec<String> {
    let truth = &case.truth;
    let expected = match truth.expected {
        Expected::Demand => return vec!["expect:demand".to_owned()],
        Expected::Nothing => return vec!["expect:nothing".to_owned()],
        Expected::Recovery => return vec!["expect:recovery".to_owned()],
        Expected::Culprits if truth.injected.len() == 1 => "single",
        Expected::Culprits => "double",
    };
    let severity = SEVERITIES.iter().find(|(end, _)| truth.severity <= *end).map_or("severity:>10", |(_, name)| name);
    let mut slices = vec!["all".to_owned(), expected.to_owned(), severity.to_owned()];
    if let [only] = truth.injected.as_slice() {
        slices.push(format!("kind:{}", only.kind));
    }
    slices
}

/// `sum of hits in the first k / min(k, size of the set)`, for the acceptable set that fits best.
///
/// # Source
///
/// AC@k as in the literature on root-cause localisation (for example RCAEval, 2024).
fn accuracy_at(truth: &Truth, answer: &Answer, k: usize) -> f64 {
    let of = |needed: &Set| {
        let hits = answer.ranking.iter().take(k).filter(|service| needed.contains(*service)).count();
        hits as f64 / k.min(needed.len()).max(1) as f64
    };
    truth.acceptable.iter().map(of).fold(0.0, f64::max)
}

/// `None` when no culprit was named, or the system never names resources.
fn resource(truth: &Truth, answer: &Answer) -> Option<f64> {
    let known = answer.set.iter().filter_map(|(service, resource)| {
        let injected = truth.injected.iter().find(|injected| injected.service == *service)?;
        Some(yes(injected.resource == (*resource)?))
    });
    let known: Vec<f64> = known.collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

/// `None` when no rightly named service had one bad replica.
fn instance(truth: &Truth, answer: &Answer) -> Option<f64> {
    let struck = truth.injected.iter().filter_map(|injected| Some((&injected.service, injected.instance.as_ref()?)));
    let known: Vec<f64> = struck
        .filter(|(service, _)| answer.set.iter().any(|(named, _)| named == *service))
        .map(|(service, bad)| yes(answer.instances.iter().any(|(of, named)| of == service && named == bad)))
        .collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

fn yes(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Numbers by (application, system, slice, measure), as they come in.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    values: BTreeMap<(String, String, String, String), Vec<f64>>,
}

impl Tally {
    /// Adds one number.
    pub fn add(&mut self, app: &str, system: &str, slice: &str, measure: &str, value: f64) {
        let key = (app.to_owned(), system.to_owned(), slice.to_owned(), measure.to_owned());
        self.values.entry(key).or_default().push(value);
    }

    /// Adds everything about one answer to one case, in every slice the case belongs to, and in `also`.
    pub fn add_answer(&mut self, app: &str, system: &str, case: &Case, answer: &Answer, also: Option<&str>) {
        let measures = measures(&case.truth, answer);
        for slice in slices(case).iter().map(String::as_str).chain(also) {
            for (measure, value) in &measures {
                self.add(app, system, slice, measure, *value);
            }
        }
    }

    /// The means with their intervals, as rows of `experiment`.
    pub fn rows(&self, experiment: &str, seed: u64) -> Vec<Row> {
        let row = |((app, system, slice, measure), values): (&(String, String, String, String), &Vec<f64>)| {
            let estimate = if measure.starts_with("median_") {
                interval::median(values, seed)?
            } else {
                interval::mean(values, seed)?
            };
            Some(Row {
                experiment: experiment.to_owned(),
                app: app.clone(),
                system: system.clone(),
                slice: slice.clone(),
                measure: measure.clone(),
                value: estimate.value,
                n: values.len(),
                low: estimate.low,
                high: estimate.high,
            })
        };
        self.values.iter().filter_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use sage_causal::verdict::Resource;
    use sage_common::ServiceId;

    use super::*;
    use crate::eval::case::Injected;

    fn id(name: &str) -> ServiceId {
        ServiceId::sanitized(name)
    }

    fn truth(acceptable: &[&[&str]]) -> Truth {
        let injected = ["a", "b"].map(|name| Injected {
            service: id(name),
            resource: Resource::Cpu,
            kind: "cpu".into(),
            instance: None,
        });
        Truth {
            injected: injected.to_vec(),
            acceptable: acceptable.iter().map(|set| set.iter().map(|name| id(name)).collect()).collect(),
            expected: Expected::Culprits,
            severity: 2.0,
            worlds: Vec::new(),
        }
    }

    fn answer(set: &[&str], rest: &[&str]) -> Answer {
        let set = set.iter().map(|name| (id(name), Some(Resource::Cpu))).collect();
        Answer::culprits(set, rest.iter().map(|name| id(name)))
    }

    fn value(truth: &Truth, answer: &Answer, measure: &str) -> f64 {
        measures(truth, answer).into_iter().find(|(name, _)| *name == measure).expect("measured").1
    }

    #[test]
    fn a_set_with_an_unneeded_culprit_is_right_and_not_exact() {
        let (truth, both) = (truth(&[&["a"]]), answer(&["a", "b"], &[]));
        let of = |measure| value(&truth, &both, measure);
        assert_eq!([of("acc"), of("exact"), of("fn"), of("fp"), of("top1")], [1.0, 0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_missed_culprit_is_a_false_negative_and_an_innocent_one_a_false_positive() {
        let (truth, wrong) = (truth(&[&["a", "b"]]), answer(&["a", "c"], &["b"]));
        let of = |measure| value(&truth, &wrong, measure);
        assert_eq!([of("acc"), of("exact"), of("fn"), of("fp"), of("top1")], [0.0, 0.0, 1.0, 1.0, 1.0]);
        // Ranked a, c, b: AC@1 = 1, AC@2 = 1/2, AC@3 to 5 = 1.
        assert!((of("avg5") - 0.9).abs() < 1e-12 && of("ac3") == 1.0 && of("resource") == 1.0);
    }

    #[test]
    fn load_must_be_called_load_and_a_met_target_left_alone() {
        let innocent = |expected| Truth { expected, injected: Vec::new(), acceptable: Vec::new(), ..truth(&[]) };
        let demand = Answer { kind: AnswerKind::Demand, ..answer(&["a"], &[]) };
        assert_eq!(measures(&innocent(Expected::Demand), &demand), [("right", 1.0), ("accused", 0.0)]);
        assert_eq!(measures(&innocent(Expected::Nothing), &answer(&["a"], &[])), [("right", 0.0), ("accused", 1.0)]);
        let quiet = Answer::none(AnswerKind::Unknown);
        assert_eq!(measures(&innocent(Expected::Nothing), &quiet), [("right", 1.0), ("accused", 0.0)]);
    }

    #[test]
    fn a_tally_gives_a_row_with_its_interval_for_every_slice() {
        let case = Case { number: 0, recent: Vec::new(), truth: truth(&[&["a"]]) };
        let mut tally = Tally::default();
        tally.add_answer("chain", "sage", &case, &answer(&["a"], &[]), None);
        let rows = tally.rows("accuracy", 1);
        let exact: Vec<&Row> = rows.iter().filter(|row| row.measure == "exact").collect();
        let slices: Vec<&str> = exact.iter().map(|row| row.slice.as_str()).collect();
        assert_eq!(slices, ["all", "double", "severity:1.5-3"]);
        assert!(exact.iter().all(|row| row.value == 1.0 && row.n == 1 && row.low < 0.3 && row.high == 1.0));
    }
}
