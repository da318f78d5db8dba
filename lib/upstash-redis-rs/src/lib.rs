#![doc = include_str!("../README.md")]

mod client;
mod command;
mod error;

pub use client::{DEADLINE, MAX_ANSWER, Redis};
pub use command::{Command, Script};
pub use error::Error;
