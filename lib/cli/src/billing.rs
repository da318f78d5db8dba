//! `iconoclash billing sync`: fetches one customer's subscriptions from Stripe and stores them.

use std::time::Duration;

use iconoclash::{
    app::App,
    billing::{self, Change, StoredSubscription, Synced},
};

/// Longer than a request's deadline: no user waits.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a customer could not be synced, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The argument is not a customer's id.
    #[error(
        "{0:?} is not a Stripe customer: give the id that starts with cus_, from the customer's \
         page at Stripe"
    )]
    Malformed(String),
    /// No user has the customer.
    #[error(
        "no user has the customer {0}: check users.stripe_customer_id, or metadata.user_id on the \
         customer's page at Stripe. The customer may belong to another product of the same account"
    )]
    NotOurs(String),
    /// Stripe does not know the customer.
    #[error(
        "Stripe does not know the customer {0}: STRIPE_SECRET_KEY is of another account or of the \
         other mode (sk_test_ or sk_live_). Nothing was written"
    )]
    NotInStripe(String),
    /// A setting is missing, or a dependency cannot be reached.
    #[error(
        "{0}. Nothing was written. Add the missing setting, or try again later; repeating is safe"
    )]
    Unavailable(String),
}

/// Syncs a customer and reports, line by line, what changed.
pub async fn sync(
    app: &App,
    customer: &str,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<(), Failure> {
    if !customer.starts_with("cus_") || customer.len() < 5 {
        return Err(Failure::Malformed(customer.to_owned()));
    }

    match billing::sync(app, customer, None, DEADLINE).await {
        Ok(Synced::Written(change)) => {
            report(customer, &change, say);
            billing::send_mails(app, change.mails).await;
            Ok(())
        }
        Ok(Synced::Superseded(_) | Synced::Repeated) => {
            say(format!(
                "customer {customer}: Stripe's newest answer was stored by another process just now"
            ));
            Ok(())
        }
        Ok(Synced::Deleted) => {
            say(format!(
                "customer {customer} was deleted at Stripe and is removed here; the user's plan is free"
            ));
            Ok(())
        }
        Ok(Synced::NotOurs) => Err(Failure::NotOurs(customer.to_owned())),
        Ok(Synced::NotInStripe) => Err(Failure::NotInStripe(customer.to_owned())),
        Err(error) => Err(Failure::Unavailable(error.cause())),
    }
}

fn report(customer: &str, change: &Change, say: &mut (dyn FnMut(String) + Send)) {
    say(format!("customer {customer} is user {}", change.user));

    if change.after.is_empty() {
        say("subscriptions: none at Stripe".to_owned());
    }
    for subscription in &change.after {
        let before = find(&change.before, &subscription.id);
        say(subscription_line(subscription, before));
    }
    for removed in &change.before {
        if find(&change.after, &removed.id).is_none() {
            say(format!("{}: no longer at Stripe, removed", removed.id));
        }
    }

    let from = change.plan_before;
    let to = change.plan;
    say(if from == to {
        format!("plan: {to}, unchanged")
    } else {
        format!("plan: {from} → {to}")
    });
}

fn find<'a>(subscriptions: &'a [StoredSubscription], id: &str) -> Option<&'a StoredSubscription> {
    subscriptions
        .iter()
        .find(|subscription| subscription.id == id)
}

fn subscription_line(
    subscription: &StoredSubscription,
    before: Option<&StoredSubscription>,
) -> String {
    let verb = if subscription.cancel_at_period_end {
        "ends"
    } else {
        "renews"
    };
    let end = match subscription.current_period_end {
        Some(end) if subscription.is_live() => format!(", {verb} {}", end.date()),
        _ => String::new(),
    };

    let change = match before {
        None => " (new here)".to_owned(),
        Some(before) if before.status != subscription.status => format!(" (was {})", before.status),
        Some(before) if before != subscription => " (changed)".to_owned(),
        Some(_) => String::new(),
    };

    format!("{}: {}{end}{change}", subscription.id, subscription.status)
}
