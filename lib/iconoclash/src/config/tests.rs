use std::{cell::RefCell, collections::BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::*;

/// Variables that the platform or a test sets, never an operator.
const NOT_SETTINGS: &[&str] = &[
    "VERCEL_REGION",
    "AWS_REGION",
    "VERCEL_GIT_COMMIT_SHA",
    "ICONOCLASH_FREEZE_AT",
];

/// Settings of `iconoclash migrate`, which no function reads.
const MIGRATE_SETTINGS: &[&str] = &["DATABASE_URL_UNPOOLED"];

fn config(settings: &[(&str, &str)]) -> Config {
    Config::from_lookup(|name| {
        settings
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned())
    })
}

#[track_caller]
fn assert_problem<T: std::fmt::Debug>(setting: Setting<T>, expected: &str) {
    assert_eq!(setting.unwrap_err().to_string(), expected);
}

#[test]
fn reading_asks_for_exactly_the_listed_settings() {
    let asked = RefCell::new(BTreeSet::new());
    let ask = |name: &str, value: Option<&str>| {
        asked.borrow_mut().insert(name.to_owned());
        value.map(str::to_owned)
    };

    // Some settings are read only if another one is present, others only if it is absent.
    Config::from_lookup(|name| ask(name, None));
    Config::from_lookup(|name| ask(name, Some("1")));

    let listed = SETTINGS.iter().chain(NOT_SETTINGS);
    let listed: BTreeSet<_> = listed.map(|name| (*name).to_owned()).collect();
    assert_eq!(asked.into_inner(), listed);
}

#[test]
fn the_example_environment_names_exactly_the_listed_settings() {
    let example = include_str!("../../../../.env.example");
    let is_name_char = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let named: BTreeSet<_> = example
        .split(|c| !is_name_char(c))
        .filter(|word| word.contains('_'))
        .collect();

    let listed = SETTINGS.iter().chain(MIGRATE_SETTINGS).copied();
    assert_eq!(named, listed.collect());
}

#[test]
fn an_empty_environment_names_each_variable_that_is_missing() {
    let config = config(&[]);

    assert_problem(config.database(), "DATABASE_URL is not set");
    assert_problem(config.redis(), "UPSTASH_REDIS_REST_URL is not set");
    assert_problem(config.jwt_keys(), "JWT_KEYS is not set");
    assert_problem(config.stripe(), "STRIPE_SECRET_KEY is not set");
    assert_problem(config.mail(), "RESEND_API_KEY is not set");
    assert_eq!(config.quotas().unwrap().free, 10);

    // Claude keys may all be in the database.
    assert_eq!(config.claude().unwrap().keys.len(), 0);
}

#[test]
fn malformed_settings_name_the_problem_and_never_show_the_value() {
    let config = config(&[
        ("JWT_KEYS", "k1:c2hvcnQ="),
        ("QUOTA_FREE", "ten"),
        ("CLAUDE_MODEL_PRO", "gpt"),
        ("ANTHROPIC_API_KEYS", "a=secret-1,a=secret-2"),
    ]);

    assert_problem(config.jwt_keys(), "JWT_KEYS must hold 32 bytes in base64");
    assert_problem(config.quotas(), "QUOTA_FREE is not a whole number");
    assert_problem(config.claude(), "ANTHROPIC_API_KEYS names a twice");
    assert_problem(
        config.models(),
        "CLAUDE_MODEL_PRO names a model without a price",
    );
}

#[test]
fn a_rotation_of_the_credentials_key_lists_the_new_key_and_the_former_one() {
    let base64 = |byte: u8| BASE64.encode([byte; 32]);
    let keys = |list: &str| {
        let config = config(&[("CREDENTIALS_KEY", list)]);
        (
            config.credentials_key.map(|key| key.0[0]),
            config.former_credentials_key.map(|key| key.0[0]),
        )
    };

    let (current, former) = keys(&base64(1));
    assert_eq!((current.unwrap(), former), (1, None));

    let (current, former) = keys(&format!("{}, {}", base64(2), base64(1)));
    assert_eq!((current.unwrap(), former), (2, Some(1)));

    assert!(keys(&vec![base64(1); 3].join(",")).0.is_err());
    assert!(keys("short").0.is_err());
}

#[test]
fn vercels_own_names_for_redis_are_accepted_and_empty_values_are_absent() {
    let config = config(&[
        ("UPSTASH_REDIS_REST_URL", " "),
        ("KV_REST_API_URL", "https://kv"),
        ("KV_REST_API_TOKEN", "t"),
    ]);
    assert_eq!(config.redis().unwrap().url, "https://kv");
}

#[test]
fn debug_output_shows_no_secret() {
    let config = config(&[
        ("DATABASE_URL", "postgres://u:hunter2@h/d"),
        ("ANTHROPIC_API_KEYS", "a=hunter2"),
        ("CRON_SECRET", "hunter2"),
        ("UPSTASH_REDIS_REST_URL", "https://kv"),
        ("UPSTASH_REDIS_REST_TOKEN", "hunter2"),
        ("STRIPE_SECRET_KEY", "hunter2"),
        ("STRIPE_WEBHOOK_SECRET", "hunter2"),
        ("RESEND_API_KEY", "hunter2"),
        ("MAIL_FROM", "Iconoclash <hello@example.org>"),
        ("ALERT_WEBHOOK_URL", "https://chat.example.org/hunter2"),
    ]);
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}
