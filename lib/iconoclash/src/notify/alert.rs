//! Alerts to operators: by mail to `ALERT_EMAIL_TO` and to the chat behind `ALERT_WEBHOOK_URL`.
//!
//! A channel that is not configured is skipped, and a failed delivery is logged. All instances together send an alert
//! once a day.

use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::json;
use upstash_redis_rs::Command;

use crate::{
    app::App,
    http::error::Result,
    notify::mail::{self, Mail},
};

const CHAT_DEADLINE: Duration = Duration::from_secs(10);
const REPEAT_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// A message that asks an operator to act.
#[derive(Clone, Debug)]
pub(crate) struct Alert {
    /// One line.
    pub(crate) subject: String,
    /// What happened, and what to do.
    pub(crate) text: String,
    /// Label and address of a page with the details.
    pub(crate) link: Option<(String, String)>,
    /// Identifies the alert, so that it is sent once a day.
    pub(crate) key: String,
}

/// Sends an alert to the operators, unless it was sent within the last day.
pub(crate) async fn send(app: &App, alert: Alert) {
    // Without Redis an alert is sent twice rather than never.
    if !is_new(app, &alert.key).await.unwrap_or(true) {
        return;
    }

    tracing::warn!(
        alert.key = alert.key,
        alert.subject = alert.subject,
        "sending an alert to the operators"
    );
    tokio::join!(send_mail(app, &alert), post_to_chat(app, &alert));
}

/// Whether this call is the first with the key today. Not idempotent: a retry would find its own mark.
async fn is_new(app: &App, key: &str) -> Result<bool> {
    let mark = Command::new("SET")
        .arg(format!("alert:{key}"))
        .arg(1)
        .arg("NX")
        .arg("EX")
        .arg(REPEAT_AFTER.as_secs());

    let set: Option<String> = app.redis()?.exec(&mark).await?;
    Ok(set.is_some())
}

async fn send_mail(app: &App, alert: &Alert) {
    let to = app.config().alerts.emails.clone();
    if to.is_empty() {
        return;
    }

    let alert = alert.clone();
    let mail = Mail {
        to,
        subject: alert.subject,
        paragraphs: vec![alert.text],
        link: alert.link,
        key: alert.key,
    };
    mail::send(app, mail).await;
}

async fn post_to_chat(app: &App, alert: &Alert) {
    let Some(url) = &app.config().alerts.webhook_url else {
        return;
    };
    let Ok(http) = app.http() else {
        return;
    };

    let mut text = format!("{}\n{}", alert.subject, alert.text);
    if let Some((label, url)) = &alert.link {
        text.push_str(&format!("\n{label}: {url}"));
    }

    // Slack reads `text`, Discord reads `content`. Each ignores the other.
    let request = http
        .post(url.expose_secret())
        .json(&json!({"text": text, "content": text}))
        .timeout(CHAT_DEADLINE);
    let sent = request
        .send()
        .await
        .and_then(reqwest::Response::error_for_status);

    if let Err(error) = sent {
        // The address is a secret.
        let cause = error.without_url().to_string();
        tracing::warn!(
            alert.key = alert.key,
            cause,
            "could not post the alert to the chat"
        );
    }
}
