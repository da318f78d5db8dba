//! A model of Claude's prompt cache for one conversation.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use claude::Usage;

/// Assumptions on tokens and on the cache.
pub(super) const ASSUMPTIONS: &[&str] = &[
    "a token has 3.1 bytes: four with older models, and the present tokenizer makes a third more \
     tokens",
    "a cached prefix lives 5 minutes from its last use; a marker finds prefixes cached up to 20 \
     blocks earlier",
    "prefixes below 1,024 tokens (Sonnet) and 4,096 (Haiku) are not cached, as with their \
     predecessors; the real minimum may be lower",
    "no two conversations share a prefix, though those on one topic with one icon could",
];

const BYTES_PER_TOKEN: f64 = 3.1;
const TTL_SECS: i64 = 300;
const LOOKBACK_BLOCKS: usize = 20;

/// The number of tokens in a text of so many bytes.
pub(super) fn tokens(bytes: usize) -> u32 {
    (bytes as f64 / BYTES_PER_TOKEN).ceil() as u32
}

/// The cached prefixes, by hash, with their time of expiry.
pub(super) struct Cache {
    expires_at: HashMap<u64, i64>,
    min_tokens: u32,
}

impl Cache {
    pub(super) fn new(model: &str) -> Self {
        let min_tokens = if model.contains("haiku") {
            4_096
        } else {
            1_024
        };

        Self {
            expires_at: HashMap::new(),
            min_tokens,
        }
    }

    /// The usage of a prompt of these blocks, some of them marked for the cache. Stores the
    /// marked prefixes.
    pub(super) fn charge(&mut self, blocks: &[(&str, bool)], now: i64) -> Usage {
        let prefixes = prefixes(blocks);
        let markers: Vec<usize> = (0..blocks.len()).filter(|at| blocks[*at].1).collect();
        let hit = self.longest_hit(&prefixes, &markers, now);

        let mut usage = Usage::default();
        if let Some(at) = hit {
            self.expires_at.insert(prefixes[at].0, now + TTL_SECS);
            usage.cache_read = prefixes[at].1;
        }

        for at in markers {
            let (hash, tokens) = prefixes[at];
            let is_beyond_hit = hit.is_none_or(|hit| at > hit);
            if is_beyond_hit && tokens >= self.min_tokens {
                self.expires_at.insert(hash, now + TTL_SECS);
                usage.cache_write_5m = tokens - usage.cache_read;
            }
        }
        let total = prefixes.last().map_or(0, |(_, tokens)| *tokens);
        usage.input = total - usage.cache_read - usage.cache_write_5m;

        usage
    }

    fn longest_hit(&self, prefixes: &[(u64, u32)], markers: &[usize], now: i64) -> Option<usize> {
        let is_cached = |at: &usize| {
            let expires_at = self.expires_at.get(&prefixes[*at].0);
            expires_at.is_some_and(|expires_at| *expires_at > now)
        };

        markers.iter().rev().find_map(|marker| {
            let first = marker.saturating_sub(LOOKBACK_BLOCKS);
            (first..=*marker).rev().find(is_cached)
        })
    }
}

/// The prompt's prefixes up to each block: their hashes and numbers of tokens.
fn prefixes(blocks: &[(&str, bool)]) -> Vec<(u64, u32)> {
    let mut hasher = DefaultHasher::new();
    let mut total = 0;
    let prefixes = blocks.iter().map(|(text, _)| {
        text.hash(&mut hasher);
        total += tokens(text.len());
        (hasher.finish(), total)
    });

    prefixes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_cached_for_five_minutes_if_it_is_long_enough() {
        let system = "s".repeat(3_100);
        let long = "t".repeat(3_100);
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
