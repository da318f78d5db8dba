//! Recovery from processes that died.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use iconoclash::crash_point::CrashTrigger;
use iconoclash_fakes::claude::Behaviour;
use tokio::sync::Notify;

use crate::harness::{Actor, TestApp};

/// A crash point of a message, and the state after recovery.
struct Crash {
    point: &'static str,
    /// Status of the reply; empty if there is none.
    status: &'static str,
    /// Whether the message counts towards the quota.
    is_counted: bool,
    /// Whether the cost is an estimate.
    is_estimated: bool,
}

const CRASHES: [Crash; 6] = [
    crash("admitted", "", false, false),
    crash("begun", "failed", false, true),
    crash("relaying", "failed", false, true),
    crash("streamed", "partial", true, true),
    crash("ended", "complete", true, false),
    crash("settled", "complete", true, false),
];

const fn crash(
    point: &'static str,
    status: &'static str,
    is_counted: bool,
    is_estimated: bool,
) -> Crash {
    Crash {
        point,
        status,
        is_counted,
        is_estimated,
    }
}

#[tokio::test]
async fn after_a_crash_at_any_point_reconciling_ends_the_reply() {
    for crash in CRASHES {
        let point = crash.point;
        let trap = Trap::new(point);
        let app =
            TestApp::adjusted(&[], |config| config.crash_trigger = Some(trap.trigger())).await;
        let ada = app.member("ada").await;
        let bob = app.member("bob").await;
        let warm = bob.discussion().await;
        assert_eq!(bob.send(&warm, "Warm up.").await.status, 201);

        let discussion = ada.discussion().await;
        crash_while_sending(&app, &ada, &discussion, &trap).await;

        // Past the lease, and past the time in which an admitted message is saved.
        app.advance(time::Duration::minutes(3));
        let report = app.cron("/api/cron/reconcile").await;
        let second_report = app.cron("/api/cron/reconcile").await;
        assert_eq!(second_report["replies_ended"], 0, "{point}: {report}");

        app.assert_counters_equal_the_ledger().await;
        assert_recovered(&app, &discussion, &crash).await;
        let session = ada.get("/api/auth/session").await;
        let used = u8::from(crash.is_counted);
        assert_eq!(session.json["quota"]["used"], used, "{point}");
        assert_eq!(ada.send(&discussion, "Again?").await.status, 201, "{point}");
    }
}

/// Stops a message at a crash point, once it is armed.
struct Trap {
    point: &'static str,
    is_armed: Arc<AtomicBool>,
    reached: Arc<Notify>,
}

impl Trap {
    fn new(point: &'static str) -> Self {
        Self {
            point,
            is_armed: Arc::default(),
            reached: Arc::default(),
        }
    }

    fn trigger(&self) -> CrashTrigger {
        let point = self.point;
        let is_armed = Arc::clone(&self.is_armed);
        let reached = Arc::clone(&self.reached);

        CrashTrigger::when(move |name| {
            let fires = name == point && is_armed.load(Ordering::Relaxed);
            if fires {
                reached.notify_one();
            }
            fires
        })
    }
}

async fn crash_while_sending(app: &TestApp, ada: &Actor<'_>, discussion: &str, trap: &Trap) {
    // This crash point is reached only after text is saved, so Claude waits for that.
    let needs_saved_text = trap.point == "streamed";
    if needs_saved_text {
        app.claude.next(Behaviour::Hold { after: 2 });
    }
    trap.is_armed.store(true, Ordering::Relaxed);

    let crashed = async {
        if needs_saved_text {
            let saved = format!(
                "select count(*) from messages
                where discussion_id = '{discussion}' and status = 'streaming' and content <> ''"
            );
            app.eventually(&saved, "1").await;
            app.claude.release();
        }
        trap.reached.notified().await;
    };
    // The producer never continues after the crash point, as if its process had died.
    tokio::select! {
        answer = ada.send(discussion, "Why?") => panic!("{} was passed: {answer:?}", trap.point),
        () = crashed => {}
    }
    trap.is_armed.store(false, Ordering::Relaxed);
}

async fn assert_recovered(app: &TestApp, discussion: &str, crash: &Crash) {
    let status = format!(
        "select coalesce(max(status), '') from messages
        where role = 'assistant' and discussion_id = '{discussion}'"
    );
    let status = app.value(&status).await;
    assert_eq!(status.trim_matches('"'), crash.status, "{}", crash.point);
    if crash.status.is_empty() {
        return;
    }

    let newest = "select outcome, counted, estimated, cost_microusd > 0 from usage_events
        order by created_at desc limit 1";
    let letter = |value: bool| if value { "t" } else { "f" };
    let counted = letter(crash.is_counted);
    let estimated = letter(crash.is_estimated);
    let expected = format!("{},{counted},{estimated},t", crash.status);
    assert_eq!(app.value(newest).await, expected, "{}", crash.point);
}

#[tokio::test]
async fn reconciling_does_not_wait_for_a_process_that_ends_the_same_reply_late() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let discussion = ada.discussion().await;
    app.claude.next(Behaviour::Hold { after: 1 });
    let mut stream = ada.stream(&discussion, "Why?").await;
    stream.first_delta().await;
    app.sql(
        "update messages set lease_expires_at = now() - interval '1 second'
        where status = 'streaming'",
    )
    .await;

    // Blocks the statement that writes the end, after it has locked the reply.
    let blocking =
        app.sql("begin; select 1 from subject_days for update; select pg_sleep(2.8); commit");
    let reconciled = async {
        let active = |condition: &str| {
            format!("select count(*) from pg_stat_activity where state = 'active' and {condition}")
        };
        let is_blocking = active("query like 'begin; select 1 from subject_days%'");
        app.eventually(&is_blocking, "1").await;

        app.claude.release();
        let is_blocked = active("wait_event_type = 'Lock' and query like '%with titled as%'");
        app.eventually(&is_blocked, "1").await;

        let report = app.cron("/api/cron/reconcile").await;
        assert_eq!(report["replies_ended"], 0, "it is being ended: {report}");
    };
    tokio::pin!(blocking);
    tokio::select! {
        () = reconciled => {}
        () = &mut blocking => panic!("reconciling waited for the end of a reply"),
    }

    blocking.await;
    assert_eq!(stream.rest().await.pop().unwrap().name, "done");
    app.assert_counters_equal_the_ledger().await;
}
