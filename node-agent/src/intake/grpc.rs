//! OTLP over gRPC: tonic does the framing and the (capped) inflating, our own walk does the decoding.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::Response,
    routing::post,
};
use tonic::{
    Code, Status,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{Grpc, UnaryService},
};

use super::{
    REQUEST_BYTES_MAX,
    gate::{Gate, Turned},
    reply,
};
use crate::parse::otlp;

pub(super) const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The service.
pub(super) fn router(gate: Arc<Gate>) -> Router {
    Router::new()
        .route(EXPORT, post(export))
        .fallback(async || Status::unimplemented("only trace export is served here").into_http::<Body>())
        .with_state(gate)
}

async fn export(State(gate): State<Arc<Gate>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    // Received first, so that a slow sender holds no decoder and everything counts against one budget.
    let (bytes, _permit) = match gate.receive(body).await {
        Ok(received) => received,
        Err(turned) => return status_of(turned).into_http(),
    };
    let Some(_turn) = gate.turn().await else { return busy().into_http() };
    let mut grpc =
        Grpc::new(Raw).accept_compressed(CompressionEncoding::Gzip).max_decoding_message_size(REQUEST_BYTES_MAX);
    let request = Request::from_parts(parts, Body::from(bytes));
    let is_decoded = Arc::new(AtomicBool::new(false));
    let service = Export { gate: Arc::clone(&gate), is_decoded: Arc::clone(&is_decoded) };
    let response = grpc.unary(service, request).await.map(Body::new);
    if !is_decoded.load(Relaxed) {
        gate.reject(); // tonic did not like the frame, or what it inflated to
    }
    response
}

struct Export {
    gate: Arc<Gate>,
    is_decoded: Arc<AtomicBool>,
}

impl UnaryService<Bytes> for Export {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        self.is_decoded.store(true, Relaxed);
        let result = submit(&self.gate, &request.into_inner());
        Box::pin(std::future::ready(result))
    }
}

fn submit(gate: &Gate, message: &[u8]) -> Result<tonic::Response<Bytes>, Status> {
    let outcome =
        gate.submit(|sink| otlp::decode(message, sink)).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if outcome.is_shed() {
        return Err(busy());
    }
    let (refused, message) = outcome.complaint();
    Ok(tonic::Response::new(reply::accepted_protobuf(refused, &message).into()))
}

fn status_of(turned: Turned) -> Status {
    match turned {
        Turned::Busy => busy(),
        Turned::TooLarge => Status::out_of_range(format!("a request may have {REQUEST_BYTES_MAX} bytes")),
        Turned::Incomplete => Status::cancelled("the request did not arrive completely in time"),
    }
}

/// `RESOURCE_EXHAUSTED` with `RetryInfo`: OTLP senders retry it only with that detail.
fn busy() -> Status {
    let message = "the agent is overloaded";
    let details = reply::status_protobuf(Code::ResourceExhausted as i32, message, &[reply::retry_info()]);
    Status::with_details(Code::ResourceExhausted, message, details.into())
}

/// Messages as they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(out, message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(message);
        Ok(Some(bytes::Buf::copy_to_bytes(message, length)))
    }
}
