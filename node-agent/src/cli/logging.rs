//! Logs of `run`, to standard error: `SAGE_LOG` filters, `SAGE_LOG_FORMAT` shapes, `NO_COLOR` takes the colours away.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What is logged without `SAGE_LOG`.
const DEFAULT_FILTER: &str = "info";

/// Starts logging. A filter that cannot be understood is the default one, with a warning.
pub fn start() {
    let wanted = std::env::var("SAGE_LOG").unwrap_or_else(|_| DEFAULT_FILTER.to_owned());
    let (filter, problem) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(DEFAULT_FILTER), Some(error)),
    };
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(!is_plain && std::io::stderr().is_terminal());
    let is_json = std::env::var("SAGE_LOG_FORMAT").is_ok_and(|format| format == "json");
    // Only a second start could fail, and there is none.
    let _ = if is_json { builder.json().try_init() } else { builder.try_init() };
    if let Some(error) = problem {
        tracing::warn!(%error, wanted, "SAGE_LOG is not understood");
    }
}
