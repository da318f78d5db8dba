//! Free loopback ports.

use std::{
    fs,
    io::ErrorKind,
    iter,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::Path,
};

use anyhow::{Context, Result};

use crate::process::tail;

/// The port recorded in `file` if it is free, else a free one, which is recorded. A developer's
/// notes of the addresses of the last run stay valid this way.
pub fn sticky_port(file: &Path) -> Result<SocketAddr> {
    let recorded = fs::read_to_string(file)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let port = match recorded {
        Some(port) if is_free(port) => port,
        _ => free_port()?,
    };
    fs::write(file, port.to_string())?;

    Ok(loopback(port))
}

/// Starts a server on the sticky port; on another one if a process took it in the meantime.
pub fn start_on_sticky_port<T>(
    file: &Path,
    log: &Path,
    mut start: impl FnMut(SocketAddr) -> Result<T>,
) -> Result<T> {
    const ATTEMPTS: usize = 3;
    let mut attempt = 1;

    loop {
        let started = start(sticky_port(file)?);
        // All servers log the system's own message when their port is taken.
        let can_retry = attempt < ATTEMPTS && tail(log).contains("already in use");
        if started.is_ok() || !can_retry {
            return started;
        }
        attempt += 1;
    }
}

/// The first free port from `first` on.
pub fn next_free_port(first: u16) -> Result<u16> {
    (first..=u16::MAX)
        .take(100)
        .find(|port| is_free(*port))
        .with_context(|| format!("the 100 ports from {first} on are taken: choose another one"))
}

/// A free port below the range of outgoing connections: the tests make thousands of those, and
/// one could take the port before its server does.
pub fn free_port() -> Result<u16> {
    let mut candidates = iter::repeat_with(|| rand::random_range(15_000..32_000));

    candidates
        .by_ref()
        .take(1000)
        .find(|port| is_free(*port))
        .context("there is no free port from 15000 to 32000")
}

/// This port on the loopback interface.
pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// `localhost` can mean either loopback address, so both must be free.
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && TcpListener::bind((Ipv6Addr::LOCALHOST, port))
            .map_or_else(|e| e.kind() != ErrorKind::AddrInUse, |_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sticky_port_changes_only_when_it_is_taken() {
        let file = std::env::temp_dir().join(format!("iconoclash-port-{}", std::process::id()));
        let first = sticky_port(&file).unwrap();
        assert_eq!(sticky_port(&file).unwrap(), first);

        let taken = TcpListener::bind(first).unwrap();
        let second = sticky_port(&file).unwrap();
        assert_ne!(second, first);

        drop(taken);
        assert_eq!(sticky_port(&file).unwrap(), second);
        fs::remove_file(file).unwrap();
    }

    #[test]
    fn a_server_whose_port_was_taken_starts_on_another_one() {
        let dir = std::env::temp_dir().join(format!("iconoclash-late-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("port");
        let log = dir.join("log");
        let mut squatters = Vec::new();
        let start = |address: SocketAddr| {
            if squatters.is_empty() {
                squatters.push(TcpListener::bind(address)?);
                fs::write(&log, "bind: Address already in use")?;
                anyhow::bail!("it ended");
            }
            Ok(TcpListener::bind(address)?)
        };

        let server = start_on_sticky_port(&file, &log, start).unwrap();
        let squatter = squatters[0].local_addr().unwrap();
        assert_ne!(server.local_addr().unwrap(), squatter);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_server_that_fails_for_another_reason_is_not_started_again() {
        let dir = std::env::temp_dir().join(format!("iconoclash-fails-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let log = dir.join("log");
        fs::write(&log, "some other trouble").unwrap();

        let mut starts = 0;
        let failed: Result<()> = start_on_sticky_port(&dir.join("port"), &log, |_| {
            starts += 1;
            anyhow::bail!("it ended")
        });
        assert!(failed.is_err() && starts == 1);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_taken_port_is_skipped() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(next_free_port(port).unwrap() > port);
    }
}
