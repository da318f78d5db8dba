//! Telling operators what needs their eyes: by mail to `ALERT_EMAIL_TO` and in the chat behind `ALERT_WEBHOOK_URL`.
//! What is not set is left out; what cannot be told is a line in the log. What many instances notice is told once a day.

use std::time::Duration;

use serde_json::json;
use upstash_redis_rs::Command;

use secrecy::ExposeSecret;

use crate::{
    app::App,
    http::error::Result,
    notify::mail::{self, Mail},
};

const DEADLINE: Duration = Duration::from_secs(10);
const ONCE_IN: Duration = Duration::from_secs(24 * 60 * 60);

/// Something that a person should look at.
#[derive(Clone, Debug)]
pub struct Alert {
    /// In one line.
    pub subject: String,
    /// What happened.
    pub text: String,
    /// Where to look.
    pub link: Option<(String, String)>,
    /// Names what it tells, so that it is told once.
    pub key: String,
}

/// Tells the operators, or logs that they could not be told.
pub async fn operators(app: &App, alert: Alert) {
    // Rather twice than never, where Redis does not say.
    if !is_news(app, &alert.key).await.unwrap_or(true) {
        return;
    }
    tracing::warn!(
        alert.key = alert.key,
        alert.subject = alert.subject,
        "operators are told"
    );
    tokio::join!(by_mail(app, &alert), by_chat(app, &alert));
}

/// Whether this is the first to tell it. Not sent again where the answer is lost: it would find itself.
async fn is_news(app: &App, key: &str) -> Result<bool> {
    let first = Command::new("SET")
        .arg(format!("alert:{key}"))
        .arg(1)
        .arg("NX")
        .arg("EX")
        .arg(ONCE_IN.as_secs());
    Ok(app.redis()?.exec::<Option<String>>(&first).await?.is_some())
}

async fn by_mail(app: &App, alert: &Alert) {
    let to = app.config().alerts.emails.clone();
    if to.is_empty() {
        return;
    }
    let Alert {
        subject,
        text,
        link,
        key,
    } = alert.clone();
    mail::send(
        app,
        Mail {
            to,
            subject,
            paragraphs: vec![text],
            link,
            key,
        },
    )
    .await;
}

async fn by_chat(app: &App, alert: &Alert) {
    let (Some(url), Ok(http)) = (&app.config().alerts.webhook_url, app.http()) else {
        return;
    };
    let link = alert
        .link
        .as_ref()
        .map(|(label, url)| format!("\n{label}: {url}"))
        .unwrap_or_default();
    let words = format!("{}\n{}{link}", alert.subject, alert.text);
    // Slack and its likes read `text`, Discord reads `content`; each ignores the other.
    let request = http
        .post(url.expose_secret())
        .json(&json!({"text": words, "content": words}))
        .timeout(DEADLINE);
    let told = request
        .send()
        .await
        .and_then(reqwest::Response::error_for_status);
    if let Err(error) = told {
        // The address is the webhook's only secret.
        let cause = error.without_url().to_string();
        tracing::warn!(
            alert.key = alert.key,
            cause,
            "the operators' chat was not told"
        );
    }
}
