//! The client: one HTTP request a call, one deadline around it, and the answer taken apart.

use std::{fmt, sync::Arc, time::Duration};

use reqwest::{
    StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::{Arg, Command, Error, Script, SetupError, command::Form};

/// How long a call may take, with its retry, unless [`Redis::with_deadline`] says otherwise.
pub const DEADLINE: Duration = Duration::from_millis(300);

/// How much of an answer is read, unless [`Redis::with_max_body_bytes`] says otherwise.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// What each command of a pipeline or transaction came to.
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
    /// Takes the REST URL and token, and the HTTP client to use. Nothing is sent.
    pub fn new(url: &str, token: &str, http: reqwest::Client) -> Result<Self, SetupError> {
        let command = Url::parse(url).map_err(|_| SetupError::Url)?;
        let plain = matches!(command.scheme(), "http" | "https")
            && command.username().is_empty()
            && command.password().is_none()
            && command.query().is_none()
            && command.fragment().is_none();
        if !plain {
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
                pipeline: below(&command, "pipeline"),
                multi_exec: below(&command, "multi-exec"),
                command,
                authorization,
            }),
            deadline: DEADLINE,
            max_body_bytes: MAX_BODY_BYTES,
        })
    }

    /// The same database with another deadline for a call as a whole: connecting, a retry and the
    /// second trip of an unknown script all count.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same database with another cap on the size of an answer.
    pub fn with_max_body_bytes(mut self, max_body_bytes: usize) -> Self {
        self.max_body_bytes = max_body_bytes;
        self
    }

    /// Runs one command. Ask for `Option<T>` where Redis may answer nil.
    pub async fn exec<T: DeserializeOwned>(&self, command: &Command) -> Result<T, Error> {
        let until = Instant::now() + self.deadline;
        let result = match before(until, self.single(command, Form::Sha)).await {
            // Nothing ran, so this is safe for any script. EVAL rather than SCRIPT LOAD: it runs and
            // caches in one trip, and cannot be followed by a node that lacks the script.
            Err(Error::Noscript) if command.is_script() => {
                before(until, self.single(command, Form::Source)).await?
            }
            other => other?,
        };
        let kind = kind(&result);
        serde_json::from_value(result).map_err(|_| Error::BadBody {
            status: StatusCode::OK.as_u16(),
            detail: format!("the result is {kind}, not {}", std::any::type_name::<T>()),
        })
    }

    /// Runs a script by its SHA-1, and by its source where the server does not hold it yet.
    pub async fn eval<T: DeserializeOwned>(
        &self,
        script: &Script,
        keys: &[&str],
        args: &[Arg],
    ) -> Result<T, Error> {
        self.exec(&script.command(keys, args)).await
    }

    /// Runs commands in order in one request, with no promise that nothing comes in between.
    ///
    /// An error of one command is that item's only. A script that the server does not hold is sent
    /// again alone, by source, and so runs after all the others.
    pub async fn pipeline(&self, commands: &[Command]) -> Result<Results, Error> {
        let until = Instant::now() + self.deadline;
        let pipeline = &self.server.pipeline;
        let all: Vec<_> = commands.iter().collect();
        let mut results = before(until, self.batch(pipeline, &all, Form::Sha)).await?;

        let (places, unknown): (Vec<_>, Vec<_>) = commands
            .iter()
            .enumerate()
            .filter(|(place, command)| {
                command.is_script() && matches!(results[*place], Err(Error::Noscript))
            })
            .unzip();
        // The other commands have run by now, so a failure from here on belongs to the scripts alone.
        let again = before(until, self.batch(pipeline, &unknown, Form::Source))
            .await
            .unwrap_or_else(|error| vec![Err(error); places.len()]);
        for (place, result) in places.into_iter().zip(again) {
            results[place] = result;
        }
        Ok(results)
    }

    /// Runs commands as one transaction: all of them with nothing in between, or none.
    ///
    /// A command that fails while running is that item's error and the rest still runs, as in Redis.
    /// Scripts go by source, because one that is unknown could not be sent again inside.
    pub async fn multi_exec(&self, commands: &[Command]) -> Result<Results, Error> {
        let until = Instant::now() + self.deadline;
        let all: Vec<_> = commands.iter().collect();
        before(
            until,
            self.batch(&self.server.multi_exec, &all, Form::Source),
        )
        .await
    }

    async fn single(&self, command: &Command, form: Form) -> Result<Value, Error> {
        let body = json(&command.words(form));
        let (status, answer) = self
            .send(&self.server.command, body, command.is_idempotent())
            .await?;
        item(status, answer)
    }

    async fn batch(&self, url: &Url, commands: &[&Command], form: Form) -> Result<Results, Error> {
        // The server refuses an empty batch; asking for nothing is no reason for a trip.
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let words: Vec<_> = commands.iter().map(|command| command.words(form)).collect();
        let idempotent = commands.iter().all(|command| command.is_idempotent());
        let (status, answer) = self.send(url, json(&words), idempotent).await?;
        match answer {
            Value::Array(items) if items.len() == commands.len() => Ok(items
                .into_iter()
                .map(|answer| item(status, answer))
                .collect()),
            Value::Array(items) => Err(Error::BadBody {
                status: status.as_u16(),
                detail: format!("{} results for {} commands", items.len(), commands.len()),
            }),
            answer => match item(status, answer) {
                Err(error) => Err(error),
                Ok(_) => Err(Error::BadBody {
                    status: status.as_u16(),
                    detail: "one result for a batch".to_owned(),
                }),
            },
        }
    }

    /// Sends a request, and once more where that cannot do harm: no connection was made, or the
    /// connection broke and the command may run twice. An HTTP status is an answer, never retried.
    async fn send(
        &self,
        url: &Url,
        body: Vec<u8>,
        idempotent: bool,
    ) -> Result<(StatusCode, Value), Error> {
        let request = self
            .http
            .post(url.clone())
            .header(AUTHORIZATION, &self.server.authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let again = request.try_clone();
        match (self.attempt(request).await, again) {
            (Err(Error::Transport(cause)), Some(again)) if idempotent || cause.is_connect() => {
                self.attempt(again).await
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
        let bad = |detail: String| Error::BadBody {
            status: status.as_u16(),
            detail,
        };
        match status {
            StatusCode::UNAUTHORIZED => return Err(Error::Auth),
            // Upstash delays instead, so this comes from whatever stands before it.
            StatusCode::TOO_MANY_REQUESTS => return Err(Error::Quota),
            status if status.is_server_error() => return Err(bad("a server error".to_owned())),
            _ => {}
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > self.max_body_bytes {
                return Err(bad(format!(
                    "the body is over {} bytes",
                    self.max_body_bytes
                )));
            }
            body.extend_from_slice(&chunk);
        }
        let answer = serde_json::from_slice(&body).map_err(|error| {
            // The parser's own message may quote the body.
            bad(format!(
                "{:?} error in {} bytes of JSON",
                error.classify(),
                body.len()
            ))
        })?;
        Ok((status, answer))
    }
}

/// Shows where the database is, and never the token.
impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("url", &self.server.command.as_str())
            .field("token", &"[redacted]")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

async fn before<T>(
    until: Instant,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout_at(until, work).await.unwrap_or(Err(Error::Timeout))
}

fn below(base: &Url, name: &str) -> Url {
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

/// Takes `{"result": …}` or `{"error": "…"}` apart.
fn item(status: StatusCode, mut answer: Value) -> Result<Value, Error> {
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
