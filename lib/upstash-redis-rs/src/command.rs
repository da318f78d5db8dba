//! Commands and scripts: what is sent, before anything is sent.

use std::{borrow::Cow, fmt, iter, str::Utf8Error, sync::Arc};

use sha1::{Digest, Sha1};

/// One argument of a command.
///
/// Integers travel as strings, because a JSON number above 2^53 does not survive every parser.
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

/// JSON carries text only, so other bytes are refused instead of being stored mangled.
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

/// How a script goes over the wire; other commands have one form only.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    Sha,
    Source,
}

impl Command {
    /// A command without arguments as yet.
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

    /// Says that running this twice is the same as running it once, so that it may be sent again
    /// after the connection broke with no answer.
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

/// Shows no argument: they hold what users wrote, and tokens.
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

/// A Lua script, known to the server by the SHA-1 of its source. Cloning is cheap.
///
/// On Upstash a first line of `#!lua flags=allow-key-locking` makes the script lock its `KEYS` only,
/// instead of the whole database; every key it touches must then be declared.
#[derive(Clone)]
pub struct Script(Arc<Text>);

struct Text {
    source: Cow<'static, str>,
    sha1: String,
}

impl Script {
    /// Takes the source and computes its SHA-1, once.
    pub fn new(source: impl Into<Cow<'static, str>>) -> Self {
        let source = source.into();
        let sha1 = Sha1::digest(source.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self(Arc::new(Text { source, sha1 }))
    }

    /// The source, as given.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The SHA-1 of the source, in lower-case hexadecimal.
    pub fn sha1(&self) -> &str {
        &self.0.sha1
    }

    /// A run of this script, for [`exec`](crate::Redis::exec), a pipeline or a transaction.
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
    fn integers_travel_as_strings() {
        let command = Command::new("SET").arg("k").arg(u64::MAX).args([-1, 2]);
        assert_eq!(
            command.words(Form::Sha),
            ["SET", "k", "18446744073709551615", "-1", "2"]
        );
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
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
