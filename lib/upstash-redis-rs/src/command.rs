//! Commands and scripts, as they are sent.

use serde::{Serialize, Serializer};
use sha1::{Digest, Sha1};

/// One Redis command with its arguments.
#[derive(Clone, Debug)]
pub struct Command {
    words: Vec<String>,
    idempotent: bool,
}

impl Command {
    /// A command by its name.
    pub fn new(name: &str) -> Self {
        Self { words: vec![name.to_owned()], idempotent: false }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl ToString) -> Self {
        self.words.push(argument.to_string());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item: ToString>) -> Self {
        self.words.extend(arguments.into_iter().map(|argument| argument.to_string()));
        self
    }

    /// Marks a command that may be sent again when its connection died without an answer, because running twice is the
    /// same as running once.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    pub(crate) fn is_idempotent(&self) -> bool {
        self.idempotent
    }
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.words.serialize(serializer)
    }
}

/// A Lua script and the digest that the server knows it by.
///
/// Begin it with `#!lua flags=allow-key-locking` and declare all keys: otherwise Upstash locks the whole database while
/// it runs.
#[derive(Clone, Debug)]
pub struct Script {
    source: String,
    sha: String,
    idempotent: bool,
}

impl Script {
    /// Computes the digest of a script's source.
    pub fn new(source: impl Into<String>) -> Self {
        let source = source.into();
        let sha = Sha1::digest(&source).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { source, sha, idempotent: false }
    }

    /// Marks a script that may run again when its connection died without an answer.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// The digest, in hexadecimal.
    pub fn sha(&self) -> &str {
        &self.sha
    }

    pub(crate) fn by_digest(&self, keys: &[impl AsRef<str>], args: &[impl AsRef<str>]) -> Command {
        self.call("EVALSHA", &self.sha, keys, args)
    }

    pub(crate) fn by_source(&self, keys: &[impl AsRef<str>], args: &[impl AsRef<str>]) -> Command {
        self.call("EVAL", &self.source, keys, args)
    }

    fn call(&self, name: &str, script: &str, keys: &[impl AsRef<str>], args: &[impl AsRef<str>]) -> Command {
        let command = Command::new(name).arg(script).arg(keys.len());
        let command = command.args(keys.iter().map(AsRef::as_ref)).args(args.iter().map(AsRef::as_ref));
        Command { idempotent: self.idempotent, ..command }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_strings() {
        let command = Command::new("SET").arg("k").arg(5).args(["EX", "60"]);
        assert_eq!(serde_json::to_string(&command).unwrap(), r#"["SET","k","5","EX","60"]"#);
    }

    #[test]
    fn a_script_is_called_by_the_digest_that_redis_computes() {
        let script = Script::new("return 1");
        assert_eq!(script.sha(), "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
        let call = script.by_digest(&["a"], &["1", "2"]);
        let expected = format!(r#"["EVALSHA","{}","1","a","1","2"]"#, script.sha());
        assert_eq!(serde_json::to_string(&call).unwrap(), expected);
    }
}
