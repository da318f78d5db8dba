//! Redis behind a circuit breaker: while it does not answer, requests fail at once instead of waiting for it.
//!
//! Every caller has a fallback, so an error here does not fail the request.

mod circuit_breaker;

use serde::de::DeserializeOwned;
use tokio::time::Instant;
use upstash_redis_rs::{Command, Results};

use crate::http::request_log;

use circuit_breaker::CircuitBreaker;

/// Why there is no answer from Redis.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Its settings are missing or malformed.
    #[error("Redis is not configured: {0}")]
    NotConfigured(String),
    /// It failed a moment ago, so nothing was sent.
    #[error("the circuit breaker of Redis is open")]
    CircuitOpen,
    /// The request failed.
    #[error(transparent)]
    Request(#[from] upstash_redis_rs::Error),
}

impl From<Error> for crate::http::error::Error {
    fn from(error: Error) -> Self {
        match &error {
            Error::Request(failed) if !failed.is_unavailable() => Self::internal(error),
            _ => Self::unavailable(error),
        }
    }
}

/// The client and its circuit breaker.
#[derive(Debug)]
pub struct Redis {
    client: upstash_redis_rs::Redis,
    breaker: CircuitBreaker,
}

impl Redis {
    /// Puts a circuit breaker before a client.
    pub fn new(client: upstash_redis_rs::Redis) -> Self {
        Self {
            client,
            breaker: CircuitBreaker::default(),
        }
    }

    /// Runs one command.
    pub async fn exec<T: DeserializeOwned>(&self, command: &Command) -> Result<T, Error> {
        self.guard(self.client.exec(command)).await
    }

    /// Runs commands in order in one request.
    pub async fn pipeline(&self, commands: &[Command]) -> Result<Results, Error> {
        self.guard(self.client.pipeline(commands)).await
    }

    /// Sends a request if the circuit allows it, and reports its outcome to the breaker and the request log.
    async fn guard<T>(
        &self,
        request: impl Future<Output = Result<T, upstash_redis_rs::Error>>,
    ) -> Result<T, Error> {
        let attempt = self
            .breaker
            .attempt(Instant::now())
            .ok_or(Error::CircuitOpen)?;
        request_log::add(|log| log.redis_requests += 1);

        let answer = request.await;
        match &answer {
            Err(error) if error.is_unavailable() => {
                request_log::add(|log| log.redis_failures += 1);
                attempt.failed(Instant::now());
            }
            _ => attempt.succeeded(),
        }
        Ok(answer?)
    }
}
