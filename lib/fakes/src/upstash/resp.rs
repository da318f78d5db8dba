//! Redis's own protocol (RESP 2), as far as a proxy needs it, and a pool of connections to one database.

use std::{io, net::SocketAddr, sync::Mutex};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::Semaphore,
};

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
        let mut out = Vec::new();
        for command in commands {
            out.extend(format!("*{}\r\n", command.len()).into_bytes());
            for word in command {
                out.extend(format!("${}\r\n", word.len()).into_bytes());
                out.extend(word);
                out.extend(b"\r\n");
            }
        }
        self.0.get_mut().write_all(&out).await?;
        let mut replies = Vec::with_capacity(commands.len());
        for _ in commands {
            replies.push(self.reply().await?);
        }
        Ok(replies)
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        let line = line
            .strip_suffix("\r\n")
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| odd(line))?;
        let number = || rest.parse::<i64>().map_err(|_| odd(line));
        Ok(match kind {
            "+" => Reply::Status(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number()?),
            "$" => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    self.0.read_exact(&mut bytes).await?;
                    bytes.truncate(length);
                    Reply::Bulk(bytes)
                }
            },
            "*" => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(length) => {
                    let mut items = Vec::with_capacity(length);
                    for _ in 0..length {
                        items.push(Box::pin(self.reply()).await?);
                    }
                    Reply::Array(items)
                }
            },
            _ => return Err(odd(line)),
        })
    }

    /// A connection at rest has nothing to say: anything but "would block" means that it was closed.
    fn is_at_rest(&self) -> bool {
        let read = self.0.get_ref().try_read(&mut [0]);
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn odd(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not RESP: {line:?}"))
}

/// Connections to one database. Each call has one to itself, so that transactions never interleave.
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
        // An error, or a caller that left, drops the connection: a reply may still be on its way.
        let replies = connection.call(commands).await?;
        self.lock().push(connection);
        Ok(replies)
    }

    /// Redis may have been restarted since a connection was last used.
    fn idle(&self) -> Option<Connection> {
        let mut idle = self.lock();
        std::iter::from_fn(|| idle.pop()).find(Connection::is_at_rest)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().expect("nothing panics while it is held")
    }
}
