//! The icons that a discussion is with.

use pooled_postgres::sql;
use serde::Deserialize;

use crate::{
    app::App,
    http::error::{Error, Result},
};

/// One to four different slugs.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub(super) struct Icons(Vec<String>);

impl Icons {
    /// The slugs, in the order in which the icons speak.
    pub(super) fn slugs(&self) -> &[String] {
        &self.0
    }

    /// The slugs, in the order in which the icons speak.
    pub(super) fn into_slugs(self) -> Vec<String> {
        self.0
    }
}

impl TryFrom<Vec<String>> for Icons {
    type Error = String;

    fn try_from(slugs: Vec<String>) -> Result<Self, Self::Error> {
        if !(1..=4).contains(&slugs.len()) {
            return Err("must name one to four icons".to_owned());
        }

        let is_repeated = |at: &usize| slugs[..*at].contains(&slugs[*at]);
        if let Some(at) = (0..slugs.len()).find(is_repeated) {
            return Err(format!("must not name {} twice", quoted(&slugs[at])));
        }

        // No icon has such a slug, and Postgres rejects it as a parameter.
        let impossible = slugs.iter().filter(|slug| slug.contains('\0'));
        let impossible: Vec<&String> = impossible.collect();
        if !impossible.is_empty() {
            return Err(not_slugs(&impossible));
        }
        Ok(Self(slugs))
    }
}

/// 422: names those of the slugs that are not offered.
pub(super) async fn not_offered(app: &App, slugs: &[String]) -> Result<Error> {
    let offered = app.db()?.all(OfferedAmong { slugs }).await?;
    let unknown: Vec<&String> = slugs
        .iter()
        .filter(|slug| !offered.contains(slug))
        .collect();
    Ok(Error::invalid("icons", not_slugs(&unknown)))
}

fn not_slugs(unknown: &[&String]) -> String {
    let names: Vec<String> = unknown.iter().map(|slug| quoted(slug)).collect();
    match names.as_slice() {
        [] => "must be slugs of GET /api/icons".to_owned(),
        [name] => format!("must be slugs of GET /api/icons, but {name} is not"),
        names => format!(
            "must be slugs of GET /api/icons, but {} are not",
            names.join(", ")
        ),
    }
}

/// A slug in quotes, cut to the length of a real one.
fn quoted(slug: &str) -> String {
    const LONGEST: usize = 60;

    let visible = slug.chars().filter(|c| !c.is_control());
    let cut: String = visible.take(LONGEST).collect();
    let rest = if slug.chars().count() > LONGEST {
        "…"
    } else {
        ""
    };
    format!("\"{cut}{rest}\"")
}

sql! {
    read OfferedAmong { slugs: &[String] } -> String = "
        select slug from icons where slug = any(:slugs) and not retired";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_icons_are_named() {
        let refusal = |slugs: &[&str]| {
            let slugs = slugs.iter().map(|slug| (*slug).to_owned());
            Icons::try_from(slugs.collect::<Vec<_>>()).unwrap_err()
        };
        let count = "must name one to four icons";

        assert_eq!(refusal(&[]), count);
        assert_eq!(refusal(&["a", "b", "c", "d", "e"]), count);
        assert_eq!(refusal(&["a", "b", "b"]), "must not name \"b\" twice");
        assert_eq!(
            refusal(&["a", "b\0"]),
            "must be slugs of GET /api/icons, but \"b\" is not"
        );
        assert_eq!(
            refusal(&["\0", "b\0\n"]),
            "must be slugs of GET /api/icons, but \"\", \"b\" are not"
        );

        let long = "x".repeat(100_000);
        assert!(refusal(&[&long, &long]).len() < 100);
    }
}
