//! The differences between Upstash and Redis: commands that need a connection, script flags, and
//! the script cache, which Redis shares between databases.

use std::{collections::HashMap, sync::Mutex};

use sha1::{Digest, Sha1};

use super::resp::{self, Reply, Words};
use crate::sync::lock;

/// Commands that Upstash refuses over REST. Most would change the state of a pooled connection.
///
/// One line each: connection, messages, transactions over several requests, blocking, and commands
/// of the server or another database.
const REFUSED: &str = "
    ASKING AUTH CLIENT HELLO QUIT READONLY READWRITE RESET SELECT
    MONITOR PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE UNSUBSCRIBE
    DISCARD EXEC MULTI UNWATCH WATCH
    BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN WAIT WAITAOF
    BGREWRITEAOF BGSAVE CLUSTER CONFIG DEBUG FAILOVER LATENCY MIGRATE MODULE MOVE PSYNC REPLCONF
    REPLICAOF SAVE SHUTDOWN SLAVEOF SLOWLOG SWAPDB SYNC
";

const FLAG: &str = "allow-key-locking";

/// Upstash's error for a key that a flagged script did not declare; the key follows.
const UNDECLARED: &str = "ERR Dynamic keys are not allowed in Lua scripts when \
     'allow-key-locking' flag is set. Key was: ";

/// Lua that replaces `redis` in flagged scripts and refuses undeclared keys.
///
/// `COMMAND GETKEYS` finds the keys of a command. An error that `redis.call` raises names the line
/// of the guard instead of its own.
fn guard() -> String {
    format!(
        "local redis=(function(redis,keys) \
         local declared={{}} for _,key in ipairs(keys) do declared[key]=true end \
         local function refusal(...) \
         local named=redis.pcall('COMMAND','GETKEYS',...) if named.err then return nil end \
         for _,key in ipairs(named) do if not declared[key] then \
         return {{err=\"{UNDECLARED}\"..key}} end end end \
         return setmetatable({{\
         call=function(...) local no=refusal(...) if no then error(no) end \
         return redis.call(...) end,\
         pcall=function(...) return refusal(...) or redis.pcall(...) end\
         }},{{__index=redis}}) end)(redis,KEYS) "
    )
}

/// A flagged script as Redis accepts it; `None` if it does not have the flag.
///
/// The flag is removed, and the guard stands before the second line, so that the line numbers of
/// errors stay correct.
fn strip_flag(source: &str) -> Option<String> {
    let (shebang, rest) = source.split_once('\n').unwrap_or((source, ""));
    let options = shebang.strip_prefix("#!lua")?;

    let mut flagged = false;
    let mut shebang = "#!lua".to_owned();
    for option in options.split_whitespace() {
        let kept = match option.strip_prefix("flags=") {
            Some(flags) => {
                let others: Vec<_> = flags.split(',').filter(|flag| *flag != FLAG).collect();
                flagged |= others.len() < flags.split(',').count();
                match others.as_slice() {
                    [] => continue,
                    others => format!("flags={}", others.join(",")),
                }
            }
            None => option.to_owned(),
        };

        shebang.push(' ');
        shebang.push_str(&kept);
    }

    flagged.then(|| format!("{shebang}\n{}{rest}", guard()))
}

/// Restores the client's hash of a script in a reply, because Redis received a changed script.
#[derive(Debug)]
pub(super) enum Restore {
    Nothing,
    Script(Hashes),
    LoadedScript(Hashes),
}

/// The SHA-1 of a script as the client sent it, and as Redis received it.
#[derive(Debug)]
pub(super) struct Hashes {
    client: String,
    redis: String,
}

/// The scripts of this proxy, from the client's hash to Redis's.
///
/// Redis has one script cache for all databases. This list gives each proxy a cache of its own, so
/// that SCRIPT FLUSH in one test does not affect another.
#[derive(Default)]
pub(super) struct Scripts(Mutex<HashMap<String, String>>);

impl Scripts {
    /// A command as Redis accepts it, or the error that refuses it.
    pub(super) fn translate(&self, mut words: Words) -> Result<(Words, Restore), String> {
        let word = |at: usize| upper(&words, at);
        let has =
            |from: usize, option: &str| (from..words.len()).any(|place| word(place) == option);
        let name = word(0);

        let restore = match (name.as_str(), words.len()) {
            ("FLUSHALL", _) => {
                words[0] = b"FLUSHDB".to_vec();
                Restore::Nothing
            }
            ("EVAL" | "EVAL_RO", 2..) => Restore::Script(self.replace_source(&mut words[1])),
            ("EVALSHA" | "EVALSHA_RO", 2..) => Restore::Script(self.replace_hash(&mut words[1])),
            ("SCRIPT", _) => self.translate_script(&mut words)?,
            ("XREAD" | "XREADGROUP", _) if has(1, "BLOCK") => return Err(refusal(&name)),
            ("COPY", _) if has(3, "DB") => return Err(refusal(&name)),
            _ if REFUSED.split_whitespace().any(|refused| refused == name) => {
                return Err(refusal(&name));
            }
            _ => Restore::Nothing,
        };

        Ok((words, restore))
    }

    fn translate_script(&self, words: &mut Words) -> Result<Restore, String> {
        match (upper(words, 1).as_str(), words.len()) {
            ("LOAD", 3) => Ok(Restore::LoadedScript(self.replace_source(&mut words[2]))),
            ("LOAD", _) => Ok(Restore::Nothing),
            ("EXISTS", _) => {
                for hash in words.iter_mut().skip(2) {
                    self.replace_hash(hash);
                }
                Ok(Restore::Nothing)
            }
            ("FLUSH", _) => {
                lock(&self.0).clear();
                *words = resp::words(&["ECHO", "OK"]);
                Ok(Restore::Nothing)
            }
            _ => Err(refusal("SCRIPT")),
        }
    }

    /// Replaces a script by the one that Redis accepts.
    fn replace_source(&self, source: &mut Vec<u8>) -> Hashes {
        let client = sha1(source);
        if let Some(stripped) = str::from_utf8(source).ok().and_then(strip_flag) {
            *source = stripped.into_bytes();
        }
        let redis = sha1(source);

        lock(&self.0).insert(client.clone(), redis.clone());
        Hashes { client, redis }
    }

    /// Replaces the client's hash of a script by Redis's.
    fn replace_hash(&self, hash: &mut Vec<u8>) -> Hashes {
        // No script has this hash, so Redis answers with its own error.
        const NONE: &str = "0000000000000000000000000000000000000000";

        let client = String::from_utf8_lossy(hash).to_ascii_lowercase();
        let redis = lock(&self.0).get(&client).cloned();
        let redis = redis.unwrap_or_else(|| NONE.to_owned());

        *hash = redis.clone().into_bytes();
        Hashes { client, redis }
    }
}

/// A word of a command in upper case; empty if there is none.
fn upper(words: &Words, at: usize) -> String {
    let word = words.get(at).map_or(&[][..], Vec::as_slice);

    String::from_utf8_lossy(word).to_ascii_uppercase()
}

impl Restore {
    /// The reply as the client expects it.
    pub(super) fn apply(&self, reply: Reply) -> Reply {
        match (self, reply) {
            (Self::LoadedScript(hashes), Reply::Bulk(_)) => {
                Reply::Bulk(hashes.client.clone().into_bytes())
            }
            (Self::Script(hashes) | Self::LoadedScript(hashes), Reply::Error(text)) => {
                Reply::Error(hashes.restore(&text))
            }
            (_, reply) => reply,
        }
    }
}

impl Hashes {
    fn restore(&self, text: &str) -> String {
        // Redis adds the place in the script; Upstash's text ends with the key.
        if text.starts_with(UNDECLARED) {
            let end = text.rfind(" script: ").unwrap_or(text.len());
            return text[..end].to_owned();
        }
        // Valkey's text is shorter, and clients compare it.
        if text.starts_with("NOSCRIPT") {
            return "NOSCRIPT No matching script. Please use EVAL.".to_owned();
        }

        text.replace(&self.redis, &self.client)
    }
}

fn refusal(name: &str) -> String {
    format!(
        "ERR Command is not available: '{name}'. \
         See https://upstash.com/docs/redis/overall/rediscompatibility for details"
    )
}

fn sha1(source: &[u8]) -> String {
    hex::encode(Sha1::digest(source))
}

#[cfg(test)]
mod tests {
    use super::{Scripts, guard, resp, strip_flag};

    #[track_caller]
    fn check_strip(source: &str, shebang: Option<&str>) {
        let expected = shebang.map(|shebang| format!("{shebang}\n{}return 1\n", guard()));
        assert_eq!(strip_flag(source), expected);
    }

    #[test]
    fn only_the_flag_on_the_first_line_is_stripped() {
        check_strip("#!lua flags=allow-key-locking\nreturn 1\n", Some("#!lua"));
        check_strip(
            "#!lua flags=no-writes,allow-key-locking,allow-stale\nreturn 1\n",
            Some("#!lua flags=no-writes,allow-stale"),
        );
        check_strip("#!lua flags=no-writes\nreturn 1\n", None);
        check_strip("\n#!lua flags=allow-key-locking\nreturn 1\n", None);
        check_strip("-- flags=allow-key-locking\nreturn 1\n", None);
        check_strip("return 1\n", None);
    }

    #[test]
    fn a_stripped_script_keeps_its_line_count() {
        let source = "#!lua flags=allow-key-locking\n\n-- why\nreturn 1";
        let stripped = strip_flag(source).unwrap();

        assert_eq!(stripped.lines().count(), source.lines().count());
    }

    #[track_caller]
    fn check_refused(command: &[&str], refused: bool) {
        let call = Scripts::default().translate(resp::words(command));
        assert_eq!(call.is_err(), refused, "{command:?}");
    }

    #[test]
    fn commands_that_need_a_connection_are_refused() {
        check_refused(&["subscribe", "news"], true);
        check_refused(&["SELECT", "1"], true);
        check_refused(
            &["XREAD", "COUNT", "1", "block", "0", "STREAMS", "s", "$"],
            true,
        );
        check_refused(&["XREAD", "COUNT", "1", "STREAMS", "s", "0"], false);
        check_refused(&["COPY", "a", "b", "DB", "3"], true);
        check_refused(&["COPY", "DB", "b"], false);
        check_refused(&["SCRIPT", "KILL"], true);
        check_refused(&["PING"], false);
    }
}
