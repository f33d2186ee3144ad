//! Sends finished spans as OTLP/HTTP from a thread of its own. Whoever finishes a span never waits: what does not fit the
//! buffer, or cannot be delivered, is dropped and counted.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;

use super::span::{Anchor, SpanRecord, export_request};

/// A tier's way out for spans.
#[derive(Debug)]
pub struct Exporter {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What became of the spans so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ExportCounts {
    /// Delivered.
    pub exported: u64,
    /// Lost: buffer full, or not accepted by the collector.
    pub dropped: u64,
}

#[derive(Debug)]
struct Shared {
    buffer: Mutex<Vec<SpanRecord>>,
    exported: AtomicU64,
    dropped: AtomicU64,
    is_closing: AtomicBool,
}

/// Spans waiting for the next export: 5 s of 3,000 spans a second.
const BUFFER_MAX: usize = 16_384;
/// Spans in one request: about 60 KB, far below any collector's limit.
const BATCH_MAX: usize = 512;
/// Short against a window of one second, long enough to batch.
const INTERVAL: Duration = Duration::from_millis(200);
/// A collector on the same machine that takes longer is not there.
const POST_TIMEOUT: Duration = Duration::from_secs(2);

impl Exporter {
    /// Exports to the collector at `endpoint` (`http://host:port`).
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub fn start(endpoint: &str, resource: Resource) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            buffer: Mutex::new(Vec::new()),
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            is_closing: AtomicBool::new(false),
        });
        let config = ureq::Agent::config_builder().timeout_global(Some(POST_TIMEOUT)).build();
        let post = Post {
            agent: config.into(),
            url: format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            resource,
            anchor: Anchor::now(),
            shared: shared.clone(),
        };
        let thread = std::thread::Builder::new().name("export".to_owned()).spawn(move || post.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Takes a finished span, or drops it when the buffer is full.
    pub fn offer(&self, span: SpanRecord) {
        let mut buffer = self.shared.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.len() < BUFFER_MAX {
            buffer.push(span);
        } else {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of the spans so far.
    pub fn counts(&self) -> ExportCounts {
        let Shared { exported, dropped, .. } = &*self.shared;
        ExportCounts { exported: exported.load(Ordering::Relaxed), dropped: dropped.load(Ordering::Relaxed) }
    }

    /// Exports what is left and ends the thread; at most a few [`POST_TIMEOUT`]s.
    pub fn close(&self) {
        self.shared.is_closing.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            thread.thread().unpark();
            // It ends after its last export; a panic in it has been printed.
            drop(thread.join());
        }
    }
}

struct Post {
    agent: ureq::Agent,
    url: String,
    resource: Resource,
    anchor: Anchor,
    shared: Arc<Shared>,
}

impl Post {
    fn run(&self) {
        loop {
            let is_closing = self.shared.is_closing.load(Ordering::Acquire);
            let spans = std::mem::take(&mut *self.shared.buffer.lock().unwrap_or_else(PoisonError::into_inner));
            for batch in spans.chunks(BATCH_MAX) {
                let counter = if self.post(batch) { &self.shared.exported } else { &self.shared.dropped };
                counter.fetch_add(batch.len() as u64, Ordering::Relaxed);
            }
            if is_closing {
                return;
            }
            std::thread::park_timeout(INTERVAL);
        }
    }

    fn post(&self, batch: &[SpanRecord]) -> bool {
        let body = export_request(&self.resource, batch, &self.anchor).encode_to_vec();
        let request = self.agent.post(&self.url).header("content-type", "application/x-protobuf");
        match request.send(&body[..]) {
            Ok(mut response) => {
                // Read to its end, so that the connection can be used again.
                drop(response.body_mut().read_to_vec());
                true
            }
            Err(_) => false,
        }
    }
}
