//! Errors of this driver, and quinn's in the words of ours.

use std::{io, net::SocketAddr, path::PathBuf};

use quinn::{ConnectionError, ReadError, WriteError};
use thiserror::Error;

use crate::{frame::FrameError, session::Disconnect, tls::TlsError};

/// Why a link or a listener cannot be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Our certificate or key cannot be used.
    #[error("cannot use TLS material")]
    Tls(#[from] TlsError),
    /// TLS 1.3 as configured lacks what QUIC needs.
    #[error("TLS configuration does not fit QUIC: {0}")]
    Crypto(String),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Randomness,
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A certificate or key file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A key that everybody may read is no secret.
    #[error("{} may be read by everybody (mode {mode:o}): chmod 600 it, and issue a new one", path.display())]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// First of the QUIC error codes that carry a TLS alert (RFC 9001, section 4.8).
const CRYPTO_ERROR: u64 = 0x100;

/// Why a connection ended, for people.
pub(super) fn explain(error: &ConnectionError) -> String {
    match error {
        // Found by our own TLS: its text says which check failed.
        ConnectionError::TransportError(error) if alert(error.code.into()).is_some() => {
            format!("the peer's certificate or TLS is not acceptable: {}", error.reason)
        }
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code.into()) {
            Some(alert) => format!("the peer does not accept our certificate: {}", alert_text(alert)),
            None => format!("closed by the peer's transport: {close}"),
        },
        ConnectionError::ApplicationClosed(close) => {
            format!("closed by the peer: {}", String::from_utf8_lossy(&close.reason))
        }
        ConnectionError::Reset => "the peer has restarted".to_owned(),
        other => other.to_string(),
    }
}

fn alert(code: u64) -> Option<u64> {
    code.checked_sub(CRYPTO_ERROR).filter(|alert| *alert < 0x100)
}

/// The alerts that certificates cause (RFC 8446, section 6.2).
fn alert_text(alert: u64) -> String {
    let text = match alert {
        42 => "bad certificate",
        43 => "unsupported certificate",
        44 => "certificate revoked",
        45 => "certificate expired: is our clock right, or is it time for a new one?",
        46 => "certificate unknown",
        48 => "unknown authority: is it a certificate of the same fleet?",
        51 => "signature does not fit",
        116 => "a certificate is required",
        120 => "no common protocol",
        other => return format!("TLS alert {other}"),
    };
    text.to_owned()
}

impl From<ConnectionError> for Disconnect {
    fn from(error: ConnectionError) -> Self {
        Self::Lost(explain(&error))
    }
}

impl From<ReadError> for Disconnect {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => error.into(),
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<WriteError> for Disconnect {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => error.into(),
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<FrameError> for Disconnect {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Content(error) => Self::Protocol(error.to_string()),
            other => Self::Protocol(other.to_string()),
        }
    }
}
