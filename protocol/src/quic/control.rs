//! A control stream: frames out of a bounded outbox, frames in, both at once.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    frame::{CONTROL_BYTES_MAX, FrameDecoder, encode_message},
    session::Disconnect,
};

/// Bytes waiting for a peer that does not read: a few of the longest messages, or minutes of heartbeats and commands.
const OUTBOX_BYTES_MAX: usize = 1 << 20;

/// The most taken from the stream at once.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// How long a closing connection waits for the peer to have its last messages.
const FLUSH_MAX: Duration = Duration::from_secs(1);

pub(super) struct Control {
    send: SendStream,
    recv: RecvStream,
    outbox: BytesMut,
    /// Received and not yet decoded.
    chunk: Bytes,
    decoder: FrameDecoder,
}

impl Control {
    pub(super) fn new(send: SendStream, recv: RecvStream) -> Self {
        let decoder = FrameDecoder::new(CONTROL_BYTES_MAX);
        Self { send, recv, outbox: BytesMut::new(), chunk: Bytes::new(), decoder }
    }

    /// Puts `message` into the outbox.
    pub(super) fn queue<T: Serialize>(&mut self, message: &T) -> Result<(), Disconnect> {
        if self.outbox.len() > OUTBOX_BYTES_MAX {
            return Err(Disconnect::Stalled);
        }
        self.outbox.extend_from_slice(&encode_message(message)?);
        Ok(())
    }

    /// The peer's next message, while the outbox empties. Reads only if `is_reading`. May be dropped at any await:
    /// nothing is lost.
    pub(super) async fn next<T: DeserializeOwned>(&mut self, is_reading: bool) -> Result<T, Disconnect> {
        loop {
            if is_reading && let Some(message) = self.decode()? {
                return Ok(message);
            }
            let Self { send, recv, outbox, chunk, .. } = self;
            tokio::select! {
                written = send.write(outbox), if !outbox.is_empty() => outbox.advance(written?),
                read = recv.read_chunk(CHUNK_BYTES_MAX, true), if is_reading => match read? {
                    Some(read) => *chunk = read.bytes,
                    None => return Err(Disconnect::Lost("the peer ended its control stream".to_owned())),
                },
                // Neither: there is nothing to write, and nothing may be read.
                else => std::future::pending().await,
            }
        }
    }

    /// Writes what is left and waits, within bounds, until the peer has it.
    pub(super) async fn flush(&mut self) {
        let last_words = async {
            if self.send.write_all(&self.outbox).await.is_ok() && self.send.finish().is_ok() {
                // Acknowledged, stopped or lost: all the same now.
                let _ = self.send.stopped().await;
            }
        };
        // A peer that takes longer does without them.
        let _ = tokio::time::timeout(FLUSH_MAX, last_words).await;
    }

    fn decode<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Disconnect> {
        let mut rest = self.chunk.as_ref();
        let message = self.decoder.decode_message(&mut rest)?;
        let used = self.chunk.len() - rest.len();
        self.chunk.advance(used);
        Ok(message)
    }
}
