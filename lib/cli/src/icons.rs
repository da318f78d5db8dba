//! Writes the personas of this release to the database.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::Error;

/// One persona of icons.json.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Icon {
    slug: String,
    name: String,
    era: String,
    tagline: String,
    /// The prompt's paragraphs.
    system_prompt: Vec<String>,
}

/// A row of `icons`.
#[derive(Serialize)]
struct IconRow {
    slug: String,
    name: String,
    era: String,
    tagline: String,
    system_prompt: String,
    position: usize,
}

/// The number of rows that seeding changed.
#[derive(Debug, PartialEq, sqlx::FromRow)]
pub(crate) struct SeedCounts {
    pub(crate) added: i64,
    pub(crate) changed: i64,
    pub(crate) retired: i64,
}

fn built_in() -> Result<Vec<Icon>, serde_json::Error> {
    serde_json::from_str(include_str!("../icons.json"))
}

/// Makes the table equal to the file. An icon that the file no longer has is retired, because discussions still refer to
/// it.
pub(crate) async fn seed(connection: &mut PgConnection) -> Result<SeedCounts, Error> {
    let rows: Vec<_> = built_in()?
        .into_iter()
        .enumerate()
        .map(|(position, icon)| IconRow {
            slug: icon.slug,
            name: icon.name,
            era: icon.era,
            tagline: icon.tagline,
            system_prompt: icon.system_prompt.join("\n\n"),
            position,
        })
        .collect();

    let counts = sqlx::query_as(
        "with wanted as (
           select slug, name, era, tagline, system_prompt, position, false as retired
           from jsonb_to_recordset($1::text::jsonb)
             as w(slug text, name text, era text, tagline text, system_prompt text,
                  position smallint)
         ), written as (
           insert into icons as i (slug, name, era, tagline, system_prompt, position, retired)
           select slug, name, era, tagline, system_prompt, position, retired from wanted
           on conflict (slug) do update set
             name = excluded.name, era = excluded.era, tagline = excluded.tagline,
             system_prompt = excluded.system_prompt, position = excluded.position, retired = false
           where (i.name, i.era, i.tagline, i.system_prompt, i.position, i.retired)
             is distinct from (excluded.name, excluded.era, excluded.tagline,
                               excluded.system_prompt, excluded.position, false)
           returning xmax = 0 as added
         ), dropped as (
           update icons set retired = true
           where not retired and slug not in (select slug from wanted)
           returning slug
         )
         select (select count(*) from written where added) as added,
                (select count(*) from written where not added) as changed,
                (select count(*) from dropped) as retired",
    )
    .bind(serde_json::to_string(&rows)?)
    .fetch_one(connection)
    .await?;
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::built_in;

    #[test]
    fn icons_are_complete_and_differ_from_each_other() {
        let icons = built_in().unwrap();
        assert!(icons.len() >= 14, "{} icons", icons.len());

        let slugs: HashSet<_> = icons.iter().map(|icon| &icon.slug).collect();
        let openings: HashSet<_> = icons
            .iter()
            .map(|icon| icon.system_prompt[0].split(' ').take(4).collect::<Vec<_>>())
            .collect();
        assert_eq!(slugs.len(), icons.len());
        assert_eq!(openings.len(), icons.len());

        for icon in &icons {
            let words = icon.system_prompt.join(" ").split_whitespace().count();
            assert!((180..=300).contains(&words), "{}: {words} words", icon.slug);
            assert!(
                icon.tagline.len() <= 120,
                "{}: a tagline is one line",
                icon.slug
            );
            assert!(!icon.era.is_empty() && !icon.name.is_empty());
        }
    }
}
