//! Cooldowns in Redis, where all instances share them: a sorted set of cooldown keys by their end in Unix milliseconds.

use claude::Cooldown;
use serde_json::Value;
use upstash_redis_rs::Command;

use crate::{
    app::App,
    clock::epoch_ms,
    http::error::{Error, Result},
    redis,
};

const COOLDOWNS: &str = "{keys}:cooling";
/// Longer than a month, the longest cooldown.
const TTL_SECS: u32 = 40 * 24 * 3600;

/// Publishes cooldowns and fetches those of all instances, in one request.
pub(super) async fn exchange(app: &App, unpublished: &[Cooldown]) -> Result<Vec<Cooldown>> {
    let now_ms = epoch_ms(app.now());
    let mut commands = Vec::new();

    if !unpublished.is_empty() {
        commands.push(publish_command(unpublished));
        commands.push(remove_ended_command(now_ms));
        commands.push(Command::new("EXPIRE").arg(COOLDOWNS).arg(TTL_SECS));
    }
    commands.push(fetch_command(now_ms));
    let commands: Vec<Command> = commands.into_iter().map(Command::idempotent).collect();

    let results = app.redis()?.pipeline(&commands).await?;
    let results: Vec<Value> = results
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(redis::Error::from)?;
    parse(results.into_iter().next_back().unwrap_or_default())
}

/// Fetches the running cooldowns of all instances.
pub(super) async fn fetch(app: &App) -> Result<Vec<Cooldown>> {
    let command = fetch_command(epoch_ms(app.now())).idempotent();
    parse(app.redis()?.exec(&command).await?)
}

/// Ends cooldowns for all instances.
pub(super) async fn lift(app: &App, keys: &[String]) -> Result<()> {
    let remove = keys
        .iter()
        .fold(Command::new("ZREM").arg(COOLDOWNS), Command::arg);

    app.redis()?.exec::<i64>(&remove.idempotent()).await?;
    Ok(())
}

fn publish_command(cooldowns: &[Cooldown]) -> Command {
    // `GT` keeps the latest end.
    let add = Command::new("ZADD").arg(COOLDOWNS).arg("GT");

    cooldowns.iter().fold(add, |add, cooldown| {
        add.arg(cooldown.until_ms).arg(&cooldown.key)
    })
}

fn remove_ended_command(now_ms: i64) -> Command {
    Command::new("ZREMRANGEBYSCORE")
        .arg(COOLDOWNS)
        .arg("-inf")
        .arg(now_ms)
}

fn fetch_command(now_ms: i64) -> Command {
    Command::new("ZRANGEBYSCORE")
        .arg(COOLDOWNS)
        .arg(now_ms)
        .arg("+inf")
        .arg("WITHSCORES")
}

/// Reads members and scores, which alternate.
fn parse(answer: Value) -> Result<Vec<Cooldown>> {
    let words: Vec<String> = serde_json::from_value(answer).map_err(Error::internal)?;

    let cooldown = |pair: &[String]| {
        let end: f64 = pair[1].parse().ok()?;
        Some(Cooldown {
            key: pair[0].clone(),
            until_ms: end as i64,
        })
    };
    Ok(words.chunks_exact(2).filter_map(cooldown).collect())
}
