//! Values of parameters and columns, and statements that do not match what the server has.

use std::fmt::Debug;

use pooled_postgres::{Access, Db, Error, Statement, ToSql, Type};
use serde_json::{Value, json};
use time::{
    Date, OffsetDateTime,
    macros::{date, datetime},
};
use uuid::Uuid;

use crate::direct;

pooled_postgres::text_enum! {
    enum Plan { Guest = "guest", Free = "free" }
}

pooled_postgres::row! {
    struct ScalarRow {
        flag: bool,
        small: i16,
        number: i32,
        large: i64,
        ratio: f64,
        text: String,
        bytes: Vec<u8>,
        id: Uuid,
        date: Date,
        time: OffsetDateTime,
        json: Value,
    }
}
pooled_postgres::row! {
    struct ArrayRow { texts: Vec<String>, ids: Vec<Uuid>, sum: i64 }
}

pooled_postgres::sql! {
    read EchoScalars {
        flag: bool,
        small: i16,
        number: i32,
        large: i64,
        ratio: f64,
        text: &str,
        bytes: &[u8],
        id: Uuid,
        date: Date,
        time: OffsetDateTime,
        json: &Value,
    } -> ScalarRow = "
        select :flag::boolean as flag, :small::smallint as small, :number::integer as number,
               :large::bigint as large, :ratio::double precision as ratio, :text::text as text,
               :bytes::bytea as bytes, :id::uuid as id, :date::date as date,
               :time::timestamptz as time, :json::jsonb as json";

    read EchoArrays { texts: &[&str], ids: &[Uuid], numbers: &[i64] } -> ArrayRow = "
        select :texts::text[] as texts, :ids::uuid[] as ids,
               (select sum(n)::bigint from unnest(:numbers::bigint[]) n) as sum";

    read EchoOptional { text: Option<&str> } -> Option<String> = "select :text::text";

    read EchoPlan { plan: Plan } -> Plan = "select :plan::text";
    read TextAsPlan { text: &str } -> Plan = "select :text::text";

    // Letters after a colon, and dollars, that are no placeholders.
    read Slices { first: i32, last: i32 } -> Vec<String> = "
        select ('{:a,b,$c$,d}'::text[])[:first: :last] /* :no /* :no */ :no */";
    read Literals { name: &str } -> String =
        "select e'it\\':s ' || $$:no $1 $$ || $q$ $$:no $q$ || :name::text -- :no";

    read NoRow -> i64 = "select 1::bigint where false";
    read ThreeRows -> i32 = "select generate_series(1, 3)";
}

fn db() -> Db {
    direct("values", 1)
}

#[tokio::test]
async fn scalars_arrive_as_they_were_sent() {
    let id = Uuid::from_u128(7);
    let date = date!(2026 - 02 - 28);
    let time = datetime!(2026-02-28 23:59:59.123456 UTC);
    let json = json!({ "a": [1, null] });

    let row = db()
        .one(EchoScalars {
            flag: true,
            small: -1,
            number: i32::MAX,
            large: i64::MIN,
            ratio: 0.1,
            text: "é ':",
            bytes: &[0, 255],
            id,
            date,
            time,
            json: &json,
        })
        .await
        .unwrap();

    assert!(row.flag);
    assert_eq!(row.small, -1);
    assert_eq!(row.number, i32::MAX);
    assert_eq!(row.large, i64::MIN);
    assert!((row.ratio - 0.1).abs() < f64::EPSILON);
    assert_eq!(row.text, "é ':");
    assert_eq!(row.bytes, [0, 255]);
    assert_eq!(row.id, id);
    assert_eq!(row.date, date);
    assert_eq!(row.time, time);
    assert_eq!(row.json, json);
}

#[tokio::test]
async fn arrays_and_nulls_arrive_as_they_were_sent() {
    let db = db();
    let ids = [Uuid::from_u128(1), Uuid::from_u128(2)];
    let arrays = EchoArrays {
        texts: &["a", "b,c"],
        ids: &ids,
        numbers: &[20, 22],
    };
    let row = db.one(arrays).await.unwrap();
    assert_eq!(row.texts, ["a", "b,c"]);
    assert_eq!(row.ids, ids);
    assert_eq!(row.sum, 42);

    let null = EchoOptional { text: None };
    assert_eq!(db.one(null).await.unwrap(), None);
    let text = EchoOptional { text: Some("a") };
    assert_eq!(db.one(text).await.unwrap().as_deref(), Some("a"));
}

#[tokio::test]
async fn a_text_enum_is_read_and_written_and_never_guessed() {
    let db = db();
    for plan in Plan::ALL {
        assert_eq!(db.one(EchoPlan { plan }).await.unwrap(), plan);
    }

    let unknown = db.one(TextAsPlan { text: "gold" }).await.unwrap_err();
    assert!(matches!(unknown, Error::Other(_)), "{unknown:?}");
    let causes = format!("{unknown:?}");
    assert!(
        causes.contains("Plan") && causes.contains("gold"),
        "{causes}"
    );
}

#[tokio::test]
async fn only_placeholders_become_parameters() {
    let db = db();
    let slice = Slices { first: 1, last: 3 };
    assert_eq!(db.one(slice).await.unwrap(), [":a", "b", "$c$"]);

    let literals = Literals { name: "name" };
    let text = db.one(literals).await.unwrap();
    assert_eq!(text, "it':s :no $1  $$:no name");
}

#[tokio::test]
async fn a_call_accepts_only_its_number_of_rows() {
    let db = db();
    assert_eq!(db.optional(NoRow).await.unwrap(), None);
    assert_is_defect(&db.one(NoRow).await, "NoRow returned no row");

    assert_eq!(db.all(ThreeRows).await.unwrap(), [1, 2, 3]);
    let problem = "ThreeRows returned more than one row";
    assert_is_defect(&db.optional(ThreeRows).await, problem);
}

/// A statement declared by hand, with a wrong row type and any values. `sql!` rejects such declarations.
struct MisdeclaredEcho<'a> {
    values: &'a [&'a (dyn ToSql + Sync)],
}

impl Statement for MisdeclaredEcho<'_> {
    type Row = i32;
    const NAME: &'static str = "MisdeclaredEcho";
    const TEXT: &'static str = "select $1";
    const ACCESS: Access = Access::Read;
    const PARAMS: &'static [Type] = &[Type::INT8];

    fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.values.to_vec()
    }
}

#[tokio::test]
async fn a_misdeclared_statement_is_a_defect_and_keeps_its_connection() {
    let db = db();
    let wrong_values: [&[&(dyn ToSql + Sync)]; 3] = [&[], &[&"text"], &[&1_i64]];
    for values in wrong_values {
        let outcome = db.one(MisdeclaredEcho { values }).await;
        assert_is_defect(&outcome, "");
    }
    assert_eq!(db.all(ThreeRows).await.unwrap(), [1, 2, 3]);
}

#[track_caller]
fn assert_is_defect<T: Debug>(outcome: &Result<T, Error>, message: &str) {
    match outcome {
        Err(Error::Other(cause)) => assert!(cause.to_string().contains(message), "{cause}"),
        other => panic!("{other:?} is no defect"),
    }
}
