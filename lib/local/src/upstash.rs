//! Upstash's REST front, before a real Redis or Valkey: what a deployment finds at Upstash, down to the wording of the
//! errors that clients branch on. A front has a database number of its own, so that tests on one server never meet.

mod resp;
mod scripts;

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use resp::{Connection, Reply};
use scripts::Scripts;

/// How a front is started.
#[derive(Clone, Debug)]
pub struct FrontConfig {
    /// The server behind it.
    pub redis: SocketAddr,
    /// The number of the database that it shows.
    pub database: u32,
    /// The token that it accepts.
    pub token: String,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
}

/// A running front; dropping it stops it.
pub struct Front {
    url: String,
    token: String,
    _stop: DropGuard,
}

struct Shared {
    config: FrontConfig,
    scripts: Scripts,
    /// Connections that no request uses now. A request has one to itself, so that transactions do not interleave.
    idle: Mutex<Vec<Connection>>,
}

type Words = Vec<Vec<u8>>;

impl Front {
    /// Listens and answers until it is dropped.
    #[expect(clippy::disallowed_methods, reason = "the development stack has no platform that registers work")]
    pub async fn start(config: FrontConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let token = config.token.clone();
        let shared = Arc::new(Shared { config, scripts: Scripts::default(), idle: Mutex::default() });
        let stop = CancellationToken::new();
        let router = Router::new().fallback(answer).with_state(shared);
        let server = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        tokio::spawn(server.into_future());
        Ok(Self { url, token, _stop: stop.drop_guard() })
    }

    /// A front with an empty database that nobody else uses, on a server started with enough of them.
    pub async fn isolated(redis: SocketAddr) -> io::Result<Self> {
        let mut first = Connection::open(redis, 0).await?;
        let Reply::Integer(next) = first.call(&["INCR", "iconoclash:next_database"]).await? else {
            return Err(io::Error::other("the server's counter of databases holds no number"));
        };
        let database = u32::try_from(next.rem_euclid(9_999) + 1).map_err(io::Error::other)?;
        Connection::open(redis, database).await?.call(&[b"FLUSHDB"]).await?;
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start(FrontConfig { redis, database, token: "local-token".to_owned(), listen }).await
    }

    /// Its address, for `UPSTASH_REDIS_REST_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its token, for `UPSTASH_REDIS_REST_TOKEN`.
    pub fn token(&self) -> &str {
        &self.token
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query: Vec<(String, String)> = parts.uri.query().map(parse_query).unwrap_or_default();
    if !authorized(&shared.config.token, &parts.headers, &query) {
        return refusal(StatusCode::UNAUTHORIZED, "WRONGPASS invalid or missing auth token");
    }
    if !matches!(parts.method, Method::GET | Method::POST | Method::PUT | Method::HEAD) {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "ERR method not allowed");
    }
    let base64 = parts.headers.get("upstash-encoding").is_some_and(|encoding| encoding == "base64");
    let Ok(body) = axum::body::to_bytes(body, 10 * 1024 * 1024).await else {
        return refusal(StatusCode::PAYLOAD_TOO_LARGE, "ERR max request size exceeded");
    };
    let done = match parts.uri.path() {
        "/" => shared.single(parse_command(&body), base64).await,
        "/pipeline" => shared.pipeline(parse_commands(&body), base64).await,
        "/multi-exec" => shared.transaction(parse_commands(&body), base64).await,
        path => shared.single(path_command(path, &body, &query), base64).await,
    };
    let mut response = match done {
        Ok(document) => axum::Json(document).into_response(),
        Err(message) => refusal(StatusCode::BAD_REQUEST, &message),
    };
    response.headers_mut().insert("upstash-sync-token", header::HeaderValue::from_static("local"));
    response
}

impl Shared {
    async fn single(&self, command: Result<Words, String>, base64: bool) -> Result<Value, String> {
        let mut connection = self.connection().await?;
        let reply = self.run(&mut connection, command?).await?;
        self.give_back(connection);
        let result = shown(reply, base64)?;
        Ok(json!({ "result": result }))
    }

    async fn pipeline(&self, commands: Result<Vec<Words>, String>, base64: bool) -> Result<Value, String> {
        let mut connection = self.connection().await?;
        let mut answers = Vec::new();
        for command in commands? {
            let reply = self.run(&mut connection, command).await;
            answers.push(item(reply.and_then(|reply| shown(reply, base64))));
        }
        self.give_back(connection);
        Ok(answers.into())
    }

    async fn transaction(&self, commands: Result<Vec<Words>, String>, base64: bool) -> Result<Value, String> {
        let commands = commands?.into_iter().map(|command| self.translate(command)).collect::<Result<Vec<_>, _>>()?;
        let mut connection = self.connection().await?;
        let mut failed = None;
        connection.call(&[b"MULTI"]).await.map_err(gone)?;
        for command in &commands {
            if let Reply::Error(error) = connection.call(command).await.map_err(gone)? {
                failed.get_or_insert(error);
            }
        }
        let done = connection.call(&[b"EXEC"]).await.map_err(gone)?;
        self.give_back(connection);
        match (done, failed) {
            (Reply::Array(Some(replies)), None) => {
                Ok(replies.into_iter().map(|reply| item(shown(reply, base64))).collect::<Vec<_>>().into())
            }
            (_, Some(error)) | (Reply::Error(error), None) => Err(error),
            _ => Err("ERR the transaction gave no result".to_owned()),
        }
    }

    async fn run(&self, connection: &mut Connection, command: Words) -> Result<Reply, String> {
        let command = self.translate(command)?;
        connection.call(&command).await.map_err(gone)
    }

    /// Says no to what Upstash does not have, and keeps a command within this front's database.
    fn translate(&self, mut command: Words) -> Result<Words, String> {
        let name = command.first().map(|name| String::from_utf8_lossy(name).to_uppercase()).unwrap_or_default();
        if name.is_empty() {
            return Err("ERR empty command".to_owned());
        }
        if REFUSED.contains(&name.as_str()) {
            return Err(format!("ERR Command is not available: '{name}'. See https://upstash.com/docs"));
        }
        match name.as_str() {
            "FLUSHALL" => command[0] = b"FLUSHDB".to_vec(),
            "EVAL" | "EVAL_RO" | "EVALSHA" | "EVALSHA_RO" | "SCRIPT" => self.scripts.translate(&name, &mut command),
            _ => {}
        }
        Ok(command)
    }

    async fn connection(&self) -> Result<Connection, String> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(connection) => Ok(connection),
            None => Connection::open(self.config.redis, self.config.database).await.map_err(gone),
        }
    }

    /// A connection that failed half-way was dropped before it comes here.
    fn give_back(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

/// They need a connection's state, block it, or reach beyond the database.
const REFUSED: [&str; 34] = [
    "ACL",
    "ASKING",
    "AUTH",
    "BGREWRITEAOF",
    "BGSAVE",
    "BLMOVE",
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "CLIENT",
    "CLUSTER",
    "CONFIG",
    "DEBUG",
    "DISCARD",
    "EXEC",
    "HELLO",
    "MIGRATE",
    "MONITOR",
    "MOVE",
    "MULTI",
    "PSUBSCRIBE",
    "QUIT",
    "REPLICAOF",
    "RESET",
    "SELECT",
    "SHUTDOWN",
    "SUBSCRIBE",
    "SWAPDB",
    "SYNC",
    "WATCH",
];

fn gone(error: io::Error) -> String {
    format!("ERR the local Redis cannot be reached: {error}")
}

fn refusal(status: StatusCode, message: &str) -> Response {
    (status, axum::Json(json!({ "error": message }))).into_response()
}

fn item(result: Result<Value, String>) -> Value {
    result.map_or_else(|error| json!({ "error": error }), |result| json!({ "result": result }))
}

fn authorized(token: &str, headers: &HeaderMap, query: &[(String, String)]) -> bool {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    shown == Some(token) || query.iter().any(|(name, value)| name == "_token" && value == token)
}

/// A reply as JSON; every string is encoded where base64 is asked for, but a plain `OK`.
fn shown(reply: Reply, base64: bool) -> Result<Value, String> {
    fn nested(reply: Reply, base64: bool) -> Value {
        match reply {
            Reply::Simple(text) if base64 => BASE64.encode(text).into(),
            Reply::Simple(text) => text.into(),
            Reply::Error(text) => text.into(),
            Reply::Integer(number) => number.into(),
            Reply::Bulk(Some(bytes)) if base64 => BASE64.encode(bytes).into(),
            Reply::Bulk(Some(bytes)) => String::from_utf8_lossy(&bytes).into(),
            Reply::Array(Some(replies)) => replies.into_iter().map(|reply| nested(reply, base64)).collect(),
            Reply::Bulk(None) | Reply::Array(None) => Value::Null,
        }
    }
    match reply {
        Reply::Error(error) => Err(error),
        Reply::Simple(text) if text == "OK" => Ok(text.into()),
        reply => Ok(nested(reply, base64)),
    }
}

fn parse_command(body: &[u8]) -> Result<Words, String> {
    words(serde_json::from_slice(body).map_err(|error| format!("ERR failed to parse command: {error}"))?)
}

fn parse_commands(body: &[u8]) -> Result<Vec<Words>, String> {
    let commands: Vec<Value> =
        serde_json::from_slice(body).map_err(|error| format!("ERR failed to parse pipeline request: {error}"))?;
    commands.into_iter().map(words).collect()
}

fn words(command: Value) -> Result<Words, String> {
    let Value::Array(words) = command else {
        return Err("ERR failed to parse command: an array is expected".to_owned());
    };
    let word = |word| match word {
        Value::String(text) => Ok(text.into_bytes()),
        Value::Number(_) | Value::Bool(_) => Ok(word.to_string().into_bytes()),
        _ => Err("ERR failed to parse command: arguments are strings and numbers".to_owned()),
    };
    words.into_iter().map(word).collect()
}

/// `/set/key/value/EX/100`: a body is the last word of the path, and the query's names and values follow it.
fn path_command(path: &str, body: &Bytes, query: &[(String, String)]) -> Result<Words, String> {
    let mut words: Words = path[1..].split('/').map(percent_decoded).collect();
    if !body.is_empty() {
        words.push(body.to_vec());
    }
    for (name, value) in query.iter().filter(|(name, _)| name != "_token") {
        words.push(name.clone().into_bytes());
        if !value.is_empty() {
            words.push(value.clone().into_bytes());
        }
    }
    Ok(words)
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    let text = |part: &str| String::from_utf8_lossy(&percent_decoded(&part.replace('+', " "))).into_owned();
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(name, value)| (text(name), text(value))).collect()
}

fn percent_decoded(text: &str) -> Vec<u8> {
    percent_encoding::percent_decode_str(text).collect()
}
