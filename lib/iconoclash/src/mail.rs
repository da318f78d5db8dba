//! Outgoing mail, over Resend's HTTP API. A mail that cannot be sent is a line in the log and never a failed request:
//! send it from registered background work, after what it tells of is written.

use std::time::Duration;

use serde_json::json;

use crate::{app::App, error::Error, telemetry};

const DEADLINE: Duration = Duration::from_secs(10);
const TRIES: u32 = 2;

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
        let cause = match &error {
            Error::Unavailable { cause, .. } | Error::Internal(cause) => telemetry::chain(cause.as_ref()),
            other => other.to_string(),
        };
        tracing::warn!(mail.key = mail.key, mail.subject = mail.subject, cause, "a mail was not sent");
    }
}

async fn try_to_send(app: &App, mail: &Mail) -> Result<(), Error> {
    let settings = app.config().mail.clone()?;
    let body = json!({
        "from": settings.from, "to": mail.to, "subject": mail.subject, "text": mail.text(), "html": mail.html(),
    });
    let mut failure = None;
    for _ in 0..TRIES {
        let request = app.http()?.post(format!("{}/emails", settings.base_url)).bearer_auth(settings.key.expose());
        let request = request.header("idempotency-key", &mail.key).json(&body).timeout(DEADLINE);
        let again = match request.send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => {
                let status = answer.status();
                let said = answer.text().await.unwrap_or_default();
                let said: String = said.chars().take(300).collect();
                failure = Some(Error::Internal(format!("the mail provider answered {status}: {said}").into()));
                status.is_server_error()
            }
            Err(error) => {
                failure = Some(Error::unavailable(error.without_url()));
                true
            }
        };
        if !again {
            break;
        }
    }
    failure.map_or(Ok(()), Err)
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
        let paragraphs: String = self.paragraphs.iter().map(|text| format!("<p>{}</p>", escaped(text))).collect();
        let link = self.link.as_ref().map_or_else(String::new, |(label, url)| {
            format!(r#"<p><a href="{}">{}</a></p>"#, escaped(url), escaped(label))
        });
        format!(
            r#"<div style="font:16px/1.5 Georgia,serif;max-width:34em;color:#1c1917">{paragraphs}{link}<p style="color:#78716c">Iconoclash</p></div>"#
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mail_says_the_same_as_text_and_as_html() {
        let mail = Mail {
            to: vec!["ada@example.org".into()],
            subject: "Hello".into(),
            paragraphs: vec!["Dear <Ada> & Bob,".into(), "pay.".into()],
            link: Some(("Pay".into(), "https://x.test/?a=1&b=\"".into())),
            key: "k".into(),
        };
        assert_eq!(mail.text(), "Dear <Ada> & Bob,\n\npay.\n\nPay: https://x.test/?a=1&b=\"\n");
        let html = mail.html();
        assert!(html.contains("<p>Dear &lt;Ada&gt; &amp; Bob,</p><p>pay.</p>"), "{html}");
        assert!(html.contains(r#"<a href="https://x.test/?a=1&amp;b=&quot;">Pay</a>"#), "{html}");
    }
}
