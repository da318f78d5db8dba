//! stub
#![allow(missing_docs)]
use serde::de::DeserializeOwned;
use std::time::Duration;
#[derive(Clone, Debug)]
pub struct Redis;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
impl Error {
    pub fn is_unavailable(&self) -> bool {
        true
    }
}
pub struct Command;
impl Command {
    pub fn new(_: &str) -> Self {
        Command
    }
    pub fn arg(self, _: impl ToString) -> Self {
        self
    }
    pub fn idempotent(self) -> Self {
        self
    }
}
pub struct Script;
impl Script {
    pub fn new(_: &str) -> Self {
        Script
    }
}
impl Redis {
    pub fn new(_: &str, _: &str, _: reqwest::Client) -> Self {
        Redis
    }
    pub fn with_deadline(self, _: Duration) -> Self {
        self
    }
    pub async fn exec<T: DeserializeOwned>(&self, _: &Command) -> Result<T, Error> {
        Err(Error)
    }
    pub async fn eval<T: DeserializeOwned>(&self, _: &Script, _: &[String], _: &[String]) -> Result<T, Error> {
        Err(Error)
    }
}
