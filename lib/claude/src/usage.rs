//! Token counts, by price class.

use serde::Deserialize;

/// Tokens of one request by price class. The prompt is the sum of all but `output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens neither read from the cache nor written to it.
    pub input: u32,
    /// Prompt tokens written to the cache for five minutes.
    pub cache_write_5m: u32,
    /// Prompt tokens written to the cache for an hour.
    pub cache_write_1h: u32,
    /// Prompt tokens read from the cache.
    pub cache_read: u32,
    /// Tokens of the reply, thinking included.
    pub output: u32,
}

/// One report on the wire.
#[derive(Default, Deserialize)]
pub(crate) struct WireUsage {
    input_tokens: Option<u32>,
    cache_creation_input_tokens: Option<u32>,
    cache_creation: Option<WireCacheCreation>,
    cache_read_input_tokens: Option<u32>,
    output_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct WireCacheCreation {
    #[serde(default)]
    ephemeral_5m_input_tokens: u32,
    #[serde(default)]
    ephemeral_1h_input_tokens: u32,
}

/// The sum of a reply's reports. Each report is cumulative and may omit fields.
#[derive(Default)]
pub(crate) struct ReportedUsage {
    input: u32,
    cache_write: u32,
    cache_write_1h: u32,
    cache_read: u32,
    output: u32,
}

impl ReportedUsage {
    pub(crate) fn absorb(&mut self, report: &WireUsage) {
        let update = |field: &mut u32, reported: Option<u32>| {
            *field = reported.unwrap_or(*field);
        };
        update(&mut self.input, report.input_tokens);
        update(&mut self.cache_write, report.cache_creation_input_tokens);
        update(&mut self.cache_read, report.cache_read_input_tokens);
        update(&mut self.output, report.output_tokens);

        if let Some(split) = &report.cache_creation {
            let sum = split
                .ephemeral_5m_input_tokens
                .saturating_add(split.ephemeral_1h_input_tokens);

            self.cache_write_1h = split.ephemeral_1h_input_tokens;
            self.cache_write = self.cache_write.max(sum);
        }
    }

    /// Only the start of a message carries the split of cache writes. Writes beyond it are for five minutes.
    pub(crate) fn by_price_class(&self) -> Usage {
        let cache_write_1h = self.cache_write_1h.min(self.cache_write);

        Usage {
            input: self.input,
            cache_write_5m: self.cache_write - cache_write_1h,
            cache_write_1h,
            cache_read: self.cache_read,
            output: self.output,
        }
    }
}
