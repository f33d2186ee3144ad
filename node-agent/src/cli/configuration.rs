//! `config validate|show`, and the file behind every other verb.

#![expect(clippy::disallowed_methods, reason = "driver: reads the configuration file")]

use std::{
    io,
    path::{Path, PathBuf},
};

use sage_common::ConfigError;
use thiserror::Error;

use super::HEALTHY;
use crate::{
    config::{Config, Settings},
    policy::{PolicyError, loader::load_dir},
};

/// The file that is read without `--config`; it need not be there.
const DEFAULT_FILE: &str = "/etc/sage/agent.toml";

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file was named and cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be understood, or means nothing.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
    /// The policy cannot be used.
    #[error("the policy cannot be used")]
    Policy(#[from] PolicyError),
    /// The settings cannot be written as TOML.
    #[error("cannot print the configuration")]
    Print(#[from] toml::ser::Error),
}

/// A configuration as written and as used.
#[derive(Debug)]
pub struct Loaded {
    /// As written, the node's name filled in.
    pub settings: Settings,
    /// As used.
    pub config: Config,
    /// Where it was read, if anywhere.
    pub file: Option<PathBuf>,
}

/// Reads the file that was named, or the default one if it is there.
///
/// # Errors
///
/// [`LoadError`].
pub fn load(named: Option<&Path>) -> Result<Loaded, LoadError> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let (text, file) = match std::fs::read_to_string(path) {
        Ok(text) => (text, Some(path.to_owned())),
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => (String::new(), None),
        Err(source) => return Err(LoadError::File { path: path.to_owned(), source }),
    };
    let mut settings = Settings::parse(&text, &path.display().to_string())?;
    let uname = rustix::system::uname();
    let config = settings.clone().validate(&uname.nodename().to_string_lossy())?;
    settings.node = Some(config.node.to_string());
    Ok(Loaded { settings, config, file })
}

/// `config validate`.
///
/// # Errors
///
/// [`LoadError`].
pub fn validate(named: Option<&Path>) -> Result<u8, LoadError> {
    let Loaded { config, file, .. } = load(named)?;
    load_dir(&config.policy_dir)?;
    let origin = file.map_or_else(|| "defaults (no file)".to_owned(), |path| path.display().to_string());
    println!("{origin}: valid; policy in {}: valid", config.policy_dir.display());
    Ok(HEALTHY)
}

/// `config show`.
///
/// # Errors
///
/// [`LoadError`].
pub fn show(named: Option<&Path>) -> Result<u8, LoadError> {
    let Loaded { settings, file, .. } = load(named)?;
    let origin = file.map_or_else(|| "no file, all defaults".to_owned(), |path| path.display().to_string());
    println!("# in force, from {origin}\n{}", toml::to_string_pretty(&settings)?.trim_end());
    Ok(HEALTHY)
}
