//! OTLP over HTTP: `POST /v1/traces`, protobuf or JSON, gzip or not. Answers come in the format of the request.

use std::{io::Read, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    routing::post,
};
use flate2::bufread::MultiGzDecoder;

use super::{
    REQUEST_BYTES_MAX,
    gate::{Gate, Turned},
    reply,
};
use crate::parse::{otlp, otlp_json};

/// The service.
pub(super) fn router(gate: Arc<Gate>) -> Router {
    Router::new().route("/v1/traces", post(export)).with_state(gate)
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    Protobuf,
    Json,
}

/// A refusal: HTTP status, gRPC code, and what to tell the sender.
type Refusal = (StatusCode, i32, String);

const INVALID_ARGUMENT: i32 = 3;
const RESOURCE_EXHAUSTED: i32 = 8;

async fn export(State(gate): State<Arc<Gate>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Some(format) = format_of(&parts.headers) else {
        gate.reject();
        let message = "content-type must be application/x-protobuf or application/json";
        return refusal(Format::Json, (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_ARGUMENT, message.into()));
    };
    match take(&gate, format, &parts.headers, body).await {
        Ok(bytes) => answer(StatusCode::OK, format, bytes),
        Err(refused) => refusal(format, refused),
    }
}

async fn take(gate: &Gate, format: Format, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Refusal> {
    let Some(is_gzip) = is_gzip(headers) else {
        gate.reject();
        let message = "content-encoding must be gzip or identity";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_ARGUMENT, message.into()));
    };
    let (bytes, _permit) = gate.receive(body).await.map_err(turned)?;
    let _turn = gate.turn().await.ok_or_else(busy)?;
    let bytes = if is_gzip { inflate(&bytes).inspect_err(|_| gate.reject())? } else { bytes };
    let outcome = gate
        .submit(|sink| match format {
            Format::Protobuf => otlp::decode(&bytes, sink),
            Format::Json => otlp_json::decode(&bytes, sink),
        })
        .map_err(|error| (StatusCode::BAD_REQUEST, INVALID_ARGUMENT, error.to_string()))?;
    if outcome.is_shed() {
        return Err(busy());
    }
    let (refused, message) = outcome.complaint();
    Ok(match format {
        Format::Protobuf => reply::accepted_protobuf(refused, &message),
        Format::Json => reply::accepted_json(refused, &message),
    })
}

fn format_of(headers: &HeaderMap) -> Option<Format> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    match kind.split(';').next()?.trim().to_ascii_lowercase().as_str() {
        "application/x-protobuf" => Some(Format::Protobuf),
        "application/json" => Some(Format::Json),
        _ => None,
    }
}

/// `None` for an encoding that is not spoken here.
fn is_gzip(headers: &HeaderMap) -> Option<bool> {
    match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"" | b"identity") => Some(false),
        Some(b"gzip") => Some(true),
        Some(_) => None,
    }
}

fn inflate(bytes: &[u8]) -> Result<Bytes, Refusal> {
    let mut inflated = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(REQUEST_BYTES_MAX as u64 + 1)
        .read_to_end(&mut inflated)
        .map_err(|error| (StatusCode::BAD_REQUEST, INVALID_ARGUMENT, format!("cannot inflate the request: {error}")))?;
    if inflated.len() > REQUEST_BYTES_MAX {
        return Err(too_large());
    }
    Ok(inflated.into())
}

fn turned(turned: Turned) -> Refusal {
    match turned {
        Turned::Busy => busy(),
        Turned::TooLarge => too_large(),
        Turned::Incomplete => {
            (StatusCode::BAD_REQUEST, INVALID_ARGUMENT, "the request did not arrive completely in time".into())
        }
    }
}

fn busy() -> Refusal {
    (StatusCode::TOO_MANY_REQUESTS, RESOURCE_EXHAUSTED, "the agent is overloaded".into())
}

fn too_large() -> Refusal {
    let message = format!("a request may have {REQUEST_BYTES_MAX} bytes, compressed or not");
    (StatusCode::PAYLOAD_TOO_LARGE, INVALID_ARGUMENT, message)
}

fn refusal(format: Format, (status, code, message): Refusal) -> Response<Body> {
    let body = match format {
        Format::Protobuf => reply::status_protobuf(code, &message, &[]),
        Format::Json => reply::status_json(code, &message),
    };
    let mut response = answer(status, format, body);
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(reply::RETRY_SECS));
    }
    response
}

fn answer(status: StatusCode, format: Format, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let kind = match format {
        Format::Protobuf => "application/x-protobuf",
        Format::Json => "application/json",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
