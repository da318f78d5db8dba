//! The title of a discussion that was created without one.

use crate::http::extract::is_blank;

/// The first line of the topic in which something is visible, else names made from the slugs.
pub(super) fn default_title(topic: Option<&str>, icons: &[String]) -> String {
    if let Some(topic) = topic {
        let mut lines = topic.lines().map(str::trim);
        let line = lines.find(|line| !is_blank(line)).unwrap_or_default();
        return match line.char_indices().nth(80) {
            Some((end, _)) => format!("{}…", line[..end].trim_end()),
            None => line.to_owned(),
        };
    }

    let names: Vec<String> = icons.iter().map(|slug| name_of(slug)).collect();
    names.join(", ").chars().take(200).collect()
}

/// `ibn-rushd` → `Ibn Rushd`
fn name_of(slug: &str) -> String {
    let words = slug.split('-').map(|word| {
        let mut letters = word.chars();
        let initial = letters.next().into_iter().flat_map(char::to_uppercase);
        initial.chain(letters).collect()
    });
    words.collect::<Vec<String>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_title_is_the_topic_or_the_names_of_the_icons() {
        let icons = ["ibn-rushd".to_owned(), "socrates".to_owned()];

        assert_eq!(default_title(None, &icons), "Ibn Rushd, Socrates");
        assert_eq!(
            default_title(Some("Is virtue taught?\nOr not"), &icons),
            "Is virtue taught?"
        );
        assert_eq!(
            default_title(Some("\n \n\u{200b}\n  Is virtue taught? \nOr not"), &icons),
            "Is virtue taught?"
        );
        assert_eq!(
            default_title(Some(&"ä".repeat(100)), &icons),
            format!("{}…", "ä".repeat(80))
        );
    }
}
