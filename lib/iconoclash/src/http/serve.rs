//! Runs a router where it is deployed: on Vercel, on AWS Lambda (feature `lambda`), or in one process for development
//! and tests. This is the only file that knows a platform.
//!
//! The runtime's own axum layer buffers the request, streams only some content types and drops the handle that keeps
//! an invocation alive; the adapter here does none of these.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequestParts, Request},
    http::request::Parts,
    middleware,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{Uri, header, uri::PathAndQuery};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, Limited};
use sync_wrapper::SyncWrapper;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use vercel_runtime::{AppState, ResponseBody};

use crate::{
    app::App,
    http::{cors, error::Error, observe},
};

/// What `main` of an endpoint returns.
pub type Result = std::result::Result<(), vercel_runtime::Error>;

/// Largest request body: a message of 8,000 characters, each escaped, with room to spare.
const MAX_BODY_BYTES: usize = 128 * 1024;

/// Serves a resource until the platform ends the process. Work registered with [`Background`] finishes first.
pub async fn run(resource: fn() -> OpenApiRouter<App>) -> Result {
    observe::init();
    let router = stack(resource().into(), App::from_env());

    #[cfg(feature = "lambda")]
    if crate::config::on_lambda() {
        return lambda(router).await;
    }

    vercel(router).await
}

/// The layers around every route, wherever it runs: request id and log line, CORS, panics, body limit, and before all
/// of them the slash at the end of a path.
pub fn stack(router: Router<App>, app: App) -> Router {
    let observe = middleware::from_fn_with_state(app.clone(), observe::observe);

    let routes = router
        .fallback(async || Error::NotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::map_request(limit_body))
        .layer(CatchPanicLayer::custom(panic_response))
        .layer(cors::layer(app.clone()))
        .layer(observe)
        .with_state(app);

    // A layer of the router would run after the route is chosen.
    Router::new().fallback_service(routes.map_request(without_trailing_slash))
}

/// `/api/icons/` is `/api/icons`: some clients and proxies add the slash.
fn without_trailing_slash(mut request: Request) -> Request {
    let uri = request.uri();
    let path = uri.path();
    let trimmed = path.trim_end_matches('/');
    if trimmed.len() == path.len() || trimmed.is_empty() {
        return request;
    }

    let path_and_query = match uri.query() {
        Some(query) => format!("{trimmed}?{query}"),
        None => trimmed.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(path_and_query).ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

/// Makes reading a body fail beyond the limit; before the first byte if `Content-Length` is beyond it.
///
/// The request itself is not rejected here, because each route answers an oversized body in its own way: a webhook's
/// sender understands 400 only.
async fn limit_body(request: Request) -> Request {
    let length = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let is_too_large = length.is_some_and(|length: usize| length > MAX_BODY_BYTES);

    request.map(|body| match is_too_large {
        // One byte under a limit of none: the first read fails.
        true => Body::new(Limited::new(Full::new(Bytes::from_static(b"-")), 0)),
        false => Body::new(Limited::new(body, MAX_BODY_BYTES)),
    })
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "`CatchPanicLayer` passes it by value"
)]
fn panic_response(payload: Box<dyn std::any::Any + Send>) -> Response {
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a value that is not text");

    Error::internal(format!("panicked: {message}")).into_response()
}

/// Registers work that outlives its request. The platform keeps the invocation, and at shutdown the process, until the
/// work is done, even if the client has disconnected.
#[derive(Clone)]
pub struct Background {
    platform: Option<AppState>,
    tasks: TaskTracker,
}

impl Background {
    /// Work of a long-lived process, such as the development server or a test, which waits with [`Background::idle`].
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
        let background = parts.extensions.get::<Self>();
        Ok(background
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

        let response = router.clone().oneshot(request);
        async move {
            let response = response.await.unwrap_or_else(|never| match never {});
            Ok(response.map(|body| ResponseBody(BodyExt::boxed(SyncBody::from(body)))))
        }
    };

    vercel_runtime::run(vercel_runtime::service_fn(handle)).await
}

/// Lambda freezes the process when the response ends, so the response ends when the registered work is done.
#[cfg(feature = "lambda")]
async fn lambda(router: Router) -> Result {
    let handle = move |request: lambda_http::Request| {
        let background = Background::in_process();
        let (mut parts, body) = request.into_parts();
        set_client_address(&mut parts);
        let mut request = axum::extract::Request::from_parts(parts, Body::new(body));
        request.extensions_mut().insert(background.clone());

        let response = router.clone().oneshot(request);
        async move {
            let response = response.await.unwrap_or_else(|never| match never {});
            Ok::<_, Infallible>(response.map(|body| body_until_idle(body, background)))
        }
    };

    lambda_http::run_with_streaming_response(lambda_http::service_fn(handle)).await
}

/// Writes the client's address into the header that Vercel sets.
///
/// Vercel overwrites that header; the gateway does not, so a client could otherwise choose the network that its limits
/// are counted by.
#[cfg(feature = "lambda")]
fn set_client_address(parts: &mut Parts) {
    use http::HeaderValue;
    use lambda_http::{RequestExt, request::RequestContext};

    use super::network::ADDRESS;

    parts.headers.remove(ADDRESS);
    if let Some(RequestContext::ApiGatewayV2(context)) = parts.request_context_ref()
        && let Some(address) = context.http.source_ip.as_deref()
        && let Ok(address) = HeaderValue::from_str(address)
    {
        parts.headers.insert(ADDRESS, address);
    }
}

#[cfg(feature = "lambda")]
fn body_until_idle(body: Body, background: Background) -> Body {
    use futures_util::{StreamExt, stream};

    let end = stream::once(async move {
        background.idle().await;
        Ok(Bytes::new())
    });
    Body::from_stream(body.into_data_stream().chain(end))
}

/// A response body that passes each frame on as it is produced.
///
/// The runtime requires `Sync`, which axum's body is not. `SyncWrapper` provides it, because it gives no access through
/// a shared reference.
struct SyncBody {
    body: SyncWrapper<Body>,
    size_hint: SizeHint,
    is_end_stream: bool,
}

impl From<Body> for SyncBody {
    fn from(body: Body) -> Self {
        let size_hint = http_body::Body::size_hint(&body);
        let is_end_stream = http_body::Body::is_end_stream(&body);

        Self {
            body: SyncWrapper::new(body),
            size_hint,
            is_end_stream,
        }
    }
}

impl http_body::Body for SyncBody {
    type Data = Bytes;
    type Error = vercel_runtime::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let body = this.body.get_mut();
        let frame = Pin::new(&mut *body).poll_frame(cx);

        this.size_hint = http_body::Body::size_hint(body);
        this.is_end_stream = http_body::Body::is_end_stream(body);

        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.is_end_stream
    }

    fn size_hint(&self) -> SizeHint {
        self.size_hint
    }
}

#[cfg(test)]
#[cfg(feature = "lambda")]
mod tests {
    use lambda_http::request::RequestContext;
    use serde_json::{Value, json};

    use super::*;
    use crate::http::network::ADDRESS;

    #[track_caller]
    fn check(source_ip: Value, expected: Option<&str>) {
        let context = json!({"http": {"method": "GET", "sourceIp": source_ip}, "timeEpoch": 0});
        let context = RequestContext::ApiGatewayV2(serde_json::from_value(context).unwrap());
        let request = Request::builder()
            .header(ADDRESS, "192.0.2.1")
            .header(ADDRESS, "192.0.2.2")
            .extension(context);
        let (mut parts, _) = request.body(Body::empty()).unwrap().into_parts();

        set_client_address(&mut parts);

        let addresses: Vec<_> = parts.headers.get_all(ADDRESS).iter().collect();
        assert_eq!(addresses, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn on_lambda_the_gateway_names_the_clients_address() {
        check(json!("198.51.100.7"), Some("198.51.100.7"));
        check(json!("2001:db8::1"), Some("2001:db8::1"));
        check(Value::Null, None);
    }
}
