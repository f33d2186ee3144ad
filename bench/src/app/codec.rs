//! The RPC between tiers: length-prefixed frames with a trace context. Bytes in, messages out; no sockets here.
//!
//! ```text
//!   length u32 │ kind u8 │ fields, big endian
//!   request  (1): request id u64, trace id u128, parent span u64, flags u8, node u32, items u32, seed u64
//!   response (2): request id u64, status u8, payload (the rest)
//! ```

use thiserror::Error;

use crate::topology::NodeId;

/// One call, as its caller describes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    /// Chosen by the caller; the response carries it back.
    pub id: u64,
    /// 128-bit trace id.
    pub trace_id: u128,
    /// The caller's client span; 0 at the root.
    pub parent_span: u64,
    /// Whether spans of this trace are exported.
    pub is_sampled: bool,
    /// Which node of the plan the callee runs.
    pub node: NodeId,
    /// Items to work on.
    pub items: u32,
    /// Seed of every draw below this call.
    pub seed: u64,
}

/// The answer to one call. Its payload has a length and no content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Response {
    /// The request's id.
    pub id: u64,
    /// Whether the callee did what was asked.
    pub is_ok: bool,
    /// Bytes carried besides.
    pub payload_len: usize,
}

/// Bytes that are no message of ours.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum CodecError {
    /// A frame longer than any that is sent.
    #[error("frame of {len} bytes; at most {FRAME_MAX} are allowed")]
    TooLong {
        /// What the header said.
        len: usize,
    },
    /// Not a request, or not a response.
    #[error("unexpected kind {kind}")]
    Kind {
        /// The byte found.
        kind: u8,
    },
    /// Too few or too many bytes for its kind.
    #[error("frame of {len} bytes does not fit its kind")]
    Length {
        /// Bytes found.
        len: usize,
    },
}

/// Largest body of a frame: [`PAYLOAD_MAX`] and a header, rounded up.
pub const FRAME_MAX: usize = PAYLOAD_MAX + 64;
/// Largest payload of a response: 256 KiB is 20 ms of a 100 Mbit/s link, more than any operation of the files spends.
pub const PAYLOAD_MAX: usize = 256 * 1024;
/// Bytes of a frame's length.
pub const PREFIX_LEN: usize = 4;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const REQUEST_LEN: usize = 1 + 8 + 16 + 8 + 1 + 4 + 4 + 8;
const RESPONSE_LEN: usize = 1 + 8 + 1;

/// The length of the body that follows `prefix`.
///
/// # Errors
///
/// [`CodecError::TooLong`] above [`FRAME_MAX`]: nothing is to be allocated for it.
pub const fn body_len(prefix: [u8; PREFIX_LEN]) -> Result<usize, CodecError> {
    let len = u32::from_be_bytes(prefix) as usize;
    if len > FRAME_MAX { Err(CodecError::TooLong { len }) } else { Ok(len) }
}

impl Request {
    /// The whole frame, prefix included.
    pub fn to_frame(self) -> Vec<u8> {
        let mut frame = begin(REQUEST_LEN, REQUEST);
        frame.extend(self.id.to_be_bytes());
        frame.extend(self.trace_id.to_be_bytes());
        frame.extend(self.parent_span.to_be_bytes());
        frame.push(u8::from(self.is_sampled));
        frame.extend(self.node.0.to_be_bytes());
        frame.extend(self.items.to_be_bytes());
        frame.extend(self.seed.to_be_bytes());
        frame
    }

    /// Reads a frame's body.
    ///
    /// # Errors
    ///
    /// [`CodecError`] unless it is exactly one request.
    pub fn from_body(body: &[u8]) -> Result<Self, CodecError> {
        let mut fields = Fields::new(body, REQUEST)?;
        if body.len() != REQUEST_LEN {
            return Err(CodecError::Length { len: body.len() });
        }
        Ok(Self {
            id: u64::from_be_bytes(fields.take()?),
            trace_id: u128::from_be_bytes(fields.take()?),
            parent_span: u64::from_be_bytes(fields.take()?),
            is_sampled: fields.take::<1>()? != [0],
            node: NodeId(u32::from_be_bytes(fields.take()?)),
            items: u32::from_be_bytes(fields.take()?),
            seed: u64::from_be_bytes(fields.take()?),
        })
    }
}

impl Response {
    /// The whole frame, prefix included; a payload beyond [`PAYLOAD_MAX`] is cut.
    pub fn to_frame(self) -> Vec<u8> {
        let payload_len = self.payload_len.min(PAYLOAD_MAX);
        let mut frame = begin(RESPONSE_LEN + payload_len, RESPONSE);
        frame.extend(self.id.to_be_bytes());
        frame.push(u8::from(!self.is_ok));
        frame.resize(frame.len() + payload_len, 0);
        frame
    }

    /// Reads a frame's body.
    ///
    /// # Errors
    ///
    /// [`CodecError`] unless it is one response.
    pub fn from_body(body: &[u8]) -> Result<Self, CodecError> {
        let mut fields = Fields::new(body, RESPONSE)?;
        let id = u64::from_be_bytes(fields.take()?);
        let is_ok = fields.take::<1>()? == [0];
        Ok(Self { id, is_ok, payload_len: fields.rest.len() })
    }
}

fn begin(body_len: usize, kind: u8) -> Vec<u8> {
    let mut frame = Vec::with_capacity(PREFIX_LEN + body_len);
    // Bodies are built from constants and a cut payload: they fit.
    frame.extend(u32::try_from(body_len).unwrap_or(u32::MAX).to_be_bytes());
    frame.push(kind);
    frame
}

struct Fields<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Fields<'a> {
    fn new(body: &'a [u8], want: u8) -> Result<Self, CodecError> {
        match body.split_first() {
            Some((kind, rest)) if *kind == want => Ok(Self { rest, len: body.len() }),
            Some((kind, _)) => Err(CodecError::Kind { kind: *kind }),
            None => Err(CodecError::Length { len: 0 }),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(CodecError::Length { len: self.len })?;
        self.rest = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(frame: &[u8]) -> (usize, &[u8]) {
        let (prefix, body) = frame.split_first_chunk().expect("a prefix");
        (body_len(*prefix).expect("not too long"), body)
    }

    proptest! {
        #[test]
        fn every_request_comes_back_as_it_was(
            (id, trace_id, parent_span) in any::<(u64, u128, u64)>(),
            (is_sampled, node, items, seed) in any::<(bool, u32, u32, u64)>(),
        ) {
            let request = Request { id, trace_id, parent_span, is_sampled, node: NodeId(node), items, seed };
            let frame = request.to_frame();
            let (len, body) = split(&frame);
            prop_assert_eq!(len, body.len());
            prop_assert_eq!(Request::from_body(body), Ok(request));
            prop_assert!(Response::from_body(body).is_err());
        }

        #[test]
        fn every_response_comes_back_with_its_payload_cut_to_the_limit(
            (id, is_ok, payload_len) in (any::<u64>(), any::<bool>(), 0..2 * PAYLOAD_MAX),
        ) {
            let frame = Response { id, is_ok, payload_len }.to_frame();
            let (len, body) = split(&frame);
            prop_assert_eq!(len, body.len());
            let expected = Response { id, is_ok, payload_len: payload_len.min(PAYLOAD_MAX) };
            prop_assert_eq!(Response::from_body(body), Ok(expected));
        }

        #[test]
        fn random_bytes_never_panic_and_a_request_has_one_length(body in proptest::collection::vec(any::<u8>(), 0..120)) {
            if Request::from_body(&body).is_ok() {
                prop_assert_eq!(body.len(), REQUEST_LEN);
            }
            let _ = Response::from_body(&body);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
        assert_eq!(body_len([0xFF; 4]), Err(CodecError::TooLong { len: u32::MAX as usize }));
    }
}
