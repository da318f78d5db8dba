//! Which icon said which part of a reply.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An icon that speaks in a discussion.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Speaker {
    /// The icon's slug.
    pub slug: String,
    /// The name that the icon signs with.
    pub name: String,
}

/// What one icon says in its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Part {
    /// The icon's slug.
    icon: String,
    /// What it says, without its name.
    text: String,
}

/// The turns of a reply. A turn starts with a line that names its speaker, as the prompt asks for.
///
/// Text before the first name belongs to the first icon. A line that names no icon of this discussion continues the
/// current turn.
pub(crate) fn parts(text: &str, speakers: &[Speaker]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for line in text.split_inclusive('\n') {
        if let Some((speaker, said)) = turn_start(line, speakers) {
            parts.push(Part {
                icon: speaker.slug.clone(),
                text: said.to_owned(),
            });
        } else if let Some(part) = parts.last_mut() {
            part.text.push_str(line);
        } else {
            let first = speakers.first().map(|speaker| speaker.slug.clone());
            parts.push(Part {
                icon: first.unwrap_or_default(),
                text: line.to_owned(),
            });
        }
    }

    for part in &mut parts {
        part.text = part.text.trim().to_owned();
    }
    parts.retain(|part| !part.text.is_empty());
    parts
}

/// The speaker that a line names at its start, and the rest of the line.
///
/// Accepts `**Ada:** Yes`, `**Ada Lovelace**: Yes` and `Ada: Yes`.
fn turn_start<'a, 't>(line: &'t str, speakers: &'a [Speaker]) -> Option<(&'a Speaker, &'t str)> {
    let (label, mut said) = line.split_once(':')?;
    let name = label.trim_matches(|letter: char| letter.is_whitespace() || "*_#".contains(letter));
    let speaker = find_speaker(name, speakers)?;

    // The emphasis closes after the colon or before it. Emphasis that opens after the colon belongs to the text.
    let is_mark = |letter: &char| "*_".contains(*letter);
    let opened = label.trim_start().chars().take_while(is_mark).count();
    let closed = label.trim_end().chars().rev().take_while(is_mark).count();
    for _ in closed..opened {
        said = said.strip_prefix(['*', '_']).unwrap_or(said);
    }
    Some((speaker, said))
}

/// The speaker with this name or slug, else the only one with this word in the name.
fn find_speaker<'a>(name: &str, speakers: &'a [Speaker]) -> Option<&'a Speaker> {
    let same = |other: &str| other.to_lowercase() == name.to_lowercase();

    let by_name = speakers
        .iter()
        .find(|speaker| same(&speaker.name) || same(&speaker.slug));
    by_name.or_else(|| {
        let mut by_word = speakers
            .iter()
            .filter(|speaker| speaker.name.split_whitespace().any(same));
        let first = by_word.next();
        first.filter(|_| by_word.next().is_none())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, &str)]) {
        let speakers = [
            ("ada-lovelace", "Ada Lovelace"),
            ("ibn-rushd", "Ibn Rushd"),
            ("ibn-sina", "Ibn Sina"),
        ];
        let speakers = speakers.map(|(slug, name)| Speaker {
            slug: slug.into(),
            name: name.into(),
        });
        let parts = parts(text, &speakers);
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
