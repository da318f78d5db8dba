use super::state::SUSPECT_TIME;
use super::*;
use crate::Limit;
use std::sync::atomic::{AtomicI64, Ordering};
use time::macros::datetime;

const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);
const MODEL: &str = "claude-haiku-5-5";

/// A pool whose clock the test moves.
struct TestPool {
    pool: Pool,
    offset_ms: Arc<AtomicI64>,
}

impl TestPool {
    #[expect(
        clippy::disallowed_methods,
        reason = "a client that is never used for a request"
    )]
    fn new(keys: &[(&str, Option<&str>)]) -> Self {
        let keys = keys.iter().map(|(label, organisation)| {
            ApiKey::new(*label, format!("secret of {label}"))
                .with_organisation(organisation.map(str::to_owned))
        });
        let offset_ms = Arc::new(AtomicI64::new(0));
        let clock = Arc::clone(&offset_ms);
        let now = move || NOW + time::Duration::milliseconds(clock.load(Ordering::Relaxed));
        let pool = Pool::new(
            reqwest::Client::builder,
            String::new(),
            Deadlines::default(),
            keys.collect(),
            now,
        );
        Self { pool, offset_ms }
    }

    fn advance(&self, by: Duration) {
        self.offset_ms
            .fetch_add(i64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
    }

    fn key(&self, label: &str) -> Arc<ApiKey> {
        Arc::clone(
            self.pool
                .state()
                .keys
                .iter()
                .find(|key| key.label == label)
                .unwrap(),
        )
    }

    fn fail(&self, label: &str, error: &Error) {
        self.pool.record_failure(&self.key(label), MODEL, error);
    }

    /// The key of each of a hundred conversations.
    fn chosen_keys(&self) -> Vec<String> {
        let choose = |conversation| {
            self.pool
                .choose(Uuid::from_u128(conversation), &Tried::default())
        };
        (0..100)
            .map(|conversation| {
                choose(conversation).map_or_else(String::new, |key| key.label.clone())
            })
            .collect()
    }

    fn distinct_keys(&self) -> Vec<String> {
        let mut labels = self.chosen_keys();
        labels.sort();
        labels.dedup();
        labels
    }
}

fn limited(seconds: u64) -> Error {
    Error::RateLimited {
        retry_after: Some(Duration::from_secs(seconds)),
        detail: Box::default(),
    }
}

fn limits(remaining: u64) -> Limits {
    let reset = Some(NOW + time::Duration::MINUTE);
    Limits {
        requests: Some(Limit {
            limit: 1000,
            remaining,
            reset,
        }),
        ..Limits::default()
    }
}

const THREE: [(&str, Option<&str>); 3] = [("a", Some("acme")), ("b", Some("acme")), ("c", None)];

#[test]
fn a_conversation_keeps_its_key_and_returns_to_it() {
    let test = TestPool::new(&THREE);
    let home = test.chosen_keys();
    assert_eq!(home, test.chosen_keys());
    assert_eq!(test.distinct_keys(), ["a", "b", "c"]);
    test.fail("c", &limited(30));
    let away = test.chosen_keys();
    assert!(home.iter().zip(&away).all(|(home, away)| if home == "c" {
        away != "c"
    } else {
        home == away
    }));
    assert_eq!(away, test.chosen_keys(), "and stays where it went");
    test.advance(Duration::from_secs(30));
    assert_eq!(test.chosen_keys(), home);
}

#[test]
fn a_rate_limit_concerns_the_organisation_and_the_latest_deadline_wins() {
    let test = TestPool::new(&THREE);
    test.fail("a", &limited(60));
    test.fail("b", &limited(20));
    assert_eq!(test.distinct_keys(), ["c"]);
    test.advance(Duration::from_millis(59_999));
    assert_eq!(test.distinct_keys(), ["c"]);
    test.advance(Duration::from_millis(1));
    assert_eq!(test.distinct_keys(), ["a", "b", "c"]);
}

#[test]
fn a_refused_key_alone_is_out_of_rotation_longer_each_time() {
    let test = TestPool::new(&THREE);
    let refused = || Error::Auth(Box::default());
    for wait in [60, 120, 240, 480, 960, 960] {
        test.fail("a", &refused());
        // A call that ran at the same time.
        test.fail("a", &refused());
        test.advance(Duration::from_secs(wait - 1));
        assert_eq!(test.distinct_keys(), ["b", "c"], "{wait}");
        test.advance(Duration::from_secs(1));
        assert_eq!(test.distinct_keys(), ["a", "b", "c"], "{wait}");
    }
    test.pool.record_success(&test.key("a"), Limits::default());
    test.fail("a", &refused());
    test.advance(Duration::from_secs(60));
    assert_eq!(test.distinct_keys(), ["a", "b", "c"]);
}

#[test]
fn an_organisation_at_its_spend_limit_is_out_until_next_month() {
    let test = TestPool::new(&THREE);
    test.fail("b", &Error::SpendLimit(Box::default()));
    assert_eq!(test.distinct_keys(), ["c"]);
    test.advance((datetime!(2026-11-30 23:59:59 UTC) - NOW).unsigned_abs());
    assert_eq!(test.distinct_keys(), ["c"]);
    test.advance(Duration::from_secs(1));
    assert_eq!(test.distinct_keys(), ["a", "b", "c"]);
}

#[test]
fn an_overloaded_model_cools_down_if_the_provider_asks_and_comes_last_otherwise() {
    let test = TestPool::new(&THREE);
    let overloaded = |retry_after| Error::Overloaded {
        retry_after,
        detail: Box::default(),
    };
    test.fail("a", &overloaded(None));
    let models =
        |own_and_other: [&'static str; 2]| test.pool.available_models(own_and_other.into_iter());
    assert_eq!(models([MODEL, "another"]), ["another", MODEL]);
    test.fail("a", &overloaded(Some(Duration::from_secs(20))));
    assert_eq!(models([MODEL, "another"]), ["another"]);
    assert_eq!(
        test.pool.time_until_available([MODEL]),
        Some(Duration::from_secs(20))
    );
    assert_eq!(
        test.pool.time_until_available([MODEL, "claude-sonnet-5-5"]),
        None
    );
    assert_eq!(test.distinct_keys(), ["a", "b", "c"], "no key is to blame");
    test.advance(Duration::from_secs(20));
    assert_eq!(models([MODEL, "another"]), [MODEL, "another"]);
}

#[test]
fn a_key_that_failed_comes_last_but_stays_in_rotation() {
    let test = TestPool::new(&[("a", None), ("b", None)]);
    test.fail(
        "a",
        &Error::Timeout {
            phase: crate::Phase::FirstEvent,
        },
    );
    assert_eq!(test.distinct_keys(), ["b"]);
    test.fail("b", &limited(60));
    assert_eq!(test.distinct_keys(), ["a"]);
    test.advance(SUSPECT_TIME);
    test.fail(
        "a",
        &Error::Provider {
            retry_after: Some(Duration::from_secs(5)),
            detail: Box::default(),
        },
    );
    assert_eq!(test.distinct_keys(), [""]);
    assert_eq!(
        test.pool.time_until_available([MODEL]),
        Some(Duration::from_secs(5)),
        "until the first of them is available"
    );
}

#[test]
fn conversations_leave_a_key_with_little_capacity_for_those_with_more() {
    let test = TestPool::new(&[("a", None), ("b", None), ("c", None)]);
    test.pool.record_success(&test.key("a"), limits(300));
    assert_eq!(test.distinct_keys(), ["a", "b", "c"], "enough is enough");
    test.pool.record_success(&test.key("a"), limits(200));
    assert_eq!(test.distinct_keys(), ["b", "c"]);
    test.pool.record_success(&test.key("b"), limits(100));
    test.pool.record_success(&test.key("c"), limits(90));
    assert_eq!(
        test.distinct_keys(),
        ["a", "b"],
        "at least half of the largest capacity"
    );
    (0..200).for_each(|_| test.pool.reserve_capacity(&test.key("a"), 10));
    assert_eq!(test.distinct_keys(), ["b", "c"], "running calls count");
    test.advance(Duration::from_secs(60));
    assert_eq!(test.distinct_keys(), ["a", "b", "c"], "limits refill");
}

#[test]
fn keys_of_one_organisation_share_its_capacity() {
    let test = TestPool::new(&THREE);
    test.pool.record_success(&test.key("a"), limits(10));
    assert_eq!(test.distinct_keys(), ["c"]);
}

#[test]
fn cooldowns_are_exchanged_with_the_other_instances() {
    let test = TestPool::new(&THREE);
    test.fail("c", &limited(30));
    let published = test.pool.unpublished();
    assert_eq!(published.len(), 1);

    let acme = Cooldown {
        key: "o:acme".to_owned(),
        until_ms: epoch_ms(NOW) + 60_000,
    };
    test.pool
        .merge(&published, vec![published[0].clone(), acme]);
    assert_eq!(test.distinct_keys(), [""]);
    assert_eq!(test.pool.unpublished(), []);
    let cooling = KeyHealth::Cooling(NOW + time::Duration::MINUTE);
    assert_eq!(test.pool.health()[0], ("a".to_owned(), cooling));

    // An operator has lifted it.
    test.pool.merge(&[], vec![]);
    assert_eq!(test.distinct_keys(), ["a", "b", "c"]);
}

#[test]
fn a_thousand_sends_are_answered_without_asking_a_limited_organisation_early() {
    let test = TestPool::new(&THREE);
    test.fail("a", &limited(100));
    for send in 0..1_000_u64 {
        let key = test
            .pool
            .choose(Uuid::from_u128(send.into()), &Tried::default())
            .unwrap();
        assert_eq!(key.organisation.is_some(), key.label != "c");
        assert!(
            key.label == "c" || send * 150 >= 100_000,
            "send {send} went to {}",
            key.label
        );
        test.pool.record_success(&key, Limits::default());
        test.advance(Duration::from_millis(150));
    }
    assert_eq!(test.distinct_keys(), ["a", "b", "c"]);
}

#[test]
fn replacing_the_keys_keeps_what_is_known_about_those_that_stay() {
    let test = TestPool::new(&THREE);
    test.fail("a", &Error::Auth(Box::default()));
    test.pool.replace_keys(vec![
        ApiKey::new("a", "secret of a"),
        ApiKey::new("c", "secret of c"),
    ]);
    assert_eq!(test.distinct_keys(), ["c"]);
    test.pool.replace_keys(vec![
        ApiKey::new("a", "another secret"),
        ApiKey::new("c", "secret of c"),
    ]);
    assert_eq!(test.distinct_keys(), ["a", "c"]);
    test.pool.replace_keys(vec![]);
    assert_eq!(test.pool.likely_key(Uuid::nil()), "none");
}
