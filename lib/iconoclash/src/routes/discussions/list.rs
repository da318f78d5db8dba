//! The list of a user's discussions, by their last change or by their creation.

use axum::extract::State;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use pooled_postgres::sql;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Discussion, share_base};
use crate::{
    app::App,
    http::{
        error::{Error, Problem, Result},
        extract::{PageSize, Query},
    },
    identity::auth::User,
};

/// A page of discussions, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Discussions {
    data: Vec<Discussion>,
    /// Opaque: the `cursor` of the next page.
    next_cursor: Option<String>,
}

/// What a list is sorted by, the newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Sort {
    /// The last message or other change.
    Updated,
    /// The creation.
    Created,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Listing {
    /// Only archived discussions, instead of only those that are not.
    #[serde(default)]
    archived: bool,
    /// Left out, it is what the cursor was made for, and `updated` on the first page.
    #[param(inline)]
    sort: Option<Sort>,
    /// Rows to return.
    #[serde(default)]
    #[param(value_type = u8, minimum = 1, maximum = 100, default = 20)]
    limit: PageSize,
    /// `next_cursor` of the previous page.
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor>,
}

/// The place of a page's last row in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
enum Cursor {
    Updated { at: OffsetDateTime, id: Uuid },
    Created(Uuid),
}

impl Cursor {
    fn sort(self) -> Sort {
        match self {
            Self::Updated { .. } => Sort::Updated,
            Self::Created(_) => Sort::Created,
        }
    }

    /// As clients get it: the id where that is enough, else the time in microseconds and the id.
    fn encode(self) -> String {
        match self {
            Self::Created(id) => id.to_string(),
            Self::Updated { at, id } => {
                let micros = at.unix_timestamp_nanos() / 1000;
                let micros = u64::try_from(micros).unwrap_or_default().to_be_bytes();
                BASE64_URL_SAFE_NO_PAD.encode([micros.as_slice(), id.as_bytes()].concat())
            }
        }
    }

    fn decode(text: &str) -> Option<Self> {
        if let Ok(id) = Uuid::try_parse(text) {
            return Some(Self::Created(id));
        }

        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (micros, id) = bytes.split_first_chunk()?;
        let nanos = i128::from(u64::from_be_bytes(*micros)) * 1000;
        let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
        let id = Uuid::from_slice(id).ok()?;
        Some(Self::Updated { at, id })
    }
}

impl TryFrom<String> for Cursor {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::decode(text.trim()).ok_or("must be the next_cursor of a page of this list")
    }
}

/// The user's discussions, newest first.
#[utoipa::path(
    get, path = "/api/discussions", tag = "discussions", security(("bearer" = [])),
    params(Listing),
    responses(
        (status = 200, body = Discussions),
        (status = 400, body = Problem),
        (status = 401, body = Problem),
    ),
)]
pub(super) async fn list(
    State(app): State<App>,
    user: User,
    Query(listing): Query<Listing>,
) -> Result<axum::Json<Discussions>> {
    let sort = listing.sort()?;
    let rows = match sort {
        Sort::Updated => by_update(&app, &user, &listing).await?,
        Sort::Created => by_creation(&app, &user, &listing).await?,
    };

    let cursor_of = |last: &Discussion| {
        let id = last.id;
        let cursor = match sort {
            Sort::Updated => Cursor::Updated {
                at: last.updated_at,
                id,
            },
            Sort::Created => Cursor::Created(id),
        };
        cursor.encode()
    };
    let (data, next_cursor) = listing.limit.cut(rows, cursor_of);
    Ok(axum::Json(Discussions { data, next_cursor }))
}

impl Listing {
    /// The order that is asked for: a cursor goes on in the order that it comes from.
    fn sort(&self) -> Result<Sort> {
        let of_cursor = self.cursor.map(Cursor::sort);

        match (self.sort, of_cursor) {
            (Some(sort), Some(of_cursor)) if sort != of_cursor => Err(Error::InvalidQuery {
                field: "cursor".to_owned(),
                message: "must be the next_cursor of a page with the same sort".to_owned(),
            }),
            (sort, of_cursor) => Ok(sort.or(of_cursor).unwrap_or(Sort::Updated)),
        }
    }
}

async fn by_update(app: &App, user: &User, listing: &Listing) -> Result<Vec<Discussion>> {
    let cursor = match listing.cursor {
        Some(Cursor::Updated { at, id }) => Some((at, id)),
        _ => None,
    };

    let select = PageByUpdate {
        user: user.id,
        archived: listing.archived,
        cursor_at: cursor.map(|(at, _)| at),
        cursor_id: cursor.map(|(_, id)| id),
        rows: listing.limit.rows(),
        share_base: &share_base(app),
    };
    Ok(app.db()?.all(select).await?)
}

async fn by_creation(app: &App, user: &User, listing: &Listing) -> Result<Vec<Discussion>> {
    let cursor = match listing.cursor {
        Some(Cursor::Created(id)) => Some(id),
        _ => None,
    };

    let select = PageByCreation {
        user: user.id,
        archived: listing.archived,
        cursor,
        rows: listing.limit.rows(),
        share_base: &share_base(app),
    };
    Ok(app.db()?.all(select).await?)
}

sql! {
    read PageByUpdate {
        user: Uuid,
        archived: bool,
        cursor_at: Option<OffsetDateTime>,
        cursor_id: Option<Uuid>,
        rows: i64,
        share_base: &str,
    } -> Discussion = "
        select id, title, topic, icons, archived, shared,
          case when shared then :share_base || share_slug end as share_url,
          message_count, created_at, updated_at
        from discussions
        where user_id = :user and archived = :archived
          and (:cursor_at::timestamptz is null or (updated_at, id) < (:cursor_at, :cursor_id::uuid))
        order by updated_at desc, id desc limit :rows";

    read PageByCreation {
        user: Uuid,
        archived: bool,
        cursor: Option<Uuid>,
        rows: i64,
        share_base: &str,
    } -> Discussion = "
        select id, title, topic, icons, archived, shared,
          case when shared then :share_base || share_slug end as share_url,
          message_count, created_at, updated_at
        from discussions
        where user_id = :user and archived = :archived
          and (:cursor::uuid is null or id < :cursor)
        order by id desc limit :rows";
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_cursor_survives_its_text() {
        let id = Uuid::from_u128(0x0193_0000_7000_8000_0000_0000_0000_0001);

        for at in [
            datetime!(1970-01-01 0:00 UTC),
            datetime!(2026-11-25 1:02:03.123456 UTC),
            datetime!(2026-11-25 0:00 UTC),
            datetime!(9999-12-31 23:59:59.999999 UTC),
        ] {
            let cursor = Cursor::Updated { at, id };
            assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
        }
        let cursor = Cursor::Created(id);
        assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));

        let beyond = BASE64_URL_SAFE_NO_PAD.encode([0xff; 24]);
        let short = BASE64_URL_SAFE_NO_PAD.encode([0; 23]);
        for wrong in ["x", "a b", "", "%00", &beyond, &short] {
            assert_eq!(Cursor::decode(wrong), None, "{wrong}");
        }
    }
}
