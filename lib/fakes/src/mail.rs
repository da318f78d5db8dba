//! A fake mail provider: Resend's wire format, and a page at `/local/mail` with all mails.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use maud::html;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::faulty_http::{self, Body, HangUp, Server};
use crate::html;
use crate::sync::lock;

/// The key that the fake accepts.
pub const KEY: &str = "re_local";

/// A mail as it was sent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Mail {
    /// The sender.
    pub from: String,
    /// The recipients.
    #[serde(deserialize_with = "one_or_many")]
    pub to: Vec<String>,
    /// The subject line.
    pub subject: String,
    /// The plain text body.
    #[serde(default)]
    pub text: String,
    /// The HTML body.
    #[serde(default)]
    pub html: String,
}

/// A running fake mail provider. Dropping it stops it.
pub struct FakeMail {
    server: Server,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    mails: watch::Sender<Vec<Mail>>,
    /// Ids of the mails by idempotency key.
    sent: Mutex<HashMap<String, String>>,
    failures: Mutex<VecDeque<StatusCode>>,
}

impl FakeMail {
    /// Listens and accepts mail until it is dropped. Port 0 takes a free port.
    pub async fn start(listen: SocketAddr) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());

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
        self.server.url()
    }

    /// The mails so far, oldest first.
    pub fn mails(&self) -> Vec<Mail> {
        self.shared.mails.borrow().clone()
    }

    /// Refuses the next request that has no failure yet with this status.
    pub fn fail_next(&self, status: StatusCode) {
        lock(&self.shared.failures).push_back(status);
    }
}

fn handle(shared: &Shared, request: &Request<Bytes>) -> Result<Response<Body>, HangUp> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/local/mail" | "/local/mail/") => Ok(inbox(&shared.mails.borrow())),
        (&Method::POST, "/emails") => send(shared, request),
        _ => error(404, "not_found", "The requested endpoint does not exist"),
    }
}

fn send(shared: &Shared, request: &Request<Bytes>) -> Result<Response<Body>, HangUp> {
    let header = |name: &str| request.headers().get(name)?.to_str().ok();

    if header("authorization") != Some(&format!("Bearer {KEY}")) {
        return error(403, "invalid_api_key", "API key is invalid");
    }
    if let Some(status) = lock(&shared.failures).pop_front() {
        let message = "An unexpected error occurred";
        return error(status.as_u16(), "application_error", message);
    }
    let Ok(mail) = serde_json::from_slice::<Mail>(request.body()) else {
        return error(422, "validation_error", "from, to and subject are required");
    };

    let id = accept(shared, mail, header("idempotency-key"));
    Ok(faulty_http::json(StatusCode::OK, &json!({ "id": id })))
}

/// Accepts a mail and returns its id; a repeated idempotency key returns the first mail's id.
fn accept(shared: &Shared, mail: Mail, idempotency_key: Option<&str>) -> String {
    let mut sent = lock(&shared.sent);
    if let Some(id) = idempotency_key.and_then(|key| sent.get(key)) {
        return id.clone();
    }

    let id = format!("00000000-0000-4000-8000-{:012}", sent.len());
    sent.insert(idempotency_key.unwrap_or(&id).to_owned(), id.clone());
    shared.mails.send_modify(|mails| mails.push(mail));

    id
}

fn error(status: u16, name: &str, message: &str) -> Result<Response<Body>, HangUp> {
    let status = StatusCode::from_u16(status).map_err(|_| HangUp::Close)?;
    let body = json!({"statusCode": status.as_u16(), "name": name, "message": message});

    Ok(faulty_http::json(status, &body))
}

/// The page with all mails, newest first.
fn inbox(mails: &[Mail]) -> Response<Body> {
    let body = html! {
        main.card.wide {
            h1 { "Mail, locally" }
            p.quiet { "The mails that would have been sent, newest first. They go nowhere." }
            @if mails.is_empty() {
                p.note { "No mail was sent yet." }
            }
            @for mail in mails.iter().rev() {
                section {
                    p { strong { (mail.subject) } }
                    p.quiet { "from " (mail.from) " to " (mail.to.join(", ")) }
                    pre { (mail.text) }
                }
            }
        }
    };

    html::page(StatusCode::OK, "Mail, locally", &body)
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(one) => Ok(vec![one]),
        many => serde_json::from_value(many).map_err(serde::de::Error::custom),
    }
}
