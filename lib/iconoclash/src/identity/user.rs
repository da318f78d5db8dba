//! A user, as Postgres returns it and as responses show it.

use pooled_postgres::row;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::spending::plan::Plan;

/// A user as responses show it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = User)]
pub struct Profile {
    /// The user's id.
    pub id: Uuid,
    /// Address for sign-in; guests have none.
    pub email: Option<String>,
    /// Display name.
    pub name: Option<String>,
    /// The plan, which sets the limits.
    pub plan: Plan,
    /// The role, which sets the permissions.
    pub role: Role,
    /// When the account was created.
    #[serde(with = "crate::clock::rfc3339")]
    pub created_at: OffsetDateTime,
}

pooled_postgres::text_enum! {
    /// The permissions of a user.
    #[derive(Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "lowercase")]
    pub enum Role {
        /// Uses the service.
        User = "user",
        /// Operates the service.
        Admin = "admin",
    }
}

/// Declares a row that begins with the columns of a user: `id, email, name, plan, role, token_version, created_at`.
macro_rules! user_row {
    (
        $(#[$attribute:meta])*
        struct $name:ident { $($field:ident: $kind:ty),* $(,)? }
    ) => {
        row! {
            $(#[$attribute])*
            pub(crate) struct $name {
                id: Uuid,
                email: Option<String>,
                name: Option<String>,
                plan: Plan,
                role: Role,
                token_version: i32,
                created_at: OffsetDateTime,
                $($field: $kind,)*
            }
        }

        impl From<$name> for Profile {
            fn from(row: $name) -> Self {
                Self {
                    id: row.id,
                    email: row.email,
                    name: row.name,
                    plan: row.plan,
                    role: row.role,
                    created_at: row.created_at,
                }
            }
        }
    };
}

user_row! {
    /// A user.
    struct UserRow {}
}

user_row! {
    /// A user, with the revoked sessions whose tokens have not expired.
    struct SessionStateRow { revoked: Vec<Uuid> }
}
