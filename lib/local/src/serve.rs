//! The development server: every route and `public/` in one process.

use std::{
    env,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context, Result};
use axum::{Router, extract::Request, response::IntoResponse};
use iconoclash::{
    app::App,
    http::{
        observe,
        serve::{self, Background},
    },
    routes,
};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    signal::unix::{SignalKind, signal},
};
use tower::ServiceExt;
use tower_http::services::ServeDir;

use crate::{pages::Pages, stack};

/// Serves until SIGTERM or SIGINT; replies that run then are finished first.
pub fn run(runtime: &Handle, root: &Path, port: u16) -> Result<()> {
    // Set when the server starts again: the new build may bring new migrations.
    if let Ok(url) = env::var("ICONOCLASH_LOCAL_MIGRATE") {
        stack::migrate_url(runtime, &url, None)?;
    }
    observe::init();
    let background = Background::in_process();
    runtime.block_on(async {
        listen(router(root, &background), port).await?;
        background.idle().await;
        Ok(())
    })
}

/// The functions' own layers and routes below `/api/`, the stand-ins' pages below `/local/`; all else is a file of
/// `public/`, as on Vercel.
fn router(root: &Path, background: &Background) -> Router {
    let functions = serve::stack(routes::all().into(), App::from_env());
    let files = ServeDir::new(root.join("public"));
    let background = background.clone();
    let pages = Pages::of_the_environment();
    Router::new().fallback(async move |mut request: Request| {
        if request.uri().path().starts_with("/api/") {
            request.extensions_mut().insert(background);
            functions.oneshot(request).await.into_response()
        } else if let Some(stand_in) = pages.behind(request.uri().path()) {
            pages.pass_on(stand_in, request).await
        } else {
            files.oneshot(request).await.into_response()
        }
    })
}

async fn listen(router: Router, port: u16) -> Result<()> {
    // A browser may take `localhost` for either address; some machines have no IPv6.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .with_context(|| format!("port {port}"))?;
    let second = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await;
    let serve = |listener, router| axum::serve(listener, router).with_graceful_shutdown(ended());
    match second {
        Ok(second) => {
            tokio::try_join!(serve(listener, router.clone()), serve(second, router)).map(|_| ())?
        }
        Err(_) => serve(listener, router).await?,
    }
    Ok(())
}

async fn ended() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
