//! Until when what is left alone: a key, an organisation, or a model with every key. The latest deadline wins.

use std::collections::HashMap;

/// A scope and the moment, in epoch milliseconds, at which it may be asked again.
pub type Deadline = (String, i64);

/// The deadlines that this process knows, and which of them others know too.
#[derive(Debug, Default)]
pub(super) struct Cooldowns(HashMap<String, Until>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Until {
    ms: i64,
    /// Whether it is known where all instances look.
    shared: bool,
}

impl Cooldowns {
    /// Leaves a scope alone until then, or for longer if that was known already.
    pub(super) fn raise(&mut self, scope: String, until_ms: i64) {
        let until = self.0.entry(scope).or_insert(Until {
            ms: i64::MIN,
            shared: true,
        });
        if until.ms < until_ms {
            *until = Until {
                ms: until_ms,
                shared: false,
            };
        }
    }

    /// When a scope may be asked again, if not now.
    pub(super) fn end(&self, scope: &str, now_ms: i64) -> Option<i64> {
        self.0
            .get(scope)
            .map(|until| until.ms)
            .filter(|until_ms| *until_ms > now_ms)
    }

    /// What others have not been told yet.
    pub(super) fn untold(&self, now_ms: i64) -> Vec<Deadline> {
        let untold = self
            .0
            .iter()
            .filter(|(_, until)| !until.shared && until.ms > now_ms);
        untold
            .map(|(scope, until)| (scope.clone(), until.ms))
            .collect()
    }

    /// Takes over what all instances know, after they were told `told`: whatever they do not know any more was lifted
    /// by an operator. What was learned since stands.
    pub(super) fn follow(&mut self, told: &[Deadline], known: Vec<Deadline>) {
        for (scope, ms) in told {
            if let Some(until) = self.0.get_mut(scope).filter(|until| until.ms == *ms) {
                until.shared = true;
            }
        }
        self.0.retain(|_, until| !until.shared);
        for (scope, ms) in known {
            let until = self.0.entry(scope).or_insert(Until { ms, shared: true });
            if until.ms <= ms {
                *until = Until { ms, shared: true };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(cooldowns: &Cooldowns) -> Vec<(&str, i64, bool)> {
        let mut all: Vec<_> = cooldowns
            .0
            .iter()
            .map(|(scope, it)| (scope.as_str(), it.ms, it.shared))
            .collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn the_latest_deadline_wins_whoever_knew_it() {
        let mut cooldowns = Cooldowns::default();
        cooldowns.raise("a".into(), 50);
        cooldowns.raise("a".into(), 40);
        cooldowns.raise("b".into(), 70);
        assert_eq!(
            (cooldowns.end("a", 49), cooldowns.end("a", 50)),
            (Some(50), None)
        );
        let told = cooldowns.untold(0);
        assert_eq!(told.len(), 2);
        cooldowns.follow(
            &told,
            vec![("a".into(), 60), ("b".into(), 70), ("c".into(), 10)],
        );
        assert_eq!(
            all(&cooldowns),
            [("a", 60, true), ("b", 70, true), ("c", 10, true)]
        );
        cooldowns.raise("a".into(), 55);
        assert_eq!(cooldowns.untold(0), []);
    }

    #[test]
    fn what_was_lifted_ends_and_what_was_learned_meanwhile_stands() {
        let mut cooldowns = Cooldowns::default();
        cooldowns.raise("lifted".into(), 50);
        cooldowns.raise("raised".into(), 50);
        let told = cooldowns.untold(0);
        cooldowns.raise("raised".into(), 80);
        cooldowns.raise("learned".into(), 90);
        cooldowns.follow(&told, vec![]);
        assert_eq!(
            all(&cooldowns),
            [("learned", 90, false), ("raised", 80, false)]
        );
    }

    #[test]
    fn what_nobody_could_be_told_holds_here() {
        let mut cooldowns = Cooldowns::default();
        cooldowns.raise("a".into(), 50);
        cooldowns.follow(&[], vec![("b".into(), 60)]);
        assert_eq!(cooldowns.end("a", 0), Some(50));
    }
}
