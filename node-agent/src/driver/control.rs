//! The Unix socket that the other verbs talk to: one JSON request a line, one JSON response a line.
//!
//! `{"verb":"status"}` is answered by `{"ok":{…}}` or `{"error":"…"}`.

use std::{
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, oneshot},
};

use super::{
    actuation::{ActuatorHandle, Request},
    board::Board,
    clock::monotonic,
    doctor,
};
use crate::config::Config;

/// Longest request: they are all short.
pub const REQUEST_BYTES_MAX: u64 = 4 << 10;
/// Connections served at once; further ones wait.
pub const CONNECTIONS_MAX: usize = 16;
/// Requests a connection may make.
const REQUESTS_MAX: usize = 10_000;
/// How long a connection may say nothing.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long the kernel may take to give everything back.
const BRAKE_MAX: Duration = Duration::from_secs(10);
/// Actions shown at most.
pub const ACTIONS_MAX: usize = 1_000;
/// Bytes of the audit that are looked through for them.
const AUDIT_TAIL_BYTES: u64 = 1 << 20;
/// Owner and group may talk to the daemon.
const MODE: u32 = 0o660;
/// The group of operators, where it exists.
const GROUP: &str = "sage";

/// Something asked of the daemon.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Verb {
    /// A [`super::report::StatusReport`].
    Status,
    /// A [`super::report::DoctorReport`].
    Doctor,
    /// The last lines of the audit, oldest first.
    Actions {
        /// How many.
        last: usize,
    },
    /// Give everything back, refuse what is new.
    Freeze,
    /// Take commands again.
    Thaw,
}

/// What the daemon answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What was asked for.
    Ok(Value),
    /// Why not.
    Error(String),
}

/// Why there is no socket.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Somebody listens there already.
    #[error("another agent answers on {}: stop it, or set another socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is in its place.
    #[error("{} is there and is no socket: move it away", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot make the socket {}", path.display())]
    File {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The listening socket; removes its file when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Listens at `path`. A socket that nobody listens on is replaced, one in use never.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let fail = |source| ControlError::File { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(fail)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ControlError::Occupied { path: path.to_owned() });
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(ControlError::InUse { path: path.to_owned() });
            }
            Ok(_) => std::fs::remove_file(path).map_err(fail)?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(fail)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE)).map_err(fail)?;
        give_to_group(path);
        Ok(Self { listener, path: path.to_owned() })
    }
}

/// Lets the operators' group in, where there is one and we may.
fn give_to_group(path: &Path) {
    #[expect(clippy::disallowed_methods, reason = "driver: reads the list of groups")]
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    if let Some(gid) = group_id(&groups, GROUP)
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(gid))
    {
        tracing::debug!(%error, "the socket stays with our own group");
    }
}

/// The id of `name` in the text of `/etc/group`.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    let mut fields =
        groups.lines().map(|line| line.split(':')).find_map(|mut fields| (fields.next()? == name).then_some(fields))?;
    fields.nth(1)?.parse().ok()
}

/// Answers requests.
#[derive(Debug)]
pub struct Control {
    /// Configuration in force.
    pub config: Arc<Config>,
    /// The board.
    pub board: Arc<Board>,
    /// The way to the brake.
    pub actuator: ActuatorHandle,
}

impl Control {
    /// Serves for ever.
    pub async fn serve(self: Arc<Self>, socket: &Socket) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match socket.listener.accept().await {
                Ok((stream, _)) => {
                    let own = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(error) = own.talk(stream).await {
                            tracing::debug!(%error, "a connection of the control socket broke");
                        }
                        drop(slot);
                    });
                }
                // Out of descriptors, most likely: they come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn talk(&self, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        for _ in 0..REQUESTS_MAX {
            let mut line = Vec::new();
            let mut limited = (&mut reader).take(REQUEST_BYTES_MAX);
            let read = limited.read_until(b'\n', &mut line);
            let count = tokio::time::timeout(IDLE_MAX, read).await.map_err(io::Error::other)??;
            if count == 0 {
                return Ok(());
            }
            let is_whole = line.ends_with(b"\n") || (count as u64) < REQUEST_BYTES_MAX;
            let answer = match serde_json::from_slice(&line) {
                Ok(verb) if is_whole => self.answer(verb).await,
                Ok(_) => Answer::Error("the request is too long".to_owned()),
                Err(error) => Answer::Error(format!("not a request: {error}")),
            };
            let mut text = serde_json::to_vec(&answer)?;
            text.push(b'\n');
            tokio::time::timeout(IDLE_MAX, writer.write_all(&text)).await.map_err(io::Error::other)??;
            if !is_whole {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn answer(&self, verb: Verb) -> Answer {
        match verb {
            Verb::Status => to_answer(&self.board.report(monotonic())),
            Verb::Doctor => {
                let config = Arc::clone(&self.config);
                // It makes network namespaces and reads files.
                match tokio::task::spawn_blocking(move || doctor::examine(&config, true)).await {
                    Ok(report) => to_answer(&report),
                    Err(error) => Answer::Error(error.to_string()),
                }
            }
            Verb::Actions { last } => {
                let path = self.config.audit_file.clone();
                match tokio::task::spawn_blocking(move || audit_tail(&path, last.min(ACTIONS_MAX))).await {
                    Ok(Ok(lines)) => Answer::Ok(Value::Array(lines)),
                    Ok(Err(error)) => {
                        Answer::Error(format!("cannot read {}: {error}", self.config.audit_file.display()))
                    }
                    Err(error) => Answer::Error(error.to_string()),
                }
            }
            Verb::Freeze => self.brake(true).await,
            Verb::Thaw => self.brake(false).await,
        }
    }

    async fn brake(&self, is_on: bool) -> Answer {
        let (reply, done) = oneshot::channel();
        if self.actuator.send(Request::Brake(is_on, reply)).is_err() {
            return Answer::Error("actuation is off: nothing is in force and nothing will be".to_owned());
        }
        match tokio::time::timeout(BRAKE_MAX, done).await {
            Ok(Ok(())) => {
                let views = self.board.views();
                Answer::Ok(json!({ "frozen": views.actuation.is_frozen, "leases": views.actuation.leases.len() }))
            }
            _ => Answer::Error("the kernel has not answered within 10 s; see `sage-agent status`".to_owned()),
        }
    }
}

fn to_answer<T: Serialize>(value: &T) -> Answer {
    serde_json::to_value(value).map_or_else(|error| Answer::Error(error.to_string()), Answer::Ok)
}

/// The last lines of an audit, oldest first.
///
/// # Errors
///
/// What the system said; a file that is not there yet is empty.
#[expect(clippy::disallowed_methods, reason = "driver: reads the audit")]
pub fn audit_tail(path: &Path, last: usize) -> io::Result<Vec<Value>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let from = file.metadata()?.len().saturating_sub(AUDIT_TAIL_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(AUDIT_TAIL_BYTES).read_to_end(&mut bytes)?;
    // A first line that was cut in two is no JSON and falls out.
    let mut lines: Vec<Value> = bytes
        .split(|byte| *byte == b'\n')
        .rev()
        .filter_map(|line| serde_json::from_slice(line).ok())
        .take(last)
        .collect();
    lines.reverse();
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use sage_common::{BootId, Micros};

    use super::*;
    use crate::{config::Settings, intake::IntakeStats};

    fn control(directory: &Path) -> Arc<Control> {
        let mut settings = Settings { audit_file: directory.join("audit.jsonl"), ..Settings::default() };
        settings.state_dir = directory.to_owned();
        let config = Arc::new(settings.validate("node-a").expect("valid"));
        let stats = Arc::new(IntakeStats::default());
        let board = Arc::new(Board::new(config.node.clone(), BootId(1), Micros::ZERO, stats));
        Arc::new(Control { config, board, actuator: ActuatorHandle::off() })
    }

    async fn ask(path: &Path, request: &[u8]) -> Answer {
        let mut stream = UnixStream::connect(path).await.expect("somebody listens");
        stream.write_all(request).await.expect("open");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await.expect("an answer");
        serde_json::from_str(&line).expect("JSON")
    }

    #[tokio::test]
    async fn requests_are_answered_line_by_line_and_nonsense_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("run/agent.sock");
        let socket = Socket::bind(&path).expect("free");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, MODE);
        let server = tokio::spawn(async move { control(directory.path()).serve(&socket).await });

        let Answer::Ok(status) = ask(&path, b"{\"verb\":\"status\"}\n").await else { panic!("status is known") };
        assert_eq!(status["node"], "node-a");
        assert!(matches!(ask(&path, b"{\"verb\":\"reboot\"}\n").await, Answer::Error(_)));
        assert!(matches!(ask(&path, &[b' '; 5_000]).await, Answer::Error(_)));
        assert!(matches!(ask(&path, b"{\"verb\":\"freeze\"}\n").await, Answer::Error(text) if text.contains("off")));
        server.abort();
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_one_in_use_is_not() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("free")); // leaves its file
        let first = Socket::bind(&path).expect("nobody listens");
        assert!(matches!(Socket::bind(&path), Err(ControlError::InUse { .. })));
        drop(first);
        assert!(!path.exists(), "the file goes with the socket");
        std::fs::create_dir(&path).expect("free");
        assert!(matches!(Socket::bind(&path), Err(ControlError::Occupied { .. })));
    }

    #[test]
    fn the_tail_of_an_audit_is_its_last_lines_in_order() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("audit.jsonl");
        assert!(audit_tail(&path, 5).expect("not there yet").is_empty());
        let text: String = (0..50_000).map(|n| format!("{{\"n\":{n},\"event\":\"write\"}}\n")).collect();
        #[expect(clippy::disallowed_methods, reason = "test")]
        std::fs::write(&path, text + "{\"torn").expect("writable");
        let lines = audit_tail(&path, 2).expect("readable");
        assert_eq!(lines.iter().map(|line| line["n"].as_u64()).collect::<Vec<_>>(), [Some(49_998), Some(49_999)]);
        assert!(audit_tail(&path, usize::MAX).expect("readable").len() < 50_000, "only the tail is looked at");
    }

    #[test]
    fn the_group_is_found_by_its_name() {
        assert_eq!(group_id("root:x:0:\nsage:x:987:ann,bob\n", "sage"), Some(987));
        assert_eq!(group_id("root:x:0:\n", "sage"), None);
    }
}
