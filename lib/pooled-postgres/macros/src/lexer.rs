//! Splits SQL into the pieces that matter for placeholders, by the lexical rules of Postgres.

/// A piece of SQL text.
#[derive(Debug, PartialEq)]
pub(crate) enum Token<'a> {
    /// An identifier, a keyword or a number.
    Word(&'a str),
    /// A string, a quoted identifier or a comment.
    Quoted(&'a str),
    /// `:name`.
    Placeholder(&'a str),
    /// `$1`.
    Positional(&'a str),
    /// An operator, a bracket, a space or a cast.
    Other(&'a str),
}

impl<'a> Token<'a> {
    /// The token that `text` starts with. Fails for a quote or a comment without an end.
    pub(crate) fn first(text: &'a str) -> Result<Self, String> {
        if let Some(length) = quoted_length(text)? {
            return Ok(Self::Quoted(&text[..length]));
        }

        if text.starts_with(is_word_character) {
            let word = prefix(text, |letter| is_word_character(letter) || letter == '$');
            return Ok(Self::Word(word));
        }
        if text.starts_with("::") {
            return Ok(Self::Other(&text[..2]));
        }
        if let Some(rest) = text.strip_prefix(':')
            && rest.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
        {
            let name = prefix(rest, |letter| {
                letter.is_ascii_alphanumeric() || letter == '_'
            });
            return Ok(Self::Placeholder(&text[..1 + name.len()]));
        }
        if let Some(rest) = text.strip_prefix('$')
            && rest.starts_with(|digit: char| digit.is_ascii_digit())
        {
            let number = prefix(rest, |digit| digit.is_ascii_digit());
            return Ok(Self::Positional(&text[..1 + number.len()]));
        }

        let length = text.chars().next().map_or(0, char::len_utf8);
        Ok(Self::Other(&text[..length]))
    }

    /// The token as it stands in the text.
    pub(crate) fn text(&self) -> &'a str {
        match *self {
            Self::Word(text)
            | Self::Quoted(text)
            | Self::Placeholder(text)
            | Self::Positional(text)
            | Self::Other(text) => text,
        }
    }

    /// Whether it ends a value, so that a colon directly after it belongs to an array slice.
    pub(crate) fn ends_value(&self) -> bool {
        match self {
            Self::Word(_) | Self::Quoted(_) | Self::Placeholder(_) | Self::Positional(_) => true,
            Self::Other(text) => matches!(*text, ")" | "]"),
        }
    }
}

/// `$` may follow in an identifier, but not start one.
fn is_word_character(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn prefix(text: &str, belongs: impl Fn(char) -> bool) -> &str {
    let end = text.find(|letter| !belongs(letter));
    &text[..end.unwrap_or(text.len())]
}

/// The length of the string, quoted identifier or comment that `text` starts with.
fn quoted_length(text: &str) -> Result<Option<usize>, String> {
    let length = match text.as_bytes() {
        [b'\'', ..] => until(text, 1, "'"),
        [b'"', ..] => until(text, 1, "\""),
        [b'e' | b'E', b'\'', ..] => escape_string_length(text),
        [b'-', b'-', ..] => Some(text.find('\n').unwrap_or(text.len())),
        [b'/', b'*', ..] => block_comment_length(text),
        [b'$', ..] => match dollar_tag(text) {
            Some(tag) => until(text, tag.len(), tag),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };

    let opening: String = text.chars().take(20).collect();
    let length = length.ok_or_else(|| format!("no end of the quote or comment `{opening}…`"))?;
    Ok(Some(length))
}

/// The length up to and including the first `end` after `start` bytes. A doubled quote counts as the end of one literal
/// and the start of the next.
fn until(text: &str, start: usize, end: &str) -> Option<usize> {
    let at = text[start..].find(end)?;
    Some(start + at + end.len())
}

/// The length of `e'…'`, in which a backslash escapes a quote.
fn escape_string_length(text: &str) -> Option<usize> {
    let mut letters = text.char_indices().skip(2);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => drop(letters.next()),
            '\'' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The length of `/*…*/`, which may contain other such comments.
fn block_comment_length(text: &str) -> Option<usize> {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                at += 2;
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                at += 2;
            }
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// `$$` or `$tag$`, with which a dollar-quoted string starts.
fn dollar_tag(text: &str) -> Option<&str> {
    let name = prefix(&text[1..], is_word_character);
    let is_name = !name.starts_with(|digit: char| digit.is_ascii_digit());
    let tag = text.get(..name.len() + 2)?;
    (is_name && tag.ends_with('$')).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::Token::{self, Other, Placeholder, Positional, Quoted, Word};

    #[track_caller]
    fn check(text: &str, expected: &Token<'_>) {
        assert_eq!(Token::first(text).as_ref(), Ok(expected), "{text}");
    }

    #[test]
    fn quotes_and_comments_are_whole() {
        for quoted in [
            "':a'",
            "\":a\"",
            "e'it\\':a'",
            "E'\\\\'",
            "$$ :a $ $$",
            "$tag$ :a $$ $tag$",
            "-- :a 'x",
            "/* :a /* nested */ 'x */",
        ] {
            check(quoted, &Quoted(quoted));
            check(&format!("{quoted}\n:b"), &Quoted(quoted));
        }
    }

    #[test]
    fn a_doubled_quote_starts_another_literal() {
        check("'it''s'", &Quoted("'it'"));
        check("'\\' :a", &Quoted("'\\'"));
    }

    #[test]
    fn a_quote_without_an_end_is_refused() {
        for text in ["'a", "\"a", "e'a\\'", "$$ a $", "/* /* a */"] {
            let problem = Token::first(text).unwrap_err();
            assert!(problem.starts_with("no end of the quote"), "{problem}");
        }
    }

    #[test]
    fn colons_and_dollars_have_several_meanings() {
        check(":a_1::text", &Placeholder(":a_1"));
        check("::text", &Other("::"));
        check(":= 1", &Other(":"));
        check(":2]", &Other(":"));
        check("$12)", &Positional("$12"));
        check("é:a", &Word("é"));
        check("a$1 ", &Word("a$1"));
        check("1:a", &Word("1"));
        check("($1)", &Other("("));
    }
}
