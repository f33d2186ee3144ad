//! `sagectl`: asks one aggregator over HTTP and writes the answer for people (`table`) or programs (`json`).
//!
//! JSON output and exit codes are an interface; the text for people is not.

pub mod answer;
pub mod client;
mod eval;
pub mod explain;
mod exported;
mod incidents;
pub mod lists;
mod progress;
mod recording;
mod replay;
mod reply;
pub mod spec;
pub mod table;
mod told;
mod whatif;
pub mod words;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use self::{
    answer::{Action, Card, Graph, Incident, Objective, Status, Suggestion},
    client::{Client, ClientError},
    eval::EvalOptions,
    explain::Story,
    incidents::IncidentsOptions,
    replay::ReplayOptions,
    spec::{Spec, SpecError},
    whatif::WhatIfOptions,
};
use sage_aggregator::{
    config::SloSettings,
    incident_file::{format::FileError, replay::ReplayError},
};
use sage_causal::{
    ModelError,
    whatif::{UnknownName, WhatIfError},
};

use crate::{
    eval::folder::FolderError,
    incident_file::IncidentsError,
    replay::{merge::ReadError, names::MapError},
};

/// Ask a Sage aggregator, and steer it.
#[derive(Debug, Parser)]
#[command(name = "sagectl", version, about)]
pub struct Sagectl {
    /// HTTP address of the aggregator.
    #[arg(long, global = true, default_value = "http://127.0.0.1:7480", value_name = "URL")]
    url: String,
    /// How to write the answer.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs: the API's own answer.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The aggregator, its nodes and objectives; exits 0 healthy, 1 degraded, 2 down.
    Status,
    /// Broken targets, newest first.
    Incidents(IncidentsOptions),
    /// The chain of reasoning behind one incident: what broke, why, what was done, what it did.
    Explain {
        /// The incident's number, from `sagectl incidents`.
        #[arg(value_name = "INCIDENT")]
        id: u64,
    },
    Whatif(WhatIfOptions),
    /// Services and who calls whom.
    Graph,
    /// What the model knows of each service: how old its data, how good it is, when it was last learnt and why.
    Model,
    /// Changes made, recommended, or waiting for approval.
    Actions,
    /// Objectives: targets on end-to-end latency.
    #[command(subcommand)]
    Slo(SloCommand),
    /// The brake: give every setting back and take no action until thawed.
    Freeze,
    /// Release the brake.
    Thaw,
    /// Let one waiting action go ahead.
    Approve {
        /// The action's number, from `sagectl actions`.
        #[arg(value_name = "ACTION")]
        id: u64,
    },
    Replay(ReplayOptions),
    Eval(EvalOptions),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum SloCommand {
    /// The objectives and how they stand.
    List,
    /// Propose objectives from history.
    Suggest {
        /// The percentile to set targets on.
        #[arg(long, default_value_t = 99.0)]
        percentile: f64,
    },
    /// Add objectives, or replace those of the same name.
    Set {
        /// `NAME` of a suggestion, or `NAME:SERVICE[:OPERATION]:pP<DURATION`, e.g. `shop:frontend:p99<50ms` (in quotes).
        #[arg(required = true, value_name = "SPEC")]
        specs: Vec<Spec>,
        /// The percentile that suggestions are taken for.
        #[arg(long, default_value_t = 99.0)]
        percentile: f64,
    },
    /// Remove objectives.
    Remove {
        /// Their names.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Why a command did not succeed.
#[derive(Debug, Error)]
enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("no suggestion is called {0:?}; see sagectl slo suggest")]
    UnknownSuggestion(String),
    #[error("no objective is called {0:?}; see sagectl slo list")]
    UnknownObjective(String),
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
    #[error("{0}{cause}", cause = cause(.0))]
    Replay(#[from] ReadError),
    #[error("{0}{cause}", cause = cause(.0))]
    Folder(#[from] FolderError),
    #[error("cannot read {path}: {1}", path = .0.display())]
    File(PathBuf, #[source] io::Error),
    #[error("{path} is no call graph: {1}", path = .0.display())]
    Graph(PathBuf, String),
    #[error("{0}{cause}", cause = cause(.0))]
    Incidents(#[from] IncidentsError),
    #[error(transparent)]
    MapLine(#[from] MapError),
    #[error("{0}")]
    Objective(String),
    #[error("{path}: {1}{cause}", path = .0.display(), cause = cause(.1))]
    IncidentFile(PathBuf, FileError),
    #[error("{path}: {1}", path = .0.display())]
    NoReplay(PathBuf, ReplayError),
    #[error("{path} gives another verdict than it holds", path = .0.display())]
    Differs(PathBuf),
    #[error("cannot write {path}: {1}", path = .0.display())]
    WriteFile(PathBuf, #[source] io::Error),
    #[error("{path}: its model cannot be used: {1}", path = .0.display())]
    Model(PathBuf, #[source] ModelError),
    #[error(transparent)]
    WhatIf(#[from] WhatIfError),
    #[error("{0}; see sagectl graph, or add --untraced for one that is not traced")]
    UnknownCause(UnknownName),
}

/// The cause behind an error, for the end of its line.
fn cause(error: &dyn std::error::Error) -> String {
    error.source().map(|source| format!(": {source}")).unwrap_or_default()
}

/// Exit code of a `status` that is degraded, and of any command that failed.
const EXIT_DEGRADED: u8 = 1;
/// Exit code of a `status` that found nobody, or an aggregator that is down.
const EXIT_DOWN: u8 = 2;

/// Runs `sagectl` with the process's own arguments.
pub fn main() -> ExitCode {
    let arguments = Sagectl::parse();
    let is_status = matches!(arguments.command, Command::Status);
    match arguments.run() {
        Ok(code) => code,
        // `sagectl graph | head` is no failure.
        Err(CliError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sagectl: {error}");
            ExitCode::from(if is_status { EXIT_DOWN } else { EXIT_DEGRADED })
        }
    }
}

impl Sagectl {
    fn run(self) -> Result<ExitCode, CliError> {
        let session = Session { client: Client::new(&self.url), output: self.output };
        match self.command {
            Command::Status => return session.status(),
            Command::Incidents(options) => options.run(&session)?,
            Command::Explain { id } => session.explain(id)?,
            Command::Whatif(options) => options.run(&session)?,
            Command::Model => session.show("/api/v1/models", |cards: &Vec<Card>| lists::cards(cards))?,
            Command::Graph => session.show("/api/v1/graph", |graph: &Graph| lists::graph(graph))?,
            Command::Actions => session.show("/api/v1/actions", |list: &Vec<Action>| lists::actions(list))?,
            Command::Slo(command) => session.slo(command)?,
            Command::Freeze => session.order("/api/v1/freeze", "The brake is on: settings are being given back.")?,
            Command::Thaw => session.order("/api/v1/thaw", "The brake is off.")?,
            Command::Approve { id } => {
                session.order(&format!("/api/v1/actions/{id}/approve"), &format!("Action {id} is approved."))?;
            }
            Command::Replay(options) => options.run(self.output)?,
            Command::Eval(options) => options.run()?,
            Command::Completion { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "sagectl", &mut io::stdout());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One run against one aggregator.
struct Session {
    client: Client,
    output: Output,
}

impl Session {
    fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let value = self.client.get(path)?;
        Ok(self.client.read(path, value)?)
    }

    /// Writes the answer to `GET path`: as it is, or as `text` tells it.
    fn show<T: DeserializeOwned>(&self, path: &str, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        let value = self.client.get(path)?;
        self.write(path, value, text)
    }

    fn write<T: DeserializeOwned>(
        &self,
        path: &str,
        value: Value,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        match self.output {
            Output::Json => put(&format!("{value:#}\n")),
            Output::Table => put(&emphasised(&text(&self.client.read(path, value)?))),
        }
    }

    fn status(&self) -> Result<ExitCode, CliError> {
        let path = "/api/v1/status";
        let value = self.client.get(path)?;
        let status: Status = self.client.read(path, value.clone())?;
        self.write(path, value, lists::status)?;
        Ok(match status.state.as_str() {
            "healthy" => ExitCode::SUCCESS,
            "down" => ExitCode::from(EXIT_DOWN),
            _ => ExitCode::from(EXIT_DEGRADED),
        })
    }

    fn explain(&self, id: u64) -> Result<(), CliError> {
        let path = format!("/api/v1/incidents/{id}");
        let value = self.client.get(&path)?;
        if self.output == Output::Json {
            return put(&format!("{value:#}\n"));
        }
        let incident: Incident = self.client.read(&path, value)?;
        let status: Status = self.fetch("/api/v1/status")?;
        let actions: Vec<Action> = self.fetch("/api/v1/actions")?;
        let mut own: Vec<&Action> = actions.iter().filter(|action| incident.actions.contains(&action.id)).collect();
        own.sort_by_key(|action| action.requested_at_ms);
        let objective = status.slos.iter().find(|slo| slo.name == incident.slo);
        put(&emphasised(&Story { incident: &incident, objective, actions: own }.tell()))
    }

    fn order(&self, path: &str, done: &str) -> Result<(), CliError> {
        let value = self.client.post(path)?;
        match self.output {
            Output::Json => put(&format!("{value:#}\n")),
            Output::Table => put(&format!("{done}\n")),
        }
    }

    fn slo(&self, command: SloCommand) -> Result<(), CliError> {
        match command {
            SloCommand::List if self.output == Output::Json => {
                put(&format!("{:#}\n", self.client.get("/api/v1/status")?["slos"]))
            }
            SloCommand::List => self.show("/api/v1/status", |status: &Status| lists::objectives(&status.slos)),
            SloCommand::Suggest { percentile } => {
                self.show(&suggest_path(percentile), |list: &Vec<Suggestion>| lists::suggestions(list))
            }
            SloCommand::Set { specs, percentile } => self.slo_set(&specs, percentile),
            SloCommand::Remove { names } => {
                let mut slos = self.objectives()?;
                for name in names {
                    let before = slos.len();
                    slos.retain(|slo| slo.name != name);
                    if slos.len() == before {
                        return Err(CliError::UnknownObjective(name));
                    }
                }
                self.replace(&slos)
            }
        }
    }

    fn slo_set(&self, specs: &[Spec], percentile: f64) -> Result<(), CliError> {
        let mut slos = self.objectives()?;
        let suggestions: Vec<Suggestion> = if specs.iter().any(|spec| matches!(spec, Spec::Suggestion(_))) {
            self.fetch(&suggest_path(percentile))?
        } else {
            Vec::new()
        };
        for spec in specs {
            let slo = match spec {
                Spec::Objective(slo) => slo.clone(),
                Spec::Suggestion(name) => suggestions
                    .iter()
                    .find(|suggestion| suggestion.name == *name)
                    .map(adopted)
                    .ok_or_else(|| CliError::UnknownSuggestion(name.clone()))?,
            };
            slos.retain(|old| old.name != slo.name);
            slos.push(slo);
        }
        self.replace(&slos)
    }

    /// The objectives in force, as they are set.
    fn objectives(&self) -> Result<Vec<SloSettings>, CliError> {
        let status: Status = self.fetch("/api/v1/status")?;
        Ok(status.slos.into_iter().map(settings).collect())
    }

    fn replace(&self, slos: &[SloSettings]) -> Result<(), CliError> {
        let body = serde_json::json!(slos);
        let value = self.client.put("/api/v1/slos", &body)?;
        let names: Vec<&str> = slos.iter().map(|slo| slo.name.as_str()).collect();
        match self.output {
            Output::Json => put(&format!("{value:#}\n")),
            Output::Table if names.is_empty() => put("No objective is left: nothing will be diagnosed.\n"),
            Output::Table => put(&format!("Objectives now: {}.\n", names.join(", "))),
        }
    }
}

fn suggest_path(percentile: f64) -> String {
    format!("/api/v1/slo/suggest?percentile={percentile}")
}

fn settings(slo: Objective) -> SloSettings {
    let Objective { name, service, operation, percentile, target_ms, .. } = slo;
    SloSettings { name, service, operation, percentile, target_ms }
}

fn adopted(suggestion: &Suggestion) -> SloSettings {
    let Suggestion { name, service, operation, percentile, target_ms, .. } = suggestion;
    SloSettings {
        name: name.clone(),
        service: service.clone(),
        operation: operation.clone(),
        percentile: *percentile,
        target_ms: *target_ms,
    }
}

fn put(text: &str) -> Result<(), CliError> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// On a terminal that wants it, lines that stand for headings (no indent, after an empty line or first) are bold.
fn emphasised(text: &str) -> String {
    let wants = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if !wants {
        return text.to_owned();
    }
    let mut is_heading = true;
    let mut out = String::new();
    for line in text.lines() {
        if is_heading && !line.is_empty() && !line.starts_with(' ') {
            out += &format!("\x1b[1m{line}\x1b[0m\n");
        } else {
            out += &format!("{line}\n");
        }
        is_heading = line.is_empty();
    }
    out
}
