//! An HTTP server that can also misbehave: it closes a connection before or during an answer.
//!
//! It speaks HTTP/1.1, or HTTP/2 over TLS, where it resets the request's stream instead of closing the connection.
//! Fakes and proxies run on it, because a web framework always answers.

#![expect(
    clippy::disallowed_methods,
    reason = "local servers outlive the request that meets them"
)]

mod http2;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use http2::Http2;

/// A response body. An error in it closes the connection in the middle of the body.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A request without an answer.
#[derive(Debug)]
pub(crate) enum HangUp {
    /// The connection closes.
    Close,
    /// The stream is reset as one that was not processed. On HTTP/1.1 the connection closes.
    Refuse(h2::Error),
}

impl HangUp {
    pub(crate) fn refuse() -> Self {
        Self::Refuse(h2::Reason::REFUSED_STREAM.into())
    }
}

impl std::fmt::Display for HangUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hung up on purpose")
    }
}

impl std::error::Error for HangUp {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Close => None,
            Self::Refuse(reason) => Some(reason),
        }
    }
}

/// A running server. Dropping it stops it and closes every connection.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    http2: Option<Arc<Http2>>,
    _stop: DropGuard,
}

impl Server {
    pub(crate) async fn start<H, F>(listen: SocketAddr, handler: H) -> io::Result<Self>
    where
        H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, HangUp>> + Send + 'static,
    {
        Self::listen(listen, handler, None).await
    }

    /// The same server with HTTP/2 over TLS, which grants each connection this number of streams at a time.
    pub(crate) async fn start_http2<H, F>(
        listen: SocketAddr,
        handler: H,
        max_streams: u32,
    ) -> io::Result<Self>
    where
        H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, HangUp>> + Send + 'static,
    {
        let http2 = Arc::new(Http2::new(max_streams)?);

        Self::listen(listen, handler, Some(http2)).await
    }

    async fn listen<H, F>(
        listen: SocketAddr,
        handler: H,
        http2: Option<Arc<Http2>>,
    ) -> io::Result<Self>
    where
        H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, HangUp>> + Send + 'static,
    {
        let listener = TcpListener::bind(listen).await?;
        let addr = listener.local_addr()?;

        let stop = CancellationToken::new();
        let accepting = accept(listener, handler, http2.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(accepting));

        Ok(Self {
            addr,
            http2,
            _stop: stop.drop_guard(),
        })
    }

    /// The base URL.
    pub(crate) fn url(&self) -> String {
        match self.http2 {
            None => format!("http://{}", self.addr),
            Some(_) => format!("https://{}", self.addr),
        }
    }

    /// What a test can ask of a server with HTTP/2.
    pub(crate) fn http2(&self) -> Option<&Http2> {
        self.http2.as_deref()
    }
}

async fn accept<H, F>(
    listener: TcpListener,
    handler: H,
    http2: Option<Arc<Http2>>,
    stop: CancellationToken,
) where
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
                let body = body.collect().await.map_err(|_| HangUp::Close)?.to_bytes();

                handler(Request::from_parts(parts, body)).await
            }
        });

        let connection = serve(socket, service, http2.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
    }
}

async fn serve<S>(socket: TcpStream, service: S, http2: Option<Arc<Http2>>)
where
    S: HttpService<Incoming, ResBody = Body, Error = HangUp> + Send + 'static,
    S::Future: Send + 'static,
{
    // A failed connection is the client's to report.
    match http2 {
        Some(http2) => http2.serve(socket, service).await,
        None => {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
            let _ended = connection.await;
        }
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
