//! A request's body that knows whether it was sent, and that is not sent any more once the request is given up.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

const WAITING: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

/// A request under way; dropping it gives the request up.
///
/// A connection takes the body only after it has written the request's head. Before that it connects and, on HTTP/2,
/// waits until the server grants a stream. It would do so even for a request that is no longer wanted.
#[derive(Default)]
pub(crate) struct Sending(Arc<AtomicU8>);

impl Sending {
    /// The same body, watched.
    pub(crate) fn watch(&self, body: reqwest::Body) -> reqwest::Body {
        reqwest::Body::wrap(SentBody {
            body,
            state: Arc::clone(&self.0),
        })
    }

    /// Sends nothing from now on. Returns whether a connection has taken the body before.
    pub(crate) fn give_up(&self) -> bool {
        advance(&self.0, GIVEN_UP) == SENT
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Leaves [`WAITING`] for `state`, unless another state came first. Returns the state that holds.
fn advance(current: &AtomicU8, state: u8) -> u8 {
    match current.compare_exchange(WAITING, state, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => state,
        Err(earlier) => earlier,
    }
}

struct SentBody {
    body: reqwest::Body,
    state: Arc<AtomicU8>,
}

impl Body for SentBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if advance(&self.state, SENT) == GIVEN_UP {
            let error = io::Error::other("the request was given up");
            return Poll::Ready(Some(Err(error)));
        }

        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(body: &mut reqwest::Body) -> Option<Result<Frame<Bytes>, reqwest::Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    #[tokio::test]
    async fn a_body_is_sent_or_the_request_is_given_up_but_never_both() {
        let sending = Sending::default();
        let mut body = sending.watch("Hello".into());
        assert_eq!(body.size_hint().exact(), Some(5));
        let frame = next(&mut body).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "Hello");
        assert!(sending.give_up());
        assert!(next(&mut body).await.is_none());

        let sending = Sending::default();
        let mut body = sending.watch("Hello".into());
        assert!(!sending.give_up());
        assert!(next(&mut body).await.unwrap().is_err());
        assert!(!sending.give_up());

        let sending = Sending::default();
        let mut body = sending.watch("Hello".into());
        drop(sending);
        assert!(next(&mut body).await.unwrap().is_err());
    }
}
