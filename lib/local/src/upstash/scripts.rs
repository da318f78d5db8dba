//! Scripts, as Upstash runs them. The flag `allow-key-locking` is Upstash's own, and the server behind the front refuses
//! it: it is taken out, the rule that it stands for is kept by a few lines of Lua, and whoever names the script by the
//! digest of what was sent is led to what was stored.

use sha1::{Digest, Sha1};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

const FLAG: &str = "allow-key-locking";

/// Stands before the script's second line, so that line numbers in errors stay true. Commands whose keys are not just
/// their first argument are named; all that a script of ours may call is covered.
const GUARD: &str = "local redis = (function(redis, keys) \
    local declared, all, none = {}, {MGET=1, DEL=1, UNLINK=1, EXISTS=1, TOUCH=1}, {TIME=1, PING=1, ECHO=1} \
    for _, key in ipairs(keys) do declared[key] = true end \
    local function guarded(call) return function(name, ...) \
      local upper, words = string.upper(name), {...} \
      local last = none[upper] and 0 or all[upper] and #words or 1 \
      for at = 1, math.min(last, #words) do if not declared[tostring(words[at])] then \
        error({err = \"ERR Dynamic keys are not allowed in Lua scripts when 'allow-key-locking' flag is set. Key was: \" .. tostring(words[at])}) \
      end end \
      return call(name, ...) end end \
    return setmetatable({call = guarded(redis.call), pcall = guarded(redis.pcall)}, {__index = redis}) \
  end)(redis, KEYS) ";

/// Digests of scripts as they were sent, and as they are stored.
#[derive(Default)]
pub(super) struct Scripts(Mutex<HashMap<String, String>>);

impl Scripts {
    /// Rewrites a command of the scripting group in place.
    pub(super) fn translate(&self, name: &str, command: &mut [Vec<u8>]) {
        match (name, command) {
            ("EVAL" | "EVAL_RO", [_, source, ..]) => *source = self.store(source),
            ("EVALSHA" | "EVALSHA_RO", [_, sha, ..]) => *sha = self.stored(sha),
            ("SCRIPT", [_, verb, rest @ ..]) => match String::from_utf8_lossy(verb).to_uppercase().as_str() {
                "LOAD" => rest.iter_mut().for_each(|source| *source = self.store(source)),
                "EXISTS" => rest.iter_mut().for_each(|sha| *sha = self.stored(sha)),
                _ => {}
            },
            _ => {}
        }
    }

    fn store(&self, source: &[u8]) -> Vec<u8> {
        let Some(stripped) = std::str::from_utf8(source).ok().and_then(strip) else {
            return source.to_vec();
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(digest(source), digest(stripped.as_bytes()));
        stripped.into_bytes()
    }

    fn stored(&self, sha: &[u8]) -> Vec<u8> {
        let sha = String::from_utf8_lossy(sha).to_lowercase();
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&sha).cloned().unwrap_or(sha).into_bytes()
    }
}

fn digest(source: &[u8]) -> String {
    Sha1::digest(source).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The script without the flag and with the guard, if it has the flag where Upstash looks for it: on the first line,
/// from the first byte.
fn strip(source: &str) -> Option<String> {
    let (shebang, rest) = source.split_once('\n')?;
    let options = shebang.strip_prefix("#!lua")?;
    let mut found = false;
    let kept = options.split_whitespace().filter_map(|option| {
        let Some(flags) = option.strip_prefix("flags=") else { return Some(option.to_owned()) };
        let others: Vec<&str> = flags.split(',').filter(|flag| *flag != FLAG).collect();
        found |= flags.split(',').any(|flag| flag == FLAG);
        (!others.is_empty()).then(|| format!("flags={}", others.join(",")))
    });
    let words: Vec<String> = std::iter::once("#!lua".to_owned()).chain(kept).collect();
    found.then(|| format!("{}\n{GUARD}{rest}", words.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_flag_goes_and_lines_keep_their_numbers() {
        let check = |source: &str, first_line: Option<&str>| {
            let stripped = strip(source);
            assert_eq!(stripped.as_deref().and_then(|text| text.lines().next()), first_line, "{source}");
            if let Some(stripped) = stripped {
                assert_eq!(stripped.lines().count(), source.lines().count());
            }
        };
        check("#!lua flags=allow-key-locking\nreturn 1\nx", Some("#!lua"));
        check("#!lua name=a flags=no-writes,allow-key-locking\nreturn 1", Some("#!lua name=a flags=no-writes"));
        check("#!lua flags=no-writes\nreturn 1", None);
        check("\n#!lua flags=allow-key-locking\nreturn 1", None);
        check("return 1", None);
    }
}
