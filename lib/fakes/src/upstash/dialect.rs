//! Where Upstash and Redis differ: commands that need a connection, flags that Redis does not know,
//! and state that would be shared by databases that must not notice each other.

use std::{collections::HashMap, sync::Mutex};

use sha1::{Digest, Sha1};

use super::resp::{self, Reply, Words};

/// Upstash has no such command over REST; most would also leave a pooled connection in a state that
/// the next request must not find it in. A line each: the connection's own, messages, transactions
/// over several requests, waiting, and what is the server's or another database's.
const REFUSED: &str = "
    ASKING AUTH CLIENT HELLO QUIT READONLY READWRITE RESET SELECT
    MONITOR PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE UNSUBSCRIBE
    DISCARD EXEC MULTI UNWATCH WATCH
    BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN WAIT WAITAOF
    BGREWRITEAOF BGSAVE CLUSTER CONFIG DEBUG FAILOVER LATENCY MIGRATE MODULE MOVE PSYNC REPLCONF
    REPLICAOF SAVE SHUTDOWN SLAVEOF SLOWLOG SWAPDB SYNC
";

const FLAG: &str = "allow-key-locking";

/// The error that Upstash documents for a key that a flagged script did not declare; the key follows.
const UNDECLARED: &str = "ERR Dynamic keys are not allowed in Lua scripts when 'allow-key-locking' flag is set. Key was: ";

/// Stands in for `redis` in flagged scripts. Redis itself is asked which words of a command are keys.
/// The one visible trace: an error that `redis.call` raises names the guard's line instead of its own.
fn guard() -> String {
    format!(
        "local redis=(function(redis,keys) \
         local declared={{}} for _,key in ipairs(keys) do declared[key]=true end \
         local function refusal(...) \
         local named=redis.pcall('COMMAND','GETKEYS',...) if named.err then return nil end \
         for _,key in ipairs(named) do if not declared[key] then return {{err=\"{UNDECLARED}\"..key}} end end end \
         return setmetatable({{\
         call=function(...) local no=refusal(...) if no then error(no) end return redis.call(...) end,\
         pcall=function(...) return refusal(...) or redis.pcall(...) end\
         }},{{__index=redis}}) end)(redis,KEYS) "
    )
}

/// The script as Redis takes it, if it has the flag: the flag gone, other flags kept, and the guard
/// in front of the second line, so that the line numbers in errors stay true.
fn strip(source: &str) -> Option<String> {
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

/// What must be put back in the reply, because Redis was told something else.
#[derive(Debug)]
pub(super) enum Undo {
    Nothing,
    Script(Names),
    LoadedScript(Names),
}

/// A script's SHA-1 as its author knows it, and as Redis does.
#[derive(Debug)]
pub(super) struct Names {
    given: String,
    sent: String,
}

/// The scripts that this front was given. Redis has one script cache for all its databases; going
/// through this list gives each front its own, so that SCRIPT FLUSH in one test is not felt in another.
#[derive(Default)]
pub(super) struct Scripts(Mutex<HashMap<String, String>>);

impl Scripts {
    /// A command as Redis shall see it, or why there is none such.
    pub(super) fn translate(&self, mut words: Words) -> Result<(Words, Undo), String> {
        let word = |place: usize| -> String {
            let bytes = words.get(place).map_or(&[][..], Vec::as_slice);
            String::from_utf8_lossy(bytes).to_ascii_uppercase()
        };
        let has =
            |from: usize, option: &str| (from..words.len()).any(|place| word(place) == option);
        let name = word(0);
        let undo = match (name.as_str(), words.len()) {
            ("FLUSHALL", _) => {
                words[0] = b"FLUSHDB".to_vec();
                Undo::Nothing
            }
            ("EVAL" | "EVAL_RO", 2..) => Undo::Script(self.take_source(&mut words[1])),
            ("EVALSHA" | "EVALSHA_RO", 2..) => Undo::Script(self.take_sha1(&mut words[1])),
            ("SCRIPT", length) => match (word(1).as_str(), length) {
                ("LOAD", 3) => Undo::LoadedScript(self.take_source(&mut words[2])),
                ("EXISTS", _) => {
                    for sha1 in words.iter_mut().skip(2) {
                        self.take_sha1(sha1);
                    }
                    Undo::Nothing
                }
                ("FLUSH", _) => {
                    self.lock().clear();
                    words = resp::words(&["ECHO", "OK"]);
                    Undo::Nothing
                }
                ("LOAD", _) => Undo::Nothing,
                _ => return Err(refusal(&name)),
            },
            ("XREAD" | "XREADGROUP", _) if has(1, "BLOCK") => return Err(refusal(&name)),
            ("COPY", _) if has(3, "DB") => return Err(refusal(&name)),
            _ if REFUSED.split_whitespace().any(|refused| refused == name) => {
                return Err(refusal(&name));
            }
            _ => Undo::Nothing,
        };
        Ok((words, undo))
    }

    fn take_source(&self, source: &mut Vec<u8>) -> Names {
        let given = sha1(source);
        if let Some(stripped) = str::from_utf8(source).ok().and_then(strip) {
            *source = stripped.into_bytes();
        }
        let sent = sha1(source);
        self.lock().insert(given.clone(), sent.clone());
        Names { given, sent }
    }

    fn take_sha1(&self, sha1: &mut Vec<u8>) -> Names {
        // Nothing has this SHA-1, so Redis answers in its own words that there is no such script.
        const NONE: &str = "0000000000000000000000000000000000000000";
        let given = String::from_utf8_lossy(sha1).to_ascii_lowercase();
        let sent = self
            .lock()
            .get(&given)
            .map_or(NONE, String::as_str)
            .to_owned();
        *sha1 = sent.clone().into_bytes();
        Names { given, sent }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().expect("nothing panics while it is held")
    }
}

impl Undo {
    /// The reply as the caller expects it.
    pub(super) fn restore(&self, reply: Reply) -> Reply {
        match (self, reply) {
            (Self::LoadedScript(names), Reply::Bulk(_)) => {
                Reply::Bulk(names.given.clone().into_bytes())
            }
            (Self::Script(names) | Self::LoadedScript(names), Reply::Error(text)) => {
                Reply::Error(names.restore(&text))
            }
            (_, reply) => reply,
        }
    }
}

impl Names {
    fn restore(&self, text: &str) -> String {
        // Redis adds where in the script it happened; Upstash's text ends with the key.
        if text.starts_with(UNDECLARED) {
            let end = text.rfind(" script: ").unwrap_or(text.len());
            return text[..end].to_owned();
        }
        // Valkey's words are fewer, and clients compare them.
        if text.starts_with("NOSCRIPT") {
            return "NOSCRIPT No matching script. Please use EVAL.".to_owned();
        }
        text.replace(&self.sent, &self.given)
    }
}

fn refusal(name: &str) -> String {
    format!(
        "ERR Command is not available: '{name}'. \
         See https://upstash.com/docs/redis/overall/rediscompatibility for details"
    )
}

fn sha1(source: &[u8]) -> String {
    Sha1::digest(source)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Scripts, guard, resp, strip};

    #[track_caller]
    fn check_strip(source: &str, shebang: Option<&str>) {
        let expected = shebang.map(|shebang| format!("{shebang}\n{}return 1\n", guard()));
        assert_eq!(strip(source), expected);
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
        let stripped = strip(source).unwrap();
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
