//! Discussions: what a user argues about, and with whom.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::{OffsetDateTime, Time, UtcOffset};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use pooled_postgres::{row, sql_positional};

use crate::{
    app::App,
    cache::{self, Cached},
    http::{
        error::{Error, Problem, Result},
        extract::{Json, Page, Path, Query, Text},
        idempotency::{self, IdempotencyKey},
    },
    identity::{
        auth::{Session, User},
        rate_limit::{self, Limit, LimitSubject},
        session_cache,
    },
};

/// `/api/discussions`, `/api/discussions/count`, `/api/discussions/{id}`
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(count))
        .routes(routes!(show, edit, delete))
}

/// What to argue about, and with whom.
#[derive(Debug, Deserialize, ToSchema)]
struct NewDiscussion {
    /// Made from the topic or the icons where it is left out, and anew from what was said after the first reply.
    #[schema(value_type = Option<String>, max_length = 200)]
    title: Option<Text<200>>,
    #[schema(value_type = Option<String>, max_length = 2000)]
    topic: Option<Text<2000>>,
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 4)]
    icons: Icons,
}

/// What to change; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
struct EditDiscussion {
    #[schema(value_type = Option<String>, max_length = 200)]
    title: Option<Text<200>>,
    archived: Option<bool>,
    /// Whether anybody may read it at `share_url`.
    shared: Option<bool>,
}

/// A discussion.
#[derive(Debug, Serialize, ToSchema)]
struct Discussion {
    id: Uuid,
    title: String,
    topic: Option<String>,
    /// Slugs, in the order in which they speak.
    icons: Vec<String>,
    archived: bool,
    shared: bool,
    /// Where anybody may read it, while it is shared.
    share_url: Option<String>,
    message_count: i32,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

/// A page of discussions, newest first.
#[derive(Debug, Serialize, ToSchema)]
struct Discussions {
    data: Vec<Discussion>,
    next_cursor: Option<Uuid>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Count {
    total: i64,
    /// Begun since midnight UTC.
    today: i64,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Archived discussions instead of the others.
    #[serde(default)]
    archived: bool,
}

/// One to four different slugs.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
struct Icons(Vec<String>);

impl TryFrom<Vec<String>> for Icons {
    type Error = &'static str;

    fn try_from(slugs: Vec<String>) -> Result<Self, Self::Error> {
        let repeated = slugs
            .iter()
            .enumerate()
            .any(|(at, slug)| slugs[..at].contains(slug));
        match slugs.len() {
            1..=4 if repeated => Err("must not name an icon twice"),
            1..=4 if slugs.iter().any(|slug| slug.contains('\0')) => {
                Err("must be slugs of GET /api/icons")
            }
            1..=4 => Ok(Self(slugs)),
            _ => Err("must name one to four icons"),
        }
    }
}

/// One's own discussions, newest first.
#[utoipa::path(get, path = "/api/discussions", tag = "discussions", security(("bearer" = [])), params(Filter, Page),
    responses((status = 200, body = Discussions), (status = 400, body = Problem), (status = 401, body = Problem)))]
async fn list(
    State(app): State<App>,
    user: User,
    Query(filter): Query<Filter>,
    Query(page): Query<Page>,
) -> Result<axum::Json<Discussions>> {
    let rows = app
        .db()?
        .old_all(
            &PAGE,
            &[&user.id, &filter.archived, &page.cursor, &page.limit.rows()],
        )
        .await?;
    let (rows, next_cursor) = page.limit.cut(rows, |row| row.id);
    let data = rows
        .into_iter()
        .map(|row| row.into_discussion(&app))
        .collect();
    Ok(axum::Json(Discussions { data, next_cursor }))
}

/// Begin a discussion.
#[utoipa::path(post, path = "/api/discussions", tag = "discussions", security(("bearer" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses((status = 201, body = Discussion), (status = 401, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem)))]
async fn create(
    State(app): State<App>,
    user: User,
    key: IdempotencyKey,
    Json(new): Json<NewDiscussion>,
) -> Result<Response> {
    rate_limit::check(&app, &[(Limit::Discussion, LimitSubject::User(user.id))]).await?;
    let topic = new.topic.as_ref().map(Text::as_str);
    let title = new.title.as_ref().map_or_else(
        || default_title(topic, &new.icons.0),
        |title| title.as_str().to_owned(),
    );
    let now = app.now();
    let discussion = Discussion {
        id: app.new_id(),
        title,
        topic: topic.map(str::to_owned),
        icons: new.icons.0,
        archived: false,
        shared: false,
        share_url: None,
        message_count: 0,
        created_at: now,
        updated_at: now,
    };
    let mut asked = vec![
        "POST /api/discussions",
        new.title.as_ref().map_or("", Text::as_str),
        topic.unwrap_or(""),
    ];
    asked.extend(discussion.icons.iter().map(String::as_str));
    let hash = idempotency::fingerprint(&asked);
    let answer =
        serde_json::to_value(&discussion).map_err(|error| Error::Internal(error.into()))?;
    let (
        Discussion {
            id, title, icons, ..
        },
        title_made,
    ) = (&discussion, new.title.is_none());
    cache::invalidate(&app, &[Cached::Counts(user.id)], Vec::new()).await?;
    let inserted = app
        .db()?
        .old_execute(
            &INSERT,
            &[
                id,
                &user.id,
                title,
                &topic,
                icons,
                &now,
                &key.0,
                &hash,
                &answer,
                &title_made,
            ],
        )
        .await?;
    if inserted == 1 {
        return Ok((StatusCode::CREATED, axum::Json(discussion)).into_response());
    }
    replay(&app, &user, &key, &hash).await
}

/// Nothing was inserted: the key is known, or an icon is not.
async fn replay(app: &App, user: &User, key: &IdempotencyKey, hash: &[u8]) -> Result<Response> {
    match app.db()?.old_optional(&BY_KEY, &[&user.id, &key.0]).await? {
        None => Err(Error::invalid("icons", "must be slugs of GET /api/icons")),
        Some(first) if first.request_hash != hash => Err(Error::IdempotencyKeyReused),
        Some(first) => Ok((
            StatusCode::CREATED,
            [idempotency::REPLAYED],
            axum::Json(first.response),
        )
            .into_response()),
    }
}

/// How many discussions one has.
#[utoipa::path(get, path = "/api/discussions/count", tag = "discussions", security(("bearer" = [])),
    responses((status = 200, body = Count), (status = 401, body = Problem)))]
async fn count(State(app): State<App>, session: Session) -> Result<axum::Json<Count>> {
    let now = app.now();
    let counts = Cached::Counts(session.claims.sub);
    let (user, mut found) = session_cache::load_user(&app, session, vec![counts.command()]).await?;
    let midnight = now.to_offset(UtcOffset::UTC).replace_time(Time::MIDNIGHT);
    let load = async || {
        let CountRow { total, today } = app.db()?.old_one(&COUNT, &[&user.id, &midnight]).await?;
        Ok(CountOfDay {
            day: midnight.date(),
            total,
            today,
        })
    };
    let counted = counts
        .get_or_load(
            &app,
            found.pop().flatten(),
            |counted| counted.day == midnight.date(),
            load,
        )
        .await?;
    Ok(axum::Json(Count {
        total: counted.total,
        today: counted.today,
    }))
}

/// As it is cached: "today" is another day after midnight.
#[derive(Debug, Serialize, Deserialize)]
struct CountOfDay {
    day: time::Date,
    total: i64,
    today: i64,
}

/// One discussion.
#[utoipa::path(get, path = "/api/discussions/{id}", tag = "discussions", security(("bearer" = [])), params(("id" = Uuid, Path)),
    responses((status = 200, body = Discussion), (status = 401, body = Problem), (status = 404, body = Problem)))]
async fn show(
    State(app): State<App>,
    user: User,
    Path(id): Path<Uuid>,
) -> Result<axum::Json<Discussion>> {
    let row = app
        .db()?
        .old_optional(&BY_ID, &[&id, &user.id])
        .await?
        .ok_or(Error::NotFound)?;
    Ok(axum::Json(row.into_discussion(&app)))
}

/// Rename, archive or share.
#[utoipa::path(patch, path = "/api/discussions/{id}", tag = "discussions", security(("bearer" = [])), params(("id" = Uuid, Path)),
    responses((status = 200, body = Discussion), (status = 401, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
async fn edit(
    State(app): State<App>,
    user: User,
    Path(id): Path<Uuid>,
    Json(edit): Json<EditDiscussion>,
) -> Result<axum::Json<Discussion>> {
    let title = edit.title.as_ref().map(Text::as_str);
    let share_slug = share_slug();
    let EditDiscussion {
        archived, shared, ..
    } = edit;
    let changed = app
        .db()?
        .old_optional(
            &UPDATE,
            &[
                &id,
                &user.id,
                &title,
                &archived,
                &shared,
                &share_slug,
                &app.now(),
            ],
        )
        .await?;
    Ok(axum::Json(
        changed.ok_or(Error::NotFound)?.into_discussion(&app),
    ))
}

/// Delete it with all its messages.
#[utoipa::path(delete, path = "/api/discussions/{id}", tag = "discussions", security(("bearer" = [])), params(("id" = Uuid, Path)),
    responses((status = 204), (status = 401, body = Problem), (status = 404, body = Problem)))]
async fn delete(State(app): State<App>, user: User, Path(id): Path<Uuid>) -> Result<StatusCode> {
    cache::invalidate(&app, &[Cached::Counts(user.id)], Vec::new()).await?;
    match app.db()?.old_execute(&DELETE, &[&id, &user.id]).await? {
        0 => Err(Error::NotFound),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

/// The topic's beginning, else the names that the slugs are made of.
fn default_title(topic: Option<&str>, icons: &[String]) -> String {
    if let Some(topic) = topic {
        let line = topic.lines().next().unwrap_or_default();
        return match line.char_indices().nth(80) {
            Some((end, _)) => format!("{}…", line[..end].trim_end()),
            None => line.to_owned(),
        };
    }
    let names = icons.iter().map(|slug| {
        let words = slug.split('-').map(|word| {
            let mut letters = word.chars();
            letters.next().map_or(String::new(), |first| {
                first.to_uppercase().chain(letters).collect()
            })
        });
        words.collect::<Vec<_>>().join(" ")
    });
    names
        .collect::<Vec<_>>()
        .join(", ")
        .chars()
        .take(200)
        .collect()
}

/// Unguessable: who knows it may read.
fn share_slug() -> String {
    format!("{:032x}", rand::random::<u128>())
}

sql_positional! {
    read PAGE(UUID, BOOL, UUID, INT8) -> DiscussionRow = "
        select id, title, topic, icons, archived, shared, share_slug, message_count, created_at, updated_at
        from discussions
        where user_id = $1 and archived = $2 and ($3::uuid is null or id < $3)
        order by id desc limit $4";
}

sql_positional! {
    /// With a key it inserts once: a second request waits for the first, then finds the key and inserts nothing.
    write INSERT(UUID, UUID, TEXT, TEXT, TEXT_ARRAY, TIMESTAMPTZ, TEXT, BYTEA, JSONB, BOOL) -> () = "
        with offered as (
          select from icons where slug = any($5::text[]) and not retired having count(*) = cardinality($5)
        ), claimed as (
          insert into idempotency_keys (user_id, key, request_hash, response, created_at)
          select $2, $7::text, $8::bytea, $9::jsonb, $6 from offered where $7 is not null
          on conflict do nothing
          returning key
        )
        insert into discussions (id, user_id, title, topic, icons, created_at, updated_at, title_made)
        select $1, $2, $3, $4, $5, $6, $6, $10 from offered
        where $7 is null or exists (select from claimed)";
}

sql_positional! {
    read BY_KEY(UUID, TEXT) -> AnswerRow = "
        select request_hash, response from idempotency_keys where user_id = $1 and key = $2";
}

sql_positional! {
    read COUNT(UUID, TIMESTAMPTZ) -> CountRow = "
        select count(*) as total, count(*) filter (where created_at >= $2) as today
        from discussions where user_id = $1";
}

sql_positional! {
    read BY_ID(UUID, UUID) -> DiscussionRow = "
        select id, title, topic, icons, archived, shared, share_slug, message_count, created_at, updated_at
        from discussions where id = $1 and user_id = $2";
}

sql_positional! {
    write UPDATE(UUID, UUID, TEXT, BOOL, BOOL, TEXT, TIMESTAMPTZ) -> DiscussionRow = "
        update discussions
        set title = coalesce($3, title), title_made = title_made and $3 is null, archived = coalesce($4, archived), shared = coalesce($5, shared),
          share_slug = case when $5 then coalesce(share_slug, $6) else share_slug end, updated_at = $7
        where id = $1 and user_id = $2
        returning id, title, topic, icons, archived, shared, share_slug, message_count, created_at, updated_at";
}

sql_positional! {
    write DELETE(UUID, UUID) -> () = "delete from discussions where id = $1 and user_id = $2";
}

row! {
    struct DiscussionRow {
        id: Uuid,
        title: String,
        topic: Option<String>,
        icons: Vec<String>,
        archived: bool,
        shared: bool,
        share_slug: Option<String>,
        message_count: i32,
        created_at: OffsetDateTime,
        updated_at: OffsetDateTime,
    }
}

row! {
    struct AnswerRow { request_hash: Vec<u8>, response: Option<Value> }
}

row! {
    struct CountRow { total: i64, today: i64 }
}

impl DiscussionRow {
    fn into_discussion(self, app: &App) -> Discussion {
        let slug = self.share_slug.filter(|_| self.shared);
        Discussion {
            id: self.id,
            title: self.title,
            topic: self.topic,
            icons: self.icons,
            archived: self.archived,
            shared: self.shared,
            share_url: slug.map(|slug| format!("{}/share/{slug}", app.config().public_url)),
            message_count: self.message_count,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discussion_without_a_title_is_named_after_its_topic_or_its_icons() {
        let icons = ["ibn-rushd".to_owned(), "socrates".to_owned()];
        assert_eq!(default_title(None, &icons), "Ibn Rushd, Socrates");
        assert_eq!(
            default_title(Some("Is virtue taught?\nOr not"), &icons),
            "Is virtue taught?"
        );
        assert_eq!(
            default_title(Some(&"ä".repeat(100)), &icons),
            format!("{}…", "ä".repeat(80))
        );
    }
}
