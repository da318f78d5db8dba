#![doc = include_str!("../README.md")]

mod calls;
mod client;
mod error;
mod objects;
pub mod webhook;

pub use self::{
    client::Stripe,
    error::Error,
    objects::{CheckoutSession, Customer, Item, List, Price, Subscription},
};

/// The version of the API that every request names.
pub const API_VERSION: &str = "2026-10-28.endive";
