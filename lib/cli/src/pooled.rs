//! Asks the database behind the pooled URL, the way the functions do.

use pooled_postgres::{Db, Error};

pooled_postgres::row! {
    /// The server, database and role that a URL leads to.
    pub(crate) struct Server {
        role: String,
        database: String,
        started_at: String,
        version: i32,
        statement_timeout: String,
    }
}

pooled_postgres::sql! {
    read DescribeServer -> Server = "
        select current_user::text as role,
               current_database()::text as database,
               pg_postmaster_start_time()::text as started_at,
               current_setting('server_version_num')::int / 10000 as version,
               current_setting('statement_timeout') as statement_timeout";
}

pub(crate) async fn describe_server(url: &str) -> Result<Server, Error> {
    Db::named("iconoclash-cli", url, 1)?
        .one(DescribeServer)
        .await
}
