//! The provider's prompt cache for one conversation, by what is known of it.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use claude::Usage;

/// What is assumed of tokens and of the cache.
pub(super) const ASSUMPTIONS: &[&str] = &[
    "3.1 bytes a token: four for the older models, and a third more tokens with the present tokenizer",
    "a cached prefix lives 5 minutes from its last use; a marker finds what was cached up to 20 blocks before it",
    "prefixes below 1,024 tokens (Sonnet) and 4,096 (Haiku) are not cached, as with their predecessors; these may take less",
    "no two conversations share a prefix, though those about one topic with one icon could",
];

const BYTES_A_TOKEN: f64 = 3.1;
const TTL_SECS: i64 = 300;
const LOOK_BACK: usize = 20;

/// Tokens of so many bytes of text.
pub(super) fn tokens(bytes: usize) -> u32 {
    (bytes as f64 / BYTES_A_TOKEN).ceil() as u32
}

/// Prefixes by hash, and until when they live.
pub(super) struct Cache {
    known: HashMap<u64, i64>,
    least_tokens: u32,
}

impl Cache {
    pub(super) fn new(model: &str) -> Self {
        Self {
            known: HashMap::new(),
            least_tokens: if model.contains("haiku") {
                4_096
            } else {
                1_024
            },
        }
    }

    /// The prompt's tokens by class, of blocks and whether each is marked; remembers what the markers ask for.
    pub(super) fn charge(&mut self, blocks: &[(&str, bool)], now: i64) -> Usage {
        let (mut hasher, mut total) = (DefaultHasher::new(), 0);
        let prefixes: Vec<(u64, u32)> = blocks
            .iter()
            .map(|(text, _)| {
                text.hash(&mut hasher);
                total += tokens(text.len());
                (hasher.finish(), total)
            })
            .collect();
        let live = |at: &usize| {
            self.known
                .get(&prefixes[*at].0)
                .is_some_and(|until| *until > now)
        };
        let markers: Vec<usize> = (0..blocks.len()).filter(|at| blocks[*at].1).collect();
        let hit = markers
            .iter()
            .rev()
            .find_map(|at| (at.saturating_sub(LOOK_BACK)..=*at).rev().find(live));
        let mut usage = Usage::default();
        if let Some(at) = hit {
            self.known.insert(prefixes[at].0, now + TTL_SECS);
            usage.cache_read = prefixes[at].1;
        }
        let beyond = markers
            .into_iter()
            .filter(|at| hit.is_none_or(|hit| *at > hit));
        for at in beyond.filter(|at| prefixes[*at].1 >= self.least_tokens) {
            self.known.insert(prefixes[at].0, now + TTL_SECS);
            usage.cache_write_5m = prefixes[at].1 - usage.cache_read;
        }
        usage.input = total - usage.cache_read - usage.cache_write_5m;
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_read_within_five_minutes_and_a_short_one_never() {
        let (system, long) = ("s".repeat(3_100), "t".repeat(3_100));
        let mut cache = Cache::new("claude-sonnet-5-5");
        let mut check = |blocks: &[(&str, bool)], now, expected| {
            let usage = cache.charge(blocks, now);
            assert_eq!(
                (usage.input, usage.cache_write_5m, usage.cache_read),
                expected
            );
        };
        check(&[(&system, true)], 0, (1_000, 0, 0));
        check(&[(&system, true), (&long, true)], 0, (0, 2_000, 0));
        check(
            &[(&system, true), (&long, false), ("abc", true)],
            299,
            (0, 1, 2_000),
        );
        check(
            &[
                (&system, true),
                (&long, false),
                ("abc", false),
                ("def", true),
            ],
            598,
            (0, 1, 2_001),
        );
        check(&[(&system, true), (&long, true)], 1_000, (0, 2_000, 0));
    }
}
