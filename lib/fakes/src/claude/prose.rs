//! Words for a reply that nobody scripted: in character, about the point, and the same every time.

/// Argues against the last thing said, as the persona that the system text introduces.
pub(super) fn argue(system: &str, last: &str, turns: usize) -> String {
    let persona = persona(system).unwrap_or("an icon");
    let point = point(last);
    let pick = |of: &[&'static str], salt: u64| {
        let chance = hash(&[persona, last]).wrapping_add(salt.wrapping_mul(turns as u64 + 1));
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
            "Where I, {persona}, come from, such a sentence would be asked for its reasons before its supper.",
            "Everything that {persona} ever made was made against exactly that comfort.",
            "Ask what would have to be true for it to be false, and {persona} will listen.",
        ],
        5,
    );
    let closing = pick(
        &[
            "Break the image first; then tell me what is left of the claim.",
            "Give me one case that would change your mind, and I will give you two that changed mine.",
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
    let end = rest
        .find([',', '.', ';', ':', '(', '\n'])
        .unwrap_or(rest.len());
    let name = rest[..end].trim().trim_matches(['"', '*', '“', '”']);
    (!name.is_empty() && name.chars().count() <= 60).then_some(name)
}

/// The first sentence, cut to a length that can be quoted.
fn point(text: &str) -> String {
    let without_marker = match (text.split_once("[["), text.split_once("]]")) {
        (Some((before, _)), Some((_, after))) => format!("{before} {after}"),
        _ => text.to_owned(),
    };
    let sentence = without_marker
        .trim()
        .split(['.', '!', '?', '\n'])
        .next()
        .unwrap_or_default();
    let words: Vec<&str> = sentence.split_whitespace().take(14).collect();
    if words.is_empty() {
        "that".to_owned()
    } else {
        words.join(" ")
    }
}

/// FNV-1a: the standard library's hash may change between releases, and with it every answer.
fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_the_persona_and_the_point_and_is_repeatable() {
        let answer = argue(
            "Stay brief. You are Frida Kahlo, a painter.",
            "Beauty is dead! Or is it?",
            1,
        );
        assert!(
            answer.contains("Frida Kahlo") && answer.contains("Beauty is dead"),
            "{answer}"
        );
        assert_eq!(
            answer,
            argue(
                "Stay brief. You are Frida Kahlo, a painter.",
                "Beauty is dead! Or is it?",
                1
            )
        );
        assert_ne!(
            answer,
            argue("You are Frida Kahlo.", "Money is everything", 1)
        );
    }

    #[test]
    fn odd_prompts_still_get_an_answer() {
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
