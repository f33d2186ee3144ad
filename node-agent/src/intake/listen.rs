//! The accept loop of the TCP listeners: bounded connections, HTTP/1.1 and HTTP/2, and no way to stop it but `cancel`.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::CONNECTIONS_MAX;

/// Longest time between a connection's start, or its last request, and a whole request head. Longer than exporters
/// pause between batches.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Requests of one HTTP/2 connection at once. Exporters have one, rarely a few, on the way.
const STREAMS_MAX: u32 = 16;

/// Unread bytes per HTTP/2 stream and connection: what [`super::RECEIVING_BYTES_MAX`] cannot see.
const WINDOW_BYTES: u32 = 64 << 10;

/// How often a silent HTTP/2 peer is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How long running requests may take once the agent ends: exporters resend what was not answered.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after a failed accept: out of file descriptors, for one, does not mend at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `cancel` fires, then lets running requests finish.
pub(super) async fn serve(listener: TcpListener, router: Router, cancel: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    while let Some(slot) = until(&cancel, Arc::clone(&slots).acquire_owned()).await {
        match until(&cancel, listener.accept()).await {
            None => break,
            Some(Ok((stream, _))) => {
                let connection = connection(stream, router.clone(), cancel.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Some(Err(error)) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    if tokio::time::timeout(CLOSE_TIMEOUT, connections.wait()).await.is_err() {
        debug!(open = connections.len(), "connections still open at the end");
    }
}

async fn connection(stream: TcpStream, router: Router, cancel: CancellationToken) {
    // Until the first byte no protocol is chosen, and so no protocol's timer runs.
    let first = tokio::time::timeout(HEAD_TIMEOUT, stream.readable());
    if !matches!(until(&cancel, first).await, Some(Ok(Ok(())))) {
        return;
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%error, "connection ended");
    }
}

async fn until<T>(cancel: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        () = cancel.cancelled() => None,
        result = work => Some(result),
    }
}
