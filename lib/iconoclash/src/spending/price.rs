//! What a request costs, by the provider's list prices as dated rows.
//!
//! `prices.json` holds micro-dollars per million tokens, so $0.10 per million is 100000. A change of
//! price is a new row with its first day; rows are never edited, as the ledger was written by them.

use std::sync::LazyLock;

use serde::Deserialize;
use time::{Date, OffsetDateTime, UtcOffset};

use claude::Usage;

#[derive(Deserialize)]
struct Row {
    model: String,
    /// First UTC day.
    #[serde(with = "day")]
    effective_from: Date,
    /// The row is for requests whose whole prompt, cached or not, is longer than this; 0 is for all.
    prompt_over: u64,
    input: u64,
    output: u64,
    cache_write_5m: u64,
    cache_write_1h: u64,
    cache_read: u64,
}

time::serde::format_description!(day, Date, "[year]-[month]-[day]");

static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("prices.json")).expect("prices.json is tested")
});

/// What one request costs, and by which price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Micro-dollars, rounded up once.
    pub microusd: i64,
    /// What the same request would have cost without the prompt cache, less this.
    pub saved_microusd: i64,
    /// The first day of the price.
    pub price_date: Date,
}

/// The price of one request; `None` for a model without a price.
///
/// A time before a model's first row is priced by that row: a request that happened has a price.
pub fn cost(model: &str, usage: &Usage, at: OffsetDateTime) -> Option<Cost> {
    let row = row(alias(model)?, usage, at.to_offset(UtcOffset::UTC).date())?;
    let microusd = row.price(usage)?;
    let prompt = [
        usage.input,
        usage.cache_write_5m,
        usage.cache_write_1h,
        usage.cache_read,
    ];
    let input = prompt.into_iter().fold(0, u32::saturating_add);
    let uncached = row.price(&Usage {
        input,
        output: usage.output,
        ..Usage::default()
    })?;
    Some(Cost {
        microusd,
        saved_microusd: uncached - microusd,
        price_date: row.effective_from,
    })
}

impl Row {
    fn price(&self, usage: &Usage) -> Option<i64> {
        let total: u128 = [
            (usage.input, self.input),
            (usage.cache_write_5m, self.cache_write_5m),
            (usage.cache_write_1h, self.cache_write_1h),
            (usage.cache_read, self.cache_read),
            (usage.output, self.output),
        ]
        .into_iter()
        .map(|(tokens, price)| u128::from(tokens) * u128::from(price))
        .sum();
        i64::try_from(total.div_ceil(1_000_000)).ok()
    }
}

/// Micro-dollars per million tokens, of the dearest kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rates {
    /// Of a prompt of which all is written to the cache for five minutes, as ours are.
    pub prompt: u64,
    /// Of a reply.
    pub output: u64,
}

/// The most that a token may cost in a request whose prompt has at most so many tokens.
pub(crate) fn max_rates(model: &str, prompt_tokens: u32, at: OffsetDateTime) -> Option<Rates> {
    let longest = Usage {
        input: prompt_tokens,
        ..Usage::default()
    };
    let row = row(alias(model)?, &longest, at.to_offset(UtcOffset::UTC).date())?;
    Some(Rates {
        prompt: row.input.max(row.cache_write_5m).max(row.cache_read),
        output: row.output,
    })
}

/// Whether requests to this model can be priced.
pub fn is_known(model: &str) -> bool {
    alias(model).is_some()
}

/// The id that prices go by: `claude-haiku-4-5-20251001` is `claude-haiku-4-5`.
fn alias(model: &str) -> Option<&str> {
    let is_priced = |id: &str| ROWS.iter().any(|row| row.model == id);
    if is_priced(model) {
        return Some(model);
    }
    let (id, date) = model.rsplit_once('-')?;
    let dated = date.len() == 8 && date.bytes().all(|digit| digit.is_ascii_digit());
    (dated && is_priced(id)).then_some(id)
}

fn row(id: &str, usage: &Usage, day: Date) -> Option<&'static Row> {
    let prompt = [
        usage.input,
        usage.cache_write_5m,
        usage.cache_write_1h,
        usage.cache_read,
    ];
    let prompt: u64 = prompt.into_iter().map(u64::from).sum();
    let of_model = || ROWS.iter().filter(|row| row.model == id);
    let starts = || of_model().map(|row| row.effective_from);
    let start = starts()
        .filter(|start| *start <= day)
        .max()
        .or_else(|| starts().min())?;
    of_model()
        .filter(|row| {
            row.effective_from == start && (row.prompt_over == 0 || prompt > row.prompt_over)
        })
        .max_by_key(|row| row.prompt_over)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-24 12:00 UTC);
    const NONE: Usage = Usage {
        input: 0,
        cache_write_5m: 0,
        cache_write_1h: 0,
        cache_read: 0,
        output: 0,
    };

    #[track_caller]
    fn check(model: &str, usage: Usage, at: OffsetDateTime, expected: Option<i64>) {
        assert_eq!(
            cost(model, &usage, at).map(|cost| cost.microusd),
            expected,
            "{model} {usage:?}"
        );
    }

    #[test]
    fn every_class_has_its_own_price() {
        let million = |class: fn(&mut Usage) -> &mut u32| {
            let mut usage = NONE;
            *class(&mut usage) = 1_000_000;
            usage
        };
        for (model, prices) in [
            (
                "claude-opus-5-5",
                [4_000_000, 5_000_000, 8_000_000, 200_000, 20_000_000],
            ),
            (
                "claude-sonnet-5-5",
                [2_000_000, 2_500_000, 4_000_000, 100_000, 10_000_000],
            ),
            (
                "claude-opus-5",
                [5_000_000, 6_250_000, 10_000_000, 500_000, 25_000_000],
            ),
            (
                "claude-haiku-4-5",
                [1_000_000, 1_250_000, 2_000_000, 100_000, 5_000_000],
            ),
        ] {
            check(
                model,
                million(|usage| &mut usage.input),
                NOW,
                Some(prices[0]),
            );
            check(
                model,
                million(|usage| &mut usage.cache_write_5m),
                NOW,
                Some(prices[1]),
            );
            check(
                model,
                million(|usage| &mut usage.cache_write_1h),
                NOW,
                Some(prices[2]),
            );
            check(
                model,
                million(|usage| &mut usage.cache_read),
                NOW,
                Some(prices[3]),
            );
            check(
                model,
                million(|usage| &mut usage.output),
                NOW,
                Some(prices[4]),
            );
        }
    }

    #[test]
    fn a_request_is_rounded_up_once() {
        // Haiku 5.5: 1,234 × 0.10 + 56 × 0.125 + 7 × 0.20 + 8,900 × 0.01 + 321 × 0.50 = 381.3
        let usage = Usage {
            input: 1_234,
            cache_write_5m: 56,
            cache_write_1h: 7,
            cache_read: 8_900,
            output: 321,
        };
        check("claude-haiku-5-5", usage, NOW, Some(382));
        check("claude-haiku-5-5", Usage { input: 1, ..NONE }, NOW, Some(1));
        check(
            "claude-haiku-5-5",
            Usage { input: 10, ..NONE },
            NOW,
            Some(1),
        );
        check(
            "claude-haiku-5-5",
            Usage { input: 11, ..NONE },
            NOW,
            Some(2),
        );
        check("claude-haiku-5-5", NONE, NOW, Some(0));
        // The most that 32 bits can say, at the dearest price of all: no overflow on the way.
        let most = Usage {
            output: u32::MAX,
            ..NONE
        };
        check("claude-opus-5", most, NOW, Some(107_374_182_375));
    }

    #[test]
    fn a_long_prompt_makes_the_whole_request_dearer() {
        let at_the_edge = Usage {
            input: 20_000,
            cache_write_5m: 30_000,
            cache_read: 50_000,
            output: 1_000,
            ..NONE
        };
        // 20,000 × 0.10 + 30,000 × 0.125 + 50,000 × 0.01 + 1,000 × 0.50
        check("claude-haiku-5-5", at_the_edge, NOW, Some(6_750));
        let beyond = Usage {
            cache_read: 50_001,
            ..at_the_edge
        };
        // 20,000 × 0.50 + 30,000 × 0.625 + 50,001 × 0.05 + 1,000 × 2.50 = 33,750.05
        check("claude-haiku-5-5", beyond, NOW, Some(33_751));
        let long_reply = Usage {
            input: 100_000,
            output: 100_000,
            ..NONE
        };
        check("claude-haiku-5-5", long_reply, NOW, Some(60_000));
        check(
            "claude-sonnet-5-5",
            Usage {
                input: 200_000,
                ..NONE
            },
            NOW,
            Some(400_000),
        );
    }

    #[test]
    fn a_price_holds_from_its_first_utc_day() {
        let read = Usage {
            cache_read: 1_000_000,
            ..NONE
        };
        check(
            "claude-sonnet-5-5",
            read,
            datetime!(2026-10-06 23:59:59 UTC),
            Some(200_000),
        );
        check(
            "claude-sonnet-5-5",
            read,
            datetime!(2026-10-07 00:00 UTC),
            Some(100_000),
        );
        check(
            "claude-sonnet-5-5",
            read,
            datetime!(2026-10-07 01:00 +02:00),
            Some(200_000),
        );
        check(
            "claude-sonnet-5-5",
            read,
            datetime!(2020-01-01 00:00 UTC),
            Some(200_000),
        );
    }

    #[test]
    fn a_cost_says_by_which_price_and_what_the_cache_saved() {
        let at = |day| {
            cost(
                "claude-sonnet-5-5",
                &Usage {
                    cache_read: 1_000_000,
                    ..NONE
                },
                day,
            )
            .unwrap()
        };
        let old = at(datetime!(2026-10-06 12:00 UTC));
        let new = at(NOW);
        assert_eq!(
            (old.price_date, old.saved_microusd),
            (time::macros::date!(2026 - 09 - 01), 1_800_000)
        );
        assert_eq!(
            (new.price_date, new.saved_microusd),
            (time::macros::date!(2026 - 10 - 07), 1_900_000)
        );
        let written = Usage {
            cache_write_5m: 10_000,
            output: 10,
            ..NONE
        };
        assert_eq!(
            cost("claude-haiku-5-5", &written, NOW)
                .unwrap()
                .saved_microusd,
            -250
        );
    }

    #[test]
    fn ids_with_a_date_are_their_alias() {
        let usage = Usage {
            input: 1_000_000,
            ..NONE
        };
        check("claude-haiku-4-5-20251001", usage, NOW, Some(1_000_000));
        for unknown in [
            "",
            "claude",
            "claude-haiku-4-5-2025100",
            "claude-haiku-4-5-latest",
            "gpt-9-20251001",
        ] {
            check(unknown, usage, NOW, None);
            assert!(!is_known(unknown));
        }
        assert!(is_known("claude-opus-5-5") && is_known("claude-opus-5-5-20260901"));
    }

    #[test]
    fn no_request_costs_more_than_its_dearest_rates() {
        for row in ROWS.iter() {
            for tokens in [1, 99_999, 100_000, 100_001, 400_000] {
                let Rates { prompt, output } = max_rates(&row.model, tokens, NOW).unwrap();
                let most = (u64::from(tokens) * prompt + 700 * output).div_ceil(1_000_000);
                for shares in [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [3, 7, 2]] {
                    let share = |of: u32| tokens / shares.iter().sum::<u32>() * of;
                    let [input, cache_write_5m, cache_read] = shares.map(share);
                    let usage = Usage {
                        input,
                        cache_write_5m,
                        cache_read,
                        output: 700,
                        ..NONE
                    };
                    let cost = cost(&row.model, &usage, NOW).unwrap().microusd;
                    assert!(
                        cost <= i64::try_from(most).unwrap(),
                        "{} {usage:?}: {cost} > {most}",
                        row.model
                    );
                }
            }
        }
        assert_eq!(max_rates("gpt", 1, NOW), None);
    }

    #[test]
    fn rows_are_unambiguous_and_complete() {
        for (at, row) in ROWS.iter().enumerate() {
            let key = |row: &Row| (row.model.clone(), row.effective_from, row.prompt_over);
            assert!(
                ROWS[..at].iter().all(|other| key(other) != key(row)),
                "{:?}",
                key(row)
            );
            let base = |other: &Row| {
                other.model == row.model
                    && other.effective_from == row.effective_from
                    && other.prompt_over == 0
            };
            assert!(
                ROWS.iter().any(base),
                "{:?} has no row for short prompts",
                key(row)
            );
        }
    }
}
