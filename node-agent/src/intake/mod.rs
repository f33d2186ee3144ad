//! Span intake: the sockets that applications send to.
//!
//! Three listeners, one pipe: OTLP over gRPC, OTLP over HTTP, Jaeger thrift over UDP. All decode into batches of spans
//! and offer them to one bounded channel. Nothing waits for the channel: what does not fit is dropped, counted, and the
//! sender told to slow down, so an application is never held up by its agent.

mod gate;
mod grpc;
mod http;
mod listen;
mod reply;
mod udp;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use sage_common::{IntakeCounters, Span};
use thiserror::Error;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::gate::Gate;

/// Spans handed over at once; never empty.
pub type SpanBatch = Vec<Span>;

/// Spans per batch: enough that the channel costs nothing per span.
pub const BATCH_SPANS_MAX: usize = 256;

/// Batches waiting between the sockets and the pipeline: 16,384 spans or about 4 MiB, several seconds of a busy node.
pub const CHANNEL_BATCHES: usize = 64;

/// Largest request, before and after decompression: the default of gRPC, and far above an exporter's batch.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;

/// Bytes of requests that are being received, all senders together.
pub const RECEIVING_BYTES_MAX: usize = 8 << 20;

/// Connections per listener: more than processes that export from one machine.
pub const CONNECTIONS_MAX: usize = 256;

/// Where to listen; `None` is turned off, port 0 picks a free one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Listeners {
    /// OTLP over gRPC.
    pub otlp_grpc: Option<SocketAddr>,
    /// OTLP over HTTP: `POST /v1/traces`, protobuf or JSON.
    pub otlp_http: Option<SocketAddr>,
    /// Jaeger agent, compact thrift over UDP.
    pub jaeger_udp: Option<SocketAddr>,
}

/// Why the intake cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IntakeError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} (intake.{key}); change the key, or set it to \"\" to do without")]
    Bind {
        /// The configuration key.
        key: &'static str,
        /// What it says.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Running totals of all listeners.
#[derive(Debug, Default)]
pub struct IntakeStats {
    requests: AtomicU64,
    rejected_requests: AtomicU64,
    refused_requests: AtomicU64,
    spans: AtomicU64,
    dropped_spans: AtomicU64,
    invalid_ids: AtomicU64,
    reversed: AtomicU64,
    clamped: AtomicU64,
    attributes_skipped: AtomicU64,
}

/// [`IntakeStats`] at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct IntakeTotals {
    /// Requests and packets received.
    pub requests: u64,
    /// Of those, the ones that could not be decoded.
    pub rejected_requests: u64,
    /// Of those, the ones turned away unread because too much was being received; their sender was told to retry.
    pub refused_requests: u64,
    /// Spans handed over.
    pub spans: u64,
    /// Spans decoded and dropped because the channel was full.
    pub dropped_spans: u64,
    /// Spans left out because an id was zero or of a wrong length.
    pub invalid_ids: u64,
    /// Spans that ended before they started.
    pub reversed: u64,
    /// Spans cut to [`crate::parse::DURATION_MAX`].
    pub clamped: u64,
    /// Attributes stepped over because of [`crate::parse::ATTRIBUTES_MAX`].
    pub attributes_skipped: u64,
}

impl IntakeStats {
    /// Everything counted so far.
    pub fn totals(&self) -> IntakeTotals {
        IntakeTotals {
            requests: self.requests.load(Relaxed),
            rejected_requests: self.rejected_requests.load(Relaxed),
            refused_requests: self.refused_requests.load(Relaxed),
            spans: self.spans.load(Relaxed),
            dropped_spans: self.dropped_spans.load(Relaxed),
            invalid_ids: self.invalid_ids.load(Relaxed),
            reversed: self.reversed.load(Relaxed),
            clamped: self.clamped.load(Relaxed),
            attributes_skipped: self.attributes_skipped.load(Relaxed),
        }
    }

    /// The totals that [`crate::core::telemetry::Telemetry::handle_intake`] takes.
    pub fn counters(&self) -> IntakeCounters {
        let IntakeTotals { rejected_requests, dropped_spans, spans, .. } = self.totals();
        IntakeCounters { spans, rejected_requests, dropped_spans, unpaired_spans: 0 }
    }
}

/// The running listeners. Dropping it stops them at once.
#[derive(Debug)]
pub struct Intake {
    bound: Listeners,
    tasks: JoinSet<()>,
}

impl Intake {
    /// The addresses in use, with the ports that were picked.
    pub fn bound(&self) -> Listeners {
        self.bound
    }

    /// Waits until every listener has stopped after cancellation.
    pub async fn join(mut self) {
        while self.tasks.join_next().await.is_some() {} // ends: one result per listener
    }
}

/// The channel between the listeners and the pipeline.
pub fn channel() -> (mpsc::Sender<SpanBatch>, mpsc::Receiver<SpanBatch>) {
    mpsc::channel(CHANNEL_BATCHES)
}

/// Starts the listeners; they run until `cancel` fires.
///
/// # Errors
///
/// [`IntakeError::Bind`] when an address is taken or not of this machine.
pub async fn spawn(
    listeners: Listeners,
    sender: mpsc::Sender<SpanBatch>,
    stats: Arc<IntakeStats>,
    cancel: CancellationToken,
) -> Result<Intake, IntakeError> {
    let gate = Arc::new(Gate::new(sender, stats));
    let mut tasks = JoinSet::new();
    let mut bound = Listeners::default();
    if let Some(address) = listeners.otlp_grpc {
        let (listener, own) = bind_tcp("otlp_grpc", address).await?;
        bound.otlp_grpc = Some(own);
        tasks.spawn(listen::serve(listener, grpc::router(Arc::clone(&gate)), cancel.clone()));
    }
    if let Some(address) = listeners.otlp_http {
        let (listener, own) = bind_tcp("otlp_http", address).await?;
        bound.otlp_http = Some(own);
        tasks.spawn(listen::serve(listener, http::router(Arc::clone(&gate)), cancel.clone()));
    }
    if let Some(address) = listeners.jaeger_udp {
        let fail = |source| IntakeError::Bind { key: "jaeger_udp", address, source };
        let socket = UdpSocket::bind(address).await.map_err(fail)?;
        bound.jaeger_udp = Some(socket.local_addr().map_err(fail)?);
        tasks.spawn(udp::receive(socket, gate, cancel));
    }
    Ok(Intake { bound, tasks })
}

async fn bind_tcp(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), IntakeError> {
    let fail = |source| IntakeError::Bind { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let own = listener.local_addr().map_err(fail)?;
    Ok((listener, own))
}
