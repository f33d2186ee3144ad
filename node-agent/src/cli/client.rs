//! The other end of the control socket.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use thiserror::Error;

use crate::driver::control::{Answer, Verb};

/// How long the agent may take to answer: longer than the kernel may take to give everything back.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// Longest answer: a thousand lines of audit.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers on {}: is it running? (systemctl status sage-agent; sage-agent run)", path.display())]
    Down {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// We may not ask.
    #[error("not allowed to use {}: be root or a member of group sage", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke or the answer was not one.
    #[error("the agent's answer on {} cannot be understood", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The agent says no.
    #[error("{0}")]
    Refused(String),
}

/// Asks the agent that listens on `socket`.
///
/// # Errors
///
/// [`ClientError`].
pub fn ask(socket: &Path, verb: Verb) -> Result<Value, ClientError> {
    let stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Denied { path: socket.to_owned() },
        _ => ClientError::Down { path: socket.to_owned(), source },
    })?;
    match talk(&stream, verb) {
        Ok(Answer::Ok(value)) => Ok(value),
        Ok(Answer::Error(text)) => Err(ClientError::Refused(text)),
        Err(source) => Err(ClientError::Broken { path: socket.to_owned(), source }),
    }
}

fn talk(mut stream: &UnixStream, verb: Verb) -> io::Result<Answer> {
    stream.set_read_timeout(Some(WAIT_MAX))?;
    stream.set_write_timeout(Some(WAIT_MAX))?;
    let mut request = serde_json::to_vec(&verb)?;
    request.push(b'\n');
    stream.write_all(&request)?;
    let mut line = Vec::new();
    BufReader::new(stream).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}
