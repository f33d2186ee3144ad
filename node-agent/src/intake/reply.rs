//! The few bytes that go back: hand-written, because they are small and the requests must not meet a generated decoder.

use serde_json::json;

/// Seconds that a sender is asked to wait when the agent is overloaded: about the time the channel needs to drain.
pub(super) const RETRY_SECS: u64 = 1;

/// `ExportTraceServiceResponse` in protobuf; empty when every span was taken.
pub(super) fn accepted_protobuf(refused: u64, message: &str) -> Vec<u8> {
    if refused == 0 {
        return Vec::new();
    }
    let mut partial = Vec::new();
    put_varint(&mut partial, 1, refused);
    put_bytes(&mut partial, 2, message.as_bytes());
    let mut response = Vec::new();
    put_bytes(&mut response, 1, &partial);
    response
}

/// `ExportTraceServiceResponse` in OTLP/JSON.
pub(super) fn accepted_json(refused: u64, message: &str) -> Vec<u8> {
    if refused == 0 {
        return b"{}".to_vec();
    }
    json!({"partialSuccess": {"rejectedSpans": refused.to_string(), "errorMessage": message}}).to_string().into_bytes()
}

/// `google.rpc.Status` in protobuf.
pub(super) fn status_protobuf(code: i32, message: &str, details: &[Vec<u8>]) -> Vec<u8> {
    let mut status = Vec::new();
    put_varint(&mut status, 1, code.unsigned_abs().into());
    put_bytes(&mut status, 2, message.as_bytes());
    for detail in details {
        put_bytes(&mut status, 3, detail);
    }
    status
}

/// `google.rpc.Status` in JSON.
pub(super) fn status_json(code: i32, message: &str) -> Vec<u8> {
    json!({"code": code, "message": message}).to_string().into_bytes()
}

/// `google.protobuf.Any` of a `google.rpc.RetryInfo`.
pub(super) fn retry_info() -> Vec<u8> {
    let mut delay = Vec::new();
    put_varint(&mut delay, 1, RETRY_SECS);
    let mut info = Vec::new();
    put_bytes(&mut info, 1, &delay);
    let mut any = Vec::new();
    put_bytes(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
    put_bytes(&mut any, 2, &info);
    any
}

fn put_varint(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    put_raw(out, value);
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_raw(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_raw(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80); // ends: 7 bits fewer each time
        value >>= 7;
    }
    out.push(value as u8);
}
