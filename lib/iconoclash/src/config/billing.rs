//! The settings of money and mail: Stripe, Resend, and where operators are told.

use secrecy::SecretString;

use super::{Env, Setting, invalid};

/// How Stripe is reached.
#[derive(Clone, Debug)]
pub struct StripeConfig {
    /// API root, without a trailing slash.
    pub base_url: String,
    /// Secret or restricted key.
    pub key: SecretString,
}

/// How mail is sent.
#[derive(Clone, Debug)]
pub struct MailConfig {
    /// API root, without a trailing slash.
    pub base_url: String,
    /// Bearer token.
    pub key: SecretString,
    /// The sender.
    pub from: String,
}

/// Where operators are told what needs their eyes; both may be empty.
#[derive(Clone, Debug, Default)]
pub struct AlertsConfig {
    /// Addresses.
    pub emails: Vec<String>,
    /// A chat's incoming webhook, whose address is its only secret.
    pub webhook_url: Option<SecretString>,
}

impl Env<'_> {
    pub(super) fn stripe(&self) -> Setting<StripeConfig> {
        let base_url = self
            .or("STRIPE_BASE_URL", "https://api.stripe.com")
            .trim_end_matches('/')
            .to_owned();
        Ok(StripeConfig {
            base_url,
            key: SecretString::from(self.required("STRIPE_SECRET_KEY")?),
        })
    }

    /// A blank secret would sign what anybody can sign, so it is never one of them.
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
        Ok(MailConfig {
            base_url,
            key,
            from: self.required("MAIL_FROM")?,
        })
    }

    pub(super) fn alerts(&self) -> AlertsConfig {
        let webhook_url = self.optional("ALERT_WEBHOOK_URL").map(SecretString::from);
        AlertsConfig {
            emails: list(&self.or("ALERT_EMAIL_TO", "")),
            webhook_url,
        }
    }
}

/// `value, …`, without the blank ones.
fn list(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn several_webhook_secrets_may_live_and_none_of_them_is_blank() {
        let secrets = |value: &str| {
            let lookup = |name: &str| (name == "STRIPE_WEBHOOK_SECRET").then(|| value.to_owned());
            crate::config::Config::from_lookup(lookup).stripe_webhook_secrets
        };
        let exposed = |value: &str| {
            secrets(value)
                .unwrap()
                .iter()
                .map(|s| secrecy::ExposeSecret::expose_secret(s).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(exposed("whsec_new, whsec_old,"), ["whsec_new", "whsec_old"]);
        assert_eq!(
            secrets(" , ,").unwrap_err().to_string(),
            "STRIPE_WEBHOOK_SECRET lists nothing"
        );
        assert_eq!(
            secrets(" ").unwrap_err().to_string(),
            "STRIPE_WEBHOOK_SECRET is not set"
        );
    }
}
