//! The command line: `sage-agent run` and the verbs that talk to it.

mod actions;
mod client;
mod configuration;
mod doctor;
mod logging;
mod status;
mod style;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use thiserror::Error;

use self::{client::ClientError, configuration::load};
use crate::{
    driver::{self, RunError, control::Verb},
    kernel::chain,
};

/// Exit code of a healthy agent and of everything that went well.
const HEALTHY: u8 = 0;
/// Exit code of a degraded agent and of everything that did not.
const DEGRADED: u8 = 1;
/// Exit code when no agent answers.
const DOWN: u8 = 2;

/// Takes spans in, measures usage, ships both to the aggregator, keeps what it changed in the kernel under lease.
#[derive(Debug, Parser)]
#[command(name = "sage-agent", version, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    /// Configuration file [default: /etc/sage/agent.toml, if it is there]
    #[arg(long, global = true, env = "SAGE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: CliVerb,
}

const EXAMPLES: &str = "\
Examples:
  sage-agent config default > /etc/sage/agent.toml   start from a commented file
  sage-agent config validate && sage-agent run       run in the foreground
  sage-agent doctor                                  what works on this machine, and how to get the rest
  sage-agent status --output json | jq .state        for scripts; exit code 0 healthy, 1 degraded, 2 down
  sage-agent freeze                                  give every kernel setting back now, take no commands
  sage-agent actions --last 5                        what was changed lately, and why

Environment: SAGE_CONFIG (as --config), SAGE_LOG (error, warn, info, debug or a filter such as
sage_node_agent=debug), SAGE_LOG_FORMAT (text or json), NO_COLOR.";

#[derive(Debug, Subcommand)]
enum CliVerb {
    /// Run the agent in the foreground until SIGTERM or SIGINT; then everything it changed is given back
    Run,
    /// Show identity, connection, windows, intake, services and leases on one screen
    ///
    /// Exit code: 0 healthy, 1 degraded (not connected, spooling, drops, drift), 2 down (no agent answers).
    Status {
        /// How to show it; json is an interface that does not change
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// List every source of usage and every knob: works, or why not and how to enable it
    ///
    /// Asks the running agent, or looks itself when there is none. Exit code: 0 when
    /// everything that is needed works, 1 when not; what is merely absent on this kernel does not count.
    Doctor {
        /// How to show it
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show what was changed in this machine's kernel lately, from the audit
    Actions {
        /// How to show it
        #[arg(long, value_enum, default_value_t)]
        output: Output,
        /// How many lines of the audit
        #[arg(long, default_value_t = 40, value_name = "N")]
        last: usize,
    },
    /// Pull the brake: give everything back now and refuse new actions until thawed; outlasts restarts
    Freeze,
    /// Release the brake
    Thaw,
    /// Check or show the configuration
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print a completion script, for example: sage-agent completion bash > /etc/bash_completion.d/sage-agent
    Completion {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Check the file and the policy; exit code 0 if the agent would start with them
    Validate,
    /// Print the configuration in force, defaults included
    Show,
    /// Print a commented file with every key and its default
    Default,
}

/// How to show an answer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Table,
    /// For scripts.
    Json,
}

/// Why a verb could not do its work.
#[derive(Debug, Error)]
enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the configuration cannot be used")]
    Config(#[from] configuration::LoadError),
    #[error("the agent has stopped")]
    Run(#[from] RunError),
    #[error("cannot print the answer")]
    Print(#[from] serde_json::Error),
}

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.dispatch() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("sage-agent: {}", chain(&error));
            let is_down = matches!(error, CliError::Client(ClientError::Down { .. }));
            ExitCode::from(if is_down { DOWN } else { DEGRADED })
        }
    }
}

impl Cli {
    fn dispatch(self) -> Result<u8, CliError> {
        let config = self.config;
        match self.verb {
            CliVerb::Run => {
                logging::start();
                driver::run(load(config.as_deref())?.config)?;
                Ok(HEALTHY)
            }
            CliVerb::Status { output } => status::show(&load(config.as_deref())?.config, output),
            CliVerb::Doctor { output } => doctor::show(&load(config.as_deref())?.config, output),
            CliVerb::Actions { output, last } => actions::show(&load(config.as_deref())?.config, output, last),
            CliVerb::Freeze => actions::brake(&load(config.as_deref())?.config, Verb::Freeze),
            CliVerb::Thaw => actions::brake(&load(config.as_deref())?.config, Verb::Thaw),
            CliVerb::Config(ConfigVerb::Validate) => configuration::validate(config.as_deref()).map_err(Into::into),
            CliVerb::Config(ConfigVerb::Show) => configuration::show(config.as_deref()).map_err(Into::into),
            CliVerb::Config(ConfigVerb::Default) => {
                print!("{}", crate::config::DEFAULT_TOML);
                Ok(HEALTHY)
            }
            CliVerb::Completion { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "sage-agent", &mut std::io::stdout());
                Ok(HEALTHY)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_of_the_interface_is_understood() {
        let lines = [
            "run",
            "status --output json",
            "doctor",
            "actions --last 3 --output table",
            "freeze",
            "thaw",
            "config validate",
            "config show",
            "config default",
            "completion bash",
            "--config /tmp/a.toml status",
            "status --config /tmp/a.toml",
        ];
        for line in lines {
            let words = std::iter::once("sage-agent").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }
}
