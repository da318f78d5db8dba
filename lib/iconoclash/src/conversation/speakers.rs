//! Who said what in a reply of several icons.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Somebody who speaks in a discussion.
#[derive(Clone, Debug, Deserialize)]
pub struct Voice {
    /// The icon's slug.
    pub slug: String,
    /// The name that the icon signs with.
    pub name: String,
}

/// What one icon says in its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Part {
    /// The icon's slug.
    icon: String,
    /// What it says, without its name.
    text: String,
}

/// The turns of a reply, each told by the line that begins with a name, as the prompt asks for. The model may forget or
/// vary that: what comes before the first name is the first icon's, and a line with a name that nobody here has goes on
/// with who speaks.
pub fn parts(text: &str, voices: &[Voice]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for line in text.split_inclusive('\n') {
        let spoken = speaker(line, voices).map(|(voice, said)| (&voice.slug, said));
        match (spoken, parts.last_mut()) {
            (Some((icon, said)), _) => parts.push(Part {
                icon: icon.clone(),
                text: said.to_owned(),
            }),
            (None, Some(part)) => part.text.push_str(line),
            (None, None) => {
                let icon = voices
                    .first()
                    .map(|voice| voice.slug.clone())
                    .unwrap_or_default();
                parts.push(Part {
                    icon,
                    text: line.to_owned(),
                });
            }
        }
    }
    for part in &mut parts {
        part.text = part.text.trim().to_owned();
    }
    parts.retain(|part| !part.text.is_empty());
    parts
}

/// The voice that a line names at its beginning, and what it says: `**Ada:** Yes`, `**Ada Lovelace**: Yes`, `Ada: Yes`.
fn speaker<'a, 't>(line: &'t str, voices: &'a [Voice]) -> Option<(&'a Voice, &'t str)> {
    let (label, said) = line.split_once(':')?;
    let name = label.trim_matches(|letter: char| letter.is_whitespace() || "*_#".contains(letter));
    let voice = voices
        .iter()
        .find(|voice| is_name_of(name, voice))
        .or_else(|| {
            let mut by_word = voices
                .iter()
                .filter(|voice| voice.name.split_whitespace().any(|word| same(word, name)));
            // A word that two of them have in their names is nobody's.
            by_word.next().filter(|_| by_word.next().is_none())
        })?;
    // The emphasis closes after the colon or before it; one that opens here is the text's own.
    let opened = label
        .trim_start()
        .chars()
        .take_while(|letter| "*_".contains(*letter))
        .count();
    let closed = label
        .trim_end()
        .chars()
        .rev()
        .take_while(|letter| "*_".contains(*letter))
        .count();
    let mut said = said;
    for _ in closed..opened {
        said = said.strip_prefix(['*', '_']).unwrap_or(said);
    }
    Some((voice, said))
}

fn is_name_of(name: &str, voice: &Voice) -> bool {
    same(name, &voice.name) || same(name, &voice.slug)
}

fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, &str)]) {
        let voices = [
            ("ada-lovelace", "Ada Lovelace"),
            ("ibn-rushd", "Ibn Rushd"),
            ("ibn-sina", "Ibn Sina"),
        ];
        let voices = voices.map(|(slug, name)| Voice {
            slug: slug.into(),
            name: name.into(),
        });
        let parts = parts(text, &voices);
        let got: Vec<_> = parts
            .iter()
            .map(|part| (part.icon.as_str(), part.text.as_str()))
            .collect();
        assert_eq!(got, expected, "{text:?}");
    }

    #[test]
    fn each_turn_is_told_by_its_name_however_it_is_written() {
        check(
            "**Ada Lovelace:** It computes.\n\n**Ibn Rushd:** *Why?* Say it.\nAgain.",
            &[
                ("ada-lovelace", "It computes."),
                ("ibn-rushd", "*Why?* Say it.\nAgain."),
            ],
        );
        check(
            "**ibn sina**: No.\nADA: Yes.",
            &[("ibn-sina", "No."), ("ada-lovelace", "Yes.")],
        );
        check(
            "## ibn-rushd: No.\n__Sina:__ *Yes.*",
            &[("ibn-rushd", "No."), ("ibn-sina", "*Yes.*")],
        );
    }

    #[test]
    fn what_nobody_is_named_for_goes_to_who_speaks_and_at_the_beginning_to_the_first() {
        check("", &[]);
        check(
            "Note: so it is.\n**Ibn Rushd:** Well:\nDiderot: no.",
            &[
                ("ada-lovelace", "Note: so it is."),
                ("ibn-rushd", "Well:\nDiderot: no."),
            ],
        );
        check("**Ibn:** which?", &[("ada-lovelace", "**Ibn:** which?")]);
        check("**Ibn Sina:**", &[]);
    }
}
