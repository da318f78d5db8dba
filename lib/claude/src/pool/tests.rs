use super::*;
use std::sync::atomic::{AtomicI64, Ordering};
use time::macros::datetime;

const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);
const MODEL: &str = "claude-haiku-5-5";

/// A pool whose time passes when it is told to.
struct Fixture {
    pool: Pool,
    ahead_ms: Arc<AtomicI64>,
}

impl Fixture {
    #[expect(
        clippy::disallowed_methods,
        reason = "a client that is never used for a request"
    )]
    fn of(keys: &[(&str, Option<&str>)]) -> Self {
        let keys = keys.iter().map(|(label, organisation)| {
            ApiKey::new(*label, format!("secret of {label}"))
                .within(organisation.map(str::to_owned))
        });
        let ahead_ms = Arc::new(AtomicI64::new(0));
        let clock = Arc::clone(&ahead_ms);
        let now = move || NOW + time::Duration::milliseconds(clock.load(Ordering::Relaxed));
        let pool = Pool::new(
            reqwest::Client::new(),
            String::new(),
            Deadlines::default(),
            keys.collect(),
            now,
        );
        Self { pool, ahead_ms }
    }

    fn advance(&self, by: Duration) {
        self.ahead_ms
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

    fn fails(&self, label: &str, error: &Error) {
        self.pool.went_wrong(&self.key(label), MODEL, error);
    }

    /// Who gets each of a hundred conversations.
    fn chosen(&self) -> Vec<String> {
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

    fn chosen_among(&self) -> Vec<String> {
        let mut labels = self.chosen();
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
    let it = Fixture::of(&THREE);
    let home = it.chosen();
    assert_eq!(home, it.chosen());
    assert_eq!(it.chosen_among(), ["a", "b", "c"]);
    it.fails("c", &limited(30));
    let away = it.chosen();
    assert!(home.iter().zip(&away).all(|(home, away)| if home == "c" {
        away != "c"
    } else {
        home == away
    }));
    assert_eq!(away, it.chosen(), "and is at home where it went");
    it.advance(Duration::from_secs(30));
    assert_eq!(it.chosen(), home);
}

#[test]
fn a_limit_is_the_organisations_and_the_latest_deadline_wins() {
    let it = Fixture::of(&THREE);
    it.fails("a", &limited(60));
    it.fails("b", &limited(20));
    assert_eq!(it.chosen_among(), ["c"]);
    it.advance(Duration::from_millis(59_999));
    assert_eq!(it.chosen_among(), ["c"]);
    it.advance(Duration::from_millis(1));
    assert_eq!(it.chosen_among(), ["a", "b", "c"]);
}

#[test]
fn a_refused_key_is_out_alone_and_comes_back_ever_later() {
    let it = Fixture::of(&THREE);
    let refused = || Error::Auth(Box::default());
    for wait in [60, 120, 240, 480, 960, 960] {
        it.fails("a", &refused());
        // One that was under way at the same time.
        it.fails("a", &refused());
        it.advance(Duration::from_secs(wait - 1));
        assert_eq!(it.chosen_among(), ["b", "c"], "{wait}");
        it.advance(Duration::from_secs(1));
        assert_eq!(it.chosen_among(), ["a", "b", "c"], "{wait}");
    }
    it.pool.went_well(&it.key("a"), Limits::default());
    it.fails("a", &refused());
    it.advance(Duration::from_secs(60));
    assert_eq!(it.chosen_among(), ["a", "b", "c"]);
}

#[test]
fn a_spent_organisation_is_out_until_the_first_of_the_month() {
    let it = Fixture::of(&THREE);
    it.fails("b", &Error::SpendLimit(Box::default()));
    assert_eq!(it.chosen_among(), ["c"]);
    it.advance((datetime!(2026-11-30 23:59:59 UTC) - NOW).unsigned_abs());
    assert_eq!(it.chosen_among(), ["c"]);
    it.advance(Duration::from_secs(1));
    assert_eq!(it.chosen_among(), ["a", "b", "c"]);
    assert_eq!(
        next_month(datetime!(2026-12-31 23:00 -02:00)),
        datetime!(2027-02-01 0:00 UTC)
    );
}

#[test]
fn an_overloaded_model_is_left_alone_with_every_key_if_that_is_asked_for_and_else_comes_last() {
    let it = Fixture::of(&THREE);
    let overloaded = |retry_after| Error::Overloaded {
        retry_after,
        detail: Box::default(),
    };
    it.fails("a", &overloaded(None));
    let models = |own_and_other: [&'static str; 2]| it.pool.models(own_and_other.into_iter());
    assert_eq!(models([MODEL, "another"]), ["another", MODEL]);
    it.fails("a", &overloaded(Some(Duration::from_secs(20))));
    assert_eq!(models([MODEL, "another"]), ["another"]);
    assert_eq!(it.pool.wait([MODEL]), Some(Duration::from_secs(20)));
    assert_eq!(it.pool.wait([MODEL, "claude-sonnet-5-5"]), None);
    assert_eq!(it.chosen_among(), ["a", "b", "c"], "no key is to blame");
    it.advance(Duration::from_secs(20));
    assert_eq!(models([MODEL, "another"]), [MODEL, "another"]);
}

#[test]
fn a_key_that_failed_comes_last_but_is_not_out() {
    let it = Fixture::of(&[("a", None), ("b", None)]);
    it.fails(
        "a",
        &Error::Timeout {
            phase: crate::Phase::FirstEvent,
        },
    );
    assert_eq!(it.chosen_among(), ["b"]);
    it.fails("b", &limited(60));
    assert_eq!(it.chosen_among(), ["a"]);
    it.advance(SUSPECT);
    it.fails(
        "a",
        &Error::Provider {
            retry_after: Some(Duration::from_secs(5)),
            detail: Box::default(),
        },
    );
    assert_eq!(it.chosen_among(), [""]);
    assert_eq!(
        it.pool.wait([MODEL]),
        Some(Duration::from_secs(5)),
        "until the first of them may be asked"
    );
}

#[test]
fn conversations_leave_a_key_that_has_next_to_nothing_left_for_the_ones_with_room() {
    let it = Fixture::of(&[("a", None), ("b", None), ("c", None)]);
    it.pool.went_well(&it.key("a"), limits(300));
    assert_eq!(it.chosen_among(), ["a", "b", "c"], "enough is enough");
    it.pool.went_well(&it.key("a"), limits(200));
    assert_eq!(it.chosen_among(), ["b", "c"]);
    it.pool.went_well(&it.key("b"), limits(100));
    it.pool.went_well(&it.key("c"), limits(90));
    assert_eq!(
        it.chosen_among(),
        ["a", "b"],
        "at least half of what the best has"
    );
    (0..200).for_each(|_| it.pool.begins(&it.key("a"), 10));
    assert_eq!(it.chosen_among(), ["b", "c"], "calls under way count");
    it.advance(Duration::from_secs(60));
    assert_eq!(it.chosen_among(), ["a", "b", "c"], "limits refill");
}

#[test]
fn keys_of_one_organisation_share_what_is_left() {
    let it = Fixture::of(&THREE);
    it.pool.went_well(&it.key("a"), limits(10));
    assert_eq!(it.chosen_among(), ["c"]);
}

#[test]
fn deadlines_that_others_know_are_kept_here_and_those_learned_here_are_told() {
    let it = Fixture::of(&THREE);
    it.fails("c", &limited(30));
    let told = it.pool.untold();
    assert_eq!(told.len(), 1);
    let acme = ("o:acme".to_owned(), epoch_ms(NOW) + 60_000);
    it.pool.follow(&told, vec![told[0].clone(), acme]);
    assert_eq!(
        (it.chosen_among(), it.pool.untold()),
        (vec![String::new()], vec![])
    );
    assert_eq!(
        it.pool.health()[0],
        (
            "a".to_owned(),
            KeyHealth::Cooling(NOW + time::Duration::MINUTE)
        )
    );
    // An operator has lifted it.
    it.pool.follow(&[], vec![]);
    assert_eq!(it.chosen_among(), ["a", "b", "c"]);
}

#[test]
fn over_a_thousand_sends_a_limited_organisation_is_not_asked_before_its_time_and_nobody_goes_without()
 {
    let it = Fixture::of(&THREE);
    it.fails("a", &limited(100));
    for send in 0..1_000_u64 {
        let key = it
            .pool
            .choose(Uuid::from_u128(send.into()), &Tried::default())
            .unwrap();
        assert_eq!(key.organisation.is_some(), key.label != "c");
        assert!(
            key.label == "c" || send * 150 >= 100_000,
            "send {send} went to {}",
            key.label
        );
        it.pool.went_well(&key, Limits::default());
        it.advance(Duration::from_millis(150));
    }
    assert_eq!(it.chosen_among(), ["a", "b", "c"]);
}

#[test]
fn a_new_set_of_keys_keeps_what_is_known_of_those_that_stay() {
    let it = Fixture::of(&THREE);
    it.fails("a", &Error::Auth(Box::default()));
    it.pool.replace(vec![
        ApiKey::new("a", "secret of a"),
        ApiKey::new("c", "secret of c"),
    ]);
    assert_eq!(it.chosen_among(), ["c"]);
    it.pool.replace(vec![
        ApiKey::new("a", "another secret"),
        ApiKey::new("c", "secret of c"),
    ]);
    assert_eq!(it.chosen_among(), ["a", "c"]);
    it.pool.replace(vec![]);
    assert_eq!(it.pool.likely_key(Uuid::nil()), "none");
}
