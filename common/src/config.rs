//! Helpers for configuration files: unknown keys are errors that name the nearest known key.

use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why a configuration cannot be used.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not TOML, a wrong type, or an unknown key.
    #[error("{origin}: {message}")]
    Syntax {
        /// The file, or what else the text came from.
        origin: String,
        /// What is wrong, with line and column, and the nearest known key.
        message: String,
    },
    /// A value that no deployment can mean.
    #[error("{key} = {value}: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What is wrong with it and what to do.
        problem: &'static str,
    },
}

/// Reads `text` (TOML) into `T`; `origin` names the text in errors.
///
/// # Errors
///
/// [`ConfigError::Syntax`] for anything `T` does not accept.
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let message = error.to_string();
        let hint = nearest_key(&message).map_or(String::new(), |key| format!("did you mean `{key}`?"));
        ConfigError::Syntax {
            origin: origin.to_owned(),
            message: format!("{}\n{hint}", message.trim_end()).trim_end().to_owned(),
        }
    })
}

/// The expected key nearest to the unknown one in serde's message, if any is near enough to be a slip.
fn nearest_key(message: &str) -> Option<String> {
    let mut quoted = message.split("unknown field").nth(1)?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    let (distance, key) = quoted.map(|key| (edit_distance(unknown, key), key)).min()?;
    (distance <= unknown.len().div_ceil(2)).then(|| key.to_owned())
}

/// Levenshtein distance in bytes: how far a slip is from what was meant.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        #[serde(default)]
        window_ms: u64,
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = parse::<Example>("windw_ms = 3", "agent.toml").expect_err("unknown key").to_string();
        assert!(error.contains("agent.toml") && error.contains("did you mean `window_ms`?"), "{error}");
        assert_eq!(parse::<Example>("window_ms = 3", "agent.toml").expect("known").window_ms, 3);
    }

    #[test]
    fn edit_distance_counts_single_letter_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
