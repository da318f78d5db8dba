//! A function whose routes fail or wait on demand: a test creates the file that a route waits for.

use axum::{
    Router,
    body::Body,
    extract::State,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header;
use iconoclash::{
    app::App,
    http::{
        error::Result,
        extract::Json,
        serve::{self, Background},
    },
};
use std::{env, fs, path::PathBuf, process::ExitCode, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use utoipa_axum::router::OpenApiRouter;

/// Runs until SIGTERM.
pub(crate) fn serve() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let serving = async {
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        tokio::spawn(async move {
            terminate.recv().await;
            fs::write(file("terminating"), "").unwrap();
        });
        serve::run(router).await
    };
    match runtime.block_on(serving) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn router() -> OpenApiRouter<App> {
    let routes = Router::new()
        .route("/alive", get(async || "yes"))
        .route(
            "/echo",
            post(async |Json(body): Json<serde_json::Value>| axum::Json(body)),
        )
        .route(
            "/panic",
            get(async || -> &'static str { panic!("on demand") }),
        )
        .route("/ndjson", get(ndjson))
        .route("/work", post(work))
        .route("/produce", get(produce))
        .route(
            "/needs-postgres",
            get(async |State(app): State<App>| -> Result<()> { app.db().map(|_| ()) }),
        );
    OpenApiRouter::from(routes)
}

async fn ndjson() -> Response {
    let second = stream::once(async {
        until_created("second").await;
        Ok::<_, std::io::Error>(Bytes::from("{\"line\":2}\n"))
    });
    let lines = stream::once(async { Ok(Bytes::from("{\"line\":1}\n")) }).chain(second);
    let typed = Response::builder().header(header::CONTENT_TYPE, "application/x-ndjson");
    typed.body(Body::from_stream(lines)).unwrap()
}

async fn work(background: Background) -> &'static str {
    background.spawn(async {
        until_created("go").await;
        fs::write(file("done"), "").unwrap();
    });
    "registered"
}

async fn produce(background: Background) -> Response {
    let (tx, rx) = mpsc::unbounded_channel::<Bytes>();
    background.spawn(async move {
        let _disconnected = tx.send(Bytes::from("started\n"));
        until_created("go").await;
        fs::write(file("done"), "").unwrap();
    });
    let events = stream::unfold(rx, async |mut rx| {
        Some((Ok::<_, std::io::Error>(rx.recv().await?), rx))
    });
    Response::new(Body::from_stream(events))
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env::var_os("ICONOCLASH_PROBE").unwrap()).join(name)
}

async fn until_created(name: &str) {
    while !file(name).exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
