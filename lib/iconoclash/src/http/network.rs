//! The caller's network, which limits for anonymous callers are counted by.

use std::net::{IpAddr, Ipv4Addr};

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue};
use secrecy::ExposeSecret;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::app::App;

/// The platform's header with the caller's address.
pub(crate) const ADDRESS: &str = "x-vercel-forwarded-for";

/// The network that a request came from: an IPv4 address, or the first 64 bits of an IPv6 one, which one household
/// or data centre can vary at will beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpAddr);

impl Network {
    /// Reads the platform's own header. Behind Cloudflare that holds Cloudflare's address, so the visitor's comes from
    /// `cf-connecting-ip`, but only with the secret that our rule there adds: anybody can send the header.
    pub fn from_headers(headers: &HeaderMap, app: &App) -> Self {
        let text = |name| {
            headers
                .get(name)
                .and_then(|value: &HeaderValue| value.to_str().ok())
        };
        let trusted = app
            .config()
            .proxy_secret
            .as_ref()
            .zip(text("x-proxy-secret"))
            .is_some_and(|(secret, shown)| {
                bool::from(secret.expose_secret().as_bytes().ct_eq(shown.as_bytes()))
            });
        let address = if trusted {
            text("cf-connecting-ip")
        } else {
            None
        }
        .or_else(|| text(ADDRESS))
        .and_then(|value| value.split(',').next()?.trim().parse().ok());
        // Callers without an address share one allowance rather than having none.
        Self::from(address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
    }

    /// A keyed hash of the network, so that its address is never stored.
    pub fn pseudonym(&self, key: &[u8; 32]) -> String {
        pseudonym("network", &self.0.to_string(), key)
    }
}

/// A keyed hash of personal data that must not be stored, such as an address. `kind` separates the namespaces.
pub(crate) fn pseudonym(kind: &str, of: &str, key: &[u8; 32]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in [kind.as_bytes(), b"\0", of.as_bytes()] {
        mac.update(part);
    }
    hex::encode(&mac.finalize().into_bytes()[..16])
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
