//! E-mail addresses, in the one form in which they are stored, compared and counted.

use serde::Deserialize;
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

/// Characters that no one sees and that copying adds: joiners, marks of direction, selectors and fillers.
/// They are the format characters and the default ignorable ones of Unicode, and the blank of Braille.
const INVISIBLE: &[(char, char)] = &[
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{202a}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// The form of an address that is stored and compared: composed characters (NFC), and neither white space nor invisible
/// characters at its ends.
pub(crate) fn normalized(typed: &str) -> String {
    let composed: String = typed.nfc().collect();
    composed.trim_matches(is_invisible).to_owned()
}

/// A plausible address of a new account. Only a mail can verify that it exists.
///
/// - Before the @ are up to 64 bytes: letters and digits of any script, single dots between others, and
///   ``!#$%&'*+-/=?^_`{|}~``.
/// - After it is a domain: two or more labels of letters, digits and inner hyphens, the last of at least two characters
///   that are not all digits.
/// - Together they have at most 254 bytes (RFC 5321).
///
/// Quoted names, comments and literal domains are valid by the standard, but forms and Stripe refuse them.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Email(String);

impl Email {
    /// The address.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Email {
    type Error = &'static str;

    fn try_from(typed: String) -> Result<Self, Self::Error> {
        let email = normalized(&typed);
        let (local, domain) = email.split_once('@').unwrap_or_default();

        match email.len() <= 254 && is_local(local) && is_domain(domain) {
            true => Ok(Self(email)),
            false => Err("must be an e-mail address"),
        }
    }
}

fn is_local(local: &str) -> bool {
    let is_allowed = |c: char| is_letter_or_digit(c) || "!#$%&'*+-/=?^_`{|}~".contains(c);
    let is_atom = |atom: &str| !atom.is_empty() && atom.chars().all(is_allowed);
    local.len() <= 64 && local.split('.').all(is_atom)
}

fn is_domain(domain: &str) -> bool {
    let is_allowed = |c: char| is_letter_or_digit(c) || c == '-';
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(is_allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };

    let Some((_, last)) = domain.rsplit_once('.') else {
        return false;
    };
    let is_top = last.chars().count() >= 2 && !last.chars().all(|c| c.is_ascii_digit());
    is_top && domain.split('.').all(is_label)
}

fn is_letter_or_digit(c: char) -> bool {
    (c.is_alphanumeric() || is_combining_mark(c)) && !is_invisible(c)
}

fn is_invisible(c: char) -> bool {
    let is_listed = || {
        INVISIBLE
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&c))
    };
    c.is_whitespace() || c.is_control() || (!c.is_ascii() && is_listed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(typed: &str, expected: Option<&str>) {
        let email = Email::try_from(typed.to_owned());
        assert_eq!(
            email.as_ref().ok().map(Email::as_str),
            expected,
            "{typed:?}"
        );
    }

    #[test]
    fn plausible_addresses_are_accepted_in_their_normal_form() {
        for typed in [
            "ada@example.org",
            "Ada+x@sub.example.co.uk",
            "o'brien@example.org",
            "a/b=c?d@example.org",
            "1@2.io",
            "x@a-b--c.museum",
            "a@b.xn--p1ai",
            "\u{fc}@ex\u{e4}mple.de",
            "\u{7528}\u{6237}@\u{4f8b}\u{5b50}.\u{5e7f}\u{544a}",
            "\u{905}\u{928}\u{94d}\u{928}@example.org",
            "\u{5d0}\u{5d1}@example.org",
        ] {
            check(typed, Some(typed));
        }

        let normal = "jos\u{e9}@example.org";
        for typed in ["jos\u{e9}@example.org", "jose\u{301}@example.org"] {
            check(typed, Some(normal));
            for invisible in [
                " ", "\t", "\r\n", "\u{a0}", "\u{3000}", "\u{200b}", "\u{200e}", "\u{202a}",
                "\u{2060}", "\u{2066}", "\u{ad}", "\u{feff}", "\u{fe0f}", "\u{2800}", "\0",
            ] {
                check(&format!("{invisible}{typed}"), Some(normal));
                check(&format!("{typed}{invisible}"), Some(normal));
                check(&format!("{invisible} {typed} {invisible}"), Some(normal));
            }
        }
    }

    #[test]
    fn invisible_characters_inside_are_refused() {
        for (first, last) in INVISIBLE {
            for c in [first, last] {
                check(&format!("a{c}da@example.org"), None);
                check(&format!("ada{c}@example.org"), None);
                check(&format!("ada@{c}example.org"), None);
                check(&format!("ada@exam{c}ple.org"), None);
            }
        }
        for c in [
            ' ', '\t', '\n', '\0', '\u{7f}', '\u{85}', '\u{a0}', '\u{2028}', '\u{3000}',
        ] {
            check(&format!("a{c}da@example.org"), None);
            check(&format!("ada@exam{c}ple.org"), None);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for typed in [
            "",
            " ",
            "ada",
            "ada@",
            "@example.org",
            "ada@localhost",
            "a@b@c.org",
            "ada@@example.org",
            "mailto:ada@example.org",
            "MAILTO:ada@example.org",
            "https://ada@example.org",
            "<ada@example.org>",
            "Ada <ada@example.org>",
            "ada@example.org,bob@example.org",
            "ada@example.org;",
            "ada@example.org?subject=x",
            "\"ada\"@example.org",
            "ada(x)@example.org",
            "a\\b@example.org",
            "ada\u{ff20}example.org",
            "ada@example\u{3002}org",
            ".ada@example.org",
            "ada.@example.org",
            "a..b@example.org",
            "ada@.example.org",
            "ada@example.org.",
            "ada@b..org",
            "ada@-example.org",
            "ada@example-.org",
            "ada@exa_mple.org",
            "ada@example.c",
            "ada@192.0.2.1",
            "ada@[192.0.2.1]",
            "ada@example.org:25",
            "\u{1f600}@example.org",
        ] {
            check(typed, None);
        }

        let long =
            |local: usize, label: usize| format!("{}@{}.org", "a".repeat(local), "b".repeat(label));
        check(&long(64, 63), Some(&long(64, 63)));
        check(&long(65, 63), None);
        check(&long(64, 64), None);
        let of_length = |tail: usize| {
            let label = "b".repeat(61);
            format!(
                "{}@{label}.{label}.{}.org",
                "a".repeat(64),
                "c".repeat(tail)
            )
        };
        assert_eq!(of_length(61).len(), 254);
        check(&of_length(61), Some(&of_length(61)));
        check(&of_length(62), None);
    }
}
