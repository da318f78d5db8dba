//! A Postgres that accepts statements and does not answer, as when all servers of a pooler are busy.

use std::time::Duration;

use futures_util::future::join_all;
use iconoclash::api_keys;
use iconoclash_fakes::claude::{Behaviour, Script};
use tokio::time::timeout;

use crate::proxied::Proxied;

#[tokio::test]
async fn a_reply_goes_on_streaming_while_postgres_hangs_and_is_saved_afterwards() {
    let Proxied { app, postgres, .. } = &Proxied::start().await;
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
    let row_is_polled = async {
        while postgres.round_trips().query == flights {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(5), row_is_polled)
        .await
        .expect("the reply's row is polled every second");

    app.claude.release();
    for word in ["three ", "four."] {
        // Well before the poll times out.
        let event = timeout(Duration::from_secs(3), stream.next())
            .await
            .expect("text does not wait for the row")
            .unwrap();
        assert_eq!(event.data["text"], word);
    }

    postgres.resume();
    let done = stream.rest().await.pop().unwrap();
    assert_eq!(done.name, "done");
    assert_eq!(done.data["reply"]["content"], "One two three four.");
}

#[tokio::test]
async fn concurrent_requests_share_one_attempt_to_load_the_keys() {
    let Proxied { app, postgres, .. } = &Proxied::start().await;
    postgres.pause();

    // One deadline and one cancellation in all, not one after the other.
    let loads = join_all((0..8).map(|_| api_keys::fresh_pool(&app.app)));
    let pools = timeout(Duration::from_secs(20), loads)
        .await
        .expect("the requests wait together");
    assert!(pools.iter().all(Result::is_ok));

    postgres.resume();
}
