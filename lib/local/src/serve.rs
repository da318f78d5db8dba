//! The development server: every route and `public/` in one process.

use std::{
    env,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context, Result};
use axum::{Json, Router, routing::get};
use serde_json::json;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};
use tower_http::services::ServeDir;

use crate::stack;

/// Serves until SIGTERM or SIGINT.
pub fn run(runtime: &Handle, root: &Path, port: u16) -> Result<()> {
    // Set when the server starts again: the new build may bring new migrations.
    if let Ok(url) = env::var("ICONOCLASH_LOCAL_MIGRATE") {
        stack::migrate_url(runtime, &url, None)?;
    }
    runtime.block_on(listen(router(root), port))
}

fn router(root: &Path) -> Router {
    Router::new()
        .route("/api/health", get(async || Json(json!({ "status": "ok" }))))
        .fallback_service(ServeDir::new(root.join("public")))
}

async fn listen(router: Router, port: u16) -> Result<()> {
    // A browser may take `localhost` for either address; some machines have no IPv6.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.with_context(|| format!("port {port}"))?;
    let second = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await;
    let serve = |listener, router| axum::serve(listener, router).with_graceful_shutdown(ended());
    match second {
        Ok(second) => tokio::try_join!(serve(listener, router.clone()), serve(second, router)).map(|_| ())?,
        Err(_) => serve(listener, router).await?,
    }
    Ok(())
}

async fn ended() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
