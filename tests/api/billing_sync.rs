//! `iconoclash billing sync`, for operators.

use iconoclash_cli::billing::{self, Failure};
use iconoclash_fakes::stripe::{Action, Fault};

use crate::harness::TestApp;

#[tokio::test]
async fn an_operator_syncs_a_customer_and_reads_what_changed() {
    let app = TestApp::start().await;
    let ada = app.member("ada").await;
    let checkout = ada.checkout().await;

    app.stripe.act(Action::Pay(&checkout));
    app.stripe.take_events();
    let customer = app.customer();
    let user = app.value("select id from users").await;

    let sync = async |customer: &str| {
        let mut lines = Vec::new();
        billing::sync(&app.app, customer, &mut |line| lines.push(line))
            .await
            .map(|()| lines)
    };
    let id = app.newest_subscription();
    let ends = (app.app.now() + time::Duration::days(30)).date();
    let who = format!("customer {customer} is user {user}");

    let first = sync(&customer).await.unwrap();
    assert_eq!(
        first,
        [
            who.clone(),
            format!("{id}: active, renews {ends} (new here)"),
            "plan: free → pro".into()
        ]
    );

    let again = sync(&customer).await.unwrap();
    assert_eq!(
        again,
        [
            who,
            format!("{id}: active, renews {ends}"),
            "plan: pro, unchanged".into()
        ]
    );

    app.stripe.act(Action::CancelAtPeriodEnd(&id));
    assert_eq!(
        sync(&customer).await.unwrap()[1],
        format!("{id}: active, ends {ends} (changed)")
    );

    app.stripe.act(Action::CancelNow(&id));

    let ended = sync(&customer).await.unwrap();
    assert_eq!(
        ended[1..],
        [
            format!("{id}: canceled (was active)"),
            "plan: pro → free".into()
        ]
    );

    assert!(matches!(sync("sub_1").await, Err(Failure::Malformed(_))));
    assert!(matches!(
        sync("cus_unlinked").await,
        Err(Failure::NotOurs(_))
    ));

    app.stripe.always(Some(Fault::Status(401)));
    let refused = sync(&customer).await.unwrap_err().to_string();
    assert!(
        refused.contains("401") && refused.contains("Nothing was written"),
        "{refused}"
    );

    app.stripe.always(None);
    app.sql("update stripe_customers set id = 'cus_unknown'")
        .await;
    assert!(matches!(
        sync("cus_unknown").await,
        Err(Failure::NotInStripe(_))
    ));

    app.sql(&format!("update stripe_customers set id = '{customer}'"))
        .await;
    app.stripe.act(Action::Delete(&customer));
    app.stripe.next(Fault::NoSuchCustomer);
    assert_eq!(
        sync(&customer).await.unwrap(),
        [format!(
            "customer {customer} was deleted at Stripe and is removed here; the user's plan is free"
        )]
    );
    assert!(matches!(sync(&customer).await, Err(Failure::NotOurs(_))));
}
