//! Calling Debian's `ip`, `tc` and friends.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs `line` (words split at white space) and returns what it printed.
pub fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command line")?;
    let output = Command::new(program)
        .args(words)
        .output()
        .with_context(|| format!("cannot run `{program}`; on Debian: apt-get install iproute2 util-linux"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
