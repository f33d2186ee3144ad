#![expect(clippy::disallowed_methods, reason = "a program: it reads its configuration file")]
//! The aggregator: `run`, and what an operator needs before it runs.

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use sage_aggregator::{
    config::{Config, DEFAULT_TEXT, PATH_DEFAULT, Settings},
    driver,
    pki_cli::{self, PkiCommand},
};
use tracing_subscriber::EnvFilter;

/// Joins the windows of all nodes, learns, names what broke a latency target, and has it put right.
#[derive(Debug, Parser)]
#[command(name = "sage-aggregator", version, about)]
struct Arguments {
    /// Configuration file [default: /etc/sage/aggregator.toml, or built-in defaults without one].
    #[arg(long, global = true, env = "SAGE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Run,
    /// Certificates of the fleet.
    #[command(subcommand)]
    Pki(PkiCommand),
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the file; exits 0 when it can be used.
    Validate,
    /// Print every setting in force.
    Show,
    /// Print the defaults with comments, to start a file from.
    Default,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sage-aggregator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { config, command } = arguments;
    match command {
        Command::Run => serve(config.as_deref()),
        Command::Pki(command) => print(&pki_cli::run(&command)?),
        Command::Config(ConfigCommand::Validate) => {
            let (origin, settings) = load(config.as_deref())?;
            settings.validate().with_context(|| origin.clone())?;
            print(&format!("{origin}: valid\n"))
        }
        Command::Config(ConfigCommand::Show) => {
            let (origin, settings) = load(config.as_deref())?;
            settings.clone().validate().context(origin)?;
            print(&toml::to_string(&settings)?)
        }
        Command::Config(ConfigCommand::Default) => print(DEFAULT_TEXT),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "sage-aggregator", &mut io::stdout());
            Ok(())
        }
    }
}

fn serve(path: Option<&Path>) -> anyhow::Result<()> {
    start_logging();
    let (origin, settings) = load(path)?;
    let config: Config = settings.validate().context(origin)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(driver::run(config))?;
    // Connections that will not end are not waited for.
    runtime.shutdown_background();
    Ok(())
}

/// The settings and where they are from. Without a file at the default place the defaults hold.
fn load(path: Option<&Path>) -> anyhow::Result<(String, Settings)> {
    let (path, is_named) = path.map_or((Path::new(PATH_DEFAULT), false), |path| (path, true));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((path.display().to_string(), Settings::parse(&text, &path.display().to_string())?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => {
            Ok((format!("built-in defaults (no {PATH_DEFAULT})"), Settings::default()))
        }
        Err(error) => Err(error).with_context(|| {
            format!("cannot read {}; write one with: sage-aggregator config default > FILE", path.display())
        }),
    }
}

/// To stderr: `SAGE_LOG` filters, `SAGE_LOG_FORMAT=json` is for machines, `NO_COLOR` is honoured.
fn start_logging() {
    let filter = EnvFilter::try_from_env("SAGE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_json = std::env::var("SAGE_LOG_FORMAT").is_ok_and(|format| format == "json");
    let wants_colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(wants_colour);
    if is_json { builder.json().init() } else { builder.init() }
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // `config default | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
