//! `sagectl incidents`: the list, one incident as a file, and the operator's judgement of it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, Subcommand};
use sage_aggregator::{
    core::TrueCause,
    incident_file::{format, replay},
};
use sage_causal::whatif::{RESOURCES, UnknownName};
use sage_common::ServiceId;
use serde_json::json;

use super::{
    CliError, Output, Session,
    answer::{Graph, Incident},
    lists, put,
};

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct IncidentsOptions {
    /// Only those that are not over.
    #[arg(long)]
    open: bool,
    #[command(subcommand)]
    command: Option<IncidentsCommand>,
}

#[derive(Debug, Subcommand)]
enum IncidentsCommand {
    /// Write one incident to a file: what its verdict was read from, the verdict, the actions, the label.
    ///
    /// `sagectl replay FILE` gives the verdict again from it, `sagectl whatif FILE` asks it questions, `sagectl eval DIR`
    /// scores a folder of such files against their labels.
    Export {
        /// The incident's number.
        #[arg(value_name = "INCIDENT")]
        id: u64,
        /// The file, for example cart-slow.incident.
        file: PathBuf,
        /// Replace the file if it is there.
        #[arg(long)]
        force: bool,
    },
    /// Say what was really at fault; kept with the incident and exported with it.
    Label {
        /// The incident's number.
        #[arg(value_name = "INCIDENT")]
        id: u64,
        /// A service that was at fault, and what of it: cpu, memory, disk, network or software. May be given several times.
        #[arg(long, value_name = "SERVICE[:RESOURCE]", required_unless_present = "clear")]
        truth: Vec<Truth>,
        /// Take the label back.
        #[arg(long, conflicts_with = "truth")]
        clear: bool,
        /// Accept services that the aggregator has not seen.
        #[arg(long)]
        untraced: bool,
    },
}

/// `SERVICE[:RESOURCE]`.
#[derive(Clone, Debug)]
struct Truth(TrueCause);

impl FromStr for Truth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, resource) = text.split_once(':').map_or((text, None), |(service, what)| (service, Some(what)));
        let service = service.parse::<ServiceId>().map_err(|error| error.to_string())?;
        let unknown = |what: &str| {
            UnknownName::new("resource", what, RESOURCES.iter().map(|(name, _)| (*name).to_owned())).to_string()
        };
        let named = |what: &str| {
            RESOURCES.iter().find(|(name, _)| *name == what).map(|(_, resource)| *resource).ok_or_else(|| unknown(what))
        };
        Ok(Self(TrueCause { service, resource: resource.map(named).transpose()? }))
    }
}

impl IncidentsOptions {
    pub(super) fn run(self, session: &Session) -> Result<(), CliError> {
        match self.command {
            None => list(session, self.open),
            Some(IncidentsCommand::Export { id, file, force }) => export(session, id, &file, force),
            Some(IncidentsCommand::Label { id, truth, clear, untraced }) => {
                let causes: Vec<TrueCause> = truth.into_iter().map(|Truth(cause)| cause).collect();
                if !clear && !untraced {
                    check(session, &causes)?;
                }
                label(session, id, &causes)
            }
        }
    }
}

fn list(session: &Session, only_open: bool) -> Result<(), CliError> {
    let path = "/api/v1/incidents";
    let mut value = session.client.get(path)?;
    if let (true, Some(list)) = (only_open, value.as_array_mut()) {
        list.retain(|incident| incident["state"] == "open");
    }
    session.write(path, value, |list: &Vec<Incident>| lists::incidents(list))
}

fn export(session: &Session, id: u64, path: &Path, force: bool) -> Result<(), CliError> {
    let bytes = session.client.get_bytes(&format!("/api/v1/incidents/{id}/export"))?;
    let file = format::read(bytes.as_slice()).map_err(|error| CliError::IncidentFile(path.to_owned(), error))?;
    let replayed = replay::replay(&file);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).create_new(!force);
    let written = options.open(path).and_then(|mut out| out.write_all(&bytes));
    written.map_err(|source| CliError::WriteFile(path.to_owned(), source))?;
    let is_same = replayed.as_ref().is_ok_and(replay::Replayed::is_same);
    if session.output == Output::Json {
        let bytes = bytes.len();
        return put(&format!("{:#}\n", json!({"incident": id, "file": path, "bytes": bytes, "is_same": is_same})));
    }
    let again = match replayed {
        Ok(_) if is_same => "It replays to the same verdict, bit for bit.".to_owned(),
        Ok(_) => format!("Here it replays to another verdict: sagectl replay {}", path.display()),
        Err(error) => format!("It does not replay here: {error}."),
    };
    put(&format!("Incident {id} is in {} ({:.1} kB). {again}\n", path.display(), bytes.len() as f64 / 1e3))
}

fn check(session: &Session, causes: &[TrueCause]) -> Result<(), CliError> {
    let graph: Graph = session.fetch("/api/v1/graph")?;
    for cause in causes {
        let service = cause.service.as_str();
        if graph.services.iter().all(|known| known.name != service) {
            let known = graph.services.into_iter().map(|known| known.name);
            return Err(CliError::UnknownCause(UnknownName::new("service", service, known)));
        }
    }
    Ok(())
}

fn label(session: &Session, id: u64, causes: &[TrueCause]) -> Result<(), CliError> {
    let path = format!("/api/v1/incidents/{id}/label");
    let (value, done) = if causes.is_empty() {
        (session.client.delete(&path)?, format!("Incident {id} has no label any more."))
    } else {
        (session.client.put(&path, &json!(causes))?, format!("Incident {id} is labelled."))
    };
    match session.output {
        Output::Json => put(&format!("{value:#}\n")),
        Output::Table => put(&format!("{done}\n")),
    }
}
