//! From scores to a named set: everybody who scores enough, in itself and against the first.

use sage_causal::verdict::Resource;
use sage_common::ServiceId;

use super::system::Answer;

/// Services a set may hold: the operator reads no more.
pub const MEMBERS_MAX: usize = 4;

/// When a service is named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// Least score.
    pub least: f64,
    /// Least part of the first one's score. Above 1 only the first is named.
    pub share: f64,
}

/// One suspect.
#[derive(Clone, Debug)]
pub struct Suspect {
    /// The service.
    pub service: ServiceId,
    /// How far it is off; higher is worse.
    pub score: f64,
    /// What of it, as far as the system says.
    pub resource: Option<Resource>,
}

/// Ranks `suspects` and names those that `rule` picks. Ties go by name.
pub fn select(mut suspects: Vec<Suspect>, rule: Selection) -> Answer {
    suspects.retain(|suspect| suspect.score.is_finite());
    suspects.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.service.cmp(&b.service)));
    let first = suspects.first().map_or(0.0, |suspect| suspect.score);
    let is_named = |(place, suspect): &(usize, &Suspect)| {
        suspect.score >= rule.least && (*place == 0 || suspect.score >= rule.share * first)
    };
    let named = suspects.iter().enumerate().filter(is_named).take(MEMBERS_MAX);
    let set = named.map(|(_, suspect)| (suspect.service.clone(), suspect.resource)).collect();
    Answer::culprits(set, suspects.iter().map(|suspect| suspect.service.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspect(name: &str, score: f64) -> Suspect {
        Suspect { service: ServiceId::sanitized(name), score, resource: None }
    }

    fn named(rule: Selection) -> Vec<String> {
        let answer =
            select(vec![suspect("a", 2.0), suspect("b", 9.0), suspect("c", 6.0), suspect("d", f64::NAN)], rule);
        assert_eq!(answer.ranking.len(), 3);
        answer.set.iter().map(|(service, _)| service.to_string()).collect()
    }

    #[test]
    fn a_set_holds_who_scores_enough_in_itself_and_against_the_first() {
        assert_eq!(named(Selection { least: 3.0, share: 0.0 }), ["b", "c"]);
        assert_eq!(named(Selection { least: 0.0, share: 0.7 }), ["b"]);
        assert_eq!(named(Selection { least: 0.0, share: 2.0 }), ["b"]);
        assert!(named(Selection { least: 10.0, share: 0.0 }).is_empty());
    }
}
