//! The pooled URL, asked the way the functions ask it.

use pooled_postgres::{Access, Db, Error, Sql, Type};

pooled_postgres::row! {
    /// Who answers at the other end of a URL.
    pub(crate) struct Server {
        role: String,
        database: String,
        started_at: String,
        version: i32,
        statement_timeout: String,
    }
}

const SERVER: Sql<Server> = Sql::unchecked(
    Access::Read,
    &[] as &[Type],
    "select current_user::text as role,
            current_database()::text as database,
            pg_postmaster_start_time()::text as started_at,
            current_setting('server_version_num')::int / 10000 as version,
            current_setting('statement_timeout') as statement_timeout",
);

pub(crate) async fn server(url: &str) -> Result<Server, Error> {
    Db::new(url, 1)?.old_one(&SERVER, &[]).await
}
