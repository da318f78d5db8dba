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

/// The port kept in this file if it is still free, else a free one, which is then kept:
/// what a developer wrote down about the last run stays true.
pub fn kept(file: &Path) -> Result<SocketAddr> {
    let last = fs::read_to_string(file)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let port = match last {
        Some(port) if is_free(port) => port,
        _ => free()?,
    };
    fs::write(file, port.to_string())?;
    Ok(loopback(port))
}

/// The first free port from `first` on.
pub fn from(first: u16) -> Result<u16> {
    (first..=u16::MAX)
        .take(100)
        .find(|port| is_free(*port))
        .context("none of 100 ports is free")
}

/// A free port, from below those that systems give to outgoing connections: of these the tests make thousands,
/// and one could take the port in the moment before its server does.
pub fn free() -> Result<u16> {
    let mut some = iter::repeat_with(|| rand::random_range(15_000..32_000));
    some.by_ref()
        .take(1000)
        .find(|port| is_free(*port))
        .context("no port seems to be free")
}

/// Starts a server on the kept port, and on another one if somebody else was faster.
pub fn with_kept<T>(
    file: &Path,
    log: &Path,
    mut start: impl FnMut(SocketAddr) -> Result<T>,
) -> Result<T> {
    let mut tries = 3;
    loop {
        let started = start(kept(file)?);
        tries -= 1;
        // All our servers end at once then, with the system's own words.
        if started.is_ok() || tries == 0 || !tail(log).contains("already in use") {
            return started;
        }
    }
}

/// This port on the loopback interface.
pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// `localhost` may mean either loopback address, so both must be free.
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && TcpListener::bind((Ipv6Addr::LOCALHOST, port))
            .map_or_else(|e| e.kind() != ErrorKind::AddrInUse, |_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_port_is_kept_until_it_is_taken() {
        let file = std::env::temp_dir().join(format!("iconoclash-port-{}", std::process::id()));
        let first = kept(&file).unwrap();
        assert_eq!(kept(&file).unwrap(), first);
        let taken = TcpListener::bind(first).unwrap();
        let second = kept(&file).unwrap();
        assert_ne!(second, first);
        drop(taken);
        assert_eq!(kept(&file).unwrap(), second);
        fs::remove_file(file).unwrap();
    }

    #[test]
    fn a_server_that_comes_too_late_gets_another_port() {
        let dir = std::env::temp_dir().join(format!("iconoclash-late-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (file, log) = (dir.join("port"), dir.join("log"));
        let mut squatters = Vec::new();
        let start = |address: SocketAddr| {
            if squatters.is_empty() {
                squatters.push(TcpListener::bind(address)?);
                fs::write(&log, "bind: Address already in use")?;
                anyhow::bail!("it ended");
            }
            Ok(TcpListener::bind(address)?)
        };
        let server = with_kept(&file, &log, start).unwrap();
        assert_ne!(
            server.local_addr().unwrap(),
            squatters[0].local_addr().unwrap()
        );

        fs::write(&log, "some other trouble").unwrap();
        let mut starts = 0;
        let failed: Result<()> = with_kept(&file, &log, |_| {
            starts += 1;
            anyhow::bail!("it ended")
        });
        assert!(failed.is_err() && starts == 1);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_taken_port_is_passed_over() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(from(port).unwrap() > port);
    }
}
