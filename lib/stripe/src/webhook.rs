//! Whether Stripe itself sent an event: its signature over the raw bytes, and when it was made.

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::Value;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};
use time::OffsetDateTime;

use secrecy::{ExposeSecret, SecretString};

/// How far the time of a signature may lie from ours, in either direction.
const TOLERANCE_SECS: u64 = 300;

/// The event of a customer that is gone for good, with its subscriptions.
pub const CUSTOMER_DELETED: &str = "customer.deleted";

/// Something that happened at Stripe.
#[derive(Debug, Deserialize)]
pub struct Event {
    /// `evt_…`: the same event may come again.
    pub id: String,
    /// Such as `customer.subscription.updated`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it happened to.
    pub data: Data,
}

/// What an event happened to.
#[derive(Debug, Deserialize)]
pub struct Data {
    /// As it was then: never newer than what Stripe says now.
    pub object: Value,
}

impl Event {
    /// The customer that it is about.
    pub fn customer(&self) -> Option<&str> {
        let object = &self.data.object;
        let customer = if self.kind == CUSTOMER_DELETED {
            object
        } else {
            &object["customer"]
        };
        customer.as_str().or_else(|| customer["id"].as_str())
    }
}

/// Why an event is not believed; for the log and for who sets the endpoint up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forged {
    /// No header, or one without a time or a signature of the scheme `v1`.
    #[error("The Stripe-Signature header is missing or malformed.")]
    Malformed,
    /// The time is more than five minutes away from ours.
    #[error("The event was signed too long ago, or in the future.")]
    Stale,
    /// None of the signatures was made with one of our secrets.
    #[error("The signature was made with another secret, or over another body.")]
    Mismatch,
}

/// Checks that one of our secrets signed exactly these bytes, now.
///
/// Secrets are compared before the time is looked at, and all of them, so that an answer tells nothing about them.
pub fn verify(
    secrets: &[SecretString],
    header: &str,
    body: &[u8],
    now: OffsetDateTime,
) -> Result<(), Forged> {
    let mut time = None;
    let mut signatures = Vec::new();
    for (name, value) in header
        .split(',')
        .filter_map(|part| part.trim().split_once('='))
    {
        match name {
            "t" if time.is_none() => time = Some(value),
            "v1" => signatures.extend(unhex(value)),
            // Other schemes, such as v0 of test events, prove nothing.
            _ => {}
        }
    }
    let stamp = time.ok_or(Forged::Malformed)?;
    let signed_at: i64 = stamp.parse().map_err(|_| Forged::Malformed)?;
    if signatures.is_empty() {
        return Err(Forged::Malformed);
    }
    let mut genuine = Choice::from(0);
    for secret in secrets
        .iter()
        .filter(|secret| !secret.expose_secret().trim().is_empty())
    {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())
            .expect("HMAC takes a key of any length");
        mac.update(stamp.as_bytes());
        mac.update(b".");
        mac.update(body);
        let expected = mac.finalize().into_bytes();
        for signature in &signatures {
            genuine |= expected.ct_eq(signature);
        }
    }
    if !bool::from(genuine) {
        return Err(Forged::Mismatch);
    }
    if now.unix_timestamp().abs_diff(signed_at) > TOLERANCE_SECS {
        return Err(Forged::Stale);
    }
    Ok(())
}

/// The 32 bytes of a signature.
fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        *byte = digit(pair[0])? * 16 + digit(pair[1])?;
    }
    Some(bytes)
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
        mac.finalize()
            .into_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn check(secrets: &[&str], header: &str, expected: Result<(), Forged>) {
        let secrets: Vec<SecretString> = secrets.iter().copied().map(SecretString::from).collect();
        assert_eq!(verify(&secrets, header, BODY, NOW), expected, "{header}");
    }

    #[test]
    fn a_signature_holds_for_one_body_one_secret_and_five_minutes() {
        let now = NOW.unix_timestamp();
        let good = sign("whsec_a", now, BODY);
        check(&["whsec_a"], &format!("t={now},v1={good}"), Ok(()));
        check(&["whsec_a"], &format!("t={now}, v1={good}, v0=ff"), Ok(()));
        check(
            &["whsec_b"],
            &format!("t={now},v1={good}"),
            Err(Forged::Mismatch),
        );
        check(
            &["whsec_a"],
            &format!("t={},v1={good}", now + 1),
            Err(Forged::Mismatch),
        );
        let other = sign("whsec_a", now, b"{}");
        check(
            &["whsec_a"],
            &format!("t={now},v1={other}"),
            Err(Forged::Mismatch),
        );
        for (offset, expected) in [
            (300, Ok(())),
            (-300, Ok(())),
            (301, Err(Forged::Stale)),
            (-301, Err(Forged::Stale)),
        ] {
            let at = now + offset;
            check(
                &["whsec_a"],
                &format!("t={at},v1={}", sign("whsec_a", at, BODY)),
                expected,
            );
        }
    }

    #[test]
    fn while_a_secret_is_replaced_either_one_will_do_on_either_side() {
        let now = NOW.unix_timestamp();
        let (old, new) = (sign("whsec_old", now, BODY), sign("whsec_new", now, BODY));
        check(
            &["whsec_new", "whsec_old"],
            &format!("t={now},v1={old}"),
            Ok(()),
        );
        check(
            &["whsec_new"],
            &format!("t={now},v1={old},v1={new}"),
            Ok(()),
        );
        check(
            &["whsec_other"],
            &format!("t={now},v1={old},v1={new}"),
            Err(Forged::Mismatch),
        );
    }

    #[test]
    fn what_proves_nothing_is_refused() {
        let now = NOW.unix_timestamp();
        let blank = sign("", now, BODY);
        check(&[""], &format!("t={now},v1={blank}"), Err(Forged::Mismatch));
        check(
            &[" "],
            &format!("t={now},v1={}", sign(" ", now, BODY)),
            Err(Forged::Mismatch),
        );
        check(&[], &format!("t={now},v1={blank}"), Err(Forged::Mismatch));
        let good = sign("whsec_a", now, BODY);
        for header in [
            "",
            "t=",
            "v1=",
            &format!("v1={good}"),
            &format!("t={now}"),
            &format!("t={now},v0={good}"),
            &format!("t=now,v1={good}"),
            &format!("t={now},v1={}", &good[..62]),
            &format!("t={now},v1={}é", &good[..62]),
        ] {
            check(&["whsec_a"], header, Err(Forged::Malformed));
        }
    }

    #[test]
    fn an_event_tells_its_customer_expanded_or_not() {
        let event = |object: &str| -> Event {
            serde_json::from_str(&format!(
                r#"{{"id":"evt_1","type":"t","data":{{"object":{object}}}}}"#
            ))
            .unwrap()
        };
        let deleted = Event {
            kind: CUSTOMER_DELETED.into(),
            ..event(r#"{"id":"cus_1","object":"customer"}"#)
        };
        assert_eq!(deleted.customer(), Some("cus_1"));
        assert_eq!(event(r#"{"customer":"cus_1"}"#).customer(), Some("cus_1"));
        assert_eq!(
            event(r#"{"customer":{"id":"cus_1"}}"#).customer(),
            Some("cus_1")
        );
        assert_eq!(event(r#"{"customer":null}"#).customer(), None);
        assert_eq!(event("{}").customer(), None);
    }
}
