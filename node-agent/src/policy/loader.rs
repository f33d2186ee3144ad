//! Reads `policy.d/*.toml`. A policy decides what a remote leader may do to this machine, so a file that others can
//! write is refused.
#![expect(clippy::disallowed_methods, reason = "driver: reads policy files")]

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use sage_common::ConfigError;
use thiserror::Error;

use super::{Policy, Settings};

/// Why a policy cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file system said no.
    #[error("cannot {action} {path}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody other than root or the agent could have written the file.
    #[error("{path} {problem}: policy must be owned by root or by the agent's user, and written by nobody else")]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Who else.
        problem: String,
    },
    /// More or larger files than any policy needs.
    #[error("{path}: {problem}")]
    TooMuch {
        /// The file or directory.
        path: PathBuf,
        /// Which bound it breaks.
        problem: &'static str,
    },
    /// The text is not a policy.
    #[error(transparent)]
    Invalid(#[from] ConfigError),
}

/// Rules for thousands of services fit in a mebibyte.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// More fragments than any package set drops into one directory.
const FILES_MAX: usize = 256;

/// The policy of every `*.toml` in `dir`, in the order of their names. A directory that is not there is the default
/// policy, under which nothing may be changed.
///
/// # Errors
///
/// [`PolicyError`] if a file cannot be read, trusted or understood: half a policy is none.
pub fn load_dir(dir: &Path) -> Result<Policy, PolicyError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Policy::default()),
        entries => entries.map_err(|source| file_error("list", dir, source))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| file_error("list", dir, source))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    if paths.len() > FILES_MAX {
        return Err(PolicyError::TooMuch { path: dir.to_owned(), problem: "more than 256 policy files" });
    }
    paths.sort();
    let files = paths.iter().map(|path| load_file(path)).collect::<Result<Vec<_>, _>>()?;
    Ok(Settings::merge(files).validate()?)
}

fn load_file(path: &Path) -> Result<Settings, PolicyError> {
    // Of the file that was opened, not of the name: it could be exchanged in between.
    let file = fs::File::open(path).map_err(|source| file_error("open", path, source))?;
    let metadata = file.metadata().map_err(|source| file_error("examine", path, source))?;
    check_owner(path, metadata.uid(), metadata.mode(), rustix::process::geteuid().as_raw())?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(PolicyError::TooMuch { path: path.to_owned(), problem: "larger than 1 MiB" });
    }
    let text =
        io::read_to_string(io::Read::take(file, FILE_BYTES_MAX)).map_err(|source| file_error("read", path, source))?;
    Ok(sage_common::config::parse(&text, &path.display().to_string())?)
}

/// Whether a file owned by `uid` with `mode` can be trusted by an agent that runs as `own_uid`.
///
/// # Errors
///
/// [`PolicyError::Untrusted`] naming who could have written it.
pub fn check_owner(path: &Path, uid: u32, mode: u32, own_uid: u32) -> Result<(), PolicyError> {
    let untrusted = |problem| Err(PolicyError::Untrusted { path: path.to_owned(), problem });
    if uid != 0 && uid != own_uid {
        return untrusted(format!("belongs to user {uid}"));
    }
    if mode & 0o022 != 0 {
        return untrusted(format!("has mode {:04o}", mode & 0o7777));
    }
    Ok(())
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> PolicyError {
    PolicyError::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_root_and_the_agent_itself_may_have_written_policy() {
        let path = Path::new("/etc/sage/policy.d/a.toml");
        for (uid, mode, is_trusted) in [
            (0, 0o100_644, true),
            (7, 0o100_600, true),
            (8, 0o100_644, false),
            (0, 0o100_664, false),
            (0, 0o100_646, false),
        ] {
            assert_eq!(check_owner(path, uid, mode, 7).is_ok(), is_trusted, "{uid} {mode:o}");
        }
    }

    #[test]
    fn a_directory_is_read_in_the_order_of_names_and_other_files_are_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let write = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).expect("write");
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o644)).expect("mode");
        };
        assert_eq!(load_dir(&dir.path().join("absent")).expect("default"), Policy::default());
        write("20.toml", "[defaults]\nlease_max_ms = 2");
        write("10.toml", "[defaults]\nlease_max_ms = 1");
        write("README", "not a policy");
        assert_eq!(load_dir(dir.path()).expect("valid").lease_max().get(), 2_000);

        write("30.toml", "lease = 1");
        let error = load_dir(dir.path()).expect_err("unknown key").to_string();
        assert!(error.contains("30.toml"), "{error}");
        fs::set_permissions(dir.path().join("30.toml"), fs::Permissions::from_mode(0o666)).expect("mode");
        assert!(matches!(load_dir(dir.path()), Err(PolicyError::Untrusted { .. })));
    }
}
