//! Scripts: behaviours with their text and usage, queued for the requests that match.

use std::collections::VecDeque;

use claude::Usage;

use super::behaviour::{Behaviour, Failure};

/// A behaviour and, optionally, the text, the usage and the error headers of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    pub(super) behaviour: Behaviour,
    pub(super) text: Option<String>,
    pub(super) usage: Option<Usage>,
    pub(super) headers: Vec<(String, String)>,
}

impl From<Behaviour> for Script {
    fn from(behaviour: Behaviour) -> Self {
        Self {
            behaviour,
            ..Self::default()
        }
    }
}

impl From<Failure> for Script {
    fn from(failure: Failure) -> Self {
        Behaviour::Status(failure).into()
    }
}

impl Script {
    /// A whole reply with this text.
    pub fn say(text: impl Into<String>) -> Self {
        Self::default().with_text(text)
    }

    /// Sets the text of the reply.
    pub fn with_text(self, text: impl Into<String>) -> Self {
        Self {
            text: Some(text.into()),
            ..self
        }
    }

    /// Adds a header to an error, such as `retry-after` or `x-should-retry`.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the usage that the reply reports; `output` is reported at its end.
    pub fn with_usage(self, usage: Usage) -> Self {
        Self {
            usage: Some(usage),
            ..self
        }
    }
}

/// Selects the requests that a script applies to; the default is all.
#[derive(Clone, Debug, Default)]
pub struct Only {
    /// Only requests with this key.
    pub key: Option<String>,
    /// Only requests for this model.
    pub model: Option<String>,
    /// Only requests with a key of this organisation.
    pub organisation: Option<String>,
}

impl Only {
    /// The requests with one key.
    pub fn key(key: impl Into<String>) -> Self {
        Self {
            key: Some(key.into()),
            ..Self::default()
        }
    }

    /// The requests for one model.
    pub fn model(model: impl Into<String>) -> Self {
        Self {
            model: Some(model.into()),
            ..Self::default()
        }
    }

    /// The requests of one organisation.
    pub fn organisation(organisation: impl Into<String>) -> Self {
        Self {
            organisation: Some(organisation.into()),
            ..Self::default()
        }
    }

    fn matches(&self, key: &str, model: &str, organisation: &str) -> bool {
        let matches = |only: &Option<String>, actual: &str| {
            only.as_deref().is_none_or(|expected| expected == actual)
        };

        matches(&self.key, key)
            && matches(&self.model, model)
            && matches(&self.organisation, organisation)
    }
}

/// The scripts of future requests.
#[derive(Default)]
pub(super) struct Scripts {
    next: VecDeque<(Only, Script)>,
    always: Vec<(Only, Script)>,
}

impl Scripts {
    pub(super) fn next(&mut self, only: Only, script: Script) {
        self.next.push_back((only, script));
    }

    pub(super) fn always(&mut self, only: Only, script: Script) {
        self.always.push((only, script));
    }

    /// The script of a request: the first queued one that matches, else the latest permanent one.
    pub(super) fn take(&mut self, key: &str, model: &str, organisation: &str) -> Script {
        let matches = |(only, _): &(Only, Script)| only.matches(key, model, organisation);

        if let Some(at) = self.next.iter().position(matches)
            && let Some((_, script)) = self.next.remove(at)
        {
            return script;
        }

        let permanent = self.always.iter().rfind(|entry| matches(entry));
        permanent
            .map(|(_, script)| script.clone())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_used_in_order_by_the_requests_that_they_match() {
        let mut scripts = Scripts::default();
        scripts.always(Only::default(), Script::say("always"));
        scripts.always(Only::model("m2"), Script::say("m2"));
        scripts.next(Only::key("k1"), Script::say("k1 first"));
        scripts.next(Only::default(), Script::say("once"));
        scripts.always(Only::organisation("o2"), Script::say("o2"));

        let mut text = |key, model| scripts.take(key, model, "o1").text.unwrap();
        assert_eq!(text("k2", "m1"), "once");
        assert_eq!(text("k2", "m1"), "always");
        assert_eq!(text("k1", "m2"), "k1 first");
        assert_eq!(text("k1", "m2"), "m2");
        assert_eq!(scripts.take("k1", "m2", "o2").text.unwrap(), "o2");
    }
}
