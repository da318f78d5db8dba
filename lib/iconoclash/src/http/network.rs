//! The client's network. Limits of visitors are counted by it.

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderMap;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use crate::{app::App, digest};

/// The platform's header with the client's address.
pub(crate) const ADDRESS: &str = "x-vercel-forwarded-for";

/// The network of a request: an IPv4 address, or the first 64 bits of an IPv6 address, because one household or data
/// centre can choose the others freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpAddr);

impl Network {
    /// Reads the platform's header.
    ///
    /// Behind Cloudflare that header has Cloudflare's address, and `cf-connecting-ip` has the client's. The latter is
    /// trusted only together with the secret that our Cloudflare rule adds, because any client can send it.
    pub(crate) fn from_headers(headers: &HeaderMap, app: &App) -> Self {
        let forwarded = match is_from_our_proxy(headers, app) {
            true => text(headers, "cf-connecting-ip"),
            false => None,
        };
        let address = forwarded
            .or_else(|| text(headers, ADDRESS))
            .and_then(|value| value.split(',').next()?.trim().parse().ok());

        // Clients without an address share one allowance instead of having none.
        Self::from(address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
    }

    /// A keyed hash of the network, so that its address is never stored.
    pub(crate) fn pseudonym(&self, key: &[u8; 32]) -> String {
        pseudonym("network", &self.0.to_string(), key)
    }
}

fn is_from_our_proxy(headers: &HeaderMap, app: &App) -> bool {
    let secret = app.config().proxy_secret.as_ref();
    secret
        .zip(text(headers, "x-proxy-secret"))
        .is_some_and(|(secret, presented)| {
            let secret = secret.expose_secret().as_bytes();
            secret.ct_eq(presented.as_bytes()).into()
        })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A keyed hash of personal data that must not be stored, such as an address. `kind` separates the namespaces.
pub(crate) fn pseudonym(kind: &str, of: &str, key: &[u8; 32]) -> String {
    hex::encode(&digest::keyed(key, &[kind, of])[..16])
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => Self(IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into())),
            v4 => Self(v4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_household_is_one_network() {
        let network = |text: &str| Network::from(text.parse::<IpAddr>().unwrap());

        assert_eq!(
            network("2001:db8:1:2:aaaa::1"),
            network("2001:db8:1:2:bbbb::2")
        );
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }

    #[test]
    fn a_networks_pseudonym_depends_on_the_key_and_hides_the_address() {
        let network = Network::from(IpAddr::from([192, 0, 2, 1]));

        assert_eq!(network.pseudonym(&[1; 32]), network.pseudonym(&[1; 32]));
        assert_ne!(network.pseudonym(&[1; 32]), network.pseudonym(&[2; 32]));
        assert!(!network.pseudonym(&[1; 32]).contains("192"));
    }
}
