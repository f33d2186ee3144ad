//! Where topologies come from: the files built into the program, or a path.
#![expect(clippy::disallowed_methods, reason = "a topology may be named by its path")]

use std::{io, path::PathBuf};

use thiserror::Error;

use super::{Problem, Topology, problems};

/// The built-in files: name and text.
pub const BUILT_IN: [(&str, &str); 6] = [
    ("demo", include_str!("../../topologies/demo.json")),
    ("chain", include_str!("../../topologies/chain.json")),
    ("fanout", include_str!("../../topologies/fanout.json")),
    ("hotel_reservation", include_str!("../../topologies/hotel_reservation.json")),
    ("media_service", include_str!("../../topologies/media_service.json")),
    ("social_network", include_str!("../../topologies/social_network.json")),
];

/// Why a topology cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// Neither a built-in name nor a readable file.
    #[error("cannot read topology {path} (built in are: {known})")]
    Read {
        /// What was asked for.
        path: PathBuf,
        /// The built-in names.
        known: String,
        /// Why not.
        source: io::Error,
    },
    /// Not the shape of `topology/1`.
    #[error("{origin}: {path}: {message}")]
    Syntax {
        /// The file.
        origin: String,
        /// JSON path of the place.
        path: String,
        /// What is wrong there.
        message: String,
    },
    /// The right shape with impossible content.
    #[error("{origin} is not a valid topology:{}", list(problems))]
    Invalid {
        /// The file.
        origin: String,
        /// Everything that is wrong.
        problems: Vec<Problem>,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// The topology called `name`: built in, or else the file at that path.
///
/// # Errors
///
/// [`TopologyError`], naming the JSON path of every fault.
pub fn load(name: &str) -> Result<Topology, TopologyError> {
    if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
        return parse(text, name);
    }
    let text = std::fs::read_to_string(name).map_err(|source| TopologyError::Read {
        path: name.into(),
        known: BUILT_IN.map(|(known, _)| known).join(", "),
        source,
    })?;
    parse(&text, name)
}

/// Reads and checks the JSON `text`; `origin` names it in errors.
///
/// # Errors
///
/// [`TopologyError::Syntax`] or [`TopologyError::Invalid`].
pub fn parse(text: &str, origin: &str) -> Result<Topology, TopologyError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let topology: Topology = serde_path_to_error::deserialize(&mut json).map_err(|error| TopologyError::Syntax {
        origin: origin.to_owned(),
        path: error.path().to_string(),
        message: error.inner().to_string(),
    })?;
    let problems = problems(&topology);
    if problems.is_empty() { Ok(topology) } else { Err(TopologyError::Invalid { origin: origin.to_owned(), problems }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_file_is_valid_and_named_after_itself() {
        for (name, text) in BUILT_IN {
            let topology = parse(text, name).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(topology.name, name);
        }
    }

    #[test]
    fn a_wrong_shape_is_reported_with_its_json_path() {
        let text = BUILT_IN[2].1.replacen("\"cpu_cores\": 4", "\"cpu_cores\": \"four\"", 1);
        let error = parse(&text, "broken.json").expect_err("a string is no number").to_string();
        assert!(error.contains("broken.json: services[0].cpu_cores: invalid type"), "{error}");
    }

    #[test]
    fn an_unknown_name_lists_the_built_in_ones() {
        let error = load("no_such_application").expect_err("no such file").to_string();
        assert!(error.contains("demo, chain, fanout"), "{error}");
    }
}
