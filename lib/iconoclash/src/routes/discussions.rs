//! Discussions: their topic, their icons, and their life from creation to deletion.

mod icons;
mod list;
mod title;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::{Date, OffsetDateTime, Time, UtcOffset};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use pooled_postgres::{row, sql};

use self::icons::Icons;
use crate::{
    app::App,
    cache::{self, Cached},
    http::{
        error::{Error, Problem, Result},
        extract::{Json, Label, Path, Text},
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
        .routes(routes!(list::list, create))
        .routes(routes!(count))
        .routes(routes!(show, edit, delete))
}

/// A new discussion.
#[derive(Debug, Deserialize, ToSchema)]
struct NewDiscussion {
    /// Left out, it is made from the topic or the icons, and again from the conversation after the first reply.
    #[schema(value_type = Option<String>, max_length = 200)]
    title: Option<Label<200>>,
    #[schema(value_type = Option<String>, max_length = 2000)]
    topic: Option<Text<2000>>,
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 4)]
    icons: Icons,
}

/// Fields to change. Those that are left out stay as they are.
#[derive(Debug, Deserialize, ToSchema)]
struct EditDiscussion {
    #[schema(value_type = Option<String>, max_length = 200)]
    title: Option<Label<200>>,
    archived: Option<bool>,
    /// Whether anyone with `share_url` may read it.
    shared: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Count {
    total: i64,
    /// Created since midnight UTC.
    today: i64,
}

/// Create a discussion.
#[utoipa::path(
    post, path = "/api/discussions", tag = "discussions", security(("bearer" = [])),
    params((
        "Idempotency-Key" = Option<String>, Header,
        description = "1 to 255 visible ASCII characters",
    )),
    responses(
        (status = 201, body = Discussion),
        (status = 401, body = Problem),
        (status = 422, body = Problem),
        (status = 429, body = Problem),
    ),
)]
async fn create(
    State(app): State<App>,
    user: User,
    key: IdempotencyKey,
    Json(new): Json<NewDiscussion>,
) -> Result<Response> {
    rate_limit::check(&app, &[(Limit::Discussion, LimitSubject::User(user.id))]).await?;

    let request_hash = new.fingerprint();
    let title_made = new.title.is_none();
    let discussion = new.into_discussion(&app);
    let response = serde_json::to_value(&discussion).map_err(Error::internal)?;

    cache::invalidate(&app, &[Cached::Counts(user.id)], Vec::new()).await?;
    let insert = InsertDiscussion {
        id: discussion.id,
        user: user.id,
        title: &discussion.title,
        title_made,
        topic: discussion.topic.as_deref(),
        icons: &discussion.icons,
        now: discussion.created_at,
        key: key.0.as_deref(),
        request_hash: &request_hash,
        response: &response,
    };
    match app.db()?.execute(insert).await? {
        0 => replay(&app, &user, &key, &request_hash, &discussion.icons).await,
        _ => Ok((StatusCode::CREATED, axum::Json(discussion)).into_response()),
    }
}

impl NewDiscussion {
    fn fingerprint(&self) -> Vec<u8> {
        let title = self.title.as_ref().map_or("", Label::as_str);
        let topic = self.topic.as_ref().map_or("", Text::as_str);
        let icons = self.icons.slugs().iter().map(String::as_str);

        let mut parts = vec!["POST /api/discussions", title, topic];
        parts.extend(icons);
        idempotency::fingerprint(&parts)
    }

    fn into_discussion(self, app: &App) -> Discussion {
        let now = app.now();
        let topic = self.topic.as_ref().map(Text::as_str);
        let title = match &self.title {
            Some(title) => title.as_str().to_owned(),
            None => title::default_title(topic, self.icons.slugs()),
        };

        Discussion {
            id: app.new_id(),
            title,
            topic: topic.map(str::to_owned),
            icons: self.icons.into_slugs(),
            archived: false,
            shared: false,
            share_url: None,
            message_count: 0,
            created_at: now,
            updated_at: now,
        }
    }
}

/// The response where nothing was inserted: the key is known, or an icon is not.
async fn replay(
    app: &App,
    user: &User,
    key: &IdempotencyKey,
    request_hash: &[u8],
    slugs: &[String],
) -> Result<Response> {
    let first = match key.0.as_deref() {
        Some(key) => {
            app.db()?
                .optional(FirstResponse { user: user.id, key })
                .await?
        }
        None => None,
    };

    match first {
        None => Err(icons::not_offered(app, slugs).await?),
        Some(first) if first.request_hash != request_hash => Err(Error::IdempotencyKeyReused),
        Some(first) => {
            let body = axum::Json(first.response);
            Ok((StatusCode::CREATED, [idempotency::REPLAYED], body).into_response())
        }
    }
}

/// How many discussions the user has.
#[utoipa::path(
    get, path = "/api/discussions/count", tag = "discussions", security(("bearer" = [])),
    responses((status = 200, body = Count), (status = 401, body = Problem)),
)]
async fn count(State(app): State<App>, session: Session) -> Result<axum::Json<Count>> {
    let now = app.now().to_offset(UtcOffset::UTC);
    let midnight = now.replace_time(Time::MIDNIGHT);
    let today = midnight.date();

    let counts = Cached::Counts(session.claims.sub);
    let (user, mut found) = session_cache::load_user(&app, session, vec![counts.command()]).await?;

    let load = async || {
        let select = CountDiscussions {
            user: user.id,
            midnight,
        };
        let CountRow { total, today } = app.db()?.one(select).await?;
        Ok(DatedCount {
            day: midnight.date(),
            total,
            today,
        })
    };
    let is_current = |count: &DatedCount| count.day == today;
    let found = found.pop().flatten();
    let DatedCount { total, today, .. } = counts.get_or_load(&app, found, is_current, load).await?;

    Ok(axum::Json(Count { total, today }))
}

/// The cached count, with the day that its `today` counts.
#[derive(Debug, Serialize, Deserialize)]
struct DatedCount {
    day: Date,
    total: i64,
    today: i64,
}

/// One discussion.
#[utoipa::path(
    get, path = "/api/discussions/{id}", tag = "discussions", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = Discussion),
        (status = 401, body = Problem),
        (status = 404, body = Problem),
    ),
)]
async fn show(
    State(app): State<App>,
    user: User,
    Path(id): Path<Uuid>,
) -> Result<axum::Json<Discussion>> {
    let select = DiscussionById {
        id,
        user: user.id,
        share_base: &share_base(&app),
    };
    let discussion = app.db()?.optional(select).await?;

    discussion.map(axum::Json).ok_or(Error::NotFound)
}

/// Rename, archive or share.
#[utoipa::path(
    patch, path = "/api/discussions/{id}", tag = "discussions", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = Discussion),
        (status = 401, body = Problem),
        (status = 404, body = Problem),
        (status = 422, body = Problem),
    ),
)]
async fn edit(
    State(app): State<App>,
    user: User,
    Path(id): Path<Uuid>,
    Json(edit): Json<EditDiscussion>,
) -> Result<axum::Json<Discussion>> {
    let update = UpdateDiscussion {
        id,
        user: user.id,
        title: edit.title.as_ref().map(Label::as_str),
        archived: edit.archived,
        shared: edit.shared,
        new_slug: &random_slug(),
        now: app.now(),
        share_base: &share_base(&app),
    };
    let discussion = app.db()?.optional(update).await?;

    discussion.map(axum::Json).ok_or(Error::NotFound)
}

/// Delete it with all its messages.
#[utoipa::path(
    delete, path = "/api/discussions/{id}", tag = "discussions", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 204), (status = 401, body = Problem), (status = 404, body = Problem)),
)]
async fn delete(State(app): State<App>, user: User, Path(id): Path<Uuid>) -> Result<StatusCode> {
    cache::invalidate(&app, &[Cached::Counts(user.id)], Vec::new()).await?;

    let delete = DeleteDiscussion { id, user: user.id };
    match app.db()?.execute(delete).await? {
        0 => Err(Error::NotFound),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

/// An unguessable slug, because knowing it is the permission to read.
fn random_slug() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

/// The share URL of a discussion, up to its slug.
fn share_base(app: &App) -> String {
    format!("{}/share/", app.config().public_url)
}

sql! {
    /// Inserts once per key: a concurrent request with the same key waits for the first, then inserts nothing.
    write InsertDiscussion {
        id: Uuid,
        user: Uuid,
        title: &str,
        title_made: bool,
        topic: Option<&str>,
        icons: &[String],
        now: OffsetDateTime,
        key: Option<&str>,
        request_hash: &[u8],
        response: &Value,
    } -> () = "
        with offered as (
          select from icons
          where slug = any(:icons::text[]) and not retired
          having count(*) = cardinality(:icons)
        ), claimed as (
          insert into idempotency_keys (user_id, key, request_hash, response, created_at)
          select :user, :key::text, :request_hash::bytea, :response::jsonb, :now
          from offered where :key is not null
          on conflict do nothing
          returning key
        )
        insert into discussions
          (id, user_id, title, title_made, topic, icons, created_at, updated_at)
        select :id, :user, :title, :title_made, :topic, :icons, :now, :now
        from offered
        where :key is null or exists (select from claimed)";

    read FirstResponse { user: Uuid, key: &str } -> FirstResponseRow = "
        select request_hash, response from idempotency_keys where user_id = :user and key = :key";

    read CountDiscussions { user: Uuid, midnight: OffsetDateTime } -> CountRow = "
        select count(*) as total, count(*) filter (where created_at >= :midnight) as today
        from discussions where user_id = :user";

    read DiscussionById { id: Uuid, user: Uuid, share_base: &str } -> Discussion = "
        select id, title, topic, icons, archived, shared,
          case when shared then :share_base || share_slug end as share_url,
          message_count, created_at, updated_at
        from discussions where id = :id and user_id = :user";

    /// A discussion keeps its slug when it is no longer shared, so that sharing it again restores the URL.
    write UpdateDiscussion {
        id: Uuid,
        user: Uuid,
        title: Option<&str>,
        archived: Option<bool>,
        shared: Option<bool>,
        new_slug: &str,
        now: OffsetDateTime,
        share_base: &str,
    } -> Discussion = "
        update discussions
        set title = coalesce(:title, title),
          title_made = title_made and :title is null,
          archived = coalesce(:archived, archived),
          shared = coalesce(:shared, shared),
          share_slug = case when :shared then coalesce(share_slug, :new_slug) else share_slug end,
          updated_at = :now
        where id = :id and user_id = :user
        returning id, title, topic, icons, archived, shared,
          case when shared then :share_base || share_slug end as share_url,
          message_count, created_at, updated_at";

    write DeleteDiscussion { id: Uuid, user: Uuid } -> () = "
        delete from discussions where id = :id and user_id = :user";
}

row! {
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
        /// Where anyone may read it, while it is shared.
        share_url: Option<String>,
        message_count: i32,
        #[serde(with = "crate::clock::rfc3339")]
        created_at: OffsetDateTime,
        #[serde(with = "crate::clock::rfc3339")]
        updated_at: OffsetDateTime,
    }
}

row! {
    struct FirstResponseRow {
        request_hash: Vec<u8>,
        response: Option<Value>,
    }
}

row! {
    struct CountRow {
        total: i64,
        today: i64,
    }
}
