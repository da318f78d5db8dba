//! Commands and scripts.

use std::{borrow::Cow, fmt, iter, str::Utf8Error, sync::Arc};

use sha1::{Digest, Sha1};

/// One argument of a command.
///
/// Integers are sent as strings, because some parsers lose precision above 2^53.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Arg(String);

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<&String> for Arg {
    fn from(text: &String) -> Self {
        Self(text.clone())
    }
}

impl From<String> for Arg {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// JSON holds text only, so bytes that are not UTF-8 are rejected.
impl TryFrom<&[u8]> for Arg {
    type Error = Utf8Error;

    fn try_from(bytes: &[u8]) -> Result<Self, Utf8Error> {
        str::from_utf8(bytes).map(Self::from)
    }
}

macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl From<$integer> for Arg {
            fn from(number: $integer) -> Self {
                Self(number.to_string())
            }
        }
    )*};
}
integers!(i8 i16 i32 i64 isize u8 u16 u32 u64 usize);

/// A command and its arguments.
#[derive(Clone)]
pub struct Command {
    verb: Verb,
    args: Vec<Arg>,
    idempotent: bool,
}

#[derive(Clone)]
enum Verb {
    Named(Cow<'static, str>),
    Script(Script),
}

/// How a script is sent. Other commands have one form only.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    Sha,
    Source,
}

impl Command {
    /// A command without arguments.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            verb: Verb::Named(name.into()),
            args: Vec::new(),
            idempotent: false,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl Into<Arg>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds several arguments of one type.
    pub fn args(mut self, args: impl IntoIterator<Item: Into<Arg>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Declares that running the command twice has the same effect as running it once, so it may be
    /// sent again after the connection broke without an answer.
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    pub(crate) fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    pub(crate) fn is_script(&self) -> bool {
        matches!(self.verb, Verb::Script(_))
    }

    /// The words of the JSON array.
    pub(crate) fn words(&self, form: Form) -> Vec<&str> {
        let (name, script) = match (&self.verb, form) {
            (Verb::Named(name), _) => (name.as_ref(), None),
            (Verb::Script(script), Form::Sha) => ("EVALSHA", Some(script.sha1())),
            (Verb::Script(script), Form::Source) => ("EVAL", Some(script.source())),
        };
        iter::once(name)
            .chain(script)
            .chain(self.args.iter().map(|arg| arg.0.as_str()))
            .collect()
    }
}

/// Shows no argument, because arguments hold users' texts and tokens.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.verb {
            Verb::Named(name) => name,
            Verb::Script(script) => script.sha1(),
        };
        f.debug_struct("Command")
            .field("name", &name)
            .field("args", &self.args.len())
            .field("idempotent", &self.idempotent)
            .finish()
    }
}

/// A Lua script, which the server identifies by the SHA-1 of its source. Cloning is cheap.
///
/// On Upstash a first line of `#!lua flags=allow-key-locking` makes the script lock only its `KEYS`
/// instead of the whole database. The script may then access declared keys only.
#[derive(Clone)]
pub struct Script(Arc<Text>);

struct Text {
    source: Cow<'static, str>,
    sha1: String,
}

impl Script {
    /// A script with this source. Computes the SHA-1 once.
    pub fn new(source: impl Into<Cow<'static, str>>) -> Self {
        let source = source.into();
        let sha1 = hex::encode(Sha1::digest(source.as_bytes()));
        Self(Arc::new(Text { source, sha1 }))
    }

    /// The source.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The SHA-1 of the source, in lower-case hexadecimal.
    pub fn sha1(&self) -> &str {
        &self.0.sha1
    }

    /// The command that runs this script, for [`exec`](crate::Redis::exec), a pipeline or a transaction.
    pub fn command(&self, keys: &[&str], args: &[Arg]) -> Command {
        let command = Command {
            verb: Verb::Script(self.clone()),
            args: Vec::with_capacity(1 + keys.len() + args.len()),
            idempotent: false,
        };
        command
            .arg(keys.len())
            .args(keys.iter().copied())
            .args(args.iter().cloned())
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Script").field(&self.sha1()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{Arg, Command, Form, Script};

    #[test]
    fn integers_are_sent_as_strings() {
        let command = Command::new("SET").arg("k").arg(u64::MAX).args([-1, 2]);
        assert_eq!(
            command.words(Form::Sha),
            ["SET", "k", "18446744073709551615", "-1", "2"]
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_rejected() {
        assert_eq!(Arg::try_from("é".as_bytes()), Ok(Arg::from("é")));
        assert!(Arg::try_from(&[0xff, 0xfe][..]).is_err());
    }

    #[test]
    fn a_script_has_two_forms() {
        let script = Script::new("return 1");
        let command = script.command(&["k"], &["a".into(), 5.into()]);
        let sha = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db";
        assert_eq!(
            command.words(Form::Sha),
            ["EVALSHA", sha, "1", "k", "a", "5"]
        );
        assert_eq!(
            command.words(Form::Source),
            ["EVAL", "return 1", "1", "k", "a", "5"]
        );
    }

    #[test]
    fn debug_shows_no_argument() {
        let command = Command::new("SET").arg("session").arg("hunter2");
        assert_eq!(
            format!("{command:?}"),
            r#"Command { name: "SET", args: 2, idempotent: false }"#
        );
    }
}
