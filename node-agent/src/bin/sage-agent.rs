//! `sage-agent`: see [`sage_node_agent::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    sage_node_agent::cli::main()
}
