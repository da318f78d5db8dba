//! Local copy of Stripe subscriptions, only ever written from a fresh API response.
//!
//! A webhook event only says that something changed. [`sync`] then fetches all of a customer's subscriptions and stores
//! them, the plan that follows from them and the event's id in one statement. [`refresh_due`] does the same for
//! customers whose events may have been lost. The `entitlements` module says what subscriptions grant.

mod customers;
mod entitlements;
mod past_due;
mod refresh;
mod sync;

use crate::http::error::Error;

pub(crate) use self::customers::{
    checkout_started, customer_deleted, record_event, remove_if_deleted, schedule_refresh,
};
pub use self::{
    entitlements::{GRACE, StoredSubscription},
    past_due::send_mails,
    refresh::{RefreshReport, refresh_due},
    sync::{Change, Synced, sync},
};

impl From<stripe::Error> for Error {
    fn from(error: stripe::Error) -> Self {
        match &error {
            stripe::Error::Unreachable(_) => Self::unavailable(error),
            stripe::Error::Refused { status, .. }
                if status.is_server_error() || status.as_u16() == 429 =>
            {
                Self::unavailable(error)
            }
            _ => Self::internal(error),
        }
    }
}
