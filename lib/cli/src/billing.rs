//! `iconoclash billing sync`: one customer's subscriptions as Stripe has them now, written and told.

use std::time::Duration;

use iconoclash::{
    app::App,
    billing::{self, Held, Synced},
};

/// Nobody waits for a page here.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a customer could not be synced; the text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Not an id of a customer.
    #[error(
        "{0:?} is no customer of Stripe: give the id that begins with cus_, from the customer's page at Stripe"
    )]
    Malformed(String),
    /// Nobody has it.
    #[error(
        "no user has the customer {0}: look at users.stripe_customer_id, or at metadata.user_id of the customer's page \
         at Stripe. A customer that another product of the same account made is not ours to write"
    )]
    Foreign(String),
    /// Stripe does not know it.
    #[error(
        "Stripe does not know the customer {0}: STRIPE_SECRET_KEY is of another account or of the other mode (sk_test_ \
         or sk_live_). Nothing was written"
    )]
    Missing(String),
    /// A setting is missing, or something did not answer.
    #[error(
        "{0}. Nothing was written; set what is missing or try again when it answers, it is safe to repeat"
    )]
    Unavailable(String),
}

/// Asks Stripe about a customer, writes the answer and says, line by line, what changed.
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
            say(format!("customer {customer} is user {}", change.user));
            if change.after.is_empty() {
                say("subscriptions: none at Stripe".to_owned());
            }
            for held in &change.after {
                say(line(
                    held,
                    change.before.iter().find(|before| before.id == held.id),
                ));
            }
            for gone in change
                .before
                .iter()
                .filter(|before| change.after.iter().all(|held| held.id != before.id))
            {
                say(format!("{}: not at Stripe any more, removed", gone.id));
            }
            let (from, to) = (change.plan_before.as_str(), change.plan.as_str());
            say(if from == to {
                format!("plan: {to}, unchanged")
            } else {
                format!("plan: {from} → {to}")
            });
            billing::tell(app, change.mails).await;
            Ok(())
        }
        Ok(Synced::Covered(_) | Synced::Repeated) => {
            say(format!(
                "customer {customer}: somebody else wrote Stripe's newest answer at this moment"
            ));
            Ok(())
        }
        Ok(Synced::Foreign) => Err(Failure::Foreign(customer.to_owned())),
        Ok(Synced::Missing) => Err(Failure::Missing(customer.to_owned())),
        Err(error) => Err(Failure::Unavailable(error.cause())),
    }
}

fn line(held: &Held, before: Option<&Held>) -> String {
    let ends = held.current_period_end.map(|end| {
        let verb = if held.cancel_at_period_end {
            "ends"
        } else {
            "renews"
        };
        format!(", {verb} {}", end.date())
    });
    let change = match before {
        None => " (new here)".to_owned(),
        Some(before) if before.status != held.status => format!(" (was {})", before.status),
        Some(before) if before != held => " (changed)".to_owned(),
        Some(_) => String::new(),
    };
    let ends = ends.filter(|_| held.is_live()).unwrap_or_default();
    format!("{}: {}{ends}{change}", held.id, held.status)
}
