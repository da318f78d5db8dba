//! Terse replies for tests: three sentences that name the persona and quote the user, repeatably.

/// Argues against the last message, as the persona that the system text introduces.
pub(super) fn argue(system: &str, last: &str, turns: usize) -> String {
    let persona = persona(system).unwrap_or("an icon");
    let point = point(last);
    let step = turns as u64 + 1;

    let pick = |of: &[&'static str], salt: u64| {
        let chance = hash(&[persona, last]).wrapping_add(salt.wrapping_mul(step));
        of[(chance % of.len() as u64) as usize]
    };

    let opening = pick(
        &[
            "So you hold that “{point}”.",
            "“{point}” — I have heard it said with more confidence than evidence.",
            "Let us take “{point}” seriously for as long as it can bear it.",
            "You say “{point}”, and you say it as if it were settled.",
        ],
        3,
    );
    let middle = pick(
        &[
            "I am {persona}, and I did not earn a pedestal by agreeing.",
            "Where I, {persona}, come from, such a sentence would be asked for its reasons \
             before its supper.",
            "Everything that {persona} ever made was made against exactly that comfort.",
            "Ask what would have to be true for it to be false, and {persona} will listen.",
        ],
        5,
    );
    let closing = pick(
        &[
            "Break the image first; then tell me what is left of the claim.",
            "Give me one case that would change your mind, \
             and I will give you two that changed mine.",
            "What you defend is a habit. What would you defend if you had to begin today?",
            "I grant you half of it. Which half, I leave for you to find.",
        ],
        7,
    );

    format!("{opening} {middle} {closing}")
        .replace("{persona}", persona)
        .replace("{point}", &point)
}

/// The name in “You are Frida Kahlo, …”.
fn persona(system: &str) -> Option<&str> {
    let (_, rest) = system.split_once("You are ")?;
    let end = rest.find([',', '.', ';', ':', '(', '\n']);
    let name = rest[..end.unwrap_or(rest.len())]
        .trim()
        .trim_matches(['"', '*', '“', '”']);

    (!name.is_empty() && name.chars().count() <= 60).then_some(name)
}

/// The first sentence without a fault's marker, cut to a length that can be quoted.
pub(super) fn point(text: &str) -> String {
    let without_marker = match (text.split_once("[["), text.split_once("]]")) {
        (Some((before, _)), Some((_, after))) => format!("{before} {after}"),
        _ => text.to_owned(),
    };

    let mut sentences = without_marker.trim().split(['.', '!', '?', '\n']);
    let sentence = sentences.next().unwrap_or_default();
    let words: Vec<&str> = sentence.split_whitespace().take(14).collect();

    if words.is_empty() {
        "that".to_owned()
    } else {
        words.join(" ")
    }
}

/// FNV-1a. The standard library's hash may change between releases, which would change the replies.
pub(super) fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));

    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_names_the_persona_and_the_point_and_is_repeatable() {
        let system = "Stay brief. You are Frida Kahlo, a painter.";
        let last = "Beauty is dead! Or is it?";

        let reply = argue(system, last, 1);
        assert!(reply.contains("Frida Kahlo"), "{reply}");
        assert!(reply.contains("Beauty is dead"), "{reply}");
        assert_eq!(reply, argue(system, last, 1));

        let other = argue("You are Frida Kahlo.", "Money is everything", 1);
        assert_ne!(reply, other);
    }

    #[test]
    fn odd_prompts_still_get_a_reply() {
        for (system, last) in [
            ("", ""),
            ("You are ", "…"),
            ("Be kind", "[[fault:cut]]"),
            ("You are 你好。", "]] x [["),
        ] {
            assert!(argue(system, last, 0).len() > 50);
        }

        assert_eq!(point("[[fault:cut]] Art is a lie."), "Art is a lie");
    }
}
