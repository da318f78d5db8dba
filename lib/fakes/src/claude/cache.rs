//! A rough token count, and a prompt cache that behaves like the provider's.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use claude::Usage;
use tokio::time::Instant;

/// The number of blocks before a marker that the provider searches for a cached prefix.
const LOOK_BACK: usize = 20;
/// Expired entries are removed when the cache holds more than this.
const MAX_ENTRIES: usize = 10_000;

/// One cacheable part of a prompt. A prefix is a sequence of blocks from the first.
pub(super) struct Block {
    pub(super) content: String,
    pub(super) tokens: u32,
    pub(super) marked: Option<Ttl>,
}

/// The lifetime of a cached prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ttl {
    FiveMinutes,
    Hour,
}

impl Ttl {
    fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::FiveMinutes => 5 * 60,
            Self::Hour => 60 * 60,
        })
    }
}

/// About four characters per token: not the provider's count, but a repeatable one.
pub(super) fn count(text: &str) -> u32 {
    u32::try_from(text.chars().count().div_ceil(4)).unwrap_or(u32::MAX)
}

/// Cached prefixes of all keys and models.
#[derive(Default)]
pub(super) struct Cache {
    /// Lifetime and expiry, by the hash of key, model and prefix.
    entries: HashMap<u64, (Ttl, Instant)>,
}

/// The hash of a prefix and its tokens.
type Prefix = (u64, u32);

impl Cache {
    /// Returns the tokens of a prompt by class, and caches the prefixes that its markers name.
    pub(super) fn charge(
        &mut self,
        key: &str,
        model: &str,
        blocks: &[Block],
        now: Instant,
    ) -> Usage {
        if self.entries.len() > MAX_ENTRIES {
            self.entries.retain(|_, (_, expiry)| *expiry > now);
        }

        let prefixes = prefixes(key, model, blocks);
        let markers: Vec<(usize, Ttl)> = blocks
            .iter()
            .enumerate()
            .filter_map(|(at, block)| Some((at, block.marked?)))
            .collect();
        let hit = self.longest_hit(&prefixes, &markers, now);

        let mut usage = Usage::default();
        let mut charged = 0;
        if let Some(at) = hit {
            charged = self.read(prefixes[at], now);
            usage.cache_read = charged;
        }

        let after_hit = |at: usize| hit.is_none_or(|hit| at > hit);
        for (marker, ttl) in markers.into_iter().filter(|&(at, _)| after_hit(at)) {
            let (hash, tokens) = prefixes[marker];
            match ttl {
                Ttl::FiveMinutes => usage.cache_write_5m += tokens - charged,
                Ttl::Hour => usage.cache_write_1h += tokens - charged,
            }

            charged = tokens;
            self.entries.insert(hash, (ttl, now + ttl.duration()));
        }

        let total = prefixes.last().map_or(0, |&(_, tokens)| tokens);
        usage.input = total - charged;
        usage
    }

    /// The last block of the longest cached prefix within reach of a marker.
    fn longest_hit(
        &self,
        prefixes: &[Prefix],
        markers: &[(usize, Ttl)],
        now: Instant,
    ) -> Option<usize> {
        let is_cached = |at: &usize| {
            let entry = self.entries.get(&prefixes[*at].0);
            entry.is_some_and(|(_, expiry)| *expiry > now)
        };

        markers.iter().rev().find_map(|&(marker, _)| {
            let mut reach = marker.saturating_sub(LOOK_BACK)..=marker;
            reach.rfind(is_cached)
        })
    }

    /// Extends the lifetime of a cached prefix and returns its tokens.
    fn read(&mut self, (hash, tokens): Prefix, now: Instant) -> u32 {
        if let Some((ttl, expiry)) = self.entries.get_mut(&hash) {
            *expiry = now + ttl.duration();
        }

        tokens
    }
}

/// The prefixes that end with each block.
fn prefixes(key: &str, model: &str, blocks: &[Block]) -> Vec<Prefix> {
    let mut hasher = DefaultHasher::new();
    (key, model).hash(&mut hasher);

    let mut total = 0_u32;
    blocks
        .iter()
        .map(|block| {
            block.content.hash(&mut hasher);
            total = total.saturating_add(block.tokens);
            (hasher.finish(), total)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(content: &str, marked: Option<Ttl>) -> Block {
        Block {
            content: content.into(),
            tokens: count(content),
            marked,
        }
    }

    /// A `*` marks a block; the expected tokens are input, cache write and cache read.
    #[test]
    fn a_prefix_is_written_once_and_then_read() {
        let now = Instant::now();
        let mut cache = Cache::default();
        let mut check =
            |key: &str, model: &str, prompt: &[&str], expected: (u32, u32, u32), at: u64| {
                let blocks: Vec<Block> = prompt
                    .iter()
                    .map(|text| match text.strip_suffix('*') {
                        Some(text) => block(text, Some(Ttl::FiveMinutes)),
                        None => block(text, None),
                    })
                    .collect();
                let usage = cache.charge(key, model, &blocks, now + Duration::from_secs(at));
                assert_eq!(
                    (usage.input, usage.cache_write_5m, usage.cache_read),
                    expected,
                    "{prompt:?}"
                );
            };
        check("k1", "m", &["ssss*", "aaaa*"], (0, 2, 0), 0);
        check("k1", "m", &["ssss*", "aaaa*"], (0, 0, 2), 0);
        check("k1", "m", &["ssss*", "aaaa", "bbbb", "cccc*"], (0, 2, 2), 0);
        check(
            "k1",
            "m",
            &["ssss*", "aaaa", "bbbb", "cccc", "dddd"],
            (4, 0, 1),
            0,
        );
        check("k1", "m", &["ssss*", "xxxx*"], (0, 1, 1), 0);
        check("k1", "m", &["ssss", "aaaa"], (2, 0, 0), 0);
        check("k2", "m", &["ssss*", "aaaa*"], (0, 2, 0), 0);
        check("k1", "n", &["ssss*", "aaaa*"], (0, 2, 0), 0);
        // Each read extends the lifetime by five minutes; an unread prefix expires.
        check("k2", "m", &["ssss*", "aaaa*"], (0, 0, 2), 240);
        check("k2", "m", &["ssss*", "aaaa*"], (0, 0, 2), 500);
        check("k2", "m", &["ssss*", "aaaa*"], (0, 2, 0), 900);
    }

    #[test]
    fn a_marker_finds_prefixes_up_to_twenty_blocks_back() {
        let mut cache = Cache::default();
        let now = Instant::now();
        let conversation = |turns: usize| {
            let mut blocks: Vec<Block> = (0..turns)
                .map(|turn| block(&turn.to_string(), None))
                .collect();
            blocks[turns - 1].marked = Some(Ttl::FiveMinutes);
            blocks
        };
        cache.charge("k", "m", &conversation(1), now);
        assert_eq!(cache.charge("k", "m", &conversation(21), now).cache_read, 1);
        assert_eq!(cache.charge("k", "m", &conversation(42), now).cache_read, 0);
    }

    #[test]
    fn a_lifetime_of_an_hour_is_charged_separately_and_lasts_longer() {
        let mut cache = Cache::default();
        let now = Instant::now();
        let blocks = [
            block("ssss", Some(Ttl::Hour)),
            block("aaaa", Some(Ttl::FiveMinutes)),
        ];
        let usage = cache.charge("k", "m", &blocks, now);
        assert_eq!((usage.cache_write_1h, usage.cache_write_5m), (1, 1));
        let later = cache.charge("k", "m", &blocks, now + Duration::from_secs(1800));
        assert_eq!((later.cache_read, later.cache_write_5m), (1, 1));
    }
}
