#![doc = include_str!("../README.md")]

mod client;
mod command;
mod error;

pub use client::{DEADLINE, MAX_BODY_BYTES, Redis, Results};
pub use command::{Arg, Command, Script};
pub use error::{Error, SetupError};
