//! Upstash's REST interface in front of a real Redis or Valkey.
//!
//! Requests, answers and errors have the format that Upstash documents; Redis itself executes the
//! commands. Each proxy serves one numbered database, so that tests do not affect each other.
#![expect(
    clippy::disallowed_methods,
    reason = "a server on the developer's machine: no platform freezes its tasks"
)]

mod dialect;
mod request;
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

/// The most requests that run at once; more wait.
const CONNECTIONS: usize = 32;
/// The key in database 0 that counts isolated proxies, to assign their databases.
const COUNTER: &str = "rest-proxy:isolated";
/// The fewest databases of a Redis that gives each test its own.
const MIN_DATABASES: i64 = 1_000;

/// The Redis behind a proxy, and the address of the proxy.
#[derive(Clone, Debug)]
pub struct RestProxyConfig {
    /// The Redis or Valkey.
    pub redis: SocketAddr,
    /// The one database that is served.
    pub database: u32,
    /// The token that requests must carry.
    pub token: String,
    /// The address to listen on; port 0 takes a free port.
    pub listen: SocketAddr,
}

/// A running proxy. Dropping it stops it; [`stop`](Self::stop) also waits for the end.
#[derive(Debug)]
pub struct RestProxy {
    url: String,
    token: String,
    database: u32,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

impl RestProxy {
    /// Checks that Redis has the database, and listens.
    pub async fn start(config: RestProxyConfig) -> io::Result<Self> {
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

    /// A proxy on a free port with an empty database of its own.
    ///
    /// A counter in database 0 assigns the databases, so no other proxy may serve that one, and
    /// Redis must be started with `--databases 10000` or similar.
    pub async fn isolated(redis: SocketAddr) -> io::Result<Self> {
        let database = next_database(redis).await?;
        let mut connection = Connection::open(redis, database).await?;
        connection.call(&[words(&["FLUSHDB"])]).await?;

        Self::start(RestProxyConfig {
            redis,
            database,
            token: format!("token-of-database-{database}"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        })
        .await
    }

    /// The value of `UPSTASH_REDIS_REST_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The value of `UPSTASH_REDIS_REST_TOKEN`.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The number of the database that is served.
    pub fn database(&self) -> u32 {
        self.database
    }

    /// Answers the requests under way, then stops. Afterwards connections are refused.
    pub async fn stop(self) -> io::Result<()> {
        drop(self.stop);
        self.served.await?
    }
}

/// The number of a database that no recent proxy uses.
async fn next_database(redis: SocketAddr) -> io::Result<u32> {
    let mut connection = Connection::open(redis, 0).await?;
    let commands = [
        words(&["CONFIG", "GET", "databases"]),
        words(&["INCR", COUNTER]),
    ];
    let replies = connection.call(&commands).await?;
    let [Reply::Array(setting), Reply::Integer(count)] = &replies[..] else {
        return Err(io::Error::other(format!("no database number: {replies:?}")));
    };

    let databases: i64 = match &setting[..] {
        [_, Reply::Bulk(number)] => String::from_utf8_lossy(number).parse().unwrap_or(0),
        _ => 0,
    };
    if databases < MIN_DATABASES {
        return Err(io::Error::other(format!(
            "the Redis at {redis} has {databases} databases, too few to give each test one of \
             its own: start it with --databases 10000"
        )));
    }

    // Database 0 holds the counter.
    u32::try_from(1 + count % (databases - 1)).map_err(io::Error::other)
}
