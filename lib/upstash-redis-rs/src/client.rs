//! The client: one HTTP request per call, with a deadline.

use std::{fmt, sync::Arc, time::Duration};

use reqwest::{
    StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::{Arg, Command, Error, Script, SetupError, command::Form};

/// Default deadline of a call, including its retry. See [`Redis::with_deadline`].
pub const DEADLINE: Duration = Duration::from_millis(300);

/// Default limit on the size of an answer. See [`Redis::with_max_body_bytes`].
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The result of each command of a pipeline or transaction.
pub type Results = Vec<Result<Value, Error>>;

/// A database behind a REST URL. Cloning is cheap and shares the connections.
#[derive(Clone)]
pub struct Redis {
    http: reqwest::Client,
    server: Arc<Server>,
    deadline: Duration,
    max_body_bytes: usize,
}

struct Server {
    command: Url,
    pipeline: Url,
    multi_exec: Url,
    authorization: HeaderValue,
}

impl Redis {
    /// A client for a REST URL and token. Sends nothing.
    pub fn new(url: &str, token: &str, http: reqwest::Client) -> Result<Self, SetupError> {
        let command = Url::parse(url).map_err(|_| SetupError::Url)?;
        let is_plain = matches!(command.scheme(), "http" | "https")
            && command.username().is_empty()
            && command.password().is_none()
            && command.query().is_none()
            && command.fragment().is_none();
        if !is_plain {
            return Err(SetupError::Url);
        }

        if token.is_empty() || token.contains(char::is_whitespace) {
            return Err(SetupError::Token);
        }
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| SetupError::Token)?;
        authorization.set_sensitive(true);

        Ok(Self {
            http,
            server: Arc::new(Server {
                pipeline: child_url(&command, "pipeline"),
                multi_exec: child_url(&command, "multi-exec"),
                command,
                authorization,
            }),
            deadline: DEADLINE,
            max_body_bytes: MAX_BODY_BYTES,
        })
    }

    /// The same database with another deadline for a whole call: connecting, a retry and the
    /// second trip of an unknown script all count.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same database with another limit on the size of an answer.
    pub fn with_max_body_bytes(mut self, max_body_bytes: usize) -> Self {
        self.max_body_bytes = max_body_bytes;
        self
    }

    /// Runs one command. Use `Option<T>` if Redis may answer nil.
    pub async fn exec<T: DeserializeOwned>(&self, command: &Command) -> Result<T, Error> {
        let deadline = Instant::now() + self.deadline;
        let result = match with_deadline(deadline, self.single(command, Form::Sha)).await {
            // Nothing ran, so this is safe for any script. EVAL rather than SCRIPT LOAD: it runs and
            // caches in one trip, and no other node can lack the script afterwards.
            Err(Error::Noscript) if command.is_script() => {
                with_deadline(deadline, self.single(command, Form::Source)).await?
            }
            other => other?,
        };

        let kind = kind(&result);
        serde_json::from_value(result).map_err(|_| Error::BadBody {
            status: StatusCode::OK.as_u16(),
            detail: format!("the result is {kind}, not {}", std::any::type_name::<T>()),
        })
    }

    /// Runs a script by its SHA-1, and by its source if the server does not have it yet.
    pub async fn eval<T: DeserializeOwned>(
        &self,
        script: &Script,
        keys: &[&str],
        args: &[Arg],
    ) -> Result<T, Error> {
        self.exec(&script.command(keys, args)).await
    }

    /// Runs commands in order in one request. Commands of other clients may run in between.
    ///
    /// An error of one command affects no other one. A script that the server does not have is sent
    /// again by source, so it runs after all other commands.
    pub async fn pipeline(&self, commands: &[Command]) -> Result<Results, Error> {
        let deadline = Instant::now() + self.deadline;
        let url = &self.server.pipeline;
        let all: Vec<_> = commands.iter().collect();
        let mut results = with_deadline(deadline, self.batch(url, &all, Form::Sha)).await?;

        let (indices, unknown): (Vec<_>, Vec<_>) = commands
            .iter()
            .enumerate()
            .filter(|(index, command)| {
                command.is_script() && matches!(results[*index], Err(Error::Noscript))
            })
            .unzip();

        // The other commands have run by now, so a failure from here on is the scripts' alone.
        let retried = with_deadline(deadline, self.batch(url, &unknown, Form::Source))
            .await
            .unwrap_or_else(|error| vec![Err(error); indices.len()]);
        for (index, result) in indices.into_iter().zip(retried) {
            results[index] = result;
        }
        Ok(results)
    }

    /// Runs commands as one transaction: all of them with nothing in between, or none.
    ///
    /// As in Redis, a command that fails while running does not stop the others. Scripts are sent by
    /// source, because an unknown one could not be sent again inside the transaction.
    pub async fn multi_exec(&self, commands: &[Command]) -> Result<Results, Error> {
        let deadline = Instant::now() + self.deadline;
        let url = &self.server.multi_exec;
        let all: Vec<_> = commands.iter().collect();
        with_deadline(deadline, self.batch(url, &all, Form::Source)).await
    }

    async fn single(&self, command: &Command, form: Form) -> Result<Value, Error> {
        let body = json(&command.words(form));
        let (status, answer) = self
            .send(&self.server.command, body, command.is_idempotent())
            .await?;
        result_of(status, answer)
    }

    async fn batch(&self, url: &Url, commands: &[&Command], form: Form) -> Result<Results, Error> {
        // The server rejects an empty batch.
        if commands.is_empty() {
            return Ok(Vec::new());
        }

        let words: Vec<_> = commands.iter().map(|command| command.words(form)).collect();
        let is_idempotent = commands.iter().all(|command| command.is_idempotent());
        let (status, answer) = self.send(url, json(&words), is_idempotent).await?;

        match answer {
            Value::Array(items) if items.len() == commands.len() => Ok(items
                .into_iter()
                .map(|item| result_of(status, item))
                .collect()),
            Value::Array(items) => Err(Error::BadBody {
                status: status.as_u16(),
                detail: format!("{} results for {} commands", items.len(), commands.len()),
            }),
            answer => match result_of(status, answer) {
                Err(error) => Err(error),
                Ok(_) => Err(Error::BadBody {
                    status: status.as_u16(),
                    detail: "one result for a batch".to_owned(),
                }),
            },
        }
    }

    /// Sends a request, with one retry if that is safe: no connection was made, or the connection
    /// broke and the command is idempotent. An HTTP status is an answer and never retried.
    async fn send(
        &self,
        url: &Url,
        body: Vec<u8>,
        is_idempotent: bool,
    ) -> Result<(StatusCode, Value), Error> {
        let request = self
            .http
            .post(url.clone())
            .header(AUTHORIZATION, &self.server.authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let retry = request.try_clone();

        match (self.attempt(request).await, retry) {
            (Err(Error::Transport(cause)), Some(retry)) if is_idempotent || cause.is_connect() => {
                self.attempt(retry).await
            }
            (answer, _) => answer,
        }
    }

    async fn attempt(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<(StatusCode, Value), Error> {
        let mut response = request.send().await?;
        let status = response.status();
        let bad_body = |detail: String| Error::BadBody {
            status: status.as_u16(),
            detail,
        };

        match status {
            StatusCode::UNAUTHORIZED => return Err(Error::Auth),
            // Upstash itself delays instead, so a proxy sent this.
            StatusCode::TOO_MANY_REQUESTS => return Err(Error::Quota),
            status if status.is_server_error() => {
                return Err(bad_body("a server error".to_owned()));
            }
            _ => {}
        }

        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > self.max_body_bytes {
                let limit = self.max_body_bytes;
                return Err(bad_body(format!("the body is over {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }

        let answer = serde_json::from_slice(&body).map_err(|error| {
            // The parser's own message may quote the body.
            let kind = error.classify();
            bad_body(format!("{kind:?} error in {} bytes of JSON", body.len()))
        })?;
        Ok((status, answer))
    }
}

/// Shows the URL and never the token.
impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("url", &self.server.command.as_str())
            .field("token", &"[redacted]")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

async fn with_deadline<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout_at(deadline, work)
        .await
        .unwrap_or(Err(Error::Timeout))
}

fn child_url(base: &Url, name: &str) -> Url {
    let mut url = base.clone();
    url.path_segments_mut()
        .expect("an http URL has a path")
        .pop_if_empty()
        .push(name);
    url
}

fn json(words: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(words).expect("lists of strings are always JSON")
}

/// Reads `{"result": …}` or `{"error": "…"}`.
fn result_of(status: StatusCode, mut answer: Value) -> Result<Value, Error> {
    if let Some(Value::String(text)) = answer.get_mut("error").map(Value::take) {
        return Err(Error::from_server(text));
    }

    let result = answer.get_mut("result").map(Value::take);
    result
        .filter(|_| status.is_success())
        .ok_or_else(|| Error::BadBody {
            status: status.as_u16(),
            detail: "neither a result nor an error".to_owned(),
        })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
