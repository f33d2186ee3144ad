//! `/metrics`, `/healthz`, `/readyz`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use super::{board::Board, clock::monotonic, metrics};

/// The media type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Binds the address.
///
/// # Errors
///
/// What the kernel said.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until the listener fails.
pub async fn serve(listener: TcpListener, board: Arc<Board>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(board);
    axum::serve(listener, router).await
}

async fn metrics_page(State(board): State<Arc<Board>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPEN_METRICS)], metrics::text(&board, monotonic()))
}

async fn healthz(State(board): State<Arc<Board>>) -> impl IntoResponse {
    verdict(board.is_alive(monotonic()), "a part of the agent stands still\n")
}

async fn readyz(State(board): State<Arc<Board>>) -> impl IntoResponse {
    verdict(board.is_ready(), "not ready yet\n")
}

fn verdict(is_well: bool, otherwise: &'static str) -> (StatusCode, &'static str) {
    if is_well { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, otherwise) }
}
