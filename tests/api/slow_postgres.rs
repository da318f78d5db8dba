//! A Postgres that takes what it is sent and says nothing, as where a pooler's servers are all taken.

use futures_util::future::join_all;
use iconoclash::api_keys;
use iconoclash_fakes::claude::{Behaviour, Script};
use std::time::Duration;
use tokio::time::timeout;

use crate::caches::Counted;

#[tokio::test]
async fn a_reply_is_told_on_while_postgres_is_silent_and_kept_when_it_speaks_again() {
    let Counted { app, postgres, .. } = &Counted::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude
        .next(Script::from(Behaviour::Hold { after: 2 }).with_text("One two three four."));
    let mut stream = ada.stream(&discussion, "Why?").await;
    for name in ["start", "delta", "delta"] {
        assert_eq!(stream.next().await.unwrap().name, name);
    }
    postgres.pause();
    let flights = postgres.round_trips().query;
    // Until the reply's row is being looked at.
    let looking = async {
        while postgres.round_trips().query == flights {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(5), looking)
        .await
        .expect("a look is due each second");
    app.claude.release();
    for word in ["three ", "four."] {
        // Well before the look is given up.
        let told = timeout(Duration::from_secs(3), stream.next())
            .await
            .expect("words wait for no row")
            .unwrap();
        assert_eq!(told.data["text"], word);
    }
    postgres.resume();
    let done = stream.rest().await.pop().unwrap();
    assert_eq!(
        (done.name.as_str(), &done.data["reply"]["content"]),
        ("done", &"One two three four.".into())
    );
}

#[tokio::test]
async fn whoever_waited_for_the_keys_in_vain_does_not_try_again() {
    let Counted { app, postgres, .. } = &Counted::start().await;
    postgres.pause();
    // One deadline and what abandoning takes, not one after the other.
    let all = join_all((0..8).map(|_| api_keys::fresh_pool(&app.app)));
    let ready = timeout(Duration::from_secs(20), all)
        .await
        .expect("they wait together");
    assert!(ready.iter().all(Result::is_ok));
    postgres.resume();
}
