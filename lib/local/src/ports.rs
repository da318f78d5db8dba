//! Free loopback ports.

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::Path,
};

use anyhow::{Context, Result};

/// The port kept in this file if it is still free, else a free one, which is then kept:
/// what a developer wrote down about the last run stays true.
pub fn kept(file: &Path) -> Result<SocketAddr> {
    let last = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    let port = match last {
        Some(port) if is_free(port) => port,
        _ => free()?,
    };
    fs::write(file, port.to_string())?;
    Ok(loopback(port))
}

/// The first free port from `first` on.
pub fn from(first: u16) -> Result<u16> {
    (first..=u16::MAX).take(100).find(|port| is_free(*port)).context("none of 100 ports is free")
}

/// A port that the system says is free.
pub fn free() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// This port on the loopback interface.
pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// `localhost` may mean either loopback address, so both must be free.
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && TcpListener::bind((Ipv6Addr::LOCALHOST, port)).map_or_else(|e| e.kind() != ErrorKind::AddrInUse, |_| true)
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
    fn a_taken_port_is_passed_over() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(from(port).unwrap() > port);
    }
}
