//! A stand-in for the mail provider: Resend's wire format, and a page at `/local/mail` with what was sent.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::html::{self, escaped};
use crate::wire::{self, Body, HangUp, Server};

/// The key that it takes.
pub const KEY: &str = "re_local";

/// A mail as it was sent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Mail {
    /// The sender.
    pub from: String,
    /// Who gets it.
    #[serde(deserialize_with = "one_or_many")]
    pub to: Vec<String>,
    /// In one line.
    pub subject: String,
    /// The words.
    #[serde(default)]
    pub text: String,
    /// The words as a page.
    #[serde(default)]
    pub html: String,
}

/// A running stand-in; dropping it stops it.
pub struct StandIn {
    server: Server,
    shared: Arc<Shared>,
}

struct Shared {
    mails: watch::Sender<Vec<Mail>>,
    /// By idempotency key: the id of what was sent under it.
    sent: Mutex<HashMap<String, String>>,
    failures: Mutex<VecDeque<StatusCode>>,
}

impl StandIn {
    /// Listens and takes mail until it is dropped; port 0 takes a free one.
    pub async fn start(listen: SocketAddr) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            mails: watch::Sender::default(),
            sent: Mutex::default(),
            failures: Mutex::default(),
        });
        let handler = {
            let shared = Arc::clone(&shared);
            move |request: Request<Bytes>| {
                let answer = handle(&shared, &request);
                async { answer }
            }
        };
        Ok(Self {
            server: Server::start(listen, handler).await?,
            shared,
        })
    }

    /// The base URL, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.addr)
    }

    /// The mails so far, oldest first.
    pub fn mails(&self) -> Vec<Mail> {
        self.shared.mails.borrow().clone()
    }

    /// Refuses the next request that is not refused yet, with this status.
    pub fn fail_next(&self, status: StatusCode) {
        lock(&self.shared.failures).push_back(status);
    }
}

fn handle(shared: &Shared, request: &Request<Bytes>) -> Result<Response<Body>, HangUp> {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let error = |status: u16, name: &str, message: &str| {
        let status = StatusCode::from_u16(status).map_err(|_| HangUp)?;
        Ok(wire::json(
            status,
            &json!({"statusCode": status.as_u16(), "name": name, "message": message}),
        ))
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/local/mail" | "/local/mail/") => return Ok(list(&shared.mails.borrow())),
        (&Method::POST, "/emails") => {}
        _ => return error(404, "not_found", "The requested endpoint does not exist"),
    }
    if header("authorization") != Some(&format!("Bearer {KEY}")) {
        return error(403, "invalid_api_key", "API key is invalid");
    }
    if let Some(status) = lock(&shared.failures).pop_front() {
        return error(
            status.as_u16(),
            "application_error",
            "An unexpected error occurred",
        );
    }
    let Ok(mail) = serde_json::from_slice::<Mail>(request.body()) else {
        return error(422, "validation_error", "from, to and subject are required");
    };
    let mut sent = lock(&shared.sent);
    let next = format!("00000000-0000-4000-8000-{:012}", sent.len());
    let id = match header("idempotency-key").and_then(|key| sent.get(key)) {
        Some(id) => id.clone(),
        None => {
            sent.insert(
                header("idempotency-key").unwrap_or(&next).to_owned(),
                next.clone(),
            );
            shared.mails.send_modify(|mails| mails.push(mail));
            next
        }
    };
    Ok(wire::json(StatusCode::OK, &json!({ "id": id })))
}

fn list(mails: &[Mail]) -> Response<Body> {
    let one = |mail: &Mail| {
        format!(
            "<section><p><strong>{}</strong></p><p class=quiet>from {} to {}</p><pre>{}</pre></section>",
            escaped(&mail.subject),
            escaped(&mail.from),
            escaped(&mail.to.join(", ")),
            escaped(&mail.text),
        )
    };
    let all: String = mails.iter().rev().map(one).collect();
    let all = if all.is_empty() {
        "<p class=note>Nothing was sent yet.</p>".to_owned()
    } else {
        all
    };
    let body = format!(
        "<main class='card wide'><h1>Mail, locally</h1><p class=quiet>What would have been sent, newest first. It goes \
         nowhere.</p>{all}</main>"
    );
    html::page(StatusCode::OK, "Mail, locally", &body)
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(one) => Ok(vec![one]),
        many => serde_json::from_value(many).map_err(serde::de::Error::custom),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
