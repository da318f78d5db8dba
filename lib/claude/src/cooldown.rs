//! Cooldowns: until when a key, an organisation or a model gets no calls. The latest deadline wins.

use std::collections::HashMap;

/// A cooldown as instances exchange it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cooldown {
    /// Names the key, the organisation or the model that gets no calls.
    pub key: String,
    /// The end, in Unix milliseconds.
    pub until_ms: i64,
}

/// The cooldowns that this process knows.
#[derive(Debug, Default)]
pub(crate) struct Cooldowns(HashMap<String, Until>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Until {
    ms: i64,
    /// Whether the other instances can know it.
    published: bool,
}

impl Cooldowns {
    /// Starts a cooldown. A later end that is known already stays.
    pub(crate) fn extend(&mut self, key: String, until_ms: i64) {
        let until = self.0.entry(key).or_insert(Until {
            ms: i64::MIN,
            published: true,
        });
        if until.ms < until_ms {
            *until = Until {
                ms: until_ms,
                published: false,
            };
        }
    }

    /// The end of a running cooldown.
    pub(crate) fn end(&self, key: &str, now_ms: i64) -> Option<i64> {
        let until_ms = self.0.get(key)?.ms;
        (until_ms > now_ms).then_some(until_ms)
    }

    /// Running cooldowns that the other instances do not know yet.
    pub(crate) fn unpublished(&self, now_ms: i64) -> Vec<Cooldown> {
        self.0
            .iter()
            .filter(|(_, until)| !until.published && until.ms > now_ms)
            .map(|(key, until)| Cooldown {
                key: key.clone(),
                until_ms: until.ms,
            })
            .collect()
    }

    /// Takes over the `shared` cooldowns of all instances, after `published` was sent to them.
    ///
    /// A published cooldown that is no longer shared was lifted by an operator. Cooldowns that started since stay.
    pub(crate) fn merge(&mut self, published: &[Cooldown], shared: Vec<Cooldown>) {
        for cooldown in published {
            if let Some(until) = self.0.get_mut(&cooldown.key)
                && until.ms == cooldown.until_ms
            {
                until.published = true;
            }
        }
        self.0.retain(|_, until| !until.published);

        for cooldown in shared {
            let shared = Until {
                ms: cooldown.until_ms,
                published: true,
            };
            let until = self.0.entry(cooldown.key).or_insert(shared);
            if until.ms <= shared.ms {
                *until = shared;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cooldown(key: &str, until_ms: i64) -> Cooldown {
        Cooldown {
            key: key.into(),
            until_ms,
        }
    }

    fn published(until_ms: i64) -> Until {
        Until {
            ms: until_ms,
            published: true,
        }
    }

    fn unpublished(until_ms: i64) -> Until {
        Until {
            ms: until_ms,
            published: false,
        }
    }

    fn all(cooldowns: &Cooldowns) -> Vec<(&str, Until)> {
        let all = cooldowns.0.iter();
        let mut all: Vec<_> = all.map(|(key, until)| (key.as_str(), *until)).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all
    }

    #[test]
    fn the_latest_deadline_wins_wherever_it_comes_from() {
        let mut cooldowns = Cooldowns::default();
        cooldowns.extend("a".into(), 50);
        cooldowns.extend("a".into(), 40);
        cooldowns.extend("b".into(), 70);
        assert_eq!(cooldowns.end("a", 49), Some(50));
        assert_eq!(cooldowns.end("a", 50), None);

        let sent = cooldowns.unpublished(0);
        assert_eq!(sent.len(), 2);
        let shared = vec![cooldown("a", 60), cooldown("b", 70), cooldown("c", 10)];
        cooldowns.merge(&sent, shared);
        assert_eq!(
            all(&cooldowns),
            [
                ("a", published(60)),
                ("b", published(70)),
                ("c", published(10))
            ]
        );

        cooldowns.extend("a".into(), 55);
        assert_eq!(cooldowns.unpublished(0), []);
    }

    #[test]
    fn a_lifted_cooldown_ends_and_one_that_started_since_stays() {
        let mut cooldowns = Cooldowns::default();
        cooldowns.extend("lifted".into(), 50);
        cooldowns.extend("extended".into(), 50);
        let sent = cooldowns.unpublished(0);

        cooldowns.extend("extended".into(), 80);
        cooldowns.extend("started".into(), 90);
        cooldowns.merge(&sent, vec![]);
        assert_eq!(
            all(&cooldowns),
            [("extended", unpublished(80)), ("started", unpublished(90))]
        );
    }

    #[test]
    fn a_cooldown_that_could_not_be_published_holds_in_this_process() {
        let mut cooldowns = Cooldowns::default();
        cooldowns.extend("a".into(), 50);
        cooldowns.merge(&[], vec![cooldown("b", 60)]);
        assert_eq!(cooldowns.end("a", 0), Some(50));
    }
}
