//! The HTTP side: who may ask, the three shapes of a request, and how replies become JSON.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    Json,
    body::to_bytes,
    extract::{Query, Request, State},
    http::{Method, StatusCode, header::AUTHORIZATION, request::Parts},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json, value::RawValue};

use super::{
    dialect::{Scripts, Undo},
    resp::{Pool, Reply, Words, words},
};

/// What Upstash takes on its free and pay-as-you-go plans.
const MAX_REQUEST_BYTES: usize = 10 * 1024 * 1024;

pub(super) struct Shared {
    token: String,
    pool: Pool,
    scripts: Scripts,
    answers: AtomicU64,
}

/// How strings are written in the answer.
#[derive(Clone, Copy)]
enum Encoding {
    Text,
    Base64,
}

pub(super) async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (status, body) = match answer(&shared, request).await {
        Ok(body) => (StatusCode::OK, body),
        Err((status, text)) => (status, json!({ "error": text })),
    };
    let number = shared.answers.fetch_add(1, Ordering::Relaxed);
    let sync_token = [("upstash-sync-token", format!("local-{number}"))];
    (status, sync_token, Json(body)).into_response()
}

type Refusal = (StatusCode, String);

fn bad_request(text: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, text.into())
}

async fn answer(shared: &Shared, request: Request) -> Result<Value, Refusal> {
    let (parts, body) = request.into_parts();
    let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
        .map_err(|error| bad_request(format!("ERR {error}")))?;
    if !shared.admits(&parts, &query) {
        let text = "WRONGPASS invalid or missing auth token".to_owned();
        return Err((StatusCode::UNAUTHORIZED, text));
    }
    if ![Method::GET, Method::HEAD, Method::POST, Method::PUT].contains(&parts.method) {
        return Err((
            StatusCode::METHOD_NOT_ALLOWED,
            "ERR method not allowed".to_owned(),
        ));
    }
    if parts
        .headers
        .get("upstash-response-format")
        .is_some_and(|format| format != "json")
    {
        return Err(bad_request("ERR the local front answers in JSON only"));
    }
    let base64 = parts
        .headers
        .get("upstash-encoding")
        .is_some_and(|name| name == "base64");
    let encoding = if base64 {
        Encoding::Base64
    } else {
        Encoding::Text
    };
    let body = to_bytes(body, MAX_REQUEST_BYTES)
        .await
        .map_err(|_| bad_request("ERR max request size exceeded"))?;

    match parts.uri.path() {
        "" | "/" => {
            let command = parse(&body).ok_or_else(|| bad_request("ERR failed to parse command"))?;
            shared.single(command.map_err(bad_request)?, encoding).await
        }
        "/pipeline" => {
            let commands = parse_all(&body)
                .ok_or_else(|| bad_request("ERR failed to parse pipeline request"))?;
            shared.pipeline(commands, encoding).await
        }
        "/multi-exec" => {
            let commands = parse_all(&body)
                .ok_or_else(|| bad_request("ERR failed to parse multi-exec request"))?;
            shared.multi_exec(commands, encoding).await
        }
        path => {
            let mut command: Words = path
                .split('/')
                .skip(1)
                .map(|segment| percent_decode_str(segment).collect())
                .collect();
            if !body.is_empty() {
                command.push(body.to_vec());
            }
            for (name, value) in query.0.into_iter().filter(|(name, _)| name != "_token") {
                command.push(name.into_bytes());
                // `?NX` is an option without a value.
                if !value.is_empty() {
                    command.push(value.into_bytes());
                }
            }
            shared.single(command, encoding).await
        }
    }
}

impl Shared {
    pub(super) fn new(token: String, pool: Pool) -> Self {
        Self {
            token,
            pool,
            scripts: Scripts::default(),
            answers: AtomicU64::new(0),
        }
    }

    fn admits(&self, parts: &Parts, query: &[(String, String)]) -> bool {
        let header = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let bearer = header.and_then(|value| value.strip_prefix("Bearer "));
        let in_query = query.iter().find(|(name, _)| name == "_token");
        bearer.or(in_query.map(|(_, token)| token.as_str())) == Some(self.token.as_str())
    }

    async fn single(&self, command: Words, encoding: Encoding) -> Result<Value, Refusal> {
        if command.is_empty() {
            return Err(bad_request("ERR empty command"));
        }
        let (words, undo) = self.scripts.translate(command).map_err(bad_request)?;
        match self
            .call(&[words])
            .await?
            .pop()
            .map(|reply| undo.restore(reply))
        {
            Some(Reply::Error(text)) => Err(bad_request(text)),
            Some(reply) => Ok(item(reply, encoding)),
            None => Err(unreachable_redis("no reply")),
        }
    }

    async fn pipeline(&self, commands: Vec<Sent>, encoding: Encoding) -> Result<Value, Refusal> {
        if commands.is_empty() {
            return Err(bad_request("ERR empty pipeline request"));
        }
        let mut sent = Vec::new();
        let plan: Vec<Result<Undo, String>> = commands
            .into_iter()
            .map(|command| {
                let command = command?;
                if command.is_empty() {
                    return Err("ERR empty pipeline command".to_owned());
                }
                let (words, undo) = self.scripts.translate(command)?;
                sent.push(words);
                Ok(undo)
            })
            .collect();
        let mut replies = self.call(&sent).await?.into_iter();
        let items = plan.into_iter().filter_map(|planned| match planned {
            // One reply was read for each command that was sent.
            Ok(undo) => replies
                .next()
                .map(|reply| item(undo.restore(reply), encoding)),
            Err(text) => Some(json!({ "error": text })),
        });
        Ok(items.collect())
    }

    async fn multi_exec(&self, commands: Vec<Sent>, encoding: Encoding) -> Result<Value, Refusal> {
        if commands.is_empty() {
            return Err(bad_request("ERR empty multi-exec request"));
        }
        let discarded = |text: &str| {
            bad_request(format!(
                "EXECABORT Transaction discarded because of: {text}"
            ))
        };
        let mut sent = vec![words(&["MULTI"])];
        let mut undos = Vec::new();
        for command in commands {
            let command = command.map_err(|text| discarded(&text))?;
            if command.is_empty() {
                return Err(discarded("ERR empty command"));
            }
            let translated = self.scripts.translate(command);
            let (words, undo) = translated.map_err(|text| discarded(&text))?;
            sent.push(words);
            undos.push(undo);
        }
        sent.push(words(&["EXEC"]));
        let mut replies = self.call(&sent).await?;
        let executed = replies.pop();
        let refused = replies.into_iter().find_map(|reply| match reply {
            Reply::Error(text) => Some(text),
            _ => None,
        });
        match (executed, refused) {
            (Some(Reply::Array(replies)), None) => Ok(undos
                .iter()
                .zip(replies)
                .map(|(undo, reply)| item(undo.restore(reply), encoding))
                .collect()),
            (_, Some(text)) => Err(discarded(&text)),
            (other, None) => Err(unreachable_redis(format!("EXEC answered {other:?}"))),
        }
    }

    async fn call(&self, commands: &[Words]) -> Result<Vec<Reply>, Refusal> {
        self.pool.call(commands).await.map_err(unreachable_redis)
    }
}

fn unreachable_redis(error: impl ToString) -> Refusal {
    let text = format!(
        "ERR the Redis behind the local front: {}",
        error.to_string()
    );
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

/// A command as it was sent, or why it cannot be one.
type Sent = Result<Words, String>;

fn parse(body: &[u8]) -> Option<Sent> {
    let words: Vec<&RawValue> = serde_json::from_slice(body).ok()?;
    Some(words.into_iter().map(word).collect())
}

fn parse_all(body: &[u8]) -> Option<Vec<Sent>> {
    let commands: Vec<Vec<&RawValue>> = serde_json::from_slice(body).ok()?;
    Some(
        commands
            .into_iter()
            .map(|words| words.into_iter().map(word).collect())
            .collect(),
    )
}

fn word(value: &RawValue) -> Result<Vec<u8>, String> {
    let written = value.get();
    match written.as_bytes().first() {
        Some(b'"') => serde_json::from_str(written)
            .map(String::into_bytes)
            .map_err(|error| format!("ERR {error}")),
        // What JavaScript makes of `undefined` and `NaN`: the one command is refused, not the whole pipeline.
        Some(b'n') => Err("ERR null args are not supported".to_owned()),
        Some(b'[' | b'{') => {
            Err("ERR unsupported arg type: only strings, numbers and booleans are words".to_owned())
        }
        // Digit for digit: through a float, large and small numbers would change their spelling.
        _ => Ok(written.as_bytes().to_vec()),
    }
}

fn item(reply: Reply, encoding: Encoding) -> Value {
    match reply {
        Reply::Error(text) => json!({ "error": text }),
        // Clients look for this one word before they decode.
        Reply::Status(text) if text == "OK" => json!({ "result": text }),
        Reply::Bulk(bytes) if bytes == b"OK" => json!({ "result": "OK" }),
        reply => json!({ "result": result(reply, encoding) }),
    }
}

fn result(reply: Reply, encoding: Encoding) -> Value {
    match reply {
        Reply::Nil => Value::Null,
        Reply::Integer(number) => number.into(),
        Reply::Error(text) => text.into(),
        Reply::Status(text) => string(text.as_bytes(), encoding),
        Reply::Bulk(bytes) => string(&bytes, encoding),
        Reply::Array(replies) => replies
            .into_iter()
            .map(|reply| result(reply, encoding))
            .collect(),
    }
}

fn string(bytes: &[u8], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Text => String::from_utf8_lossy(bytes).into(),
        Encoding::Base64 => BASE64_STANDARD.encode(bytes).into(),
    }
}
