//! An app of one's own for each test, and actors who call it.

use axum::{Router, body::Body};
use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use iconoclash::{app::App, config::Config, http::serve, routes};
use iconoclash_fakes::{claude, mail, stripe, upstash};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use std::{
    collections::HashSet,
    pin::Pin,
    sync::{Arc, Mutex, atomic::AtomicU32, atomic::Ordering},
    time::Duration,
};
use time::OffsetDateTime;
use tower::ServiceExt;

use crate::contract;
use iconoclash_fakes::test_services::{TestServices, needed};

/// The service with its own database, Redis, Claude, Stripe and post office.
pub(crate) struct TestApp {
    pub(crate) app: App,
    pub(crate) background: serve::Background,
    pub(crate) claude: Arc<claude::FakeClaude>,
    pub(crate) stripe: Arc<stripe::FakeStripe>,
    pub(crate) mail: Arc<mail::FakeMail>,
    router: Router,
    pub(crate) database: String,
    ahead: Arc<Mutex<time::Duration>>,
    pub(crate) redis: Arc<upstash::RestProxy>,
    config: Config,
}

impl TestApp {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With settings of its own.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        Self::adjusted(settings, |_| {}).await
    }

    /// With what no setting can change, too.
    pub(crate) async fn adjusted(
        settings: &[(&str, &str)],
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        Self::paced(Duration::ZERO, settings, adjust).await
    }

    /// With a Claude that takes its time between two words.
    pub(crate) async fn paced(
        pace: Duration,
        settings: &[(&str, &str)],
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        // Silent unless asked: `ICONOCLASH_TEST_LOG=1 cargo local test … -- --nocapture`.
        if std::env::var_os("ICONOCLASH_TEST_LOG").is_some() {
            iconoclash::http::observe::init();
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
        let ahead = Arc::new(Mutex::new(time::Duration::ZERO));
        stripe.set_clock(clock(&ahead));
        let app = App::new(config.clone(), clock(&ahead));
        let router = serve::stack(routes::all().into(), app.clone());
        let background = serve::Background::in_process();
        let (claude, stripe, mail, redis) = (
            Arc::new(claude),
            Arc::new(stripe),
            Arc::new(mail),
            Arc::new(redis),
        );
        Self {
            app,
            background,
            claude,
            stripe,
            mail,
            router,
            database,
            ahead,
            redis,
            config,
        }
    }

    /// Another instance of the same service: what the two share is what they store.
    pub(crate) fn another(&self) -> Self {
        let Self {
            claude,
            stripe,
            mail,
            database,
            ahead,
            redis,
            config,
            ..
        } = self;
        let app = App::new(config.clone(), clock(ahead));
        let router = serve::stack(routes::all().into(), app.clone());
        let (claude, stripe, mail, redis) =
            (claude.clone(), stripe.clone(), mail.clone(), redis.clone());
        let (database, ahead, config) = (database.clone(), ahead.clone(), config.clone());
        let background = serve::Background::in_process();
        Self {
            app,
            background,
            claude,
            stripe,
            mail,
            router,
            database,
            ahead,
            redis,
            config,
        }
    }

    /// Another process of the same deployment takes over, with other settings.
    pub(crate) fn restart(&mut self, adjust: impl FnOnce(&mut Config)) {
        adjust(&mut self.config);
        self.app = App::new(self.config.clone(), clock(&self.ahead));
        self.router = serve::stack(routes::all().into(), self.app.clone());
        self.background = serve::Background::in_process();
    }

    /// Lets time pass for the app and for Stripe.
    pub(crate) fn advance(&self, by: time::Duration) {
        *self.ahead.lock().unwrap() += by;
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
        let body = json!({"email": format!("{name}@example.org"), "password": "correct horse", "name": name});
        let signed = self.anonymous().post("/api/auth/signup", body).await;
        assert_eq!(signed.status, StatusCode::CREATED, "{}", signed.json);
        self.bearer(signed.json["token"].as_str().unwrap())
    }

    /// A visitor without an account, at an address of its own.
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

    /// Runs a statement as the operator would, past the pooler.
    pub(crate) async fn sql(&self, statement: &str) {
        let mut connection = self.connect().await;
        connection
            .execute(sqlx::AssertSqlSafe(statement.to_owned()))
            .await
            .unwrap();
    }

    /// The first column of the first row, as text.
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

    /// Waits, within a bound, until a query gives this value.
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

/// The time, as far ahead as a test has let it pass.
fn clock(ahead: &Arc<Mutex<time::Duration>>) -> iconoclash::clock::Clock {
    let ahead = ahead.clone();
    Arc::new(move || OffsetDateTime::now_utc() + *ahead.lock().unwrap())
}

fn fresh_ip() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let [_, a, b, c] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    format!("10.{a}.{b}.{c}")
}

/// Somebody who calls the service from an address.
#[derive(Clone)]
pub(crate) struct Actor<'a> {
    pub(crate) app: &'a TestApp,
    pub(crate) token: Option<String>,
    pub(crate) ip: String,
}

/// An answer read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
}

impl Answer {
    async fn read(method: &Method, path: &str, response: http::Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        contract::check(method, path, parts.status, &parts.headers, &json);
        Self {
            status: parts.status,
            headers: parts.headers,
            json,
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Status and code of a problem document.
    pub(crate) fn problem(&self) -> (u16, &str) {
        (
            self.status.as_u16(),
            self.json["code"].as_str().unwrap_or_default(),
        )
    }
}

impl Actor<'_> {
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &[], Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.request(Method::POST, path, &[], body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.request(Method::PATCH, path, &[], body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.request(Method::DELETE, path, &[], Value::Null).await
    }

    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Answer {
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        self.raw(method, path, headers, body).await
    }

    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Answer {
        let request = self.prepare(&method, path, headers, body);
        let response = self.app.call(request).await;
        Answer::read(&method, path, response).await
    }

    pub(crate) fn prepare(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Request<Body> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("x-vercel-forwarded-for", &self.ip);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body).unwrap()
    }

    /// The user's id.
    pub(crate) async fn id(&self) -> String {
        self.get("/api/auth/session").await.json["user"]["id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// A new discussion's id.
    pub(crate) async fn discussion(&self) -> String {
        let begun = self
            .post(
                "/api/discussions",
                json!({"icons": ["socrates"], "topic": "Can virtue be taught?", "title": "Virtue"}),
            )
            .await;
        assert_eq!(begun.status, StatusCode::CREATED, "{}", begun.json);
        begun.json["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn send(&self, discussion: &str, content: &str) -> Answer {
        self.post(
            &format!("/api/discussions/{discussion}/messages"),
            json!({ "content": content }),
        )
        .await
    }

    pub(crate) async fn send_with_key(&self, discussion: &str, content: &str, key: &str) -> Answer {
        let path = format!("/api/discussions/{discussion}/messages");
        self.request(
            Method::POST,
            &path,
            &[("idempotency-key", key)],
            json!({ "content": content }),
        )
        .await
    }

    /// Sends a message and reads the reply as it comes.
    pub(crate) async fn stream(&self, discussion: &str, content: &str) -> Events {
        self.try_stream(discussion, content)
            .await
            .expect("a stream")
    }

    /// Sends a message and reads the reply as it comes, or the refusal.
    pub(crate) async fn try_stream(
        &self,
        discussion: &str,
        content: &str,
    ) -> Result<Events, Answer> {
        let path = format!("/api/discussions/{discussion}/messages");
        let body = Body::from(json!({ "content": content }).to_string());
        let request = self.prepare(
            &Method::POST,
            &path,
            &[("accept", "text/event-stream")],
            body,
        );
        Events::of(Method::POST, &path, self.app.call(request).await).await
    }

    /// Goes on with a reply's stream after the event of an id.
    pub(crate) async fn resume(&self, reply: &str, after: Option<u64>) -> Events {
        let after = after.map(|id| id.to_string());
        let headers: Vec<(&str, &str)> = after
            .iter()
            .map(|id| ("last-event-id", id.as_str()))
            .collect();
        let path = format!("/api/messages/{reply}/events");
        let request = self.prepare(&Method::GET, &path, &headers, Body::empty());
        Events::of(Method::GET, &path, self.app.call(request).await)
            .await
            .expect("a stream")
    }
}

/// A stream of events; dropping it is a client who leaves.
pub(crate) struct Events {
    pub(crate) headers: HeaderMap,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
}

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) data: Value,
}

impl Events {
    async fn of(
        method: Method,
        path: &str,
        response: http::Response<Body>,
    ) -> Result<Self, Answer> {
        if response.status() != StatusCode::OK {
            return Err(Answer::read(&method, path, response).await);
        }
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "text/event-stream"
        );
        let headers = response.headers().clone();
        let events = response
            .into_body()
            .into_data_stream()
            .eventsource()
            .map(|event| {
                let event = event.unwrap();
                Event {
                    id: event.id.parse().unwrap(),
                    data: serde_json::from_str(&event.data).unwrap(),
                    name: event.event,
                }
            });
        Ok(Self {
            headers,
            events: Box::pin(events),
        })
    }

    pub(crate) async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(Duration::from_secs(20), self.events.next())
            .await
            .expect("an event within 20 seconds")
    }

    pub(crate) async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}
