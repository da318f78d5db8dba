//! Upstash's REST interface in front of a real Redis or Valkey.
//!
//! Requests, answers, errors and refusals are those that Upstash documents; what a command does is
//! Redis's own business. Each front sees one numbered database, so that tests do not notice each other.
#![expect(
    clippy::disallowed_methods,
    reason = "a server on the developer's machine: no platform freezes its tasks"
)]

mod dialect;
mod resp;
mod rest;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::Router;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use self::{
    resp::{Connection, Pool, Reply, words},
    rest::Shared,
};

/// As many requests as this run at once; more wait.
const CONNECTIONS: usize = 32;

/// Isolated fronts take their database number from this key of database 0, which none of them is.
const COUNTER: &str = "upstash-front:isolated";

/// What a front stands before, and where it listens.
#[derive(Clone, Debug)]
pub struct FrontConfig {
    /// The Redis or Valkey to stand before.
    pub redis: SocketAddr,
    /// The one database of it that is seen.
    pub database: u32,
    /// The token that requests must carry.
    pub token: String,
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
}

/// A running front. Dropping it stops it; [`stop`](Front::stop) also waits until it has.
#[derive(Debug)]
pub struct Front {
    url: String,
    token: String,
    database: u32,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

impl Front {
    /// Listens, and sees that Redis is there and has that database.
    pub async fn start(config: FrontConfig) -> io::Result<Self> {
        Connection::open(config.redis, config.database).await?;
        let listener = TcpListener::bind(config.listen).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let pool = Pool::new(config.redis, config.database, CONNECTIONS);
        let shared = Arc::new(Shared::new(config.token.clone(), pool));
        let router = Router::new().fallback(rest::serve).with_state(shared);
        let (stop, stopped) = oneshot::channel::<()>();
        let server = axum::serve(listener, router).with_graceful_shutdown(async move {
            // An error means that the sender was dropped, which is the usual way to stop.
            let _ = stopped.await;
        });
        Ok(Self {
            url,
            token: config.token,
            database: config.database,
            stop,
            served: tokio::spawn(server.into_future()),
        })
    }

    /// A front on a free port before a database of its own, empty.
    ///
    /// Numbers are handed out in turn by a counter in database 0, so no other front may stand before
    /// that one, and Redis must have been started with `--databases 10000` or so.
    pub async fn isolated(redis: SocketAddr) -> io::Result<Self> {
        let mut counter = Connection::open(redis, 0).await?;
        let ask = [
            words(&["CONFIG", "GET", "databases"]),
            words(&["INCR", COUNTER]),
        ];
        let replies = counter.call(&ask).await?;
        let [Reply::Array(setting), Reply::Integer(turn)] = &replies[..] else {
            return Err(io::Error::other(format!("no database number: {replies:?}")));
        };
        let databases: i64 = match &setting[..] {
            [_, Reply::Bulk(number)] => String::from_utf8_lossy(number).parse().unwrap_or(0),
            _ => 0,
        };
        if databases < 1000 {
            return Err(io::Error::other(format!(
                "the Redis at {redis} has {databases} databases, too few to give each test its own: \
                 start it with --databases 10000"
            )));
        }
        let database = u32::try_from(1 + turn % (databases - 1)).map_err(io::Error::other)?;
        let mut own = Connection::open(redis, database).await?;
        own.call(&[words(&["FLUSHDB"])]).await?;
        Self::start(FrontConfig {
            redis,
            database,
            token: format!("token-of-database-{database}"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        })
        .await
    }

    /// Where it listens, as `UPSTASH_REDIS_REST_URL` wants it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What `UPSTASH_REDIS_REST_TOKEN` must be.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The number of the database that it stands before.
    pub fn database(&self) -> u32 {
        self.database
    }

    /// Answers the requests under way, then stops. Afterwards connections are refused.
    pub async fn stop(self) -> io::Result<()> {
        drop(self.stop);
        self.served.await?
    }
}
