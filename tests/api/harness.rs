//! An app of its own for each test, and actors that call it.

mod actor;
mod app;
mod cached_sessions;
mod events;

pub(crate) use self::{
    actor::{Actor, Answer},
    app::TestApp,
    events::{Event, Events},
};
