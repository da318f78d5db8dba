//! The client.

use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

use crate::{Command, Error, Script};

/// How long a call may take, retry included, unless `with_deadline` says otherwise.
pub const DEADLINE: Duration = Duration::from_millis(300);
/// The most bytes of an answer that are read.
pub const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// A database; cloning is cheap and shares the connections of its `reqwest::Client`.
#[derive(Clone)]
pub struct Redis {
    http: reqwest::Client,
    url: Arc<str>,
    token: Arc<str>,
    deadline: Duration,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    result: Value,
    error: Option<String>,
}

impl Answer {
    fn into_result(self) -> Result<Value, Error> {
        self.error.map_or(Ok(self.result), |message| Err(Error::refused(message)))
    }
}

/// `/multi-exec` answers with one error where the whole transaction was discarded.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answers {
    All(Vec<Answer>),
    Discarded(Answer),
}

impl Redis {
    /// A database by its REST address and token.
    pub fn new(url: &str, token: &str, http: reqwest::Client) -> Self {
        Self { http, url: url.trim_end_matches('/').into(), token: token.into(), deadline: DEADLINE }
    }

    /// The same database with another deadline for each call.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Runs one command.
    pub async fn exec<T: DeserializeOwned>(&self, command: &Command) -> Result<T, Error> {
        let (answer, status) = self.send("", command, command.is_idempotent()).await?;
        let answer: Answer = read(&answer, status)?;
        typed(answer.into_result()?, status)
    }

    /// Runs commands in order in one request; others may run between them, and one that fails does not stop the rest.
    pub async fn pipeline(&self, commands: &[Command]) -> Result<Vec<Result<Value, Error>>, Error> {
        self.batch("/pipeline", commands).await
    }

    /// Runs commands as one transaction: none runs between them. One that fails at run time does not undo the rest.
    pub async fn multi_exec(&self, commands: &[Command]) -> Result<Vec<Result<Value, Error>>, Error> {
        self.batch("/multi-exec", commands).await
    }

    /// Runs a script by its digest, and with its source where the server does not know it.
    pub async fn eval<T: DeserializeOwned>(
        &self,
        script: &Script,
        keys: &[impl AsRef<str>],
        args: &[impl AsRef<str>],
    ) -> Result<T, Error> {
        match self.exec(&script.by_digest(keys, args)).await {
            // EVAL and not SCRIPT LOAD: the digest may be asked of another node than the one that loaded it.
            Err(Error::Noscript) => self.exec(&script.by_source(keys, args)).await,
            answer => answer,
        }
    }

    /// Runs a script and then commands, in one request. Where the server does not know the script, it runs after them.
    pub async fn eval_with<T: DeserializeOwned>(
        &self,
        script: &Script,
        keys: &[impl AsRef<str>],
        args: &[impl AsRef<str>],
        commands: &[Command],
    ) -> Result<(T, Vec<Result<Value, Error>>), Error> {
        let mut batch = vec![script.by_digest(keys, args)];
        batch.extend_from_slice(commands);
        let mut answers = self.pipeline(&batch).await?;
        match answers.remove(0) {
            Err(Error::Noscript) => Ok((self.exec(&script.by_source(keys, args)).await?, answers)),
            answer => Ok((typed(answer?, StatusCode::OK)?, answers)),
        }
    }

    async fn batch(&self, path: &str, commands: &[Command]) -> Result<Vec<Result<Value, Error>>, Error> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let idempotent = commands.iter().all(Command::is_idempotent);
        let (answer, status) = self.send(path, &commands, idempotent).await?;
        let answers = match read(&answer, status)? {
            Answers::All(answers) => answers,
            Answers::Discarded(answer) => {
                let problem = "one answer to many commands".to_owned();
                return answer.into_result().and(Err(Error::BadBody { status: status.as_u16(), problem }));
            }
        };
        if answers.len() == commands.len() {
            Ok(answers.into_iter().map(Answer::into_result).collect())
        } else {
            let problem = format!("{} answers to {} commands", answers.len(), commands.len());
            Err(Error::BadBody { status: status.as_u16(), problem })
        }
    }

    async fn send(&self, path: &str, body: &impl Serialize, idempotent: bool) -> Result<(Vec<u8>, StatusCode), Error> {
        let until = Instant::now() + self.deadline;
        let attempt = || async {
            let request = self.http.post(format!("{}{path}", self.url)).bearer_auth(&self.token).json(body);
            let response = request.send().await.map_err(Error::Transport)?;
            let status = response.status();
            Ok((collect(response).await?, status))
        };
        let tries = async {
            match attempt().await {
                Err(Error::Transport(broken)) if idempotent || broken.is_connect() => attempt().await,
                answer => answer,
            }
        };
        timeout_at(until, tries).await.unwrap_or(Err(Error::Timeout))
    }
}

async fn collect(mut response: Response) -> Result<Vec<u8>, Error> {
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Error::Transport)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            return Err(Error::BadBody { status, problem: format!("more than {MAX_ANSWER} bytes") });
        }
    }
    Ok(body)
}

fn read<T: DeserializeOwned>(body: &[u8], status: StatusCode) -> Result<T, Error> {
    let unreadable = |error: serde_json::Error| {
        let problem = format!("{:?} error in {} bytes", error.classify(), body.len());
        Error::BadBody { status: status.as_u16(), problem }
    };
    serde_json::from_slice(body).map_err(unreadable)
}

fn typed<T: DeserializeOwned>(value: Value, status: StatusCode) -> Result<T, Error> {
    let problem = |error: serde_json::Error| format!("not the type asked for: {:?}", error.classify());
    serde_json::from_value(value).map_err(|error| Error::BadBody { status: status.as_u16(), problem: problem(error) })
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("url", &self.url).field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
