//! The Claude client against the fake, for every behaviour of the fake.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![expect(clippy::disallowed_methods, reason = "a test has its own HTTP client")]

mod failover;
mod faults;
mod http2;
mod pool;
mod replies;

use std::time::Duration;

use claude::{ApiKey, Claude, Error, Prompt, Reply, Role, Turn};
use iconoclash_fakes::claude::{Config, FakeClaude};

const KEY: &str = "sk-ant-local";
const WORDS: &str = "one two three four";
/// The tokens of [`WORDS`]: one per word, two for the longest.
const WORDS_OUTPUT: u32 = 5;

async fn start_fake() -> FakeClaude {
    FakeClaude::start(Config::default()).await.unwrap()
}

fn client(url: String, key: &str) -> Claude {
    let http = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .no_proxy()
        .build();

    Claude::new(http.unwrap(), url, ApiKey::new("test", key))
}

fn prompt(text: &str) -> Prompt {
    Prompt {
        model: "claude-haiku-5-5".into(),
        max_tokens: 500,
        system: "You are Socrates, who asks.".into(),
        summary_block: String::new(),
        turns: vec![Turn {
            role: Role::User,
            text: text.into(),
        }],
        user_id: "u1".into(),
    }
}

/// Reads to the end or the error.
async fn read(reply: &mut Reply) -> (String, Result<(), Error>) {
    let mut text = String::new();
    loop {
        match reply.next().await {
            Ok(Some(piece)) => text.push_str(&piece),
            Ok(None) => return (text, Ok(())),
            Err(error) => return (text, Err(error)),
        }
    }
}
