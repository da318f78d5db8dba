//! Who writes on a day, how much and how fast.

use iconoclash::{conversation::prompt::Persona, spending::plan::Plan};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// What is assumed of people and of what they are answered.
pub(super) const ASSUMPTIONS: &[&str] = &[
    "30 % guests with 3 messages, 55 % free users with 5, 15 % Pro users with 9: five a user on average",
    "one conversation a user; guests' are new, of the others' half go on from earlier days, with 1 to 60 exchanges before \
     (geometric, mean 12, of Pro users 24)",
    "a message has 160 bytes (median, log-normal, sigma 1.0, at most 8,000), a reply 1,000 (sigma 0.5)",
    "between two messages lie 80 s and the reply (median, log-normal, sigma 1.0); one pause in ten is of 4 hours",
    "one conversation in five has two to four icons; four in five were not given a title",
    "no model thinks before it speaks, as each request asks; one that may thinks 40 % of what it says, billed as output",
    "a summary has 1,800 bytes, a title 12 tokens",
];

pub(super) const THOUGHT: f64 = 0.4;
pub(super) const SUMMARY_BYTES: usize = 1_800;

/// The conversations of one day.
pub(super) struct Day {
    pub(super) talks: Vec<Talk>,
}

/// A conversation.
pub(super) struct Talk {
    pub(super) plan: Plan,
    pub(super) personas: Vec<Persona>,
    pub(super) topic: String,
    pub(super) untitled: bool,
    pub(super) exchanges: Vec<Exchange>,
}

/// A message and its reply, at full length.
pub(super) struct Exchange {
    /// Since the day began; before zero it is of an earlier day.
    pub(super) at_secs: i64,
    pub(super) message: String,
    pub(super) reply: String,
}

impl Day {
    pub(super) fn of(users: usize, icons: &[Persona], seed: u64) -> Self {
        let mut chance = Chance(SmallRng::seed_from_u64(seed));
        let plan = |user: usize| match user * 100 / users {
            0..30 => Plan::Guest,
            30..85 => Plan::Free,
            _ => Plan::Pro,
        };
        Self {
            talks: (0..users)
                .map(|user| chance.talk(plan(user), icons))
                .collect(),
        }
    }
}

/// The day's dice.
struct Chance(SmallRng);

impl Chance {
    fn talk(&mut self, plan: Plan, icons: &[Persona]) -> Talk {
        let (today, mean) = match plan {
            Plan::Guest => (3, 0.0),
            Plan::Free => (5, 12.0),
            Plan::Pro => (9, 24.0),
        };
        let goes_on = plan != Plan::Guest && self.one_in(2);
        let before = if goes_on {
            (1.0 - mean * self.unit().ln()).min(60.0) as usize
        } else {
            0
        };
        let voices = if self.one_in(5) {
            self.0.random_range(2..=4)
        } else {
            1
        };
        let first = self.0.random_range(0..icons.len());
        let personas = (0..voices)
            .map(|at| icons[(first + at) % icons.len()].clone())
            .collect();
        let mut at_secs = -i64::try_from(before).unwrap_or_default() * 3_600;
        let mut exchanges = Vec::new();
        for number in 0..before + today {
            at_secs = if number < before {
                at_secs + 1_800
            } else if number == before {
                self.0.random_range(0..43_200)
            } else if self.one_in(10) {
                at_secs + 14_400
            } else {
                at_secs + 15 + self.log_normal(80.0, 1.0) as i64
            };
            let message = words(self.log_normal(160.0, 1.0).clamp(4.0, 8_000.0) as usize);
            let reply = words(self.log_normal(1_000.0, 0.5).clamp(20.0, 20_000.0) as usize);
            exchanges.push(Exchange {
                at_secs,
                message,
                reply,
            });
        }
        let topic = words(self.log_normal(60.0, 0.6).clamp(8.0, 2_000.0) as usize);
        Talk {
            plan,
            personas,
            topic,
            untitled: !self.one_in(5),
            exchanges,
        }
    }

    fn one_in(&mut self, many: u32) -> bool {
        self.0.random_range(0..many) == 0
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

/// Text of a length; whatever it says costs the same.
pub(super) fn words(bytes: usize) -> String {
    "word ".repeat(bytes / 5 + 1)[..bytes.max(1)].to_owned()
}
