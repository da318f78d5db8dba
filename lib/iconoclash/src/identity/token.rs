//! Session tokens: JWTs signed with Ed25519, valid for 30 days, verified without a network request.
//!
//! `kid` selects a key from the configured list only. Where a session has to be live, `ver` and `sid` are compared with
//! the database, so revoking a session takes effect at once.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::verified::{self, VerifiedTokens};
use crate::{
    config::JwtKey,
    http::error::{Cause, Error, Result},
};

/// How long a token is valid.
pub(crate) const LIFETIME: Duration = Duration::days(30);
const AUDIENCE: &str = "iconoclash";
/// Maximum clock difference between two machines.
const LEEWAY_SECS: i64 = 60;

/// The content of a token, without its issuer and its audience.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The user.
    pub sub: Uuid,
    /// The session, which signing out revokes.
    pub sid: Uuid,
    /// The user's token version at signing.
    pub ver: i32,
    /// Whether the user was a guest at signing: messages of guests count by network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest: bool,
    iat: i64,
    nbf: i64,
    /// End of validity in epoch seconds.
    pub exp: i64,
}

/// What a token is signed for.
#[derive(Serialize)]
struct Payload<'a> {
    iss: &'a str,
    aud: &'a str,
    #[serde(flatten)]
    claims: Claims,
}

/// The keys that sign and verify.
pub struct Tokens {
    issuer: String,
    /// The first signs.
    keys: Vec<Key>,
    /// Tokens that these keys have verified.
    verified: VerifiedTokens<Claims>,
}

struct Key {
    kid: String,
    sign: EncodingKey,
    verify: DecodingKey,
    public: Vec<u8>,
}

impl Tokens {
    /// Prepares the keys. `issuer` is the service's public address.
    pub fn new(issuer: &str, keys: &[JwtKey]) -> Result<Self> {
        let keys = keys
            .iter()
            .map(Key::new)
            .collect::<Result<_, Cause>>()
            .map_err(Error::Internal)?;

        Ok(Self {
            issuer: issuer.to_owned(),
            keys,
            verified: VerifiedTokens::new(),
        })
    }

    /// Signs a token for a session. Returns the token and when it expires.
    pub fn sign(
        &self,
        user: Uuid,
        sid: Uuid,
        ver: i32,
        guest: bool,
        now: OffsetDateTime,
    ) -> Result<(String, OffsetDateTime)> {
        let key = self
            .keys
            .first()
            .expect("configuration lists at least one key");
        let expires_at = (now + LIFETIME)
            .replace_nanosecond(0)
            .expect("zero is a nanosecond");

        let claims = Claims {
            sub: user,
            sid,
            ver,
            guest,
            iat: now.unix_timestamp(),
            nbf: now.unix_timestamp(),
            exp: expires_at.unix_timestamp(),
        };
        let header = Header {
            kid: Some(key.kid.clone()),
            ..Header::new(Algorithm::EdDSA)
        };

        let payload = Payload {
            iss: &self.issuer,
            aud: AUDIENCE,
            claims,
        };
        let token = jsonwebtoken::encode(&header, &payload, &key.sign).map_err(Error::internal)?;
        Ok((token, expires_at))
    }

    /// The claims of a token, if one of our keys signed it and it is valid now.
    ///
    /// The signature of a token that comes again is not verified again. Its times are.
    pub fn verify(&self, token: &str, now: OffsetDateTime) -> Option<Claims> {
        let digest = verified::digest(token);
        if let Some(claims) = self.verified.get(&digest) {
            if claims.is_expired(now) {
                self.verified.remove(&digest);
            }
            return claims.is_valid(now).then_some(claims);
        }

        let claims = self.verify_signature(token)?;
        if !claims.is_valid(now) {
            return None;
        }
        self.verified.insert(digest, claims.clone());
        Some(claims)
    }

    /// The claims of a token that one of our keys signed, at whatever time.
    fn verify_signature(&self, token: &str) -> Option<Claims> {
        let kid = jsonwebtoken::decode_header(token).ok()?.kid?;
        let key = self.keys.iter().find(|key| key.kid == kid)?;

        let mut checks = Validation::new(Algorithm::EdDSA);
        checks.set_issuer(&[&self.issuer]);
        checks.set_audience(&[AUDIENCE]);
        checks.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        // The library reads the wall clock; the caller checks the times.
        checks.validate_exp = false;
        checks.validate_nbf = false;

        let verified = jsonwebtoken::decode::<Claims>(token, &key.verify, &checks);
        Some(verified.ok()?.claims)
    }

    /// The public keys as a JWK set (RFC 7517, RFC 8037).
    pub fn jwks(&self) -> serde_json::Value {
        let keys: Vec<_> = self
            .keys
            .iter()
            .map(|key| {
                let x = BASE64URL.encode(&key.public);
                json!({
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "alg": "EdDSA",
                    "use": "sig",
                    "kid": key.kid,
                    "x": x,
                })
            })
            .collect();
        json!({ "keys": keys })
    }
}

impl Claims {
    fn is_valid(&self, now: OffsetDateTime) -> bool {
        self.nbf <= now.unix_timestamp() + LEEWAY_SECS && !self.is_expired(now)
    }

    fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.exp <= now.unix_timestamp()
    }
}

impl Key {
    fn new(key: &JwtKey) -> Result<Self, Cause> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&key.seed.0)?;
        let public = pair.public_key().as_ref().to_vec();

        Ok(Self {
            kid: key.kid.clone(),
            sign: EncodingKey::from_ed_der(pair.to_pkcs8()?.as_ref()),
            verify: DecodingKey::from_ed_der(&public),
            public,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);

    fn tokens(issuer: &str, kids: &[(&str, u8)]) -> Tokens {
        let keys: Vec<_> = kids
            .iter()
            .map(|(kid, byte)| JwtKey {
                kid: (*kid).to_owned(),
                seed: crate::config::Key([*byte; 32]),
            })
            .collect();
        Tokens::new(issuer, &keys).unwrap()
    }

    fn signed(tokens: &Tokens) -> String {
        tokens
            .sign(Uuid::from_u128(1), Uuid::from_u128(2), 3, true, NOW)
            .unwrap()
            .0
    }

    #[test]
    fn a_token_is_valid_for_thirty_days() {
        let tokens = tokens("https://a", &[("k1", 1)]);
        let token = signed(&tokens);
        let claims = tokens.verify(&token, NOW).unwrap();
        assert_eq!(
            (claims.sub, claims.sid, claims.ver, claims.guest),
            (Uuid::from_u128(1), Uuid::from_u128(2), 3, true)
        );
        assert!(
            tokens
                .verify(&token, NOW + LIFETIME - Duration::SECOND)
                .is_some()
        );
        assert!(tokens.verify(&token, NOW + LIFETIME).is_none());
        assert!(tokens.verify(&token, NOW - Duration::minutes(2)).is_none());
    }

    #[test]
    fn a_former_key_verifies_until_it_is_removed() {
        let token = signed(&tokens("https://a", &[("k1", 1)]));
        assert!(
            tokens("https://a", &[("k2", 2), ("k1", 1)])
                .verify(&token, NOW)
                .is_some()
        );
        assert!(
            tokens("https://a", &[("k2", 2)])
                .verify(&token, NOW)
                .is_none()
        );
    }

    #[test]
    fn a_forged_token_is_rejected() {
        let ours = tokens("https://a", &[("k1", 1)]);
        let token = signed(&ours);
        let (head, tail) = token.split_at(token.len() - 2);
        let none = format!(
            "{}.{}.",
            BASE64URL.encode(r#"{"alg":"none","kid":"k1"}"#),
            token.split('.').nth(1).unwrap()
        );
        for forged in [
            signed(&tokens("https://a", &[("k1", 9)])),
            signed(&tokens("https://b", &[("k1", 1)])),
            format!("{head}{}", if tail == "AA" { "BA" } else { "AA" }),
            none,
            "not.a.token".to_owned(),
            String::new(),
        ] {
            assert_eq!(ours.verify(&forged, NOW), None, "{forged}");
        }
    }

    #[test]
    fn a_remembered_token_makes_no_other_token_valid() {
        let ours = tokens("https://a", &[("k1", 1)]);
        let token = signed(&ours);
        let known = ours.verify(&token, NOW).unwrap();
        assert_eq!(ours.verify(&token, NOW), Some(known.clone()), "again");

        let parts: Vec<&str> = token.split('.').collect();
        let [head, body, signature] = parts[..] else {
            panic!("{token}")
        };
        let other_user = Claims {
            sub: Uuid::from_u128(9),
            ..known
        };
        let other_body = BASE64URL.encode(serde_json::to_string(&other_user).unwrap());
        let foreign = signed(&tokens("https://a", &[("k1", 9)]));
        let foreign_signature = foreign.rsplit('.').next().unwrap();

        for _ in 0..2 {
            for forged in [
                format!("{head}.{other_body}.{signature}"),
                format!("{head}.{body}.{foreign_signature}"),
                format!("{head}.{body}."),
                format!("{head}.{body}"),
                format!("{token}."),
                format!("{token}A"),
                format!(" {token}"),
                token.to_uppercase(),
                foreign.clone(),
            ] {
                assert_eq!(ours.verify(&forged, NOW), None, "{forged}");
            }
        }
        assert_eq!(ours.verified.len(), 1, "a forged token is not remembered");
    }

    #[test]
    fn a_remembered_token_is_valid_in_its_own_time_only() {
        let tokens = tokens("https://a", &[("k1", 1)]);
        let token = signed(&tokens);
        let is_valid = |now| tokens.verify(&token, now).is_some();

        assert!(!is_valid(NOW - Duration::minutes(2)));
        assert_eq!(tokens.verified.len(), 0, "not valid yet");

        assert!(is_valid(NOW));
        assert!(!is_valid(NOW - Duration::minutes(2)));
        assert!(is_valid(NOW + LIFETIME - Duration::SECOND));
        assert_eq!(tokens.verified.len(), 1);

        assert!(!is_valid(NOW + LIFETIME));
        assert_eq!(tokens.verified.len(), 0, "expired");
        assert!(!is_valid(NOW + LIFETIME));
        assert_eq!(tokens.verified.len(), 0, "expired");
    }

    #[test]
    fn at_most_ten_thousand_tokens_are_remembered_and_those_in_use_stay() {
        let remembered = VerifiedTokens::new();
        let claims = tokens("https://a", &[("k1", 1)]);
        let claims = claims.verify(&signed(&claims), NOW).unwrap();
        let in_use = verified::digest("in use");
        remembered.insert(in_use, claims.clone());

        for number in 0..30_000 {
            remembered.insert(verified::digest(&number.to_string()), claims.clone());
            assert!(remembered.len() <= 10_000);
            if number % 1_000 == 0 {
                assert!(remembered.get(&in_use).is_some(), "{number}");
            }
        }
        assert!(remembered.get(&verified::digest("0")).is_none());
        assert!(remembered.get(&verified::digest("29999")).is_some());
    }

    #[test]
    fn only_public_keys_are_published() {
        let published = tokens("https://a", &[("k1", 1)]).jwks();
        assert_eq!(
            published["keys"][0]["x"],
            "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w"
        );
        assert!(published["keys"][0].get("d").is_none());
    }
}
