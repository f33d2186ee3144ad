#![expect(clippy::disallowed_methods, reason = "a driver: certificates live in files and begin now")]
//! `sage-aggregator pki`: the fleet's certificate authority in a directory, so that nobody writes openssl commands.
//!
//! What a certificate says is decided by [`sage_protocol::pki`]; here are only the files, their modes and the clock.
//! Keys are written with mode 0600, and nothing is ever overwritten: a lost authority cannot be made again.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use clap::{Args, Subcommand, ValueEnum};
use sage_common::{InvalidName, Micros, NodeId, Timestamp};
use sage_protocol::{
    identity::{FleetName, IdentityError, Role},
    pki::{FleetCa, PkiError, Validity},
};
use thiserror::Error;

/// Taken off the beginning, so that machines whose clocks lag accept a new certificate at once.
const BACKDATED: Micros = Micros::from_secs(3_600);

/// Certificates of the fleet.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make the authority of a new fleet: DIR/ca.pem and DIR/ca.key.
    Init(InitArgs),
    /// Make a certificate: DIR/NAME.pem and DIR/NAME.key.
    Issue(IssueArgs),
}

/// Arguments of `pki init`.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// Name of the fleet.
    #[arg(long, value_name = "NAME")]
    fleet: String,
    /// Where the files go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long the authority is valid.
    #[arg(long, value_name = "N", default_value_t = 3_650)]
    days: u32,
}

/// Arguments of `pki issue`.
#[derive(Args, Debug)]
pub struct IssueArgs {
    /// For what.
    #[arg(value_enum)]
    role: Holder,
    /// The node an agent runs on, or the aggregator's name.
    name: String,
    /// Directory of the authority, from `pki init`.
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// Where the files go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A further IP address or DNS name; may be repeated.
    #[arg(long = "san", value_name = "IP_OR_DNS")]
    names: Vec<String>,
    /// How long the certificate is valid.
    #[arg(long, value_name = "N", default_value_t = 365)]
    days: u32,
}

/// For what a certificate is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Holder {
    /// The agent of one node.
    Agent,
    /// An aggregator.
    Aggregator,
}

impl From<Holder> for Role {
    fn from(holder: Holder) -> Self {
        match holder {
            Holder::Agent => Self::Agent,
            Holder::Aggregator => Self::Aggregator,
        }
    }
}

/// Why there is no certificate.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PkiCliError {
    /// Not a fleet's name.
    #[error("--fleet")]
    Fleet(#[source] IdentityError),
    /// Not a node's or aggregator's name.
    #[error("NAME")]
    Name(#[source] InvalidName),
    /// The certificate could not be made.
    #[error("cannot make the certificate")]
    Pki(#[from] PkiError),
    /// A file is there already.
    #[error("{0} exists already and is not overwritten: choose another --out, or move it away")]
    Exists(PathBuf),
    /// The authority is not where it should be.
    #[error("cannot read the authority's {path}; make one with: sage-aggregator pki init")]
    Authority {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file system said no.
    #[error("cannot {action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Runs `command` and hands back what to tell the operator.
///
/// # Errors
///
/// [`PkiCliError`]; no key is left behind without its certificate.
pub fn run(command: &PkiCommand) -> Result<String, PkiCliError> {
    match command {
        PkiCommand::Init(arguments) => init(arguments),
        PkiCommand::Issue(arguments) => issue(arguments),
    }
}

fn init(arguments: &InitArgs) -> Result<String, PkiCliError> {
    let InitArgs { fleet, out, days } = arguments;
    let fleet: FleetName = fleet.parse().map_err(PkiCliError::Fleet)?;
    let ca = FleetCa::create(fleet, validity(*days))?;
    let (certificate, key) = write_pair(out, "ca", ca.certificate_pem(), &ca.key_pem())?;
    Ok(format!(
        "authority of fleet {}:\n  {}  goes to every machine\n  {}  is secret: keep it here, or offline\n",
        ca.fleet(),
        certificate.display(),
        key.display(),
    ))
}

fn issue(arguments: &IssueArgs) -> Result<String, PkiCliError> {
    let IssueArgs { role, name, ca, out, names, days } = arguments;
    let node: NodeId = name.parse().map_err(PkiCliError::Name)?;
    let authority = |file: &str| {
        let path = ca.join(file);
        std::fs::read_to_string(&path).map_err(|source| PkiCliError::Authority { path, source })
    };
    let ca = FleetCa::load(&authority("ca.pem")?, &authority("ca.key")?)?;
    let issued = ca.issue((*role).into(), &node, names, validity(*days))?;
    let (certificate, key) = write_pair(out, name, &issued.certificate_pem, &issued.key_pem)?;
    Ok(format!(
        "{} for spiffe://{}/{}/{name}\n{}\n",
        certificate.display(),
        ca.fleet(),
        Role::from(*role),
        key.display()
    ))
}

fn validity(days: u32) -> Validity {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Validity { not_before: Timestamp::from_micros(Micros::from(now).get()) - BACKDATED, days }
}

/// Writes both files; the certificate is taken back when the key cannot be written.
fn write_pair(dir: &Path, name: &str, certificate: &str, key: &str) -> Result<(PathBuf, PathBuf), PkiCliError> {
    std::fs::create_dir_all(dir).map_err(|source| PkiCliError::Io {
        action: "create",
        path: dir.to_owned(),
        source,
    })?;
    let (certificate_path, key_path) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    write_new(&certificate_path, certificate, 0o644)?;
    write_new(&key_path, key, 0o600).inspect_err(|_| {
        // What we just made; if it cannot be removed, the error about the key says more.
        let _ = std::fs::remove_file(&certificate_path);
    })?;
    Ok((certificate_path, key_path))
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiCliError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = opened.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiCliError::Exists(path.to_owned()),
        _ => PkiCliError::Io { action: "create", path: path.to_owned(), source },
    })?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|source| {
        // Half a key is worse than none.
        let _ = std::fs::remove_file(path);
        PkiCliError::Io { action: "write", path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use sage_protocol::tls::TlsMaterial;

    use super::*;

    fn init_in(dir: &Path) -> Result<String, PkiCliError> {
        run(&PkiCommand::Init(InitArgs { fleet: "local".into(), out: dir.to_owned(), days: 30 }))
    }

    fn issue_in(dir: &Path, role: Holder, name: &str) -> Result<String, PkiCliError> {
        let (ca, out) = (dir.to_owned(), dir.to_owned());
        let names = vec!["127.0.0.1".to_owned()];
        run(&PkiCommand::Issue(IssueArgs { role, name: name.into(), ca, out, names, days: 30 }))
    }

    #[test]
    fn certificates_are_issued_that_the_transport_accepts() {
        let dir = tempfile::tempdir().expect("tmp");
        init_in(dir.path()).expect("made");
        for (holder, name) in [(Holder::Agent, "node-a"), (Holder::Aggregator, "aggregator-1")] {
            let said = issue_in(dir.path(), holder, name).expect("issued");
            assert!(said.contains(&format!("spiffe://local/{}/{name}", Role::from(holder))), "{said}");
            let read = |file: &str| std::fs::read(dir.path().join(file)).expect("written");
            let (pem, key) = (read(&format!("{name}.pem")), read(&format!("{name}.key")));
            let material = TlsMaterial::from_pem(&read("ca.pem"), &pem, &key).expect("usable");
            material.require(holder.into(), validity(1).not_before + BACKDATED).expect("valid now");
        }
    }

    #[test]
    fn keys_are_for_their_owner_only_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().expect("tmp");
        init_in(dir.path()).expect("made");
        let key = dir.path().join("ca.key");
        assert_eq!(std::fs::metadata(&key).expect("there").permissions().mode() & 0o777, 0o600);
        let before = std::fs::read(&key).expect("there");
        assert!(matches!(init_in(dir.path()), Err(PkiCliError::Exists(_))));
        assert_eq!(std::fs::read(&key).expect("there"), before);
    }

    #[test]
    fn a_missing_authority_says_how_to_make_one() {
        let dir = tempfile::tempdir().expect("tmp");
        let error = issue_in(dir.path(), Holder::Agent, "node-a").expect_err("no authority").to_string();
        assert!(error.contains("ca.pem") && error.contains("pki init"), "{error}");
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().expect("tmp");
        init_in(dir.path()).expect("made");
        assert!(matches!(issue_in(dir.path(), Holder::Agent, "../x"), Err(PkiCliError::Name(_))));
    }
}
