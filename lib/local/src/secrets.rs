//! Passwords and keys of an instance, generated once and stored with its data.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

/// The secrets of an instance. They live as long as its database.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secrets {
    /// Password of the database's only role.
    pub postgres_password: String,
    /// Token of the Upstash REST proxy.
    pub redis_token: String,
    /// Base64 of the Ed25519 seed that signs session tokens.
    pub jwt_seed: String,
    /// The secret that Vercel's cron would send.
    pub cron_secret: String,
    /// Base64 of the key that seals stored credentials.
    pub credentials_key: String,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// Loads the secrets in `dir`, or generates them if there are none.
pub fn load_or_create(dir: &Path) -> Result<Secrets> {
    let path = dir.join("secrets.json");
    if path.is_file() {
        return serde_json::from_slice(&fs::read(&path)?).with_context(|| {
            format!(
                "{} is damaged: remove {} to start with an empty database",
                path.display(),
                dir.display()
            )
        });
    }

    let secrets = Secrets {
        postgres_password: random_hex(),
        redis_token: random_hex(),
        jwt_seed: BASE64.encode(rand::random::<[u8; 32]>()),
        cron_secret: random_hex(),
        credentials_key: BASE64.encode(rand::random::<[u8; 32]>()),
    };
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(&serde_json::to_vec_pretty(&secrets)?)?;

    Ok(secrets)
}

fn random_hex() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}
