//! Keys that operators store: rotation, draining and revoking, tests, and the rotation of `CREDENTIALS_KEY`.

use claude::Deadlines;
use futures_util::future::join_all;
use iconoclash::{
    api_keys::store::{self, KeyState, KeyTest, NewKey},
    spending::reconcile,
};
use iconoclash_fakes::claude::{Behaviour, Failure, Only, Script};
use secrecy::SecretString;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{
    harness::TestApp,
    keys::{
        Conversation, assert_every_reply_is_complete, assert_settled, conversation, conversations,
        eventually_healthy_as, requested_keys, second_instance, send_in_all, with_keys,
    },
};

/// Within a minute every instance uses a changed key list.
const PROPAGATION: time::Duration = time::Duration::seconds(50);

fn new_key(label: &str) -> NewKey {
    NewKey {
        label: label.to_owned(),
        organisation: None,
        weight: 1,
        secret: SecretString::from(format!("sk-{label}")),
    }
}

async fn add_key(app: &TestApp, label: &str) {
    store::add(&app.app, &new_key(label)).await.unwrap();
}

async fn wait_for_request_with(app: &TestApp, key: &str) {
    for count in 1.. {
        let requests = app.claude.wait_for_requests(count).await;
        if requests.iter().any(|request| request.key() == Some(key)) {
            return;
        }
    }
}

#[tokio::test]
async fn a_key_rotation_under_fifty_senders_fails_no_message() {
    let app = with_keys("a@acme=sk-a", &[], Deadlines::default()).await;
    let conversations = conversations(&app, 50).await;

    let is_over = AtomicBool::new(false);
    let send_until_over = async |conversation: &Conversation<'_>| {
        while !is_over.load(Ordering::Relaxed) {
            conversation.send_successfully().await;
        }
    };
    let rotate = async {
        wait_for_request_with(&app, "sk-a").await;
        add_key(&app, "b").await;
        app.advance(PROPAGATION);

        wait_for_request_with(&app, "sk-b").await;
        add_key(&app, "c").await;
        store::drain(&app.app, "b").await.unwrap();
        app.advance(PROPAGATION);

        wait_for_request_with(&app, "sk-c").await;
        store::revoke(&app.app, "b").await.unwrap();
        app.advance(PROPAGATION);
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all(conversations.iter().map(send_until_over)), rotate);

    send_in_all(&conversations).await;
    let keys = requested_keys(&app);
    let last_keys = &keys[keys.len() - 50..];
    assert!(last_keys.iter().all(|key| key != "sk-b"), "{last_keys:?}");
    assert_every_reply_is_complete(&app).await;

    // With fifty senders a busy Redis may miss a settlement. The cron makes up for it.
    app.background.idle().await;
    reconcile::run(&app.app).await.unwrap();
    assert_settled(&app).await;
}

#[tokio::test]
async fn a_reply_ends_although_its_key_is_drained_and_revoked() {
    let app = with_keys("", &[], Deadlines::default()).await;
    let first = conversation(&app).await;
    let without_key = first.send().await;
    assert_eq!(without_key.problem(), (503, "unavailable"));

    add_key(&app, "b").await;
    app.advance(time::Duration::seconds(60));
    app.claude
        .next(Script::from(Behaviour::Hold { after: 1 }).with_text("One. Two. Three."));
    let mut stream = first.owner.stream(&first.discussion, "Why?").await;
    stream.first_delta().await;

    add_key(&app, "c").await;
    store::drain(&app.app, "b").await.unwrap();
    app.advance(PROPAGATION);
    let second = first.owner.discussion().await;
    assert_eq!(first.owner.send(&second, "Why?").await.status, 201);

    store::revoke(&app.app, "b").await.unwrap();
    app.claude.release();
    let events = stream.rest().await;
    let reply = &events.last().unwrap().data["reply"];
    assert_eq!(reply["content"], "One. Two. Three.");

    assert_eq!(requested_keys(&app), ["sk-b", "sk-c"]);
    let ledger = "select string_agg(key_label || ' ' || outcome, ', ' order by created_at) \
                  from usage_events";
    assert_eq!(
        app.value(ledger).await,
        "\"none failed, b complete, c complete\""
    );
}

#[tokio::test]
async fn without_the_database_the_last_known_keys_stay_in_use() {
    let app = with_keys("a=sk-a", &[], Deadlines::default()).await;
    add_key(&app, "b").await;
    let both = json!({"a": "ok", "b": "ok"});
    let health = app.anonymous().health().await.json;
    assert_eq!(health["claude_keys"], both);

    app.sql("alter table claude_keys rename to claude_keys_away")
        .await;
    app.advance(time::Duration::seconds(90));
    let health = app.anonymous().health().await.json;
    assert_eq!(health["claude_keys"], both);
}

#[tokio::test]
async fn an_invalid_key_is_rejected_with_the_name_of_the_field() {
    let app = with_keys("a@acme=sk-a", &[], Deadlines::default()).await;
    let key = new_key("long");
    store::add(&app.app, &key).await.unwrap();

    let again = store::add(&app.app, &key).await.unwrap_err();
    assert_eq!(again.problem().code, "label_taken");

    let key = new_key("x");
    let bad_label = NewKey {
        label: "no spaces".to_owned(),
        ..key.clone()
    };
    let bad_organisation = NewKey {
        organisation: Some(String::new()),
        ..key.clone()
    };
    let bad_weight = NewKey {
        weight: 0,
        ..key.clone()
    };
    let bad_secret = NewKey {
        secret: SecretString::from(" two words "),
        ..key.clone()
    };
    for (invalid, field) in [
        (bad_label, "label"),
        (bad_organisation, "organisation"),
        (bad_weight, "weight"),
        (bad_secret, "key"),
    ] {
        let refused = store::add(&app.app, &invalid).await.unwrap_err();
        let problem = refused.problem();
        assert!(problem.errors.contains_key(field), "{field}: {refused:?}");
    }
}

#[tokio::test]
async fn operators_see_the_health_of_keys_and_never_a_secret() {
    let app = with_keys("a@acme=sk-a", &[], Deadlines::default()).await;
    let secret = "sk-ant-api03-0123456789-WXYZ";
    let long = NewKey {
        organisation: Some("acme".to_owned()),
        secret: SecretString::from(secret),
        ..new_key("long")
    };
    store::add(&app.app, &long).await.unwrap();
    let unknown = store::test(&app.app, "long").await.unwrap();
    assert!(matches!(unknown, KeyTest::Fails(_)), "{unknown:?}");

    // The provider refuses the key, and messages are answered with the other one.
    app.claude
        .accept_keys(vec!["sk-a".to_owned(), secret.to_owned()]);
    app.claude.always_for(Only::key(secret), Failure::Billing);
    for conversation in conversations(&app, 16).await {
        conversation.send_successfully().await;
    }
    app.advance(time::Duration::seconds(20));
    assert_eq!(app.anonymous().health().await.status, 200);

    let listed = store::list(&app.app).await.unwrap();
    let [key] = listed.as_slice() else {
        panic!("{listed:?}")
    };
    assert_eq!(key.hint, "WXYZ");
    assert_eq!(key.state, KeyState::Active);
    assert!(key.opens);
    assert!(key.cooling_until.is_some(), "{key:?}");
    assert!(key.last_ok_at.is_none(), "{key:?}");
    let last_error = key.last_error.as_deref().unwrap();
    assert!(last_error.contains("402 billing_error"), "{last_error}");

    assert!(!format!("{listed:?}").contains("0123456789"));
    let readable = "select count(*) from claude_keys where sealed::text like '%sk-ant%'";
    assert_eq!(app.value(readable).await, "0");

    // A successful test ends the cooldown for all instances.
    app.claude.clear();
    let paid = store::test(&app.app, "long").await.unwrap();
    assert!(matches!(paid, KeyTest::Works), "{paid:?}");
    let booked = "select count(*) from usage_events
        where kind = 'key_test' and outcome = 'complete' and not estimated and cost_microusd > 0";
    assert_eq!(app.value(booked).await, "1");
    app.advance(time::Duration::seconds(11));
    eventually_healthy_as(&app, "long", "ok").await;
    let listed = store::list(&app.app).await.unwrap();
    assert!(listed[0].last_ok_at.is_some());
}

#[tokio::test]
async fn a_revoked_key_is_erased_and_its_label_is_free() {
    let app = with_keys("a=sk-a", &[], Deadlines::default()).await;
    add_key(&app, "b").await;
    assert!(store::drain(&app.app, "unknown").await.is_err());

    store::revoke(&app.app, "b").await.unwrap();
    let row = "select state, sealed is null from claude_keys";
    assert_eq!(app.value(row).await, "revoked,t");
    assert!(store::resume(&app.app, "b").await.is_err());
    add_key(&app, "b").await;
}

#[tokio::test]
async fn credentials_key_is_rotated_without_losing_a_stored_key() {
    let app = with_keys("a=sk-a", &[], Deadlines::default()).await;
    add_key(&app, "b").await;

    let old = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    let new = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
    let both = format!("{new},{old}");
    let with_both = second_instance(&app, "a=sk-a", &[("CREDENTIALS_KEY", &both)]).await;
    let with_new = second_instance(&app, "a=sk-a", &[("CREDENTIALS_KEY", new)]).await;

    let unreadable = store::reseal(&with_new.app).await.unwrap().unreadable;
    assert_eq!(unreadable, ["b"]);
    let health = with_new.anonymous().health().await.json;
    assert_eq!(health["claude_keys"], json!({"a": "ok"}));
    let health = with_both.anonymous().health().await.json;
    assert_eq!(health["claude_keys"], json!({"a": "ok", "b": "ok"}));

    let resealed = store::reseal(&with_both.app).await.unwrap();
    assert_eq!(resealed.changed, 1);
    assert_eq!(resealed.current, 0);
    let resealed_again = store::reseal(&with_both.app).await.unwrap();
    assert_eq!(resealed_again.current, 1);

    with_new.advance(time::Duration::seconds(60));
    let health = with_new.anonymous().health().await.json;
    assert_eq!(health["claude_keys"], json!({"a": "ok", "b": "ok"}));
}
