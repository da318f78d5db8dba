//! Streams of server-sent events.

use std::{pin::Pin, time::Duration};

use axum::body::Body;
use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::Value;

use super::Answer;
use crate::contract;

/// A stream of events. Dropping it disconnects the client.
pub(crate) struct Events {
    pub(crate) headers: HeaderMap,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
}

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) data: Value,
}

impl Events {
    pub(super) async fn read(
        method: Method,
        path: &str,
        response: http::Response<Body>,
    ) -> Result<Self, Answer> {
        if response.status() != StatusCode::OK {
            return Err(Answer::read(&method, path, response).await);
        }
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "text/event-stream"
        );
        let headers = response.headers().clone();
        let events = response
            .into_body()
            .into_data_stream()
            .eventsource()
            .map(|event| {
                let event = event.unwrap();
                let data = serde_json::from_str(&event.data).unwrap();
                contract::check_times(&data);
                Event {
                    id: event.id.parse().unwrap(),
                    data,
                    name: event.event,
                }
            });
        Ok(Self {
            headers,
            events: Box::pin(events),
        })
    }

    /// Reads events up to and including the first `delta`.
    pub(crate) async fn first_delta(&mut self) {
        while self.next().await.unwrap().name != "delta" {}
    }

    pub(crate) async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(Duration::from_secs(20), self.events.next())
            .await
            .expect("an event within 20 seconds")
    }

    pub(crate) async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}
