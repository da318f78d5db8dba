//! Text that people type.

use std::fmt;

use serde::{Deserialize, Deserializer, de::Error};

/// Text of at most `MAX` characters, as it was typed: indentation and trailing lines stay. Something in it is visible.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Text<const MAX: usize>(String);

/// A name or a title of 1 to `MAX` characters, without the white space around it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Label<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Label<MAX> {
    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({} bytes)", self.0.len())
    }
}

impl<const MAX: usize> fmt::Debug for Label<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Label({} bytes)", self.0.len())
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let typed = String::deserialize(deserializer)?;
        check(&typed, MAX).map_err(D::Error::custom)?;
        Ok(Self(typed))
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Label<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let typed = String::deserialize(deserializer)?;
        let label = typed.trim();
        check(label, MAX).map_err(D::Error::custom)?;
        Ok(Self(label.to_owned()))
    }
}

fn check(text: &str, max: usize) -> Result<(), String> {
    if is_blank(text) {
        return Err("must not be empty".to_owned());
    }
    if text.chars().count() > max {
        return Err(format!("must be at most {max} characters"));
    }
    // Postgres cannot store it.
    if text.contains('\0') {
        return Err("must not contain a null character".to_owned());
    }
    Ok(())
}

/// Whether nothing in the text is visible.
pub(crate) fn is_blank(text: &str) -> bool {
    !text.chars().any(is_visible)
}

/// False for white space, controls, and what Unicode calls default ignorable: it shapes other text, but shows nothing.
fn is_visible(c: char) -> bool {
    let is_ignorable = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
        | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}'
    );
    // An empty cell of braille is a space, though Unicode counts it as a symbol.
    let is_empty_braille = c == '\u{2800}';

    // A null character is refused in words of its own.
    let is_control = c.is_control() && c != '\0';
    !(c.is_whitespace() || is_control || is_ignorable || is_empty_braille)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_nothing_is_blank() {
        for blank in [
            "",
            " ",
            "\t\r\n",
            "\u{a0}\u{3000}\u{2003}\u{2028}",
            "\u{200b}",
            "\u{200d}\u{200c}\u{2060}\u{feff}",
            "\u{ad}",
            "\u{3164}",
            "\u{2800}\u{2800}",
            "\u{202e} \u{2069}",
            "\u{fe0f}",
            "\u{e0041}\u{e007f}",
            "\u{7}\u{1b}",
        ] {
            assert!(is_blank(blank), "{blank:?}");
        }

        for visible in [
            "a",
            " .",
            "?",
            "\u{200b}a",
            "👩\u{200d}🔬",
            "❤\u{fe0f}",
            "می\u{200c}خواهم",
            "ქ",
            "\u{2801}",
            "\0",
        ] {
            assert!(!is_blank(visible), "{visible:?}");
        }
    }

    #[test]
    fn text_is_kept_and_a_label_is_trimmed() {
        let text = |typed: &str| serde_json::from_value::<Text<9>>(typed.into());
        let label = |typed: &str| serde_json::from_value::<Label<9>>(typed.into());

        for typed in [
            "    if x",
            "a\n\n",
            "\ta ",
            "\r\na\r\n",
            "\u{feff}a",
            "يا\u{200f}",
        ] {
            assert_eq!(text(typed).unwrap().as_str(), typed);
            assert_eq!(label(typed).unwrap().as_str(), typed.trim());
        }
        for refused in ["", " \n", "\u{200b}", "0123456789", "a\0"] {
            assert!(text(refused).is_err(), "{refused:?}");
            assert!(label(refused).is_err(), "{refused:?}");
        }
        assert!(text("  01234567").is_err());
        assert!(label("  01234567").is_ok());
    }
}
