//! The HTTP side: authentication, the three kinds of requests, and replies in JSON.

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
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{
    dialect::{Restore, Scripts},
    request::{Command, parse, parse_all},
    resp::{Pool, Reply, Words, words},
};

/// Upstash's limit on its free and pay-as-you-go plans.
const MAX_REQUEST_BYTES: usize = 10 * 1024 * 1024;
const METHODS: [Method; 4] = [Method::GET, Method::HEAD, Method::POST, Method::PUT];

pub(super) struct Shared {
    token: String,
    pool: Pool,
    scripts: Scripts,
    answers: AtomicU64,
}

/// The encoding of strings in the answer.
#[derive(Clone, Copy)]
enum Encoding {
    Text,
    Base64,
}

type QueryPairs = Vec<(String, String)>;

/// An error's status and text.
type Refusal = (StatusCode, String);

fn bad_request(text: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, text.into())
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

async fn answer(shared: &Shared, request: Request) -> Result<Value, Refusal> {
    let (parts, body) = request.into_parts();
    let Query(query) = Query::<QueryPairs>::try_from_uri(&parts.uri)
        .map_err(|error| bad_request(format!("ERR {error}")))?;
    shared.check(&parts, &query)?;

    let is_base64 = has_header(&parts, "upstash-encoding", "base64");
    let encoding = match is_base64 {
        true => Encoding::Base64,
        false => Encoding::Text,
    };
    let body = to_bytes(body, MAX_REQUEST_BYTES)
        .await
        .map_err(|_| bad_request("ERR max request size exceeded"))?;

    match parts.uri.path() {
        "" | "/" => {
            let command = parse(&body).ok_or_else(|| unparsable("command"))?;
            let command = command.map_err(bad_request)?;
            shared.single(command, encoding).await
        }
        "/pipeline" => {
            let commands = parse_all(&body).ok_or_else(|| unparsable("pipeline request"))?;
            shared.pipeline(commands, encoding).await
        }
        "/multi-exec" => {
            let commands = parse_all(&body).ok_or_else(|| unparsable("multi-exec request"))?;
            shared.multi_exec(commands, encoding).await
        }
        path => {
            let command = command_from_path(path, &body, query);
            shared.single(command, encoding).await
        }
    }
}

fn unparsable(what: &str) -> Refusal {
    bad_request(format!("ERR failed to parse {what}"))
}

fn has_header(parts: &Parts, name: &str, expected: &str) -> bool {
    parts
        .headers
        .get(name)
        .is_some_and(|value| value == expected)
}

/// The command of a path such as `/set/key`, with the body and the query as further words.
fn command_from_path(path: &str, body: &Bytes, query: QueryPairs) -> Words {
    let segments = path.split('/').skip(1);
    let mut command: Words = segments
        .map(|segment| percent_decode_str(segment).collect())
        .collect();

    if !body.is_empty() {
        command.push(body.to_vec());
    }
    for (name, value) in query.into_iter().filter(|(name, _)| name != "_token") {
        command.push(name.into_bytes());
        // `?NX` is an option without a value.
        if !value.is_empty() {
            command.push(value.into_bytes());
        }
    }

    command
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

    /// Checks the token, the method and the format of the answer.
    fn check(&self, parts: &Parts, query: &[(String, String)]) -> Result<(), Refusal> {
        if !self.is_authorized(parts, query) {
            let text = "WRONGPASS invalid or missing auth token".to_owned();
            return Err((StatusCode::UNAUTHORIZED, text));
        }
        if !METHODS.contains(&parts.method) {
            let text = "ERR method not allowed".to_owned();
            return Err((StatusCode::METHOD_NOT_ALLOWED, text));
        }

        let format = parts.headers.get("upstash-response-format");
        if format.is_some_and(|format| format != "json") {
            return Err(bad_request("ERR the local proxy answers in JSON only"));
        }
        Ok(())
    }

    fn is_authorized(&self, parts: &Parts, query: &[(String, String)]) -> bool {
        let header = parts.headers.get(AUTHORIZATION);
        let header = header.and_then(|value| value.to_str().ok());
        let bearer = header.and_then(|value| value.strip_prefix("Bearer "));

        let in_query = query.iter().find(|(name, _)| name == "_token");
        let token = bearer.or(in_query.map(|(_, token)| token.as_str()));
        token == Some(self.token.as_str())
    }

    async fn single(&self, command: Words, encoding: Encoding) -> Result<Value, Refusal> {
        if command.is_empty() {
            return Err(bad_request("ERR empty command"));
        }

        let (words, restore) = self.scripts.translate(command).map_err(bad_request)?;
        let reply = self.call(&[words]).await?.pop();

        match reply.map(|reply| restore.apply(reply)) {
            Some(Reply::Error(text)) => Err(bad_request(text)),
            Some(reply) => Ok(item(reply, encoding)),
            None => Err(unreachable_redis("no reply")),
        }
    }

    async fn pipeline(&self, commands: Vec<Command>, encoding: Encoding) -> Result<Value, Refusal> {
        if commands.is_empty() {
            return Err(bad_request("ERR empty pipeline request"));
        }

        let mut sent = Vec::new();
        let mut translate = |command: Command| {
            let command = command?;
            if command.is_empty() {
                return Err("ERR empty pipeline command".to_owned());
            }
            let (words, restore) = self.scripts.translate(command)?;
            sent.push(words);
            Ok(restore)
        };
        let translated: Vec<Result<Restore, String>> =
            commands.into_iter().map(&mut translate).collect();

        let mut replies = self.call(&sent).await?.into_iter();
        let items = translated.into_iter().filter_map(|command| match command {
            // One reply was read for each command that was sent.
            Ok(restore) => {
                let reply = replies.next()?;
                Some(item(restore.apply(reply), encoding))
            }
            Err(text) => Some(json!({ "error": text })),
        });
        Ok(items.collect())
    }

    async fn multi_exec(
        &self,
        commands: Vec<Command>,
        encoding: Encoding,
    ) -> Result<Value, Refusal> {
        if commands.is_empty() {
            return Err(bad_request("ERR empty multi-exec request"));
        }

        let mut sent = vec![words(&["MULTI"])];
        let mut restores = Vec::new();
        for command in commands {
            let command = command.map_err(|text| discarded(&text))?;
            if command.is_empty() {
                return Err(discarded("ERR empty command"));
            }
            let translated = self.scripts.translate(command);
            let (words, restore) = translated.map_err(|text| discarded(&text))?;
            sent.push(words);
            restores.push(restore);
        }
        sent.push(words(&["EXEC"]));

        let mut replies = self.call(&sent).await?;
        let executed = replies.pop();
        let refused = replies.into_iter().find_map(|reply| match reply {
            Reply::Error(text) => Some(text),
            _ => None,
        });

        match (executed, refused) {
            (Some(Reply::Array(replies)), None) => {
                let items = restores.iter().zip(replies);
                let items = items.map(|(restore, reply)| item(restore.apply(reply), encoding));
                Ok(items.collect())
            }
            (_, Some(text)) => Err(discarded(&text)),
            (other, None) => Err(unreachable_redis(format!("EXEC answered {other:?}"))),
        }
    }

    async fn call(&self, commands: &[Words]) -> Result<Vec<Reply>, Refusal> {
        self.pool.call(commands).await.map_err(unreachable_redis)
    }
}

fn discarded(text: &str) -> Refusal {
    bad_request(format!(
        "EXECABORT Transaction discarded because of: {text}"
    ))
}

fn unreachable_redis(error: impl ToString) -> Refusal {
    let error = error.to_string();
    let text = format!("ERR the Redis behind the local proxy: {error}");

    (StatusCode::SERVICE_UNAVAILABLE, text)
}

fn item(reply: Reply, encoding: Encoding) -> Value {
    match reply {
        Reply::Error(text) => json!({ "error": text }),
        // Clients compare this one word before they decode.
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
