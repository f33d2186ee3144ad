//! What every listener does with a request: receive it within bounds, decode it, offer its spans.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use sage_common::Span;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc};

use super::{BATCH_SPANS_MAX, IntakeStats, RECEIVING_BYTES_MAX, REQUEST_BYTES_MAX, SpanBatch};
use crate::parse::{ParseError, Tally};

/// A sender that needs longer for one request is stuck, or means harm.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests inflated and decoded at once. One keeps the memory of a burst at one request, and takes 5 million spans a
/// second.
const DECODERS: usize = 1;

/// The common end of all listeners.
#[derive(Debug)]
pub(super) struct Gate {
    sender: mpsc::Sender<SpanBatch>,
    stats: Arc<IntakeStats>,
    receiving: Arc<Semaphore>, // bytes
    decoders: Semaphore,
}

/// Why a request did not get as far as its bytes being looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Turned {
    /// Too much is being received: try again.
    Busy,
    /// Larger than [`REQUEST_BYTES_MAX`].
    TooLarge,
    /// The sender stopped or was too slow.
    Incomplete,
}

/// What became of the spans of a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Outcome {
    pub accepted: u64,
    /// Dropped because the channel was full.
    pub dropped: u64,
    /// Left out because of their ids.
    pub invalid: u64,
}

impl Outcome {
    /// Nothing could be taken for lack of room: the sender should wait.
    pub fn is_shed(self) -> bool {
        self.accepted == 0 && self.dropped > 0
    }

    /// How many spans were not taken, and why, for people. Empty when all were taken.
    pub fn complaint(self) -> (u64, String) {
        let Self { dropped, invalid, .. } = self;
        let message = match (dropped, invalid) {
            (0, 0) => String::new(),
            (0, invalid) => format!("{invalid} spans have invalid ids"),
            (dropped, 0) => format!("{dropped} spans dropped: the agent is overloaded"),
            (dropped, invalid) => {
                format!("{dropped} spans dropped: the agent is overloaded; {invalid} spans have invalid ids")
            }
        };
        (dropped + invalid, message)
    }
}

impl Gate {
    pub fn new(sender: mpsc::Sender<SpanBatch>, stats: Arc<IntakeStats>) -> Self {
        Self {
            sender,
            stats,
            receiving: Arc::new(Semaphore::new(RECEIVING_BYTES_MAX)),
            decoders: Semaphore::new(DECODERS),
        }
    }

    /// Receives a request's body. The permit stands for its memory: drop it with the bytes.
    pub async fn receive(&self, body: Body) -> Result<(Bytes, OwnedSemaphorePermit), Turned> {
        self.stats.requests.fetch_add(1, Relaxed);
        let result = match tokio::time::timeout(RECEIVE_TIMEOUT, self.collect(body)).await {
            Ok(result) => result,
            Err(_) => Err(Turned::Incomplete),
        };
        match result {
            Err(Turned::Busy) => self.stats.refused_requests.fetch_add(1, Relaxed),
            Err(_) => self.stats.rejected_requests.fetch_add(1, Relaxed),
            Ok(_) => 0,
        };
        result
    }

    /// Waits for its turn to inflate and decode.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.decoders.acquire().await.ok()
    }

    /// Counts a request whose bytes could not be used.
    pub fn reject(&self) {
        self.stats.rejected_requests.fetch_add(1, Relaxed);
    }

    /// Counts a packet received in one piece.
    pub fn count_packet(&self) {
        self.stats.requests.fetch_add(1, Relaxed);
    }

    /// Decodes a request by `decode` and offers its spans. Never waits.
    pub fn submit(
        &self,
        decode: impl FnOnce(&mut dyn FnMut(Span)) -> Result<Tally, ParseError>,
    ) -> Result<Outcome, ParseError> {
        let mut batch = Vec::new();
        let mut outcome = Outcome::default();
        let tally = decode(&mut |span| {
            batch.push(span);
            if batch.len() == BATCH_SPANS_MAX {
                self.offer(&mut batch, &mut outcome);
            }
        })
        .inspect_err(|_| self.reject())?;
        self.offer(&mut batch, &mut outcome);
        outcome.invalid = tally.invalid_ids;
        let stats = &self.stats;
        stats.spans.fetch_add(outcome.accepted, Relaxed);
        stats.dropped_spans.fetch_add(outcome.dropped, Relaxed);
        stats.invalid_ids.fetch_add(tally.invalid_ids, Relaxed);
        stats.reversed.fetch_add(tally.reversed, Relaxed);
        stats.clamped.fetch_add(tally.clamped, Relaxed);
        stats.attributes_skipped.fetch_add(tally.attributes_skipped, Relaxed);
        Ok(outcome)
    }

    fn offer(&self, batch: &mut SpanBatch, outcome: &mut Outcome) {
        let spans = batch.len() as u64;
        if spans == 0 {
            return;
        }
        match self.sender.try_send(std::mem::take(batch)) {
            Ok(()) => outcome.accepted += spans,
            Err(_) => outcome.dropped += spans,
        }
    }

    async fn collect(&self, mut body: Body) -> Result<(Bytes, OwnedSemaphorePermit), Turned> {
        let reserve = |bytes: usize| {
            let bytes = u32::try_from(bytes).map_err(|_| Turned::TooLarge)?;
            Arc::clone(&self.receiving).try_acquire_many_owned(bytes).map_err(|_| Turned::Busy)
        };
        let mut permit = reserve(0)?;
        let mut bytes = Vec::new();
        // Ends: a body has a last frame, and the caller's timeout.
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Turned::Incomplete)?.into_data() else { continue };
            if bytes.len() + data.len() > REQUEST_BYTES_MAX {
                return Err(Turned::TooLarge);
            }
            permit.merge(reserve(data.len())?);
            bytes.extend_from_slice(&data);
        }
        Ok((bytes.into(), permit))
    }
}
