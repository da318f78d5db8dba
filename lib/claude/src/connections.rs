//! The HTTP clients of a pool: as many as its open streams need.
//!
//! An HTTP client keeps one HTTP/2 connection to a host, and the host grants it about a hundred streams at a time.
//! Requests beyond that wait in the client until a stream ends, and a reply takes minutes. Each client has connections
//! of its own, so a reply that finds no place on one of them gets another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::ClientBuilder;

use crate::Error;

/// Below the provider's own limit, because a cancelled stream counts for the provider until it hears of it.
pub(crate) const MAX_STREAMS: usize = 80;
/// A connection that the network lost is noticed by a ping without an answer, not by a reply.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The HTTP clients, created when they are needed.
pub(crate) struct Connections {
    builder: Box<dyn Fn() -> ClientBuilder + Send + Sync>,
    is_http2: bool,
    max_streams: usize,
    clients: Mutex<Vec<SharedClient>>,
}

struct SharedClient {
    http: reqwest::Client,
    open_streams: Arc<AtomicUsize>,
}

/// A place on a connection. Dropping it frees the place.
pub(crate) struct OpenStream {
    http: reqwest::Client,
    open_streams: Arc<AtomicUsize>,
}

impl Connections {
    /// Over TLS the server has to speak HTTP/2.
    pub(crate) fn new(
        builder: impl Fn() -> ClientBuilder + Send + Sync + 'static,
        base_url: &str,
    ) -> Self {
        Self {
            builder: Box::new(builder),
            is_http2: base_url.starts_with("https:"),
            max_streams: MAX_STREAMS,
            clients: Mutex::default(),
        }
    }

    pub(crate) fn with_max_streams(self, max_streams: usize) -> Self {
        Self {
            max_streams: max_streams.max(1),
            ..self
        }
    }

    /// A place on the connection with the fewest open streams.
    pub(crate) fn open_stream(&self) -> Result<OpenStream, Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);

        let emptiest = clients.iter().min_by_key(|client| client.open());
        if let Some(client) = emptiest
            && client.open() < self.max_streams
        {
            return Ok(client.open_stream());
        }

        let client = self.new_client()?;
        let stream = client.open_stream();
        clients.push(client);
        Ok(stream)
    }

    fn new_client(&self) -> Result<SharedClient, Error> {
        let mut builder = (self.builder)();
        if self.is_http2 {
            // Known before the handshake, so that requests share the first connection instead of making one each.
            builder = builder.http2_prior_knowledge();
        }

        let http = builder
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .http2_keep_alive_while_idle(true)
            .build()
            .map_err(Error::Transport)?;

        Ok(SharedClient {
            http,
            open_streams: Arc::default(),
        })
    }
}

impl SharedClient {
    fn open(&self) -> usize {
        self.open_streams.load(Ordering::Relaxed)
    }

    fn open_stream(&self) -> OpenStream {
        self.open_streams.fetch_add(1, Ordering::Relaxed);

        OpenStream {
            http: self.http.clone(),
            open_streams: Arc::clone(&self.open_streams),
        }
    }
}

impl OpenStream {
    /// The client whose connection has the place.
    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.http
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "clients that are never used for a request"
    )]
    fn connections() -> Connections {
        Connections::new(reqwest::Client::builder, "").with_max_streams(2)
    }

    fn open(connections: &Connections) -> Vec<usize> {
        let clients = connections.clients.lock().unwrap();
        clients.iter().map(SharedClient::open).collect()
    }

    #[test]
    fn a_client_is_added_when_all_are_full_and_the_emptiest_is_used() {
        let connections = connections();
        assert!(open(&connections).is_empty());

        let mut streams: Vec<_> = (0..5).map(|_| connections.open_stream().unwrap()).collect();
        assert_eq!(open(&connections), [2, 2, 1]);

        streams.drain(0..2);
        assert_eq!(open(&connections), [0, 2, 1]);
        streams.push(connections.open_stream().unwrap());
        streams.push(connections.open_stream().unwrap());
        assert_eq!(open(&connections), [2, 2, 1]);

        streams.clear();
        assert_eq!(open(&connections), [0, 0, 0]);
    }
}
