//! Messages and durable records as bytes: bincode, standard configuration. The only place that names bincode.
//!
//! The bytes of every message are fixed by the files in `protocol/golden`. What the numbers inside mean, and whether
//! they make sense, is checked elsewhere ([`check_window`](crate::check_window)).

use bincode::{
    config::{self, Config},
    serde::{decode_from_slice, encode_to_vec},
};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// The longest message, in bytes. A window of 2,000 series and 512 sampled traces takes about half of it.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The longest durable record, in bytes. The largest is the weights of one service's model, a few MiB.
pub const RECORD_BYTES_MAX: usize = 64 << 20;

/// The longest snapshot of a whole state, in bytes. The owner bounds its parts; 2,000 windows of a large application take
/// about a tenth of it.
pub const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

/// The decoder's limit counts a number as wide as it is in memory, though it may take one byte on the wire: eight for a
/// `u64` and for every length. So what may be encoded may be decoded only if the limit is this much wider.
const CLAIM_FACTOR: usize = size_of::<u64>();

/// Why bytes are not a value, or a value has no bytes.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum CodecError {
    /// Longer than its class allows.
    #[error("{what} of {len} bytes is longer than the {max} allowed")]
    TooLong {
        /// The type.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The longest allowed.
        max: usize,
    },
    /// Bytes are left over after the value.
    #[error("{what} ends after {used} of {len} bytes")]
    Trailing {
        /// The type.
        what: &'static str,
        /// Where the value ended.
        used: usize,
        /// How many bytes there were.
        len: usize,
    },
    /// Not the bytes of such a value.
    #[error("not a valid {what}: {problem}")]
    Malformed {
        /// The type.
        what: &'static str,
        /// What the decoder said.
        problem: String,
    },
    /// The value cannot be written, such as a sequence of unknown length.
    #[error("cannot encode {what}: {problem}")]
    Unencodable {
        /// The type.
        what: &'static str,
        /// What the encoder said.
        problem: String,
    },
}

/// The bytes of a message, at most [`MESSAGE_BYTES_MAX`].
///
/// # Errors
///
/// [`CodecError::TooLong`], [`CodecError::Unencodable`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    encode_within(message, MESSAGE_BYTES_MAX)
}

/// The message that `bytes` are, all of them. Takes at most [`MESSAGE_BYTES_MAX`]. Needs at most 64 bytes of heap for
/// each of them, and no more than 12 MiB for lengths that lie (measured in `tests/allocation.rs`).
///
/// # Errors
///
/// [`CodecError::TooLong`], [`CodecError::Malformed`], [`CodecError::Trailing`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_within(bytes, MESSAGE_BYTES_MAX, config::standard().with_limit::<{ CLAIM_FACTOR * MESSAGE_BYTES_MAX }>())
}

/// The bytes of a durable record, at most [`RECORD_BYTES_MAX`].
///
/// # Errors
///
/// [`CodecError::TooLong`], [`CodecError::Unencodable`].
pub fn encode_record<T: Serialize>(record: &T) -> Result<Vec<u8>, CodecError> {
    encode_within(record, RECORD_BYTES_MAX)
}

/// The durable record that `bytes` are, all of them. Takes at most [`RECORD_BYTES_MAX`]. Detects no bit rot: that is
/// what the store's checksums are for.
///
/// # Errors
///
/// [`CodecError::TooLong`], [`CodecError::Malformed`], [`CodecError::Trailing`].
pub fn decode_record<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_within(bytes, RECORD_BYTES_MAX, config::standard().with_limit::<{ CLAIM_FACTOR * RECORD_BYTES_MAX }>())
}

/// The bytes of a snapshot, at most [`SNAPSHOT_BYTES_MAX`].
///
/// # Errors
///
/// [`CodecError::TooLong`], [`CodecError::Unencodable`].
pub fn encode_snapshot<T: Serialize>(snapshot: &T) -> Result<Vec<u8>, CodecError> {
    encode_within(snapshot, SNAPSHOT_BYTES_MAX)
}

/// The snapshot that `bytes` are, all of them. Detects no bit rot, as [`decode_record`].
///
/// # Errors
///
/// [`CodecError::TooLong`], [`CodecError::Malformed`], [`CodecError::Trailing`].
pub fn decode_snapshot<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_within(bytes, SNAPSHOT_BYTES_MAX, config::standard().with_limit::<{ CLAIM_FACTOR * SNAPSHOT_BYTES_MAX }>())
}

fn encode_within<T: Serialize>(value: &T, max: usize) -> Result<Vec<u8>, CodecError> {
    let what = short_name::<T>();
    let bytes = encode_to_vec(value, config::standard())
        .map_err(|error| CodecError::Unencodable { what, problem: error.to_string() })?;
    if bytes.len() > max {
        return Err(CodecError::TooLong { what, len: bytes.len(), max });
    }
    Ok(bytes)
}

/// The limit inside `config` also bounds what a declared length may make the decoder allocate before its bytes arrive.
fn decode_within<T: DeserializeOwned>(bytes: &[u8], max: usize, config: impl Config) -> Result<T, CodecError> {
    let (what, len) = (short_name::<T>(), bytes.len());
    if len > max {
        return Err(CodecError::TooLong { what, len, max });
    }
    let (value, used) =
        decode_from_slice(bytes, config).map_err(|error| CodecError::Malformed { what, problem: error.to_string() })?;
    if used != len {
        return Err(CodecError::Trailing { what, used, len });
    }
    Ok(value)
}

/// `FromAgent` for `sage_protocol::message::FromAgent`.
fn short_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use sage_common::Term;

    use super::*;
    use crate::message::FromAggregator;

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&FromAggregator::Heartbeat(Term(7))).expect("short");
        assert_eq!(decode(&bytes), Ok(FromAggregator::Heartbeat(Term(7))));
        bytes.push(0);
        let error = decode::<FromAggregator>(&bytes).expect_err("one byte too many");
        assert!(matches!(error, CodecError::Trailing { what: "FromAggregator", used: 2, len: 3 }), "{error}");
    }

    #[test]
    fn a_declared_length_beyond_the_limit_is_refused() {
        // A `Refused` whose text says it has 2^40 bytes.
        let bytes = [2, 253, 0, 0, 0, 0, 0, 1, 0, 0];
        assert!(matches!(decode::<FromAggregator>(&bytes), Err(CodecError::Malformed { .. })));
    }

    #[test]
    fn whatever_encodes_decodes() {
        let long = vec![0_u64; MESSAGE_BYTES_MAX - 5];
        let bytes = encode(&long).expect("one byte each, and five for the length");
        assert_eq!(bytes.len(), MESSAGE_BYTES_MAX);
        assert_eq!(decode(&bytes), Ok(long));
    }

    #[test]
    fn records_may_be_longer_than_messages() {
        let long = "x".repeat(MESSAGE_BYTES_MAX);
        assert!(matches!(encode(&long), Err(CodecError::TooLong { .. })));
        let bytes = encode_record(&long).expect("within the record limit");
        assert!(matches!(decode::<String>(&bytes), Err(CodecError::TooLong { .. })));
        assert_eq!(decode_record::<String>(&bytes), Ok(long));
    }
}
