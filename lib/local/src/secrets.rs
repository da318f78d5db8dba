//! Passwords and keys of one local stack, made once and kept beside its data.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

/// What a stack needs that nobody else should know; dropping the database drops them with it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secrets {
    /// Of the database's only role.
    pub postgres_password: String,
    /// Of the Upstash front.
    pub redis_token: String,
    /// Base64 of the Ed25519 seed that signs tokens.
    pub jwt_seed: String,
    /// What Vercel's cron would send.
    pub cron_secret: String,
    /// Base64 of the key that seals stored credentials.
    pub credentials_key: String,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// The secrets kept in this directory; made when there are none.
pub fn kept(dir: &Path) -> Result<Secrets> {
    let path = dir.join("secrets.json");
    if path.is_file() {
        return serde_json::from_slice(&fs::read(&path)?).with_context(|| {
            format!(
                "{} is broken: remove {} to begin afresh",
                path.display(),
                dir.display()
            )
        });
    }
    let secrets = Secrets {
        postgres_password: hex(),
        redis_token: hex(),
        jwt_seed: STANDARD.encode(rand::random::<[u8; 32]>()),
        cron_secret: hex(),
        credentials_key: STANDARD.encode(rand::random::<[u8; 32]>()),
    };
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(&serde_json::to_vec_pretty(&secrets)?)?;
    Ok(secrets)
}

fn hex() -> String {
    rand::random::<[u8; 16]>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
