//! The pages of a list.

use serde::{Deserialize, Deserializer, de::Error};
use uuid::Uuid;

/// `?limit=1..100&cursor=…` of a list. A cursor is the id of the last row of the previous page.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// Rows to return.
    #[serde(default)]
    #[param(value_type = u8, minimum = 1, maximum = 100, default = 20)]
    pub(crate) limit: PageSize,
    /// `next_cursor` of the previous page.
    #[serde(default, deserialize_with = "cursor")]
    pub(crate) cursor: Option<Uuid>,
}

fn cursor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let id = Uuid::try_parse(text.trim());
    id.map(Some)
        .map_err(|_| D::Error::custom("must be the next_cursor of a page of this list"))
}

/// How many rows a page has.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub(crate) struct PageSize(i64);

impl PageSize {
    /// Rows to query: one more than the page has shows whether there is a next page.
    pub(crate) fn rows(self) -> i64 {
        self.0 + 1
    }

    /// Cuts the extra row off, and returns the cursor of the next page.
    pub(crate) fn cut<T, C>(
        self,
        mut rows: Vec<T>,
        cursor: impl Fn(&T) -> C,
    ) -> (Vec<T>, Option<C>) {
        let size = usize::try_from(self.0).expect("a page size is between 1 and 100");
        let has_next = rows.len() > size;
        rows.truncate(size);

        let cursor = rows.last().filter(|_| has_next).map(cursor);
        (rows, cursor)
    }
}

impl Default for PageSize {
    fn default() -> Self {
        Self(20)
    }
}

impl TryFrom<i64> for PageSize {
    type Error = &'static str;

    fn try_from(rows: i64) -> Result<Self, Self::Error> {
        if (1..=100).contains(&rows) {
            Ok(Self(rows))
        } else {
            Err("must be between 1 and 100")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extra_row_becomes_the_cursor_of_the_next_page() {
        let ids: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();

        assert_eq!(
            PageSize(2).cut(ids.clone(), |id| *id),
            (ids[..2].to_vec(), Some(ids[1]))
        );
        assert_eq!(PageSize(3).cut(ids.clone(), |id| *id), (ids, None));
    }
}
