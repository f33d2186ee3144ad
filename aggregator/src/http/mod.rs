//! The HTTP API: JSON for `sagectl` and dashboards, `/metrics` for Prometheus, `/healthz` and `/readyz` for supervisors.
//!
//! Nothing is known here: every question goes through one bounded queue to the task that owns the state, and comes back
//! as text, or as work to be done on another thread that makes bytes. There is no login, so the default address is
//! loopback.

pub mod metrics;

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use sage_common::{ActionId, Slo, Timestamp};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{SloSettings, validate_slos},
    core::{IncidentId, Label, TrueCause},
};

/// Questions that wait for the owner. Each takes it about a millisecond; more waiting means that it is stuck.
const QUESTIONS_MAX: usize = 64;

/// Largest accepted body: 64 objectives take a fifth of it.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Most windows of one answer.
const WINDOWS_LAST_MAX: usize = 2_000;

/// Windows of an answer to which no number was asked.
const WINDOWS_LAST_DEFAULT: usize = 60;

/// Exports at a time: one may take a few hundred megabytes for a second.
const EXPORTS_MAX: usize = 1;

/// How long an answer may take: a snapshot of a large state keeps the owner busy for a second.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What is asked, or ordered.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// Whether the aggregator serves.
    Ready,
    /// `GET /api/v1/status`.
    Status,
    /// `GET /api/v1/graph`.
    Graph,
    /// `GET /api/v1/windows`: at most so many, the newest.
    Windows(usize),
    /// `GET /api/v1/incidents`.
    Incidents,
    /// `GET /api/v1/incidents/{id}`.
    Incident(IncidentId),
    /// `GET /api/v1/incidents/{id}/export`: an incident file.
    Export(IncidentId),
    /// `GET /api/v1/export`: the same of the newest windows, for an objective.
    ExportNow(Option<String>),
    /// `PUT` or `DELETE /api/v1/incidents/{id}/label`: what an operator says was really at fault.
    Label(IncidentId, Option<Label>),
    /// `GET /api/v1/actions`.
    Actions,
    /// `GET /api/v1/models`.
    Models,
    /// `GET /api/v1/slo/suggest`: for this percentile.
    Suggest(f64),
    /// `GET /metrics`.
    Metrics,
    /// `PUT /api/v1/slos`.
    SetSlos(Vec<Slo>),
    /// `POST /api/v1/freeze`.
    Freeze,
    /// `POST /api/v1/thaw`.
    Thaw,
    /// `POST /api/v1/actions/{id}/approve`.
    Approve(ActionId),
}

/// Why there is no answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// There is no such thing.
    NotFound(String),
    /// It cannot be done to this thing now.
    Conflict(String),
    /// It cannot be done at all now.
    Unavailable(String),
}

/// An answer.
#[derive(Debug)]
pub enum Reply {
    /// JSON text, or the text of the metrics.
    Text(String),
    /// Bytes that take a while to make.
    Work(Work),
}

impl Reply {
    /// An answer that `make` makes on another thread.
    pub fn work(make: impl FnOnce() -> Result<Vec<u8>, Refusal> + Send + 'static) -> Self {
        Self::Work(Work(Box::new(make)))
    }
}

/// Makes bytes.
pub struct Work(Box<dyn FnOnce() -> Result<Vec<u8>, Refusal> + Send>);

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

/// A question, and where its answer goes.
#[derive(Debug)]
pub struct Ask {
    /// The question.
    pub question: Question,
    /// Takes the answer.
    pub reply: oneshot::Sender<Result<Reply, Refusal>>,
}

/// The way to the owner of the state.
#[derive(Clone, Debug)]
pub struct Asker {
    asks: mpsc::Sender<Ask>,
    exports: Arc<Semaphore>,
}

impl Asker {
    /// A way, and its other end for the owner.
    pub fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (sender, receiver) = mpsc::channel(QUESTIONS_MAX);
        (Self { asks: sender, exports: Arc::new(Semaphore::new(EXPORTS_MAX)) }, receiver)
    }

    async fn ask(&self, question: Question) -> Result<Reply, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.asks.try_send(Ask { question, reply }).map_err(|_| busy())?;
        timeout(ANSWER_MAX, answer).await.map_err(|_| busy())?.map_err(|_| busy())?
    }

    /// An answer that is text.
    async fn text(&self, question: Question) -> Result<String, Refusal> {
        match self.ask(question).await? {
            Reply::Text(text) => Ok(text),
            Reply::Work(_) => Err(busy()),
        }
    }

    /// An answer that is bytes, made here when it is work.
    async fn bytes(&self, question: Question) -> Result<Vec<u8>, Refusal> {
        let _turn =
            self.exports.try_acquire().map_err(|_| Refusal::Unavailable("another export is under way".into()))?;
        match self.ask(question).await? {
            Reply::Text(text) => Ok(text.into_bytes()),
            Reply::Work(Work(make)) => tokio::task::spawn_blocking(make).await.map_err(|_| busy())?,
        }
    }
}

fn busy() -> Refusal {
    Refusal::Unavailable("the aggregator is busy; try again".into())
}

/// Serves the API on `listener` until `cancel`.
///
/// # Errors
///
/// What the listener said when it failed for good.
pub async fn serve(listener: TcpListener, asker: Asker, cancel: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router(asker)).with_graceful_shutdown(cancel.cancelled_owned()).await
}

/// Every route.
pub fn router(asker: Asker) -> Router {
    let simple = |question: Question| {
        get(move |State(asker): State<Asker>| {
            let question = question.clone();
            async move { json_answer(&asker, question).await }
        })
    };
    let order = |question: Question| {
        post(move |State(asker): State<Asker>| {
            let question = question.clone();
            async move { json_answer(&asker, question).await }
        })
    };
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .route("/api/v1/status", simple(Question::Status))
        .route("/api/v1/graph", simple(Question::Graph))
        .route("/api/v1/windows", get(windows))
        .route("/api/v1/incidents", simple(Question::Incidents))
        .route("/api/v1/incidents/{id}", get(incident))
        .route("/api/v1/incidents/{id}/export", get(export))
        .route("/api/v1/incidents/{id}/label", put(set_label).delete(remove_label))
        .route("/api/v1/export", get(export_now))
        .route("/api/v1/actions", simple(Question::Actions))
        .route("/api/v1/actions/{id}/approve", post(approve))
        .route("/api/v1/models", simple(Question::Models))
        .route("/api/v1/slo/suggest", get(suggest))
        .route("/api/v1/slos", put(set_slos))
        .route("/api/v1/freeze", order(Question::Freeze))
        .route("/api/v1/thaw", order(Question::Thaw))
        .fallback(async || problem(StatusCode::NOT_FOUND, "no such path; the API is below /api/v1/"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(asker)
}

async fn json_answer(asker: &Asker, question: Question) -> Response {
    match asker.text(question).await {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn readyz(State(asker): State<Asker>) -> Response {
    match asker.ask(Question::Ready).await {
        Ok(_) => "ready\n".into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn metrics_text(State(asker): State<Asker>) -> Response {
    match asker.text(Question::Metrics).await {
        Ok(body) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], body).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowsQuery {
    last: Option<usize>,
}

async fn windows(State(asker): State<Asker>, query: Result<Query<WindowsQuery>, QueryRejection>) -> Response {
    let last = match query {
        Ok(Query(WindowsQuery { last })) => last.unwrap_or(WINDOWS_LAST_DEFAULT),
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    if !(1..=WINDOWS_LAST_MAX).contains(&last) {
        return problem(StatusCode::BAD_REQUEST, &format!("last = {last}: want 1 to {WINDOWS_LAST_MAX}"));
    }
    json_answer(&asker, Question::Windows(last)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuggestQuery {
    percentile: Option<f64>,
}

async fn suggest(State(asker): State<Asker>, query: Result<Query<SuggestQuery>, QueryRejection>) -> Response {
    let percentile = match query {
        Ok(Query(SuggestQuery { percentile })) => percentile.unwrap_or(99.0),
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    if !(1.0..=100.0).contains(&percentile) {
        return problem(StatusCode::BAD_REQUEST, &format!("percentile = {percentile}: want 1 to 100"));
    }
    json_answer(&asker, Question::Suggest(percentile)).await
}

async fn incident(State(asker): State<Asker>, Path(id): Path<String>) -> Response {
    match id.parse() {
        Ok(id) => json_answer(&asker, Question::Incident(id)).await,
        Err(_) => problem(StatusCode::BAD_REQUEST, "an incident's id is a number"),
    }
}

async fn export(State(asker): State<Asker>, Path(id): Path<String>) -> Response {
    match id.parse() {
        Ok(id) => file_answer(&asker, Question::Export(id), &format!("incident-{id}.incident")).await,
        Err(_) => problem(StatusCode::BAD_REQUEST, "an incident's id is a number"),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportQuery {
    slo: Option<String>,
}

async fn export_now(State(asker): State<Asker>, query: Result<Query<ExportQuery>, QueryRejection>) -> Response {
    match query {
        Ok(Query(ExportQuery { slo })) => file_answer(&asker, Question::ExportNow(slo), "now.incident").await,
        Err(rejection) => problem(StatusCode::BAD_REQUEST, &rejection.body_text()),
    }
}

async fn file_answer(asker: &Asker, question: Question, name: &str) -> Response {
    let disposition = format!("attachment; filename=\"{name}\"");
    match asker.bytes(question).await {
        Ok(body) => {
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (header::CONTENT_DISPOSITION, disposition.as_str()),
            ];
            (headers, body).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn set_label(
    State(asker): State<Asker>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let causes: Vec<TrueCause> = match serde_json::from_slice(&body) {
        Ok(causes) => causes,
        Err(error) => {
            let want = "want a list of true causes, each {\"service\": NAME, \"resource\": NAME or null}";
            return problem(StatusCode::BAD_REQUEST, &format!("{want}: {error}"));
        }
    };
    match Label::new(causes, Timestamp::default()) {
        Ok(label) => relabel(&asker, &id, Some(label)).await,
        Err(error) => problem(StatusCode::BAD_REQUEST, &error),
    }
}

async fn remove_label(State(asker): State<Asker>, Path(id): Path<String>) -> Response {
    relabel(&asker, &id, None).await
}

async fn relabel(asker: &Asker, id: &str, label: Option<Label>) -> Response {
    match id.parse() {
        Ok(id) => json_answer(asker, Question::Label(id, label)).await,
        Err(_) => problem(StatusCode::BAD_REQUEST, "an incident's id is a number"),
    }
}

async fn approve(State(asker): State<Asker>, Path(id): Path<String>) -> Response {
    match id.parse() {
        Ok(id) => json_answer(&asker, Question::Approve(ActionId(id))).await,
        Err(_) => problem(StatusCode::BAD_REQUEST, "an action's id is a number"),
    }
}

async fn set_slos(State(asker): State<Asker>, body: Result<Bytes, BytesRejection>) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let list: Vec<SloSettings> = match serde_json::from_slice(&body) {
        Ok(list) => list,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("want a list of objectives: {error}")),
    };
    match validate_slos(&list) {
        Ok(slos) => json_answer(&asker, Question::SetSlos(slos)).await,
        Err(error) => problem(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::NotFound(text) => problem(StatusCode::NOT_FOUND, &text),
            Self::Conflict(text) => problem(StatusCode::CONFLICT, &text),
            Self::Unavailable(text) => problem(StatusCode::SERVICE_UNAVAILABLE, &text),
        }
    }
}

fn problem(status: StatusCode, text: &str) -> Response {
    let body = json!({ "error": text }).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_owner_that_is_gone_or_stuck_is_said_to_be_busy() {
        let (asker, asks) = Asker::new();
        let stuck: Vec<_> = (0..QUESTIONS_MAX).map(|_| tokio::spawn(asked(asker.clone()))).collect();
        while asks.len() < QUESTIONS_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(asked(asker.clone()).await, StatusCode::SERVICE_UNAVAILABLE, "the queue is full");
        drop(asks);
        for waiting in stuck {
            assert_eq!(waiting.await.expect("no panic"), StatusCode::SERVICE_UNAVAILABLE, "the owner is gone");
        }
    }

    async fn asked(asker: Asker) -> StatusCode {
        json_answer(&asker, Question::Status).await.status()
    }

    #[tokio::test]
    async fn answers_and_refusals_of_the_owner_reach_the_client() {
        let (asker, mut asks) = Asker::new();
        tokio::spawn(async move {
            while let Some(Ask { question, reply }) = asks.recv().await {
                let answer = match question {
                    Question::Status => Ok(Reply::Text("{}".to_owned())),
                    Question::Freeze => Err(Refusal::Unavailable("not leading".into())),
                    Question::Incident(_) => Err(Refusal::NotFound("none".into())),
                    _ => Err(Refusal::Conflict("no".into())),
                };
                reply.send(answer).expect("the client waits");
            }
        });
        for (question, status) in [
            (Question::Status, StatusCode::OK),
            (Question::Freeze, StatusCode::SERVICE_UNAVAILABLE),
            (Question::Incident(3), StatusCode::NOT_FOUND),
            (Question::Approve(ActionId(1)), StatusCode::CONFLICT),
        ] {
            assert_eq!(json_answer(&asker, question).await.status(), status);
        }
    }
}
