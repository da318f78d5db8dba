//! Replies for people: about two hundred words of varied prose, in the voices of the system text.
//!
//! A reply depends on its request alone, so the same request gets the same reply.

use super::prose::{hash, point};
use super::request::ParsedRequest;

/// A reply of at most this many tokens is a label, such as a title.
const MAX_LABEL_TOKENS: u32 = 200;
/// The words of a label.
const LABEL_WORDS: usize = 6;
/// The turns of two or three voices; more voices speak once each.
const TURNS: usize = 4;

/// The reply to a request without a script.
pub(super) fn reply(request: &ParsedRequest) -> String {
    if request.max_tokens <= MAX_LABEL_TOKENS {
        return label(&request.last_text);
    }

    let prose = Prose::new(request);
    match voices(&request.system).as_slice() {
        [] | [_] => prose.monologue(),
        voices => prose.dialogue(voices),
    }
}

/// The first words of a text, without a name before them such as `Topic:`.
fn label(text: &str) -> String {
    let point = point(text);
    let subject = match point.split_once(": ") {
        Some((name, subject)) if !name.contains(' ') => subject,
        _ => &point,
    };

    let words: Vec<&str> = subject.split_whitespace().take(LABEL_WORDS).collect();
    words.join(" ")
}

/// The `# Name` headings of a system text that asks for paragraphs with a `**Name:**`.
fn voices(system: &str) -> Vec<&str> {
    if !system.contains("**Name:**") {
        return Vec::new();
    }

    // A line of dashes starts the user's topic, which may contain headings.
    let instructions = system.split("\n---\n").next().unwrap_or_default();
    let headings = instructions.lines().filter_map(|line| {
        let name = line.strip_prefix("# ")?.trim();
        (!name.is_empty()).then_some(name)
    });

    headings.collect()
}

/// Picks passages for one reply.
struct Prose {
    seed: u64,
    point: String,
}

impl Prose {
    fn new(request: &ParsedRequest) -> Self {
        let turns = request.turns.to_string();

        Self {
            seed: hash(&[&request.system, &request.last_text, &turns]),
            point: point(&request.last_text),
        }
    }

    fn monologue(&self) -> String {
        let opening = self.opening();
        let objection = self.pick(&OBJECTIONS, 1);
        let example = self.pick(&EXAMPLES, 2);
        let concession = self.pick(&CONCESSIONS, 3);
        let question = self.pick(&QUESTIONS, 4);

        format!("{opening}\n\n{objection} {example}\n\n{concession} {question}")
    }

    fn dialogue(&self, voices: &[&str]) -> String {
        let turns = voices.len().max(TURNS);
        let speaker = |turn: usize| voices[turn % voices.len()];
        let paragraphs = (0..turns).map(|turn| {
            let text = match turn {
                0 => self.opening(),
                turn if turn == turns - 1 => self.last_turn(),
                turn => self.answer_to(speaker(turn - 1), turn),
            };
            format!("**{}:** {text}", speaker(turn))
        });

        paragraphs.collect::<Vec<_>>().join("\n\n")
    }

    fn opening(&self) -> String {
        self.pick(&OPENINGS, 0).replace("{point}", &self.point)
    }

    fn answer_to(&self, other: &str, turn: usize) -> String {
        let rejoinder = self.pick(&REJOINDERS, turn).replace("{other}", other);
        let passage = match turn % 2 {
            1 => self.pick(&OBJECTIONS, turn),
            _ => self.pick(&EXAMPLES, turn),
        };

        format!("{rejoinder} {passage}")
    }

    fn last_turn(&self) -> String {
        let concession = self.pick(&CONCESSIONS, 3);
        let question = self.pick(&QUESTIONS, 4);

        format!("{concession} {question}")
    }

    /// Neighbouring offsets pick different passages of one list.
    fn pick(&self, passages: &[&'static str], offset: usize) -> &'static str {
        let start = hash(&[&self.seed.to_string(), passages[0]]) % passages.len() as u64;
        passages[(start as usize + offset) % passages.len()]
    }
}

const OPENINGS: [&str; 6] = [
    "So you hold that “{point}”. Let me first put it as strongly as I can, because a claim \
     deserves to be met at its best: it names something that many people feel and few can say.",
    "“{point}”, you say, and I can hear why it persuades. It is short, it is memorable, and it \
     spares us the trouble of asking who would have to pay if we all lived by it tomorrow.",
    "I have met “{point}” before, in better clothes and in worse. In its best form it is no \
     boast but a discovery: the usual story leaves something out, and you had the courage to \
     say so.",
    "Before I quarrel with “{point}”, let me say what I admire in it. It takes a side. Most \
     opinions keep an exit at the back; this one stands in the open and invites an answer.",
    "Let us take “{point}” seriously for as long as it can bear the weight. Suppose it true \
     without exception, on good days and on bad ones, and see what kind of house we have moved \
     into.",
    "“{point}”: there is a whole way of living folded up in that. I would like to unfold it \
     slowly, because what looks like one thought is often two, and they may not be on speaking \
     terms.",
];

const OBJECTIONS: [&str; 6] = [
    "Yet it borrows its strength from a case where everyone agrees, and spends it on a case \
     where no one does. Take the easy example away, and ask whether it still says anything that \
     its opponents would refuse to sign.",
    "But a claim of this kind has a cost, and the cost falls on someone who is not in the room. \
     Ask the apprentice, the tenant, the child who comes after, and you may hear the same \
     sentence as a threat.",
    "My trouble is with the word in the middle, the one that sounds so clear. Used narrowly, it \
     makes the claim true and dull; used broadly, it makes it bold and false. Which of the two \
     do you mean to defend?",
    "Where I part from it is the step from what usually happens to what must happen. Habit is a \
     patient teacher, but it has been wrong before, and it was always surest in the hour before \
     it was corrected.",
    "Still, I notice that the argument runs just as well backwards. Those who believe the \
     opposite tell the same story, with the same examples, and arrive with equal confidence at \
     their own front door.",
    "What it cannot explain is the person who agrees with every word and then does otherwise. \
     Either we call that person a fool, which is lazy, or we admit that something else was at \
     work.",
];

const EXAMPLES: [&str; 6] = [
    "Think of a carpenter with two rules, one for measuring and one for mending. The first is \
     exact and the second is kind, and a good workshop needs both. I would not hire the man who \
     could only recite the first.",
    "I once watched two neighbours settle a boundary that had divided their families for years. \
     Neither proved anything. They walked the field together and discovered that each had been \
     answering a different question.",
    "Consider a crew who agree about the harbour and about nothing else. They will arrive, if \
     they arrive, through a hundred small concessions, and not one of them will be written in \
     the log as a principle.",
    "Take a teacher who praises every answer. Her pupils are happy until the day they meet the \
     world, which does not praise. Was she kind? For an hour, surely. Over a life I am less \
     certain, and so are you.",
    "Imagine a city that made this sentence its law. In the first year it would be proud, in \
     the second busy with exceptions, and in the third it would pay many people to explain why \
     the exceptions were the rule.",
    "Picture a letter that arrives ten years late. Every word in it is true, and it can no \
     longer help the person to whom it was true. A claim has its season, too, and yours may be \
     early or late without being wrong.",
];

const CONCESSIONS: [&str; 5] = [
    "I grant you this much: if you had only said that it is often so, I would have nothing to \
     add but thanks. It is the confidence I doubt, and not the observation, which seems to me \
     fair.",
    "You are right about one thing, and it is no small one. Those who mock this view have \
     seldom troubled to replace it, and a broken chair is more use than the drawing of a better \
     one.",
    "In fairness, my own answer has a hole in it. I would have us judge case by case, and \
     anyone who has stood in a queue knows how quickly that becomes judging friend by friend.",
    "Perhaps I concede more than I should, but the feeling behind your words seems sound to me. \
     What I resist is the haste with which a feeling becomes a rule, and a rule an excuse.",
    "I will not pretend that this settles it. You could answer that some truths only look harsh \
     from outside, and on a bad day I would have to admit that I have lived by one of them.",
];

const QUESTIONS: [&str; 5] = [
    "So which single case, if I could show it to you, would make you change a word of it?",
    "What would you say to the person who has the most to lose if you are right?",
    "If you had to give up one half of it to save the other, which half would you keep, and \
     why?",
    "What do you do on an ordinary morning that you would not do if you believed the opposite?",
    "And which of your friends would laugh at this, and what would they be laughing at?",
];

const REJOINDERS: [&str; 6] = [
    "{other}, you are too generous by half.",
    "That is elegantly put, {other}, and I believe almost none of it.",
    "Let me slow you down, {other}, because you have run past the interesting part.",
    "I would follow {other} there if the road did not end at the first gate.",
    "You see the wall, {other}, and I am asking who built it.",
    "Here {other} and I have quarrelled before, and I mean to quarrel again.",
];

#[cfg(test)]
mod tests {
    use super::super::cache::count;
    use super::*;

    const VOICES: &str = "Each turn a paragraph that begins with the speaker's name in bold, as in \
        **Name:**.\n\n# Ada\nYou are Ada.\n\n# Bob (the elder)\nYou are Bob.\n\n\
        The subject:\n---\n# Not a voice\n---\n\nHouse rules.";

    fn request(system: &str, last_text: &str, turns: usize) -> ParsedRequest {
        ParsedRequest {
            model: "claude-haiku-5-5".to_owned(),
            thinks: false,
            max_tokens: 500,
            stream: true,
            system: system.to_owned(),
            last_text: last_text.to_owned(),
            turns,
            blocks: Vec::new(),
        }
    }

    #[test]
    fn replies_have_the_length_of_a_conversation_and_fit_the_smallest_plan() {
        let longest =
            format!("{VOICES}\n# Cyd").replace("\n\nThe subject", "\n# Cyd\n\nThe subject");
        for system in ["You are Ada.", VOICES, &longest] {
            for turns in 0..200 {
                let last_text = format!("Beauty is dead, and I can prove it in {turns} ways");
                let reply = reply(&request(system, &last_text, turns));

                let words = reply.split_whitespace().count();
                assert!((150..=300).contains(&words), "{words} words: {reply}");
                let tokens: u32 = reply.split_inclusive(' ').map(count).sum();
                assert!(tokens <= 460, "{tokens} tokens: {reply}");
                assert!(!reply.contains('{'), "{reply}");
            }
        }
    }

    #[test]
    fn replies_quote_the_user_vary_and_are_repeatable() {
        let first = reply(&request("You are Ada.", "Beauty is dead! Is it?", 1));
        let second = reply(&request("You are Ada.", "Beauty is dead! Is it?", 3));

        assert!(first.contains("“Beauty is dead”"), "{first}");
        assert_ne!(first, second);
        assert_eq!(
            first,
            reply(&request("You are Ada.", "Beauty is dead! Is it?", 1))
        );
    }

    #[test]
    fn several_voices_speak_in_turn() {
        assert_eq!(voices(VOICES), ["Ada", "Bob (the elder)"]);
        assert_eq!(voices("# Ada\nYou are Ada."), [""; 0]);

        let reply = reply(&request(VOICES, "Beauty is dead.", 1));
        let speakers: Vec<&str> = reply
            .split("\n\n")
            .map(|paragraph| paragraph.split_inclusive(":** ").next().unwrap())
            .collect();
        assert_eq!(
            speakers,
            [
                "**Ada:** ",
                "**Bob (the elder):** ",
                "**Ada:** ",
                "**Bob (the elder):** "
            ]
        );
    }

    #[test]
    fn passages_of_one_reply_differ() {
        for turns in 0..50 {
            let reply = reply(&request(VOICES, "Beauty is dead.", turns));
            let mut sentences: Vec<&str> = reply.split(['.', '?', ';']).collect();
            sentences.retain(|sentence| sentence.len() > 40);
            let total = sentences.len();
            sentences.sort_unstable();
            sentences.dedup();
            assert_eq!(sentences.len(), total, "{reply}");
        }
    }

    #[test]
    fn a_short_reply_is_a_label() {
        let title = |text: &str| {
            reply(&ParsedRequest {
                max_tokens: 100,
                ..request("Name a discussion.", text, 1)
            })
        };

        assert_eq!(title("Topic: Is art dead?\n\nUser: Yes"), "Is art dead");
        assert_eq!(
            title("User: One two three four five six seven"),
            "One two three four five six"
        );
    }
}
