//! Tokens, counted roughly, and a prompt cache that behaves like the provider's.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use claude::Usage;
use tokio::time::Instant;

/// How far before a marker the provider looks for what it knows.
const LOOK_BACK: usize = 20;
const MOST_ENTRIES: usize = 10_000;

/// One cacheable piece of a prompt, in the order that prefixes are built from.
pub(super) struct Block {
    pub(super) content: String,
    pub(super) tokens: u32,
    pub(super) marked: Option<Ttl>,
}

/// How long a written prefix is kept.
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

/// About four characters a token: not the provider's count, but the same every time.
pub(super) fn count(text: &str) -> u32 {
    u32::try_from(text.chars().count().div_ceil(4)).unwrap_or(u32::MAX)
}

/// Prefixes seen, by key and model.
#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<u64, (Ttl, Instant)>,
}

impl Cache {
    /// The prompt's tokens by class; remembers what the markers ask for.
    pub(super) fn charge(
        &mut self,
        key: &str,
        model: &str,
        blocks: &[Block],
        now: Instant,
    ) -> Usage {
        if self.entries.len() > MOST_ENTRIES {
            self.entries.retain(|_, (_, until)| *until > now);
        }
        let mut hasher = DefaultHasher::new();
        (key, model).hash(&mut hasher);
        let mut total = 0_u32;
        let prefixes: Vec<(u64, u32)> = blocks
            .iter()
            .map(|block| {
                block.content.hash(&mut hasher);
                total = total.saturating_add(block.tokens);
                (hasher.finish(), total)
            })
            .collect();
        let markers: Vec<(usize, Ttl)> = blocks
            .iter()
            .enumerate()
            .filter_map(|(at, block)| Some((at, block.marked?)))
            .collect();

        let known = |at: &usize| {
            self.entries
                .get(&prefixes[*at].0)
                .is_some_and(|(_, until)| *until > now)
        };
        let hit = markers.iter().rev().find_map(|&(marker, _)| {
            (marker.saturating_sub(LOOK_BACK)..=marker)
                .rev()
                .find(known)
        });
        let mut usage = Usage::default();
        let mut charged = 0;
        if let Some(at) = hit {
            let (hash, tokens) = prefixes[at];
            if let Some((ttl, until)) = self.entries.get_mut(&hash) {
                *until = now + ttl.duration();
            }
            usage.cache_read = tokens;
            charged = tokens;
        }
        for (marker, ttl) in markers
            .into_iter()
            .filter(|&(marker, _)| hit.is_none_or(|at| marker > at))
        {
            let (hash, tokens) = prefixes[marker];
            match ttl {
                Ttl::FiveMinutes => usage.cache_write_5m += tokens - charged,
                Ttl::Hour => usage.cache_write_1h += tokens - charged,
            }
            charged = tokens;
            self.entries.insert(hash, (ttl, now + ttl.duration()));
        }
        usage.input = total - charged;
        usage
    }
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

    /// Each case is a conversation: prompts as `text` or `text*` where marked, then input, write, read.
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
        // Read again after four minutes, it lives for five more; unread it is gone after five.
        check("k2", "m", &["ssss*", "aaaa*"], (0, 0, 2), 240);
        check("k2", "m", &["ssss*", "aaaa*"], (0, 0, 2), 500);
        check("k2", "m", &["ssss*", "aaaa*"], (0, 2, 0), 900);
    }

    #[test]
    fn a_marker_finds_nothing_more_than_twenty_blocks_back() {
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
    fn an_hour_is_charged_apart_and_lasts_longer() {
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
