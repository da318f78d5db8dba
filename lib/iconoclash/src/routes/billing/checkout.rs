//! Opens Stripe's payment page. A customer never has two open pages, because both could be paid.

use axum::{Json, extract::State};
use pooled_postgres::sql;
use stripe::{CheckoutSession, Stripe};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{STRIPE_DEADLINE, StripePage, customer_of, email};
use crate::{
    app::App,
    billing::{self, StoredSubscription, Synced},
    http::{
        error::{Error, Problem, Result},
        serve::Background,
    },
    identity::{
        auth::User,
        rate_limit::{self, Limit, LimitSubject},
    },
    spending::plan::Plan,
};

/// An open page that closes sooner than this is replaced by a new one.
const MIN_PAGE_LIFE_SECS: i64 = 30 * 60;

/// Open the page on which to pay for Pro. While a page is open, the same page is returned.
#[utoipa::path(
    post,
    path = "/api/billing/checkout",
    tag = "billing",
    security(("bearer" = [])),
    responses(
        (status = 200, body = StripePage),
        (status = 401, body = Problem),
        (status = 403, body = Problem),
        (status = 409, body = Problem),
        (status = 429, body = Problem),
        (status = 503, body = Problem),
    ),
)]
pub(super) async fn checkout(
    State(app): State<App>,
    background: Background,
    user: User,
) -> Result<Json<StripePage>> {
    let email = email(&user)?;
    rate_limit::check(&app, &[(Limit::Billing, LimitSubject::User(user.id))]).await?;

    let customers = customer_of(&app, user.id).await?;
    let customer = match customers.current {
        Some(customer) => customer,
        None => create_customer(&app, &user, email, customers.former.as_deref()).await?,
    };

    // Before the subscriptions are fetched: a payment on this page from now on shows up among them.
    let latest = stripe(&app)?.latest_checkout(&customer).await;
    let is_refused = latest
        .as_ref()
        .is_err_and(stripe::Error::customer_is_missing);
    if is_refused && billing::remove_if_deleted(&app, &customer, None, STRIPE_DEADLINE).await? {
        let url = replace_deleted(&app, &background, &user, email, &customer).await?;
        return Ok(Json(StripePage { url }));
    }

    let latest = if is_refused { None } else { latest? };
    let usable = ensure_usable(&app, &background, &user, email, &customer).await?;
    let latest = latest.filter(|_| usable == customer);

    billing::checkout_started(&app, &usable).await?;
    let page = payment_page(&app, &background, user.id, &usable, latest).await?;
    let url = match page {
        Some(url) => url,
        None => replace_deleted(&app, &background, &user, email, &usable).await?,
    };
    Ok(Json(StripePage { url }))
}

/// The address of a page for a new customer, in place of one that was deleted at Stripe.
async fn replace_deleted(
    app: &App,
    background: &Background,
    user: &User,
    email: &str,
    deleted: &str,
) -> Result<String> {
    let customer = create_customer(app, user, email, Some(deleted)).await?;
    billing::checkout_started(app, &customer).await?;

    let url = payment_page(app, background, user.id, &customer, None).await?;
    url.ok_or_else(|| Error::internal("a new customer was deleted at Stripe"))
}

fn stripe(app: &App) -> Result<Stripe> {
    Ok(app.stripe()?.with_deadline(STRIPE_DEADLINE))
}

/// Creates the user's customer in place of a former one. Concurrent calls get the same customer.
async fn create_customer(
    app: &App,
    user: &User,
    email: &str,
    former: Option<&str>,
) -> Result<String> {
    // The former id makes the key new: Stripe answers a key that it knows with the former customer for a day.
    let key = format!("customer-{}-{}", user.id, former.unwrap_or("first"));
    let user_id = user.id.to_string();
    let created = stripe(app)?.create_customer(email, &user_id, &key).await?;

    link_customer(app, user.id, &created.id, former).await
}

/// Links a customer to the user, and returns the customer that is linked then. The first call wins.
async fn link_customer(
    app: &App,
    user: Uuid,
    customer: &str,
    replaces: Option<&str>,
) -> Result<String> {
    let link = LinkCustomer {
        user,
        customer,
        replaces,
        now: app.now(),
    };
    Ok(app.db()?.one(link).await?)
}

/// The customer to sell to, who has no subscription: the given one, or a new one if Stripe does not know it.
async fn ensure_usable(
    app: &App,
    background: &Background,
    user: &User,
    email: &str,
    customer: &str,
) -> Result<String> {
    let mut synced = ensure_not_subscribed(app, background, customer).await?;

    // Only the user's row names this customer, so its events would not reach the user.
    if matches!(synced, Synced::NotOurs) {
        link_customer(app, user.id, customer, Some(customer)).await?;
        synced = ensure_not_subscribed(app, background, customer).await?;
    }

    match synced {
        Synced::Written(_) | Synced::Superseded(_) | Synced::Repeated => Ok(customer.to_owned()),
        Synced::Deleted => create_customer(app, user, email, Some(customer)).await,
        // The customer belongs to another API key. If the user pays, it is the key that is wrong.
        Synced::NotInStripe if user.profile.plan == Plan::Free => {
            create_customer(app, user, email, Some(customer)).await
        }
        Synced::NotInStripe => Err(Error::internal("Stripe does not know a paying customer")),
        Synced::NotOurs => Err(Error::internal("a customer is not ours after linking it")),
    }
}

/// Syncs a customer who is about to pay, because the event of an earlier payment may still be on its way.
async fn ensure_not_subscribed(
    app: &App,
    background: &Background,
    customer: &str,
) -> Result<Synced> {
    let synced = billing::sync(app, customer, None, STRIPE_DEADLINE).await?;
    let is_subscribed = |subscriptions: &[StoredSubscription]| {
        subscriptions.iter().any(StoredSubscription::is_live)
    };

    match synced {
        Synced::Written(change) if is_subscribed(&change.after) => {
            let app = app.clone();
            background.spawn(async move { billing::send_mails(&app, change.mails).await });
            Err(ALREADY_SUBSCRIBED)
        }
        Synced::Superseded(stored) if is_subscribed(&stored) => Err(ALREADY_SUBSCRIBED),
        other => Ok(other),
    }
}

/// The address of the open page if it can be reused, else of a new page after the open one is closed. None if the
/// customer was deleted at Stripe, and is removed now.
async fn payment_page(
    app: &App,
    background: &Background,
    user: Uuid,
    customer: &str,
    latest: Option<CheckoutSession>,
) -> Result<Option<String>> {
    let price = app.config().stripe_price_pro()?;

    if let Some(open) = latest.as_ref().filter(|latest| latest.is_open()) {
        // The page of a deleted customer stays open, but cannot be paid.
        if billing::remove_if_deleted(app, customer, None, STRIPE_DEADLINE).await? {
            return Ok(None);
        }
        if let Some(url) = reusable_url(open, price, app.now()) {
            return Ok(Some(url.to_owned()));
        }
        close_page(app, background, customer, open).await?;
    }

    let previous = latest.as_ref().map(|latest| latest.id.as_str());
    let opened = match open_page(app, &stripe(app)?, user, customer, price, previous).await {
        Err(error) if error.customer_is_missing() => {
            let deleted = billing::remove_if_deleted(app, customer, None, STRIPE_DEADLINE);
            return if deleted.await? {
                Ok(None)
            } else {
                Err(error.into())
            };
        }
        opened => opened?,
    };

    match opened.url {
        Some(url) => Ok(Some(url)),
        None => Err(Error::internal(
            "Stripe opened a checkout without an address",
        )),
    }
}

/// The address of an open page that sells the right price and stays open long enough.
fn reusable_url<'a>(
    open: &'a CheckoutSession,
    price: &str,
    now: OffsetDateTime,
) -> Option<&'a str> {
    let stays_open = open.expires_at > now.unix_timestamp() + MIN_PAGE_LIFE_SECS;
    let sells_price = open.metadata.get("price").is_some_and(|sold| sold == price);

    open.url.as_deref().filter(|_| stays_open && sells_price)
}

/// Closes an open page, so that it cannot be paid in addition to the next one.
async fn close_page(
    app: &App,
    background: &Background,
    customer: &str,
    open: &CheckoutSession,
) -> Result<()> {
    let closed = stripe(app)?.expire_checkout(&open.id).await?;
    if closed.is_open() {
        return Err(Error::internal("Stripe did not close the open checkout"));
    }

    // The user paid a moment ago.
    if closed.is_complete() {
        ensure_not_subscribed(app, background, customer).await?;
    }
    Ok(())
}

async fn open_page(
    app: &App,
    stripe: &Stripe,
    user: Uuid,
    customer: &str,
    price: &str,
    previous: Option<&str>,
) -> Result<CheckoutSession, stripe::Error> {
    let user = user.to_string();
    let root = &app.config().public_url;
    let success_url = format!("{root}/billing/success.html?session_id={{CHECKOUT_SESSION_ID}}");
    let cancel_url = format!("{root}/billing/cancel.html");

    let params = [
        ("mode", "subscription"),
        ("customer", customer),
        ("client_reference_id", &user),
        ("line_items[0][price]", price),
        ("line_items[0][quantity]", "1"),
        ("allow_promotion_codes", "true"),
        ("subscription_data[metadata][user_id]", &user),
        ("metadata[price]", price),
        ("success_url", &success_url),
        ("cancel_url", &cancel_url),
    ];
    stripe.create_checkout(&params, previous).await
}

const ALREADY_SUBSCRIBED: Error = Error::Conflict {
    code: "already_subscribed",
    detail: "You already have a subscription. Change or cancel it under “Manage subscription”.",
};

sql! {
    /// Links a customer to a user who has none, or in place of `replaces`. Returns the customer that is linked.
    ///
    /// Locks the customer before the user, as the statements of [`billing`] do.
    write LinkCustomer {
        user: Uuid,
        customer: &str,
        replaces: Option<&str>,
        now: OffsetDateTime,
    } -> String = "
        with locked as (
          select id
          from stripe_customers
          where user_id = :user
          for update
        ), linked as (
          update users
          set stripe_customer_id = case
              when stripe_customer_id is null or stripe_customer_id = :replaces then :customer
              else stripe_customer_id
            end
          where id = :user and (select count(*) from locked) >= 0
          returning id, stripe_customer_id
        ), stored as (
          insert into stripe_customers (id, user_id, created_at)
          select stripe_customer_id, id, :now
          from linked
          on conflict (user_id) do update set id = excluded.id
        )
        select coalesce(stripe_customer_id, :customer) as id
        from linked";
}
