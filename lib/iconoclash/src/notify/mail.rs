//! Outgoing mail through Resend's HTTP API.
//!
//! A failed mail is logged and never fails a request. Send it from registered background work, after the change that it
//! reports is stored.

use std::time::Duration;

use backon::{ConstantBuilder, Retryable};
use http::{HeaderMap, StatusCode, header};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::{
    app::App,
    config::MailConfig,
    http::error::{Error, Result},
};

const DEADLINE: Duration = Duration::from_secs(10);
const MAX_RETRIES: usize = 1;
/// The pause before the retry if Resend names none.
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause, because a function waits for it.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// A mail, sent as text and as simple HTML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// The recipients.
    pub to: Vec<String>,
    /// One line.
    pub subject: String,
    /// The paragraphs of plain text.
    pub paragraphs: Vec<String>,
    /// Label and address of the link below them.
    pub link: Option<(String, String)>,
    /// Identifies the mail, so that Resend sends it once.
    pub key: String,
}

/// Sends a mail, or logs why it was not sent.
pub(crate) async fn send(app: &App, mail: Mail) {
    if let Err(error) = try_to_send(app, &mail).await {
        tracing::warn!(
            mail.key = mail.key,
            mail.subject = mail.subject,
            cause = error.cause(),
            "could not send a mail"
        );
    }
}

async fn try_to_send(app: &App, mail: &Mail) -> Result<()> {
    let config = app.config().mail()?;
    let http = app.http()?;
    let body = json!({
        "from": config.from,
        "to": mail.to,
        "subject": mail.subject,
        "text": mail.text(),
        "html": mail.html(),
    });

    let attempt = || post(http, config, &mail.key, &body);
    let retries = ConstantBuilder::new()
        .with_delay(DEFAULT_PAUSE)
        .with_max_times(MAX_RETRIES);

    attempt
        .retry(retries)
        .when(|failure| failure.retry_after.is_some())
        .adjust(|failure, pause| pause.and(failure.retry_after))
        .await
        .map_err(|failure| failure.error)
}

/// Why an attempt failed.
struct Failure {
    error: Error,
    /// The pause before a retry, if a retry may succeed.
    retry_after: Option<Duration>,
}

async fn post(
    http: &reqwest::Client,
    config: &MailConfig,
    key: &str,
    body: &Value,
) -> Result<(), Failure> {
    let request = http
        .post(format!("{}/emails", config.base_url))
        .bearer_auth(config.key.expose_secret())
        .header("idempotency-key", key)
        .json(body)
        .timeout(DEADLINE);

    let response = request.send().await.map_err(|error| Failure {
        error: Error::unavailable(error.without_url()),
        retry_after: Some(DEFAULT_PAUSE),
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }

    let retry_after = retry_after(status, response.headers());
    let answer = response.text().await.unwrap_or_default();
    let reason: String = answer.chars().take(300).collect();
    Err(Failure {
        error: Error::internal(format!("the mail provider answered {status}: {reason}")),
        retry_after,
    })
}

/// The pause before a retry: Resend's `Retry-After` up to [`MAX_PAUSE`]. `None` if a retry cannot succeed.
fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let is_retryable = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
    let requested = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map_or(DEFAULT_PAUSE, Duration::from_secs);

    is_retryable.then(|| requested.min(MAX_PAUSE))
}

impl Mail {
    /// The mail as plain text.
    fn text(&self) -> String {
        let mut text = self.paragraphs.join("\n\n");
        if let Some((label, url)) = &self.link {
            text.push_str(&format!("\n\n{label}: {url}"));
        }
        text + "\n"
    }

    /// The mail as HTML that every mail program shows.
    fn html(&self) -> String {
        let mut body: String = self
            .paragraphs
            .iter()
            .map(|text| format!("<p>{}</p>", escaped(text)))
            .collect();
        if let Some((label, url)) = &self.link {
            let label = escaped(label);
            let url = escaped(url);
            body.push_str(&format!(r#"<p><a href="{url}">{label}</a></p>"#));
        }

        format!(
            concat!(
                r#"<div style="font:16px/1.5 Georgia,serif;max-width:34em;color:#1c1917">"#,
                r#"{}<p style="color:#78716c">Iconoclash</p></div>"#
            ),
            body
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[track_caller]
    fn check_pause(status: u16, header: Option<&'static str>, expected_secs: Option<u64>) {
        let status = StatusCode::from_u16(status).unwrap();
        let headers = header
            .map(|value| (header::RETRY_AFTER, HeaderValue::from_static(value)))
            .into_iter()
            .collect();

        assert_eq!(
            retry_after(status, &headers),
            expected_secs.map(Duration::from_secs),
            "{status} {header:?}"
        );
    }

    #[test]
    fn a_retry_waits_as_long_as_the_provider_asks_up_to_a_limit() {
        for status in [429, 500, 503] {
            check_pause(status, None, Some(1));
            check_pause(status, Some("3"), Some(3));
            check_pause(status, Some("3600"), Some(5));
            check_pause(status, Some("Tue, 24 Nov 2026 12:00:00 GMT"), Some(1));
        }
        for status in [400, 401, 403, 409, 422] {
            check_pause(status, Some("3"), None);
        }
    }

    #[test]
    fn a_mail_has_the_same_words_as_text_and_as_html() {
        let mail = Mail {
            to: vec!["ada@example.org".into()],
            subject: "Hello".into(),
            paragraphs: vec!["Dear <Ada> & Bob,".into(), "pay.".into()],
            link: Some(("Pay".into(), "https://x.test/?a=1&b=\"".into())),
            key: "k".into(),
        };

        assert_eq!(
            mail.text(),
            "Dear <Ada> & Bob,\n\npay.\n\nPay: https://x.test/?a=1&b=\"\n"
        );
        let html = mail.html();
        assert!(
            html.contains("<p>Dear &lt;Ada&gt; &amp; Bob,</p><p>pay.</p>"),
            "{html}"
        );
        assert!(
            html.contains(r#"<a href="https://x.test/?a=1&amp;b=&quot;">Pay</a>"#),
            "{html}"
        );
    }
}
