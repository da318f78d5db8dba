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

use crate::{
    fake_pages::FakePages,
    home::{self, FakeVendors},
    stack,
};

/// The hidden command that runs the development server.
pub(crate) const COMMAND: &str = "serve";
/// Set when the server is restarted: the URL of the database to migrate first.
pub(crate) const MIGRATE: &str = "ICONOCLASH_LOCAL_MIGRATE";

/// Serves until SIGTERM or SIGINT, then finishes running replies.
pub fn run(runtime: &Handle, root: &Path, port: u16) -> Result<()> {
    if let Ok(url) = env::var(MIGRATE) {
        stack::migrate_url(runtime, &url, None)?;
    }

    observe::init();
    let background = Background::in_process();
    runtime.block_on(async {
        listen(router(root, port, &background), port).await?;
        background.idle().await;
        Ok(())
    })
}

/// The functions under `/api/`, the fake vendors' pages under `/local/`, the home page, and files
/// of `public/`.
fn router(root: &Path, port: u16, background: &Background) -> Router {
    let functions = serve::stack(routes::all().into(), App::from_env());
    let public = root.join("public");
    let files = ServeDir::new(&public);
    let background = background.clone();
    let fake_pages = FakePages::from_env();
    let home = home::page(port, fake_vendors(&fake_pages));

    Router::new().fallback(async move |mut request: Request| {
        let path = request.uri().path();
        if path.starts_with("/api/") {
            request.extensions_mut().insert(background);
            functions.oneshot(request).await.into_response()
        } else if let Some(server) = fake_pages.server_for(path) {
            fake_pages.forward(server, request).await
        } else if path == "/" && !public.join("index.html").exists() {
            home.into_response()
        } else {
            files.oneshot(request).await.into_response()
        }
    })
}

fn fake_vendors(pages: &FakePages) -> FakeVendors {
    FakeVendors {
        claude: env::var(stack::FAKE_CLAUDE).is_ok(),
        stripe: pages.server_for("/local/stripe").is_some(),
        mail: pages.server_for("/local/mail").is_some(),
    }
}

async fn listen(router: Router, port: u16) -> Result<()> {
    // A browser may resolve `localhost` to either address; some machines have no IPv6.
    let ipv4 = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .with_context(|| format!("cannot listen on port {port}"))?;
    let ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await;

    let serve = |listener, router| axum::serve(listener, router).with_graceful_shutdown(shutdown());
    match ipv6 {
        Ok(ipv6) => {
            tokio::try_join!(serve(ipv4, router.clone()), serve(ipv6, router)).map(|_| ())?;
        }
        Err(_) => serve(ipv4, router).await?,
    }

    Ok(())
}

async fn shutdown() {
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
