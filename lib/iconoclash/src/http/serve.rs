//! Runs a router where it is deployed: on Vercel, on AWS Lambda (feature `lambda`), or in one process for development
//! and tests. This is the only file that knows a platform.
//!
//! The runtime's own axum layer buffers the request, streams only some content types and drops the handle that keeps
//! an invocation alive; the adapter here does none of these.

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequestParts, Request},
    http::request::Parts,
    middleware,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, Limited};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use sync_wrapper::SyncWrapper;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};
use utoipa_axum::router::OpenApiRouter;
use vercel_runtime::{AppState, ResponseBody};

use crate::{
    app::App,
    http::{error::Error, observe},
};

/// What `main` of an endpoint returns.
pub type Result = std::result::Result<(), vercel_runtime::Error>;

/// Largest request body in bytes: a message of 8,000 characters, each escaped, with room to spare.
pub const MAX_BODY: usize = 128 * 1024;

/// Serves a resource until the platform ends the process; work registered with [`Background`] finishes first.
pub async fn run(resource: fn() -> OpenApiRouter<App>) -> Result {
    observe::init();
    let router = stack(resource().into(), App::from_env());
    #[cfg(feature = "lambda")]
    if crate::config::on_lambda() {
        return lambda(router).await;
    }
    vercel(router).await
}

/// The layers around every route, wherever it runs: request id and log line, CORS, panics, body limit.
pub fn stack(router: Router<App>, app: App) -> Router {
    let router = router
        .fallback(async || Error::NotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::map_request(limit_body))
        .layer(CatchPanicLayer::custom(answer_panic))
        .layer(cors(app.clone()))
        .layer(middleware::from_fn_with_state(
            app.clone(),
            observe::observe,
        ));
    router.with_state(app)
}

/// Makes reading a body fail beyond the limit; at once, unread, where its length says that it is beyond. Not a refusal
/// of the request: what a body that is too large comes to is the route's to say, and a webhook's sender knows 400 only.
async fn limit_body(request: Request) -> Request {
    let length = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let too_large = length.is_some_and(|length: usize| length > MAX_BODY);
    request.map(|body| match too_large {
        true => Body::new(Limited::new(Full::new(Bytes::from_static(b"-")), 0)),
        false => Body::new(Limited::new(body, MAX_BODY)),
    })
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the layer hands the payload over"
)]
fn answer_panic(payload: Box<dyn std::any::Any + Send>) -> Response {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a value");
    Error::Internal(format!("panicked: {text}").into()).into_response()
}

/// Who may call from a browser, and what it may read there.
fn cors(app: App) -> CorsLayer {
    let exposed = [
        "x-request-id",
        "ratelimit-policy",
        "ratelimit",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "retry-after",
        "idempotent-replayed",
    ];
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(
            move |origin: &HeaderValue, _: &Parts| {
                origin
                    .to_str()
                    .is_ok_and(|origin| app.config().allows_origin(origin))
            },
        ))
        .allow_credentials(true)
        .allow_methods([
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
        ])
        .expose_headers(exposed.map(HeaderName::from_static))
        .max_age(Duration::from_secs(7200))
}

/// Registers work that outlives its request: the platform keeps the invocation, and at the end the process, until it
/// is done, whether or not the client is still there.
#[derive(Clone)]
pub struct Background {
    platform: Option<AppState>,
    tasks: TaskTracker,
}

impl Background {
    /// Work that a long-lived process, such as the development server or a test, can wait for.
    pub fn in_process() -> Self {
        Self {
            platform: None,
            tasks: TaskTracker::new(),
        }
    }

    /// Starts the work and registers it.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let work = self.tasks.track_future(work);
        match &self.platform {
            Some(vercel) => vercel.wait_until(work),
            None => {
                #[expect(clippy::disallowed_methods, reason = "the tracker knows this task")]
                tokio::spawn(work);
            }
        }
    }

    /// Waits until all registered work is done.
    pub async fn idle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl<S: Sync> FromRequestParts<S> for Background {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, Infallible> {
        Ok(parts
            .extensions
            .get::<Self>()
            .expect("every way to run a router adds `Background`")
            .clone())
    }
}

async fn vercel(router: Router) -> Result {
    let handle = move |request: vercel_runtime::Request, state: AppState| {
        let background = Background {
            platform: Some(state),
            tasks: TaskTracker::new(),
        };
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(background);
        let answer = router.clone().oneshot(request);
        async move {
            let response = answer.await.unwrap_or_else(|never| match never {});
            Ok(response.map(|body| ResponseBody(BodyExt::boxed(FrameByFrame::from(body)))))
        }
    };
    vercel_runtime::run(vercel_runtime::service_fn(handle)).await
}

/// Lambda freezes the process when the answer ends, so the answer ends when the registered work is done.
#[cfg(feature = "lambda")]
async fn lambda(router: Router) -> Result {
    let handle = move |request: lambda_http::Request| {
        let background = Background::in_process();
        let (mut parts, body) = request.into_parts();
        name_network(&mut parts);
        let mut request = axum::extract::Request::from_parts(parts, Body::new(body));
        request.extensions_mut().insert(background.clone());
        let answer = router.clone().oneshot(request);
        async move {
            let response = answer.await.unwrap_or_else(|never| match never {});
            Ok::<_, Infallible>(response.map(|body| held_open(body, background)))
        }
    };
    lambda_http::run_with_streaming_response(lambda_http::service_fn(handle)).await
}

/// Puts the caller's address where the routes look for it. Vercel lets nobody else write that header; here anybody could,
/// and would choose a network for every limit.
#[cfg(feature = "lambda")]
fn name_network(parts: &mut Parts) {
    use super::network::ADDRESS;
    use lambda_http::{RequestExt, request::RequestContext};

    parts.headers.remove(ADDRESS);
    if let Some(RequestContext::ApiGatewayV2(context)) = parts.request_context_ref()
        && let Some(address) = context.http.source_ip.as_deref()
        && let Ok(address) = HeaderValue::from_str(address)
    {
        parts.headers.insert(ADDRESS, address);
    }
}

#[cfg(feature = "lambda")]
fn held_open(body: Body, background: Background) -> Body {
    use futures_util::{StreamExt, stream};
    let end = stream::once(async move {
        background.idle().await;
        Ok(Bytes::new())
    });
    Body::from_stream(body.into_data_stream().chain(end))
}

/// Passes a response on as it is made. The runtime wants a body that can be shared between threads, which axum's is
/// not: the wrapper grants it, because nobody can reach the body through a shared reference.
struct FrameByFrame {
    body: SyncWrapper<Body>,
    left: SizeHint,
    ended: bool,
}

impl From<Body> for FrameByFrame {
    fn from(body: Body) -> Self {
        let (left, ended) = (
            http_body::Body::size_hint(&body),
            http_body::Body::is_end_stream(&body),
        );
        Self {
            body: SyncWrapper::new(body),
            left,
            ended,
        }
    }
}

impl http_body::Body for FrameByFrame {
    type Data = Bytes;
    type Error = vercel_runtime::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Self::Error>>> {
        let body = self.body.get_mut();
        let frame = Pin::new(&mut *body).poll_frame(cx);
        let (left, ended) = (
            http_body::Body::size_hint(body),
            http_body::Body::is_end_stream(body),
        );
        (self.left, self.ended) = (left, ended);
        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left
    }
}

#[cfg(test)]
#[cfg(feature = "lambda")]
mod tests {
    use super::*;
    use crate::http::network::ADDRESS;
    use lambda_http::request::RequestContext;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(source_ip: Value, expected: Option<&str>) {
        let context = json!({"http": {"method": "GET", "sourceIp": source_ip}, "timeEpoch": 0});
        let context = RequestContext::ApiGatewayV2(serde_json::from_value(context).unwrap());
        let request = Request::builder()
            .header(ADDRESS, "192.0.2.1")
            .header(ADDRESS, "192.0.2.2");
        let (mut parts, _) = request
            .extension(context)
            .body(Body::empty())
            .unwrap()
            .into_parts();
        name_network(&mut parts);
        let named: Vec<_> = parts.headers.get_all(ADDRESS).iter().collect();
        assert_eq!(named, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn on_lambda_the_gateway_says_where_a_request_comes_from() {
        check(json!("198.51.100.7"), Some("198.51.100.7"));
        check(json!("2001:db8::1"), Some("2001:db8::1"));
        check(Value::Null, None);
    }
}
