//! Redis's protocol (RESP 2) as far as a proxy needs it, and a pool of connections.

use std::{io, net::SocketAddr, sync::Mutex};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::Semaphore,
};

use crate::sync::lock;

/// The words of one command.
pub(super) type Words = Vec<Vec<u8>>;

#[derive(Debug)]
pub(super) enum Reply {
    Status(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

pub(super) fn words(command: &[&str]) -> Words {
    command
        .iter()
        .map(|word| word.as_bytes().to_vec())
        .collect()
}

pub(super) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(super) async fn open(redis: SocketAddr, database: u32) -> io::Result<Self> {
        let stream = TcpStream::connect(redis).await?;
        stream.set_nodelay(true)?;

        let mut connection = Self(BufReader::new(stream));
        let select = words(&["SELECT", &database.to_string()]);
        match connection.call(&[select]).await?.pop() {
            Some(Reply::Error(text)) => Err(io::Error::other(text)),
            _ => Ok(connection),
        }
    }

    /// Sends all commands, then reads all replies.
    pub(super) async fn call(&mut self, commands: &[Words]) -> io::Result<Vec<Reply>> {
        let mut bytes = Vec::new();
        for command in commands {
            bytes.extend(format!("*{}\r\n", command.len()).into_bytes());
            for word in command {
                bytes.extend(format!("${}\r\n", word.len()).into_bytes());
                bytes.extend(word);
                bytes.extend(b"\r\n");
            }
        }
        self.0.get_mut().write_all(&bytes).await?;

        let mut replies = Vec::with_capacity(commands.len());
        for _ in commands {
            replies.push(self.read_reply().await?);
        }
        Ok(replies)
    }

    async fn read_reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        let line = line
            .strip_suffix("\r\n")
            .ok_or(io::ErrorKind::UnexpectedEof)?;

        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| not_resp(line))?;
        let number = || rest.parse::<i64>().map_err(|_| not_resp(line));
        // A negative length is nil.
        let length = || Ok::<_, io::Error>(usize::try_from(number()?).ok());

        match kind {
            "+" => Ok(Reply::Status(rest.to_owned())),
            "-" => Ok(Reply::Error(rest.to_owned())),
            ":" => Ok(Reply::Integer(number()?)),
            "$" => self.read_bulk(length()?).await,
            "*" => self.read_array(length()?).await,
            _ => Err(not_resp(line)),
        }
    }

    async fn read_bulk(&mut self, length: Option<usize>) -> io::Result<Reply> {
        let Some(length) = length else {
            return Ok(Reply::Nil);
        };

        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes).await?;
        bytes.truncate(length);
        Ok(Reply::Bulk(bytes))
    }

    async fn read_array(&mut self, length: Option<usize>) -> io::Result<Reply> {
        let Some(length) = length else {
            return Ok(Reply::Nil);
        };

        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(Box::pin(self.read_reply()).await?);
        }
        Ok(Reply::Array(items))
    }

    /// Whether an idle connection is still open: reading from a closed one does not block.
    fn is_open(&self) -> bool {
        let read = self.0.get_ref().try_read(&mut [0]);

        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn not_resp(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not RESP: {line:?}"))
}

/// Connections to one database. A call has its connection exclusively, so transactions never mix.
pub(super) struct Pool {
    redis: SocketAddr,
    database: u32,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

impl Pool {
    pub(super) fn new(redis: SocketAddr, database: u32, size: usize) -> Self {
        Self {
            redis,
            database,
            idle: Mutex::default(),
            permits: Semaphore::new(size),
        }
    }

    pub(super) async fn call(&self, commands: &[Words]) -> io::Result<Vec<Reply>> {
        let _permit = self.permits.acquire().await.map_err(io::Error::other)?;
        let mut connection = match self.idle() {
            Some(connection) => connection,
            None => Connection::open(self.redis, self.database).await?,
        };

        // After an error or a cancelled call a reply may be outstanding: drop the connection.
        let replies = connection.call(commands).await?;
        lock(&self.idle).push(connection);
        Ok(replies)
    }

    /// An idle connection that survived restarts of Redis.
    fn idle(&self) -> Option<Connection> {
        let mut idle = lock(&self.idle);

        std::iter::from_fn(|| idle.pop()).find(Connection::is_open)
    }
}
