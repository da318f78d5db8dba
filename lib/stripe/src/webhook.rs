//! Verifies the `Stripe-Signature` header of events: HMAC-SHA256 over timestamp and raw body.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};
use time::OffsetDateTime;

/// How far a signature's timestamp may be from now, in either direction.
const TOLERANCE_SECS: u64 = 300;

/// The kind of event for a customer that was deleted together with its subscriptions.
pub const CUSTOMER_DELETED: &str = "customer.deleted";

/// Something that happened at Stripe.
#[derive(Debug, Deserialize)]
pub struct Event {
    /// `evt_…`. Stripe may deliver the same event several times.
    pub id: String,
    /// Such as `customer.subscription.updated`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the event is about.
    pub data: Data,
}

/// What an event is about.
#[derive(Debug, Deserialize)]
pub struct Data {
    /// The object when the event happened. It may have changed since.
    pub object: Value,
}

impl Event {
    /// The id of the customer that the event is about.
    pub fn customer(&self) -> Option<&str> {
        let object = &self.data.object;
        let customer = if self.kind == CUSTOMER_DELETED {
            object
        } else {
            &object["customer"]
        };

        // An expanded customer is an object with an id.
        customer.as_str().or_else(|| customer["id"].as_str())
    }
}

/// Why an event's signature is refused. For logs, and for the person who configures the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No header, or a header without a timestamp or without a signature of the scheme `v1`.
    #[error("The Stripe-Signature header is missing or malformed.")]
    Malformed,
    /// The timestamp is more than five minutes from now.
    #[error("The signature's timestamp is more than five minutes from now.")]
    Stale,
    /// None of the signatures was made with one of the secrets.
    #[error("The signature does not match: another secret or another body was signed.")]
    Mismatch,
}

/// Checks that one of the secrets signed exactly this body within the last five minutes.
///
/// All secrets are compared, and before the timestamp, so that the time of the answer reveals nothing about them.
pub fn verify(
    secrets: &[SecretString],
    header: &str,
    body: &[u8],
    now: OffsetDateTime,
) -> Result<(), SignatureError> {
    let header = SignatureHeader::parse(header)?;

    let mut matches = Choice::from(0);
    for secret in secrets.iter().map(ExposeSecret::expose_secret) {
        // Anybody can sign with an empty secret.
        if secret.trim().is_empty() {
            continue;
        }
        let expected = signature(secret, header.timestamp, body);
        for signature in &header.signatures {
            matches |= expected.ct_eq(signature);
        }
    }

    if !bool::from(matches) {
        return Err(SignatureError::Mismatch);
    }
    if now.unix_timestamp().abs_diff(header.signed_at) > TOLERANCE_SECS {
        return Err(SignatureError::Stale);
    }
    Ok(())
}

/// `t=…,v1=…`
struct SignatureHeader<'a> {
    /// The timestamp as it was signed.
    timestamp: &'a str,
    /// The timestamp in epoch seconds.
    signed_at: i64,
    /// The signatures of the scheme `v1`.
    signatures: Vec<[u8; 32]>,
}

impl<'a> SignatureHeader<'a> {
    fn parse(header: &'a str) -> Result<Self, SignatureError> {
        let mut timestamp = None;
        let mut signatures = Vec::new();

        let parts = header.split(',').map(str::trim);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name {
                "t" if timestamp.is_none() => timestamp = Some(value),
                "v1" => signatures.extend(decode_signature(value)),
                // Other schemes, such as `v0` of test events, are not secure.
                _ => {}
            }
        }

        let timestamp = timestamp.ok_or(SignatureError::Malformed)?;
        let signed_at = timestamp.parse().map_err(|_| SignatureError::Malformed)?;
        if signatures.is_empty() {
            return Err(SignatureError::Malformed);
        }
        Ok(Self {
            timestamp,
            signed_at,
            signatures,
        })
    }
}

fn decode_signature(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

fn signature(secret: &str, timestamp: &str, body: &[u8]) -> [u8; 32] {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);
    const BODY: &[u8] = br#"{"id":"evt_1"}"#;

    fn sign(secret: &str, at: i64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(format!("{at}.").as_bytes());
        mac.update(body);
        hex::encode(mac.finalize().into_bytes())
    }

    #[track_caller]
    fn check(secrets: &[&str], header: &str, expected: Result<(), SignatureError>) {
        let secrets: Vec<SecretString> = secrets.iter().copied().map(SecretString::from).collect();
        assert_eq!(verify(&secrets, header, BODY, NOW), expected, "{header}");
    }

    #[test]
    fn a_signature_is_valid_for_one_body_one_secret_and_five_minutes() {
        let now = NOW.unix_timestamp();
        let valid = sign("whsec_a", now, BODY);
        let of_other_body = sign("whsec_a", now, b"{}");

        for (secret, header, expected) in [
            ("whsec_a", format!("t={now},v1={valid}"), Ok(())),
            ("whsec_a", format!("t={now}, v1={valid}, v0=ff"), Ok(())),
            (
                "whsec_b",
                format!("t={now},v1={valid}"),
                Err(SignatureError::Mismatch),
            ),
            (
                "whsec_a",
                format!("t={},v1={valid}", now + 1),
                Err(SignatureError::Mismatch),
            ),
            (
                "whsec_a",
                format!("t={now},v1={of_other_body}"),
                Err(SignatureError::Mismatch),
            ),
        ] {
            check(&[secret], &header, expected);
        }

        for (offset, expected) in [
            (300, Ok(())),
            (-300, Ok(())),
            (301, Err(SignatureError::Stale)),
            (-301, Err(SignatureError::Stale)),
        ] {
            let at = now + offset;
            let header = format!("t={at},v1={}", sign("whsec_a", at, BODY));
            check(&["whsec_a"], &header, expected);
        }
    }

    #[test]
    fn during_a_rotation_both_secrets_are_accepted_on_both_sides() {
        let now = NOW.unix_timestamp();
        let old = sign("whsec_old", now, BODY);
        let new = sign("whsec_new", now, BODY);
        let signed_with_old = format!("t={now},v1={old}");
        let signed_with_both = format!("t={now},v1={old},v1={new}");

        check(&["whsec_new", "whsec_old"], &signed_with_old, Ok(()));
        check(&["whsec_new"], &signed_with_both, Ok(()));
        check(
            &["whsec_other"],
            &signed_with_both,
            Err(SignatureError::Mismatch),
        );
    }

    #[test]
    fn blank_secrets_and_malformed_headers_are_refused() {
        let now = NOW.unix_timestamp();
        for secret in ["", " "] {
            let header = format!("t={now},v1={}", sign(secret, now, BODY));
            check(&[secret], &header, Err(SignatureError::Mismatch));
            check(&[], &header, Err(SignatureError::Mismatch));
        }

        let valid = sign("whsec_a", now, BODY);
        for header in [
            "",
            "t=",
            "v1=",
            &format!("v1={valid}"),
            &format!("t={now}"),
            &format!("t={now},v0={valid}"),
            &format!("t=now,v1={valid}"),
            &format!("t={now},v1={}", &valid[..62]),
            &format!("t={now},v1={}é", &valid[..62]),
        ] {
            check(&["whsec_a"], header, Err(SignatureError::Malformed));
        }
    }

    #[test]
    fn an_events_customer_may_be_expanded() {
        let event = |object: &str| -> Event {
            let json = format!(r#"{{"id":"evt_1","type":"t","data":{{"object":{object}}}}}"#);
            serde_json::from_str(&json).unwrap()
        };
        let deleted = Event {
            kind: CUSTOMER_DELETED.into(),
            ..event(r#"{"id":"cus_1","object":"customer"}"#)
        };
        assert_eq!(deleted.customer(), Some("cus_1"));

        for (object, expected) in [
            (r#"{"customer":"cus_1"}"#, Some("cus_1")),
            (r#"{"customer":{"id":"cus_1"}}"#, Some("cus_1")),
            (r#"{"customer":null}"#, None),
            ("{}", None),
        ] {
            assert_eq!(event(object).customer(), expected, "{object}");
        }
    }
}
