//! The HTTP client of `sagectl`. Talks to the one address it is given, by plain HTTP, never through a proxy.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::answer::Problem;

/// Longest wait for one answer: the aggregator answers from memory.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Largest accepted answer: far above the API's own bounds.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Why a question to the aggregator has no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody answers there.
    #[error(
        "cannot reach {url}: {why}\nis sage-aggregator running there? name its address with --url http://HOST:PORT"
    )]
    Unreachable {
        /// The address.
        url: String,
        /// What the network said.
        why: String,
    },
    /// The aggregator said no.
    #[error("{method} {url}: {problem} (HTTP {status})")]
    Refused {
        /// What was tried.
        method: &'static str,
        /// On what.
        url: String,
        /// The aggregator's own words.
        problem: String,
        /// The status code.
        status: u16,
    },
    /// An answer that is not of this API.
    #[error(
        "{url} does not answer like a sage-aggregator: {why}\ncheck --url, and that both programs are of one release"
    )]
    Foreign {
        /// The address.
        url: String,
        /// What was wrong with the answer.
        why: String,
    },
}

/// A connection to one aggregator.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
}

impl Client {
    /// A client of the aggregator at `url`, for example `http://127.0.0.1:7480`.
    pub fn new(url: &str) -> Self {
        let config =
            ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).proxy(None).build();
        Self { agent: config.new_agent(), base: url.trim_end_matches('/').to_owned() }
    }

    /// The answer to `GET path` as JSON.
    ///
    /// # Errors
    ///
    /// [`ClientError`]: nobody there, a refusal, or a foreign answer.
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        let url = self.url(path);
        let sent = self.agent.get(&url).call();
        self.answer("GET", url, sent)
    }

    /// The answer to `GET path` as bytes, 64 MiB at most.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn get_bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let url = self.url(path);
        let sent = self.agent.get(&url).call();
        self.body("GET", &url, sent)
    }

    /// The answer to `DELETE path`.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn delete(&self, path: &str) -> Result<Value, ClientError> {
        let url = self.url(path);
        let sent = self.agent.delete(&url).call();
        self.answer("DELETE", url, sent)
    }

    /// The answer to `POST path` without a body.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn post(&self, path: &str) -> Result<Value, ClientError> {
        let url = self.url(path);
        let sent = self.agent.post(&url).send_empty();
        self.answer("POST", url, sent)
    }

    /// The answer to `PUT path` with a JSON body.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let url = self.url(path);
        let sent = self.agent.put(&url).content_type("application/json").send(body.to_string());
        self.answer("PUT", url, sent)
    }

    /// `value`, which came from `path`, as a `T`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Foreign`] when it is none.
    pub fn read<T: DeserializeOwned>(&self, path: &str, value: Value) -> Result<T, ClientError> {
        serde_json::from_value(value)
            .map_err(|error| ClientError::Foreign { url: self.url(path), why: error.to_string() })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn answer(
        &self,
        method: &'static str,
        url: String,
        sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, ClientError> {
        let body = self.body(method, &url, sent)?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Foreign { url, why: error.to_string() })
    }

    fn body(
        &self,
        method: &'static str,
        url: &str,
        sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Vec<u8>, ClientError> {
        let unreachable =
            |error: ureq::Error| ClientError::Unreachable { url: self.base.clone(), why: error.to_string() };
        let mut response = sent.map_err(unreachable)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().map_err(unreachable)?;
        if !(200..300).contains(&status) {
            let problem = serde_json::from_slice(&body).map_or_else(|_| "refused".to_owned(), |p: Problem| p.error);
            return Err(ClientError::Refused { method, url: url.to_owned(), problem, status });
        }
        Ok(body)
    }
}
