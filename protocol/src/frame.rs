//! Frames: a `u32` length, little-endian, then that many bytes. The decoder takes any split of the byte stream.
//!
//! ```text
//! 05 00 00 00  h e l l o  02 00 00 00  o k
//! ```

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::codec::{self, CodecError, MESSAGE_BYTES_MAX};

/// Bytes of the length in front of every frame.
pub const HEADER_LEN: usize = size_of::<u32>();

/// The longest message on a control stream, in bytes: a hello with 1,000 held leases takes about 200 KiB.
pub const CONTROL_BYTES_MAX: usize = 256 << 10;

/// A frame that cannot be.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FrameError {
    /// The header announces more than allowed; nothing was allocated for it.
    #[error("frame of {len} bytes is longer than the {max} allowed")]
    TooLong {
        /// The announced length.
        len: usize,
        /// The longest allowed.
        max: usize,
    },
    /// The frame is whole, its content is not a message.
    #[error("frame does not hold a message")]
    Content(#[from] CodecError),
}

/// `content` as one frame.
///
/// # Errors
///
/// [`FrameError::TooLong`] above [`MESSAGE_BYTES_MAX`].
pub fn encode_frame(content: &[u8]) -> Result<Vec<u8>, FrameError> {
    let too_long = || FrameError::TooLong { len: content.len(), max: MESSAGE_BYTES_MAX };
    if content.len() > MESSAGE_BYTES_MAX {
        return Err(too_long());
    }
    let len = u32::try_from(content.len()).map_err(|_| too_long())?;
    Ok([&len.to_le_bytes(), content].concat())
}

/// `message` as one frame.
///
/// # Errors
///
/// [`FrameError::Content`] when it does not encode, or is longer than [`MESSAGE_BYTES_MAX`].
pub fn encode_message<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    encode_frame(&codec::encode(message)?)
}

/// Cuts a byte stream into frames. Holds at most one frame of the longest length.
#[derive(Debug)]
pub struct FrameDecoder {
    /// Header and content of the frame under way.
    buffer: Vec<u8>,
    len_max: usize,
}

impl FrameDecoder {
    /// A decoder for frames of up to `len_max` bytes of content.
    pub const fn new(len_max: usize) -> Self {
        Self { buffer: Vec::new(), len_max }
    }

    /// Takes bytes off the front of `input`: the content of the next frame once it is whole, `None` when `input` is
    /// used up before that.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`]; the stream has lost its meaning then, and every further call says the same.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Vec<u8>>, FrameError> {
        self.fill(input, HEADER_LEN);
        let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let len = u32::from_le_bytes(*header) as usize;
        if len > self.len_max {
            return Err(FrameError::TooLong { len, max: self.len_max });
        }
        self.fill(input, HEADER_LEN + len);
        if self.buffer.len() < HEADER_LEN + len {
            return Ok(None);
        }
        let content = self.buffer.split_off(HEADER_LEN);
        self.buffer.clear();
        Ok(Some(content))
    }

    /// [`decode`](Self::decode), and the message in the frame.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`], [`FrameError::Content`].
    pub fn decode_message<T: DeserializeOwned>(&mut self, input: &mut &[u8]) -> Result<Option<T>, FrameError> {
        Ok(self.decode(input)?.map(|content| codec::decode(&content)).transpose()?)
    }

    /// Whether the stream may end here: no frame is under way.
    pub const fn is_between_frames(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Moves bytes from `input` until the buffer holds `target` of them. Grows with what has arrived, not with what was
    /// announced.
    fn fill(&mut self, input: &mut &[u8], target: usize) {
        let missing = target.saturating_sub(self.buffer.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.buffer.extend_from_slice(taken);
        *input = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_in_pieces(stream: &[u8], cuts: &[usize]) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut decoder = FrameDecoder::new(300);
        let mut frames = Vec::new();
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        bounds.extend([0, stream.len()]);
        bounds.sort_unstable();
        for piece in bounds.windows(2) {
            let mut input = &stream[piece[0]..piece[1]];
            while let Some(frame) = decoder.decode(&mut input)? {
                frames.push(frame);
            }
            assert!(input.is_empty(), "a decoder that wants more has taken all there was");
        }
        assert!(decoder.is_between_frames());
        Ok(frames)
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_gives_the_same_frames(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            cuts in prop::collection::vec(any::<usize>(), 0..40),
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|f| encode_frame(f).expect("short")).collect();
            prop_assert_eq!(decode_in_pieces(&stream, &cuts), Ok(frames.clone()));
            let every_byte: Vec<usize> = (0..stream.len()).collect();
            prop_assert_eq!(decode_in_pieces(&stream, &every_byte), Ok(frames));
        }

        #[test]
        fn random_bytes_never_panic_and_never_fill_more_than_one_frame(
            stream in prop::collection::vec(any::<u8>(), 0..2_000),
            len_max in 0_usize..500,
        ) {
            let mut decoder = FrameDecoder::new(len_max);
            let mut input = stream.as_slice();
            while let Ok(Some(frame)) = decoder.decode(&mut input) {
                prop_assert!(frame.len() <= len_max);
            }
            prop_assert!(decoder.buffer.len() <= HEADER_LEN + len_max);
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_from_its_header_alone() {
        let mut decoder = FrameDecoder::new(8);
        let mut input: &[u8] = &[9, 0, 0, 0];
        let error = decoder.decode(&mut input).expect_err("nine is more than eight");
        assert_eq!(error, FrameError::TooLong { len: 9, max: 8 });
        assert!(decoder.buffer.capacity() <= 8, "only the header is kept");
        let mut more: &[u8] = &[0; 20];
        assert_eq!(decoder.decode(&mut more), Err(error), "it stays refused");
    }
}
