//! Mails about payments that failed.

use super::entitlements::StoredSubscription;
use crate::{
    app::App,
    notify::mail::{self, Mail},
};

/// Sends the mails of a change.
pub async fn send_mails(app: &App, mails: Vec<Mail>) {
    for mail in mails {
        mail::send(app, mail).await;
    }
}

/// One mail for each subscription that became past due with this write.
pub(super) fn mails(
    app: &App,
    email: &str,
    before: &[StoredSubscription],
    after: &[StoredSubscription],
) -> Vec<Mail> {
    let was_past_due = |id: &str| {
        before
            .iter()
            .any(|subscription| subscription.id == id && subscription.past_due_since.is_some())
    };

    after
        .iter()
        .filter(|subscription| !was_past_due(&subscription.id))
        .filter_map(|subscription| past_due_mail(app, email, subscription))
        .collect()
}

/// The mail about a subscription that is past due.
fn past_due_mail(app: &App, email: &str, subscription: &StoredSubscription) -> Option<Mail> {
    let since = subscription.past_due_since?;
    let grace_ends = subscription.grace_ends()?.date();

    Some(Mail {
        to: vec![email.to_owned()],
        subject: "Your payment for Iconoclash Pro failed".to_owned(),
        paragraphs: vec![
            "We could not collect the payment for your Iconoclash Pro subscription.".to_owned(),
            format!(
                "You keep Pro until {grace_ends}. Please update your card under “Manage \
                 subscription” before then. We will retry the payment automatically."
            ),
        ],
        link: Some((
            "Open Iconoclash".to_owned(),
            app.config().public_url.clone(),
        )),
        key: format!("past-due/{}/{}", subscription.id, since.unix_timestamp()),
    })
}
