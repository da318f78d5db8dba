//! A server for faults that a real one cannot be made to have: hanging, lying, dropping the connection.
#![expect(
    clippy::disallowed_methods,
    reason = "the fake lives as long as its test's runtime"
)]

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// How to treat one connection, after one request was read from it.
#[derive(Clone)]
pub(crate) enum Act {
    /// Writes this and closes.
    Say(String),
    /// Forwards the request, drops the answer and closes: the command ran, but the client does not know.
    Swallow(SocketAddr),
    /// Forwards the request and the answer.
    Forward(SocketAddr),
    /// Writes this and then hangs.
    HangAfter(&'static str),
}

pub(crate) struct FakeServer {
    pub(crate) url: String,
    requests: Arc<AtomicUsize>,
}

impl FakeServer {
    /// One act per connection, in order; the last one repeats.
    pub(crate) async fn start(acts: impl Into<Vec<Act>>) -> Self {
        let acts = acts.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);

        tokio::spawn(async move {
            let mut hanging = Vec::new();
            loop {
                let (stream, _) = listener.accept().await?;
                let mut stream = BufReader::new(stream);
                let request = read_message(&mut stream).await?;
                let number = counter.fetch_add(1, Ordering::SeqCst);
                match acts[number.min(acts.len() - 1)].clone() {
                    Act::Say(text) => stream.write_all(text.as_bytes()).await?,
                    Act::Swallow(server) => drop(forward(server, &request).await?),
                    Act::Forward(server) => {
                        stream.write_all(&forward(server, &request).await?).await?
                    }
                    Act::HangAfter(text) => {
                        stream.write_all(text.as_bytes()).await?;
                        hanging.push(stream);
                    }
                }
            }
            #[expect(unreachable_code, reason = "gives the block its type")]
            io::Result::Ok(())
        });
        Self { url, requests }
    }

    /// The number of complete requests.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// An HTTP response that closes the connection.
pub(crate) fn say(status: &str, body: &str) -> Act {
    let length = body.len();
    Act::Say(format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    ))
}

pub(crate) fn addr(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().unwrap()
}

async fn forward(server: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = BufReader::new(TcpStream::connect(server).await?);
    stream.write_all(request).await?;
    read_message(&mut stream).await
}

/// One whole HTTP message with a content-length.
async fn read_message(stream: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let mut message = String::new();
    let mut length = 0;
    loop {
        let start = message.len();
        if stream.read_line(&mut message).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = message[start..].trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok([message.into_bytes(), body].concat())
}
