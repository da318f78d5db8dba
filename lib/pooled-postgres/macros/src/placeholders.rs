//! Named placeholders in the text of a statement.

/// Replaces `:name` by the `$n` of its position in `names`.
///
/// Casts (`::text`), string literals, quoted identifiers and comments stay as they are. Fails for a name
/// that is not in `names`, for a name that the text never uses, and for a positional `$1`.
pub(crate) fn number(text: &str, names: &[String]) -> Result<String, String> {
    let mut numbered = String::with_capacity(text.len());
    let mut used = vec![false; names.len()];
    let mut rest = text;

    while let Some(next) = rest.chars().next() {
        let literal = literal_length(rest);
        if literal > 0 {
            numbered.push_str(&rest[..literal]);
            rest = &rest[literal..];
            continue;
        }
        if let Some(name) = placeholder(rest) {
            let at = names.iter().position(|known| known == name);
            let at = at.ok_or_else(|| format!("`:{name}` is not a parameter of this statement"))?;
            used[at] = true;
            numbered.push_str(&format!("${}", at + 1));
            rest = &rest[1 + name.len()..];
            continue;
        }
        if next == '$' && rest[1..].starts_with(|digit: char| digit.is_ascii_digit()) {
            return Err("use a named parameter such as `:user` instead of `$1`".to_owned());
        }
        numbered.push(next);
        rest = &rest[next.len_utf8()..];
    }

    match used.iter().position(|used| !used) {
        Some(unused) => Err(format!("the text never uses `:{}`", names[unused])),
        None => Ok(numbered),
    }
}

/// The length of the literal, comment or cast that `text` starts with, or 0.
fn literal_length(text: &str) -> usize {
    let (open, close) = match text {
        _ if text.starts_with("::") => return 2,
        _ if text.starts_with('\'') => ("'", "'"),
        _ if text.starts_with('"') => ("\"", "\""),
        _ if text.starts_with("--") => ("--", "\n"),
        _ if text.starts_with("/*") => ("/*", "*/"),
        _ => return 0,
    };

    // A doubled quote inside a literal starts another literal, which comes to the same.
    match text[open.len()..].find(close) {
        Some(at) => open.len() + at + close.len(),
        None => text.len(),
    }
}

/// The name of the placeholder that `text` starts with.
fn placeholder(text: &str) -> Option<&str> {
    let name = text.strip_prefix(':')?;
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let end = name.find(|letter| !is_part(letter)).unwrap_or(name.len());

    let starts_with_letter = name.starts_with(|letter: char| letter.is_ascii_lowercase());
    starts_with_letter.then(|| &name[..end])
}

#[cfg(test)]
mod tests {
    use super::number;

    #[track_caller]
    fn check(text: &str, names: &[&str], expected: Result<&str, &str>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let numbered = number(text, &names);
        assert_eq!(numbered.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn names_become_numbers_in_the_order_of_the_parameters() {
        check("select 1", &[], Ok("select 1"));
        check(
            "select :b::text, :a_1 + :b",
            &["a_1", "b"],
            Ok("select $2::text, $1 + $2"),
        );
    }

    #[test]
    fn literals_comments_casts_and_slices_stay() {
        check(
            "select ':a', \":a\", 'it''s :a', 1::int -- :a\n, :a /* :a */",
            &["a"],
            Ok("select ':a', \":a\", 'it''s :a', 1::int -- :a\n, $1 /* :a */"),
        );
        check("select x[1:2], ' é'", &[], Ok("select x[1:2], ' é'"));
    }

    #[test]
    fn mistakes_are_named() {
        check(
            "select :b",
            &["a"],
            Err("`:b` is not a parameter of this statement"),
        );
        check("select 1", &["a"], Err("the text never uses `:a`"));
        check(
            "select $1",
            &[],
            Err("use a named parameter such as `:user` instead of `$1`"),
        );
    }
}
