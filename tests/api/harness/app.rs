//! One instance of the service, in process.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use http::{Request, StatusCode};
use iconoclash::{
    app::App,
    clock::Clock,
    config::Config,
    http::{observe, serve},
    routes,
};
use iconoclash_fakes::{
    claude, mail, stripe,
    test_services::{TestServices, needed},
    upstash,
};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use time::OffsetDateTime;
use tower::ServiceExt;
use upstash_redis_rs::Redis;

use super::Actor;

/// The service with its own database and Redis, and with fakes of Claude, Stripe and the mail provider.
pub(crate) struct TestApp {
    pub(crate) app: App,
    pub(crate) background: serve::Background,
    pub(crate) claude: Arc<claude::FakeClaude>,
    pub(crate) stripe: Arc<stripe::FakeStripe>,
    pub(crate) mail: Arc<mail::FakeMail>,
    router: Router,
    pub(crate) database: String,
    clock_offset: Arc<Mutex<time::Duration>>,
    pub(crate) redis: Arc<upstash::RestProxy>,
    /// Reaches `redis` past the app.
    pub(super) redis_client: Redis,
    config: Config,
    /// Stale sessions that are no fault of the app.
    pub(super) excused: Arc<Mutex<HashSet<String>>>,
}

impl TestApp {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With other settings.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        Self::adjusted(settings, |_| {}).await
    }

    /// With other settings, and with changes that no setting can express.
    pub(crate) async fn adjusted(
        settings: &[(&str, &str)],
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        Self::paced(Duration::ZERO, settings, adjust).await
    }

    /// With a fake Claude that waits `pace` between two pieces of a reply.
    pub(crate) async fn paced(
        pace: Duration,
        settings: &[(&str, &str)],
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        // Silent unless asked: `ICONOCLASH_TEST_LOG=1 cargo local test … -- --nocapture`.
        if std::env::var_os("ICONOCLASH_TEST_LOG").is_some() {
            observe::init();
        }
        let TestServices {
            claude,
            stripe,
            mail,
            redis,
            database,
            settings: mut values,
        } = TestServices::start(pace).await;
        values.extend(
            settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );

        let mut config = Config::from_lookup(|name| values.get(name).cloned());
        adjust(&mut config);
        let clock_offset = Arc::new(Mutex::new(time::Duration::ZERO));
        stripe.set_clock(clock(&clock_offset));
        let app = App::new(config.clone(), clock(&clock_offset));
        let router = serve::stack(routes::all().into(), app.clone());

        Self {
            app,
            background: serve::Background::in_process(),
            claude: Arc::new(claude),
            stripe: Arc::new(stripe),
            mail: Arc::new(mail),
            router,
            database,
            clock_offset,
            redis_client: redis_client(&redis),
            redis: Arc::new(redis),
            config,
            excused: Arc::default(),
        }
    }

    /// A second instance of the service on the same database, Redis and vendors.
    pub(crate) fn another(&self) -> Self {
        let app = App::new(self.config.clone(), clock(&self.clock_offset));
        let router = serve::stack(routes::all().into(), app.clone());

        Self {
            app,
            background: serve::Background::in_process(),
            claude: self.claude.clone(),
            stripe: self.stripe.clone(),
            mail: self.mail.clone(),
            router,
            database: self.database.clone(),
            clock_offset: self.clock_offset.clone(),
            redis: self.redis.clone(),
            redis_client: self.redis_client.clone(),
            config: self.config.clone(),
            excused: self.excused.clone(),
        }
    }

    /// Replaces the process by one with other settings.
    pub(crate) fn restart(&mut self, adjust: impl FnOnce(&mut Config)) {
        adjust(&mut self.config);
        self.app = App::new(self.config.clone(), clock(&self.clock_offset));
        self.router = serve::stack(routes::all().into(), self.app.clone());
        self.background = serve::Background::in_process();
    }

    /// Advances the clock of the app and of Stripe.
    pub(crate) fn advance(&self, by: time::Duration) {
        *self.clock_offset.lock().unwrap() += by;
    }

    pub(crate) fn anonymous(&self) -> Actor<'_> {
        Actor {
            app: self,
            token: None,
            ip: fresh_ip(),
        }
    }

    /// A new user with plan free.
    pub(crate) async fn member(&self, name: &str) -> Actor<'_> {
        let body = json!({
            "email": format!("{name}@example.org"),
            "password": "correct horse",
            "name": name,
        });
        let signed = self.anonymous().post("/api/auth/signup", body).await;
        assert_eq!(signed.status, StatusCode::CREATED, "{}", signed.json);
        self.bearer(signed.json["token"].as_str().unwrap())
    }

    /// A new guest at its own address.
    pub(crate) async fn guest(&self) -> Actor<'_> {
        let signed = self.anonymous().post("/api/auth/guest", Value::Null).await;
        assert_eq!(signed.status, StatusCode::CREATED, "{}", signed.json);
        self.bearer(signed.json["token"].as_str().unwrap())
    }

    pub(crate) fn bearer(&self, token: &str) -> Actor<'_> {
        Actor {
            app: self,
            token: Some(token.to_owned()),
            ip: fresh_ip(),
        }
    }

    /// Runs a statement past the app and the pooler, as an operator could.
    pub(crate) async fn sql(&self, statement: &str) {
        let mut connection = self.connect().await;
        connection
            .execute(sqlx::AssertSqlSafe(statement.to_owned()))
            .await
            .unwrap();

        if statement.contains("users") {
            self.excuse_stale_sessions().await;
        }
    }

    /// The first row, as text.
    pub(crate) async fn value(&self, query: &str) -> String {
        self.value_if_any(query).await.expect("a row")
    }

    async fn value_if_any(&self, query: &str) -> Option<String> {
        let mut connection = self.connect().await;
        let query = sqlx::AssertSqlSafe(format!("select (q.*)::text from ({query}) q"));
        let text: Option<String> = sqlx::query_scalar(query)
            .fetch_optional(&mut connection)
            .await
            .unwrap();
        text.map(|text| text.trim_matches(['(', ')']).to_owned())
    }

    /// The first column of all rows.
    pub(crate) async fn column(&self, query: &str) -> HashSet<String> {
        let mut connection = self.connect().await;
        let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(query.to_owned()))
            .fetch_all(&mut connection)
            .await;
        rows.unwrap().into_iter().collect()
    }

    /// Waits for 5 seconds at most until a query returns this value.
    pub(crate) async fn eventually(&self, query: &str, expected: &str) {
        let mut seen = String::new();
        for _ in 0..200 {
            seen = self.value_if_any(query).await.unwrap_or_default();
            if seen == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{query}: {seen} instead of {expected}");
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        let url = format!("{}/{}", needed("ICONOCLASH_TEST_POSTGRES"), self.database);
        PgConnection::connect(&url).await.unwrap()
    }

    /// Calls the router as a platform does.
    pub(crate) async fn call(&self, mut request: Request<Body>) -> http::Response<Body> {
        request.extensions_mut().insert(self.background.clone());
        self.router.clone().oneshot(request).await.unwrap()
    }
}

/// A clock that runs ahead by as much as the test has advanced it.
fn clock(offset: &Arc<Mutex<time::Duration>>) -> Clock {
    let offset = offset.clone();
    Arc::new(move || OffsetDateTime::now_utc() + *offset.lock().unwrap())
}

fn redis_client(redis: &upstash::RestProxy) -> Redis {
    let client = Redis::new(redis.url(), redis.token(), reqwest::Client::new()).unwrap();
    client.with_deadline(Duration::from_secs(10))
}

fn fresh_ip() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, a, b, c] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    format!("10.{a}.{b}.{c}")
}
