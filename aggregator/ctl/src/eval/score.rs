//! Scores: AC@k and resource accuracy. Pure.

use super::folder::Truth;

/// Depth of Avg@5.
const DEPTH: usize = 5;

/// Scores of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Share of the true services among the first k, at most min(k, true ones): AC@1 to AC@5.
    pub ac: [f64; DEPTH],
    /// Whether the resource is right; `None` when the truth does not say.
    pub resource: Option<bool>,
}

impl Score {
    /// Scores `ranking` and `resource` by `truth`. A service named twice counts once.
    pub fn of(truth: &Truth, ranking: &[String], resource: Option<&str>) -> Self {
        let mut first: Vec<&String> = Vec::new();
        for service in ranking {
            if !first.contains(&service) {
                first.push(service);
            }
        }
        let hits =
            |k: usize| truth.services.iter().filter(|own| first.iter().take(k).any(|named| named == own)).count();
        let mut ac = [0.0; DEPTH];
        for (at, score) in ac.iter_mut().enumerate() {
            let possible = truth.services.len().min(at + 1);
            *score = if possible == 0 { 0.0 } else { hits(at + 1).min(possible) as f64 / possible as f64 };
        }
        let resource = (truth.resource != "unknown").then(|| resource == Some(truth.resource.as_str()));
        Self { ac, resource }
    }

    /// Whether service and resource are both right; `None` when the truth does not name a resource.
    pub fn both(&self) -> Option<bool> {
        self.resource.map(|is_right| is_right && self.ac[0] >= 1.0)
    }
}

/// Means over several answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// AC@1, AC@3, AC@5, Avg@5.
    pub ac: [f64; 4],
    /// Share of right resources where the truth names one.
    pub resource: Option<f64>,
    /// Share with both service and resource right, likewise.
    pub both: Option<f64>,
}

impl Summary {
    /// The means; `None` of nothing.
    pub fn of(scores: &[Score]) -> Option<Self> {
        let count = scores.len();
        let mean = |pick: &dyn Fn(&Score) -> f64| scores.iter().map(pick).sum::<f64>() / count as f64;
        let share = |flags: Vec<bool>| {
            (!flags.is_empty()).then(|| flags.iter().filter(|flag| **flag).count() as f64 / flags.len() as f64)
        };
        (count > 0).then(|| Self {
            count,
            ac: [
                mean(&|score| score.ac[0]),
                mean(&|score| score.ac[2]),
                mean(&|score| score.ac[4]),
                mean(&|score| score.ac.iter().sum::<f64>() / DEPTH as f64),
            ],
            resource: share(scores.iter().filter_map(|score| score.resource).collect()),
            both: share(scores.iter().filter_map(Score::both).collect()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(services: &[&str], resource: &str) -> Truth {
        let services = services.iter().map(|name| (*name).to_owned()).collect();
        Truth { services, resource: resource.to_owned(), fault_type: "x".to_owned() }
    }

    fn named(services: &[&str]) -> Vec<String> {
        services.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_rank_of_the_culprit_decides() {
        let score = Score::of(&truth(&["b"], "cpu"), &named(&["a", "a", "b"]), Some("cpu"));
        assert_eq!(score.ac, [0.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!((score.resource, score.both()), (Some(true), Some(false)));
    }

    #[test]
    fn two_culprits_count_half_each_once_two_places_are_given() {
        let score = Score::of(&truth(&["a", "b"], "unknown"), &named(&["a", "c", "b"]), None);
        assert_eq!(score.ac, [1.0, 0.5, 1.0, 1.0, 1.0]);
        assert_eq!(score.resource, None);
    }

    #[test]
    fn a_missing_answer_is_a_miss() {
        let miss = Score::of(&truth(&["a"], "cpu"), &[], None);
        let hit = Score::of(&truth(&["a"], "cpu"), &named(&["a"]), Some("cpu"));
        let summary = Summary::of(&[miss, hit]).expect("two");
        assert_eq!((summary.ac, summary.both), ([0.5; 4], Some(0.5)));
        assert_eq!(Summary::of(&[]), None);
    }
}
