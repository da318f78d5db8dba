//! Outgoing mail, over Resend's HTTP API. A mail that cannot be sent is a line in the log and never a failed request:
//! send it from registered background work, after what it tells of is written.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use serde_json::json;

use secrecy::ExposeSecret;

use crate::{app::App, http::error::Error};

const DEADLINE: Duration = Duration::from_secs(10);
const TRIES: u32 = 2;
/// What the provider wants between two tries where it does not say how long.
const PAUSE: Duration = Duration::from_secs(1);
/// What it says is heeded up to this: a function waits for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A mail, as text and as simple HTML of the same words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Who gets it.
    pub to: Vec<String>,
    /// In one line.
    pub subject: String,
    /// One after the other.
    pub paragraphs: Vec<String>,
    /// What to click, and where that leads.
    pub link: Option<(String, String)>,
    /// Names what it tells, so that the provider sends it once however often it is asked.
    pub key: String,
}

/// Sends it, or logs why not.
pub async fn send(app: &App, mail: Mail) {
    if let Err(error) = try_to_send(app, &mail).await {
        tracing::warn!(
            mail.key = mail.key,
            mail.subject = mail.subject,
            cause = error.cause(),
            "a mail was not sent"
        );
    }
}

async fn try_to_send(app: &App, mail: &Mail) -> Result<(), Error> {
    let settings = app.config().mail.clone()?;
    let body = json!({
        "from": settings.from, "to": mail.to, "subject": mail.subject, "text": mail.text(), "html": mail.html(),
    });
    let mut left = TRIES;
    loop {
        left -= 1;
        let request = app
            .http()?
            .post(format!("{}/emails", settings.base_url))
            .bearer_auth(settings.key.expose_secret());
        let request = request
            .header("idempotency-key", &mail.key)
            .json(&body)
            .timeout(DEADLINE);
        let (failure, pause) = match request.send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => {
                let (status, pause) = (answer.status(), pause(answer.status(), answer.headers()));
                let said = answer.text().await.unwrap_or_default();
                let said: String = said.chars().take(300).collect();
                (
                    Error::Internal(format!("the mail provider answered {status}: {said}").into()),
                    pause,
                )
            }
            Err(error) => (Error::unavailable(error.without_url()), Some(PAUSE)),
        };
        match pause {
            Some(pause) if left > 0 => tokio::time::sleep(pause).await,
            _ => return Err(failure),
        }
    }
}

/// How long to wait for another try, where one may help.
fn pause(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let again = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
    let wanted = headers
        .get(header::RETRY_AFTER)
        .and_then(|wanted| wanted.to_str().ok()?.parse().ok());
    again.then(|| wanted.map_or(PAUSE, Duration::from_secs).min(LONGEST_PAUSE))
}

impl Mail {
    /// The words alone.
    pub fn text(&self) -> String {
        let mut text = self.paragraphs.join("\n\n");
        if let Some((label, url)) = &self.link {
            text.push_str(&format!("\n\n{label}: {url}"));
        }
        text + "\n"
    }

    /// The words as a page that every mail program shows.
    pub fn html(&self) -> String {
        let paragraphs: String = self
            .paragraphs
            .iter()
            .map(|text| format!("<p>{}</p>", escaped(text)))
            .collect();
        let link = self.link.as_ref().map_or_else(String::new, |(label, url)| {
            format!(
                r#"<p><a href="{}">{}</a></p>"#,
                escaped(url),
                escaped(label)
            )
        });
        format!(
            r#"<div style="font:16px/1.5 Georgia,serif;max-width:34em;color:#1c1917">{paragraphs}{link}<p style="color:#78716c">Iconoclash</p></div>"#
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

    #[test]
    fn another_try_waits_for_as_long_as_the_provider_wants_within_reason() {
        let check = |status: u16, retry_after: Option<&'static str>, expected: Option<u64>| {
            let wanted = retry_after
                .map(|wanted| (header::RETRY_AFTER, http::HeaderValue::from_static(wanted)));
            let waits = pause(
                StatusCode::from_u16(status).unwrap(),
                &wanted.into_iter().collect(),
            );
            assert_eq!(
                waits,
                expected.map(Duration::from_secs),
                "{status} {retry_after:?}"
            );
        };
        for status in [429, 500, 503] {
            check(status, None, Some(1));
            check(status, Some("3"), Some(3));
            check(status, Some("3600"), Some(5));
            check(status, Some("Tue, 24 Nov 2026 12:00:00 GMT"), Some(1));
        }
        for status in [400, 401, 403, 409, 422] {
            check(status, Some("3"), None);
        }
    }

    #[test]
    fn a_mail_says_the_same_as_text_and_as_html() {
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
