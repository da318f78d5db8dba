//! What a call used: the provider's report, completed by an estimate where there is none.

use std::time::Duration;

/// No model generates faster.
const MAX_TOKENS_PER_SECOND: f64 = 300.0;

/// What a call used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UsageReport {
    pub(crate) tokens: claude::Usage,
    /// Whether a part is an estimate, because the provider did not report it.
    pub(crate) estimated: bool,
    /// Whether the provider reported that the reply began, so that it is certainly billed.
    pub(crate) begun: bool,
}

impl UsageReport {
    /// Usage of a reply that produced `text`.
    ///
    /// The provider reports the prompt when the reply begins, and the output when it ends. Without a final report the
    /// output is estimated: a token is at least two bytes in every language, and a model that was thinking, which is not
    /// streamed, may have used all of `max_tokens`. The estimate is never less than what was reported.
    pub(crate) fn of_stream(reply: &claude::Reply, text: &str, max_tokens: u32) -> Self {
        let reported = reply.usage();
        if reply.stop_reason().is_some() {
            return Self {
                tokens: reported,
                estimated: false,
                begun: true,
            };
        }

        let written = match reply.has_thought() {
            true => max_tokens,
            false => max_tokens_of(text.len()).min(max_tokens),
        };
        let output = reported.output.max(written);
        Self {
            tokens: claude::Usage { output, ..reported },
            estimated: output > reported.output,
            begun: true,
        }
    }

    /// Usage of a call that the provider did not answer with a reply, in its last attempt.
    pub(crate) fn of_failure(error: &claude::Error, prompt_bytes: usize) -> Self {
        match error.may_be_billed() {
            true => Self::unanswered(prompt_bytes),
            false => Self::default(),
        }
    }

    /// Usage of a call that was dropped `elapsed` after it was made, without reading its text.
    pub(crate) fn of_dropped(
        reply: Option<&claude::Reply>,
        prompt_bytes: usize,
        elapsed: Duration,
        max_tokens: u32,
    ) -> Self {
        let mut report = match reply {
            Some(reply) => Self {
                tokens: reply.usage(),
                estimated: true,
                begun: true,
            },
            None => Self::unanswered(prompt_bytes),
        };

        let generated = (elapsed.as_secs_f64() * MAX_TOKENS_PER_SECOND).ceil() as u32;
        let output = &mut report.tokens.output;
        *output = (*output).max(generated.min(max_tokens));
        report
    }

    /// Usage of a call that was given up before the provider answered: it has probably read the prompt.
    pub(crate) fn unanswered(prompt_bytes: usize) -> Self {
        let tokens = claude::Usage {
            cache_write_5m: max_tokens_of(prompt_bytes),
            ..claude::Usage::default()
        };
        Self {
            tokens,
            estimated: true,
            begun: false,
        }
    }
}

/// An upper bound of the tokens of a text.
fn max_tokens_of(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(2)).unwrap_or(u32::MAX)
}
