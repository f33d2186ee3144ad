//! The verdict of a file, given again from its windows and its model by the code that diagnoses in the aggregator.

use sage_causal::verdict::Verdict;
use sage_protocol::codec;
use serde_json::Value;
use thiserror::Error;

use super::IncidentFile;
use crate::{core::Oracle, model::GuardedModel};

/// Differences that are listed: a reader looks at the first few.
const DIFFERENCES_MAX: usize = 40;

/// A verdict given again.
#[derive(Clone, Debug, PartialEq)]
pub struct Replayed {
    /// As the file has it.
    pub recorded: Verdict,
    /// As it is now.
    pub given: Verdict,
    /// Where they differ, the first few; empty when they are the same bit for bit.
    pub differences: Vec<Difference>,
}

/// One difference between two verdicts.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Difference {
    /// The place, for example `culprits[0].p_resource`.
    pub place: String,
    /// As recorded; null where there was nothing.
    pub recorded: Value,
    /// As given now; null where there is nothing.
    pub given: Value,
}

/// Why a file gives no verdict.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ReplayError {
    /// The file is of a live system, not of an incident.
    #[error("the file holds no verdict to compare with")]
    NoVerdict,
    /// The model cannot be read by this release.
    #[error("its model cannot be used: {0}")]
    Model(String),
    /// The model gave no answer.
    #[error("the model gives no answer from these windows")]
    NoAnswer,
}

/// Gives the verdict of `file` again and compares.
///
/// # Errors
///
/// [`ReplayError`].
pub fn replay(file: &IncidentFile) -> Result<Replayed, ReplayError> {
    let recorded = file.story.as_ref().ok_or(ReplayError::NoVerdict)?.verdict.clone();
    let model = GuardedModel::decode(&file.model).map_err(ReplayError::Model)?;
    let given = model.diagnose(&file.windows, &file.slo, file.generation).ok_or(ReplayError::NoAnswer)?;
    let differences = differences(&recorded, &given);
    Ok(Replayed { recorded, given, differences })
}

impl Replayed {
    /// Whether both are the same bit for bit.
    pub fn is_same(&self) -> bool {
        self.differences.is_empty()
    }
}

fn differences(recorded: &Verdict, given: &Verdict) -> Vec<Difference> {
    let bits = |verdict: &Verdict| codec::encode_record(verdict).ok();
    if bits(recorded).is_some_and(|own| Some(own) == bits(given)) {
        return Vec::new();
    }
    let json = |verdict: &Verdict| serde_json::to_value(verdict).unwrap_or_default();
    let mut found = Vec::new();
    compare(String::new(), &json(recorded), &json(given), &mut found);
    if found.is_empty() {
        // Such as two kinds of zero, which read the same.
        found.push(Difference { place: "bits".to_owned(), recorded: Value::Null, given: Value::Null });
    }
    found
}

fn compare(place: String, recorded: &Value, given: &Value, found: &mut Vec<Difference>) {
    if recorded == given || found.len() >= DIFFERENCES_MAX {
        return;
    }
    match (recorded, given) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let [old, new] = [a, b].map(|map| map.get(key).unwrap_or(&Value::Null));
                let dot = if place.is_empty() { "" } else { "." };
                compare(format!("{place}{dot}{key}"), old, new, found);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for at in 0..a.len().max(b.len()) {
                let [old, new] = [a, b].map(|list| list.get(at).unwrap_or(&Value::Null));
                compare(format!("{place}[{at}]"), old, new, found);
            }
        }
        _ => found.push(Difference { place, recorded: recorded.clone(), given: given.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_named_by_their_place() {
        let mut found = Vec::new();
        let old = json!({"kind": "culprit", "culprits": [{"service": "geo"}, {"service": "rate"}], "p": 0.5});
        let new = json!({"kind": "culprit", "culprits": [{"service": "cart"}], "p": 0.25});
        compare(String::new(), &old, &new, &mut found);
        let places: Vec<&str> = found.iter().map(|one| one.place.as_str()).collect();
        assert_eq!(places, ["culprits[0].service", "culprits[1]", "p"]);
    }
}
