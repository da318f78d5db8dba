//! An HTTP/1.1 server that can also misbehave: it closes a connection before or during an answer.
//!
//! Fakes and proxies run on it, because a web framework always answers.

#![expect(
    clippy::disallowed_methods,
    reason = "local servers outlive the request that meets them"
)]

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A response body. An error in it closes the connection in the middle of the body.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Closes the connection without an answer.
#[derive(Debug)]
pub(crate) struct HangUp;

impl std::fmt::Display for HangUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hung up on purpose")
    }
}

impl std::error::Error for HangUp {}

/// A running server. Dropping it stops it and closes every connection.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    _stop: DropGuard,
}

impl Server {
    pub(crate) async fn start<H, F>(listen: SocketAddr, handler: H) -> io::Result<Self>
    where
        H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, HangUp>> + Send + 'static,
    {
        let listener = TcpListener::bind(listen).await?;
        let addr = listener.local_addr()?;

        let stop = CancellationToken::new();
        let accepting = accept(listener, handler, stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));

        Ok(Self {
            addr,
            _stop: stop.drop_guard(),
        })
    }

    /// The base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

async fn accept<H, F>(listener: TcpListener, handler: H, stop: CancellationToken)
where
    H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<Body>, HangUp>> + Send + 'static,
{
    loop {
        // The client left before its connection was accepted.
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        let _ = socket.set_nodelay(true);

        let handler = handler.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let handler = handler.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map_err(|_| HangUp)?.to_bytes();

                handler(Request::from_parts(parts, body)).await
            }
        });

        let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
        tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
    }
}

/// A body that is sent at once.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that is sent chunk by chunk.
pub(crate) fn streamed(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map_ok(Frame::data).boxed()).boxed_unsync()
}

pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;

    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);

    response
}

pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    answer(status, "application/json", full(value.to_string()))
}

/// The first half of a JSON document, sent as if it were the whole.
pub(crate) fn half_json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let whole = value.to_string();
    let half = whole[..whole.floor_char_boundary(whole.len() / 2)].to_owned();

    answer(status, "application/json", full(half))
}
