//! The people who write on a simulated day.

use iconoclash::{conversation::prompt::Persona, spending::plan::Plan};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Assumptions on people and replies.
pub(super) const ASSUMPTIONS: &[&str] = &[
    "30 % guests with 3 messages, 55 % free users with 5, 15 % Pro users with 9: 5 on average",
    "one conversation per user; guests' are new, half of the others' continue earlier days, with \
     1 to 60 exchanges (geometric, mean 12, for Pro users 24)",
    "a message has 160 bytes (median, log-normal, sigma 1.0, at most 8,000), a reply 1,000 \
     (sigma 0.5)",
    "the pause between messages is 80 s (median, log-normal, sigma 1.0); one in ten is 4 hours",
    "one conversation in five has two to four icons; four in five have no title from the user",
    "no model thinks, as each request asks; with thinking, it adds 40 % to the billed output",
    "a summary has 1,800 bytes, a title 12 tokens",
];

/// Thinking tokens per token of the reply.
pub(super) const THINKING: f64 = 0.4;
pub(super) const SUMMARY_BYTES: usize = 1_800;

/// The conversations of one day.
pub(super) struct Day {
    pub(super) conversations: Vec<Conversation>,
}

/// A conversation.
pub(super) struct Conversation {
    pub(super) plan: Plan,
    pub(super) personas: Vec<Persona>,
    pub(super) topic: String,
    pub(super) is_untitled: bool,
    pub(super) exchanges: Vec<Exchange>,
}

/// A message and its reply, before any truncation.
pub(super) struct Exchange {
    /// Seconds since the start of the day; negative on earlier days.
    pub(super) at_secs: i64,
    pub(super) message: String,
    pub(super) reply: String,
}

impl Day {
    /// The random day of this seed.
    pub(super) fn generate(users: usize, icons: &[Persona], seed: u64) -> Self {
        let mut random = Random(SmallRng::seed_from_u64(seed));
        let plan = |user: usize| match user * 100 / users {
            0..30 => Plan::Guest,
            30..85 => Plan::Free,
            _ => Plan::Pro,
        };
        let conversations = (0..users).map(|user| random.conversation(plan(user), icons));

        Self {
            conversations: conversations.collect(),
        }
    }
}

/// The day's random numbers. The order of the draws is part of a day: keep it.
struct Random(SmallRng);

impl Random {
    fn conversation(&mut self, plan: Plan, icons: &[Persona]) -> Conversation {
        let (messages_today, mean_earlier) = match plan {
            Plan::Guest => (3, 0.0),
            Plan::Free => (5, 12.0),
            Plan::Pro => (9, 24.0),
        };

        let continues = plan != Plan::Guest && self.one_in(2);
        let earlier = if continues {
            (1.0 - mean_earlier * self.unit().ln()).min(60.0) as usize
        } else {
            0
        };
        let personas = self.personas(icons);
        let exchanges = self.exchanges(earlier, messages_today);
        let topic = text(self.log_normal(60.0, 0.6).clamp(8.0, 2_000.0) as usize);

        Conversation {
            plan,
            personas,
            topic,
            is_untitled: !self.one_in(5),
            exchanges,
        }
    }

    fn personas(&mut self, icons: &[Persona]) -> Vec<Persona> {
        let count = if self.one_in(5) {
            self.0.random_range(2..=4)
        } else {
            1
        };
        let first = self.0.random_range(0..icons.len());

        (0..count)
            .map(|index| icons[(first + index) % icons.len()].clone())
            .collect()
    }

    fn exchanges(&mut self, earlier: usize, today: usize) -> Vec<Exchange> {
        let mut at_secs = -i64::try_from(earlier).unwrap_or_default() * 3_600;
        let mut exchanges = Vec::new();

        for number in 0..earlier + today {
            at_secs = if number < earlier {
                at_secs + 1_800
            } else if number == earlier {
                self.0.random_range(0..43_200)
            } else if self.one_in(10) {
                at_secs + 14_400
            } else {
                at_secs + 15 + self.log_normal(80.0, 1.0) as i64
            };
            let message = text(self.log_normal(160.0, 1.0).clamp(4.0, 8_000.0) as usize);
            let reply = text(self.log_normal(1_000.0, 0.5).clamp(20.0, 20_000.0) as usize);
            exchanges.push(Exchange {
                at_secs,
                message,
                reply,
            });
        }

        exchanges
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.0.random_range(0..count) == 0
    }

    /// Above 0, below 1.
    fn unit(&mut self) -> f64 {
        self.0.random_range(1e-9..1.0)
    }

    fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();

        median * (sigma * normal).exp()
    }
}

/// Text of this length; its words do not change the costs.
pub(super) fn text(bytes: usize) -> String {
    "word ".repeat(bytes / 5 + 1)[..bytes.max(1)].to_owned()
}
