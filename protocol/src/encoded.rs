//! A window in the bytes in which it is spooled, sent and sent again: encoded once, checked once.

use bytes::Bytes;
use sage_common::{NodeWindow, WindowKey};
use thiserror::Error;

use crate::{
    check::{InvalidWindow, check_window},
    codec::{self, CodecError},
    message::WindowMessage,
};

/// Why a window cannot be sent, or bytes are not one.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum UnusableWindow {
    /// It does not encode, or the bytes are not a window.
    #[error("window does not fit the wire")]
    Codec(#[from] CodecError),
    /// It breaks a rule that every aggregator checks.
    #[error("window breaks a rule")]
    Invalid(#[from] InvalidWindow),
}

/// One checked window as bytes, with its key beside them. Cloning shares the bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EncodedWindow {
    key: WindowKey,
    bytes: Bytes,
}

impl EncodedWindow {
    /// Checks and encodes `window`. What passes here is not rejected by an aggregator of the same version.
    ///
    /// # Errors
    ///
    /// [`UnusableWindow::Invalid`]; [`UnusableWindow::Codec`] when it is longer than
    /// [`MESSAGE_BYTES_MAX`](codec::MESSAGE_BYTES_MAX): leave stubs out, then.
    pub fn new(window: &NodeWindow) -> Result<Self, UnusableWindow> {
        check_window(window)?;
        // The same bytes as those of a `WindowMessage`, without a clone of the window to put into one.
        let bytes = codec::encode(window)?;
        Ok(Self { key: window.key.clone(), bytes: bytes.into() })
    }

    /// Takes back what [`bytes`](Self::bytes) gave, from a spool.
    ///
    /// # Errors
    ///
    /// [`UnusableWindow`] when they have changed since, or come from another version.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, UnusableWindow> {
        let bytes = bytes.into();
        let WindowMessage(window) = codec::decode(&bytes)?;
        check_window(&window)?;
        Ok(Self { key: window.key, bytes })
    }

    /// Which window it is.
    pub const fn key(&self) -> &WindowKey {
        &self.key
    }

    /// The bytes of its [`WindowMessage`], for a spool.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The window in the content of a window stream's frame, not yet checked.
    ///
    /// # Errors
    ///
    /// [`CodecError`].
    pub fn decode(bytes: &[u8]) -> Result<NodeWindow, CodecError> {
        let WindowMessage(window) = codec::decode(bytes)?;
        Ok(window)
    }
}
