//! Settings of Stripe, of outgoing mail and of alerts to operators.

use secrecy::SecretString;

use super::{Env, Setting, invalid};

/// Access to Stripe.
#[derive(Clone, Debug)]
pub struct StripeConfig {
    /// API root, without a trailing slash.
    pub base_url: String,
    /// Secret or restricted key.
    pub key: SecretString,
}

/// Access to the mail provider.
#[derive(Clone, Debug)]
pub struct MailConfig {
    /// API root, without a trailing slash.
    pub base_url: String,
    /// Bearer token.
    pub key: SecretString,
    /// The sender's address.
    pub from: String,
}

/// Where alerts to operators are sent. Both channels are optional.
#[derive(Clone, Debug, Default)]
pub struct AlertsConfig {
    /// Recipients of mails.
    pub emails: Vec<String>,
    /// The incoming webhook of a chat. The address is a secret.
    pub webhook_url: Option<SecretString>,
}

impl Env<'_> {
    pub(super) fn stripe(&self) -> Setting<StripeConfig> {
        let base_url = self
            .or("STRIPE_BASE_URL", "https://api.stripe.com")
            .trim_end_matches('/')
            .to_owned();
        let key = SecretString::from(self.required("STRIPE_SECRET_KEY")?);

        Ok(StripeConfig { base_url, key })
    }

    /// The secrets that sign events, without blank ones: anybody could sign with a blank secret.
    pub(super) fn stripe_webhook_secrets(&self) -> Setting<Vec<SecretString>> {
        let secrets = list(&self.required("STRIPE_WEBHOOK_SECRET")?);
        if secrets.is_empty() {
            return Err(invalid("STRIPE_WEBHOOK_SECRET", "lists nothing"));
        }

        Ok(secrets.into_iter().map(SecretString::from).collect())
    }

    pub(super) fn mail(&self) -> Setting<MailConfig> {
        let base_url = self
            .or("RESEND_BASE_URL", "https://api.resend.com")
            .trim_end_matches('/')
            .to_owned();
        let key = SecretString::from(self.required("RESEND_API_KEY")?);
        let from = self.required("MAIL_FROM")?;

        Ok(MailConfig {
            base_url,
            key,
            from,
        })
    }

    pub(super) fn alerts(&self) -> AlertsConfig {
        AlertsConfig {
            emails: list(&self.or("ALERT_EMAIL_TO", "")),
            webhook_url: self.optional("ALERT_WEBHOOK_URL").map(SecretString::from),
        }
    }
}

/// The values of `value, …`, without blank ones.
fn list(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use crate::config::Config;

    #[test]
    fn several_webhook_secrets_may_be_set_and_blank_ones_are_skipped() {
        let secrets = |value: &str| {
            let lookup = |name: &str| (name == "STRIPE_WEBHOOK_SECRET").then(|| value.to_owned());
            Config::from_lookup(lookup)
                .stripe_webhook_secrets
                .map_err(|error| error.to_string())
        };

        let both = secrets("whsec_new, whsec_old,").unwrap();
        let exposed: Vec<&str> = both.iter().map(|secret| secret.expose_secret()).collect();
        assert_eq!(exposed, ["whsec_new", "whsec_old"]);

        for (value, expected) in [
            (" , ,", "STRIPE_WEBHOOK_SECRET lists nothing"),
            (" ", "STRIPE_WEBHOOK_SECRET is not set"),
        ] {
            assert_eq!(secrets(value).unwrap_err(), expected);
        }
    }
}
