//! Secret keys: those that sign tokens, and those that seal credentials.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::{Env, Setting, invalid, pairs};

/// 32 secret bytes.
#[derive(Clone)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// An Ed25519 signing key by its id.
#[derive(Clone, Debug)]
pub struct JwtKey {
    /// `kid` of the tokens that it signs.
    pub kid: String,
    /// The private seed.
    pub seed: Key,
}

impl Env<'_> {
    pub(super) fn jwt_keys(&self) -> Setting<Vec<JwtKey>> {
        pairs("JWT_KEYS", &self.required("JWT_KEYS")?, ':')?
            .into_iter()
            .map(|(kid, seed)| {
                let seed = parse_key("JWT_KEYS", &seed)?;
                Ok(JwtKey { kid, seed })
            })
            .collect()
    }

    /// The current key, and the former one during a rotation.
    pub(super) fn credentials_keys(&self) -> (Setting<Key>, Option<Key>) {
        match self.parse_credentials_keys() {
            Ok((current, former)) => (Ok(current), former),
            Err(error) => (Err(error), None),
        }
    }

    fn parse_credentials_keys(&self) -> Setting<(Key, Option<Key>)> {
        const VARIABLE: &str = "CREDENTIALS_KEY";
        let list = self.required(VARIABLE)?;

        match list.split(',').collect::<Vec<_>>().as_slice() {
            [current] => Ok((parse_key(VARIABLE, current.trim())?, None)),
            [current, former] => Ok((
                parse_key(VARIABLE, current.trim())?,
                Some(parse_key(VARIABLE, former.trim())?),
            )),
            _ => Err(invalid(VARIABLE, "holds more than two keys")),
        }
    }
}

fn parse_key(variable: &'static str, text: &str) -> Setting<Key> {
    BASE64
        .decode(text)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .map(Key)
        .ok_or_else(|| invalid(variable, "must hold 32 bytes in base64"))
}
