//! The listeners over real sockets on loopback.

use std::{io::Write, net::Ipv4Addr};

use axum::body::Bytes;
use flate2::{Compression, write::GzEncoder};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan},
};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, codec::CompressionEncoding, transport::Channel};

use super::*;

struct Running {
    intake: Intake,
    spans: mpsc::Receiver<SpanBatch>,
    stats: Arc<IntakeStats>,
    cancel: CancellationToken,
}

impl Running {
    async fn start() -> Self {
        Self::with_channel(CHANNEL_BATCHES).await
    }

    async fn with_channel(batches: usize) -> Self {
        let any = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let listeners = Listeners { otlp_grpc: any, otlp_http: any, jaeger_udp: any };
        let (sender, spans) = mpsc::channel(batches);
        let (stats, cancel) = (Arc::<IntakeStats>::default(), CancellationToken::new());
        let intake = spawn(listeners, sender, Arc::clone(&stats), cancel.clone()).await.expect("free ports");
        Self { intake, spans, stats, cancel }
    }

    /// Sends one HTTP request; gives status, head and body.
    async fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> (u16, String, Vec<u8>) {
        let address = self.intake.bound().otlp_http.expect("listening");
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let mut head =
            format!("POST /v1/traces HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        stream.write_all(head.as_bytes()).await.expect("head");
        let _ = stream.write_all(body).await; // a refused body may not be read to its end
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(answer[..end].to_vec()).expect("text").to_lowercase();
        let status = head.split(' ').nth(1).expect("status").parse().expect("number");
        (status, head, answer[end + 4..].to_vec())
    }

    async fn grpc(&self, message: Vec<u8>, is_gzip: bool) -> Result<Bytes, tonic::Status> {
        let address = self.intake.bound().otlp_grpc.expect("listening");
        let channel =
            Channel::from_shared(format!("http://{address}")).expect("uri").connect().await.expect("connects");
        let mut client = tonic::client::Grpc::new(channel);
        if is_gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        client.ready().await.expect("ready");
        let path = axum::http::uri::PathAndQuery::from_static(grpc::EXPORT);
        client.unary(tonic::Request::new(Bytes::from(message)), path, grpc::Raw).await.map(tonic::Response::into_inner)
    }

    fn received(&mut self) -> usize {
        let mut count = 0;
        while let Ok(batch) = self.spans.try_recv() {
            assert!((1..=BATCH_SPANS_MAX).contains(&batch.len()));
            count += batch.len();
        }
        count
    }
}

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json");
const GZIP: (&str, &str) = ("content-encoding", "gzip");

fn request(spans: u64) -> Vec<u8> {
    let span = |n: u64| OtlpSpan {
        trace_id: vec![5; 16],
        span_id: (n + 1).to_be_bytes().to_vec(),
        name: "n".into(),
        ..OtlpSpan::default()
    };
    let scope_spans = vec![ScopeSpans { spans: (0..spans).map(span).collect(), ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

fn json_request() -> Vec<u8> {
    let span = r#"{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":"n"}"#;
    format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{span}]}}]}}]}}"#).into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

#[tokio::test]
async fn http_takes_protobuf_and_json_plain_and_gzipped_and_answers_in_kind() {
    let mut running = Running::start().await;
    for (kind, body, empty) in [(PROTOBUF, request(3), &b""[..]), (JSON, json_request(), b"{}")] {
        for (encoding, body) in [(None, body.clone()), (Some(GZIP), gzip(&body))] {
            let headers: Vec<_> = [Some(kind), encoding].into_iter().flatten().collect();
            let (status, head, answer) = running.post(&headers, &body).await;
            assert_eq!((status, answer.as_slice()), (200, empty), "{head}");
            assert!(head.contains(kind.1), "{head}");
        }
    }
    assert_eq!(running.received(), 3 + 3 + 1 + 1);
    assert_eq!(running.stats.totals(), IntakeTotals { requests: 4, spans: 8, ..IntakeTotals::default() });
}

#[tokio::test]
async fn http_refuses_what_it_cannot_read_with_the_right_status() {
    let running = Running::start().await;
    let (status, head, body) = running.post(&[PROTOBUF], &[0x0a, 0x7f]).await;
    assert_eq!(status, 400, "{head}");
    assert_eq!(&body[..2], &[0x08, 3], "google.rpc.Status, INVALID_ARGUMENT");
    assert!(String::from_utf8_lossy(&body).contains("at byte 1"), "{body:?}");
    let (status, _, body) = running.post(&[JSON], b"{").await;
    assert_eq!(status, 400);
    assert!(String::from_utf8_lossy(&body).starts_with("{\"code\":3,\"message\":"), "{body:?}");
    assert_eq!(running.post(&[("content-type", "text/plain")], b"x").await.0, 415);
    assert_eq!(running.post(&[PROTOBUF, ("content-encoding", "br")], b"x").await.0, 415);
    assert_eq!(running.post(&[PROTOBUF, GZIP], b"not gzip").await.0, 400);
    assert_eq!(running.post(&[PROTOBUF], &vec![0; REQUEST_BYTES_MAX + 1]).await.0, 413);
    assert_eq!(running.stats.totals().rejected_requests, 6);
    assert_eq!(running.stats.totals().spans, 0);
}

#[tokio::test]
async fn a_gzip_bomb_is_refused_before_it_unfolds() {
    let running = Running::start().await;
    let bomb = gzip(&vec![0; 256 << 20]);
    assert!(bomb.len() < 1 << 20);
    assert_eq!(running.post(&[PROTOBUF, GZIP], &bomb).await.0, 413);
    let grpc = running.grpc(vec![0; 64 << 20], true).await.expect_err("too large");
    assert!(matches!(grpc.code(), Code::ResourceExhausted | Code::OutOfRange), "{grpc:?}");
    assert_eq!(running.stats.totals().rejected_requests, 2);
}

#[tokio::test]
async fn grpc_takes_plain_and_gzipped_requests() {
    let mut running = Running::start().await;
    for is_gzip in [false, true] {
        let answer = running.grpc(request(600), is_gzip).await.expect("accepted");
        assert_eq!(ExportTraceServiceResponse::decode(answer).expect("a response").partial_success, None);
    }
    assert_eq!(running.received(), 1200);
    let error = running.grpc(vec![0x0a, 0x7f], false).await.expect_err("malformed");
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("at byte 1"), "{error:?}");
    assert_eq!(running.stats.totals().rejected_requests, 1);
}

#[tokio::test]
async fn a_full_channel_sheds_counts_exactly_and_tells_the_sender_to_wait() {
    let mut running = Running::with_channel(1).await;
    // The first batch fits, the rest of the request does not: partial success.
    let (status, _, body) = running.post(&[PROTOBUF], &request(1000)).await;
    let partial =
        ExportTraceServiceResponse::decode(body.as_slice()).expect("a response").partial_success.expect("partial");
    assert_eq!((status, partial.rejected_spans), (200, 1000 - BATCH_SPANS_MAX as i64));
    assert!(partial.error_message.contains("overloaded"));
    // Nothing fits.
    let (status, head, _) = running.post(&[PROTOBUF], &request(10)).await;
    assert!(status == 429 && head.contains("retry-after: 1"), "{head}");
    let error = running.grpc(request(10), false).await.expect_err("overloaded");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(String::from_utf8_lossy(error.details()).contains("google.rpc.RetryInfo"));
    let totals = running.stats.totals();
    assert_eq!((totals.spans, totals.dropped_spans), (256, 744 + 20));
    assert_eq!(running.received(), 256);
    // There is room again.
    assert_eq!(running.post(&[PROTOBUF], &request(10)).await.0, 200);
}

#[tokio::test]
async fn spans_with_invalid_ids_are_reported_as_partial_success() {
    let mut running = Running::start().await;
    let mut bytes = request(2);
    let scope_spans = vec![ScopeSpans { spans: vec![OtlpSpan::default(); 3], ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    bytes.extend(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
    let answer = running.grpc(bytes, false).await.expect("accepted");
    let partial = ExportTraceServiceResponse::decode(answer).expect("a response").partial_success.expect("partial");
    assert_eq!(partial.rejected_spans, 3);
    assert_eq!(running.received(), 2);
}

#[tokio::test]
async fn jaeger_packets_arrive_and_bad_ones_are_counted() {
    let mut running = Running::start().await;
    let address = running.intake.bound().jaeger_udp.expect("listening");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    socket.send_to(b"nonsense", address).await.expect("sent");
    let mut packet = vec![0x82, 0x81, 0, 9];
    packet.extend(b"emitBatch");
    packet.extend([0x1c, 0x1c, 0x18, 3]); // args { 1: Batch { 1: Process { 1: "geo"
    packet.extend(b"geo");
    packet.extend([0, 0x19, 0x1c]); // } 2: [Span {
    packet.extend([0x16, 4, 0x26, 6, 0]); //   1: 2, 3: 3 }]
    packet.extend([0, 0]);
    socket.send_to(&packet, address).await.expect("sent");
    let batch = running.spans.recv().await.expect("a batch");
    assert_eq!((batch.len(), batch[0].service.as_str()), (1, "geo"));
    let totals = running.stats.totals();
    assert_eq!((totals.requests, totals.rejected_requests, totals.spans), (2, 1, 1));
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_key() {
    let running = Running::start().await;
    let taken = running.intake.bound().otlp_http;
    let (sender, _spans) = channel();
    let listeners = Listeners { otlp_http: taken, ..Listeners::default() };
    let error = spawn(listeners, sender, Arc::default(), CancellationToken::new()).await.expect_err("taken");
    let text = error.to_string();
    assert!(text.contains("intake.otlp_http") && text.contains(&taken.expect("bound").to_string()), "{text}");
}

#[tokio::test]
async fn cancellation_ends_every_listener_even_with_an_idle_connection() {
    let running = Running::start().await;
    let address = running.intake.bound().otlp_http.expect("listening");
    let _idle = tokio::net::TcpStream::connect(address).await.expect("connects");
    running.cancel.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(8), running.intake.join()).await.expect("ends");
}
