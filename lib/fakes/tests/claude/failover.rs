//! What a pool does about a provider that fails before the first event, and which attempts may be billed.

use std::time::Duration;

use claude::{ApiKey, Attempt, Deadlines, Pool, Route};
use iconoclash_fakes::claude::{Behaviour, Config, Failure, FakeClaude, Script};
use time::macros::datetime;
use uuid::Uuid;

use crate::{prompt, read};

const FALLBACK: &str = "claude-sonnet-5-5";

#[derive(Clone, Copy, Debug)]
enum Setup {
    OneKey,
    OneKeyAndFallback,
    TwoKeys,
    TwoOrganisations,
}
use Setup::{OneKey, OneKeyAndFallback, TwoKeys, TwoOrganisations};

const ALL: [Setup; 4] = [OneKey, OneKeyAndFallback, TwoKeys, TwoOrganisations];

impl Setup {
    async fn start(self) -> (FakeClaude, Pool) {
        let keys = ["sk-a", "sk-b"].map(str::to_owned).to_vec();
        let config = Config {
            keys,
            ..Config::default()
        };
        let fake = FakeClaude::start(config).await.unwrap();

        let organisation = match self {
            TwoKeys => Some("acme".to_owned()),
            _ => None,
        };
        let a = ApiKey::new("a", "sk-a").with_organisation(organisation.clone());
        let b = ApiKey::new("b", "sk-b").with_organisation(organisation);
        let keys = match self {
            OneKey | OneKeyAndFallback => vec![a],
            TwoKeys | TwoOrganisations => vec![a, b],
        };

        let deadlines = Deadlines {
            first_event: Duration::from_secs(2),
            ..Deadlines::default()
        };
        let http = || reqwest::Client::builder().no_proxy();
        let now = || datetime!(2026-11-24 12:00 UTC);
        let pool = Pool::new(http, fake.url(), deadlines, keys, now);
        (fake, pool)
    }

    fn route(self) -> Route<'static> {
        Route {
            conversation: Uuid::nil(),
            fallback: match self {
                OneKeyAndFallback => Some(FALLBACK),
                _ => None,
            },
        }
    }
}

/// The key and the model of each request.
fn calls(fake: &FakeClaude) -> Vec<(String, String)> {
    let requests = fake.requests().into_iter();
    let call = requests.map(|request| {
        let key = request.key().unwrap_or_default().to_owned();
        let model = request.body["model"].as_str().unwrap_or_default();
        (key, model.to_owned())
    });
    call.collect()
}

#[tokio::test]
async fn one_failure_before_the_first_event_never_reaches_the_caller() {
    let faults = [
        Script::from(Failure::Overloaded),
        Failure::Internal.into(),
        Failure::Timeout.into(),
        Behaviour::Drop.into(),
        Behaviour::CutHead.into(),
    ];

    for fault in &faults {
        for setup in ALL {
            let (fake, pool) = setup.start().await;
            fake.next(fault.clone());
            let reply = pool.ask(&prompt("Why?"), &setup.route()).await;
            let mut reply = reply.unwrap_or_else(|error| panic!("{fault:?} {setup:?}: {error:?}"));
            read(&mut reply).await.1.unwrap();

            let calls = calls(&fake);
            let [first, second] = &calls[..] else {
                panic!("{fault:?} {setup:?}: {calls:?}")
            };
            let is_other_key = first.0 != second.0;
            let expects_other_key = matches!(setup, TwoKeys | TwoOrganisations);
            assert_eq!(is_other_key, expects_other_key, "{fault:?} {setup:?}");
        }
    }
}

#[tokio::test]
async fn a_provider_that_goes_on_failing_is_asked_a_few_times_only() {
    let hint = |value: &str| Script::from(Failure::Overloaded).with_header("x-should-retry", value);
    let wait = Script::from(Failure::Overloaded).with_header("retry-after", "5");
    let overloaded = || Script::from(Failure::Overloaded);
    let internal = || Script::from(Failure::Internal);
    let dropped = || Script::from(Behaviour::Drop);

    for (fault, setup, expected_calls) in [
        (overloaded(), OneKey, 2),
        (overloaded(), OneKeyAndFallback, 2),
        (overloaded(), TwoKeys, 2),
        (overloaded(), TwoOrganisations, 2),
        // The provider knows better.
        (hint("false"), OneKey, 1),
        (hint("true"), OneKey, 2),
        (wait.clone(), OneKey, 1),
        (wait, TwoOrganisations, 1),
        (internal(), OneKey, 2),
        (internal(), OneKeyAndFallback, 4),
        (internal(), TwoKeys, 2),
        (dropped(), OneKey, 2),
        (dropped(), TwoOrganisations, 2),
    ] {
        let (fake, pool) = setup.start().await;
        fake.always(fault.clone());
        let error = pool.ask(&prompt("Why?"), &setup.route()).await;
        let error = error.err().unwrap();

        assert_eq!(calls(&fake).len(), expected_calls, "{fault:?} {setup:?}");
        assert_eq!(error.abandoned_attempts(), [], "{fault:?} {setup:?}");
        assert!(!error.may_be_billed(), "{fault:?} {setup:?}");
    }
}

#[tokio::test]
async fn a_retry_that_meets_another_failure_ends_the_search() {
    for (first, second) in [
        (Failure::Overloaded, Failure::Internal),
        (Failure::Internal, Failure::Overloaded),
    ] {
        let (fake, pool) = OneKey.start().await;
        fake.next(first);
        fake.next(second);
        assert!(pool.ask(&prompt("Why?"), &OneKey.route()).await.is_err());
        assert_eq!(calls(&fake).len(), 2, "{first:?} {second:?}");
    }
}

#[tokio::test]
async fn attempts_that_may_be_billed_are_reported_with_the_reply_and_with_the_error() {
    let attempt = |key: &(String, String)| Attempt {
        key_label: key.0.trim_start_matches("sk-").to_owned(),
        model: key.1.clone(),
    };

    for fault in [Behaviour::Hang, Behaviour::CutHead] {
        let (fake, pool) = TwoOrganisations.start().await;
        fake.next(fault.clone());
        let route = TwoOrganisations.route();
        let reply = pool.ask(&prompt("Why?"), &route).await.unwrap();
        let expected = [attempt(&calls(&fake)[0])];
        assert_eq!(reply.abandoned_attempts(), expected, "{fault:?}");
        assert_ne!(reply.key_label(), expected[0].key_label, "{fault:?}");

        let (fake, pool) = TwoOrganisations.start().await;
        fake.always(fault.clone());
        let error = pool.ask(&prompt("Why?"), &route).await.err().unwrap();
        let expected: Vec<Attempt> = calls(&fake).iter().map(attempt).collect();
        assert_eq!(expected.len(), 2, "{fault:?}");
        assert_eq!(error.abandoned_attempts(), expected, "{fault:?}");
        assert!(error.may_be_billed(), "{fault:?}");
    }

    // An earlier attempt counts although the last one is free.
    let (fake, pool) = TwoOrganisations.start().await;
    fake.next(Behaviour::Hang);
    fake.next(Failure::Auth);
    let route = TwoOrganisations.route();
    let error = pool.ask(&prompt("Why?"), &route).await.err().unwrap();
    assert_eq!(error.abandoned_attempts(), [attempt(&calls(&fake)[0])]);

    // What the provider refused is free.
    let (fake, pool) = TwoOrganisations.start().await;
    fake.next(Failure::Internal);
    let reply = pool.ask(&prompt("Why?"), &route).await.unwrap();
    assert_eq!(reply.abandoned_attempts(), []);
}
